"""Rows that are in memory already: an array, a sparse matrix, a data frame.

A sparse matrix, which stays sparse, is known by its ``tocsr``, and a data frame by its ``columns``, each of which
``frame[name]`` gives: no library of either is imported here. What is asked of the numbers is what the files' sources
ask, and rows in errors are as numpy counts, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logistic.sparse import CSR
from participant.errors import DataError
from participant.sources.table import (
    LARGEST,
    Floats,
    Missing,
    Role,
    Table,
    check_weights,
    names_defect,
    number_defect,
    shown,
)


def table_of(
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    offset: Any = None,
    is_train: Any = None,
    features: Sequence[str] | None = None,
    classes: tuple[int, ...] = (0, 1),
    missing: Missing = "refuse",
) -> Table:
    """Return these rows as a table of numbers of its own.

    Parameters
    ----------
    X : (n_rows, n_features) an array, a sparse matrix, or a data frame with at least ``features``.
    y : (n_rows,) labels, each one of ``classes``.
    sample_weight : (n_rows,) how much each row counts, 0 or more.
    offset : (n_rows,) what is added to each row's margin.
    is_train : (n_rows,) booleans: the other rows are only evaluated.
    features : names of the columns; of a data frame those to take, all by default. An array's are by default ``x0``,
        ``x1``, ..., as in an NPZ file.
    missing : ``mean`` takes NaN, and None in a data frame, among the features as a missing value.

    Raises
    ------
    DataError
        With row, column and the kind of defect, and what to do; never with the value.
    """
    names, cells = _cells(X, features)
    n_rows, n_features = cells.shape
    if not n_rows or not n_features:
        raise DataError("X has no rows or no columns: it needs at least one training row")
    if defect := names_defect(names):
        raise DataError(defect)
    _check_cells(names, cells, missing)
    trains = np.ones(n_rows, dtype=np.bool_) if is_train is None else _booleans(is_train, n_rows)
    if not trains.any():
        raise DataError("is_train marks no row; it needs at least one training row")
    table = Table(
        features=names,
        X=cells,
        y=_labels(y, n_rows, classes),
        is_train=trains,
        sample_weight=_optional(sample_weight, n_rows, "sample weight"),
        offset=_optional(offset, n_rows, "offset"),
        classes=classes,
    )
    check_weights("sample_weight", table)
    return table


def _cells(X: Any, features: Sequence[str] | None) -> tuple[tuple[str, ...], Floats | CSR]:
    """Return the names of the columns, and their cells, (n_rows, n_features)."""
    if hasattr(X, "columns"):
        return _frame_cells(X, features)
    cells = _sparse(X) if hasattr(X, "tocsr") else _numbers(X, "X")
    if len(cells.shape) != 2:  # noqa: PLR2004 - rows and columns
        raise DataError(f"X has {len(cells.shape)} dimensions where rows and columns belong")
    n_features = cells.shape[1]
    if features is None:
        digits = len(str(n_features - 1))
        return tuple(f"x{index:0{digits}}" for index in range(n_features)), cells
    if len(features) != n_features:
        raise DataError(f"X has {n_features} columns and there are {len(features)} names for them")
    return tuple(features), cells


def _frame_cells(frame: Any, features: Sequence[str] | None) -> tuple[tuple[str, ...], Floats]:
    known = list(frame.columns)
    if not all(isinstance(name, str) for name in known):
        raise DataError("the data frame has column names that are not text; rename them")
    if defect := names_defect(known):
        raise DataError(defect)
    names = tuple(known if features is None else features)
    if absent := [name for name in names if name not in known]:
        raise DataError(f"the data frame has no column {absent[0]!r}; its columns are {shown(known)}")
    columns = [_numbers(frame[name], f"column {name!r}") for name in names]
    return names, np.column_stack(columns) if columns else np.empty((len(frame), 0))


def _sparse(X: Any) -> CSR:
    """Return the sparse matrix; entries in the same cell are summed, as SciPy reads them."""
    rows = X.tocsr().copy()
    rows.sum_duplicates()
    return CSR(rows.indptr, rows.indices, _numbers(rows.data, "X"), rows.shape)


def _numbers(values: Any, what: str) -> Floats:
    """Return ``values`` as numbers in an array of its own; what a data frame has no value for is NaN."""
    array = np.asarray(values)
    if array.dtype.kind == "O" and not any(isinstance(cell, str | bytes) for cell in array.flat):
        try:
            array = array.astype(np.float64)  # None is NaN
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{what} holds what is not a number; code it as numbers") from None
    if array.dtype.kind not in "biuf":
        kind = "text" if array.dtype.kind in "OUST" else array.dtype.name
        raise DataError(f"{what} holds {kind}, not numbers; code it as numbers")
    with np.errstate(over="ignore"):  # of a long double: what became infinite is told as such
        return np.array(array, dtype=np.float64, order="C")


def _check_cells(names: Sequence[str], cells: Floats | CSR, missing: Missing) -> None:
    numbers = cells.data if isinstance(cells, CSR) else cells
    place = _wrong(numbers, missing=missing)
    if not place:
        return
    number = float(numbers[place])
    if isinstance(cells, CSR):
        (entry,) = place
        place = int(np.searchsorted(cells.indptr, entry, side="right")) - 1, int(cells.indices[entry])
    hint = "; give one, or set missing to 'mean'" if math.isnan(number) else ""
    raise DataError(f"row {place[0]}, column {names[place[1]]!r}: the cell {number_defect(number)}{hint}")


def _wrong(numbers: Floats, role: Role | None = None, missing: Missing = "refuse") -> tuple[int, ...]:
    """Return where the first number stands that is not what its role asks for; nothing where all are."""
    wrong = (numbers > LARGEST) | (numbers < (0 if role == "sample weight" else -LARGEST))
    if missing == "refuse":
        wrong |= np.isnan(numbers)
    if not wrong.any():
        return ()
    return tuple(int(index) for index in np.unravel_index(wrong.argmax(), wrong.shape))


def _labels(y: Any, n_rows: int, classes: tuple[int, ...]) -> Floats:
    labels = _numbers(y, "y")
    _check_length(labels, n_rows, "y")
    unknown = ~np.isin(labels, classes)
    if unknown.any():
        raise DataError(f"y[{unknown.argmax()}] is the label and none of the classes {', '.join(map(str, classes))}")
    return labels


def _optional(values: Any, n_rows: int, role: Role) -> Floats | None:
    if values is None:
        return None
    what = role.replace(" ", "_")
    numbers = _numbers(values, what)
    _check_length(numbers, n_rows, what)
    if place := _wrong(numbers, role):
        raise DataError(f"{what}[{place[0]}] {number_defect(float(numbers[place]), role)}")
    return numbers


def _booleans(values: Any, n_rows: int) -> NDArray[np.bool_]:
    booleans = np.array(values)
    if booleans.dtype.kind != "b":
        raise DataError("is_train holds what is neither true nor false; give booleans")
    _check_length(booleans, n_rows, "is_train")
    return booleans


def _check_length(values: NDArray[Any], n_rows: int, what: str) -> None:
    if values.shape != (n_rows,):
        raise DataError(f"{what} has shape {values.shape} where X has {n_rows} rows; give one number for each row")
