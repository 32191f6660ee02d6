"""Log-loss, its gradient and its Hessian, stable at any margin.

Two layers. The ``*_sum`` functions are plain sums over rows, unregularised: sums over two sets of rows add
up to the sum over their union, which is all that a pooled fit needs. The regularised means F, g, H divide
such a sum by n and add the penalty, and the pull of a problem that has one (`logistic.problem.Pull`).

With t = 1 - 2 y (so +1 for the label 0, -1 for the label 1) a row's terms are

    logloss  = log(1 + exp(t z))
    residual = p - y = t sigmoid(t z)
    kappa    = p (1 - p) = e / (1 + e)^2,   e = exp(-|z|)

No term subtracts two nearly equal numbers and no exponential grows, so confident rows keep full relative precision.
These are the terms of two classes; those of more are in `logistic.softmax`, under the same names.

Every sum is one pass over the rows, and a pass may be a reading of a file: `loss_and_gradient_sum` and
`gradient_and_hessian_sum` make together what is wanted together. In the order of the rows and by the same operations,
so that their results are those of the functions for each.

A problem without rows, or with zero total weight, has an empty mean: its data term is 0, and F is the penalty alone.
"""

from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import TypeVar

import numpy as np

from logistic import softmax
from logistic.errors import ShapeError
from logistic.problem import Chunk, Matrix, Problem, Vector, penalised
from logistic.quadratic import majoriser
from logistic.rows import Features, in_blocks

T = TypeVar("T", float, Vector)


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over rows at one w, unregularised: of the log-losses, their gradients and their Hessians."""

    log_loss: float
    gradient: Vector
    hessian: Matrix

    def __add__(self, other: "Sums") -> "Sums":
        """Return the sums over both sets of rows."""
        return Sums(self.log_loss + other.log_loss, self.gradient + other.gradient, self.hessian + other.hessian)


def check_weights(problem: Problem, w: Vector) -> None:
    """Refuse weights that do not match the columns, also where there is no row to find out by.

    Raises
    ------
    ShapeError
        If ``w`` is not (n_parameters,).
    """
    if w.shape != (problem.n_parameters,):
        each = f" for each of {problem.n_classes} classes" if problem.n_outputs > 1 else ""
        raise ShapeError(
            f"weights have shape {w.shape}; {problem.n_features} columns and an intercept{each} "
            f"need ({problem.n_parameters},)"
        )


def margins(X: Features, w: Vector) -> Vector:
    """Log-odds of the label 1, for rows without an offset.

    z = X @ w[:-1] + w[-1]

    Parameters
    ----------
    X : (n_rows, n_features), dense or sparse
    w : (n_features + 1,) weights, intercept last.

    Returns
    -------
    (n_rows,) in nats.

    Raises
    ------
    ShapeError
        If ``w`` does not have one weight per column and an intercept.
    """
    if w.ndim != 1 or X.shape[1:] != (w.size - 1,):
        raise ShapeError(f"weights of shape {w.shape} do not fit rows of shape {X.shape} and an intercept")
    z: Vector = X @ w[:-1] + w[-1]
    return z


def chunk_margins(chunk: Chunk, w: Vector) -> Vector:
    """Log-odds of the label 1 for a chunk's rows, their offset included, shape (m,)."""
    z = margins(chunk.X, w)
    return z if chunk.offset is None else z + chunk.offset


def probabilities(X: Features, w: Vector) -> Vector:
    """Probability of the label 1, ``sigmoid(margins(X, w))``, shape (n_rows,)."""
    return sigmoid(margins(X, w))


def sigmoid(z: Vector) -> Vector:
    """1 / (1 + exp(-z)), without overflow on either side and with full relative precision near 0."""
    e = np.exp(-np.abs(z))
    p: Vector = np.where(z >= 0, 1.0, e) / (1.0 + e)
    return p


def curvature(z: Vector) -> Vector:
    """Second derivative of a row's log-loss in its margin, kappa = p (1 - p); at most 1/4."""
    e = np.exp(-np.abs(z))
    kappa: Vector = e / (1.0 + e) ** 2
    return kappa


def log_loss_sum(problem: Problem, w: Vector, *, chunk_rows: int | None = None) -> float:
    """Sum over rows of s_j logloss_j, in nats; 0.0 without rows."""
    check_weights(problem, w)
    of = _log_loss if problem.n_outputs == 1 else softmax.log_loss
    return sum(problem.over(partial(of, w=w), chunk_rows), 0.0)


def gradient_sum(problem: Problem, w: Vector, *, chunk_rows: int | None = None) -> Vector:
    """Sum over rows of s_j residual_j (x_j, 1), shape (n_parameters,)."""
    check_weights(problem, w)
    of = _gradient if problem.n_outputs == 1 else softmax.gradient
    return sum(problem.over(partial(of, w=w), chunk_rows), np.zeros(w.size))


def loss_and_gradient_sum(problem: Problem, w: Vector) -> tuple[float, Vector]:
    """Return ``log_loss_sum`` and ``gradient_sum`` in one pass over the rows."""
    check_weights(problem, w)
    log_loss, g = 0.0, np.zeros(w.size)
    for part_loss, part_g in problem.over(partial(chunk_loss_and_gradient, w=w)):
        log_loss, g = log_loss + part_loss, g + part_g
    return log_loss, g


def hessian_sum(problem: Problem, w: Vector, *, theta: float = 0.0, chunk_rows: int | None = None) -> Matrix:
    """Sum over rows of s_j kappa_j (x_j, 1) (x_j, 1)', shape (n_parameters, n_parameters), exactly symmetric.

    Memory is O(rows of a chunk or block times n_features + n_parameters^2), for each thread.

    Parameters
    ----------
    theta : from 0, the loss's own curvature, to 1, that of a quadratic which touches the loss at ``w`` and is above it
        everywhere: `logistic.quadratic.majoriser`, or Boehning's bound in `logistic.softmax`. A blend between.
    """
    check_weights(problem, w)
    of = partial(_hessian if problem.n_outputs == 1 else softmax.hessian, w=w, theta=theta)
    return sum(problem.over(partial(in_blocks, of), chunk_rows), np.zeros((w.size, w.size)))


def gradient_and_hessian_sum(problem: Problem, w: Vector, *, theta: float = 0.0) -> Sums:
    """Return ``log_loss_sum``, ``gradient_sum`` and ``hessian_sum`` in one pass over the rows.

    Of sparse rows the first two may differ in their last digits from those of a pass of their own: sums go by blocks.
    """
    check_weights(problem, w)
    of = partial(_sums if problem.n_outputs == 1 else _softmax_sums, w=w, theta=theta)
    return sum(problem.over(partial(in_blocks, of)), Sums(0.0, np.zeros(w.size), np.zeros((w.size, w.size))))


def hessian_vector_sum(problem: Problem, w: Vector, v: Vector, *, chunk_rows: int | None = None) -> Vector:
    """``hessian_sum(problem, w) @ v`` at the price of a gradient; no matrix is formed."""
    check_weights(problem, w)
    check_weights(problem, v)
    of = _hessian_vector if problem.n_outputs == 1 else softmax.hessian_vector
    return sum(problem.over(partial(of, w=w, v=v), chunk_rows), np.zeros(w.size))


def gram_vector_sum(problem: Problem, v: Vector) -> Vector:
    """Sum over rows of s_j (x_j, 1) (x_j, 1)' v: four times ``hessian_vector_sum`` where margins of two classes are 0.

    Parameters
    ----------
    v : (n_features + 1,) of any number of classes; labels and offsets play no part.
    """
    return sum(problem.over(partial(_gram_vector, v=v)), np.zeros(v.size))


def score_product_sum(problem: Problem, w: Vector, *, chunk_rows: int | None = None) -> Matrix:
    """Sum over rows of the outer products of their gradients, s_j^2 r_j r_j' (x) (x_j, 1)(x_j, 1)'; r the residuals.

    The meat of the sandwich: where the model is right its expectation is the Hessian's (White, Econometrica 50, 1982).
    """
    check_weights(problem, w)
    of = partial(_score_product if problem.n_outputs == 1 else _softmax_score_product, w=w)
    return sum(problem.over(partial(in_blocks, of), chunk_rows), np.zeros((w.size, w.size)))


def largest_squared_row(problem: Problem) -> float:
    """Return max_j (||x_j||^2 + 1), the 1 being the intercept's; 0.0 without rows."""
    return max(problem.over(_largest_squared_row), default=0.0)


def max_row_norm(problem: Problem) -> float:
    """Return max_j sqrt(||x_j||^2 + 1): how far a margin moves at most, per unit of its weights; 0.0 without rows."""
    return sqrt(largest_squared_row(problem))


def penalty(w: Vector, l2: float, n_outputs: int = 1) -> float:
    """(l2/2) ||slopes||^2 in nats per row.

    Parameters
    ----------
    w : (n_parameters,) weights of ``n_outputs`` margins (see `Problem.n_outputs`), each with its intercept last.
    """
    slopes = w[penalised(w.size // n_outputs - 1, n_outputs)]
    return l2 / 2 * float(slopes @ slopes)


def loss(problem: Problem, w: Vector) -> float:
    """F: the regularised mean log-loss.

    F = (1/n) sum_j s_j logloss_j  +  (l2/2) ||slopes||^2

    Parameters
    ----------
    w : (n_parameters,) weights, intercept last.

    Returns
    -------
    Nats per row. Without rows, the penalty alone.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    """
    return _loss_of(problem, log_loss_sum(problem, w), w)


def gradient(problem: Problem, w: Vector) -> Vector:
    """Gradient of F.

    g = (1/n) sum_j s_j residual_j (x_j, 1)  +  l2 (slopes, 0)

    Parameters
    ----------
    w : (n_parameters,) weights, intercept last.

    Returns
    -------
    (n_parameters,) in nats per row and unit of weight. Without rows, the penalty's alone.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    """
    return _gradient_of(problem, gradient_sum(problem, w), w)


def loss_and_gradient(problem: Problem, w: Vector) -> tuple[float, Vector]:
    """``loss`` and ``gradient``, in one pass over the rows.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    """
    log_loss, g = loss_and_gradient_sum(problem, w)
    return _loss_of(problem, log_loss, w), _gradient_of(problem, g, w)


def hessian(problem: Problem, w: Vector, *, theta: float = 0.0) -> Matrix:
    """Hessian of F, positive semi-definite.

    H = (1/n) sum_j s_j kappa_j (x_j, 1) (x_j, 1)'  +  l2 diag(1, ..., 1, 0)

    Of softmax it is singular also with l2 > 0, see `logistic.softmax.gauge`.

    Parameters
    ----------
    w : (n_parameters,) weights, intercept last.
    theta : from 0, Newton, to 1, an upper bound: F(w + d) <= F + g . d + d . H d / 2 for every d. See `hessian_sum`.

    Returns
    -------
    (n_parameters, n_parameters) in nats per row and squared unit of weight, exactly symmetric.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    """
    H = _mean(hessian_sum(problem, w, theta=theta), problem)
    slopes = problem.penalised
    H[slopes, slopes] += problem.l2
    if problem.pull is not None:
        H[np.diag_indices_from(H)] += problem.pull.proximal
    return H


def hessian_vector(problem: Problem, w: Vector, v: Vector) -> Vector:
    """``hessian(problem, w) @ v`` at the price of a gradient.

    Raises
    ------
    ShapeError
        If ``w`` or ``v`` does not match the columns of ``problem``.
    """
    Hv = _mean(hessian_vector_sum(problem, w, v), problem)
    slopes = problem.penalised
    Hv[slopes] += problem.l2 * v[slopes]
    return Hv if problem.pull is None else Hv + problem.pull.proximal * v


def chunk_loss_and_gradient(chunk: Chunk, w: Vector) -> tuple[float, Vector]:
    """Sums over a chunk's rows of s_j logloss_j, and of its gradient (n_parameters,), of two classes or more."""
    if w.size > chunk.X.shape[1] + 1:
        return softmax.loss_and_gradient(chunk, w)
    z = chunk_margins(chunk, w)
    return _log_loss_at(chunk, z), _gradient_at(chunk, z)


def _log_loss(chunk: Chunk, w: Vector) -> float:
    return _log_loss_at(chunk, chunk_margins(chunk, w))


def _gradient(chunk: Chunk, w: Vector) -> Vector:
    return _gradient_at(chunk, chunk_margins(chunk, w))


def _hessian(chunk: Chunk, w: Vector, theta: float) -> Matrix:
    return _hessian_at(chunk, chunk_margins(chunk, w), theta)


def _sums(chunk: Chunk, w: Vector, theta: float) -> Sums:
    z = chunk_margins(chunk, w)
    return Sums(_log_loss_at(chunk, z), _gradient_at(chunk, z), _hessian_at(chunk, z, theta))


def _softmax_sums(chunk: Chunk, w: Vector, theta: float) -> Sums:
    return Sums(*softmax.loss_and_gradient(chunk, w), softmax.hessian(chunk, w, theta))


def _log_loss_at(chunk: Chunk, z: Vector) -> float:
    return float(chunk.weighted(np.logaddexp(0.0, (1.0 - 2.0 * chunk.y) * z)).sum())


def _residuals_at(chunk: Chunk, z: Vector) -> Vector:
    t = 1.0 - 2.0 * chunk.y
    residual: Vector = t * sigmoid(t * z)
    return residual


def _gradient_at(chunk: Chunk, z: Vector) -> Vector:
    residual = chunk.weighted(_residuals_at(chunk, z))
    return np.append(residual @ chunk.X, residual.sum())


def _hessian_at(chunk: Chunk, z: Vector, theta: float) -> Matrix:
    kappa = curvature(z)
    if theta > 0:
        kappa = (1.0 - theta) * kappa + theta * majoriser(z)
    # A'A with the root of the weights in A: the BLAS computes it at half the price and exactly symmetric.
    root = np.sqrt(chunk.weighted(kappa))
    A = np.einsum("ij,i->ij", chunk.dense(), root)  # broadcasting begins anew in each row: slower
    n_features = A.shape[1]
    H = np.empty((n_features + 1, n_features + 1))
    H[:-1, :-1] = A.T @ A
    H[:-1, -1] = H[-1, :-1] = A.T @ root
    H[-1, -1] = root @ root
    return H


def _hessian_vector(chunk: Chunk, w: Vector, v: Vector) -> Vector:
    # Along v the margins change by v's own: the offset is where it is.
    change = chunk.weighted(curvature(chunk_margins(chunk, w))) * margins(chunk.X, v)
    return np.append(change @ chunk.X, change.sum())


def _gram_vector(chunk: Chunk, v: Vector) -> Vector:
    change = chunk.weighted(margins(chunk.X, v))
    return np.append(change @ chunk.X, change.sum())


def _score_product(chunk: Chunk, w: Vector) -> Matrix:
    return _outer_products(chunk, _residuals_at(chunk, chunk_margins(chunk, w)))


def _softmax_score_product(chunk: Chunk, w: Vector) -> Matrix:
    return _outer_products(chunk, softmax.residuals(chunk, w))


def _outer_products(chunk: Chunk, residuals: Vector) -> Matrix:
    r = chunk.weighted(residuals).reshape(len(chunk.y), -1, 1)
    rows = np.column_stack([chunk.dense(), np.ones(len(chunk.y))])
    A = (r * rows[:, np.newaxis, :]).reshape(len(chunk.y), -1)
    product: Matrix = A.T @ A
    return product


def _largest_squared_row(chunk: Chunk) -> float:
    return float((chunk.squared_row_norms() + 1.0).max(initial=0.0))  # of a chunk without rows, 0


def _loss_of(problem: Problem, log_loss: float, w: Vector) -> float:
    value = _mean(log_loss, problem) + penalty(w, problem.l2, problem.n_outputs)
    return value if problem.pull is None else value + problem.pull.value(w)


def _gradient_of(problem: Problem, total: Vector, w: Vector) -> Vector:
    g = _mean(total, problem)
    slopes = problem.penalised
    g[slopes] += problem.l2 * w[slopes]
    return g if problem.pull is None else g + problem.pull.gradient(w)


def _mean(total: T, problem: Problem) -> T:
    n = problem.n_samples
    return total / n if n > 0 else total  # the sum over nothing is 0, and so is its mean
