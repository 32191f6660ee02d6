"""How CSV files are written: whatever is between their cells, the same rows are the same table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.schema import Feature, Label, Schema, Split
from participant.errors import DataError
from participant.sources import Dialect, Table, read_table
from participant.sources.csv import CSVSource

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = Schema(
    (Feature("age", missing="mean"), Feature("sex", kind="binary", levels=("f", "m")), Feature("bmi")),
    Label("ill", {"no": 0, "yes": 1}),
    Split("part"),
)
NAMES = ("age", "part", "sex", "note", "bmi", "ill")
ROWS = [
    ("63.5", "train", "f", "canary-7731", "27.25", "yes"),
    ("", "test", "m", "", "31", "no"),
    ("50", "train", "m", "a, b", "-1.5e1", "no"),
]


def text(
    delimiter: str = ",", decimal: str = ".", end: str = "\n", *, header: bool = True, rows: list[Any] = ROWS
) -> str:
    """Return the rows in that dialect, each cell that needs quotes in quotes."""

    def written(cell: str) -> str:
        cell = cell.replace(".", decimal) if cell[:1].isdigit() or cell[:1] == "-" else cell
        return f'"{cell}"' if delimiter in cell else cell

    return "".join(delimiter.join(map(written, row)) + end for row in ([NAMES] if header else []) + rows)


def assert_same(table: Table) -> None:
    assert table.features == ("age", "sex", "bmi")
    np.testing.assert_array_equal(table.dense, [[63.5, 0, 27.25], [np.nan, 1, 31], [50, 1, -15]])
    assert table.y.tolist() == [1.0, 0.0, 0.0]
    assert table.is_train.tolist() == [True, False, True]
    assert table.schema == SCHEMA
    assert table.classes == (0, 1)


@pytest.mark.parametrize("signs", [",.", ";,", "\t.", "|,", ",,"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("header", [True, False], ids=["header", "no header"])
def test_the_same_rows_are_the_same_table_in_every_dialect(
    tmp_path: Path, signs: str, end: str, mark: str, header: bool
) -> None:
    delimiter, decimal = signs
    file = tmp_path / "site.csv"
    file.write_bytes((mark + text(delimiter, decimal, end, header=header)).encode())
    assert_same(read_table(file, SCHEMA, Dialect(delimiter, decimal, () if header else NAMES)))


@pytest.mark.parametrize("suffix", [".tsv", ".txt", ".data", ".CSV"])
def test_text_is_read_whatever_it_is_called(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"site{suffix}"
    file.write_text(text("\t"))
    assert_same(read_table(file, SCHEMA, Dialect("\t")))


@pytest.mark.parametrize("delimiter", ["", "tab", ";;", '"', "\n", "\r"])
def test_a_delimiter_is_one_character(delimiter: str) -> None:
    with pytest.raises(DataError, match="the delimiter of a CSV file is one character"):
        Dialect(delimiter)


@pytest.mark.parametrize("decimal", ["", "'", ";"])
def test_decimals_stand_behind_a_point_or_a_comma(decimal: str) -> None:
    with pytest.raises(DataError, match="the decimals of a number stand behind"):
        Dialect(decimal=decimal)


def refusal(file: Path, content: str, dialect: Dialect) -> str:
    file.write_text(content)
    with pytest.raises(DataError) as raised:
        read_table(file, SCHEMA, dialect)
    said = str(raised.value)
    assert said.startswith(str(file))
    said = said.removeprefix(str(file))
    assert "7731" not in said
    return said


RAGGED = [*ROWS, ("7731", "train")]


def test_a_row_of_another_length_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "site.csv"
    content = text(";", ",", rows=RAGGED)
    assert refusal(file, content, Dialect(";", ",")) == ", line 5: 2 cells where the header has 6 columns"
    content = text(";", ",", header=False, rows=RAGGED)
    said = refusal(file, content, Dialect(";", ",", NAMES))
    assert said == ", line 4: 2 cells where names are given for 6 columns"


def test_a_number_with_a_point_is_refused_where_decimals_stand_behind_a_comma(tmp_path: Path) -> None:
    rows = [("7.731", *ROWS[0][1:])]
    content = text(";", ".", rows=rows)
    said = refusal(tmp_path / "site.csv", content, Dialect(";", ","))
    assert said.startswith(", line 2, column 'age': the cell is not a number")


@pytest.mark.parametrize(("delimiter", "shown"), [(";", "';'"), ("\t", "tab"), ("|", "'|'")])
def test_a_delimiter_that_was_not_said_is_suggested(tmp_path: Path, delimiter: str, shown: str) -> None:
    said = refusal(tmp_path / "site.csv", text(delimiter), Dialect())
    assert said.endswith(f"say what is between its cells, as with --delimiter {shown}")


def test_numbers_where_names_belong_are_not_shown(tmp_path: Path) -> None:
    said = refusal(tmp_path / "site.csv", "7731;train;f;;27;yes\n", Dialect(";"))
    assert said == ", line 1: numbers stand where the column names belong; give the file a header line"


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("age", "part", "sex", "age", "bmi", "ill"), ": the column name 'age' stands twice"),
        (("age", "part", "sex", "", "bmi", "ill"), ": column 4 has no name; give it one, or remove it"),
        (("age", "part", "gender", "note", "bmi", "ill"), " has no column 'sex', which the schema names; its columns"),
    ],
)
def test_names_that_are_given_are_examined_as_those_of_a_header(
    tmp_path: Path, names: tuple[str, ...], sentence: str
) -> None:
    said = refusal(tmp_path / "site.csv", text(header=False), Dialect(header=names))
    assert said.startswith(sentence)


def test_a_source_says_how_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "site.csv"
    file.write_text(text(";", ","))
    source = CSVSource(file, Dialect(";", ","))
    assert (source.place, source.row_word, source.decimal) == (str(file), "line", ",")
    assert tuple(source.names()) == NAMES
    before = source.signature()
    file.write_text(text(";", ",") + "1;train;f;;1;no\n")
    assert source.signature() != before
