"""Queries of a database: what is read, that nothing is written, and that no sentence quotes a cell or the URL."""

# ruff: noqa: S608 - the queries are the tests' own

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.schema import Feature, Label, Schema
from participant.errors import DataError
from participant.sources import sql
from participant.sources.reading import DataChanged, read
from participant.sources.sql import SQLSource
from participant.sources.table import Columns, Streamed, Table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Planted in cells and passwords: in no sentence.
CANARY = "canary-7731"

COLUMNS = Columns("y", "split")
GOOD = [(63, 27.5, 1, "train"), (45, 31, 0, "test"), (50, 22.25, 0, "train")]
ALL = "SELECT age, bmi, y, split FROM visits ORDER BY rowid"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Give a database of three good rows."""
    file = tmp_path / "site.db"
    change(file, "CREATE TABLE visits (age, bmi, y, split)")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.executemany("INSERT INTO visits VALUES (?, ?, ?, ?)", GOOD)
    return file


def change(file: Path, statement: str) -> None:
    """Run a statement."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def query(database: Path, text: str = ALL, watermark: str | None = None) -> SQLSource:
    """Return the source of a query."""
    return SQLSource(f"sqlite:///{database}", text, watermark)


def said_of(call: Callable[[], Any]) -> str:
    """Return the sentence in which something is refused: one line, without anything that was planted."""
    with pytest.raises(DataError) as raised:
        call()
    said = str(raised.value)
    assert "\n" not in said
    assert "canary" not in said
    assert "7731" not in said
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"
    return said


def assert_good(table: Table) -> None:
    """Compare with what `GOOD` holds."""
    assert table.features == ("age", "bmi")
    np.testing.assert_array_equal(table.X, [[63, 27.5], [45, 31], [50, 22.25]])
    np.testing.assert_array_equal(table.y, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(table.is_train, [True, False, True])


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ALL,
        f"{ALL};",
        "WITH v AS (SELECT * FROM visits) SELECT * FROM v WHERE split LIKE 't%' AND split <> ':x' AND split <> '%s'",
    ],
)
def test_rows_are_those_of_the_query(database: Path, text: str) -> None:
    assert_good(read(query(database, text), COLUMNS))


def test_a_table_of_many_batches_is_read_the_same_each_time(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "BATCH_ROWS", 2)
    source = query(database)
    assert [(batch.n_rows, list(batch.places)) for batch in source.batches(["y"])] == [(2, [1, 2]), (1, [3])]
    table = read(source, COLUMNS, in_memory_bytes=0)
    assert isinstance(table.X, Streamed)
    for _ in range(2):
        X = np.concatenate([coded.X for coded in table.X.rows])
        np.testing.assert_array_equal(X, [[63, 27.5], [45, 31], [50, 22.25]])


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO visits VALUES (70, 20, 1, 'train')",
        "DELETE FROM visits WHERE age = 50",
        "DELETE FROM visits",
        "UPDATE visits SET y = 1 - y WHERE age = 50",
        "UPDATE visits SET rowid = 10 - rowid",
    ],
)
def test_rows_that_are_others_than_the_first_time_are_noticed_without_a_watermark(
    database: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "BATCH_ROWS", 1)
    table = read(query(database), COLUMNS, in_memory_bytes=0)
    assert isinstance(table.X, Streamed)
    assert len(list(table.X.rows)) == 3
    change(database, statement)
    with pytest.raises(DataChanged, match="has not the rows that it had, or not in their order; they are read anew"):
        list(table.X.rows)


def test_null_is_a_missing_value(database: Path) -> None:
    change(database, "UPDATE visits SET age = NULL, bmi = NULL WHERE age = 45")
    table = read(query(database), Columns("y", "split", missing="mean"))
    np.testing.assert_array_equal(table.X, [[63, 27.5], [np.nan, np.nan], [50, 22.25]])
    assert ", row 2, column 'age': the cell is " in said_of(lambda: read(query(database), COLUMNS))


def test_cells_of_every_type_are_what_they_mean() -> None:
    whole = [1, None, 3]
    for column in (whole, [1.0, None, 3.0], [Decimal(1), None, Decimal("3.00")], [Decimal(1), None, 3.0]):
        cells = sql._cells(column)
        assert isinstance(cells, np.ndarray)
        np.testing.assert_array_equal(cells, [1, np.nan, 3])
    for column in ([2**53 + 1, None, 1], ["1", None], [None, None], [True, 1.0], [Decimal("Infinity"), 1]):
        assert sql._cells(column) is column
    np.testing.assert_array_equal(sql._cells([2.0**60, None]), [2.0**60, np.nan])


def test_numbers_and_texts_of_one_column_are_numbers_unless_they_are_codes(database: Path) -> None:
    change(database, "UPDATE visits SET age = ' 6.3e1 ' WHERE age = 63")
    assert_good(read(query(database), COLUMNS))
    change(database, "UPDATE visits SET age = '6_3' WHERE bmi = 27.5")
    assert ", row 1, column 'age': the cell is not a number" in said_of(lambda: read(query(database), COLUMNS))


def test_a_schema_takes_words_and_numbers_and_dates(database: Path) -> None:
    schema = Schema((Feature("day", "categorical"), Feature("age")), Label("split", {"train": 1, "test": 0}))
    table = read(query(database, "SELECT *, date('2024-02-29', age || ' days') AS day FROM visits"), schema)
    assert table.levels == {"day": ("2024-05-02", "2024-04-14", "2024-04-19")}
    np.testing.assert_array_equal(table.X[:, 1], [63, 45, 50])
    np.testing.assert_array_equal(table.y, [1, 0, 1])


# --- whether rows have changed ------------------------------------------------------------------------


def test_the_watermark_tells_that_rows_have_changed(database: Path) -> None:
    assert query(database).signature() is None
    source = query(database, watermark="SELECT count(*), max(age), 'canary' FROM visits")
    first = source.signature()
    assert source.signature() == first
    assert "canary" not in first
    change(database, "INSERT INTO visits VALUES (70, 20, 1, 'train')")
    assert source.signature() != first


def test_rows_that_change_between_two_passes_or_within_one_are_read_anew(database: Path) -> None:
    table = read(query(database, watermark="SELECT max(age) FROM visits"), COLUMNS, in_memory_bytes=0)
    assert isinstance(table.X, Streamed)
    passing = iter(table.X.rows)
    next(passing)
    change(database, "INSERT INTO visits VALUES (70, 20, 1, 'train')")
    with pytest.raises(DataChanged, match="has changed while it was read; its rows are read anew"):
        list(passing)
    with pytest.raises(DataChanged, match="has changed since it was read; its rows are read anew"):
        list(table.X.rows)


@pytest.mark.parametrize("text", ["SELECT age FROM visits", "SELECT age FROM visits WHERE age > 99"])
def test_a_watermark_is_one_row(database: Path, text: str) -> None:
    assert said_of(query(database, watermark=text).signature).endswith(
        ": the watermark must be a query of one row, such as SELECT max(changed_at)"
    )


# --- what is refused ---------------------------------------------------------------------------------

DEFECTS = {
    "no such table": (f"SELECT * FROM patients WHERE x = '{CANARY}'", "the query names a table that is not there"),
    "no such column": (f"SELECT age FROM visits WHERE x = '{CANARY}'", "the query names a column that is not there"),
    "no SQL": (f"SELEKT '{CANARY}'", "the query is not SQL as the database knows it, or is no SELECT"),
    "half of it": ("SELECT (age", "the query is not SQL as the database knows it, or is no SELECT"),
    "nothing": ("", "the query would change the database; the query must be one SELECT"),
    "INSERT": (f"INSERT INTO visits VALUES (1, 2, 3, '{CANARY}')", "the query would change the database; the query"),
    "INSERT that answers": ("INSERT INTO visits VALUES (1, 2, 1, 'train') RETURNING *", "the query would change the"),
    "DELETE": ("DELETE FROM visits", "the query would change the database"),
    "DROP": ("DROP TABLE visits", "the query would change the database"),
    "two": ("SELECT 1; DROP TABLE visits", "the query must be one SELECT"),
    "ATTACH": ("ATTACH '/tmp/other.db' AS other", "the query would change the database"),
    "of its own": (f"SELECT abs(-9223372036854775808) AS a, '{CANARY}' AS y", "the database cannot run the query; try"),
    "a name twice": ("SELECT age, age, y, split FROM visits", "the column name 'age' stands twice; give each"),
    "no label": ("SELECT age, split FROM visits", "has no column 'y', which was named as the label; its columns are"),
    "no rows": ("SELECT * FROM visits WHERE age > 99", "no rows: it needs at least one training row"),
    "text": (f"SELECT '{CANARY}' AS age, y, split FROM visits", "row 1, column 'age': the cell is not a number"),
    "infinite": ("SELECT 9e999 AS age, y, split FROM visits", "row 1, column 'age': the cell is not a finite number"),
    "too large": ("SELECT 7.731e99 AS age, y, split FROM visits", "row 1, column 'age': the cell is beyond 1e+90"),
    "label": ("SELECT age, 7731 AS y, split FROM visits", "row 1, column 'y': the cell is the label and neither 0"),
    "split": (f"SELECT age, y, '{CANARY}' AS split FROM visits", "row 1, column 'split': the cell is the split and"),
}


@pytest.mark.parametrize(("text", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_told_in_our_words_and_nothing_is_written(database: Path, text: str, sentence: str) -> None:
    content = database.read_bytes()
    said = said_of(lambda: read(query(database, text), COLUMNS))
    assert said.startswith(f"the query at sqlite:///{database}")
    assert sentence in said
    assert database.read_bytes() == content


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_bytes(b"age,y\n7731,1\n" * 1000)
    assert said_of(query(tmp_path / "text.db").names).endswith(": the file is no SQLite database")
    assert said_of(query(tmp_path / "nowhere.db").names).endswith(
        "nowhere.db cannot be read: No such file or directory"
    )
    assert not (tmp_path / "nowhere.db").exists()
    assert said_of(query(tmp_path).names).endswith(": the file of the database cannot be opened")


def test_a_database_in_memory_is_empty() -> None:
    assert said_of(SQLSource("sqlite://", ALL).names).startswith("the query at sqlite:///: the query names a table")


def test_a_database_that_is_locked_is_told(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_arguments", lambda _: {"timeout": 0})
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert said_of(query(database).names).endswith(
            ": the database is too busy, or out of memory or space; try again later"
        )


# --- URLs -------------------------------------------------------------------------------------------

URLS = {
    "postgresql://tester:7731@127.0.0.1:1/db": "the query at postgresql://127.0.0.1:1/db",
    "postgresql+psycopg://tester:7731@/db?host=/canary": "the query at postgresql:///db",
    "postgresql://tester:p%4073@127.0.0.1:1/db?password=7731": "the query at postgresql://127.0.0.1:1/db",
    "postgresql://tester:p@7731@127.0.0.1:1/db": "the query",
    "postgresql://tester:canary@/7731@127.0.0.1:1/db": "the query",
    "mysql://tester:7731@127.0.0.1:1/db": "the query at mysql://127.0.0.1:1/db",
    "canary:7731": "the query",
    "postgresql://tester:7731@127.0.0.1:canary/db": "the query",
}


@pytest.mark.parametrize(("url", "place"), URLS.items())
def test_the_place_shows_no_user_no_password_and_no_options(url: str, place: str) -> None:
    source = SQLSource(url, ALL)
    assert source.place == place
    assert (source.row_word, source.decimal) == ("row", ".")
    assert "7731" not in repr(source)
    assert "7731" not in said_of(source.names)


def test_a_url_that_is_none_is_told() -> None:
    assert said_of(SQLSource("canary", ALL).names) == (
        "the URL of the database is none; write it as postgresql://user:password@host/database, with %40 for an @"
    )
    assert said_of(SQLSource("oracel://h/d", ALL).names).endswith(
        ": SQLAlchemy cannot read it; check the URL of the database"
    )


def test_a_server_that_does_not_answer_is_told() -> None:
    assert said_of(SQLSource("postgresql://tester:7731@127.0.0.1:1/db", ALL).names) == (
        "the query at postgresql://127.0.0.1:1/db: the database cannot be reached, or went away; check its host and "
        "port, and that it runs"
    )


@pytest.mark.parametrize(
    ("package", "url", "sentence"),
    [
        ("sqlalchemy", "sqlite://", "queries of a database need SQLAlchemy: pip install 'fedmq[sql]'"),
        ("psycopg", "postgresql://h/d", "the driver of this database is not installed; install it with pip"),
    ],
)
def test_without_the_extra_it_is_said_how_to_install_it(
    package: str, url: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert said_of(SQLSource(url, ALL).names).endswith(sentence)


# --- what other databases say -------------------------------------------------------------------------


class Refusal(Exception):
    """What a driver raises."""

    def __init__(self, text: str, sqlstate: str | None = None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (Refusal("connection to server failed: FATAL: password authentication failed"), "refuses the user or the"),
        (Refusal('FATAL: database "canary" does not exist'), "there is no such database"),
        (Refusal("password", "42703"), "names a column that is not there"),
        (Refusal(CANARY, "42P01"), "names a table that is not there"),
        (Refusal(CANARY, "42501"), "this user may not read that"),
        (Refusal(CANARY, "42601"), "is not SQL as the database knows it"),
        (Refusal(CANARY, "25006"), "would change the database"),
        (Refusal(CANARY, "22P02"), "a cell is not what the query casts or computes"),
        (Refusal(CANARY, "57014"), "took longer than the server allows"),
        (Refusal(CANARY, "57P01"), "cannot be reached, or went away"),
        (Refusal(CANARY, "53300"), "is too busy"),
        (Refusal(CANARY, "XX000"), "cannot run the query"),
        (Refusal("read timed out"), "cannot be reached, or went away"),
        (Refusal(CANARY), "cannot run the query; try it with the database's own program"),
    ],
)
def test_what_a_driver_says_is_said_in_our_words(error: Refusal, words: str) -> None:
    said = sql._words(error)
    assert words in said
    assert "canary" not in said


class Connection:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def execution_options(self, **options: Any) -> None:
        self.told.append(options)

    def exec_driver_sql(self, text: str) -> None:
        self.told.append(text)


@pytest.mark.parametrize(
    ("backend", "told"),
    [
        ("postgresql", [{"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}]),
        ("sqlite", ["PRAGMA query_only = ON"]),
        ("mysql", ["SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"]),
        ("oracle", []),
    ],
)
def test_databases_are_told_that_nothing_will_be_written(backend: str, told: list[Any]) -> None:
    connection = Connection()
    sql._only_read(connection, backend)
    assert connection.told == told


def test_a_server_is_waited_for_ten_seconds_unless_the_url_says_otherwise() -> None:
    for url, arguments in (
        ("postgresql://h/d", {"connect_timeout": 10}),
        ("postgresql://h/d?connect_timeout=60", {}),
        ("sqlite://", {}),
    ):
        assert sql._arguments(sql._url(url)) == arguments
