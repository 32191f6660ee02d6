"""What the columns of a source look like, and what is wrong in them: for the people at a site, before any federation.

`survey` goes once over a source that nobody has described. Of a column it keeps its extremes and at most `MOST_WORDS`
different words. `examine` goes over one with a schema and finds all that `participant.sources.reading.read` would
refuse, each column by itself, where reading ends at the first such cell. Memory does not grow with the rows.

What `survey` finds are values of people. Who shows any of it chooses what enough rows have.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.schema import Feature, Label, Schema
from participant.errors import DataError
from participant.sources.coding import CellDefect, Cells, Coded, Coder, is_missing, word_of
from participant.sources.reading import Batch, Source, schema_columns
from participant.sources.table import Floats, names_defect

#: Different words of a column that are counted; one with more is not made of levels.
MOST_WORDS = 1000

#: Places that are told of one kind of defect in one column.
MOST_PLACES = 5

Part = Literal["feature", "label", "split", "key of the split", "sample weight", "offset"]

#: A label for where there is none; no cells belong to it.
_NO_LABEL = Label("")


# --- a source that nobody has described --------------------------------------------------------------


class Extremes(NamedTuple):
    """The least and the greatest number of a column, and whether all are whole."""

    low: float
    high: float
    whole: bool


@dataclass(frozen=True, slots=True, repr=False)
class Column:
    """What a column looks like.

    Attributes
    ----------
    n_missing : cells without a value.
    words : how many rows have each word; None of more than `MOST_WORDS` different ones.
    all_differ : no word was met twice, while they were counted.
    is_mixed : of these words some are numbers, and some are not.
    numbers : None unless all cells with a value are numbers that a numeric feature may have.
    """

    name: str
    n_missing: int
    words: Mapping[str, int] | None
    all_differ: bool
    is_mixed: bool
    numbers: Extremes | None


@dataclass(frozen=True, slots=True)
class Survey:
    """All columns of a source, in its order."""

    n_rows: int
    columns: tuple[Column, ...]


def survey(source: Source) -> Survey:
    """Return what the columns of ``source`` look like.

    Raises
    ------
    DataError
        If it cannot be read, or its columns' names are not names.
    """
    names = source.names()
    if defect := names_defect(names):
        raise DataError(f"{source.place}: {defect}")
    tallies = [_Tally(name, _number_reader(source.decimal)) for name in names]
    n_rows = 0
    for batch in source.batches(names):
        n_rows += batch.n_rows
        for tally in tallies:
            tally.add(batch.cells[tally.name], batch.n_rows)
    return Survey(n_rows, tuple(tally.column() for tally in tallies))


def _number_reader(decimal: str) -> Callable[[Cells, int], Floats | None]:
    """Return what gives cells as numbers, NaN where a value is missing; None unless all are numbers."""
    coder = Coder(Schema((Feature("number", missing="mean"),), _NO_LABEL), decimal=decimal)

    def read(cells: Cells, n_rows: int) -> Floats | None:
        try:
            return coder.code({"number": cells, _NO_LABEL.column: ()}, n_rows).X[:, 0]
        except CellDefect:
            return None

    return read


_NO_NUMBERS = Extremes(math.inf, -math.inf, whole=True)


@dataclass(slots=True)
class _Tally:
    """A column as far as it has been read."""

    name: str
    numbers_in: Callable[[Cells, int], Floats | None]
    n_missing: int = 0
    words: Counter[str] | None = field(default_factory=Counter)
    all_differ: bool = True
    is_mixed: bool = False
    numbers: Extremes | None = _NO_NUMBERS

    def add(self, cells: Cells, n_rows: int) -> None:
        numbers = None if self.numbers is None else self.numbers_in(cells, n_rows)
        if self.words is not None:
            self._count(cells, self.words)
        elif numbers is not None:
            self.n_missing += int(np.isnan(numbers).sum())
        self.numbers = None if numbers is None or self.numbers is None else _widened(self.numbers, numbers)

    def _count(self, cells: Cells, words: Counter[str]) -> None:
        for cell, n in Counter(_listed(cells)).items():
            if is_missing(cell):
                self.n_missing += n
            else:
                words[word_of(cell)] += n
        if len(words) > MOST_WORDS:
            self._judge(words)
            self.words = None

    def _judge(self, words: Counter[str]) -> None:
        are_numbers = {self.numbers_in([word], 1) is not None for word in words}
        self.is_mixed = len(are_numbers) > 1
        self.all_differ = max(words.values(), default=1) == 1

    def column(self) -> Column:
        if self.words is not None:
            self._judge(self.words)
        has_numbers = self.numbers is not None and self.numbers.low <= self.numbers.high
        return Column(
            name=self.name,
            n_missing=self.n_missing,
            words=self.words,
            all_differ=self.all_differ,
            is_mixed=self.is_mixed,
            numbers=self.numbers if has_numbers else None,
        )


def _widened(known: Extremes, numbers: Floats) -> Extremes:
    found = numbers[~np.isnan(numbers)]
    return Extremes(
        min(known.low, float(found.min(initial=math.inf))),
        max(known.high, float(found.max(initial=-math.inf))),
        known.whole and bool((found == np.trunc(found)).all()),
    )


def _listed(cells: Cells) -> Sequence[object]:
    return cells.tolist() if isinstance(cells, np.ndarray) else cells


# --- a source and its schema -------------------------------------------------------------------------


class Defect(NamedTuple):
    """What is wrong with ``n`` cells of a column, in words behind "the cell", and where the first of them are."""

    words: str
    n: int
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Examined:
    """A column that the schema names.

    Attributes
    ----------
    n_missing : cells without a value; only of features.
    levels : of a categorical feature, how many training rows have each level.
    defects : each kind of them once.
    """

    name: str
    part: Part
    n_missing: int
    levels: Mapping[str, int]
    defects: tuple[Defect, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Examination:
    """What was found.

    Attributes
    ----------
    n_train, n_test : rows, each of which is for training where the split does not say.
    classes : of each class of the label, how many training and how many test rows have it.
    absent, unused : columns that only the schema has, and only the source.
    ended : why no more rows could be read; empty where all were.
    """

    n_train: int
    n_test: int
    columns: tuple[Examined, ...]
    classes: Mapping[int, tuple[int, int]]
    absent: tuple[str, ...]
    unused: tuple[str, ...]
    ended: str

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with any row or column."""
        return not (self.absent or self.ended or any(column.defects for column in self.columns))


def examine(source: Source, schema: Schema) -> Examination:
    """Return all that is wrong with the rows of ``source`` under ``schema``, and what is in its columns.

    Raises
    ------
    DataError
        If its columns' names cannot be read, or are not names.
    """
    names = source.names()
    if defect := names_defect(names):
        raise DataError(f"{source.place}: {defect}")
    known, wanted = set(names), schema_columns(schema)
    readers = [reader for reader in _readers(schema, source.decimal) if reader.name in known]
    classes = {each: [0, 0] for each in schema.label.classes}
    n_rows, n_train, ended = 0, 0, ""
    try:
        for batch in source.batches([name for name in wanted if name in known]):
            is_train = np.ones(batch.n_rows, dtype=np.bool_)
            for reader in readers:
                values = reader.read(batch, is_train)
                if reader.part in {"split", "key of the split"}:
                    is_train = values != 0.0
                elif reader.part == "label":
                    for each, counts in classes.items():
                        counts[0] += int(((values == each) & is_train).sum())
                        counts[1] += int(((values == each) & ~is_train).sum())
            n_rows, n_train = n_rows + batch.n_rows, n_train + int(is_train.sum())
    except DataError as error:
        ended = str(error)
    return Examination(
        n_train=n_train,
        n_test=n_rows - n_train,
        columns=tuple(reader.examined() for reader in readers),
        classes={each: (train, test) for each, (train, test) in classes.items()},
        absent=tuple(name for name in wanted if name not in known),
        unused=tuple(name for name in names if name not in set(wanted)),
        ended=ended,
    )


@dataclass(slots=True)
class _Reader:
    """A column by itself: ``coder`` knows nothing of the others, and ``value`` is where it puts this one."""

    name: str
    part: Part
    coder: Coder
    value: Callable[[Coded], Any]
    n_missing: int = 0
    level_counts: Counter[int] = field(default_factory=Counter)
    defects: dict[str, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def feature(self) -> Feature | None:
        return next(iter(self.coder.schema.features), None)

    def read(self, batch: Batch, is_train: NDArray[np.bool_]) -> Floats:
        """Return the column's values in ``batch``, NaN where there is none, and count what they are."""
        cells = batch.cells[self.name]
        try:
            values = self._values(cells, batch.n_rows)
        except CellDefect:
            values = self._one_by_one(cells, batch.places)
        if self.feature is not None and self.feature.kind == "categorical":
            self.level_counts.update(values[is_train & ~np.isnan(values)].astype(np.intp).tolist())
        return values

    def _values(self, cells: Cells, n_rows: int) -> Floats:
        """Return the values of cells, all of which can be used; else raise `CellDefect`."""
        given = {self.name: cells} if self.part == "label" else {self.name: cells, _NO_LABEL.column: ()}
        values: Floats = self.value(self.coder.code(given, n_rows)).astype(np.float64)
        if self.feature is not None and self.feature.missing == "value":  # in the values they are filled
            self.n_missing += sum(is_missing(cell, self.feature.missing_values) for cell in _listed(cells))
        else:
            self.n_missing += int(np.isnan(values).sum())
        return values

    def _one_by_one(self, cells: Cells, places: Sequence[int]) -> Floats:
        values = np.full(len(places), math.nan)
        for index, place in enumerate(places):
            cell = cells[index : index + 1]
            try:
                values[index] = self._values(cell, 1)[0]
            except CellDefect as defect:
                n, first = self.defects.get(str(defect), (0, ()))
                self.defects[str(defect)] = n + 1, (*first, place)[:MOST_PLACES]
                if self.feature is not None:
                    self.n_missing += is_missing(cell[0], self.feature.missing_values)
        return values

    def examined(self) -> Examined:
        places = self.coder.levels.get(self.name, {})
        return Examined(
            self.name,
            self.part,
            self.n_missing,
            {level: self.level_counts[at] for level, at in places.items()},
            tuple(Defect(words, n, first) for words, (n, first) in self.defects.items()),
        )


def _readers(schema: Schema, decimal: str) -> Iterator[_Reader]:
    """Yield what reads each column, the split first: it says which rows are for training."""
    nothing = Schema((), _NO_LABEL)

    def reader(name: str, part: Part, alone: Schema, value: Callable[[Coded], Any]) -> _Reader:
        return _Reader(name, part, Coder(alone, decimal=decimal), value)

    split = schema.split
    if split.column:
        yield reader(split.column, "split", replace(nothing, split=split), lambda coded: coded.is_train)
    if split.key:
        yield reader(split.key, "key of the split", replace(nothing, split=split), lambda coded: coded.is_train)
    yield reader(schema.label.column, "label", Schema((), schema.label), lambda coded: coded.y)
    for feature in schema.features:
        yield reader(feature.name, "feature", replace(nothing, features=(feature,)), lambda coded: coded.X[:, 0])
    if name := schema.sample_weight:
        yield reader(name, "sample weight", replace(nothing, sample_weight=name), lambda coded: coded.sample_weight)
    if name := schema.offset:
        yield reader(name, "offset", replace(nothing, offset=name), lambda coded: coded.offset)
