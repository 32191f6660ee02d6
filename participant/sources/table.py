"""A site's rows as numbers, before any plan: columns by name, and which rows are for training.

What every source needs is here too: `Columns` says what is what in a file without a schema, and the functions below say
what is wrong with a number or a name, in words that go behind its place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from broker.schema import OTHER, Schema
from logistic.sparse import CSR
from participant.errors import DataError

Floats = NDArray[np.float64]
Role = Literal["label", "split", "sample weight", "offset"]
Missing = Literal["refuse", "mean"]

#: Sums of squares of larger numbers are beyond what the aggregator takes; no unit is so small.
LARGEST = 1e90


@dataclass(frozen=True, slots=True)
class Columns:
    """What is what among the columns of a file: those that are not named here are features.

    Attributes
    ----------
    label : what is to be predicted, one of ``classes`` in each row.
    split : says ``train`` or ``test``; without it all rows are for training. An NPZ file has ``is_train`` instead.
    sample_weight : how much each row counts, 0 or more; without it each counts as one.
    offset : what is added to each row's margin; without it nothing is.
    classes : the labels that there may be, different whole numbers from 0.
    missing : whether a feature without a value is refused, or is NaN in the table until the mean stands for it.

    Raises
    ------
    DataError
        If one column has two roles, or the classes are none.
    """

    label: str
    split: str | None = None
    sample_weight: str | None = None
    offset: str | None = None
    classes: tuple[int, ...] = (0, 1)
    missing: Missing = "refuse"

    def __post_init__(self) -> None:
        named: dict[str, Role] = {}
        for role, name in self.named.items():
            if name in named:
                raise DataError(f"{name!r} is named as the {named[name]} and as the {role}: each needs its own column")
            named[name] = role
        if len(set(self.classes)) < max(2, len(self.classes)) or min(self.classes) < 0:
            raise DataError("the classes must be two or more different whole numbers, none below 0")

    @property
    def named(self) -> dict[Role, str]:
        """The columns that are no features, by what they are."""
        roles: dict[Role, str | None] = {
            "label": self.label,
            "split": self.split,
            "sample weight": self.sample_weight,
            "offset": self.offset,
        }
        return {role: name for role, name in roles.items() if name is not None}

    def label_defect(self, label: float) -> str:
        """Return what is wrong with ``label``, NaN where the cell is no number; empty when nothing is."""
        if label in self.classes:
            return ""
        hint = ", or list all classes with --classes" if label.is_integer() else ""
        if self.classes == (0, 1):
            return f"is the label and neither 0 nor 1; code it as 0 and 1{hint}"
        return f"is the label and none of the classes {', '.join(map(str, self.classes))}; code it as one of them{hint}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Streamed:
    """Features that are read anew each time.

    Attributes
    ----------
    shape : (n_rows, n_features).
    rows : yields them, batch by batch, each with an ``X`` (m, n_features).
    digest : changes when any number does.
    n_missing : (n_features,) cells without a value.
    """

    shape: tuple[int, int]
    rows: Iterable[Any]
    digest: str
    n_missing: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Table:
    """Rows in the columns' own units.

    Attributes
    ----------
    features : names of the columns of ``X``.
    X : (n_rows, n_features) finite, or NaN where a value is missing and may be; a level is its place among ``levels``.
    y : (n_rows,) labels, each one of ``classes``.
    is_train : (n_rows,) booleans; the others are only evaluated.
    sample_weight : (n_rows,) finite, 0 or more, not all 0; None for 1 everywhere.
    offset : (n_rows,) finite; None for 0 everywhere.
    classes : the labels that there may be, here or elsewhere.
    schema : what the features are; None where each is a number.
    levels : of each categorical feature, those that were met here, or that the schema lists.
    level_counts : how many training rows have each of them.
    """

    features: tuple[str, ...]
    X: Floats | CSR | Streamed
    y: Floats
    is_train: NDArray[np.bool_]
    sample_weight: Floats | None = None
    offset: Floats | None = None
    classes: tuple[int, ...] = (0, 1)
    schema: Schema | None = None
    levels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    level_counts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def n_train(self) -> int:
        """Rows to train on."""
        return int(self.is_train.sum())

    @property
    def n_test(self) -> int:
        """Rows only to be evaluated."""
        return len(self.is_train) - self.n_train

    @property
    def n_missing(self) -> NDArray[np.intp]:
        """Cells without a value in each column, those of test rows included: (n_features,)."""
        if isinstance(self.X, Streamed):
            return self.X.n_missing
        if isinstance(self.X, CSR):
            return np.bincount(self.X.indices[np.isnan(self.X.data)], minlength=len(self.features))
        counts: NDArray[np.intp] = np.isnan(self.X).sum(axis=0)
        return counts

    @property
    def has_missing(self) -> bool:
        """Whether any cell has no value."""
        return bool(self.n_missing.any())

    @property
    def weight(self) -> float | None:
        """Sum of the weights of the training rows; None where each counts as one."""
        return None if self.sample_weight is None else float(self.sample_weight[self.is_train].sum())

    def fingerprint(self, salt: str) -> str:
        """Return what changes when any number here does, and tells nothing without ``salt``."""
        found = sha256(salt.encode())
        for part in (*self._features(), self.y, self.is_train, self.sample_weight, self.offset):
            found.update(b"-" if part is None else part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
        found.update("\0".join(self.features).encode())
        return found.hexdigest()[:16]

    def columns(self, names: tuple[str, ...]) -> Floats:
        """Return ``X``, which is dense, with its columns in the order of ``names``, which are matched by name."""
        place = {name: index for index, name in enumerate(self.features)}
        return self.dense if names == self.features else self.dense[:, [place[name] for name in names]]

    @property
    def dense(self) -> Floats:
        """``X`` where it is an array in memory."""
        assert isinstance(self.X, np.ndarray), "sparse and streamed rows have no array"
        return self.X

    def _features(self) -> tuple[Any, ...]:
        """Return what the features are made of, as arrays or bytes."""
        if isinstance(self.X, CSR):
            return self.X.indptr, self.X.indices, self.X.data
        cells = self.X.digest.encode() if isinstance(self.X, Streamed) else self.X
        return (cells, repr(sorted(self.levels.items())).encode()) if self.levels else (cells,)

    def told_levels(self, min_cell: int) -> dict[str, tuple[str, ...]]:
        """Return the levels to tell of each feature whose levels are to be found: those of ``min_cell`` training rows.

        `OTHER` stands for the rest, if any.
        """
        told = {}
        for feature in () if self.schema is None else self.schema.features:
            if feature.is_open:
                levels, counts = self.levels[feature.name], self.level_counts[feature.name]
                # Sorted: the order in which rows have them would tell of the first rows.
                common = tuple(sorted(level for level, n in zip(levels, counts, strict=True) if n >= min_cell))
                told[feature.name] = common if len(common) == len(levels) else (*common, OTHER)
        return told

    def __repr__(self) -> str:
        """Return its shape: rows stay out of logs and tracebacks."""
        missing = f", {self.n_missing.sum()} cells missing" if self.has_missing else ""
        return f"Table({self.n_train} training rows, {self.n_test} test rows, {len(self.features)} features{missing})"

    def __reduce__(self) -> Any:
        """Refuse to be pickled: rows do not leave this process."""
        raise TypeError("a Table is not pickled: rows stay where they are")


def number_defect(number: float, role: Role | None = None) -> str:
    """Return what is wrong with ``number`` in a column of that role, None for a feature; empty when nothing is."""
    if not math.isfinite(number):
        return "is not a finite number (NaN or infinity)"
    if abs(number) > LARGEST:
        return f"is beyond {LARGEST:g}; give the column another unit"
    if role == "sample weight" and number < 0:
        return "is a negative sample weight; give a row that shall not count the weight 0"
    return ""


def names_defect(names: Sequence[str]) -> str:
    """Return what is wrong with the names of columns; empty when nothing is."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        return f"the column name {twice[0]!r} stands twice; give each column its own name"
    if "" in names:
        return f"column {names.index('') + 1} has no name; give it one, or remove it"
    return ""


def shown(names: Sequence[str]) -> str:
    """Return as many of ``names`` as a line holds."""
    line = ", ".join(name if name.isprintable() else ascii(name) for name in names[:12])
    return line if len(names) <= 12 else f"{line}, ... ({len(names)} in all)"  # noqa: PLR2004 - a line's worth


def file_signature(*paths: Path) -> Any:
    """Return what changes when one of the files does, or another takes its place; raises `DataError`."""
    found = []
    for path in paths:
        try:
            told = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        found.append((told.st_ino, told.st_size, told.st_mtime_ns))
    return tuple(found)


def check_weights(path: Path | str, table: Table) -> None:
    """Raise `DataError` if all training rows, or all test rows, have the weight 0: nothing could be divided by it."""
    if table.sample_weight is None:
        return
    for kind, rows in (("training", table.is_train), ("test", ~table.is_train)):
        if rows.any() and not table.sample_weight[rows].any():
            raise DataError(f"{path}: the sample weights of all {kind} rows are 0; at least one row must count")
