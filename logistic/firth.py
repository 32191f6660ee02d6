"""Firth's penalised likelihood: finite estimates whatever the data, and a smaller bias than maximum likelihood.

    l*(w) = l(w) + 1/2 log det A(w),    A = sum over everybody's rows of s_j kappa_j x_j x_j'   (kappa = p (1 - p))

x_j includes the intercept's 1. The penalty is Jeffreys' prior. It is no sum over rows: a site's own A gives another,
wrong, penalty. But its derivative is one, once everybody knows the inverse B of the pooled A,

    dl*/dw = sum_j ( s_j (y_j - p_j) + h_j (1/2 - p_j) ) x_j,     h_j = s_j kappa_j x_j' B x_j

so a round is two trips to the sites: with w, from where A comes back; and with w and B, from where the score does. With
the B of the round before, one trip would do, but the weights then swing to and fro for hundreds of rounds (tried).

A sample weight counts rows: with s_j = 2 all is as if the row were there twice. That puts s_j inside h_j, once, since A
has it as well: h_j is the sum of the hat values of the two. All h_j sum to the number of parameters. R's logistf weighs
in this way.

The estimate does not depend on the scale of the columns: weights fitted on standardised rows are, brought back to the
original scale, those of the rows as they came.

Firth, "Bias reduction of maximum likelihood estimates", Biometrika 80, 1993; Heinze & Schemper, "A solution to the
problem of separation in logistic regression", Statistics in Medicine 21, 2002.
"""

from functools import partial

import numpy as np

from logistic.errors import IndefiniteError, ParameterError, ShapeError
from logistic.linear_system import SMALLEST_PIVOT_SHARE, solve_positive
from logistic.loss import check_weights, chunk_margins, curvature, sigmoid
from logistic.problem import Chunk, Matrix, Problem, Vector
from logistic.rows import in_blocks

# logistf's default, on whatever scale the columns have. On standardised ones it is far; it matters where A has all but
# vanished.
MAX_STEP = 5.0


def firth_gradient_sum(problem: Problem, w: Vector, B: Matrix, *, chunk_rows: int | None = None) -> Vector:
    """Gradient of -l* over these rows: sum of ( s_j (p_j - y_j) + h_j (p_j - 1/2) ) (x_j, 1).

    Minus the modified score of the module's docstring, with the sign of `logistic.loss.gradient_sum`.

    Parameters
    ----------
    w : (n_parameters,) weights, intercept last.
    B : (n_parameters, n_parameters) inverse of A, which is summed over everybody's rows: see `inverse_information`.

    Returns
    -------
    (n_parameters,) in nats per unit of weight; zeros without rows.

    Raises
    ------
    ShapeError
        If ``w`` or ``B`` does not match the columns of ``problem``.
    ParameterError
        If there are more than two classes.
    """
    if problem.n_outputs > 1:
        raise ParameterError(f"Firth's penalty is for two classes here; these rows have {problem.n_classes}")
    check_weights(problem, w)
    if B.shape != (w.size, w.size):
        raise ShapeError(f"the inverse of the information has shape {B.shape}; {w.size} weights need a square one")
    return sum(problem.over(partial(in_blocks, partial(_gradient, w=w, B=B)), chunk_rows), np.zeros(w.size))


def inverse_information(A: Matrix) -> Matrix:
    """B = A^-1 of the pooled information, for everybody's hat values.

    Parameters
    ----------
    A : (n_parameters, n_parameters) sum over everybody's rows of s_j kappa_j x_j x_j': ``hessian_sum``, without l2.

    Returns
    -------
    (n_parameters, n_parameters), exactly symmetric.

    Raises
    ------
    ShapeError
        If A is not square.
    IndefiniteError
        If A is singular: where columns are collinear or constant, Firth's penalty chooses no estimate either.
    """
    scale, factor = _factored(A)
    inverse_factor = np.linalg.solve(factor, np.diag(1.0 / scale))
    return inverse_factor.T @ inverse_factor


def penalised_log_likelihood(log_loss_sum: float, A: Matrix) -> float:
    """l* = l + 1/2 log det A, in nats: what Firth's estimate maximises, and what its likelihood-ratio tests compare.

    Both arguments are sums over everybody's rows at one w. The scale of the columns adds a constant to it.

    Raises
    ------
    ShapeError
        If A is not square.
    IndefiniteError
        If A is singular.
    """
    scale, factor = _factored(A)
    return float(np.log(scale).sum() + np.log(np.diag(factor)).sum()) - log_loss_sum


def firth_step(w: Vector, g: Vector, A: Matrix, max_step: float = MAX_STEP) -> Vector:
    """One step of Fisher scoring, w - A^-1 g, shortened until no component is longer than ``max_step``.

    A is l's information and leaves out how the penalty bends, so the steps get shorter by a factor, not quadratically:
    by 5 and 9 in the published examples (14 and 13 rounds to 1e-9), by 1.1 where 30 columns separate the outcome
    completely (182). A step may be too long: halve it while `penalised_log_likelihood` falls, as logistf does.

    Parameters
    ----------
    w : (n_parameters,) weights that the sums were taken at.
    g : (n_parameters,) sum over everybody of `firth_gradient_sum`.
    A : (n_parameters, n_parameters) sum over everybody of ``hessian_sum``, without l2.
    max_step : positive, in units of weight.

    Returns
    -------
    (n_parameters,) the next weights.

    Raises
    ------
    ShapeError
        If A does not fit g.
    IndefiniteError
        If A is not positive semi-definite.
    """
    step = solve_positive(A, -g)
    return w + step * (max_step / max(float(np.abs(step).max()), max_step))


def _gradient(chunk: Chunk, w: Vector, B: Matrix) -> Vector:
    z = chunk_margins(chunk, w)
    rows = np.column_stack([chunk.dense(), np.ones(len(z))])
    hat = chunk.weighted(curvature(z)) * np.einsum("ij,ij->i", rows @ B, rows)
    t = 1.0 - 2.0 * chunk.y
    residual = chunk.weighted(t * sigmoid(t * z)) + hat * np.tanh(z / 2.0) / 2.0  # tanh(z / 2) / 2 = p - 1/2
    g: Vector = rows.T @ residual
    return g


def _factored(A: Matrix) -> tuple[Vector, Matrix]:
    """D and the lower triangle L of A = D L L' D, D being the roots of A's diagonal."""
    if A.shape != (len(A), len(A)):
        raise ShapeError(f"the information has shape {A.shape}; it must be (n_parameters, n_parameters)")
    diagonal = np.diag(A)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    try:
        factor = np.linalg.cholesky(A / np.outer(scale, scale))
    except np.linalg.LinAlgError:
        factor = np.zeros_like(A)
    if not (np.diag(factor) ** 2 > SMALLEST_PIVOT_SHARE).all():
        raise IndefiniteError("the information is singular, so Firth's penalty has no value; drop collinear columns")
    return scale, factor
