"""Rows that are mostly zeros, as compressed sparse rows (CSR), with no more than the formulas ask of X.

Row i has the values ``data[indptr[i]:indptr[i + 1]]`` in the columns ``indices[indptr[i]:indptr[i + 1]]``, and zeros in
the others. Products take time in proportion to the entries, not to rows times columns.

Standardised rows are not sparse: a zero becomes -mean / scale. So a frame (`CSR.framed`) stays beside the entries, and
every product takes it into account. With v = w / scale and r a number for each row,

    ((X - mean) / scale) w    = X v - mean . v
    r ((X - mean) / scale)    = (r X) / scale - (sum r) mean / scale
    ||(x - mean) / scale||^2  = sum over entries of u (u - 2 c)  +  ||c||^2,    u = x / scale,  c = mean / scale

`CSR.dense` alone makes an array of all cells: for a few rows at a time.
"""

from dataclasses import dataclass
from operator import index
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from logistic.arrays import Matrix, Vector
from logistic.errors import NonFiniteError, ParameterError, ShapeError

Indices: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Frame:
    """What is subtracted from the columns and what they are divided by; of zeros it makes ``-shift``."""

    mean: Vector
    scale: Vector
    shift: Vector
    squared_shift: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CSR:
    """A sparse matrix of rows, immutable; ``X[rows]``, ``X @ w`` and ``r @ X`` are what they are of an array.

    Parameters
    ----------
    indptr : (n_rows + 1,) whole numbers: where each row's entries begin, and last where they all end.
    indices : (n_entries,) whole numbers: the columns, none twice in a row. They are brought into increasing order.
    data : (n_entries,) the values. They may be zeros; NaN stands for a missing one until somebody fills it.
    shape : (n_rows, n_features)

    Raises
    ------
    ShapeError
        If the four do not describe a matrix.
    """

    indptr: Indices
    indices: Indices
    data: Vector
    shape: tuple[int, int]
    frame: Frame | None = None

    # An array on the left, as in r @ X, leaves the product to us instead of making an array of X.
    __array_ufunc__ = None

    def __post_init__(self) -> None:
        for name in ("indptr", "indices"):
            object.__setattr__(self, name, _whole(name, getattr(self, name)))
        object.__setattr__(self, "data", np.asarray(self.data, dtype=np.float64))
        object.__setattr__(self, "shape", tuple(index(size) for size in self.shape))
        n_rows, n_features = self.shape
        if self.indptr.shape != (n_rows + 1,) or self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any():
            raise ShapeError(f"indptr must have {n_rows + 1} numbers for {n_rows} rows, from 0 and never decreasing")
        if not self.indices.shape == self.data.shape == (self.indptr[-1],):
            raise ShapeError(
                f"indices and data have shapes {self.indices.shape} and {self.data.shape}; indptr speaks of "
                f"{self.indptr[-1]} entries"
            )
        if self.indices.size and not (self.indices.min() >= 0 and self.indices.max() < n_features):
            raise ShapeError(f"indices name columns outside the {n_features} that there are")
        if not self._is_increasing():
            order = np.lexsort((self.indices, np.repeat(np.arange(n_rows), self.counts)))
            object.__setattr__(self, "indices", self.indices[order])
            object.__setattr__(self, "data", self.data[order])
            if not self._is_increasing():
                raise ShapeError("a row has two entries in one column; add them up")

    def _is_increasing(self) -> bool:
        """Whether the columns increase within each row, so that none is there twice."""
        increasing = np.diff(self.indices) > 0
        begins = self.indptr[(self.indptr > 0) & (self.indptr < self.indices.size)]
        increasing[begins - 1] = True  # a row may begin with any column
        return bool(increasing.all())

    # The generated text would print rows, and texts end up in logs.
    def __repr__(self) -> str:
        return f"CSR(n_rows={len(self)}, n_features={self.shape[1]}, n_entries={self.data.size})"

    def __len__(self) -> int:
        """Count the rows."""
        return self.shape[0]

    @property
    def counts(self) -> Indices:
        """Number of entries of each row, (n_rows,)."""
        return np.diff(self.indptr)

    def framed(self, mean: Vector, scale: Vector) -> "CSR":
        """Return the rows standardised, (x - mean) / scale, with the same entries in memory.

        Parameters
        ----------
        mean, scale : (n_features,)

        Raises
        ------
        ShapeError
            If they do not have one number per column.
        NonFiniteError
            If a number is NaN or infinite.
        ParameterError
            If a scale is not positive, or the rows have a frame already.
        """
        if self.frame is not None:
            raise ParameterError("these rows are standardised already; frame them as they came")
        if not mean.shape == scale.shape == (self.shape[1],):
            raise ShapeError(
                f"mean and scale have shapes {mean.shape} and {scale.shape}; X has {self.shape[1]} columns"
            )
        if not (np.isfinite(mean).all() and np.isfinite(scale).all()):
            raise NonFiniteError("mean or scale holds NaN or infinity; check the moments they came from")
        if (scale <= 0).any():
            raise ParameterError("a scale is not positive; give a constant column the scale 1")
        shift = mean / scale
        return _unchecked(
            self.indptr, self.indices, self.data, self.shape, Frame(mean, scale, shift, float(shift @ shift))
        )

    def __getitem__(self, rows: slice | Indices | NDArray[np.bool_]) -> "CSR":
        """Return some rows: consecutive ones by a slice, without a copy; any by their numbers or by a mask, copied."""
        if isinstance(rows, slice):
            return self._between(*rows.indices(len(self)))
        return self.take(np.arange(len(self))[rows])

    def take(self, numbers: Indices) -> "CSR":
        """Return the rows of these numbers, copied."""
        counts = self.counts[numbers]
        indptr = np.append(0, np.cumsum(counts))
        entries = np.repeat(self.indptr[:-1][numbers] - indptr[:-1], counts) + np.arange(indptr[-1])
        return _unchecked(indptr, self.indices[entries], self.data[entries], (len(numbers), self.shape[1]), self.frame)

    def _between(self, start: int, stop: int, step: int) -> "CSR":
        if step != 1:
            raise ShapeError("a slice of sparse rows takes consecutive ones; name others by their numbers")
        indptr = self.indptr[start : max(start, stop) + 1]
        entries = slice(indptr[0], indptr[-1])
        shape = len(indptr) - 1, self.shape[1]
        return _unchecked(indptr - indptr[0], self.indices[entries], self.data[entries], shape, self.frame)

    def __matmul__(self, right: Vector | Matrix) -> Vector | Matrix:
        """``X @ right``: (n_features,) to (n_rows,), or (n_features, k) to (n_rows, k)."""
        if right.shape[:1] != self.shape[1:]:
            raise ShapeError(f"an array of shape {right.shape} does not fit the columns of X, {self.shape}")
        if right.ndim > 1:
            return np.stack([self @ column for column in right.T], axis=1)
        if self.frame is None:
            return self._row_sums(self.data * right[self.indices])
        return self._row_sums(self.data * (right / self.frame.scale)[self.indices]) - self.frame.shift @ right

    def __rmatmul__(self, left: Vector | Matrix) -> Vector | Matrix:
        """``left @ X``: (n_rows,) to (n_features,), or (k, n_rows) to (k, n_features)."""
        if left.shape[-1:] != self.shape[:1]:
            raise ShapeError(f"an array of shape {left.shape} does not fit the rows of X, {self.shape}")
        if left.ndim > 1:
            return np.stack([row @ self for row in left])
        sums = column_sums(self, self.data * np.repeat(left, self.counts))
        return sums if self.frame is None else sums / self.frame.scale - left.sum() * self.frame.shift

    def squared_row_norms(self) -> Vector:
        """Return ||x||^2 of each row, (n_rows,)."""
        if self.frame is None:
            return self._row_sums(self.data**2)
        u, c = self.data / self.frame.scale[self.indices], self.frame.shift[self.indices]
        return np.maximum(self._row_sums(u * (u - 2.0 * c)) + self.frame.squared_shift, 0.0)

    def dense(self) -> Matrix:
        """Return the rows as an array, (n_rows, n_features)."""
        X = np.zeros(self.shape)
        X[np.repeat(np.arange(len(self)), self.counts), self.indices] = self.data
        if self.frame is not None:
            X -= self.frame.mean
            X /= self.frame.scale
        return X

    def _row_sums(self, values: Vector) -> Vector:
        """Sum the values of each row's entries, (n_rows,)."""
        sums = np.zeros(len(self))
        filled = self.counts > 0  # of an empty row reduceat would return the next one's first value
        sums[filled] = np.add.reduceat(values, self.indptr[:-1][filled])
        return sums


def column_sums(X: CSR, values: Vector) -> Vector:
    """Sum ``values``, one for each entry of ``X``, over the entries of each column, (n_features,)."""
    return np.bincount(X.indices, values, X.shape[1]).astype(np.float64, copy=False)


def _whole(name: str, numbers: Indices) -> Indices:
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu" and array.size:
        raise ShapeError(f"{name} has numbers of type {array.dtype}; positions are whole numbers")
    return array.astype(np.intp, copy=False)


def _unchecked(indptr: Indices, indices: Indices, data: Vector, shape: tuple[int, int], frame: Frame | None) -> CSR:
    """Make a CSR of what was checked already: to look at all entries again would cost as much as a product."""
    made = object.__new__(CSR)
    for name, value in zip(CSR.__slots__, (indptr, indices, data, shape, frame), strict=True):
        object.__setattr__(made, name, value)
    return made
