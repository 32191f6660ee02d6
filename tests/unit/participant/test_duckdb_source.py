"""Parquet files and queries over files: what is read, in which order, and what a query cannot reach."""

# ruff: noqa: S608 - the queries are the tests' own

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pytest

from broker.schema import Feature, Label, Schema, Split
from participant.errors import DataError
from participant.sources import duckdb as source
from participant.sources.csv import CSVSource
from participant.sources.duckdb import DuckDBSource
from participant.sources.reading import read
from participant.sources.table import Columns, Streamed, Table

if TYPE_CHECKING:
    from pathlib import Path

#: Planted in cells: in no sentence.
CANARY = "canary-7731"

ROWS = "(VALUES (63, 27.5, 1, 'train'), (45, 31, 0, 'test'), (50, 22.25, 0, 'train')) AS t(age, bmi, y, split)"
GOOD = f"SELECT * FROM {ROWS}"
TEXT = b"age,bmi,y,split\n63,27.5,1,train\n45,31,0,test\n50,22.25,0,train\n"
CELLS = [tuple(line.split(b",")) for line in TEXT.splitlines()[1:]]
COLUMNS = Columns("y", "split")


def write(path: Path, query: str = GOOD, options: str = "") -> Path:
    """Write what ``query`` gives to a Parquet file."""
    path.parent.mkdir(exist_ok=True)
    duckdb.sql(f"COPY ({query}) TO '{str(path).replace(chr(39), 2 * chr(39))}' (FORMAT parquet {options})")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Give a Parquet file of three good rows."""
    return write(tmp_path / "site-h1.parquet")


def over(*paths: Path | str, query: str | None = None) -> DuckDBSource:
    """Return the source of these files."""
    return DuckDBSource(tuple(map(str, paths)), query)


def said_of(reading: DuckDBSource, what: Columns | Schema = COLUMNS) -> str:
    """Return the sentence in which ``reading`` is refused, which is one line without a planted value."""
    with pytest.raises(DataError) as raised:
        read(reading, what)
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


def test_a_parquet_file_is_read(file: Path) -> None:
    assert_good(read(over(file), COLUMNS))


@pytest.mark.parametrize(
    "kind",
    ["TINYINT", "USMALLINT", "INTEGER", "BIGINT", "UBIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL(9, 0)", "VARCHAR"],
)
def test_numbers_of_every_type_are_numbers(tmp_path: Path, kind: str) -> None:
    table = read(over(write(tmp_path / "a.parquet", f"SELECT bmi, y, split, age::{kind} AS age FROM {ROWS}")), COLUMNS)
    np.testing.assert_array_equal(table.X[:, 1], [63, 45, 50])


@pytest.mark.parametrize(
    ("kind", "numbers"), [("DOUBLE", [1.5, 2]), ("BIGINT", [1, 2]), ("BOOLEAN", [1, 0]), ("DECIMAL(9, 2)", [1.5, 2])]
)
def test_null_is_a_missing_value(tmp_path: Path, kind: str, numbers: list[float]) -> None:
    rows = "SELECT CAST(v AS {}) AS v, 1 AS y FROM (VALUES ({}), (NULL), ({})) AS t(v)"
    file = write(tmp_path / "a.parquet", rows.format(kind, *numbers))
    table = read(over(file), Columns("y", missing="mean"))
    np.testing.assert_array_equal(table.X[:, 0], [numbers[0], np.nan, numbers[1]])
    assert ", row 2, column 'v': the cell is " in said_of(over(file), Columns("y"))


def test_many_rows_with_and_without_values_come_in_their_order(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.parquet",
        "SELECT i::DOUBLE AS number, if(i % 7 = 0, NULL, i) AS whole, if(i % 5 = 0, NULL, i % 3 = 0) AS truth, "
        "if(i % 11 = 0, NULL, 'w' || (i % 4)) AS word FROM range(300000) AS t(i)",
        ", ROW_GROUP_SIZE 10000",
    )
    names = ["word", "number", "truth", "whole"]
    batches = list(over(file).batches(names))
    assert sum(batch.n_rows for batch in batches) == 300_000
    assert [place for batch in batches for place in batch.places] == list(range(1, 300_001))
    at = np.arange(300_000)
    np.testing.assert_array_equal(np.concatenate([batch.cells["number"] for batch in batches]), at)
    whole = np.concatenate([batch.cells["whole"] for batch in batches])
    np.testing.assert_array_equal(whole, np.where(at % 7 == 0, np.nan, at))
    assert [word for batch in batches for word in batch.cells["word"]] == [
        None if i % 11 == 0 else f"w{i % 4}" for i in range(300_000)
    ]
    assert [truth for batch in batches for truth in batch.cells["truth"]] == [
        None if i % 5 == 0 else i % 3 == 0 for i in range(300_000)
    ]


def test_keys_of_64_bits_keep_all_their_digits(tmp_path: Path) -> None:
    rows = "(VALUES (9007199254740993, 9007199254740993), (NULL, 1), (7, 2)) AS t(holed, full_)"
    (batch,) = over(write(tmp_path / "a.parquet", f"FROM {rows}")).batches(["holed", "full_"])
    assert batch.cells["holed"] == [9007199254740993, None, 7]
    assert batch.cells["full_"][0] == 9007199254740993


def test_what_does_not_stay_in_memory_is_read_the_same_each_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", "SELECT i AS a, sqrt(i) AS b, i % 2 AS y FROM range(30000) AS t(i)")
    kept, streamed = (read(over(file), Columns("y"), in_memory_bytes=n_bytes) for n_bytes in (2**20, 2**10))
    assert isinstance(streamed.X, Streamed)
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([coded.X for coded in streamed.X.rows]), kept.X)


def test_dates_and_lists_are_text(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", "SELECT DATE '2024-02-29' AS day, [1, 2] AS many, 1 AS y")
    (batch,) = over(file).batches(["day", "many"])
    assert (batch.cells["day"], batch.cells["many"]) == (["2024-02-29"], ["[1, 2]"])
    assert said_of(over(file), Columns("y")).endswith(
        "row 1, column 'day': the cell is not a number; every feature needs a number in every row"
    )


def test_a_schema_reads_the_same_from_a_csv_file(file: Path, tmp_path: Path) -> None:
    schema = Schema((Feature("bmi"), Feature("age", "categorical")), Label("y"), Split("split"))
    (tmp_path / "a.csv").write_bytes(TEXT)
    ours, theirs = read(over(file), schema), read(CSVSource(tmp_path / "a.csv"), schema)
    np.testing.assert_array_equal(np.sort(ours.X[:, 0]), np.sort(theirs.X[:, 0]))
    assert set(ours.levels["age"]) == set(theirs.levels["age"]) == {"63", "45", "50"}
    words = [[table.levels["age"][int(place)] for place in table.X[:, 1]] for table in (ours, theirs)]
    assert words == [["63", "45", "50"]] * 2


# --- many files -------------------------------------------------------------------------------------


def test_a_folder_a_pattern_and_several_paths_are_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = tmp_path / "visits"
    for number in (2, 1, 3):
        write(folder / f"{number}.parquet", f"SELECT {number} AS a, 1 AS y")
    write(folder / "more" / "0.parquet", "SELECT 9 AS a, 1 AS y")
    for paths, numbers in (
        ((folder,), [1, 2, 3, 9]),
        ((folder / "*.parquet",), [1, 2, 3]),
        ((folder / "3.parquet", folder / "1.parquet"), [3, 1]),
        ((folder / "1.parquet", folder / "[12].parquet"), [1, 2]),
    ):
        assert read(over(*paths), Columns("y")).X.ravel().tolist() == numbers


def test_columns_of_several_files_are_matched_by_name_and_their_types_made_one(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", "SELECT 1::INTEGER AS a, 0 AS y")
    write(tmp_path / "2.parquet", "SELECT 1 AS y, 2.5::DOUBLE AS a")
    assert read(over(tmp_path), Columns("y")).X.ravel().tolist() == [1, 2.5]


def test_files_of_different_columns_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "1.parquet", "SELECT 1 AS a, 0 AS y")
    write(tmp_path / "2.parquet", "SELECT 1 AS a, 0 AS y, 2 AS b")
    sentence = (
        f"{tmp_path / '1.parquet'} has no column 'b', which {tmp_path / '2.parquet'} has; all files need the same"
    )
    assert said_of(over(tmp_path), Columns("y")).startswith(sentence)
    (tmp_path / "2.parquet").rename(tmp_path / "0.parquet")
    assert said_of(over(tmp_path), Columns("y")).startswith(sentence.replace("2.parquet", "0.parquet"))


def test_the_signature_is_another_when_a_file_changes_or_comes(file: Path) -> None:
    reading = over(file.parent)
    first = reading.signature()
    assert over(file.parent).signature() == first
    write(file, f"{GOOD} LIMIT 2")
    second = reading.signature()
    assert second != first
    write(file.with_name("site-h2.parquet"))
    assert reading.signature() != second


def test_strange_names_of_files_are_only_names(tmp_path: Path) -> None:
    assert_good(read(over(write(tmp_path / 'it\'s "h1"; DROP.parquet')), COLUMNS))


# --- queries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM data",
        "FROM data",
        "SELECT age, bmi, y, split FROM data ORDER BY 1 = 50, 1 = 45; -- the order matters",
        "WITH picked AS (SELECT * FROM data) SELECT * FROM picked WHERE bmi > 1 AND split <> '%:x'",
    ],
)
def test_a_query_selects_from_the_files(file: Path, query: str) -> None:
    assert_good(read(over(file, query=query), COLUMNS))


def test_a_query_may_compute(file: Path) -> None:
    reading = over(file, query="SELECT age > 46 AS old, sum(y) AS y FROM data GROUP BY ALL ORDER BY 1")
    table = read(reading, Columns("y"))
    assert table.X.ravel().tolist() == [0, 1]
    assert table.y.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", TEXT),
        ("a.tsv", TEXT.replace(b",", b"\t")),
        ("a.json", b"[" + b",".join(b'{"age": %s, "bmi": %s, "y": %s, "split": "%s"}' % row for row in CELLS) + b"]"),
    ],
)
def test_other_files_are_read_by_a_query_alone(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert_good(read(over(tmp_path / name, query="FROM data"), COLUMNS))
    assert said_of(over(tmp_path / name)).endswith(
        f"{name} is not a .parquet file: give a query to read it by, as SELECT * FROM data"
    )


def test_cells_of_csv_files_are_text_until_a_query_casts_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"code,y\n007,1\n,0\n")
    (batch,) = over(tmp_path / "a.csv", query="SELECT code, code::INT AS number FROM data").batches(["code", "number"])
    assert batch.cells["code"] == ["007", None]
    np.testing.assert_array_equal(batch.cells["number"], [7, np.nan])


SECRET = "/etc/passwd"

FORBIDDEN = {
    "another file": (f"SELECT * FROM read_text('{SECRET}')", "reaches for something else"),
    "another CSV file": (f"SELECT * FROM read_csv('{SECRET}')", "reaches for something else"),
    "another Parquet file": ("SELECT * FROM '{other}'", "reaches for something else"),
    "a list of files": ("SELECT * FROM glob('/etc/*')", "reaches for something else"),
    "the network": ("SELECT * FROM 'https://127.0.0.1:1/a.parquet'", "reaches for something else"),
    "stored secrets": ("SELECT 1 AS y, 'test' AS split, * FROM duckdb_secrets()", "reaches for something else"),
    "a variable of the program": ("SELECT * FROM TEXT", "names a table"),
    "the environment": ("SELECT getenv('HOME')", "names a table or a function that is not there"),
    "ATTACH": ("ATTACH '{other}.db'", "must be one SELECT"),
    "COPY": ("COPY (SELECT 1) TO '{other}' (USE_TMP_FILE false)", "must be one SELECT"),
    "COPY over the data": ("COPY (SELECT 1) TO '{file}' (USE_TMP_FILE false)", "must be one SELECT"),
    "EXPORT": ("EXPORT DATABASE '{other}'", "must be one SELECT"),
    "INSTALL": ("INSTALL httpfs", "must be one SELECT"),
    "LOAD": ("LOAD httpfs", "must be one SELECT"),
    "SET": ("SET enable_external_access = true", "must be one SELECT"),
    "two statements": ("SELECT 1; SELECT 2", "must be one SELECT"),
    "none": ("-- SELECT", "must be one SELECT"),
}


@pytest.mark.parametrize(("query", "sentence"), FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_query_reaches_nothing_but_its_files(file: Path, tmp_path: Path, query: str, sentence: str) -> None:
    other = write(tmp_path / "other" / "site-h2.parquet")
    content = file.read_bytes()
    said = said_of(over(file, query=query.format(other=other, file=file)))
    assert said.startswith(f"the query over {file}: ")
    assert sentence in said
    assert file.read_bytes() == content
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["other", "site-h1.parquet", "site-h2.parquet"]


# --- what is refused ---------------------------------------------------------------------------------

DEFECTS = {
    "a table that is not there": ("SELECT * FROM visits", "names a table or a function that is not there; its only"),
    "a column that is not there": (f'SELECT "{CANARY}" FROM data', "names a table, a column or a function that is not"),
    "no SQL": (f"SELEKT '{CANARY}'", "the query is not SQL as DuckDB knows it"),
    "a cell that is not what it is cast to": (
        f"SELECT age, CAST(if(age = 45, '{CANARY}', '1') AS INT) AS bmi, y, split FROM data",
        "a cell is not what the query casts it to; correct it, or use TRY_CAST",
    ),
    "a number beyond its type": (
        "SELECT age::TINYINT * 7::TINYINT AS age, y, split FROM data",
        "a number is too large for the type that the query gives it; cast it to DOUBLE",
    ),
    "an error of its own": (f"SELECT age, error('{CANARY}') AS bmi, y, split FROM data", "is"),
    "a name twice": ("SELECT age, age, y, split FROM data", "the column name 'age' stands twice; give each"),
    "no label": ("SELECT age, split FROM data", "has no column 'y', which was named as the label; its columns are age"),
    "no rows": ("SELECT * FROM data WHERE age > 99", "no rows: it needs at least one training row"),
    "text": (f"SELECT '{CANARY}' AS age, y, split FROM data", "row 1, column 'age': the cell is not a number"),
    "infinity": ("SELECT 'inf'::DOUBLE AS age, y, split FROM data", "row 1, column 'age': the cell is not a finite"),
    "NaN": ("SELECT 'nan'::DOUBLE AS age, y, split FROM data", "row 1, column 'age': the cell is not a finite number"),
    "too large": ("SELECT 7.731e99 AS age, y, split FROM data", "row 1, column 'age': the cell is beyond 1e+90"),
    "label": ("SELECT age, 7731 AS y, split FROM data", "row 1, column 'y': the cell is the label and neither 0 nor 1"),
    "label NULL": ("SELECT age, NULL AS y, split FROM data", "row 1, column 'y': the cell is the label and neither"),
    "split": (f"SELECT age, y, '{CANARY}' AS split FROM data", "row 1, column 'split': the cell is the split and"),
}


@pytest.mark.parametrize(("query", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_told_in_our_words(file: Path, query: str, sentence: str) -> None:
    said = said_of(over(file, query=query))
    assert said.startswith(f"the query over {file}")
    assert sentence in said


def test_an_error_that_nobody_knows_is_told_without_what_it_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_WORDS", {})
    assert said_of(over(file, query=DEFECTS["text"][0].replace("data", "nowhere"))).endswith(
        ": DuckDB cannot read it; try the query, or SELECT * FROM the files, in its shell"
    )


def test_our_own_mistakes_are_not_taken_for_duckdbs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DuckDBSource, "_select", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        over(file).names()


def test_names_that_differ_in_capitals_only_are_no_trouble_to_a_query(file: Path) -> None:
    (batch,) = over(file, query="SELECT age AS A, bmi AS a FROM data").batches(["a", "A"])
    np.testing.assert_array_equal(batch.cells["a"], [27.5, 31, 22.25])
    np.testing.assert_array_equal(batch.cells["A"], [63, 45, 50])


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("a,y,a", "the column name 'a' stands twice; give each column its own name"),
        ("a,y,A", "the column names a, A differ in capitals only; rename one"),
        ("a,,y", "column 2 has no name; give it one, or remove it"),
    ],
)
def test_columns_that_duckdb_would_rename_are_told(tmp_path: Path, header: str, sentence: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"{header}\n7731,1,2\n8,9,10\n")
    assert said_of(over(file, query="FROM data"), Columns("y")) == f"{file}: {sentence}"


def test_names_within_a_column_are_not_names_of_columns(tmp_path: Path) -> None:
    nested = write(tmp_path / "a.parquet", "SELECT {'y': 1, 'more': {'a': 2}} AS tree, [1] AS list, 3 AS a, 1 AS y")
    assert over(nested).names() == ["tree", "list", "a", "y"]
    assert read(over(nested, query="SELECT a, y FROM data"), Columns("y")).X.tolist() == [[3]]


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "text.parquet").write_bytes(TEXT)
    (tmp_path / "half.parquet").write_bytes(write(tmp_path / "whole.parquet").read_bytes()[:-9])
    (tmp_path / "a.txt.doc").write_bytes(TEXT)
    (tmp_path / "a.csv").write_bytes(TEXT)
    (tmp_path / "folder").mkdir()
    write(tmp_path / "what?.parquet")
    damaged = "a file is damaged, or is not what its name ends with; write it anew"
    for paths, sentence in (
        (["empty.parquet"], f"{tmp_path}/empty.parquet is empty: it needs columns and rows"),
        (["text.parquet"], f"{tmp_path}/text.parquet: {damaged}"),
        (["half.parquet"], f"{tmp_path}/half.parquet: {damaged}"),
        (["nowhere.parquet"], f"{tmp_path}/nowhere.parquet cannot be read: No such file or directory"),
        (["folder"], f"{tmp_path}/folder is a folder without a file whose name ends with .parquet"),
        (["*.orc"], f"{tmp_path}/*.orc matches no file"),
        (["a.txt.doc"], f"{tmp_path}/a.txt.doc is not a .parquet, .csv, .json file"),
        (["what?.parquet"], f"{tmp_path}/what?.parquet has *, ? or [ in its name or its folder's, which means several"),
        (
            ["whole.parquet", "a.csv"],
            f"{tmp_path}/whole.parquet, {tmp_path}/a.csv: the files are of several kinds (.csv",
        ),
    ):
        assert said_of(over(*(tmp_path / path for path in paths))).startswith(sentence)


def test_without_rows_a_file_is_refused(tmp_path: Path) -> None:
    assert "it needs at least one training row" in said_of(over(write(tmp_path / "a.parquet", f"{GOOD} LIMIT 0")))


@pytest.mark.parametrize("package", ["duckdb", "nanoarrow"])
def test_without_the_extra_it_is_said_how_to_install_it(
    file: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert said_of(over(file)) == "Parquet files and queries over files need DuckDB: pip install 'fedmq[data]'"


def test_what_is_told_of_a_source_names_its_files_and_not_its_query(file: Path) -> None:
    reading: Any = over(file, query=f"SELECT '{CANARY}'")
    assert (reading.place, reading.row_word, reading.decimal) == (f"the query over {file}", "row", ".")
    assert over(file).place == str(file)
