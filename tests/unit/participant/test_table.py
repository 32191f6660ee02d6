"""The table that every source gives, what is what in a file, and which source reads it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logistic.sparse import CSR
from participant.errors import DataError
from participant.sources import Columns, Table, read_csv, read_npz, read_table
from participant.sources.table import Streamed

if TYPE_CHECKING:
    from pathlib import Path


def table(**changes: Any) -> Table:
    """Return three rows of two columns, the second row for tests."""
    fields: dict[str, Any] = {
        "features": ("age", "bmi"),
        "X": np.array([[63, 27.5], [45, 31], [50, 22.25]]),
        "y": np.array([1.0, 0.0, 0.0]),
        "is_train": np.array([True, False, True]),
    }
    return Table(**{**fields, **changes})


# --- rows ---------------------------------------------------------------------------------------------


def test_rows_are_counted_by_what_they_are_for() -> None:
    assert (table().n_train, table().n_test) == (2, 1)


def test_columns_are_taken_by_name() -> None:
    rows = table()
    np.testing.assert_array_equal(rows.columns(("bmi", "age")), rows.X[:, ::-1])
    np.testing.assert_array_equal(rows.columns(("bmi",)), rows.X[:, 1:])
    assert rows.columns(("age", "bmi")) is rows.X


def test_missing_cells_are_counted_by_column() -> None:
    assert not table().has_missing
    rows = table(X=np.array([[np.nan, np.nan], [45, np.nan], [50, 1]]))
    assert rows.has_missing
    assert rows.n_missing.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (7731.0, "Table(2 training rows, 1 test rows, 2 features)"),
        (np.nan, "Table(2 training rows, 1 test rows, 2 features, 1 cells missing)"),
    ],
)
def test_a_table_shows_its_shape_and_no_row(cell: float, text: str) -> None:
    assert repr(table(X=np.array([[cell, 1], [2, 3], [4, 5]]))) == text


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy], ids=["pickle", "deep copy"])
def test_a_table_does_not_leave_the_process(send: object) -> None:
    assert callable(send)
    with pytest.raises(TypeError, match="rows stay where they are"):
        send(table())


def test_the_weight_is_that_of_the_training_rows_where_rows_are_weighed() -> None:
    assert table().weight is None
    assert table(sample_weight=np.array([0.5, 100.0, 2.0])).weight == 2.5


# --- a fingerprint ------------------------------------------------------------------------------------

SALT = "5a17"
WHOLE: dict[str, Any] = {"sample_weight": np.array([0.5, 1.0, 2.0]), "offset": np.array([0.0, -1.0, 0.25])}


def test_the_same_rows_have_the_same_fingerprint_however_they_lie_in_memory() -> None:
    rows = table(**WHOLE)
    twice = np.repeat(np.asfortranarray(rows.X), 2, axis=0)[::2]
    again = table(X=twice, y=rows.y.copy(), **{name: array.copy() for name, array in WHOLE.items()})
    assert not twice.flags.c_contiguous
    assert table(X=np.asfortranarray(rows.X), **WHOLE).fingerprint(SALT) == rows.fingerprint(SALT)
    assert again.fingerprint(SALT) == rows.fingerprint(SALT)
    assert len(bytes.fromhex(rows.fingerprint(SALT))) == 8


def test_rows_with_gaps_have_a_fingerprint_too() -> None:
    gap = np.array([[63, np.nan], [45, 31], [50, 22.25]])
    assert table(X=gap).fingerprint(SALT) == table(X=gap.copy()).fingerprint(SALT) != table().fingerprint(SALT)


def test_with_another_salt_it_is_another_fingerprint() -> None:
    """Otherwise whoever guesses the rows could see from a message that he is right."""
    assert len({table().fingerprint(salt) for salt in ("", "a", "b", SALT)}) == 4


@given(st.data())
def test_the_fingerprint_changes_with_any_number(data: st.DataObject) -> None:
    rows = table(**WHOLE)
    name = data.draw(st.sampled_from(["X", "y", "is_train", "sample_weight", "offset"]))
    changed = getattr(rows, name).copy()
    place = data.draw(st.integers(0, changed.size - 1))
    before = changed.flat[place]
    value = not before if name == "is_train" else data.draw(st.floats().filter(lambda value: value != before))
    changed.flat[place] = value
    assert replace(rows, **{name: changed}).fingerprint(SALT) != rows.fingerprint(SALT)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ("age", "bmI")},
        {"features": ("bmi", "age")},
        {"X": np.array([[27.5, 63], [31, 45], [22.25, 50]]), "features": ("bmi", "age")},
        {"sample_weight": np.ones(3)},
        {"offset": np.zeros(3)},
        {"X": np.array([[63, 27.5], [50, 22.25], [45, 31]]), "is_train": np.array([True, True, False])},
    ],
)
def test_the_fingerprint_changes_with_names_roles_and_the_order_of_rows(changes: dict[str, Any]) -> None:
    assert table(**changes).fingerprint(SALT) != table().fingerprint(SALT)


def test_the_same_numbers_in_another_role_have_another_fingerprint() -> None:
    numbers = np.array([0.5, 1.0, 2.0])
    assert table(offset=numbers).fingerprint(SALT) != table(sample_weight=numbers).fingerprint(SALT)


LEVELS: dict[str, Any] = {"levels": {"age": ("a", "b")}}


@pytest.mark.parametrize("streamed", [False, True])
def test_the_fingerprint_changes_with_what_a_level_is_called(streamed: bool) -> None:
    X = Streamed((3, 2), [], "d1", np.zeros(2, dtype=np.intp)) if streamed else table().X
    rows = table(X=X, **LEVELS)
    assert table(X=X, **LEVELS).fingerprint(SALT) == rows.fingerprint(SALT)
    assert table(X=X, levels={"age": ("a", "c")}).fingerprint(SALT) != rows.fingerprint(SALT)
    assert table(X=X).fingerprint(SALT) != rows.fingerprint(SALT)


def test_the_fingerprint_of_rows_that_are_read_anew_changes_with_their_digest() -> None:
    one, two = (Streamed((3, 2), [], digest, np.zeros(2, dtype=np.intp)) for digest in ("d1", "d2"))
    assert table(X=one).fingerprint(SALT) != table(X=two).fingerprint(SALT)


def test_the_fingerprint_of_sparse_rows_changes_with_any_entry() -> None:
    places, columns, numbers = np.array([0, 1, 2, 2]), np.array([1, 0]), np.array([5.0, 2.0])
    others = [(places, columns[::-1].copy(), numbers), (places, columns, numbers + 1)]
    found = {table(X=CSR(places, columns, numbers, (3, 2))).fingerprint(SALT)}
    found |= {table(X=CSR(*parts, (3, 2))).fingerprint(SALT) for parts in others}
    assert len(found) == 3


def test_missing_entries_of_sparse_rows_are_counted_by_column() -> None:
    X = CSR(np.array([0, 1, 3, 3]), np.array([1, 0, 1]), np.array([np.nan, 2.0, np.nan]), (3, 2))
    assert table(X=X).n_missing.tolist() == [0, 2]


# --- what is what -------------------------------------------------------------------------------------


def test_columns_that_are_no_features_are_listed_by_role() -> None:
    assert Columns("y").named == {"label": "y"}
    columns = Columns("y", split="s", sample_weight="w", offset="o")
    assert columns.named == {"label": "y", "split": "s", "sample weight": "w", "offset": "o"}


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ({"split": "y"}, "'y' is named as the label and as the split: each needs its own column"),
        ({"offset": "y"}, "'y' is named as the label and as the offset: each needs its own column"),
        (
            {"sample_weight": "w", "offset": "w"},
            "'w' is named as the sample weight and as the offset: each needs its own",
        ),
    ],
)
def test_a_column_is_one_thing(named: dict[str, str], sentence: str) -> None:
    with pytest.raises(DataError, match=f"^{sentence}"):
        Columns("y", **named)


@pytest.mark.parametrize("classes", [(), (1,), (0, 0), (0, 1, 1), (-1, 1)])
def test_classes_are_two_or_more_whole_numbers(classes: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="two or more different whole numbers, none below 0"):
        Columns("y", classes=classes)


# --- which source reads it ----------------------------------------------------------------------------

COLUMNS = Columns("y", split="split", sample_weight="w", offset="o", classes=(0, 1, 2), missing="mean")
ARRAYS: dict[str, Any] = {
    "X": np.array([[63, 27.5], [45, np.nan], [50, 22.25]]),
    "y": np.array([1.0, 2.0, 0.0]),
    "w": np.array([1.0, 2.5, 3.0]),
    "o": np.array([0.0, 0.5, -1.0]),
    "is_train": np.array([True, False, True]),
    "feature_names": np.array(["age", "bmi"]),
}


def write(file: Path) -> None:
    """Write the same rows in the format of the suffix."""
    if file.suffix.lower() == ".npz":
        with file.open("wb") as opened:
            np.savez(opened, **ARRAYS)
    else:
        file.write_text("age,bmi,y,w,o,split\n63,27.5,1,1,0,train\n45,,2,2.5,0.5,test\n50,22.25,0,3,-1,train\n")


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.txt", "A.CSV", "A.Npz"])
def test_the_same_rows_are_the_same_table_whatever_the_format(tmp_path: Path, name: str) -> None:
    write(tmp_path / name)
    rows = read_table(tmp_path / name, COLUMNS)
    assert rows.features == ("age", "bmi")
    assert rows.classes == (0, 1, 2)
    for array, expected in zip(
        (rows.X, rows.y, rows.sample_weight, rows.offset, rows.is_train),
        (ARRAYS[name] for name in ("X", "y", "w", "o", "is_train")),
        strict=True,
    ):
        assert array is not None
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("name", ["rows", "rows.xlsx", "rows.csv.gz", ".csv"])
def test_a_file_of_another_kind_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"is not a \.csv, \.npz or \.parquet file$"):
        read_table(tmp_path / name, COLUMNS)


def test_a_source_may_be_asked_directly(tmp_path: Path) -> None:
    for suffix in (".csv", ".npz"):
        write(tmp_path / f"a{suffix}")
    options: dict[str, Any] = {"sample_weight": "w", "offset": "o", "classes": (0, 1, 2), "missing": "mean"}
    csv = read_csv(tmp_path / "a.csv", label="y", split="split", **options)
    npz = read_npz(tmp_path / "a.npz", **options)
    assert csv.dense.tobytes() == npz.dense.tobytes()
