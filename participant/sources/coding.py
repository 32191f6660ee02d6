"""From the cells of a table's columns to numbers, as a schema says: column by column, a batch of rows at a time.

Cells are text, as in a CSV file, or numbers, truth values and None, as a database has them. A feature becomes one
column of numbers, with NaN where a value is missing and the mean of all sites will stand for it; a level becomes its
place among the levels that this site has. What the model's columns are follows from the plan (`participant.design`).

What is wrong with a cell is said without its value and without its place: who reads the cells knows the place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.schema import BINARY_WORDS, MISSING, OTHER, Feature, Schema
from participant.errors import DataError
from participant.sources.table import LARGEST, Columns, Floats, Role, number_defect

Cells = Sequence[Any] | NDArray[Any]

#: Values of a split column, and whether they mark a training row.
SPLITS = {"train": True, "test": False}

#: What a missing value is written as, in small or capital letters.
MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "?"})

#: A column with more levels is free text, or a number; its levels would be told to all sites.
MOST_LEVELS = 1000

#: A whole number that a program has written with decimals: 3 and 3.0 are one level.
_WHOLE = re.compile(r"(-?\d+)\.0+")


class CellDefect(DataError):
    """A cell that cannot be used: ``index`` in its batch, and the sentence's end; its place is put before it."""

    def __init__(self, index: int, words: str, column: str = "") -> None:
        super().__init__(words)
        self.index, self.column = index, column


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """A batch of rows as numbers: ``X`` (m, n_features) in the order of the schema, the others (m,)."""

    X: Floats
    y: Floats
    is_train: NDArray[np.bool_]
    sample_weight: Floats | None
    offset: Floats | None


@dataclass(frozen=True, slots=True, eq=False)
class Coder:
    """What turns cells into numbers.

    Attributes
    ----------
    schema : what the columns are.
    columns : where there is no schema but what the command said of the columns; hints then speak of its options.
    decimal : what stands before the decimals of a number that is written as text.
    levels : of each categorical feature, the place of each level that was met; it grows with the batches.
    """

    schema: Schema
    columns: Columns | None = None
    decimal: str = "."
    levels: dict[str, dict[str, int]] = field(default_factory=dict)

    def code(self, batch: Mapping[str, Cells], n_rows: int) -> Coded:
        """Return the rows of ``batch``, which has the cells of each column by its name.

        Raises
        ------
        CellDefect
            For the first row with a cell that cannot be used.
        """
        schema, defects = self.schema, []

        def read(column: str, reader: Callable[[Cells], Floats]) -> Floats:
            try:
                return reader(batch[column])
            except CellDefect as defect:
                defects.append(CellDefect(defect.index, str(defect), column))
                return np.zeros(n_rows)

        X = np.empty((n_rows, len(schema.features)), order="F")
        for index, feature in enumerate(schema.features):
            X[:, index] = read(feature.name, partial(self._feature, feature))
        y = read(schema.label.column, self._label)
        is_train = np.ones(n_rows, dtype=np.bool_)
        if schema.split.column:
            is_train = read(schema.split.column, self._split) == 1.0
        elif schema.split.key:
            is_train = read(schema.split.key, self._by_key) == 1.0
        weight = read(schema.sample_weight, self._of_role("sample weight")) if schema.sample_weight else None
        offset = read(schema.offset, self._of_role("offset")) if schema.offset else None
        if defects:  # of the first row that has one, the first column's
            raise min(defects, key=lambda defect: defect.index)
        return Coded(X, y, is_train, weight, offset)

    # --- features ------------------------------------------------------------------------------

    def _feature(self, feature: Feature, cells: Cells) -> Floats:
        if feature.kind == "numeric":
            return self._numeric(feature, cells)
        if feature.kind == "binary":
            return self._filled(feature, self._binary(feature, cells))
        return self._categorical(feature, cells)

    def _numeric(self, feature: Feature, cells: Cells) -> Floats:
        low = -LARGEST if feature.low is None else max(feature.low, -LARGEST)
        high = LARGEST if feature.high is None else min(feature.high, LARGEST)
        if _within(cells, low, high) and not feature.missing_values:
            values = np.asarray(cells, dtype=np.float64)
        else:
            found = self._numbers(cells, lambda cell: self._feature_number(feature, cell))
            if feature.missing_values:
                found = np.where(np.isin(found, [*_numbers_among(feature.missing_values)]), math.nan, found)
            values = self._filled(feature, found)
            _check(~((found < low) | (found > high)), "is outside the range that the schema allows")
        if feature.clip_low is not None or feature.clip_high is not None:
            values = np.clip(values, feature.clip_low, feature.clip_high)
        if feature.log1p:
            _check(~(values <= -1.0), "has no log1p, which needs a number above -1")
            values = np.log1p(values)
        if feature.centre != 0.0 or feature.scale != 1.0:
            values = (values - feature.centre) / feature.scale
        return values

    def _numbers(self, cells: Cells, one: Callable[[Any], float]) -> Floats:
        """Return ``cells`` as numbers, (m,): all at once where each is a plain one, else each by ``one``."""
        if isinstance(cells, np.ndarray):
            found = cells.astype(np.float64, copy=False)
            # One of each kind is asked about: the first that is missing, and the first that is too large.
            for index in sorted(int(odd.argmax()) for odd in (np.isnan(found), np.abs(found) > LARGEST) if odd.any()):
                _each(found[index : index + 1], one, index)
            return found
        if self.decimal == ".":
            try:
                found = np.array([*map(float, cells)], dtype=np.float64)
                # NaN fails the comparison.
                if np.abs(found).max(initial=0.0) <= LARGEST and not _has_underscore(cells):
                    return found
            except (TypeError, ValueError, OverflowError):
                pass
        return _each(cells, one)

    def _feature_number(self, feature: Feature, cell: Any) -> float:
        missing = is_missing(cell, feature.missing_values)
        if missing and (feature.missing != "refuse" or self.columns is None):
            return math.nan
        number = self._parsed(cell)
        if number is not None and abs(number) <= LARGEST:
            return number
        word = word_of(cell)
        if word in SPLITS:
            raise DataError("says train or test: name the column as the split")
        hint = ", or --missing mean" if missing else ""
        if number is None:
            kind = "is not a number" if word else "is empty"
            raise DataError(f"{kind}; every feature needs a number in every row{hint}")
        raise DataError(number_defect(number) + (f"; give one{hint}" if hint else ""))

    def _parsed(self, cell: Any) -> float | None:
        if isinstance(cell, str):
            if "_" in cell or (self.decimal == "," and "." in cell):  # 1.000 may be one, or a thousand
                return None
            cell = cell.replace(self.decimal, ".")
        try:
            return float(cell)
        except (TypeError, ValueError, OverflowError):
            return None

    def _binary(self, feature: Feature, cells: Cells) -> Floats:
        words = (frozenset({feature.levels[0]}), frozenset({feature.levels[1]})) if feature.levels else BINARY_WORDS

        def one(cell: Any) -> float:
            if is_missing(cell, feature.missing_values):
                return math.nan
            word = word_of(cell) if feature.levels else word_of(cell).lower()
            for value, meant in enumerate(words):
                if word in meant:
                    return float(value)
            raise DataError(
                "is neither of the two levels of its feature"
                if feature.levels
                else "is neither 0 nor 1; its feature is binary: name its two levels in the schema"
            )

        return _each_different(cells, one)

    def _categorical(self, feature: Feature, cells: Cells) -> Floats:
        places = self.levels.setdefault(feature.name, {level: at for at, level in enumerate(feature.levels)})

        def one(cell: Any) -> float:
            if is_missing(cell, feature.missing_values):
                if feature.missing == "value":
                    return float(places.setdefault(feature.fill_level, len(places)))
                return math.nan
            word = word_of(cell)
            if word not in places:
                self._check_new_level(feature, word, len(places))
                places[word] = len(places)
            return float(places[word])

        return self._filled(feature, _each_different(cells, one))

    def _check_new_level(self, feature: Feature, word: str, n_levels: int) -> None:
        if feature.levels:
            raise DataError("is none of the levels that the schema lists")
        if n_levels >= MOST_LEVELS:
            raise DataError(f"is one more than {MOST_LEVELS} different ones; its feature cannot be categorical")
        if word in {OTHER, MISSING}:
            raise DataError(f"is {OTHER} or {MISSING}, which mean something else; write it without brackets")

    def _filled(self, feature: Feature, values: Floats) -> Floats:
        """Return ``values`` with the number that stands for a missing one; NaN where it is not known yet.

        Raises
        ------
        CellDefect
            Where a value is missing and none may be.
        """
        if feature.missing == "refuse":
            lacks = np.isnan(values)
            if lacks.any():
                raise CellDefect(int(lacks.argmax()), "has no value, and the schema refuses missing ones; give one")
        if feature.missing == "value" and feature.fill is not None:
            return np.where(np.isnan(values), feature.fill, values)
        return values

    # --- the other columns ---------------------------------------------------------------------

    def _label(self, cells: Cells) -> Floats:
        label = self.schema.label

        def one(cell: Any) -> float:
            if label.values:
                found = label.values.get(word_of(cell))
                if found is None:
                    raise DataError("is the label and none of the words that the schema gives a class")
                return float(found)
            number = self._parsed(cell)
            if label.above is not None:
                if number is None or not math.isfinite(number):
                    raise DataError("is the label and not a number; every row needs one")
                return float(number > label.above)
            value = math.nan if number is None else number
            if self.columns is not None and (defect := self.columns.label_defect(value)):
                raise DataError(defect)
            if self.columns is None and value not in {0.0, 1.0}:
                raise DataError("is the label and neither 0 nor 1; say in the schema what its words mean")
            return value

        return _each_different(cells, one)

    def _split(self, cells: Cells) -> Floats:
        def one(cell: Any) -> float:
            word = word_of(cell)
            if word not in SPLITS:
                raise DataError("is the split and neither 'train' nor 'test'")
            return float(SPLITS[word])

        return _each_different(cells, one)

    def _by_key(self, cells: Cells) -> Floats:
        split = self.schema.split

        def one(cell: Any) -> float:
            if is_missing(cell):
                raise DataError("is the key that decides the split, and has no value; every row needs one")
            drawn = sha256(f"{split.seed}\0{word_of(cell)}".encode()).digest()
            return float(int.from_bytes(drawn[:8]) / 2**64 >= split.test_share)

        return _each(cells, one)

    def _of_role(self, role: Role) -> Callable[[Cells], Floats]:
        def one(cell: Any) -> float:
            number = self._parsed(cell)
            if number is None:
                raise DataError(f"is the {role} and not a number; every row needs one")
            if defect := number_defect(number, role):
                raise DataError(defect)
            return number

        low = 0.0 if role == "sample weight" else -LARGEST
        return lambda cells: np.asarray(cells, dtype=np.float64) if _within(cells, low, LARGEST) else _each(cells, one)


def word_of(cell: Any) -> str:
    """Return ``cell`` as the word that levels are compared by: 3 and 3.0 are one, 03 is another."""
    if isinstance(cell, str):
        text = cell.strip()
        whole = _WHOLE.fullmatch(text)
        return whole[1] if whole else text
    if isinstance(cell, bool | np.bool_):
        return str(bool(cell)).lower()
    if isinstance(cell, float | np.floating | Decimal):
        return str(int(cell)) if math.isfinite(cell) and cell == int(cell) else repr(float(cell))
    return str(cell).strip()


def is_missing(cell: Any, words: Sequence[str] = ()) -> bool:
    """Whether ``cell`` is no value: None, NaN, one of `MISSING_WORDS` or of ``words``."""
    if cell is None:
        return True
    if isinstance(cell, str):
        text = cell.strip().lower()
        return text in MISSING_WORDS or (bool(words) and (cell.strip() in words or word_of(cell) in words))
    if isinstance(cell, float | np.floating | Decimal) and math.isnan(cell):
        return True
    return bool(words) and word_of(cell) in words


def _numbers_among(words: Sequence[str]) -> list[float]:
    found = []
    for word in words:
        try:
            found.append(float(word))
        except ValueError:
            continue
    return found


def _each(cells: Cells, one: Callable[[Any], float], first: int = 0) -> Floats:
    """Return what ``one`` makes of each cell; of its `DataError` with the place in the batch, from ``first``."""
    found: list[float] = []
    listed = cells.tolist() if isinstance(cells, np.ndarray) else cells
    try:
        for cell in listed:
            found.append(one(cell))  # noqa: PERF401 - how many are done tells which one failed
    except DataError as defect:
        raise CellDefect(first + len(found), str(defect)) from None
    return np.array(found, dtype=np.float64)


def _each_different(cells: Cells, one: Callable[[Any], float]) -> Floats:
    """Return what ``one`` makes of each cell, asking once for each different one: there are few."""
    if isinstance(cells, np.ndarray):
        values, places = _different(cells)
        with suppress(DataError):
            return np.array([*map(one, values.tolist())], dtype=np.float64)[places]
        return _each(cells, one)  # which says what is the first
    known: dict[Any, float] = {}

    def once(cell: Any) -> float:
        try:
            return known[cell]
        except KeyError:
            known[cell] = one(cell)
            return known[cell]
        except TypeError:  # it has no hash
            raise DataError("is a list or another structure; take the one value that is meant out of it") from None

    return _each(cells, once)


def _different(cells: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Return the different ones among ``cells``, and which of them each is; of two, as labels are, without sorting."""
    low, high = cells.min(), cells.max()
    if ((cells == low) | (cells == high)).all():
        return np.array([low, high]), (cells == high).astype(np.intp)
    values, places = np.unique(cells, return_inverse=True)
    return values, places


def _within(cells: Cells, low: float, high: float) -> bool:
    """Whether ``cells`` is an array of numbers from ``low`` to ``high``; none of them is NaN then."""
    return isinstance(cells, np.ndarray) and (
        not cells.size or (float(cells.min()) >= low and float(cells.max()) <= high)
    )


def _has_underscore(cells: Cells) -> bool:
    """Whether a text has one; Python reads 1_0 as ten, and in a table it is a code."""
    try:
        return "_" in "".join(cells)
    except TypeError:  # not each is a text
        return any(isinstance(cell, str) and "_" in cell for cell in cells)


def _check(holds: NDArray[np.bool_], words: str) -> None:
    if not holds.all():
        raise CellDefect(int((~holds).argmax()), words)
