"""How far to go along a direction, once a solver has chosen one.

Two searches, both on F along w + t d with slope(t) = g(w + t d) . d and slope(0) < 0:

    backtracking   t = 1, 1/2, 1/4, ... until   F(t) <= F(0) + c1 t slope(0)                  (Armijo)
    wolfe          bisection and doubling until  Armijo, and  slope(t) >= c2 slope(0)          (curvature)

Nocedal & Wright, "Numerical Optimization", 2nd ed. 2006, section 3.1; the bisection is Lewis & Overton,
"Nonsmooth optimization via quasi-Newton methods", Math. Program. 141, 2013, algorithm 2.6.

Close to the optimum F changes by less than its own rounding error, and Armijo rejects perfect steps: F is flat to 1e-16
where the gradient still has eight digits to go. There the gradient decides instead (Hager & Zhang,
SIAM J. Optim. 16, 2005, section 2).
"""

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from logistic.loss import loss_and_gradient
from logistic.problem import Problem, Vector

SUFFICIENT_DECREASE = 1e-4  # c1, Nocedal & Wright p. 33
CURVATURE = 0.9  # c2, Nocedal & Wright p. 34, for quasi-Newton directions
MAX_HALVINGS = 30  # down to a step of 1e-9 of the direction
MAX_TRIALS = 60  # 30 doublings or halvings to find a bracket, and as many to bisect it to 1e-9 of its width

# Relative changes of F below this are rounding: a mean of n terms errs by a few 1e-16 times the margins.
LOSS_ROUNDING = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Weights and what F says about them; the whole state of a solver without memory.

    Parameters
    ----------
    w : (n_parameters,) intercept last.
    loss : F at ``w``.
    gradient : (n_parameters,) of F at ``w``.
    """

    w: Vector
    loss: float
    gradient: Vector

    @classmethod
    def at(cls, problem: Problem, w: Vector) -> "Point":
        """Evaluate F and its gradient at ``w``."""
        return cls(w, *loss_and_gradient(problem, w))


def backtracking(problem: Problem, start: Point, direction: Vector) -> Point | None:
    """Halve the step until F decreases enough.

    Parameters
    ----------
    direction : (n_parameters,) the whole step, for t = 1.

    Returns
    -------
    The point reached; None when ``direction`` does not lead down or ``MAX_HALVINGS`` were not enough.
    """
    slope = float(start.gradient @ direction)
    if not slope < 0:  # NaN included
        return None
    for halvings in range(MAX_HALVINGS + 1):
        t = 0.5**halvings
        trial = _trial(problem, start, t, direction)
        flatter = np.abs(trial.gradient).max() < np.abs(start.gradient).max()
        if flatter if _is_tie(start, trial) else _decreases(start, trial, t * slope):
            return trial
    return None


def wolfe(problem: Problem, start: Point, direction: Vector) -> Point | None:
    """Bracket and bisect until F decreases enough and its slope has risen enough.

    The second condition makes (change of gradient) . (step) positive, which L-BFGS needs to stay positive definite.

    Parameters
    ----------
    direction : (n_parameters,) the step for t = 1.

    Returns
    -------
    The point reached; None when ``direction`` does not lead down or ``MAX_TRIALS`` were not enough.
    """
    slope = float(start.gradient @ direction)
    if not slope < 0:
        return None
    low, high, t = 0.0, inf, 1.0
    for _ in range(MAX_TRIALS):
        trial = _trial(problem, start, t, direction)
        trial_slope = float(trial.gradient @ direction)
        # On a parabola this bound on the slope and Armijo's on the value are the same condition.
        not_past = trial_slope <= (2 * SUFFICIENT_DECREASE - 1) * slope
        if not (_decreases(start, trial, t * slope) or (_is_tie(start, trial) and not_past)):
            high = t
        elif trial_slope < CURVATURE * slope:
            low = t
        else:
            return trial
        t = (low + high) / 2 if isfinite(high) else 2 * low
    return None


def _trial(problem: Problem, start: Point, t: float, direction: Vector) -> Point:
    # A step that overflows is merely one to shorten: its loss is inf or NaN and fails every comparison.
    with np.errstate(over="ignore", invalid="ignore"):
        return Point.at(problem, start.w + t * direction)


def _decreases(start: Point, trial: Point, predicted: float) -> bool:
    return trial.loss <= start.loss + SUFFICIENT_DECREASE * predicted


def _is_tie(start: Point, trial: Point) -> bool:
    return abs(trial.loss - start.loss) <= LOSS_ROUNDING * abs(start.loss)
