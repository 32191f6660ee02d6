"""What a solver is, and the loop that runs any of them to an end that it can name.

    state = solver.init(problem, w, rng)
    while neither converged, diverged nor out of steps:
        state = solver.step(problem, state)        # the very same state back: it can go no further

A solver is a frozen value and both its functions are pure, so a run can be stopped, stored and resumed between any
two steps. Failure is a value too: `solve` returns how it ended and raises only for arguments that make no sense.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

import numpy as np

from logistic.errors import NonFiniteError, ParameterError
from logistic.loss import gradient, loss
from logistic.problem import Problem, Vector


class State(Protocol):
    """What a solver carries from step to step."""

    @property
    def w(self) -> Vector:
        """Weights reached so far, (n_parameters,), intercept last."""

    @property
    def gradient(self) -> Vector | None:
        """The whole problem's gradient at ``w``; None if the solver does not know it (it saw a batch)."""


S = TypeVar("S", bound=State)


class Solver(Protocol[S]):
    """A way to walk downhill. Neither function modifies its arguments, ``rng`` excepted."""

    def init(self, problem: Problem, w: Vector, rng: np.random.Generator | None) -> S:
        """Start at ``w``; all randomness of the run is drawn here."""

    def step(self, problem: Problem, state: S) -> S:
        """Take one step, or return ``state`` itself, the same object, when no step improves on it."""


class Status(StrEnum):
    """How a run ended."""

    CONVERGED = "converged"  # the largest component of the gradient is within the tolerance
    MAX_STEPS = "max-steps"  # out of steps
    STALLED = "stalled"  # the solver can go no further: rounding, or a direction that leads nowhere
    DIVERGED = "diverged"  # weights, gradient or loss left the finite numbers: the step was too long


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """Where a run ended, and how.

    Parameters
    ----------
    w : (n_parameters,) the last finite weights, intercept last.
    status : how the run ended.
    n_steps : steps taken.
    loss : F at ``w``, in nats per row.
    gradient_norm : largest absolute component of the gradient of F at ``w``.
    """

    w: Vector
    status: Status
    n_steps: int
    loss: float
    gradient_norm: float


def solve(
    solver: Solver[S],
    problem: Problem,
    w: Vector,
    *,
    rng: np.random.Generator | None = None,
    max_steps: int,
    tolerance: float,
) -> Solution:
    """Run a solver from ``w`` until it converges, diverges, stalls or has taken ``max_steps``.

    Parameters
    ----------
    w : (n_parameters,) where to start, intercept last.
    rng : needed by solvers that draw random numbers.
    max_steps : 0 or more; 0 only reports on ``w``.
    tolerance : on the largest component of the gradient of F. A solver that knows no gradient is examined once, after
        its last step: looking after every batch would cost more than the steps themselves.

    Returns
    -------
    Where it ended, and how.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    NonFiniteError
        If ``w`` holds a NaN or an infinity.
    ParameterError
        If ``max_steps`` or ``tolerance`` is negative, or the solver needs an ``rng`` and got none.
    """
    if not np.isfinite(w).all():
        raise NonFiniteError("the starting weights hold NaN or infinity; start from zeros")
    if max_steps < 0 or not tolerance >= 0:
        raise ParameterError(f"max_steps {max_steps} and tolerance {tolerance} must be 0 or more")
    # Overflow here is a result, `diverged`, and not a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        state = solver.init(problem, w, rng)
        status = _ending(state, tolerance)
        n_steps = 0
        while status is None and n_steps < max_steps:
            after = solver.step(problem, state)
            if after is state:
                status = Status.STALLED
                break
            n_steps += 1
            if not np.isfinite(after.w).all():
                status = Status.DIVERGED
                break
            state = after
            status = _ending(state, tolerance)
        return _solution(problem, state, status or Status.MAX_STEPS, n_steps, tolerance)


def _ending(state: State, tolerance: float) -> Status | None:
    if state.gradient is None:
        return None
    norm = _norm(state.gradient)
    if not np.isfinite(norm):
        return Status.DIVERGED
    return Status.CONVERGED if norm <= tolerance else None


def _solution(problem: Problem, state: State, status: Status, n_steps: int, tolerance: float) -> Solution:
    value = loss(problem, state.w)
    norm = _norm(gradient(problem, state.w) if state.gradient is None else state.gradient)
    if not np.isfinite(value):
        status = Status.DIVERGED
    elif status is not Status.DIVERGED and norm <= tolerance:
        status = Status.CONVERGED
    return Solution(state.w, status, n_steps, value, norm)


def _norm(g: Vector) -> float:
    return float(np.abs(g).max())
