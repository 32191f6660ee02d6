"""Rows in memory: what is taken, and what is refused with its place and never with its value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from logistic.sparse import CSR
from participant.errors import DataError
from participant.sources import Table, read_npz
from participant.sources.arrays import table_of

if TYPE_CHECKING:
    from pathlib import Path

#: Planted among the numbers and in the texts: in no sentence.
CANARY = 7731.7731

X = np.array([[63, 27.5, CANARY], [45, 31, 0], [50, 22.25, 0]])
Y = np.array([1, 0, 0])
FRAME = pd.DataFrame(X, columns=["age", "bmi", "dose"])


# --- what is taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(X, id="an array"),
        pytest.param(np.asfortranarray(X), id="column by column"),
        pytest.param(X.astype(np.longdouble), id="long double"),
        pytest.param(X.astype(np.object_), id="Python's numbers"),
        pytest.param(X.tolist(), id="lists"),
        pytest.param(FRAME, id="a data frame"),
    ],
)
def test_what_means_the_same_is_taken_the_same(rows: Any) -> None:
    table = table_of(rows, Y, features=["age", "bmi", "dose"])
    np.testing.assert_array_equal(table.X, X)
    np.testing.assert_array_equal(table.y, Y)
    assert table.features == ("age", "bmi", "dose")
    assert (table.X.dtype, table.y.dtype, table.is_train.dtype) == (np.float64, np.float64, np.bool_)
    assert table.X.flags.c_contiguous
    assert (table.n_train, table.n_test) == (3, 0)
    assert table.sample_weight is table.offset is None


#: The first cell is 60 and 3.
SUMMED = scipy.sparse.coo_array(
    (np.append(X, 3) - 3 * np.eye(1, 10)[0], (np.append(np.repeat([0, 1, 2], 3), 0), [0, 1, 2] * 3 + [0])), shape=(3, 3)
)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(scipy.sparse.csr_array(X), id="CSR"),
        pytest.param(scipy.sparse.csc_matrix(X), id="CSC"),
        pytest.param(scipy.sparse.dok_array(X), id="dictionary of keys"),
        pytest.param(SUMMED, id="entries that are summed"),
    ],
)
def test_a_sparse_matrix_stays_sparse(rows: Any) -> None:
    before = rows.nnz
    table = table_of(rows, Y)
    assert isinstance(table.X, CSR)
    np.testing.assert_array_equal(table.X.dense(), X)
    assert table.features == ("x0", "x1", "x2")
    assert rows.nnz == before


def test_the_numbers_are_a_copy() -> None:
    given = X.copy()
    table = table_of(given, Y)
    given[:] = 0
    np.testing.assert_array_equal(table.X, X)


@pytest.mark.parametrize("n_features", [1, 10, 11, 123])
def test_columns_without_names_have_those_of_an_npz_file(n_features: int, tmp_path: Path) -> None:
    rows = np.ones((3, n_features))
    np.savez(tmp_path / "site.npz", X=rows, y=Y)
    assert table_of(rows, Y).features == read_npz(tmp_path / "site.npz").features


def test_a_frame_gives_its_columns_by_name() -> None:
    assert table_of(FRAME, Y).features == ("age", "bmi", "dose")
    table = table_of(FRAME, Y, features=["bmi", "age"])
    assert table.features == ("bmi", "age")
    np.testing.assert_array_equal(table.X, X[:, [1, 0]])


def test_a_frame_of_any_library_will_do() -> None:
    class Frame:
        columns = ("age", "bmi")

        def __getitem__(self, name: str) -> list[float]:
            return {"age": [63.0, 45.0], "bmi": [27.5, 31.0]}[name]

    np.testing.assert_array_equal(table_of(Frame(), [1, 0]).X, X[:2, :2])


def test_columns_of_a_frame_may_be_of_different_types() -> None:
    frame = pd.DataFrame({"old": [True, False], "n": pd.array([2, 3], dtype="Int64"), "x": np.float32([0.5, 1])})
    np.testing.assert_array_equal(table_of(frame, [1, 0]).X, [[1, 2, 0.5], [0, 3, 1]])


@pytest.mark.parametrize("nothing", [np.nan, None])
def test_a_missing_cell_is_nan_where_the_mean_shall_stand_for_it(nothing: float | None) -> None:
    frame = FRAME.astype(object)
    frame.loc[1, "bmi"] = nothing
    table = table_of(frame, Y, missing="mean")
    assert table.n_missing.tolist() == [0, 1, 0]


def test_weights_offsets_and_test_rows_are_taken() -> None:
    table = table_of(X, Y, sample_weight=[2, 1, 0], offset=pd.Series([-1.5, 0, 1]), is_train=[True, False, True])
    np.testing.assert_array_equal(table.sample_weight, [2, 1, 0])
    np.testing.assert_array_equal(table.offset, [-1.5, 0, 1])
    assert (table.n_train, table.n_test) == (2, 1)


def test_labels_are_codes_of_the_classes() -> None:
    table = table_of(X, [3, 1, 2], classes=(1, 2, 3))
    np.testing.assert_array_equal(table.y, [3, 1, 2])
    assert table.classes == (1, 2, 3)


# --- what is refused ----------------------------------------------------------------------------------


def put(array: Any, index: Any, value: Any) -> Any:
    """Return ``array`` with another value at ``index``."""
    changed = np.array(array, dtype=np.object_ if isinstance(value, str | bytes | dict) else np.float64)
    changed[index] = value
    return changed


def refusal(rows: Any = X, y: Any = Y, **options: Any) -> str:
    """Return the sentence with which these rows are refused."""
    with pytest.raises(DataError) as refused:
        table_of(rows, y, **options)
    sentence = str(refused.value)
    assert "7731" not in sentence
    assert refused.value.__cause__ is None
    return sentence


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (X[:0], "X has no rows or no columns: it needs at least one training row"),
        (X[:, :0], "X has no rows or no columns: it needs at least one training row"),
        (FRAME[[]], "X has no rows or no columns: it needs at least one training row"),
        (X[0], "X has 1 dimensions where rows and columns belong"),
        (put(X, (2, 1), "7731"), "X holds text, not numbers; code it as numbers"),
        (put(X, (2, 1), b"7731"), "X holds text, not numbers; code it as numbers"),
        (put(X, (2, 1), {7731: 1}), "X holds what is not a number; code it as numbers"),
        (X.astype(str), "X holds text, not numbers; code it as numbers"),
        (X.astype(complex), "X holds complex128, not numbers; code it as numbers"),
        (FRAME.astype({"dose": str}), "column 'dose' holds text, not numbers; code it as numbers"),
        (FRAME.assign(dose=pd.Timestamp("7731-07-31")), "column 'dose' holds datetime64["),
        (FRAME.set_axis([1, 2, 3], axis=1), "the data frame has column names that are not text; rename them"),
        (FRAME.set_axis(["a", "a", "b"], axis=1), "the column name 'a' stands twice; give each column its own name"),
        (
            put(X, (2, 1), np.nan),
            "row 2, column 'x1': the cell is not a finite number (NaN or infinity); give one, or set missing to 'mean'",
        ),
        (put(X, (2, 1), -np.inf), "row 2, column 'x1': the cell is not a finite number (NaN or infinity)"),
        (put(X, (2, 1), 7731e90), "row 2, column 'x1': the cell is beyond 1e+90; give the column another unit"),
        (scipy.sparse.csr_array(X[:, :0]), "X has no rows or no columns: it needs at least one training row"),
        (scipy.sparse.csr_array(X.astype(complex)), "X holds complex128, not numbers; code it as numbers"),
        (
            scipy.sparse.csc_array(put(X, (1, 2), np.nan)),
            "row 1, column 'x2': the cell is not a finite number (NaN or infinity); give one, or set missing to 'mean'",
        ),
        (scipy.sparse.csr_array(put(X, (2, 0), np.inf)), "row 2, column 'x0': the cell is not a finite number (NaN or"),
        (FRAME.replace(CANARY, np.inf), "row 0, column 'dose': the cell is not a finite number (NaN or infinity)"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(rows: Any, sentence: str) -> None:
    assert refusal(rows).startswith(sentence)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"y": [1, 0]}, "y has shape (2,) where X has 3 rows; give one number for each row"),
        ({"y": [[1], [0], [0]]}, "y has shape (3, 1) where X has 3 rows; give one number for each row"),
        ({"y": [1, 7731, 0]}, "y[1] is the label and none of the classes 0, 1"),
        ({"y": [1, 0, np.nan]}, "y[2] is the label and none of the classes 0, 1"),
        ({"y": ["7731", "a", "a"]}, "y holds text, not numbers; code it as numbers"),
        ({"features": ["a", "b"]}, "X has 3 columns and there are 2 names for them"),
        ({"features": ["a", "b", "a"]}, "the column name 'a' stands twice; give each column its own name"),
        ({"rows": FRAME, "features": ["sex"]}, "the data frame has no column 'sex'; its columns are age, bmi, dose"),
        ({"sample_weight": [1, 2]}, "sample_weight has shape (2,) where X has 3 rows; give one number for each row"),
        ({"sample_weight": [1, -7731, 0]}, "sample_weight[1] is a negative sample weight; give a row that shall not"),
        ({"sample_weight": [1, np.nan, 0]}, "sample_weight[1] is not a finite number (NaN or infinity)"),
        ({"sample_weight": [0, 0, 0]}, "sample_weight: the sample weights of all training rows are 0; at least one"),
        ({"offset": [0, 0, np.inf]}, "offset[2] is not a finite number (NaN or infinity)"),
        ({"offset": ["7731", "0", "0"]}, "offset holds text, not numbers; code it as numbers"),
        ({"is_train": [1, 0, 7731]}, "is_train holds what is neither true nor false; give booleans"),
        ({"is_train": [True]}, "is_train has shape (1,) where X has 3 rows; give one number for each row"),
        ({"is_train": [False] * 3}, "is_train marks no row; it needs at least one training row"),
    ],
)
def test_what_does_not_fit_the_rows_is_refused(options: dict[str, Any], sentence: str) -> None:
    assert refusal(**options).startswith(sentence)


def test_a_table_of_arrays_shows_no_rows() -> None:
    assert repr(table_of(X, Y)) == "Table(3 training rows, 0 test rows, 3 features)"
    assert isinstance(table_of(X, Y), Table)
