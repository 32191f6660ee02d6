"""Damped Newton: iteratively reweighted least squares with a line search.

    H(w) d = -g(w),      w <- w + t d,     t = 1, 1/2, 1/4, ... until F decreases enough

Quadratic convergence near the optimum; five to ten steps in all on most data. The line search makes it converge
from anywhere (without it, Newton's method for logistic regression can cycle or diverge from far away).

Where all rows are confidently wrong, H has all but vanished and the Newton direction is too long to shorten. Then one
step is taken with the bound of Boehning & Lindsay (Ann. Inst. Stat. Math. 40, 1988), which descends from anywhere
at t = 1, but far too slowly from there; so t may double as well:

    H(0) d = -g(w),   t by bracketing

Boyd & Vandenberghe, "Convex Optimization", 2004, section 9.5; Nocedal & Wright 2006, section 3.3.
"""

from dataclasses import dataclass

import numpy as np

from logistic.linear_system import solve_positive
from logistic.loss import hessian
from logistic.problem import Problem, Vector
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
        direction = solve_positive(hessian(problem, state.w), -state.gradient)
        after = backtracking(problem, state, direction)
        if after is None:
            bound = hessian(problem, np.zeros_like(state.w))
            after = wolfe(problem, state, solve_positive(bound, -state.gradient))
            # Strictly lower: at the level of rounding the bracketing would go on for ever.
            if after is None or not after.loss < state.loss:
                return state
        return after
