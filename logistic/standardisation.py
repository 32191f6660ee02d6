"""A change of variables that puts columns on one scale, and the way back for the weights.

    z = (x - mean) / scale

A model on z and a model on x are the same model when z . w + b = x . w' + b', that is

    w' = w / scale,      b' = b - sum(w mean / scale)
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from logistic.errors import NonFiniteError, ParameterError, ShapeError
from logistic.moments import Moments
from logistic.problem import Matrix, Vector
from logistic.sparse import CSR

AnyRows = TypeVar("AnyRows", Matrix, CSR)


@dataclass(frozen=True, slots=True, eq=False)
class Standardisation:
    """Centre and scale of each column.

    Parameters
    ----------
    mean : (n_features,) subtracted.
    scale : (n_features,) divided by; positive.

    Raises
    ------
    ShapeError
        If the two are not vectors of one length.
    NonFiniteError
        If a number is NaN or infinite.
    ParameterError
        If a scale is not positive.
    """

    mean: Vector
    scale: Vector

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.scale.shape:
            raise ShapeError(
                f"mean and scale have shapes {self.mean.shape} and {self.scale.shape}; both are (n_features,)"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all()):
            raise NonFiniteError("the standardisation holds NaN or infinity; check the moments it came from")
        if (self.scale <= 0).any():
            raise ParameterError("a scale is not positive; give a constant column the scale 1")

    @classmethod
    def identity(cls, d: int) -> "Standardisation":
        """Leave ``d`` columns as they are."""
        return cls(np.zeros(d), np.ones(d))

    @classmethod
    def from_moments(cls, moments: Moments) -> "Standardisation":
        """Mean 0 and population std 1 over the rows behind ``moments``; a constant column is centred only."""
        return cls(moments.mean, moments.std())

    def apply(self, X: AnyRows) -> AnyRows:
        """Standardise rows: (n_rows, n_features) to the same shape, a new array; of sparse rows they stay sparse.

        Raises
        ------
        ShapeError
            If ``X`` does not have these columns.
        """
        if X.shape[1:] != self.mean.shape:
            raise ShapeError(f"rows of shape {X.shape} do not have the {self.mean.size} columns of the scale")
        if isinstance(X, CSR):
            return X.framed(self.mean, self.scale)
        Z: Matrix = (X - self.mean) / self.scale
        return Z

    def to_original(self, w: Vector) -> Vector:
        """Weights for standardised rows -> the same model's weights for the rows as they came.

        Parameters
        ----------
        w : (n_features + 1,) intercept last.

        Raises
        ------
        ShapeError
            If ``w`` does not have one weight per column and an intercept.
        """
        self._check(w)
        slopes = w[:-1] / self.scale
        return np.append(slopes, w[-1] - slopes @ self.mean)

    def to_standardised(self, w_original: Vector) -> Vector:
        """Undo ``to_original``: weights for the rows as they came -> weights for standardised rows.

        Raises
        ------
        ShapeError
            If ``w_original`` does not have one weight per column and an intercept.
        """
        self._check(w_original)
        slopes = w_original[:-1]
        return np.append(slopes * self.scale, w_original[-1] + slopes @ self.mean)

    def _check(self, w: Vector) -> None:
        if w.shape != (self.mean.size + 1,):
            raise ShapeError(f"weights have shape {w.shape}; {self.mean.size} columns need ({self.mean.size + 1},)")
