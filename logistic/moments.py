"""Means and variances of columns that can be merged exactly, whoever holds the rows.

Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations",
The American Statistician 37, 1983, equations 1.5: with delta = mean_b - mean_a,

    n    = n_a + n_b
    mean = mean_a + delta n_b / n
    m2   = m2_a + m2_b + delta^2 n_a n_b / n

The textbook's sum of squares minus squared sum loses every digit of a column whose mean is large beside its spread.

Where values are missing, each column has an n of its own in these formulas: the weight of the rows that have a value,
``observed``. Missing cells are then filled with the mean of all that were observed, anywhere. Filled cells lie at the
mean, so they change neither mean nor m2, and the standard deviation of the filled column is

    std = sqrt(m2 / n),     n = weight of all rows, filled ones included
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from numpy.typing import NDArray

from logistic.errors import NonFiniteError, ParameterError, ShapeError
from logistic.problem import Chunk, Matrix, Vector
from logistic.rows import Features, Rows
from logistic.sparse import CSR, column_sums

# A column counts as constant when its std is below this share of its mean. Means and centred squares computed as
# here err by a few 1e-16 of the mean, merges included, so a constant column stays well below; a column that really
# varies by less has under four digits of variation left in float64, and dividing by it would amplify rounding.
CONSTANT_COLUMN_SHARE = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Weight, mean and centred sum of squares of each column.

    Parameters
    ----------
    n : sum of the sample weights.
    mean : (n_features,) weighted means of the values that there are; 0 where there are none.
    m2 : (n_features,) weighted sums of squares about the mean.
    observed : (n_features,) sums of the weights of the rows that have a value, or None for n everywhere.

    Raises
    ------
    ShapeError
        If ``mean``, ``m2`` and ``observed`` are not vectors of one length.
    NonFiniteError
        If a number is NaN or infinite.
    ParameterError
        If ``n`` or a sum of squares is negative, ``observed`` is not between 0 and n, or a column of which nothing
        was observed has a mean or a sum of squares.
    """

    n: float
    mean: Vector
    m2: Vector
    observed: Vector | None = None

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.m2.shape:
            raise ShapeError(f"mean and m2 have shapes {self.mean.shape} and {self.m2.shape}; both are (n_features,)")
        if not (np.isfinite(self.n) and np.isfinite(self.mean).all() and np.isfinite(self.m2).all()):
            raise NonFiniteError("moments hold NaN or infinity; check the columns for overflow")
        if self.n < 0 or (self.m2 < 0).any():
            raise ParameterError("moments hold a negative weight or a negative sum of squares")
        if self.observed is not None:
            self._check_observed(self.observed)

    def _check_observed(self, observed: Vector) -> None:
        if observed.shape != self.mean.shape:
            raise ShapeError(f"observed has shape {observed.shape}; there are {self.mean.size} columns")
        if not ((observed >= 0) & (observed <= self.n)).all():  # NaN is neither
            raise ParameterError("the observed weight of a column is not between 0 and the weight of all rows")
        if ((observed == 0) & ((self.mean != 0) | (self.m2 != 0))).any():
            raise ParameterError("a column of which nothing was observed has a mean or a sum of squares")

    @classmethod
    def zero(cls, d: int) -> "Moments":
        """Moments of no rows of ``d`` columns: merging with it changes nothing."""
        return cls(0.0, np.zeros(d), np.zeros(d))

    @classmethod
    def of(cls, X: Features, sample_weight: Vector | None = None, *, allow_missing: bool = False) -> "Moments":
        """Moments of rows.

        Parameters
        ----------
        X : (n_rows, n_features), dense; or sparse, where it takes time in proportion to the entries.
        sample_weight : (n_rows,) non-negative, or None for 1 everywhere.
        allow_missing : take NaN as a value that is missing.

        Raises
        ------
        ShapeError
            If ``X`` is not a matrix or ``sample_weight`` does not have one number per row.
        NonFiniteError
            If a column holds an infinity, or a NaN that is not allowed, or its squares overflow.
        ParameterError
            If sparse rows are standardised already.
        """
        n_rows, n_features = _shape(X)
        s = np.ones(n_rows) if sample_weight is None else sample_weight
        if s.shape != (n_rows,):
            raise ShapeError(f"sample_weight has shape {s.shape}; X has {n_rows} rows")
        n = float(s.sum())
        if n == 0:
            return cls.zero(n_features)
        missing = np.isnan(X.data if isinstance(X, CSR) else X)
        if missing.any() and not allow_missing:
            raise NonFiniteError("a column holds NaN; fill it, or allow missing values")
        if isinstance(X, CSR):
            return cls._of_entries(X, s, n, missing)
        return cls._of_cells(X, s, n, missing if missing.any() else None)

    @classmethod
    def _of_cells(cls, X: Matrix, s: Vector, n: float, missing: NDArray[np.bool_] | None) -> "Moments":
        def known(cells: Matrix) -> Matrix:
            return cells if missing is None else np.where(missing, 0.0, cells)

        # At most n: the two sums may round differently.
        observed = None if missing is None else np.minimum(s @ ~missing, n)
        total = n if observed is None else _divisor(observed)
        with np.errstate(over="ignore", invalid="ignore"):  # the constructor refuses what overflowed, in a sentence
            mean = s @ known(X) / total
            centred = known(X - mean)
            # Second pass: the mean of the differences is the first mean's rounding error.
            correction = s @ centred / total
            return cls(n, mean + correction, s @ known(centred - correction) ** 2, observed)

    @classmethod
    def _of_entries(cls, X: CSR, s: Vector, n: float, missing: NDArray[np.bool_]) -> "Moments":
        """Two passes over the entries, as over cells; the zeros between them enter by the weight that they have."""
        if X.frame is not None:
            raise ParameterError("these rows are standardised already; take the moments of rows as they came")
        weight = np.repeat(s, X.counts)
        known = np.where(missing, 0.0, weight)
        value = np.where(missing, 0.0, X.data)
        zeros = _weight_of_zeros(X, s, n, weight)
        observed = np.minimum(column_sums(X, known) + zeros, n) if missing.any() else None
        total = n if observed is None else _divisor(observed)
        with np.errstate(over="ignore", invalid="ignore"):  # the constructor refuses what overflowed, in a sentence
            mean = column_sums(X, known * value) / total
            correction = (column_sums(X, known * (value - mean[X.indices])) - zeros * mean) / total
            mean = mean + correction
            m2 = column_sums(X, known * (value - mean[X.indices]) ** 2) + zeros * mean**2
            return cls(n, mean, m2, observed)

    @property
    def n_observed(self) -> Vector:
        """``observed``, written out where it is n everywhere: (n_features,)."""
        return np.full(self.mean.shape, self.n) if self.observed is None else self.observed

    def std(self) -> Vector:
        """Return the population standard deviation (ddof 0) once missing cells are filled with the mean, (n_features,).

        It is 1 for a constant column, one without values, and without rows.
        """
        if self.n == 0:
            return np.ones_like(self.mean)
        # Of the values that were observed: filled cells say nothing about whether a column varies.
        spread = np.sqrt(self.m2 / _divisor(self.n_observed))
        constant = spread <= CONSTANT_COLUMN_SHARE * np.abs(self.mean)
        filled = np.sqrt(self.m2 / self.n)
        return np.where(constant | (filled == 0), 1.0, filled)  # 0 by underflow, where m2 is the smallest of numbers


def moments_of_blocks(
    blocks: Iterable[tuple[Features, Vector | None]], *, n_features: int, allow_missing: bool = False
) -> Moments:
    """Moments of all rows of ``blocks``, each of X and its sample weights or None, read one after the other.

    Parameters
    ----------
    n_features : columns of each, and of none.
    allow_missing : take NaN as a value that is missing.
    """
    parts = (Moments.of(X, s, allow_missing=allow_missing) for X, s in blocks)
    return reduce(merge, parts, Moments.zero(n_features))


def moments_of_rows(rows: Rows, *, allow_missing: bool = False) -> Moments:
    """Moments of rows of any kind, as they came, in one pass.

    Parameters
    ----------
    allow_missing : take NaN as a value that is missing: these rows need not be fit for a `Problem`.
    """
    parts = rows.over(partial(_moments, allow_missing=allow_missing))
    return reduce(merge, parts, Moments.zero(rows.n_features))


def _moments(chunk: Chunk, allow_missing: bool) -> Moments:
    return Moments.of(chunk.X, chunk.sample_weight, allow_missing=allow_missing)


def _weight_of_zeros(X: CSR, s: Vector, n: float, weight: Vector) -> Vector:
    """Return the weight of the rows without an entry in each column, (n_features,).

    Exactly 0 where there is no such row: as the difference of two sums it would be rounding, and n - 0 rows of it.
    """
    without = np.count_nonzero(s) > column_sums(X, (weight > 0).astype(np.float64))
    return np.where(without, np.maximum(n - column_sums(X, weight), 0.0), 0.0)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of ``a`` and ``b`` together, by Chan's formula in each column.

    Raises
    ------
    ShapeError
        If the two do not have the same number of columns.
    NonFiniteError
        If the squared distance of the means overflows.
    """
    if a.mean.shape != b.mean.shape:
        raise ShapeError(f"moments of {a.mean.size} and of {b.mean.size} columns cannot be merged")
    if b.n == 0:
        return a
    if a.n == 0:
        return b
    n_a, n_b = a.n_observed, b.n_observed
    share = n_b / _divisor(n_a + n_b)
    with np.errstate(over="ignore"):
        # Where one side has no value, the other's mean stands for both: the distance is 0.
        mean = np.where(n_a > 0, a.mean, b.mean)
        delta = np.where(n_b > 0, b.mean, mean) - mean
        complete = a.observed is None and b.observed is None
        return Moments(
            a.n + b.n,
            mean + delta * share,
            a.m2 + b.m2 + delta**2 * (n_a * share),
            None if complete else n_a + n_b,
        )


def _divisor(weights: Vector) -> Vector:
    """Return ``weights`` with 1 for 0: what is divided by it is 0 there, and stays so."""
    return np.where(weights > 0, weights, 1.0)


def merge_all(moments: Iterable[Moments]) -> Moments:
    """Moments of everybody's rows together, merged from left to right.

    Raises
    ------
    ShapeError
        If there is nothing to merge, or the numbers of columns differ.
    """
    parts = iter(moments)
    first = next(parts, None)
    if first is None:
        raise ShapeError("no moments to merge, so the number of columns is unknown; start with Moments.zero(d)")
    return reduce(merge, parts, first)


def _shape(X: Features) -> tuple[int, int]:
    try:
        n_rows, n_features = X.shape
    except ValueError:
        raise ShapeError(f"X has shape {X.shape}; it must be (n_rows, n_features)") from None
    return n_rows, n_features
