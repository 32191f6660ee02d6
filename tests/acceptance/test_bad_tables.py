"""Tables as people have them, as CSV and Parquet files and in a database: what is refused, and what fits.

One sentence says where a defect is; no cell of anybody's is in it, in a log or in any output.
"""

# ruff: noqa: S608 - the queries are the tests' own

from __future__ import annotations

import asyncio
import csv
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.schema import Feature, Label, Schema, Split
from fedmq.embedded import train_embedded
from fedmq.errors import ours_in
from fedmq.sites import Site
from fedmq.train import train_settings
from participant.errors import DataError
from participant.sources import Columns, Dialect, Reading, Table
from participant.sources.reading import DataChanged, read
from participant.sources.table import Streamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from broker.messages import ReleasedModel

pytestmark = pytest.mark.acceptance

#: Planted in cells: in no output. The second is in rows that are in order themselves.
CANARY = "canary-7731"
CANARY_NUMBER = 7731.7731

KINDS = ("csv", "parquet", "sql")
HEADER = ("age", "bmi", "y")
COLUMNS = Columns("y")
RNG = np.random.default_rng(5)

Row = tuple[Any, ...]


def rows_of(n: int, seed: int = 0) -> list[Row]:
    """Return rows in order: two features with the planted number among them, and a label that they say little of."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)).round(3)
    X[0, 0] = CANARY_NUMBER
    return [(age, bmi, int(rng.random() < 0.5)) for age, bmi in X.tolist()]


GOOD = rows_of(40)


@pytest.fixture(autouse=True)
def nothing_is_told(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Look for what was planted, in all that was written and logged."""
    with capture_logs() as events:
        yield
    out, err = capfd.readouterr()
    for told in (out, err, caplog.text, repr(events)):
        assert "canary" not in told
        assert "7731" not in told


@dataclass(frozen=True, slots=True)
class Written:
    """A table of one of the kinds, as it lies at a site."""

    kind: str
    path: Path
    columns: str

    def reading(self, what: Columns | Schema = COLUMNS, **options: Any) -> Reading:
        """Return how it is read."""
        if self.kind == "sql":
            query = f"SELECT {self.columns} FROM visits ORDER BY rowid"
            return Reading(what, url=f"sqlite:///{self.path}", query=query)
        return Reading(what, str(self.path), **options)

    def table(self, what: Columns | Schema = COLUMNS) -> Table:
        """Return its rows."""
        return self.reading(what).table()

    def said(self, what: Columns | Schema = COLUMNS) -> str:
        """Return the sentence in which it is refused, behind its place."""
        return refusal(self.reading(what), str(self.path))


def refusal(reading: Reading, place: str) -> str:
    """Return the sentence in which rows are refused, behind their place: one line, and no value in it."""
    with pytest.raises(DataError) as raised:
        reading.table()
    said = str(raised.value)
    assert place in said
    said = said.replace(place, "")
    for planted in ("\n", "canary", "7731"):
        assert planted not in said
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"
    return said


@dataclass(frozen=True, slots=True)
class Writer:
    """What writes tables of one kind."""

    kind: str
    folder: Path
    written: list[Path] = field(default_factory=list)

    def __call__(self, rows: Sequence[Row], header: Sequence[str] = HEADER) -> Written:
        """Write ``rows``, where None is a cell without a value."""
        path = self.folder / f"site-{len(self.written)}.{'db' if self.kind == 'sql' else self.kind}"
        self.written.append(path)
        columns = ", ".join(f'"{name}"' for name in header)
        if self.kind == "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([header, *rows])
        elif self.kind == "sql":
            with closing(sqlite3.connect(path)) as connection, connection:
                connection.execute(f"CREATE TABLE visits ({columns})")
                places = ", ".join("?" for _ in header)
                connection.executemany(f"INSERT INTO visits VALUES ({places})", rows)
        else:
            self._parquet(path, rows, header)
        return Written(self.kind, path, columns)

    def _parquet(self, path: Path, rows: Sequence[Row], header: Sequence[str]) -> None:
        kinds = ["VARCHAR" if any(isinstance(row[at], str) for row in rows) else "DOUBLE" for at in range(len(header))]
        columns = ", ".join(f'"{name}" {kind}' for name, kind in zip(header, kinds, strict=True))
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE visits ({columns})")
            if rows:
                places = ", ".join("?" for _ in header)
                connection.executemany(f"INSERT INTO visits VALUES ({places})", [list(row) for row in rows])
            connection.execute(f"COPY visits TO '{path}' (FORMAT parquet)")


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Writer:
    """Give what writes tables, once of each kind."""
    return Writer(request.param, tmp_path)


def fitted(*tables: Table, **options: Any) -> ReleasedModel:
    """Return the model that a federation of these sites releases."""
    sites = [Site(f"h{at}", Path("nowhere"), table) for at, table in enumerate(tables)]
    settings = train_settings(sites, options)
    training = train_embedded(sites, settings, slow={}, least_fit_seconds=0.0, on_progress=lambda _: None)
    return asyncio.run(training)


def weights(model: ReleasedModel) -> dict[str, float]:
    """Return the weights by the names of their columns, the intercept's too."""
    return {**dict(zip(model.features, np.array(model.weights).tolist(), strict=True)), "": model.intercept}


def assert_one_model(first: ReleasedModel, other: ReleasedModel) -> None:
    """Check that both are the same estimate."""
    assert first.converged
    assert other.converged
    assert weights(first) == pytest.approx(weights(other), rel=1e-7, abs=1e-9)


# --- cells ------------------------------------------------------------------------------------------

#: The third row is the one with the defect: line 4 of a file with a header line, row 3 of anything else.
PLACES = {"csv": "line 4", "parquet": "row 3", "sql": "row 3"}

CELLS: dict[str, tuple[Row, str, str]] = {
    "text where a number belongs": ((1.0, CANARY, 1), "bmi", "the cell is not a number"),
    "infinity": ((1.0, "inf", 1), "bmi", "the cell is not a finite number (NaN or infinity)"),
    "minus infinity": ((float("-inf"), 1.0, 1), "age", "the cell is not a finite number (NaN or infinity)"),
    "NaN as text": ((1.0, "NaN", 1), "bmi", "the cell is not a finite number (NaN or infinity)"),
    "no value": ((None, 1.0, 1), "age", "the cell is"),
    "a number in no unit": ((7731e200, 1.0, 1), "age", "the cell is beyond 1e+90"),
    "a label that is another number": ((1.0, 1.0, 7731), "y", "the cell is the label and neither 0 nor 1"),
    "a label that is a word": ((1.0, 1.0, CANARY), "y", "the cell is the label and neither 0 nor 1"),
    "yes for a label": ((1.0, 1.0, "yes"), "y", "the cell is the label and neither 0 nor 1"),
    "no label": ((1.0, 1.0, None), "y", "the cell is the label and neither 0 nor 1"),
}


@pytest.mark.parametrize(("row", "column", "sentence"), CELLS.values(), ids=CELLS)
def test_a_bad_cell_is_named_by_its_row_and_column(write: Writer, row: Row, column: str, sentence: str) -> None:
    said = write([*GOOD[:2], row, *GOOD[2:]]).said()
    assert f", {PLACES[write.kind]}, column {column!r}: {sentence}" in said


@pytest.mark.parametrize("cell", [None, "", "NaN", "NA", "?", " n/a "])
def test_missing_cells_are_refused_or_filled_with_the_mean_of_all_sites_and_never_dropped(
    write: Writer, cell: str | None
) -> None:
    holed = write([(cell, 1.0, 1), *rows_of(39, 1)])
    assert f", {PLACES[write.kind].replace('3', '1').replace('4', '2')}, column 'age': the cell is " in holed.said()
    allowed = replace(COLUMNS, missing="mean")
    table, other = holed.table(allowed), write(GOOD).table(allowed)
    assert (table.n_train, table.n_missing.tolist()) == (40, [1, 0])
    mean = np.concatenate([table.dense[1:, 0], other.dense[:, 0]]).mean()
    by_hand = write([(mean, 1.0, 1), *rows_of(39, 1)]).table()
    model = fitted(table, other, missing="mean", l2=0.01, standardise=False)
    assert_one_model(model, fitted(by_hand, other, l2=0.01, standardise=False))


def test_words_for_labels_are_taken_when_a_schema_says_what_they_mean(write: Writer) -> None:
    rows = [(age, bmi, "yes" if y else "no") for age, bmi, y in GOOD]
    schema = Schema((Feature("age"), Feature("bmi")), Label("y", {"yes": 1, "no": 0}))
    assert write(rows).table(schema).y.tolist() == [y for _, _, y in GOOD]
    said = write([*rows[:2], (1.0, 2.0, CANARY), *rows[2:]]).said(schema)
    assert f", {PLACES[write.kind]}, column 'y': the cell is the label and none of the words that the schema" in said


def test_numbers_outside_the_range_of_a_schema_are_named(write: Writer) -> None:
    schema = Schema((Feature("bmi", low=-50.0, high=50.0),), Label("y"))
    said = write([*GOOD[:2], (1.0, 7731.0, 1)]).said(schema)
    assert said.endswith(f", {PLACES[write.kind]}, column 'bmi': the cell is outside the range that the schema allows")


# --- columns ----------------------------------------------------------------------------------------


def test_a_missing_column_is_named(write: Writer) -> None:
    written = write([row[:2] for row in GOOD], ("age", "bmi"))
    assert "has no column 'y', which was named as the label; its columns are age, bmi" in written.said()
    schema = Schema((Feature("age"), Feature("height")), Label("bmi", above=0.0))
    assert "has no column 'height', which the schema names; its columns are age, bmi" in written.said(schema)


def test_columns_in_another_order_give_the_same_model(write: Writer) -> None:
    here, there = write(GOOD), write(rows_of(30, 1))
    turned = write([(y, bmi, age) for age, bmi, y in rows_of(30, 1)], ("y", "bmi", "age"))
    assert_one_model(fitted(here.table(), turned.table()), fitted(here.table(), there.table()))


def test_columns_that_a_schema_does_not_name_are_passed_over(write: Writer) -> None:
    written = write([(*row, CANARY) for row in GOOD], (*HEADER, "note"))
    schema = Schema((Feature("bmi"), Feature("age")), Label("y"))
    table = written.table(schema)
    assert table.features == ("bmi", "age")
    assert_one_model(fitted(table), fitted(write(GOOD).table(schema)))


def test_a_column_name_twice_is_named(tmp_path: Path) -> None:
    for kind in KINDS:
        written = Writer(kind, tmp_path)([(1, 2, 1)])
        query = "SELECT age, bmi AS age, y FROM " + ("visits" if kind == "sql" else "data")
        reading = replace(written.reading(), query=query)
        if kind == "csv":
            written.path.write_text("age,age,y\n7731,1,1\n")
            reading = written.reading()
        assert "the column name 'age' stands twice; give each column its own name" in refusal(
            reading, str(written.path)
        )


# --- rows -------------------------------------------------------------------------------------------


def test_without_rows_a_table_is_refused(write: Writer) -> None:
    assert "no rows: it needs at least one training row" in write([]).said()


@pytest.mark.parametrize("kind", ["csv", "parquet", "db"])
def test_an_empty_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"site.{kind}"
    path.touch()
    reading = Written("sql" if kind == "db" else kind, path, "*").reading()
    assert ("names a table that is not there" if kind == "db" else "is empty: it needs") in refusal(reading, str(path))


def test_a_site_of_one_class_trains_with_others_and_not_alone(write: Writer) -> None:
    ones = write([(age, bmi, 1) for age, bmi, _ in rows_of(30, 1)]).table()
    zeros = write([(age, bmi, 0) for age, bmi, _ in rows_of(30, 2)]).table()
    assert fitted(ones, write(GOOD).table(), l2=0.01).converged
    assert fitted(ones, zeros, l2=0.01).converged
    with pytest.raises(ExceptionGroup) as raised:
        fitted(ones, ones, l2=0.01)
    assert "all rows have the same label" in str(ours_in(raised.value))


def test_rows_that_are_separated_end_without_a_model_or_with_a_penalised_one(write: Writer) -> None:
    separated = write([(float(at), -1.0 if at < 20 else 1.0, int(at >= 20)) for at in range(40)]).table()
    with pytest.raises(ExceptionGroup) as raised:
        fitted(separated, l2=0.0)
    assert "separate" in str(ours_in(raised.value))
    assert fitted(separated, l2=0.01).converged


def test_fewer_rows_than_columns_train_with_a_penalty(write: Writer) -> None:
    header = [f"x{at:02}" for at in range(30)]
    rows = [(*RNG.normal(size=30).tolist(), at % 2) for at in range(12)]
    sites = [write(rows[start : start + 4], (*header, "y")).table() for start in (0, 4, 8)]
    assert_one_model(fitted(*sites, l2=0.1), fitted(write(rows, (*header, "y")).table(), l2=0.1))


def test_a_site_of_a_hundred_times_the_rows_counts_a_hundred_times(write: Writer) -> None:
    many, few = rows_of(2000, 1), rows_of(20, 2)
    model = fitted(write(many).table(), write(few).table(), l2=0.01)
    assert_one_model(model, fitted(write([*many, *few]).table(), l2=0.01))


# --- numbers that are hard to fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "third",
    [
        pytest.param(lambda _: 3.0, id="a constant column"),
        pytest.param(lambda row: 2.0 * row[1] - 1.0, id="a column that another one says"),
        pytest.param(lambda row: 1e12 * row[1] ** 2, id="a column in a unit far too small"),
        pytest.param(lambda row: 1e-12 * row[1] ** 2, id="a column in a unit far too large"),
    ],
)
def test_columns_that_are_hard_to_fit_give_the_model_of_all_rows_together(
    write: Writer, third: Callable[[Row], float]
) -> None:
    def with_third(rows: list[Row]) -> list[Row]:
        return [(row[0], row[1], third(row), row[2]) for row in rows]

    header = ("age", "bmi", "third", "y")
    here, there = (with_third(rows_of(40, seed)) for seed in (1, 2))
    model = fitted(write(here, header).table(), write(there, header).table(), l2=0.01)
    assert np.isfinite(np.array(model.weights)).all()
    assert_one_model(model, fitted(write([*here, *there], header).table(), l2=0.01))


# --- how text is written ----------------------------------------------------------------------------------

TEXT = "Größe,y\n1,1\n2,0\n"

ENCODINGS: dict[str, tuple[bytes, str]] = {
    "UTF-16": (TEXT.encode("utf-16"), "is not UTF-8 text: save it as UTF-8 CSV"),
    "Latin-1": (TEXT.encode("latin-1"), "is not UTF-8 text: save it as UTF-8 CSV"),
    "semicolons": (b"age;y\n7731,5;1\n", "say what is between its cells, as with --delimiter ';'"),
    "a decimal comma": (b'age,y\n"7731,5",1\n', ", line 2, column 'age': the cell is not a number"),
    "a quote that is not closed": (f'age,y\n"{CANARY},1\n'.encode(), ", line 2: not well-formed CSV"),
}


@pytest.mark.parametrize(("content", "sentence"), ENCODINGS.values(), ids=ENCODINGS)
def test_text_that_is_written_otherwise_is_told(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "site.csv"
    path.write_bytes(content)
    assert sentence in refusal(Reading(COLUMNS, str(path)), str(path))


@pytest.mark.parametrize(
    ("content", "dialect"),
    [
        pytest.param(b"\xef\xbb\xbfage,y\r\n1.5,1\r\n2,0\r\n", Dialect(), id="byte order mark and CRLF"),
        pytest.param(b"age;y\n1,5;1\n2;0\n", Dialect(";", ","), id="semicolons and decimal commas, as was said"),
    ],
)
def test_text_that_is_written_as_was_said_is_read(tmp_path: Path, content: bytes, dialect: Dialect) -> None:
    path = tmp_path / "site.csv"
    path.write_bytes(content)
    table = Reading(COLUMNS, str(path), dialect).table()
    assert (table.dense.tolist(), table.y.tolist()) == ([[1.5], [2.0]], [1.0, 0.0])


# --- rows that change -------------------------------------------------------------------------------------


def test_a_table_that_is_replaced_between_two_passes_is_noticed(write: Writer) -> None:
    written = write(GOOD)
    table = read(written.reading().source(), COLUMNS, in_memory_bytes=0)
    assert isinstance(table.X, Streamed)
    assert sum(len(coded.X) for coded in table.X.rows) == len(GOOD)
    write(rows_of(40, 9)).path.replace(written.path)
    with pytest.raises(DataChanged) as raised:
        list(table.X.rows)
    assert "read anew" in str(raised.value)


def test_a_fingerprint_is_of_the_rows_and_not_of_the_file(write: Writer) -> None:
    first, same, other = write(GOOD), write(GOOD), write(rows_of(40, 9))
    assert first.table().fingerprint("salt") == same.table().fingerprint("salt") != other.table().fingerprint("salt")


def test_a_table_that_stays_on_disk_gives_the_model_of_one_in_memory(write: Writer) -> None:
    schema = Schema((Feature("age"), Feature("bmi", missing="mean")), Label("y"), Split())
    written = write([(1.0, None, 1), *GOOD])
    kept, streamed = (read(written.reading(schema).source(), schema, in_memory_bytes=n_bytes) for n_bytes in (2**20, 0))
    assert isinstance(streamed.X, Streamed)
    assert_one_model(fitted(kept, l2=0.01), fitted(streamed, l2=0.01))
