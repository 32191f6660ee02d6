"""Damped Newton: iteratively reweighted least squares with a line search.

    H(w) d = -g(w),      w <- w + t d,     t = 1, 1/2, 1/4, ... until F decreases enough

Quadratic convergence near the optimum; five to ten steps in all on most data. The line search makes it converge
from anywhere (without it, Newton's method for logistic regression can cycle or diverge from far away).

Where all rows are confidently wrong, H has all but vanished and the Newton direction is too long to shorten. Then one
step is taken with a matrix B that is above H(w) at every w, which descends from anywhere at t = 1, but far too
slowly from there; so t may double as well:

    B d = -g(w),   t by bracketing

Two classes: B = H(0), without offsets, for kappa is largest at z = 0 (Boehning & Lindsay, Ann. Inst. Stat. Math. 40,
1988). More: the bound of `logistic.softmax`.

Boyd & Vandenberghe, "Convex Optimization", 2004, section 9.5; Nocedal & Wright 2006, section 3.3.
"""

from dataclasses import dataclass

import numpy as np

from logistic.linear_system import solve_positive
from logistic.loss import hessian
from logistic.problem import Matrix, Problem, Vector
from logistic.softmax import centred, gauge
from logistic.solvers.search import Point, backtracking, wolfe


@dataclass(frozen=True, slots=True)
class Newton:
    """Damped Newton; the state is a `Point`, for nothing is remembered between steps.

    A singular Hessian (l2 = 0 with collinear or constant columns) is shifted, see `logistic.linear_system`; weights
    then stay where they were along directions that the rows say nothing about.
    """

    def init(self, problem: Problem, w: Vector, rng: np.random.Generator | None) -> Point:  # noqa: ARG002  nothing is random here
        """Evaluate F at the start."""
        return Point.at(problem, w)

    def step(self, problem: Problem, state: Point) -> Point:
        """One Newton step; the same state when no length of it improves F or its gradient."""
        after = backtracking(problem, state, _direction(problem, hessian(problem, state.w), state))
        if after is None:
            after = wolfe(problem, state, _direction(problem, bound(problem), state))
            # Strictly lower: at the level of rounding the bracketing would go on for ever.
            if after is None or not after.loss < state.loss:
                return state
        return after


def bound(problem: Problem) -> Matrix:
    """Return B >= H(w) for every w, (n_parameters, n_parameters): see the module."""
    return hessian(problem.without_offset(), np.zeros(problem.n_parameters), theta=1.0)


def _direction(problem: Problem, H: Matrix, state: Point) -> Vector:
    """Solve H d = -g; of several classes, where that leaves their sum open, d leads to the sum zero."""
    n_outputs = problem.n_outputs
    if n_outputs > 1:
        # Column by column of the diagonal's own size: a gauge that dwarfs a column would hide it from the solution.
        H = H + gauge(problem.n_features, n_outputs, np.diag(H).reshape(n_outputs, -1).mean(axis=0))
    d = solve_positive(H, -state.gradient)
    # From another sum the gauge would let the slopes creep; to be there is the minimum of the penalty, and free else.
    return d if n_outputs == 1 else centred(state.w + d, n_outputs) - state.w
