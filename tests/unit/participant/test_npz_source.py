"""NPZ files: what is read, and what is refused with its place, never with its value, and before it takes memory."""

from __future__ import annotations

import io
import random
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.lib import format as npy

from broker.schema import Feature, Label, Schema, Split
from logistic import sparse
from participant.errors import DataError
from participant.sources import Table, npz, read_npz
from participant.sources.npz import NPZSource
from participant.sources.reading import read as read_source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

#: Planted among the numbers and in the texts: in no sentence.
CANARY = 7731.7731

X = np.array([[63, 27.5, CANARY], [45, 31, 0], [50, 22.25, 0]])
Y = np.array([1, 0, 0], dtype=np.uint8)
IS_TRAIN = np.array([True, False, True])
DENSE: dict[str, Any] = {"X": X, "y": Y, "is_train": IS_TRAIN}
CSR: dict[str, Any] = {
    "shape": np.array([3, 3]),
    "indptr": np.array([0, 3, 5, 7], dtype=np.int32),
    "indices": np.array([0, 1, 2, 1, 0, 0, 1], dtype=np.uint8),
    "data": np.array([63, 27.5, CANARY, 31, 45, 50, 22.25]),
    "y": Y,
    "is_train": IS_TRAIN,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name an NPZ file that is not there yet."""
    return tmp_path / "site-h1.npz"


def saved(arrays: dict[str, Any], save: Callable[..., None] = np.savez) -> bytes:
    """Return the bytes of a file with these arrays; those that are None are left out."""
    buffer = io.BytesIO()
    save(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def read(file: Path, arrays: dict[str, Any] | bytes, **options: Any) -> Table:
    """Return the table of a file with these arrays or bytes."""
    file.write_bytes(arrays if isinstance(arrays, bytes) else saved(arrays))
    return read_npz(file, **options)


# --- what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(saved(DENSE), id="dense"),
        pytest.param(saved(DENSE, np.savez_compressed), id="compressed"),
        pytest.param(saved(CSR), id="CSR"),
        pytest.param(saved({**DENSE, "X": np.asfortranarray(X)}), id="column by column"),
        pytest.param(saved({**DENSE, "X": X.astype(">f8")}), id="big-endian"),
        pytest.param(saved({**DENSE, "X": X.astype(np.longdouble)}), id="long double"),
        pytest.param(saved({**DENSE, "y": Y.astype(np.bool_)}), id="labels as booleans"),
        pytest.param(saved({**DENSE, "y": Y.astype(np.float32)}), id="labels as floats"),
        pytest.param(saved({**DENSE, "extra": np.zeros((4, 4, 4)), "more": np.array([None])}), id="extra arrays"),
        pytest.param(saved({**CSR, "shape": np.array([3, 3], dtype=np.uint64)}), id="unsigned shape"),
        pytest.param(saved({**CSR, "indptr": CSR["indptr"].astype(np.uint64)}), id="unsigned indptr"),
        pytest.param(saved({**DENSE, "shape": np.zeros(1), "indices": np.zeros(1)}), id="dense comes first"),
    ],
)
def test_what_means_the_same_is_read_the_same(file: Path, content: bytes) -> None:
    table = read(file, content)
    np.testing.assert_array_equal(table.X, X)
    np.testing.assert_array_equal(table.y, Y)
    np.testing.assert_array_equal(table.is_train, IS_TRAIN)
    assert table.features == ("x0", "x1", "x2")
    assert (table.X.dtype, table.y.dtype, table.is_train.dtype) == (np.float64, np.float64, np.bool_)
    assert table.X.flags.c_contiguous


@pytest.mark.parametrize("arrays", [DENSE, CSR], ids=["dense", "CSR"])
def test_without_is_train_all_rows_are_for_training(file: Path, arrays: dict[str, Any]) -> None:
    table = read(file, {**arrays, "is_train": None})
    assert (table.n_train, table.n_test) == (3, 0)


def test_without_data_what_is_indexed_is_one(file: Path) -> None:
    table = read(file, {**CSR, "data": None})
    np.testing.assert_array_equal(table.X, [[1, 1, 1], [1, 1, 0], [1, 1, 0]])


def test_rows_of_a_sparse_matrix_may_be_empty(file: Path) -> None:
    table = read(file, {**CSR, "indptr": np.zeros(4, int), "indices": np.zeros(0, int), "data": None})
    np.testing.assert_array_equal(table.X, np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("n_features", "first", "last"), [(1, "x0", "x0"), (10, "x0", "x9"), (11, "x00", "x10"), (123, "x000", "x122")]
)
def test_columns_without_names_have_numbers_that_sort_as_they_stand(
    file: Path, n_features: int, first: str, last: str
) -> None:
    features = read(file, {"X": np.zeros((3, n_features)), "y": Y}).features
    assert (features[0], features[-1], len(features)) == (first, last, n_features)
    assert list(features) == sorted(features)


def test_entries_of_a_row_may_stand_in_any_order(file: Path) -> None:
    shuffled = {"indices": np.array([2, 0, 1, 0, 1, 1, 0]), "data": np.array([CANARY, 63, 27.5, 45, 31, 22.25, 50])}
    np.testing.assert_array_equal(read(file, {**CSR, **shuffled}).X, X)


def test_a_sparse_matrix_stays_sparse_where_it_would_be_large(file: Path) -> None:
    wide = {**CSR, "shape": np.array([3, 1_000_000]), "indices": np.array([0, 999_999, 2, 1, 0, 7, 1])}
    small = read(file, wide, in_memory_bytes=24_000_000)
    table = read(file, wide, in_memory_bytes=23_999_999)
    assert isinstance(small.X, np.ndarray)
    assert isinstance(table.X, sparse.CSR)
    np.testing.assert_array_equal(table.X.dense(), small.X)
    assert (table.features[0], table.features[-1]) == ("x000000", "x999999")
    assert table.n_missing.sum() == 0


@pytest.mark.parametrize("missing", ["refuse", "mean"])
def test_rows_that_stay_sparse_may_miss_no_value(file: Path, missing: str) -> None:
    holed = {**CSR, "data": put(CSR["data"], 4, np.nan)}
    with pytest.raises(DataError) as raised:
        read(file, holed, missing=missing, in_memory_bytes=8)
    assert str(raised.value).startswith(f"{file}, row 1, column 0, both counted from 0: the cell is NaN, and so large")


def test_columns_have_the_names_that_are_given(file: Path) -> None:
    names = np.array(["age", " bmi ", "Größe, cm"])
    assert read(file, {**DENSE, "feature_names": names}).features == ("age", "bmi", "Größe, cm")
    assert read(file, {**CSR, "feature_names": names.astype(">U9")}).features == ("age", "bmi", "Größe, cm")


def test_label_weight_and_offset_are_arrays_of_the_names_that_are_given(file: Path) -> None:
    arrays = {"X": X, "outcome": Y, "w": np.array([2, 0, 1]), "o": np.array([-1.5, 0, 1])}
    table = read(file, arrays, label="outcome", sample_weight="w", offset="o")
    np.testing.assert_array_equal(table.y, Y)
    np.testing.assert_array_equal(table.sample_weight, [2, 0, 1])
    np.testing.assert_array_equal(table.offset, [-1.5, 0, 1])


def test_labels_are_the_codes_of_the_classes(file: Path) -> None:
    table = read(file, {"X": X, "y": np.array([3, 1, 2])}, classes=(1, 2, 3))
    np.testing.assert_array_equal(table.y, [3, 1, 2])
    assert table.classes == (1, 2, 3)


@pytest.mark.parametrize("arrays", [DENSE, CSR], ids=["dense", "CSR"])
def test_nan_is_a_missing_value_where_the_mean_shall_stand_for_it(file: Path, arrays: dict[str, Any]) -> None:
    name = "X" if "X" in arrays else "data"
    holed = arrays[name].copy()
    holed.flat[1] = np.nan
    table = read(file, {**arrays, name: holed}, missing="mean")
    assert np.isnan(table.X[0, 1])
    assert table.n_missing.tolist() == [0, 1, 0]


# --- what is refused: what the arrays say -------------------------------------------------------------


def put(array: Any, index: Any, value: Any) -> Any:
    """Return ``array`` with another value at ``index``."""
    changed = np.array(array)
    changed[index] = value
    return changed


W = np.array([1.0, 1.0, 1.0])

DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "no arrays": ({}, " has neither an array 'X' nor the CSR parts 'indices', 'indptr' and 'shape'; its arrays are"),
    "no rows' array": ({**DENSE, "X": None}, " has neither an array 'X' nor the CSR parts"),
    "no label": ({**DENSE, "y": None}, " has no array 'y'; its arrays are w, o, X, is_train"),
    "no indptr": (
        {**CSR, "indptr": None},
        " has no array 'indptr'; its arrays are w, o, shape, indices, data, y, is_train",
    ),
    "no shape": ({**CSR, "shape": None}, " has no array 'shape'; its arrays are"),
    "no weight": ({**DENSE, "w": None}, " has no array 'w'; its arrays are o, X, y, is_train"),
    "X of objects": (
        {**DENSE, "X": X.astype(object)},
        ", array 'X' holds Python objects, which are never loaded: save it as an array of numbers",
    ),
    "names of objects": (
        {**DENSE, "feature_names": np.array(["a", "b", "c"], dtype=object)},
        ", array 'feature_names' holds Python objects, which are never loaded: save it as an array of text",
    ),
    "X complex": ({**DENSE, "X": X + 0j}, ", array 'X' holds complex128, not numbers"),
    "X text": ({**DENSE, "X": X.astype(str)}, ", array 'X' holds str"),
    "X dates": ({**DENSE, "X": X.astype("M8[D]")}, ", array 'X' holds datetime64[D], not numbers"),
    "X records": ({**DENSE, "X": np.zeros(3, "f8,f8")}, ", array 'X' holds void128, not numbers"),
    "X a vector": ({**DENSE, "X": X[0]}, ", array 'X' has shape (3,) where (n, d) belongs"),
    "X a cube": ({**DENSE, "X": X[None]}, ", array 'X' has shape (1, 3, 3) where (n, d) belongs"),
    "X a scalar": ({**DENSE, "X": CANARY}, ", array 'X' has shape () where (n, d) belongs"),
    "X without rows": ({**DENSE, "X": X[:0]}, " has no rows or no columns: it needs at least one training row"),
    "X without columns": ({**DENSE, "X": X[:, :0]}, " has no rows or no columns"),
    "X with NaN": (
        {**DENSE, "X": put(X, (2, 1), np.nan)},
        ", X[2, 1] is not a finite number (NaN or infinity); give one, or --missing mean",
    ),
    "X with infinity": ({**DENSE, "X": put(X, (1, 0), -np.inf)}, ", X[1, 0] is not a finite number (NaN or infinity)"),
    "X too large": (
        {**DENSE, "X": put(X, (1, 2), 7.731e91)},
        ", X[1, 2] is beyond 1e+90; give the column another unit",
    ),
    "X long and too large": (
        {**DENSE, "X": put(X.astype(np.longdouble), (1, 2), np.longdouble("1e400"))},
        ", X[1, 2] is not a finite number",
    ),
    "labels too few": ({**DENSE, "y": Y[:2]}, ", array 'y' has shape (2,) where (3,) belongs"),
    "labels as a column": ({**DENSE, "y": Y[:, None]}, ", array 'y' has shape (3, 1) where (3,) belongs"),
    "labels as text": ({**DENSE, "y": Y.astype(str)}, ", array 'y' holds str"),
    "label 7731": (
        {**DENSE, "y": put(Y.astype(int), 2, 7731)},
        ", y[2] is the label and neither 0 nor 1; code it as 0 and 1, or list all classes with --classes",
    ),
    "label half": ({**DENSE, "y": put(Y.astype(float), 1, 0.7731)}, ", y[1] is the label and neither 0 nor 1; code it"),
    "label NaN": ({**DENSE, "y": put(Y.astype(float), 0, np.nan)}, ", y[0] is the label and neither 0 nor 1; code it"),
    "is_train of numbers": (
        {**DENSE, "is_train": IS_TRAIN.astype(int)},
        ", array 'is_train' holds int64, not booleans",
    ),
    "is_train too long": (
        {**DENSE, "is_train": np.ones(4, bool)},
        ", array 'is_train' has shape (4,) where (3,) belongs",
    ),
    "is_train all false": (
        {**DENSE, "is_train": ~np.ones(3, bool)},
        ", array 'is_train' marks no row; it needs at least one training row",
    ),
    "names too few": (
        {**DENSE, "feature_names": np.array(["c7731", "b"])},
        ", array 'feature_names' has shape (2,) where (3,) belongs",
    ),
    "names as bytes": (
        {**DENSE, "feature_names": np.array([b"a", b"b", b"c"])},
        ", array 'feature_names' holds bytes8, not text",
    ),
    "name twice": (
        {**DENSE, "feature_names": np.array(["age", "b", " age"])},
        ", array 'feature_names': the column name 'age' stands twice; give each column its own name",
    ),
    "name empty": (
        {**DENSE, "feature_names": np.array(["a", " ", "c"])},
        ", array 'feature_names': column 2 has no name; give it one, or remove it",
    ),
    "name of half a character": (
        {**DENSE, "feature_names": np.array(["a", "\ud800", "c"])},
        ", array 'feature_names' holds what is not text; save it anew",
    ),
    "name of no character": (
        {**DENSE, "feature_names": np.array([97, 0x110001, 98], dtype="<u4").view("<U1")},
        ", array 'feature_names' holds what is not text; save it anew",
    ),
    "weight negative": (
        {**DENSE, "w": put(W, 1, -CANARY)},
        ", w[1] is a negative sample weight; give a row that shall not count the weight 0",
    ),
    "weight NaN": ({**DENSE, "w": put(W, 1, np.nan)}, ", w[1] is not a finite number (NaN or infinity)"),
    "weight too large": ({**DENSE, "w": put(W, 1, 7.731e91)}, ", w[1] is beyond 1e+90"),
    "weights too many": ({**DENSE, "w": np.ones(4)}, ", array 'w' has shape (4,) where (3,) belongs"),
    "weights 0": ({**DENSE, "w": put(W, [0, 2], 0)}, ": the sample weights of all training rows are 0; at least one"),
    "weights of test rows 0": (
        {**DENSE, "w": put(W, 1, 0)},
        ": the sample weights of all test rows are 0; at least one",
    ),
    "offset infinite": ({**DENSE, "o": put(W, 2, np.inf)}, ", o[2] is not a finite number (NaN or infinity)"),
    "shape of three": ({**CSR, "shape": np.array([3, 3, 3])}, ", array 'shape' has shape (3,) where (2,) belongs"),
    "shape of floats": (
        {**CSR, "shape": np.array([3.0, 3.0])},
        ", array 'shape' holds float64, not whole numbers",
    ),
    "shape negative": (
        {**CSR, "shape": np.array([-3, -3])},
        ", array 'shape' must hold the number of rows and the number of columns",
    ),
    "shape from 2^63": (
        {**CSR, "shape": np.array([3, 2**63], dtype=np.uint64)},
        ", array 'shape' must hold the number of rows and the number of columns",
    ),
    "shape without rows": ({**CSR, "shape": np.array([0, 3])}, ", array 'indptr' has shape (4,) where (1,) belongs"),
    "shape without columns": ({**CSR, "shape": np.array([3, 0])}, ", indices[0] is none of the 0 columns"),
    "nothing": (
        {**CSR, "shape": np.array([0, 0]), "indptr": np.zeros(1, int), "indices": np.zeros(0, int), "data": None},
        " has no rows or no columns",
    ),
    "rows too many": (
        {**CSR, "shape": np.array([2**40, 3])},
        f", array 'indptr' has shape (4,) where ({2**40 + 1},) belongs",
    ),
    "columns too many": ({**CSR, "shape": np.array([3, 2**40])}, f" has {2**40} columns; the most is 10000000"),
    "indptr too short": ({**CSR, "indptr": CSR["indptr"][:3]}, ", array 'indptr' has shape (3,) where (4,) belongs"),
    "indptr of floats": ({**CSR, "indptr": CSR["indptr"] + 0.5}, ", array 'indptr' holds float64, not whole"),
    "indptr from 1": (
        {**CSR, "indptr": put(CSR["indptr"], 0, 1)},
        ", array 'indptr' must begin with 0, never fall, and",
    ),
    "indptr to 6": ({**CSR, "indptr": put(CSR["indptr"], 3, 6)}, ", array 'indptr' must begin with 0, never fall, and"),
    "indptr falls": (
        {**CSR, "indptr": put(CSR["indptr"], 1, 6)},
        ", array 'indptr' must begin with 0, never fall, and",
    ),
    "indptr overflows": (
        {**CSR, "indptr": np.array([0, 2**63 - 1, -(2**63), 7])},
        ", array 'indptr' must begin with 0, never fall, and end with the length of 'indices'",
    ),
    "indices of floats": ({**CSR, "indices": CSR["indices"] + 0.5}, ", array 'indices' holds float64, not whole"),
    "indices as a matrix": (
        {**CSR, "indices": CSR["indices"][None]},
        ", array 'indices' has shape (1, 7) where (nnz,)",
    ),
    "index beyond": (
        {**CSR, "indices": put(CSR["indices"], 4, 3)},
        ", indices[4] is none of the 3 columns, counted from 0",
    ),
    "index negative": ({**CSR, "indices": put(CSR["indices"].astype(int), 0, -1)}, ", indices[0] is none of the 3"),
    "index from 2^63": (
        {**CSR, "indices": put(CSR["indices"].astype(np.uint64), 5, 2**63 + 1)},
        ", indices[5] is none of the 3 columns",
    ),
    "cell twice": (
        {**CSR, "indices": put(CSR["indices"], 4, 1)},
        ", row 1, counted from 0, has a column twice in 'indices'; sum its values, or drop one",
    ),
    "more cells than there can be": (
        {**CSR, "indptr": np.array([0, 0, 4, 4]), "indices": np.zeros(4, int), "data": None},
        ", row 1, counted from 0, has a column twice",
    ),
    "data too short": ({**CSR, "data": CSR["data"][:6]}, ", array 'data' has shape (6,) where (7,) belongs"),
    "data complex": ({**CSR, "data": CSR["data"] + 0j}, ", array 'data' holds complex128, not numbers"),
    "data with NaN": (
        {**CSR, "data": put(CSR["data"], 6, np.nan)},
        ", data[6] is not a finite number (NaN or infinity)",
    ),
    "data infinite": ({**CSR, "data": put(CSR["data"], 0, np.inf)}, ", data[0] is not a finite number"),
}


@pytest.mark.parametrize(("arrays", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_named_by_its_place_and_never_by_its_value(
    file: Path, arrays: dict[str, Any], sentence: str
) -> None:
    roles = {"sample_weight": "w", "offset": "o"}
    with pytest.raises(DataError) as raised:
        read(file, {"w": W, "o": W, **arrays}, **roles)
    said = str(raised.value)
    assert sentence in said
    assert said.startswith(f"{file}")
    assert "\n" not in said
    assert "7731" not in said.removeprefix(str(file))
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"


def test_arrays_with_strange_names_are_listed_in_one_line(file: Path) -> None:
    with pytest.raises(DataError, match=r"its arrays are 'a\\nb'$"):
        read(file, {"a\nb": X})


# --- what is refused: bytes that numpy never wrote ----------------------------------------------------


def member(name: str, content: bytes, arrays: dict[str, Any] | None = None) -> bytes:
    """Return a file in which the bytes of the array ``name`` are ``content``."""
    buffer = io.BytesIO(saved({**(DENSE if arrays is None else arrays), name: None}))
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """Return the bytes of an array that claims to be what ``header`` says."""
    text = header.encode("latin-1")
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return npy.magic(version, 0) + size + text + content


def claiming(shape: str, descr: str = "'<f8'") -> str:
    """Return the header of an array of that shape and type."""
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


DAMAGED = ", array 'X' is damaged: save it anew with numpy.savez"
NO_NPZ = " is no NPZ file, or not a whole one: save it anew with numpy.savez"
GOOD = saved(DENSE)


def npy_file() -> bytes:
    """Return an array as numpy.save writes it."""
    buffer = io.BytesIO()
    np.save(buffer, X)
    return buffer.getvalue()


def with_bit_flipped_in(content: bytes, part: bytes) -> bytes:
    """Return ``content`` with one bit of the first ``part`` in it the other way round."""
    at = content.index(part)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", NO_NPZ),
    "text": (b"age,bmi,y\n7731,2,1\n", NO_NPZ),
    "one array": (npy_file(), NO_NPZ),
    "half a file": (GOOD[: len(GOOD) // 2], NO_NPZ),
    "without its end": (GOOD[:-1], NO_NPZ),
    "bit flipped in the rows": (with_bit_flipped_in(GOOD, X.tobytes()), DAMAGED),
    "encrypted": (GOOD.replace(b"PK\x01\x02\x2d\x03\x2d\x00\x00", b"PK\x01\x02\x2d\x03\x2d\x00\x01"), DAMAGED),
    "no array": (member("X", b"7731,7731"), DAMAGED),
    "nothing": (member("X", b""), DAMAGED),
    "version 9": (member("X", array(claiming("(3, 3)"), X.tobytes(), version=9)), DAMAGED),
    "half the numbers": (member("X", array(claiming("(3, 3)"), X.tobytes()[:36])), DAMAGED),
    "header that is not closed": (member("X", array("{'descr': '<f8'")), DAMAGED),
    "header with an unfinished text": (member("X", array("{'descr': '''7731")), DAMAGED),
    "header that is no map": (member("X", array("[7731]")), DAMAGED),
    "header of a tuple": (member("X", array(claiming("(3, 3)", "()"))), DAMAGED),
    "header that nests": (member("X", array("(" * 9000)), DAMAGED),
    "header that claims 4 GiB": (member("X", npy.magic(2, 0) + b"\xff\xff\xff\xff" + bytes(2**24)), DAMAGED),
    "negative shape": (member("X", array(claiming("(-3, -3)"))), DAMAGED),
    "shape of a thousand digits": (member("X", array(claiming(f"(0x{'f' * 4000}, 3)"))), DAMAGED),
    "shape of an exabyte": (
        member("X", array(claiming(f"({2**27}, {2**30})"))),
        ", array 'X' would take 1073741824.0 GiB of memory; the most is 4.0 GiB: give the site fewer rows or columns",
    ),
    "bytes that become float64": (
        member("X", array(claiming(f"({2**15}, {2**15})", "'|b1'"))),
        ", array 'X' would take 8.0 GiB of memory",
    ),
    "long names": (
        member("feature_names", array(claiming("(3,)", f"'<U{2**29 - 1}'"))),
        ", array 'feature_names' would take 6.0 GiB of memory",
    ),
    "labels that claim to be more": (
        member("y", array(claiming(f"({2**50},)"))),
        f", array 'y' has shape ({2**50},) where (3,) belongs",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_told_before_it_takes_memory(file: Path, content: bytes, sentence: str) -> None:
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as raised:
            read_npz(file)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    assert str(raised.value).startswith(f"{file}{sentence}")
    assert "7731" not in str(raised.value).removeprefix(str(file))


def test_what_unpacks_to_more_than_its_shape_is_not_unpacked(file: Path) -> None:
    bomb = member("X", array(claiming("(3, 3)"), X.tobytes() + bytes(2**26)))
    file.write_bytes(bomb)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(read_npz(file).X, X)
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


class Planted:
    """Says so when it is unpickled."""

    def __reduce__(self) -> Any:
        """Fail the test from inside of pickle."""
        return pytest.fail, ("something was unpickled",)


@pytest.mark.parametrize("name", ["X", "y", "is_train", "feature_names", "extra"])
def test_nothing_is_ever_unpickled(file: Path, name: str) -> None:
    planted = {**DENSE, name: np.array([Planted()] * 3, dtype=object)}
    if name == "extra":
        assert read(file, planted).n_train == 2
    else:
        with pytest.raises(DataError, match="holds Python objects, which are never loaded"):
            read(file, planted)


@pytest.mark.parametrize("content", [saved(DENSE), saved(CSR, np.savez_compressed)], ids=["dense", "CSR"])
def test_whatever_bytes_are_changed_it_is_a_table_or_a_sentence(file: Path, content: bytes) -> None:
    rng = random.Random(7)
    n_refused = 0
    for _ in range(400):
        changed = bytearray(content)
        for _ in range(rng.choice([1, 1, 2, 8])):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        try:
            assert isinstance(
                read(file, bytes(changed[: rng.choice([len(changed), rng.randrange(len(changed))])])), Table
            )
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either is fine
            n_refused += 1
    assert n_refused > 200


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.npz cannot be read: No such file or directory"):
        read_npz(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_npz(tmp_path)


@pytest.mark.parametrize("arrays", [DENSE, CSR], ids=["dense", "CSR"])
def test_a_machine_without_memory_is_told(file: Path, arrays: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(npz.npy if "X" in arrays else npz.np, "read_array" if "X" in arrays else "ones", no_memory)
    with pytest.raises(DataError, match="needs more memory than this machine has left"):
        read(file, arrays)


# --- with a schema -----------------------------------------------------------------------------------

SCHEMA = Schema(
    features=(Feature("bmi", low=20.0, high=40.0), Feature("site", "categorical"), Feature("age")),
    label=Label("outcome", {"dead": 1, "alive": 0}),
    split=Split("is_train"),
    sample_weight="w",
)
COLUMNS: dict[str, Any] = {
    "X": np.array([[63, 27.5], [45, 31], [50, 22.25]]),
    "feature_names": np.array(["age", "bmi"]),
    "outcome": np.array(["dead", "alive", "alive"]),
    "is_train": IS_TRAIN,
    "site": np.array([3, 12, 3]),
    "w": np.array([1.0, 0.5, 2.0], dtype=np.float32),
    "matrix": X,
    "objects": np.array([None, 1, 2]),
}


def read_with(file: Path, arrays: dict[str, Any], schema: Schema = SCHEMA) -> Table:
    """Return the table of a file with these arrays as the schema says."""
    file.write_bytes(saved(arrays))
    return read_source(NPZSource(file), schema)


def test_a_schema_takes_columns_and_arrays_by_their_names(file: Path) -> None:
    table = read_with(file, COLUMNS)
    assert table.features == ("bmi", "site", "age")
    np.testing.assert_array_equal(table.X, [[27.5, 0, 63], [31, 1, 45], [22.25, 0, 50]])
    assert table.levels == {"site": ("3", "12")}
    np.testing.assert_array_equal(table.y, Y)
    np.testing.assert_array_equal(table.is_train, IS_TRAIN)
    np.testing.assert_array_equal(table.sample_weight, [1.0, 0.5, 2.0])


def test_the_names_are_those_of_what_has_a_value_for_each_row(file: Path) -> None:
    file.write_bytes(saved(COLUMNS))
    assert NPZSource(file).names() == ["age", "bmi", "outcome", "is_train", "site", "w"]
    file.write_bytes(saved(CSR))
    assert NPZSource(file).names() == ["x0", "x1", "x2", "y", "is_train"]


def test_batches_are_the_rows_in_their_order(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "BATCH_ROWS", 2)
    file.write_bytes(saved(COLUMNS))
    batches = list(NPZSource(file).batches(["age", "outcome"]))
    assert [(batch.n_rows, list(batch.places)) for batch in batches] == [(2, [0, 1]), (1, [2])]
    np.testing.assert_array_equal(np.concatenate([batch.cells["age"] for batch in batches]), [63, 45, 50])


def test_a_defect_is_named_by_row_and_column(file: Path) -> None:
    with pytest.raises(DataError) as raised:
        read_with(file, {**COLUMNS, "X": put(COLUMNS["X"], (2, 1), CANARY)})
    assert str(raised.value) == f"{file}, row 2, column 'bmi': the cell is outside the range that the schema allows"


def test_a_feature_and_an_array_of_one_name_are_told(file: Path) -> None:
    with pytest.raises(DataError, match="the column name 'age' stands twice; give each column its own name"):
        read_with(file, {**COLUMNS, "age": Y})


def test_a_matrix_of_another_shape_is_told(file: Path) -> None:
    with pytest.raises(DataError, match=r"array 'X' has shape \(1, 3, 3\) where \(n, d\) belongs"):
        read_with(file, {**COLUMNS, "X": X[None]})


def test_sparse_rows_are_refused_with_a_schema(file: Path) -> None:
    with pytest.raises(DataError, match="holds sparse rows, which no schema fits: save them dense, as 'X'"):
        read_with(file, CSR, Schema((Feature("x0"),), Label("y")))


def test_the_signature_is_another_when_the_file_is(file: Path) -> None:
    file.write_bytes(saved(COLUMNS))
    first = NPZSource(file).signature()
    assert NPZSource(file).signature() == first
    file.write_bytes(saved(DENSE))
    assert NPZSource(file).signature() != first
