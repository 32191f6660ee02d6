"""Rows in Parquet files that the workers of a Dask cluster read, keep and go over: none of them comes here.

Each file is a partition. A worker reads and codes it as any site does, and keeps it as numbers, with its labels,
weights and offsets; here are only counts, and a digest. Levels are coded by their places in each partition, since
nobody knows those of the others beforehand: what a place means there is said whenever somebody goes over the rows.

A worker that is lost takes its partitions with it, and Dask has others read these files anew. Where the rows are then
not those that they were, the digest tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.schema import Schema
from logistic.errors import LogisticError
from logistic.rows import Chunk
from participant.errors import DataError
from participant.sources.coding import MOST_LEVELS, Coded, Coder
from participant.sources.duckdb import DuckDBSource
from participant.sources.reading import CodedRows, implied, schema_columns
from participant.sources.table import Columns, Streamed, Table, shown

#: What the names of files end with that the workers read.
SUFFIXES = (".parquet", ".pq")

#: Connections by the scheduler's address. Each look at the files would else begin with one of its own.
_clients: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What is told of a partition.

    Attributes
    ----------
    n_train, n_test : how many rows.
    train_weights, test_weights : of each label the sum of the sample weights; 1 for each row where there are none.
    n_missing : (n_features,) cells without a value.
    levels : of each categorical feature, those met in the partition, each at its place.
    level_counts : how many training rows have each of them.
    digest : changes when any number or level does.
    """

    n_train: int
    n_test: int
    train_weights: Mapping[float, float]
    test_weights: Mapping[float, float]
    n_missing: NDArray[np.intp]
    levels: Mapping[str, tuple[str, ...]]
    level_counts: Mapping[str, tuple[int, ...]]
    digest: bytes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Partition:
    """The rows of one file, on a worker; its text has none of them, since workers log what failed tasks were given."""

    train: Chunk
    test: Chunk
    summary: Summary

    def __sizeof__(self) -> int:
        """Bytes, by which a worker plans its memory."""
        return sum(values.nbytes for rows in (self.train, self.test) for values in _arrays(rows))


@dataclass(frozen=True, slots=True)
class Cluster:
    """The workers behind the scheduler at ``address``."""

    address: str

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Have a worker compute ``function``; return its future, which other functions may be given as an argument."""
        with self._in_our_words():
            return self._client().submit(function, *arguments, pure=False)

    def result(self, future: Any) -> Any:
        """Return what a worker has computed, and raise what it has raised; `DataError` where the cluster fails."""
        with self._in_our_words():
            return future.result()

    def in_order(self, function: Callable[..., Any], arguments: Iterable[Sequence[Any]]) -> Iterator[Any]:
        """Yield ``function`` of each of the ``arguments``, in their order; no more are ahead than keep workers busy."""
        with self._in_our_words():
            n_ahead = 2 * sum(self._client().nthreads().values())
        ahead: deque[Any] = deque()
        for each in arguments:
            ahead.append(self.submit(function, *each))
            if len(ahead) > n_ahead:
                yield self.result(ahead.popleft())
        while ahead:
            yield self.result(ahead.popleft())

    def _client(self) -> Any:
        client = _clients.get(self.address)
        if client is None or client.status != "running":
            try:
                import distributed  # noqa: PLC0415 - an extra, and slow to import
            except ImportError:
                raise DataError("rows on a Dask cluster need Dask: pip install 'fedmq[dask]'") from None
            try:
                client = _clients[self.address] = distributed.Client(self.address, set_as_default=False)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"the Dask scheduler at {self.address} cannot be reached ({type(error).__name__}); check the "
                    "address, and that it runs"
                ) from None
        return client

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Say in a sentence what Dask says in many; what was raised on purpose, also by a worker, stays as it is."""
        try:
            yield
        except (DataError, LogisticError) as error:
            raise error.with_traceback(None) from None
        # Of what is lost Dask tells by several classes, and of what workers lack by those of Python.
        except Exception as error:  # noqa: BLE001 - see above
            raise DataError(
                f"the Dask cluster at {self.address} has not computed what it was given ({type(error).__name__}): it "
                "went away, or its workers lack memory or this version of fedmq[dask]; their logs say which"
            ) from None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClusteredTable(Table):
    """A table whose rows are on a cluster: its arrays are empty, and what is told of them are sums over partitions.

    Attributes
    ----------
    cluster : that has the rows.
    partitions : the future of each `Partition`, in the order of the files; as long as it is held, workers keep them.
    summaries : what is told of each.
    """

    cluster: Cluster = field(kw_only=True)
    partitions: tuple[Any, ...] = field(kw_only=True)
    summaries: tuple[Summary, ...] = field(kw_only=True)
    is_weighted: bool = field(kw_only=True)

    @property
    def n_train(self) -> int:
        """Rows to train on."""
        return sum(each.n_train for each in self.summaries)

    @property
    def n_test(self) -> int:
        """Rows only to be evaluated."""
        return sum(each.n_test for each in self.summaries)

    @property
    def weight(self) -> float | None:
        """Sum of the weights of the training rows; None where each counts as one."""
        return sum(sum(each.train_weights.values()) for each in self.summaries) if self.is_weighted else None

    def places(self, summary: Summary) -> dict[int, NDArray[np.intp]]:
        """Return, of each column with levels, the places among ours of those of a partition."""
        return {
            self.features.index(name): np.array(
                [levels.index(level) for level in summary.levels.get(name, ())], np.intp
            )
            for name, levels in self.levels.items()
        }


@dataclass(frozen=True, slots=True)
class DaskFiles:
    """Parquet files, as the workers see them.

    Attributes
    ----------
    scheduler : its address, such as ``tcp://10.0.0.7:8786``.
    data : the path of a file, a pattern such as ``/lake/visits/*.parquet``, or a folder.
    """

    scheduler: str
    data: str

    def signature(self) -> Any:
        """Return what changes when a file does, comes or goes; raises `DataError`."""
        cluster = Cluster(self.scheduler)
        return cluster.result(cluster.submit(DuckDBSource((self.data,)).signature))

    def table(self, what: Columns | Schema) -> ClusteredTable:
        """Have the workers read the files; raises `DataError`, of the first file that has a defect."""
        cluster = Cluster(self.scheduler)
        names, files = cluster.result(cluster.submit(_look, self.data))
        columns = what if isinstance(what, Columns) else None
        schema = implied(self.data, names, what) if isinstance(what, Columns) else what
        if lacks := [name for name in schema_columns(schema) if name not in names]:
            raise DataError(
                f"{self.data} has no column {lacks[0]!r}, which the schema names; its columns are {shown(names)}"
            )
        partitions = tuple(cluster.submit(_load, file, schema, columns) for file in files)
        told = [cluster.submit(_summary, partition) for partition in partitions]
        summaries = tuple(cluster.result(each) for each in told)
        self._check(summaries)
        levels = self._levels(summaries, schema)
        n_rows = sum(each.n_train + each.n_test for each in summaries)
        n_missing = sum((each.n_missing for each in summaries), np.zeros(len(schema.features), dtype=np.intp))
        digest = sha256(b"".join(each.digest for each in summaries)).hexdigest()
        return ClusteredTable(
            features=schema.names,
            X=Streamed((n_rows, len(schema.features)), (), digest, n_missing),
            y=np.zeros(0),
            is_train=np.zeros(0, dtype=np.bool_),
            classes=schema.label.classes if columns is None else columns.classes,
            schema=None if columns is not None else schema,
            levels={name: tuple(counts) for name, counts in levels.items()},
            level_counts={name: tuple(counts.values()) for name, counts in levels.items()},
            cluster=cluster,
            partitions=partitions,
            summaries=summaries,
            is_weighted=bool(schema.sample_weight),
        )

    def _check(self, summaries: Sequence[Summary]) -> None:
        n_train, n_test = sum(each.n_train for each in summaries), sum(each.n_test for each in summaries)
        if not n_train + n_test:
            raise DataError(f"{self.data} has columns and no rows: it needs at least one training row")
        if not n_train:
            raise DataError(f"{self.data}: no row is for training; check the split")
        trained, tested = ([each.train_weights for each in summaries], [each.test_weights for each in summaries])
        for kind, n, weights in (("training", n_train, trained), ("test", n_test, tested)):
            if n and not any(weight for each in weights for weight in each.values()):
                raise DataError(
                    f"{self.data}: the sample weights of all {kind} rows are 0; at least one row must count"
                )

    def _levels(self, summaries: Sequence[Summary], schema: Schema) -> dict[str, dict[str, int]]:
        """Return, of each categorical feature, how many training rows have each level, in the order of the rows."""
        found: dict[str, dict[str, int]] = {}
        for feature in schema.features:
            if feature.kind == "categorical":
                counts = found[feature.name] = {}
                for each in summaries:
                    met = each.levels.get(feature.name, ())
                    for level, n in zip(met, each.level_counts.get(feature.name, ()), strict=True):
                        counts[level] = counts.get(level, 0) + n
                if len(counts) > MOST_LEVELS:
                    raise DataError(
                        f"{self.data}, column {feature.name!r}: the files have more than {MOST_LEVELS} different "
                        "levels; the feature cannot be categorical"
                    )
        return found


# --- on a worker ------------------------------------------------------------------------------------------------------


def _look(data: str) -> tuple[Sequence[str], tuple[str, ...]]:
    """Return the names of the columns, and the files."""
    source = DuckDBSource((data,))
    files: tuple[str, ...] = source.signature()[0]
    for file in files:
        if not file.lower().endswith(SUFFIXES):
            raise DataError(f"{file} is not a .parquet file: the workers of a Dask cluster read no other")
    return source.names(), files


def _load(file: str, schema: Schema, columns: Columns | None) -> Partition:
    source = DuckDBSource((file,))
    coder = Coder(schema, columns, source.decimal)
    parts = list(CodedRows(source, coder))
    train, test = (_side(parts, schema, is_train=is_train) for is_train in (True, False))
    levels = {name: tuple(places) for name, places in coder.levels.items()}
    counts = {name: _counts(train, schema.names.index(name), len(met)) for name, met in levels.items()}
    digest = sha256(repr((levels, len(train.y), len(test.y))).encode())
    for values in (*_arrays(train), *_arrays(test)):
        digest.update(values.data)
    return Partition(
        train,
        test,
        Summary(
            n_train=len(train.y),
            n_test=len(test.y),
            train_weights=_weights(train),
            test_weights=_weights(test),
            n_missing=np.isnan(train.dense()).sum(axis=0) + np.isnan(test.dense()).sum(axis=0),
            levels=levels,
            level_counts=counts,
            digest=digest.digest(),
        ),
    )


def _side(parts: Sequence[Coded], schema: Schema, *, is_train: bool) -> Chunk:
    """Return the rows that are for training, or the others; their labels are the classes as they came."""
    which = [part.is_train == is_train for part in parts]

    def joined(name: str, shape: tuple[int, ...] = (0,)) -> NDArray[np.float64]:
        rows = (getattr(part, name)[ours] for part, ours in zip(parts, which, strict=True))
        return np.ascontiguousarray(np.concatenate([np.zeros(shape), *rows]))

    return Chunk(
        joined("X", (0, len(schema.features))),
        joined("y"),
        joined("sample_weight") if schema.sample_weight else None,
        joined("offset") if schema.offset else None,
    )


def _counts(train: Chunk, column: int, n_levels: int) -> tuple[int, ...]:
    codes = train.dense()[:, column]
    return tuple(map(int, np.bincount(codes[~np.isnan(codes)].astype(np.intp), minlength=n_levels)))


def _weights(rows: Chunk) -> dict[float, float]:
    weights = np.ones(len(rows.y)) if rows.sample_weight is None else rows.sample_weight
    return {float(label): float(weights[rows.y == label].sum()) for label in np.unique(rows.y)}


def _arrays(rows: Chunk) -> Iterator[NDArray[np.float64]]:
    yield from (values for values in (rows.dense(), rows.y, rows.sample_weight, rows.offset) if values is not None)


def _summary(partition: Partition) -> Summary:
    return partition.summary
