"""Means and variances of columns that can be merged exactly, whoever holds the rows.

Chan, Golub & LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations",
The American Statistician 37, 1983, equations 1.5: with delta = mean_b - mean_a,

    n    = n_a + n_b
    mean = mean_a + delta n_b / n
    m2   = m2_a + m2_b + delta^2 n_a n_b / n

The textbook's sum of squares minus squared sum loses every digit of a column whose mean is large beside its spread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np

from logistic.errors import NonFiniteError, ParameterError, ShapeError
from logistic.problem import Matrix, Vector

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
    mean : (n_features,) weighted means; 0 where n is 0.
    m2 : (n_features,) weighted sums of squares about the mean.

    Raises
    ------
    ShapeError
        If ``mean`` and ``m2`` are not vectors of one length.
    NonFiniteError
        If a number is NaN or infinite.
    ParameterError
        If ``n`` or a sum of squares is negative.
    """

    n: float
    mean: Vector
    m2: Vector

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.m2.shape:
            raise ShapeError(f"mean and m2 have shapes {self.mean.shape} and {self.m2.shape}; both are (n_features,)")
        if not (np.isfinite(self.n) and np.isfinite(self.mean).all() and np.isfinite(self.m2).all()):
            raise NonFiniteError("moments hold NaN or infinity; check the columns for overflow")
        if self.n < 0 or (self.m2 < 0).any():
            raise ParameterError("moments hold a negative weight or a negative sum of squares")

    @classmethod
    def zero(cls, d: int) -> "Moments":
        """Moments of no rows of ``d`` columns: merging with it changes nothing."""
        return cls(0.0, np.zeros(d), np.zeros(d))

    @classmethod
    def of(cls, X: Matrix, sample_weight: Vector | None = None) -> "Moments":
        """Moments of rows.

        Parameters
        ----------
        X : (n_rows, n_features)
        sample_weight : (n_rows,) non-negative, or None for 1 everywhere.

        Raises
        ------
        ShapeError
            If ``X`` is not a matrix or ``sample_weight`` does not have one number per row.
        NonFiniteError
            If a column holds a NaN or an infinity, or its squares overflow.
        """
        n_rows, n_features = _shape(X)
        s = np.ones(n_rows) if sample_weight is None else sample_weight
        if s.shape != (n_rows,):
            raise ShapeError(f"sample_weight has shape {s.shape}; X has {n_rows} rows")
        n = float(s.sum())
        if n == 0:
            return cls.zero(n_features)
        with np.errstate(over="ignore", invalid="ignore"):  # the constructor refuses what overflowed, in a sentence
            mean = s @ X / n
            centred = X - mean
            # Second pass: the mean of the differences is the first mean's rounding error.
            correction = s @ centred / n
            return cls(n, mean + correction, s @ (centred - correction) ** 2)

    def std(self) -> Vector:
        """Return the population standard deviation (ddof 0), (n_features,); 1 for a constant column or no rows."""
        if self.n == 0:
            return np.ones_like(self.mean)
        spread = np.sqrt(self.m2 / self.n)
        constant = spread <= CONSTANT_COLUMN_SHARE * np.abs(self.mean)
        return np.where(constant, 1.0, spread)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of ``a`` and ``b`` together, by Chan's formula.

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
    n = a.n + b.n
    with np.errstate(over="ignore"):
        delta = b.mean - a.mean
        return Moments(n, a.mean + delta * (b.n / n), a.m2 + b.m2 + delta**2 * (a.n * (b.n / n)))


def merge_all(moments: Iterable[Moments]) -> Moments:
    """Moments of everybody's rows together, merged from left to right.

    Raises
    ------
    ShapeError
        If there is nothing to merge, or the numbers of columns differ.
    """
    parts = list(moments)
    if not parts:
        raise ShapeError("no moments to merge, so the number of columns is unknown; start with Moments.zero(d)")
    return reduce(merge, parts)


def _shape(X: Matrix) -> tuple[int, int]:
    try:
        n_rows, n_features = X.shape
    except ValueError:
        raise ShapeError(f"X has shape {X.shape}; it must be (n_rows, n_features)") from None
    return n_rows, n_features
