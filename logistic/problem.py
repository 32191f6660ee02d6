"""The data of a logistic regression, and the one objective that everything here minimises.

    F(w) = (1/n) sum_j s_j * logloss(y_j, z_j)  +  (l2/2) ||slopes||^2

A site's local fit may add a pull to it (`Pull`); the objective of a federation has none.

The letters, defined once for the package:

X   (n_rows, n_features) rows; no column of ones, the intercept is added by the formulas
y   (n_rows,) labels, 0.0 or 1.0; of more classes 0.0, 1.0, ... n_classes - 1
s   (n_rows,) sample weights, 1 for every row when not given
o   (n_rows,) offsets, the known part of the margins; 0 for every row when not given
n   sum of the sample weights
w   (n_parameters,) weights, slopes first and the intercept LAST, which is never penalised
g   gradient of F, shaped like w
H   Hessian of F, (n_parameters, n_parameters)
z   (n_rows,) margins, X @ w[:-1] + w[-1] + o
p   (n_rows,) probabilities, sigmoid(z)

Two classes share one margin. More than two have one each, and w holds their weights one class after another, each
with its intercept last: the rows of ``w.reshape(n_classes, n_features + 1)``. See `logistic.softmax`.

Rows are looked at in chunks only (`Problem.over`), so whatever can go over chunks can stand in for arrays: see
`logistic.rows`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from logistic.arrays import Matrix, Vector
from logistic.errors import LabelError, NonFiniteError, NotInMemoryError, ParameterError, ShapeError
from logistic.rows import CHUNK_ROWS, Chunk, Rows, WithoutOffset, over_chunks, part, row_cuts
from logistic.sparse import CSR

__all__ = ["CHUNK_ROWS", "TWO_CLASSES", "Chunk", "Matrix", "Problem", "Pull", "Vector", "penalised"]

T = TypeVar("T")

TWO_CLASSES = 2  # they share one margin; more have one each


@dataclass(frozen=True, slots=True, eq=False)
class Pull:
    """What may be added to F to hold w back, or to lead it elsewhere: (mu/2) ||w - a||^2 + c . w.

    Parameters
    ----------
    anchor : a, (n_parameters,); of more than two classes its sum over them is zero, as that of all weights here.
    proximal : mu, non-negative; the intercepts are held back too.
    tilt : c, (n_parameters,) or None for zero; of more than two classes its sum is zero, as that of gradients.

    Raises
    ------
    ParameterError
        If ``proximal`` is negative or not finite.
    """

    anchor: Vector
    proximal: float = 0.0
    tilt: Vector | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.proximal) and self.proximal >= 0):
            raise ParameterError(f"proximal is {self.proximal}; it must be a finite number, 0 or more")

    def value(self, w: Vector) -> float:
        """Return (mu/2) ||w - a||^2 + c . w, in nats per row."""
        away = w - self.anchor
        return self.proximal / 2 * float(away @ away) + (0.0 if self.tilt is None else float(self.tilt @ w))

    def gradient(self, w: Vector) -> Vector:
        """Return mu (w - a) + c, (n_parameters,)."""
        back: Vector = self.proximal * (w - self.anchor)
        return back if self.tilt is None else back + self.tilt


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Problem:
    """Rows, labels, weights and a penalty: everything that F depends on except w.

    Zero rows, a single class, constant columns and zero columns are all allowed: sums do not mind.

    Parameters
    ----------
    X : (n_rows, n_features) float64, an array or sparse (`logistic.sparse.CSR`), without an intercept column. Or
        rows of any other kind, which have their labels, sample weights and offsets themselves (`logistic.rows.Rows`).
    y : (n_rows,) labels, whole numbers from 0.0 to n_classes - 1.
    sample_weight : (n_rows,) non-negative, or None for 1 everywhere.
    l2 : non-negative, per row: scikit-learn's ``C`` is ``1 / (l2 * n_samples)``.
    offset : (n_rows,) added to the margins as it is, or None for 0 everywhere. Only with two classes: of more, nobody
        could say whose margin is meant.
    n_classes : 2, or more for softmax; also of classes that none of these rows has.
    pull : what is added to F, or None.
    threads : that go over the chunks of rows in memory; rows of another kind see to it themselves. The sums do not
        depend on it.

    Raises
    ------
    ShapeError
        If ``X`` is not a matrix, or ``y``, ``sample_weight`` or ``offset`` does not have one number per row.
    NonFiniteError
        If an array holds a NaN or an infinity.
    LabelError
        If a label is none of the classes.
    ParameterError
        If a sample weight is negative, ``l2`` is negative or not finite, there are fewer than two classes, there is
        an offset with more than two, rows that have labels themselves are given others, or there is no thread.
    """

    X: Matrix | CSR | Rows
    y: Vector | None = None
    sample_weight: Vector | None = None
    l2: float = 0.0
    offset: Vector | None = field(default=None, kw_only=True)
    n_classes: int = field(default=TWO_CLASSES, kw_only=True)
    pull: Pull | None = field(default=None, kw_only=True)
    threads: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if hasattr(self.X, "over"):
            if not (self.y is None and self.sample_weight is None and self.offset is None):
                raise ParameterError("these rows have labels, sample weights and offsets themselves; give no others")
            self._check_numbers()
            return
        # asarray copies nothing that is float64 already; integers and booleans become float64 once, here.
        for name in ("X", "y", "sample_weight", "offset"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, CSR)):
                object.__setattr__(self, name, np.asarray(value, dtype=np.float64))
        self._check_numbers()
        self._check_rows()
        self._check_column("sample_weight", self.sample_weight)
        self._check_column("offset", self.offset)
        if self.sample_weight is not None and (self.sample_weight < 0).any():
            raise ParameterError("sample_weight holds a negative number; use 0 to leave a row out")

    def _check_numbers(self) -> None:
        if not (np.isfinite(self.l2) and self.l2 >= 0):
            raise ParameterError(f"l2 is {self.l2}; it must be a finite number, 0 or more")
        if self.n_classes < TWO_CLASSES:
            raise ParameterError(f"n_classes is {self.n_classes}; it must be 2 or more, also where a site has fewer")
        if self.offset is not None and self.n_classes > TWO_CLASSES:
            raise ParameterError(f"an offset moves the one margin of two classes; {self.n_classes} have one each")
        if self.threads < 1:
            raise ParameterError(f"threads is {self.threads}; it must be 1 or more")

    def _check_rows(self) -> None:
        X, y = self._arrays
        n_dimensions = len(("rows", "columns"))
        if len(X.shape) != n_dimensions:
            raise ShapeError(f"X has shape {X.shape}; it must be (n_rows, n_features)")
        if y.shape != (self.n_rows,):
            raise ShapeError(f"y has shape {y.shape}; X has {self.n_rows} rows, so ({self.n_rows},) fits")
        if columns := _not_finite(X):
            raise NonFiniteError(f"X holds NaN or infinity in columns {columns}; drop or impute those rows")
        if not np.isin(y, np.arange(self.n_classes)).all():
            known = "0 and 1" if self.n_classes == TWO_CLASSES else f"0 to {self.n_classes - 1}"
            raise LabelError(f"y holds labels other than {known}; recode the outcome first")

    def _check_column(self, name: str, values: Vector | None) -> None:
        if values is None:
            return
        if values.shape != (self.n_rows,):
            raise ShapeError(f"{name} has shape {values.shape}; X has {self.n_rows} rows")
        if not np.isfinite(values).all():
            raise NonFiniteError(f"{name} holds NaN or infinity; every row needs a finite one")

    # The generated text would print rows and labels, and texts end up in logs.
    def __repr__(self) -> str:
        return f"Problem(n_rows={self.n_rows}, n_features={self.n_features}, n_classes={self.n_classes}, l2={self.l2})"

    @property
    def in_memory(self) -> bool:
        """Whether the rows are arrays, dense or sparse: only then can some of them be taken (`take`)."""
        return isinstance(self.X, np.ndarray | CSR)

    @property
    def n_rows(self) -> int:
        """Number of rows, whatever their weights."""
        return len(self.X) if isinstance(self.X, np.ndarray | CSR) else self.X.n_rows

    @property
    def n_features(self) -> int:
        """Number of columns of ``X``."""
        return int(self.X.shape[1]) if isinstance(self.X, np.ndarray | CSR) else self.X.n_features

    @property
    def n_outputs(self) -> int:
        """Number of margins of a row: 1 of two classes, ``n_classes`` of more."""
        return 1 if self.n_classes == TWO_CLASSES else self.n_classes

    @property
    def n_parameters(self) -> int:
        """Length of w: one weight per column, and the intercept, for each margin."""
        return self.n_outputs * (self.n_features + 1)

    @property
    def penalised(self) -> NDArray[np.bool_]:
        """Which of the weights are slopes, (n_parameters,)."""
        return penalised(self.n_features, self.n_outputs)

    @property
    def n_samples(self) -> float:
        """Sum of the sample weights: n in F."""
        if not isinstance(self.X, np.ndarray | CSR):
            return self.X.n_samples
        return float(self.n_rows if self.sample_weight is None else self.sample_weight.sum())

    @property
    def is_weighted(self) -> bool:
        """Whether the rows have sample weights; rows of another kind than arrays are asked for their first chunk."""
        return next(self.over(_is_weighted), False) if self.y is None else self.sample_weight is not None

    @property
    def has_offset(self) -> bool:
        """Whether the rows have offsets; rows of another kind than arrays are asked for their first chunk."""
        return next(self.over(_has_offset), False) if self.y is None else self.offset is not None

    def over(self, function: Callable[[Chunk], T], chunk_rows: int | None = None) -> Iterator[T]:
        """Yield the function of each chunk of the rows, in order: what every sum is made of.

        Parameters
        ----------
        function : can be pickled; what it returns is small beside the rows. See `logistic.rows.Rows.over`.
        chunk_rows : as in `chunks`; rows of another kind than arrays come in chunks of their own choice.
        """
        if isinstance(self.X, np.ndarray | CSR):
            return over_chunks(self.chunks(chunk_rows), function, self.threads)
        return self.X.over(function)

    def chunks(self, chunk_rows: int | None = None) -> Iterator[Chunk]:
        """All rows of arrays in order, in chunks that are views, not copies; none if there are no rows.

        Parameters
        ----------
        chunk_rows : at most so many rows in each; None for what suits the arrays, see `logistic.rows.row_cuts`.

        Raises
        ------
        NotInMemoryError
            If the rows are not arrays.
        """
        X, y = self._arrays
        for start, stop in row_cuts(X, chunk_rows):
            rows = slice(start, stop)
            yield Chunk(X[rows], y[rows], part(self.sample_weight, rows), part(self.offset, rows))

    def take(self, rows: NDArray[np.intp]) -> "Problem":
        """Return the problem of these rows alone, copied, with all else as it is: a mini-batch, or a fold.

        Raises
        ------
        NotInMemoryError
            If the rows are not arrays.
        """
        X, y = self._arrays
        sample_weight, offset = (None if of is None else of[rows] for of in (self.sample_weight, self.offset))
        return replace(self, X=X[rows], y=y[rows], sample_weight=sample_weight, offset=offset)

    def without_offset(self) -> "Problem":
        """Return the same problem with all offsets at zero."""
        if isinstance(self.X, np.ndarray | CSR):
            return replace(self, offset=None)
        return replace(self, X=WithoutOffset(self.X))

    @property
    def _arrays(self) -> tuple[Matrix | CSR, Vector]:
        if not isinstance(self.X, np.ndarray | CSR):
            raise NotInMemoryError("these rows come in chunks; mini-batches and folds need rows in memory")
        if self.y is None:
            raise ShapeError(f"y is missing; X has {self.n_rows} rows, so ({self.n_rows},) fits")
        return self.X, self.y


def penalised(n_features: int, n_outputs: int = 1) -> NDArray[np.bool_]:
    """Which of the weights are slopes and so penalised, (n_outputs (n_features + 1),): all but the intercepts.

    Parameters
    ----------
    n_outputs : margins of a row, see `Problem.n_outputs`.
    """
    last: NDArray[np.bool_] = np.arange(n_outputs * (n_features + 1)) % (n_features + 1) < n_features
    return last


def _not_finite(X: Matrix | CSR) -> list[int]:
    """Return the columns that hold a NaN or an infinity."""
    finite = np.isfinite(X.data if isinstance(X, CSR) else X)
    if finite.all():
        return []
    columns = np.unique(X.indices[~finite]) if isinstance(X, CSR) else np.flatnonzero(~finite.all(axis=0))
    return [int(column) for column in columns]


def _is_weighted(chunk: Chunk) -> bool:
    return chunk.sample_weight is not None


def _has_offset(chunk: Chunk) -> bool:
    return chunk.offset is not None
