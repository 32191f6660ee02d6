"""The data of a logistic regression, and the one objective that everything here minimises.

    F(w) = (1/n) sum_j s_j * logloss(y_j, x_j . w[:-1] + w[-1])  +  (l2/2) ||w[:-1]||^2

The letters, defined once for the package:

X   (n_rows, n_features) rows; no column of ones, the intercept is added by the formulas
y   (n_rows,) labels, 0.0 or 1.0
s   (n_rows,) sample weights, 1 for every row when not given
n   sum of the sample weights
w   (n_parameters,) weights, intercept LAST, never penalised
g   gradient of F, shaped like w
H   Hessian of F, (n_parameters, n_parameters)
z   (n_rows,) margins, X @ w[:-1] + w[-1]
p   (n_rows,) probabilities, sigmoid(z)

Rows are read in chunks only (`Problem.chunks`), so whatever can hand out chunks can stand in for them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from logistic.errors import LabelError, NonFiniteError, ParameterError, ShapeError

Vector: TypeAlias = NDArray[np.float64]
Matrix: TypeAlias = NDArray[np.float64]

# Rows per chunk: 3 MB at 100 columns, about a core's cache; 49 MB at 1500, the widest Hessian we expect.
CHUNK_ROWS = 4096


class Chunk(NamedTuple):
    """A few consecutive rows: ``X`` (m, n_features), ``y`` (m,), ``sample_weight`` (m,) or None."""

    X: Matrix
    y: Vector
    sample_weight: Vector | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Problem:
    """Rows, labels, weights and a penalty: everything that F depends on except w.

    Zero rows, a single class, constant columns and zero columns are all allowed: sums do not mind.

    Parameters
    ----------
    X : (n_rows, n_features) float64, without an intercept column.
    y : (n_rows,) labels, 0.0 or 1.0.
    sample_weight : (n_rows,) non-negative, or None for 1 everywhere.
    l2 : non-negative, per row: scikit-learn's ``C`` is ``1 / (l2 * n_samples)``.

    Raises
    ------
    ShapeError
        If ``X`` is not a matrix, or ``y`` or ``sample_weight`` does not have one number per row.
    NonFiniteError
        If an array holds a NaN or an infinity.
    LabelError
        If a label is neither 0 nor 1.
    ParameterError
        If a sample weight is negative, or ``l2`` is negative or not finite.
    """

    X: Matrix
    y: Vector
    sample_weight: Vector | None = None
    l2: float = 0.0

    def __post_init__(self) -> None:
        # asarray copies nothing that is float64 already; integers and booleans become float64 once, here.
        object.__setattr__(self, "X", np.asarray(self.X, dtype=np.float64))
        object.__setattr__(self, "y", np.asarray(self.y, dtype=np.float64))
        if self.sample_weight is not None:
            object.__setattr__(self, "sample_weight", np.asarray(self.sample_weight, dtype=np.float64))
        self._check_rows()
        self._check_sample_weight()
        if not (np.isfinite(self.l2) and self.l2 >= 0):
            raise ParameterError(f"l2 is {self.l2}; it must be a finite number, 0 or more")

    def _check_rows(self) -> None:
        n_dimensions = len(("rows", "columns"))
        if self.X.ndim != n_dimensions:
            raise ShapeError(f"X has shape {self.X.shape}; it must be (n_rows, n_features)")
        if self.y.shape != (self.n_rows,):
            raise ShapeError(f"y has shape {self.y.shape}; X has {self.n_rows} rows, so ({self.n_rows},) fits")
        if not np.isfinite(self.X).all():
            columns = np.flatnonzero(~np.isfinite(self.X).all(axis=0)).tolist()
            raise NonFiniteError(f"X holds NaN or infinity in columns {columns}; drop or impute those rows")
        if not np.isin(self.y, (0.0, 1.0)).all():
            raise LabelError("y holds labels other than 0 and 1; recode the outcome first")

    def _check_sample_weight(self) -> None:
        s = self.sample_weight
        if s is None:
            return
        if s.shape != (self.n_rows,):
            raise ShapeError(f"sample_weight has shape {s.shape}; X has {self.n_rows} rows")
        if not np.isfinite(s).all():
            raise NonFiniteError("sample_weight holds NaN or infinity; every row needs a finite weight")
        if (s < 0).any():
            raise ParameterError("sample_weight holds a negative number; use 0 to leave a row out")

    # The generated text would print rows and labels, and texts end up in logs.
    def __repr__(self) -> str:
        return f"Problem(n_rows={self.n_rows}, n_features={self.n_features}, l2={self.l2})"

    @property
    def n_rows(self) -> int:
        """Number of rows, whatever their weights."""
        return len(self.X)

    @property
    def n_features(self) -> int:
        """Number of columns of ``X``."""
        return int(self.X.shape[1])

    @property
    def n_parameters(self) -> int:
        """Length of w: one weight per column, and the intercept."""
        return self.n_features + 1

    @property
    def n_samples(self) -> float:
        """Sum of the sample weights: n in F."""
        return float(self.n_rows if self.sample_weight is None else self.sample_weight.sum())

    def chunks(self, chunk_rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """All rows in order, at most ``chunk_rows`` at a time; views, not copies; none if there are no rows."""
        for start in range(0, self.n_rows, chunk_rows):
            rows = slice(start, start + chunk_rows)
            s = None if self.sample_weight is None else self.sample_weight[rows]
            yield Chunk(self.X[rows], self.y[rows], s)

    def take(self, rows: NDArray[np.intp]) -> "Problem":
        """Return the problem of these rows alone, copied, with the same l2: a mini-batch."""
        s = None if self.sample_weight is None else self.sample_weight[rows]
        return Problem(self.X[rows], self.y[rows], s, self.l2)
