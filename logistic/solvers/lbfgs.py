"""L-BFGS: a quasi-Newton direction from the last few steps, without ever forming a matrix.

    d = -B g,   B an inverse Hessian estimated from s_k = w_{k+1} - w_k and y_k = g_{k+1} - g_k

For wide data, where the Hessian of Newton's method is too large to form or to solve.

Nocedal & Wright, "Numerical Optimization", 2nd ed. 2006: algorithm 7.4 (two-loop recursion), equation 7.20 (first
guess gamma I), algorithm 7.5 (the loop).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from logistic.errors import ParameterError
from logistic.problem import Problem, Vector
from logistic.solvers.search import Point, wolfe


class Pair(NamedTuple):
    """One step remembered: ``s`` the change of w, ``y`` the change of the gradient; s . y > 0."""

    s: Vector
    y: Vector


@dataclass(frozen=True, slots=True, eq=False)
class LBFGSState:
    """Where it stands, and the last steps, oldest first."""

    point: Point
    pairs: tuple[Pair, ...] = ()

    @property
    def w(self) -> Vector:
        """Weights, (n_parameters,), intercept last."""
        return self.point.w

    @property
    def gradient(self) -> Vector:
        """Gradient of F at ``w``, (n_parameters,)."""
        return self.point.gradient


@dataclass(frozen=True, slots=True)
class LBFGS:
    """Limited-memory BFGS with a Wolfe line search, which keeps every remembered s . y positive.

    Parameters
    ----------
    memory : steps remembered; 3 to 20 in Nocedal & Wright, p. 177, and 10 in common use.

    Raises
    ------
    ParameterError
        If ``memory`` is under 1.
    """

    memory: int = 10

    def __post_init__(self) -> None:
        if self.memory < 1:
            raise ParameterError(f"memory is {self.memory}; it must be 1 step or more")

    def init(self, problem: Problem, w: Vector, rng: np.random.Generator | None) -> LBFGSState:  # noqa: ARG002  nothing is random here
        """Evaluate F at the start; nothing is remembered yet."""
        return LBFGSState(Point.at(problem, w))

    def step(self, problem: Problem, state: LBFGSState) -> LBFGSState:
        """One quasi-Newton step; the same state when steepest descent leads no further either."""
        start = state.point
        after = wolfe(problem, start, two_loop_direction(start.gradient, state.pairs))
        if after is None:
            # Rounding in old pairs can spoil the direction: forget them once before giving up.
            return LBFGSState(start) if state.pairs else state
        pair = Pair(after.w - start.w, after.gradient - start.gradient)
        if not pair.s @ pair.y > 0:  # a step at the level of rounding; remembering it would lose definiteness
            return LBFGSState(after, state.pairs)
        return LBFGSState(after, (*state.pairs, pair)[-self.memory :])


def two_loop_direction(g: Vector, pairs: Sequence[Pair]) -> Vector:
    """-B g by the two-loop recursion, in 4 n_parameters len(pairs) multiplications.

    Without pairs it is steepest descent, at most 1 long: the first trial then moves standardised weights sensibly.

    Parameters
    ----------
    g : (n_parameters,) gradient.
    pairs : oldest first, each with s . y > 0.

    Returns
    -------
    (n_parameters,) a direction of descent.
    """
    if not pairs:
        return -g / max(1.0, float(np.linalg.norm(g)))
    q = g
    alphas = []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (s @ y)
        q = q - alpha * y
        alphas.append(alpha)
    s, y = pairs[-1]
    r = (s @ y) / (y @ y) * q  # gamma, equation 7.20
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        r = r + (alpha - (y @ r) / (s @ y)) * s
    return -r
