"""Log-loss, its gradient and its Hessian, stable at any margin.

Two layers. The ``*_sum`` functions are plain sums over rows, unregularised: sums over two sets of rows add
up to the sum over their union, which is all that a pooled fit needs. The regularised means F, g, H divide
such a sum by n and add the penalty.

With t = 1 - 2 y (so +1 for the label 0, -1 for the label 1) a row's terms are

    logloss  = log(1 + exp(t z))
    residual = p - y = t sigmoid(t z)
    kappa    = p (1 - p) = e / (1 + e)^2,   e = exp(-|z|)

No term subtracts two nearly equal numbers and no exponential grows, so confident rows keep full relative precision.

A problem without rows, or with zero total weight, has an empty mean: its data term is 0, and F is the penalty alone.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from logistic.errors import ShapeError
from logistic.problem import CHUNK_ROWS, Matrix, Problem, Vector

T = TypeVar("T", float, Vector)


def check_weights(problem: Problem, w: Vector) -> None:
    """Refuse weights that do not match the columns, also where there is no row to find out by.

    Raises
    ------
    ShapeError
        If ``w`` is not (n_parameters,).
    """
    if w.shape != (problem.n_parameters,):
        raise ShapeError(
            f"weights have shape {w.shape}; {problem.n_features} columns and an intercept "
            f"need ({problem.n_parameters},)"
        )


def margins(X: Matrix, w: Vector) -> Vector:
    """Log-odds of the label 1.

    z = X @ w[:-1] + w[-1]

    Parameters
    ----------
    X : (n_rows, n_features)
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


def probabilities(X: Matrix, w: Vector) -> Vector:
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


def log_loss_sum(problem: Problem, w: Vector, *, chunk_rows: int = CHUNK_ROWS) -> float:
    """Sum over rows of s_j log(1 + exp(t_j z_j)), in nats; 0.0 without rows."""
    check_weights(problem, w)
    total = 0.0
    for X, y, s in problem.chunks(chunk_rows):
        total += float(_weighted(np.logaddexp(0.0, (1.0 - 2.0 * y) * margins(X, w)), s).sum())
    return total


def gradient_sum(problem: Problem, w: Vector, *, chunk_rows: int = CHUNK_ROWS) -> Vector:
    """Sum over rows of s_j (p_j - y_j) (x_j, 1), shape (n_parameters,)."""
    check_weights(problem, w)
    g = np.zeros(problem.n_parameters)
    for X, y, s in problem.chunks(chunk_rows):
        t = 1.0 - 2.0 * y
        residual = _weighted(t * sigmoid(t * margins(X, w)), s)
        g[:-1] += X.T @ residual
        g[-1] += residual.sum()
    return g


def hessian_sum(
    problem: Problem,
    w: Vector,
    *,
    kappa: Callable[[Vector], Vector] = curvature,
    chunk_rows: int = CHUNK_ROWS,
) -> Matrix:
    """Sum over rows of s_j kappa_j (x_j, 1) (x_j, 1)', shape (n_parameters, n_parameters).

    ``kappa`` gives a row's curvature from its margin; another one than the loss's own makes another quadratic.

    A = sqrt(s kappa) X for a chunk of rows, then A'A: the BLAS computes such a product at half the price and exactly
    symmetric. Memory is O(chunk_rows n_features + n_parameters^2).
    """
    check_weights(problem, w)
    H = np.zeros((problem.n_parameters, problem.n_parameters))
    for X, _, s in problem.chunks(chunk_rows):
        root = np.sqrt(_weighted(kappa(margins(X, w)), s))
        A = X * root[:, np.newaxis]
        H[:-1, :-1] += A.T @ A
        H[:-1, -1] += A.T @ root
        H[-1, -1] += root @ root
    H[-1, :-1] = H[:-1, -1]
    return H


def hessian_vector_sum(problem: Problem, w: Vector, v: Vector, *, chunk_rows: int = CHUNK_ROWS) -> Vector:
    """``hessian_sum(problem, w) @ v`` at the price of a gradient; no matrix is formed."""
    check_weights(problem, w)
    check_weights(problem, v)
    Hv = np.zeros(problem.n_parameters)
    for X, _, s in problem.chunks(chunk_rows):
        change = _weighted(curvature(margins(X, w)), s) * margins(X, v)
        Hv[:-1] += X.T @ change
        Hv[-1] += change.sum()
    return Hv


def loss(problem: Problem, w: Vector) -> float:
    """F: the regularised mean log-loss.

    F = (1/n) sum_j s_j logloss_j  +  (l2/2) ||w[:-1]||^2

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
    slopes = w[:-1]
    return _mean(log_loss_sum(problem, w), problem) + problem.l2 / 2 * float(slopes @ slopes)


def gradient(problem: Problem, w: Vector) -> Vector:
    """Gradient of F.

    g = (1/n) sum_j s_j (p_j - y_j) (x_j, 1)  +  l2 (w[:-1], 0)

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
    g = _mean(gradient_sum(problem, w), problem)
    g[:-1] += problem.l2 * w[:-1]
    return g


def hessian(problem: Problem, w: Vector) -> Matrix:
    """Hessian of F, positive semi-definite.

    H = (1/n) sum_j s_j kappa_j (x_j, 1) (x_j, 1)'  +  l2 diag(1, ..., 1, 0)

    As kappa is largest at z = 0, the Hessian at w = 0 bounds the Hessian everywhere: H(w) <= H(0)
    (Boehning & Lindsay, Ann. Inst. Stat. Math. 40, 1988).

    Parameters
    ----------
    w : (n_parameters,) weights, intercept last.

    Returns
    -------
    (n_parameters, n_parameters) in nats per row and squared unit of weight, exactly symmetric.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    """
    H = _mean(hessian_sum(problem, w), problem)
    penalised = np.arange(problem.n_features)
    H[penalised, penalised] += problem.l2
    return H


def hessian_vector(problem: Problem, w: Vector, v: Vector) -> Vector:
    """``hessian(problem, w) @ v`` at the price of a gradient.

    Raises
    ------
    ShapeError
        If ``w`` or ``v`` does not match the columns of ``problem``.
    """
    Hv = _mean(hessian_vector_sum(problem, w, v), problem)
    Hv[:-1] += problem.l2 * v[:-1]
    return Hv


def _weighted(values: Vector, sample_weight: Vector | None) -> Vector:
    return values if sample_weight is None else values * sample_weight


def _mean(total: T, problem: Problem) -> T:
    n = problem.n_samples
    return total / n if n > 0 else total  # the sum over nothing is 0, and so is its mean
