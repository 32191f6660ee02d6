"""From whatever holds rows to a `Table`: a source is read batch by batch, and each batch coded as the schema says.

A table that is small stays in memory as one array. A large one is read again each time that its rows are gone over:
what stays are labels, weights and offsets, some bytes for each row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple, Protocol

import numpy as np

from broker.schema import Feature, Label, Schema, Split
from participant.errors import DataError
from participant.sources.coding import CellDefect, Cells, Coded, Coder
from participant.sources.table import Columns, Floats, Streamed, Table, check_weights, names_defect, shown

#: Bytes of the features of a table that stays in memory; what is larger is read again each time.
IN_MEMORY_BYTES = 256 * 2**20


class Batch(NamedTuple):
    """Some consecutive rows: the cells of each column by its name; where row ``index`` of it is, says the source."""

    cells: Mapping[str, Cells]
    n_rows: int
    places: Sequence[int]


class Source(Protocol):
    """What holds rows and can be read again."""

    @property
    def place(self) -> str:
        """How errors call it: the path of a file, the name of a query; never a password."""
        ...

    @property
    def row_word(self) -> str:
        """What ``places`` count: ``line`` or ``row``."""
        ...

    @property
    def decimal(self) -> str:
        """What stands before the decimals of numbers that are text."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names of all columns, in their order; raises `DataError`."""
        ...

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield all rows in an order that is always the same, with the columns ``names``; raises `DataError`."""
        ...

    def signature(self) -> Any:
        """Return what is another when the rows may have changed, without reading them; None where nothing tells."""
        ...


def read(source: Source, what: Columns | Schema, *, in_memory_bytes: int = IN_MEMORY_BYTES) -> Table:
    """Return the rows of ``source``, of which ``what`` says what is what.

    Raises
    ------
    DataError
        With place, row, column and the kind of defect, and what to do; never with the value.
    """
    names = source.names()
    if defect := names_defect(names):
        raise DataError(f"{source.place}: {defect}")
    columns = what if isinstance(what, Columns) else None
    schema = implied(source.place, names, what) if isinstance(what, Columns) else what
    _check_names(source.place, names, schema)
    rows = CodedRows(source, Coder(schema, columns, source.decimal))
    return _table(rows, columns, in_memory_bytes)


def implied(place: str, names: Sequence[str], columns: Columns) -> Schema:
    """Return the schema where there is none: all columns that ``columns`` does not name are numbers.

    Raises
    ------
    DataError
        If a named column is not there, or there is no other.
    """
    for role, name in columns.named.items():
        if name not in names:
            raise DataError(
                f"{place} has no column {name!r}, which was named as the {role}; its columns are {shown(names)}"
            )
    features = [name for name in names if name not in columns.named.values()]
    if not features:
        raise DataError(f"{place} has no feature columns beside {columns.label!r}")
    return Schema(
        features=tuple(Feature(name, missing=columns.missing) for name in features),
        label=Label(columns.label),
        split=Split(column=columns.split or ""),
        sample_weight=columns.sample_weight or "",
        offset=columns.offset or "",
    )


def schema_columns(schema: Schema) -> tuple[str, ...]:
    """Return the names of the columns that ``schema`` needs, each once."""
    others = (schema.label.column, schema.split.column, schema.split.key, schema.sample_weight, schema.offset)
    return tuple(dict.fromkeys([*schema.names, *(name for name in others if name)]))


def _check_names(place: str, names: Sequence[str], schema: Schema) -> None:
    for name in schema_columns(schema):
        if name not in names:
            raise DataError(f"{place} has no column {name!r}, which the schema names; its columns are {shown(names)}")


@dataclass(frozen=True, slots=True, eq=False)
class CodedRows:
    """The rows of a source as numbers, as often as they are wanted.

    Labels stay in memory and features do not: each batch must be the one that it was the first time. That is seen by a
    digest of its labels and of its first row, which tells without a signature too, and of rows in another order. Nor
    may there be a level that was not there. ``at`` has the source's signature and the number of levels then.
    """

    source: Source
    coder: Coder
    at: list[Any] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def __iter__(self) -> Iterator[Coded]:
        """Yield the rows, batch by batch; raises `DataError`, also where they are not those of the first time."""
        source = self.source
        signature = source.signature()
        if self.at and self.at[0] != signature:
            raise DataChanged(f"{source.place} has changed since it was read; its rows are read anew")
        is_first, n_batches = not self.at, 0
        if is_first:
            self.digests.clear()
        for batch in source.batches(schema_columns(self.coder.schema)):
            try:
                coded = self.coder.code(batch.cells, batch.n_rows)
            except CellDefect as defect:
                row = f"{source.row_word} {batch.places[defect.index]}"
                raise DataError(f"{source.place}, {row}, column {defect.column!r}: the cell {defect}") from None
            digest = sha256(coded.y.tobytes() + coded.is_train.tobytes() + coded.X[:1].tobytes()).digest()
            if is_first:
                self.digests.append(digest)
            elif self.digests[n_batches : n_batches + 1] != [digest] or self._n_levels != self.at[1]:
                raise DataChanged(self._others)
            n_batches += 1
            yield coded
        if n_batches != len(self.digests):
            raise DataChanged(self._others)
        if source.signature() != signature:
            raise DataChanged(f"{source.place} has changed while it was read; its rows are read anew")
        self.at[:] = [signature, self._n_levels]

    @property
    def _n_levels(self) -> int:
        return sum(map(len, self.coder.levels.values()))

    @property
    def _others(self) -> str:
        return (
            f"{self.source.place} has not the rows that it had, or not in their order; they are read anew, and a query "
            "needs an ORDER BY"
        )


class DataChanged(DataError):
    """The rows are not those any more that were read before."""


def _table(rows: CodedRows, columns: Columns | None, in_memory_bytes: int) -> Table:
    schema, place = rows.coder.schema, rows.source.place
    parts: list[Coded] = []
    blocks: list[Floats] = []
    n_bytes, n_missing, digest = 0, np.zeros(len(schema.features), dtype=np.intp), sha256()
    counts: list[Floats] = [np.zeros(0) for _ in schema.features]
    for coded in rows:
        n_bytes += coded.X.nbytes
        n_missing += np.isnan(coded.X).sum(axis=0)
        digest.update(np.ascontiguousarray(coded.X).data)
        _count_levels(schema, coded, counts)
        if n_bytes <= in_memory_bytes:
            blocks.append(coded.X)
        else:
            blocks.clear()
        parts.append(Coded(np.zeros((0, 0)), *_rest(coded)))
    if not parts:
        raise DataError(f"{place} has a header and no rows: it needs at least one training row")
    n_rows = sum(len(part.y) for part in parts)
    is_train = np.concatenate([part.is_train for part in parts])
    if not is_train.any():
        raise DataError(
            f"{place}: no row is marked 'train' in column {schema.split.column!r}; it needs at least one"
            if schema.split.column
            else f"{place}: no row is for training; change the seed or the test_share of the split"
        )
    levels = {name: tuple(places) for name, places in rows.coder.levels.items()}
    features = schema.names
    table = Table(
        features=features,
        X=np.ascontiguousarray(np.concatenate(blocks))
        if blocks
        else Streamed((n_rows, len(features)), rows, digest.hexdigest(), n_missing),
        y=np.concatenate([part.y for part in parts]),
        is_train=is_train,
        sample_weight=_joined([part.sample_weight for part in parts]),
        offset=_joined([part.offset for part in parts]),
        classes=schema.label.classes if columns is None else columns.classes,
        schema=None if columns is not None else schema,
        levels=levels,
        level_counts={
            feature.name: tuple(int(n) for n in np.pad(counts[at], (0, len(levels[feature.name]) - len(counts[at]))))
            for at, feature in enumerate(schema.features)
            if feature.kind == "categorical"
        },
    )
    check_weights(place, table)
    return table


def _rest(coded: Coded) -> tuple[Any, ...]:
    return coded.y, coded.is_train, coded.sample_weight, coded.offset


def _count_levels(schema: Schema, coded: Coded, counts: list[Floats]) -> None:
    """Add to ``counts`` how many training rows have each level of each categorical feature."""
    for at, feature in enumerate(schema.features):
        if feature.kind == "categorical":
            codes = coded.X[coded.is_train, at]
            more = np.bincount(codes[~np.isnan(codes)].astype(np.intp)).astype(np.float64)
            longest = max(len(more), len(counts[at]))
            counts[at] = np.pad(counts[at], (0, longest - len(counts[at]))) + np.pad(more, (0, longest - len(more)))


def _joined(parts: list[Floats | None]) -> Floats | None:
    return None if parts[0] is None else np.concatenate([part for part in parts if part is not None])
