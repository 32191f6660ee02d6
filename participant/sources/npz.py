"""Rows from an NPZ file, as `numpy.savez` writes it: a matrix, dense or in the parts of a CSR matrix, and labels.

==================  ==========  ============================================================================
array               shape       holds
==================  ==========  ============================================================================
``X``               (n, d)      the features, dense; or instead of it
``shape``           (2,)        n and d,
``indptr``          (n + 1,)    where each row begins among
``indices``         (nnz,)      the columns of the cells that are not 0, none twice in a row, and
``data``            (nnz,)      their values; 1 where there is no such array
``y``               (n,)        labels; another name may be given
``is_train``        (n,)        booleans: the other rows are only evaluated; without it all rows are for training
``feature_names``   (d,)        text; without it the columns are ``x0``, ``x1``, ... in as many digits as the last
                                one needs (``x00`` of 37 columns), so that names sort as columns stand
==================  ==========  ============================================================================

Weights and offsets are arrays (n,) of the names that are given for them. Other arrays are passed over.

A sparse matrix stays sparse where with all its zeros it would be large (`IN_MEMORY_BYTES`). To a schema (`NPZSource`)
the columns of a dense one, and all arrays (n,), are columns by their names; ``is_train`` says train and test then.

Nothing is unpickled. An array's header says its type and its shape, and both are checked before its numbers are
read: a small file that claims, or unpacks to, a large matrix takes no memory. Places in errors are as
numpy counts, from 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal
from zipfile import ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from logistic.sparse import CSR
from participant.errors import DataError
from participant.sources.coding import Cells
from participant.sources.reading import IN_MEMORY_BYTES, Batch
from participant.sources.table import (
    LARGEST,
    Columns,
    Floats,
    Missing,
    Role,
    Table,
    check_weights,
    file_signature,
    names_defect,
    number_defect,
    shown,
)

#: Bytes of one array in memory. Training takes a few times as much; 4 GiB are five million rows of 100 columns.
MOST_BYTES = 4 * 2**30

#: Names of so many columns take a gigabyte.
MOST_COLUMNS = 10_000_000

#: Rows of a batch.
BATCH_ROWS = 4096

#: Bytes in which an array's header must end; numpy reads none above 10,000.
HEADER_BYTES = 16384

Kind = Literal["numbers", "whole numbers", "booleans", "text"]

#: The kinds of dtype that each may have.
_DTYPES: dict[Kind, str] = {"numbers": "biuf", "whole numbers": "iu", "booleans": "b", "text": "U"}


def read_npz(
    path: Path,
    *,
    label: str = "y",
    sample_weight: str | None = None,
    offset: str | None = None,
    classes: tuple[int, ...] = (0, 1),
    missing: Missing = "refuse",
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> Table:
    """Return the rows of the NPZ file at ``path``.

    Parameters
    ----------
    label : name of the array to be predicted.
    sample_weight : name of the array of the rows' weights.
    offset : name of the array that is added to the rows' margins.
    classes : the labels that there may be.
    missing : ``mean`` takes NaN among the features as a missing value.
    in_memory_bytes : a sparse matrix that would be larger with all its zeros stays sparse.

    Raises
    ------
    DataError
        With file, array, index and the kind of defect, and what to do; never with the value.
    """
    columns = Columns(label, None, sample_weight, offset, classes, missing)
    with _opened(path) as arrays:
        return _table(arrays, columns, in_memory_bytes)


@dataclass(frozen=True, slots=True)
class NPZSource:
    """An NPZ file whose arrays are columns by their names: for a schema, which says what is what among them."""

    path: Path

    @property
    def place(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def row_word(self) -> str:
        """Places are rows, from 0."""
        return "row"

    @property
    def decimal(self) -> str:
        """Numbers that are text have a point."""
        return "."

    def signature(self) -> Any:
        """Return what changes when the file does."""
        return file_signature(self.path)

    def names(self) -> Sequence[str]:
        """Return the names of the columns of the matrix, and of the arrays that have a value for each row."""
        with _opened(self.path) as arrays:
            n_rows, n_features = _shape(arrays)
            return [*_features(arrays, n_features), *_by_row(arrays, n_rows)]

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield the rows, the first being row 0."""
        with _opened(self.path) as arrays:
            if "X" not in arrays.names:
                raise DataError(f"{self.path} holds sparse rows, which no schema fits: save them dense, as 'X'")
            X = arrays.numbers("X", "n", "d")
            place = {name: index for index, name in enumerate(_features(arrays, X.shape[1]))}
            cells = {name: X[:, place[name]] if name in place else _column(arrays, name, len(X)) for name in names}
            for start in range(0, len(X), BATCH_ROWS):
                stop = min(start + BATCH_ROWS, len(X))
                yield Batch(
                    {name: column[start:stop] for name, column in cells.items()}, stop - start, range(start, stop)
                )


@contextmanager
def _opened(path: Path) -> Iterator[Arrays]:
    try:
        with path.open("rb") as file:
            yield Arrays.of(path, file)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except MemoryError:
        raise DataError(f"{path} needs more memory than this machine has left; give the site fewer rows") from None


@contextmanager
def undamaged(sentence: str) -> Iterator[None]:
    """Tell of whatever goes wrong within in this ``sentence``."""
    try:
        yield
    except MemoryError:
        raise
    # zipfile, its decompressors and numpy's header each raise half a dozen kinds for bytes that somebody made up.
    except Exception:  # noqa: BLE001
        raise DataError(f"{sentence}: save it anew with numpy.savez") from None


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of a file, each of which is read when it is known to fit."""

    path: Path
    archive: ZipFile
    names: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, file: IO[bytes]) -> Arrays:
        """Return what is in ``file``; raises `DataError` where that is no NPZ file."""
        with undamaged(f"{path} is no NPZ file, or not a whole one"):
            archive = ZipFile(file)
        members = [name for name in archive.namelist() if name.endswith(".npy")]
        return cls(path, archive, tuple(name.removesuffix(".npy") for name in members))

    def numbers(self, name: str, *lengths: int | str) -> Floats:
        """Return the array called ``name``, of such a shape, as float64; raises `DataError`."""
        array = self.read(name, "numbers", *lengths)
        with np.errstate(over="ignore"):  # of a long double: what became infinite is told as such
            return np.ascontiguousarray(array, dtype=np.float64)

    def whole_numbers(self, name: str, *lengths: int | str) -> NDArray[np.int64]:
        """Return the array called ``name``, of such a shape, as int64; raises `DataError`."""
        # An unsigned number from 2^63 becomes negative, and is out of range as it was.
        return self.read(name, "whole numbers", *lengths).astype(np.int64)

    def read(self, name: str, kind: Kind, *lengths: int | str) -> NDArray[Any]:
        """Return the array called ``name``, whose shape is ``lengths``; one in letters may be any."""
        place = f"{self.path}, array {name!r}"
        shape, dtype = self.header(name)
        if dtype.hasobject:
            raise DataError(f"{place} holds Python objects, which are never loaded: save it as an array of {kind}")
        if dtype.kind not in _DTYPES[kind]:
            raise DataError(f"{place} holds {dtype.name}, not {kind}")
        if len(shape) != len(lengths) or any(
            given != length for given, length in zip(shape, lengths, strict=True) if isinstance(length, int)
        ):
            raise DataError(f"{place} has shape {_tuple(shape)} where {_tuple(lengths)} belongs")
        check_memory(place, math.prod(shape), dtype.itemsize)
        with undamaged(f"{place} is damaged"), self.archive.open(f"{name}.npy") as file:
            return npy.read_array(file, allow_pickle=False)

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return the shape and the type that the array called ``name`` claims to have."""
        if name not in self.names:
            raise DataError(f"{self.path} has no array {name!r}; its arrays are {shown(self.names)}")
        with undamaged(f"{self.path}, array {name!r} is damaged"), self.archive.open(f"{name}.npy") as file:
            return array_header(file)

    def check_numbers(
        self, name: str, numbers: Floats, role: Role | None = None, missing: Missing = "refuse"
    ) -> Floats:
        """Return ``numbers`` if all are what their role asks for."""
        wrong = (numbers > LARGEST) | (numbers < (0 if role == "sample weight" else -LARGEST))
        if missing == "refuse":
            wrong |= np.isnan(numbers)
        if wrong.any():
            index = np.unravel_index(wrong.argmax(), wrong.shape)
            number = float(numbers[index])
            hint = "; give one, or --missing mean" if role is None and math.isnan(number) else ""
            place = f"{self.path}, {name}[{', '.join(map(str, index))}]"
            raise DataError(f"{place} {number_defect(number, role)}{hint}")
        return numbers


def array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type that an array claims to have."""
    head = BytesIO(file.read(HEADER_BYTES))
    read = npy.read_array_header_1_0 if npy.read_magic(head) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(head)
    if not all(0 <= length <= sys.maxsize for length in shape):
        raise ValueError
    return shape, dtype


def check_memory(place: str, n_numbers: int, n_bytes: int = 8) -> None:
    """Raise `DataError` if so many numbers take too much memory, as they come or as float64."""
    needed = n_numbers * max(n_bytes, 8)
    if needed > MOST_BYTES:
        raise DataError(
            f"{place} would take {needed / 2**30:.1f} GiB of memory; the most is {MOST_BYTES / 2**30:.1f} GiB: "
            "give the site fewer rows or columns"
        )


def _tuple(lengths: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, lengths))}{',' if len(lengths) == 1 else ''})"


def _table(arrays: Arrays, columns: Columns, in_memory_bytes: int) -> Table:
    X = _rows(arrays, columns.missing, in_memory_bytes)
    n_rows, n_features = X.shape
    if not (n_rows and n_features):
        raise DataError(f"{arrays.path} has no rows or no columns: it needs at least one training row")
    is_train = np.ones(n_rows, dtype=np.bool_)
    if "is_train" in arrays.names:
        is_train = arrays.read("is_train", "booleans", n_rows)
    if not is_train.any():
        raise DataError(f"{arrays.path}, array 'is_train' marks no row; it needs at least one training row")
    table = Table(
        features=_features(arrays, n_features),
        X=X,
        y=_labels(arrays, columns, n_rows),
        is_train=is_train,
        sample_weight=_optional(arrays, columns.sample_weight, n_rows, "sample weight"),
        offset=_optional(arrays, columns.offset, n_rows, "offset"),
        classes=columns.classes,
    )
    check_weights(arrays.path, table)
    return table


def _rows(arrays: Arrays, missing: Missing, in_memory_bytes: int) -> Floats | CSR:
    if "X" in arrays.names:
        return arrays.check_numbers("X", arrays.numbers("X", "n", "d"), missing=missing)
    n_rows, n_features = _shape(arrays)
    is_small = 8 * n_rows * n_features <= in_memory_bytes
    sparse = _sparse(arrays, n_rows, n_features, missing if is_small else "mean")
    if is_small:
        return sparse.dense()
    holes = np.flatnonzero(np.isnan(sparse.data))
    if holes.size:
        row = np.searchsorted(sparse.indptr, holes[0], side="right") - 1
        raise DataError(
            f"{arrays.path}, row {row}, column {sparse.indices[holes[0]]}, both counted from 0: "
            "the cell is NaN, and so large a sparse matrix may miss no value; give one"
        )
    return sparse


def _shape(arrays: Arrays) -> tuple[int, int]:
    """Return how many rows and columns the matrix has, of which nothing is read yet."""
    if "X" in arrays.names:
        shape, _ = arrays.header("X")
        n_rows, n_features = shape if len(shape) == len(("n", "d")) else arrays.read("X", "numbers", "n", "d").shape
        return n_rows, n_features
    if "indices" not in arrays.names:
        raise DataError(
            f"{arrays.path} has neither an array 'X' nor the CSR parts 'indices', 'indptr' and 'shape'; "
            f"its arrays are {shown(arrays.names)}"
        )
    n_rows, n_features = map(int, arrays.whole_numbers("shape", 2))
    if n_rows < 0 or n_features < 0:
        raise DataError(f"{arrays.path}, array 'shape' must hold the number of rows and the number of columns")
    if n_features > MOST_COLUMNS:
        raise DataError(f"{arrays.path} has {n_features} columns; the most is {MOST_COLUMNS}")
    return n_rows, n_features


def _sparse(arrays: Arrays, n_rows: int, n_features: int, missing: Missing) -> CSR:
    """Return the matrix of which the file has the CSR parts, once they fit together."""
    path = arrays.path
    indptr = arrays.whole_numbers("indptr", n_rows + 1)
    indices = arrays.whole_numbers("indices", "nnz")
    # Compared, not subtracted: differences of made up numbers overflow.
    if indptr[0] != 0 or indptr[-1] != len(indices) or (indptr[1:] < indptr[:-1]).any():
        raise DataError(f"{path}, array 'indptr' must begin with 0, never fall, and end with the length of 'indices'")
    outside = (indices < 0) | (indices >= n_features)
    if outside.any():
        raise DataError(f"{path}, indices[{outside.argmax()}] is none of the {n_features} columns, counted from 0")
    data = np.ones(len(indices))
    if "data" in arrays.names:
        data = arrays.check_numbers("data", arrays.numbers("data", len(indices)), missing=missing)
    rows = np.repeat(np.arange(n_rows), np.diff(indptr))
    if not _increases(rows, indices).all():
        order = np.lexsort((indices, rows))
        indices, data = indices[order], data[order]
        _check_no_cell_stands_twice(path, rows, indices)
    return CSR(indptr, indices, data, (n_rows, n_features))


def _increases(rows: NDArray[np.int64], indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each entry but the first is in another row than the one before it, or in a column behind it."""
    increases: NDArray[np.bool_] = (rows[1:] != rows[:-1]) | (indices[1:] > indices[:-1])
    return increases


def _check_no_cell_stands_twice(path: Path, rows: NDArray[np.int64], indices: NDArray[np.int64]) -> None:
    """Raise `DataError` for a cell with two values: which of them is meant, or their sum, is not for us to say."""
    twice = ~_increases(rows, indices)
    if twice.any():
        raise DataError(
            f"{path}, row {rows[twice.argmax()]}, counted from 0, has a column twice in 'indices'; "
            "sum its values, or drop one"
        )


def _features(arrays: Arrays, n_features: int) -> tuple[str, ...]:
    if "feature_names" not in arrays.names:
        name = f"x%0{len(str(n_features - 1))}d"
        return tuple(map(name.__mod__, range(n_features)))
    place = f"{arrays.path}, array 'feature_names'"
    array = arrays.read("feature_names", "text", n_features)
    try:
        names = tuple(str(name).strip() for name in array)
        "".join(names).encode()
    except (UnicodeError, SystemError):  # numpy lets through what is no character
        raise DataError(f"{place} holds what is not text; save it anew") from None
    if defect := names_defect(names):
        raise DataError(f"{place}: {defect}")
    return names


def _labels(arrays: Arrays, columns: Columns, n_rows: int) -> Floats:
    y = arrays.numbers(columns.label, n_rows)
    unknown = ~np.isin(y, columns.classes)
    if unknown.any():
        row = unknown.argmax()
        raise DataError(f"{arrays.path}, {columns.label}[{row}] {columns.label_defect(float(y[row]))}")
    return y


def _optional(arrays: Arrays, name: str | None, n_rows: int, role: Role) -> Floats | None:
    return None if name is None else arrays.check_numbers(name, arrays.numbers(name, n_rows), role)


def _by_row(arrays: Arrays, n_rows: int) -> list[str]:
    """Return the names of the arrays that have a value for each row."""
    parts = {"X", "shape", "indptr", "indices", "data", "feature_names"}
    headers = {name: arrays.header(name) for name in arrays.names if name not in parts}
    return [name for name, (shape, dtype) in headers.items() if shape == (n_rows,) and dtype.kind in "biufU"]


def _column(arrays: Arrays, name: str, n_rows: int) -> Cells:
    if name == "is_train":
        return ["train" if is_train else "test" for is_train in arrays.read(name, "booleans", n_rows)]
    _, dtype = arrays.header(name)
    if dtype.kind == "U":
        return [str(text) for text in arrays.read(name, "text", n_rows)]
    # A key of 64 bits keeps all its digits.
    return arrays.numbers(name, n_rows) if dtype.kind == "f" else arrays.read(name, "numbers", n_rows)
