"""CSV files: what is read, and what is refused with its place and never with its value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from participant.errors import DataError, ParticipantError
from participant.sources import Table, read_csv

if TYPE_CHECKING:
    from pathlib import Path

#: Planted in cells: neither may be in any sentence.
CANARY = "canary-7731"
CANARY_NUMBER = "7731.7731"

HEADER = b"age,bmi,y,split\n"
GOOD = HEADER + b"63,27.5,1,train\n45,31,0,test\n50,22.25,0,train\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a CSV file that is not there yet."""
    return tmp_path / "site-h1.csv"


def read(file: Path, content: bytes, *, split: str | None = "split", label: str = "y", **options: Any) -> Table:
    """Return the table of a file with that content."""
    file.write_bytes(content)
    return read_csv(file, label=label, split=split, **options)


def assert_good(table: Table) -> None:
    """Compare with what `GOOD` holds."""
    assert table.features == ("age", "bmi")
    np.testing.assert_array_equal(table.X, [[63, 27.5], [45, 31], [50, 22.25]])
    np.testing.assert_array_equal(table.y, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(table.is_train, [True, False, True])


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(GOOD, id="as it should be"),
        pytest.param(b"\xef\xbb\xbf" + GOOD, id="byte order mark"),
        pytest.param(GOOD.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(GOOD.rstrip(), id="no newline at the end"),
        pytest.param(GOOD.replace(b"\n", b"\n\n") + b"\n\n", id="blank lines"),
        pytest.param(b'"age","bmi","y","split"\n"63","27.5","1","train"\n' + GOOD.split(b"\n", 2)[2], id="quoted"),
        pytest.param(GOOD.replace(b",", b" , "), id="spaces around cells"),
        pytest.param(GOOD.replace(b"63", b"6.3e1").replace(b"45", b"+45.0"), id="numbers written otherwise"),
        pytest.param(GOOD.replace(b",1,", b",1.0,").replace(b",0,", b",0.0,"), id="labels with a point"),
        pytest.param(GOOD.replace(b",1,", b",+1e0,").replace(b",0,", b",00,"), id="labels written otherwise"),
    ],
)
def test_what_means_the_same_is_read_the_same(file: Path, content: bytes) -> None:
    assert_good(read(file, content))


def test_label_and_split_may_stand_in_any_column(file: Path) -> None:
    table = read(file, b"split,age,y,bmi\ntrain,63,1,27.5\ntest,45,0,31\ntrain,50,0,22.25\n")
    assert_good(table)


def test_without_a_split_all_rows_are_for_training(file: Path) -> None:
    table = read(file, b"age,y\n63,1\n45,0\n", split=None)
    assert (table.n_train, table.n_test) == (2, 0)


def test_arrays_have_the_types_that_the_mathematics_wants(file: Path) -> None:
    table = read(file, GOOD)
    assert (table.X.dtype, table.y.dtype, table.is_train.dtype) == (np.float64, np.float64, np.bool_)
    assert (table.n_train, table.n_test) == (2, 1)


@pytest.mark.parametrize("label", [b"0", b"1"])
@pytest.mark.parametrize("n_rows", [1, 3])
def test_one_class_and_few_rows_are_fine(file: Path, label: bytes, n_rows: int) -> None:
    table = read(file, b"age,y\n" + n_rows * (b"63," + label + b"\n"), split=None)
    assert table.n_train == n_rows
    assert set(table.y) == {float(label)}


def test_a_column_name_may_hold_a_comma_and_any_letters(file: Path) -> None:
    assert read(file, '"Größe, cm",y\n1,0\n'.encode(), split=None).features == ("Größe, cm",)


def test_columns_that_are_called_numbers_are_fine_where_the_label_is_there(file: Path) -> None:
    assert read(file, b"0,1,y\n5,6,0\n", split=None).features == ("0", "1")


def test_the_largest_numbers_and_the_smallest_are_read(file: Path) -> None:
    assert read(file, b"age,y\n1e90,0\n-1e90,1\n5e-324,0\n", split=None).X[0, 0] == 1e90


def test_weights_and_offsets_are_no_features(file: Path) -> None:
    content = b"age,w,y,o,bmi\n63,2.5,1,-0.5,27.5\n45,0,0,1e3,31\n50,1,0,0,22.25\n"
    table = read(file, content, split=None, sample_weight="w", offset="o")
    assert table.features == ("age", "bmi")
    np.testing.assert_array_equal(table.X, [[63, 27.5], [45, 31], [50, 22.25]])
    np.testing.assert_array_equal(table.sample_weight, [2.5, 0, 1])
    np.testing.assert_array_equal(table.offset, [-0.5, 1e3, 0])


def test_without_weights_and_offsets_there_are_none(file: Path) -> None:
    table = read(file, GOOD)
    assert (table.sample_weight, table.offset, table.classes) == (None, None, (0, 1))


def test_every_array_is_contiguous_row_by_row(file: Path) -> None:
    table = read(file, b"age,w,y,o,bmi\n63,2.5,1,-0.5,27.5\n4,1,0,1,3\n", split=None, sample_weight="w", offset="o")
    assert all(
        array is not None and array.flags.c_contiguous
        for array in (table.X, table.y, table.sample_weight, table.offset)
    )


def test_labels_are_the_codes_of_the_classes(file: Path) -> None:
    table = read(file, b"age,y\n63,2\n45,0\n50,7.0\n", split=None, classes=(0, 2, 7))
    np.testing.assert_array_equal(table.y, [2, 0, 7])
    assert table.classes == (0, 2, 7)


@pytest.mark.parametrize("word", ["", "  ", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "?", " NA "])
def test_a_missing_value_is_nan_where_the_mean_shall_stand_for_it(file: Path, word: str) -> None:
    table = read(file, f"age,bmi,y\n63,{word},1\n45,31,0\n".encode(), split=None, missing="mean")
    np.testing.assert_array_equal(table.X, [[63, np.nan], [45, 31]])
    assert table.n_missing.tolist() == [0, 1]


def test_a_column_may_miss_in_every_row_of_a_site(file: Path) -> None:
    table = read(file, HEADER + b"63,,1,train\n45,?,0,train\n50,22,1,test\n", missing="mean")
    assert np.isnan(table.X[table.is_train, 1]).all()


# --- what is refused ---------------------------------------------------------------------------------

CANARY_ROW = f"{CANARY_NUMBER},{CANARY_NUMBER},1,train\n".encode()
AT_LINE_3 = HEADER + CANARY_ROW

DEFECTS: dict[str, tuple[bytes, str]] = {
    "empty cell": (AT_LINE_3 + b"63,,1,train\n", ", line 3, column 'bmi': the cell is empty"),
    "blank cell": (AT_LINE_3 + b"63,  ,1,train\n", ", line 3, column 'bmi': the cell is empty"),
    "text": (AT_LINE_3 + f"63,{CANARY},1,train\n".encode(), ", line 3, column 'bmi': the cell is not a number"),
    "split that was not named": (
        b"age,fold,y,split\n7731,test,1,train\n",
        ", line 2, column 'fold': the cell says train or test: name the column as the split",
    ),
    "decimal comma": (AT_LINE_3 + b'63,"7731,7731",1,train\n', ", line 3, column 'bmi': the cell is not a number"),
    "hexadecimal": (AT_LINE_3 + b"0x7731,1,1,train\n", ", line 3, column 'age': the cell is not a number"),
    "underscore": (AT_LINE_3 + b"7731_7731,1,1,train\n", ", line 3, column 'age': the cell is not a number"),
    "nan": (AT_LINE_3 + b"63,NaN,1,train\n", ", line 3, column 'bmi': the cell is not a finite number"),
    "inf": (AT_LINE_3 + b"-inf,2,1,train\n", ", line 3, column 'age': the cell is not a finite number"),
    "infinity": (AT_LINE_3 + b"Infinity,2,1,train\n", ", line 3, column 'age': the cell is not a finite number"),
    "overflow": (AT_LINE_3 + b"7731e999,2,1,train\n", ", line 3, column 'age': the cell is not a finite number"),
    "too large": (AT_LINE_3 + b"-7.731e90,2,1,train\n", ", line 3, column 'age': the cell is beyond"),
    "label 2": (AT_LINE_3 + b"63,2,7731,train\n", ", line 3, column 'y': the cell is the label and neither 0 nor 1"),
    "label yes": (AT_LINE_3 + f"6,2,{CANARY},train\n".encode(), ", line 3, column 'y': the cell is the label and"),
    "label empty": (AT_LINE_3 + b"63,2,,train\n", ", line 3, column 'y': the cell is the label and neither 0 nor 1"),
    "label half": (AT_LINE_3 + b"63,2,0.5,train\n", ", line 3, column 'y': the cell is the label and neither 0 nor 1"),
    "label nan": (AT_LINE_3 + b"63,2,nan,train\n", ", line 3, column 'y': the cell is the label and neither 0 nor 1"),
    "split word": (AT_LINE_3 + f"6,2,1,{CANARY}\n".encode(), ", line 3, column 'split': the cell is the split and"),
    "split in capitals": (AT_LINE_3 + b"6,2,1,TRAIN\n", ", line 3, column 'split': the cell is the split and neither"),
    "row too short": (AT_LINE_3 + b"7731,2,1\n", ", line 3: 3 cells where the header has 4 columns"),
    "row too long": (AT_LINE_3 + b"7731,2,1,train,\n", ", line 3: 5 cells where the header has 4 columns"),
    "defect after blank lines": (AT_LINE_3 + b"\n\r\n7731,2,1\n", ", line 5: 3 cells where the header has 4 columns"),
    "defect in a quoted cell of two lines": (
        AT_LINE_3 + b'"77\n31",2,1,train\n',
        ", line 4, column 'age': the cell is",
    ),
    "quote that is never closed": (AT_LINE_3 + b'"7731,2,1,train\n', ", line 3: not well-formed CSV"),
    "text after a quote": (AT_LINE_3 + b'"7731"31,2,1,train\n', ", line 3: not well-formed CSV"),
    "cell without end": (AT_LINE_3 + b"7" * 140_000, ", line 3: not well-formed CSV"),
    "zero byte": (AT_LINE_3 + b"77\x0031,2,1,train\n", ", line 3, column 'age': the cell is not a number"),
    "empty file": (b"", " is empty: it needs a header line and rows"),
    "byte order mark alone": (b"\xef\xbb\xbf", " is empty: it needs a header line and rows"),
    "header only": (HEADER, " has a header and no rows: it needs at least one training row"),
    "header and blank lines": (HEADER + b"\n\n", " has a header and no rows: it needs at least one training row"),
    "no training rows": (
        HEADER + b"7731,2,1,test\n",
        ": no row is marked 'train' in column 'split'; it needs at least",
    ),
    "header twice the same": (b"age,age,y,split\n", ", line 1: the column name 'age' stands twice"),
    "header the same but for spaces": (b"age, age ,y,split\n", ", line 1: the column name 'age' stands twice"),
    "header with a hole": (b"age,,y,split\n", ", line 1: column 2 has no name; give it one, or remove it"),
    "header with a comma at the end": (b"age,y,split,\n", ", line 1: column 4 has no name"),
    "no label": (
        b"age,bmi,split\n",
        " has no column 'y', which was named as the label; its columns are age, bmi, split",
    ),
    "no split": (b"age,bmi,y\n", " has no column 'split', which was named as the split; its columns are age, bmi, y"),
    "no features": (b"y,split\n1,train\n", " has no feature columns beside 'y'"),
    "semicolons": (
        b"age;bmi;y;split\n",
        " has no column 'y'; its only one is age;bmi;y;split: say what is between its cells, as with --delimiter ';'",
    ),
    "no header": (CANARY_ROW, ", line 1: numbers stand where the column names belong; give the file a header line"),
    "no header, numbers that stand twice": (
        b"7731,1,1,train\n7,0,1,test\n",
        ", line 1: numbers stand where the column",
    ),
    "no header, text first": (f"{CANARY},{CANARY_NUMBER},1,train\n".encode(), ", line 1: numbers stand where"),
    "no header, semicolons": (f"{CANARY};{CANARY_NUMBER};1;train\n".encode(), ", line 1: numbers stand where"),
    "no header, tabs": (f"{CANARY}\t{CANARY_NUMBER}\t1\ttrain\n".encode(), ", line 1: numbers stand where"),
    "UTF-16": (GOOD.decode().encode("utf-16"), " is not UTF-8 text: save it as UTF-8 CSV"),
    "Latin-1": ("Größe,y,split\n7731,1,train\n".encode("latin-1"), " is not UTF-8 text: save it as UTF-8 CSV"),
    "Latin-1 far down": (HEADER + b"1,2,0,train\n" * 9999 + b"\xfc7731", " is not UTF-8 text: save it as UTF-8 CSV"),
}


@pytest.mark.parametrize(("content", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_named_by_its_place_and_never_by_its_value(file: Path, content: bytes, sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        read(file, content)
    said = str(raised.value)
    assert said.startswith(f"{file}{sentence}")
    assert "\n" not in said
    said = said.removeprefix(str(file))
    for planted in ("canary", "7731", "77\x0031"):
        assert planted not in said
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"


FILL = "every feature needs a number in every row, or --missing mean"


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("", f"is empty; {FILL}"),
        ("?", f"is not a number; {FILL}"),
        ("n/a", f"is not a number; {FILL}"),
        ("NaN", "is not a finite number (NaN or infinity); give one, or --missing mean"),
        (CANARY, "is not a number; every feature needs a number in every row"),
        ("inf", "is not a finite number (NaN or infinity)"),
    ],
)
def test_what_could_be_filled_is_said_and_what_could_not_is_not(file: Path, cell: str, sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        read(file, HEADER + f"63,{cell},1,train\n".encode())
    assert str(raised.value) == f"{file}, line 2, column 'bmi': the cell {sentence}"


OPTIONS: dict[str, Any] = {"sample_weight": "w", "offset": "o", "missing": "mean"}
ROLES = b"age,w,o,y,split\n7731,1,1,1,train\n"
AT_Y = ", line 3, column 'y': the cell is the label and "

ROLE_DEFECTS: dict[str, tuple[bytes, str]] = {
    "weight missing": (
        b"1,,0,1,train",
        ", line 3, column 'w': the cell is the sample weight and not a number; every row",
    ),
    "weight text": (b"1,c7731,0,1,train", ", line 3, column 'w': the cell is the sample weight and not a number"),
    "weight NA": (b"1,NA,0,1,train", ", line 3, column 'w': the cell is the sample weight and not a number"),
    "weight nan": (b"1,NaN,0,1,train", ", line 3, column 'w': the cell is not a finite number"),
    "weight inf": (b"1,inf,0,1,train", ", line 3, column 'w': the cell is not a finite number"),
    "weight negative": (b"1,-7731,0,1,train", ", line 3, column 'w': the cell is a negative sample weight; give"),
    "weight too large": (b"1,7.731e91,0,1,train", ", line 3, column 'w': the cell is beyond 1e+90"),
    "offset missing": (
        b"1,1,,1,train",
        ", line 3, column 'o': the cell is the offset and not a number; every row needs",
    ),
    "offset inf": (b"1,1,-inf,1,train", ", line 3, column 'o': the cell is not a finite number"),
    "label missing": (b"1,1,0,,train", f"{AT_Y}neither 0 nor 1; code it as 0 and 1"),
    "label NA": (b"1,1,0,NA,train", f"{AT_Y}neither 0 nor 1; code it as 0 and 1"),
    "split missing": (b"1,1,0,1,", ", line 3, column 'split': the cell is the split and neither 'train' nor 'test'"),
    "feature text": (b"c7731,1,0,1,train", ", line 3, column 'age': the cell is not a number; every feature needs"),
    "feature inf": (b"inf,1,0,1,train", ", line 3, column 'age': the cell is not a finite number"),
    "test rows without weight": (
        b"1,0,0,1,test\n7731,0,0,0,test",
        ": the sample weights of all test rows are 0; at least one row must count",
    ),
}


@pytest.mark.parametrize(("rows", "sentence"), ROLE_DEFECTS.values(), ids=ROLE_DEFECTS)
def test_label_weight_offset_and_split_are_never_filled(file: Path, rows: bytes, sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        read(file, ROLES + rows, **OPTIONS)
    assert str(raised.value).startswith(f"{file}{sentence}")
    assert "7731" not in str(raised.value).removeprefix(str(file))


def test_training_rows_without_weight_are_refused(file: Path) -> None:
    with pytest.raises(
        DataError, match=r": the sample weights of all training rows are 0; at least one row must count$"
    ):
        read(file, ROLES.replace(b",1,1,1,", b",0,1,1,") + b"1,1,0,1,test\n", **OPTIONS)


@pytest.mark.parametrize(
    ("cell", "classes", "sentence"),
    [
        ("0.5", (0, 1), "neither 0 nor 1; code it as 0 and 1"),
        ("2.0", (0, 1), "neither 0 nor 1; code it as 0 and 1, or list all classes with --classes"),
        ("-1", (0, 1), "neither 0 nor 1; code it as 0 and 1, or list all classes with --classes"),
        ("yes", (0, 1, 2), "none of the classes 0, 1, 2; code it as one of them"),
        ("5", (0, 1, 2), "none of the classes 0, 1, 2; code it as one of them, or list all classes with --classes"),
        ("inf", (1, 2), "none of the classes 1, 2; code it as one of them"),
        ("1_0", (1, 10), "none of the classes 1, 10; code it as one of them"),
    ],
)
def test_a_label_of_no_class_is_told_with_the_way_to_name_classes(
    file: Path, cell: str, classes: tuple[int, ...], sentence: str
) -> None:
    with pytest.raises(DataError) as raised:
        read(file, f"age,y\n1,{cell}\n".encode(), split=None, classes=classes)
    assert str(raised.value) == f"{file}, line 2, column 'y': the cell is the label and {sentence}"


@pytest.mark.parametrize(("option", "role"), [("sample_weight", "sample weight"), ("offset", "offset")])
def test_a_weight_or_an_offset_that_is_not_there_is_told_as_such(file: Path, option: str, role: str) -> None:
    with pytest.raises(DataError, match=f"no column 'extra', which was named as the {role}; its columns are age"):
        read(file, GOOD, **{option: "extra"})


def test_a_column_name_of_two_lines_is_told_in_one(file: Path) -> None:
    with pytest.raises(DataError, match=r"its columns are 'a\\nge', split$"):
        read(file, b'"a\nge",split\n')


def test_many_columns_are_not_all_listed(file: Path) -> None:
    with pytest.raises(DataError, match=r"its columns are a0, .*, a11, \.\.\. \(40 in all\)$"):
        read(file, ",".join(f"a{i}" for i in range(40)).encode() + b"\n")


def test_a_split_that_is_not_there_is_told_as_the_split(file: Path) -> None:
    with pytest.raises(DataError, match="no column 'fold', which was named as the split"):
        read(file, GOOD, split="fold")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read: No such file or directory"):
        read_csv(tmp_path / "nowhere.csv", label="y")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_csv(tmp_path, label="y")


def test_its_errors_are_told_by_the_commands() -> None:
    assert issubclass(DataError, ParticipantError)
