"""Rows from a real PostgreSQL: its types, its transactions, and what is said when it refuses or goes away."""

# ruff: noqa: S608 - the queries are the tests' own

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import psycopg
import pytest
from servers.postgresql import PASSWORD, PostgreSQL

from broker.schema import Feature, Label, Schema, Split
from participant.errors import DataError
from participant.sources import sql
from participant.sources.reading import CodedRows, read
from participant.sources.sql import SQLSource
from participant.sources.table import Columns, Streamed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.postgresql

#: Planted in cells: in no sentence.
CANARY = "canary-7731"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """Give the server of this module."""
    with PostgreSQL() as running:
        yield running


@pytest.fixture
def table(server: PostgreSQL) -> Iterator[str]:
    """Give the name of a table of the test's own, with a column of each type and three rows."""
    name = f"visits_{uuid4().hex[:8]}"
    run(
        server,
        f"CREATE TABLE {name} (id bigserial, age int, bmi numeric(6, 2), score double precision, smokes boolean, "
        "town text, seen date, y smallint, split text)",
    )
    run(
        server,
        f"INSERT INTO {name} VALUES (1, 63, 27.50, 0.1, true, 'Köln', '2024-02-29', 1, 'train'), "
        "(2, 45, 31, 'NaN', false, 'Ghent', '2024-03-01', 0, 'test'), "
        "(3, NULL, NULL, NULL, NULL, NULL, NULL, 0, 'train')",
    )
    yield name
    run(server, f"DROP TABLE {name}")


def run(server: PostgreSQL, statement: str) -> None:
    """Run a statement, as somebody else does."""
    with psycopg.connect(server.url()) as connection:
        connection.execute(statement)


def said_of(call: Callable[[], Any]) -> str:
    """Return the sentence in which something is refused: one line, without anything that was planted."""
    with pytest.raises(DataError) as raised:
        call()
    said = str(raised.value)
    for planted in ("\n", "canary", "7731", "tester", "planted", "s3cret", PASSWORD):
        assert planted not in said
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"
    return said


def test_cells_of_every_type_are_what_they_mean(server: PostgreSQL, table: str) -> None:
    schema = Schema(
        features=(
            Feature("age", missing="mean"),
            Feature("bmi", missing="mean"),
            Feature("score", missing="mean"),
            Feature("smokes", "binary", missing="mean"),
            Feature("town", "categorical", missing="indicator"),
            Feature("seen", "categorical", missing="mean"),
        ),
        label=Label("y"),
        split=Split("split"),
    )
    rows = read(SQLSource(server.url(), f"TABLE {table} ORDER BY id"), schema)
    nan = np.nan
    np.testing.assert_array_equal(
        rows.X, [[63, 27.5, 0.1, 1, 0, 0], [45, 31, nan, 0, 1, 1], [nan, nan, nan, nan, nan, nan]]
    )
    assert rows.levels == {"town": ("Köln", "Ghent"), "seen": ("2024-02-29", "2024-03-01")}
    np.testing.assert_array_equal(rows.y, [1, 0, 0])
    np.testing.assert_array_equal(rows.is_train, [True, False, True])


def test_keys_keep_all_their_digits(server: PostgreSQL) -> None:
    text = "SELECT 9007199254740993::bigint AS a, 123456789012345678901234567890::numeric AS b"
    (batch,) = SQLSource(server.url(), text).batches(["a", "b"])
    assert [str(batch.cells[name][0]) for name in ("a", "b")] == ["9007199254740993", "123456789012345678901234567890"]


def test_a_table_of_many_batches_is_read_the_same_each_time(server: PostgreSQL) -> None:
    text = "SELECT i AS a, sqrt(i) AS b, i % 2 AS y FROM generate_series(0, 19999) AS t(i) ORDER BY i"
    source = SQLSource(server.url(), text)
    assert [batch.n_rows for batch in source.batches(["a"])] == [
        sql.BATCH_ROWS,
        sql.BATCH_ROWS,
        20_000 - 2 * sql.BATCH_ROWS,
    ]
    rows = read(source, Columns("y"), in_memory_bytes=0)
    assert isinstance(rows.X, Streamed)
    for _ in range(2):
        X = np.concatenate([coded.X for coded in rows.X.rows])
        np.testing.assert_array_equal(X, np.stack([np.arange(20_000), np.sqrt(np.arange(20_000))], axis=1))


def test_percent_signs_and_colons_are_the_querys_own(server: PostgreSQL, table: str) -> None:
    text = f"SELECT age::float AS age, y FROM {table} WHERE split LIKE 'te%t' AND split <> ':y' AND split <> '%s'"
    assert read(SQLSource(server.url(), text), Columns("y")).X.tolist() == [[45]]


def test_a_pass_sees_nothing_that_others_commit_meanwhile(server: PostgreSQL, table: str) -> None:
    run(server, f"INSERT INTO {table} SELECT i, 1 FROM generate_series(10, 30000) AS t(i)")
    batches = SQLSource(server.url(), f"SELECT id FROM {table} ORDER BY id").batches(["id"])
    n_rows = next(batches).n_rows
    run(server, f"DELETE FROM {table}")
    assert n_rows + sum(batch.n_rows for batch in batches) == 3 + 29_991


def test_the_watermark_tells_that_rows_have_changed(server: PostgreSQL, table: str) -> None:
    source = SQLSource(
        server.url(), f"SELECT id, y FROM {table} ORDER BY id", f"SELECT max(seen), count(*) FROM {table}"
    )
    rows = read(source, Columns("y"), in_memory_bytes=0)
    assert isinstance(rows.X, Streamed)
    assert isinstance(rows.X.rows, CodedRows)
    assert sum(len(coded.X) for coded in rows.X.rows) == 3
    run(server, f"INSERT INTO {table} (id, y) VALUES (4, 1)")
    assert "has changed since it was read" in said_of(lambda: list(rows.X.rows))  # type: ignore[union-attr]


DEFECTS = {
    "no such table": (f"SELECT * FROM patients WHERE x = '{CANARY}'", "the query names a table that is not there"),
    "no such column": (f"SELECT * FROM {{table}} WHERE x = '{CANARY}'", "the query names a column that is not there"),
    "no SQL": (f"SELEKT '{CANARY}'", "the query is not SQL as the database knows it, or is no SELECT"),
    "a cast": (f"SELECT '{CANARY}'::text::int AS age, y FROM {{table}}", "a cell is not what the query casts"),
    "a division": ("SELECT 1 / (age - 45) AS age, y FROM {table} ORDER BY id", "a cell is not what the query casts"),
    "INSERT": (f"INSERT INTO {{table}} (town) VALUES ('{CANARY}')", "is no SELECT"),
    "DELETE that answers": ("DELETE FROM {table} RETURNING *", "is no SELECT"),
    "DELETE within": ("WITH d AS (DELETE FROM {table} RETURNING *) SELECT * FROM d", "the query"),
    "a function that writes": ("SELECT nextval('{table}_id_seq') AS a, 1 AS y", "the query would change the database"),
    "two": ("SELECT 1; DROP TABLE {table}", "the query"),
    "a name twice": ("SELECT age, age, y FROM {table}", "the column name 'age' stands twice; give each column its own"),
    "too long": ("SELECT pg_sleep(30) AS a, 1 AS y", "the query took longer than the server allows"),
    "ended": ("SELECT pg_terminate_backend(pg_backend_pid()) AS a, 1 AS y", "cannot be reached, or went away"),
    "text": ("SELECT town AS age, y FROM {table} ORDER BY id", "row 1, column 'age': the cell is not a number"),
    "a date": ("SELECT seen AS age, y FROM {table} ORDER BY id", "row 1, column 'age': the cell is not a number"),
    "NULL": ("SELECT age, y FROM {table} ORDER BY id", "row 3, column 'age': the cell is"),
}


@pytest.mark.parametrize(("text", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_told_in_our_words_and_nothing_is_written(
    server: PostgreSQL, table: str, text: str, sentence: str
) -> None:
    url = f"{server.url()}?options=-c%20statement_timeout%3D200" if "pg_sleep" in text else server.url()
    said = said_of(lambda: read(SQLSource(url, text.format(table=table)), Columns("y")))
    assert said.startswith(f"the query at postgresql://127.0.0.1:{server.port}/postgres")
    assert sentence in said
    with psycopg.connect(server.url()) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchall() == [(3,)]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"password": CANARY}, "the database refuses the user or the password"),
        ({"user": "canary"}, "the database refuses the user or the password"),
        ({"database": "registry"}, "there is no such database"),
    ],
)
def test_a_login_that_fails_is_told(server: PostgreSQL, changes: dict[str, str], sentence: str) -> None:
    assert said_of(SQLSource(server.url(**changes), "SELECT 1").names).endswith(sentence)


def test_a_user_who_may_not_read_is_told(server: PostgreSQL, table: str) -> None:
    user = f"reader_{uuid4().hex[:8]}"
    run(server, f"CREATE USER {user} PASSWORD '{CANARY}'")
    url = server.url(user=user, password=CANARY)
    assert "this user may not read that" in said_of(SQLSource(url, f"TABLE {table}").names)


def test_a_server_that_goes_away_is_told(server: PostgreSQL) -> None:
    source = SQLSource(server.url(), "SELECT i AS a, repeat('x', 100) AS b FROM generate_series(1, 1000000) AS t(i)")
    batches = source.batches(["a", "b"])
    next(batches)
    server.stop()
    try:
        assert "cannot be reached, or went away" in said_of(lambda: list(batches))
        assert "cannot be reached, or went away" in said_of(source.names)
    finally:
        server.start()
    assert list(source.names()) == ["a", "b"]
