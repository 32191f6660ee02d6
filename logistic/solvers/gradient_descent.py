"""Gradient descent, with all rows at every step or a mini-batch of them.

    w <- w - learning_rate * g(w)

Without a learning rate it is 1 / L, L being the largest curvature that F can have:

    all rows      L = lambda_max(K mean_j s_j (x_j, 1)(x_j, 1)' + l2 D), found by power iteration
    mini-batches  L = max_j K (||x_j||^2 + 1) + l2: no batch, however unlucky, curves more

where K = 1/4, the largest p (1 - p), bounds the curvature of a row of two classes in its margin. Of more classes
K = 1/2, the largest eigenvalue of the bound (I - 11'/C) / 2 of `logistic.softmax`. A pull adds its mu to either.

With L the loss never increases over a full-batch step. A mini-batch run ends in a neighbourhood of the optimum
whose size is proportional to the learning rate.

Nesterov, "Introductory Lectures on Convex Optimization", 2004, theorem 2.1.14; Robbins & Monro 1951 for the batches.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logistic.errors import ParameterError
from logistic.loss import gradient, gram_vector_sum, largest_squared_row
from logistic.problem import Problem, Vector

# Directions whose curvature is under half the largest lose a factor 2^-32 of their share: the estimate is then above
# lambda_max / 2, and the step below 2 / lambda_max, where every step still descends. In practice it is within 1 %.
POWER_ITERATIONS = 16

LARGEST_KAPPA = 0.25  # p (1 - p) at p = 1/2

BETWEEN_CLASSES = 2.0  # of more than two, a row's margins can curve the loss twice as much: by 1/2


@dataclass(frozen=True, slots=True, eq=False)
class GradientDescentState:
    """Weights, and the place in the shuffled rows.

    Parameters
    ----------
    w : (n_parameters,) intercept last.
    gradient : (n_parameters,) of all rows at ``w``; None with mini-batches, and where nobody looks.
    learning_rate : in use, also when it was derived.
    n_steps : steps taken.
    seed : of the shuffles, drawn from the generator at the start; 0 without mini-batches.
    order : (n_rows,) this epoch's order of the rows; None before the first shuffle.
    """

    w: Vector
    gradient: Vector | None
    learning_rate: float
    n_steps: int = 0
    seed: int = 0
    order: NDArray[np.intp] | None = None


@dataclass(frozen=True, slots=True)
class GradientDescent:
    """Plain gradient descent.

    One step is one batch; an epoch is ``ceil(n_rows / batch_size)`` steps, the last of which may be smaller, and
    every epoch has a new order. The order depends on the seed and on the epoch only, so ``step`` stays a pure function.

    Parameters
    ----------
    learning_rate : positive; None for 1 / L (see the module).
    batch_size : rows per step; None for all of them.
    look : leave the gradient at the new weights in the state, by which `solve` sees where it is. Without it a
        run of a fixed number of steps costs one gradient less.

    Raises
    ------
    ParameterError
        If the learning rate is not a positive finite number or the batch size is under 1.
    """

    learning_rate: float | None = None
    batch_size: int | None = None
    look: bool = True

    def __post_init__(self) -> None:
        rate = self.learning_rate
        if rate is not None and not (np.isfinite(rate) and rate > 0):
            raise ParameterError(f"learning_rate is {rate}; it must be positive and finite, or None for 1 / L")
        if self.batch_size is not None and self.batch_size < 1:
            raise ParameterError(f"batch_size is {self.batch_size}; it must be 1 or more, or None for all rows")

    def init(self, problem: Problem, w: Vector, rng: np.random.Generator | None) -> GradientDescentState:
        """Settle the learning rate and, for mini-batches, draw the seed of the shuffles.

        Raises
        ------
        ParameterError
            If there is a batch size and no ``rng``.
        """
        if self.batch_size is None:
            rate = self.learning_rate or _inverse(largest_curvature(problem))
            return GradientDescentState(w, self._gradient(problem, w), rate)
        if rng is None:
            raise ParameterError("mini-batches need a generator: pass rng=numpy.random.default_rng(seed)")
        rate = self.learning_rate or _inverse(largest_row_curvature(problem))
        return GradientDescentState(w, None, rate, seed=int(rng.integers(2**63)))

    def step(self, problem: Problem, state: GradientDescentState) -> GradientDescentState:
        """Move to ``w - learning_rate * gradient``, exactly; the same state when w no longer moves."""
        if self.batch_size is not None:
            return self._batch_step(problem, state, self.batch_size)
        g = gradient(problem, state.w) if state.gradient is None else state.gradient
        w = state.w - state.learning_rate * g
        if np.array_equal(w, state.w):
            return state
        return GradientDescentState(w, self._gradient(problem, w), state.learning_rate, state.n_steps + 1)

    def _gradient(self, problem: Problem, w: Vector) -> Vector | None:
        return gradient(problem, w) if self.look else None

    @staticmethod
    def _batch_step(problem: Problem, state: GradientDescentState, size: int) -> GradientDescentState:
        # Not moving is no reason to stop here: the batch may consist of rows without weight.
        steps_per_epoch = max(1, -(-problem.n_rows // size))
        epoch, position = divmod(state.n_steps, steps_per_epoch)
        order = state.order
        if order is None or position == 0:
            order = np.random.default_rng([state.seed, epoch]).permutation(problem.n_rows)
        batch = problem.take(order[position * size : (position + 1) * size])
        w = state.w - state.learning_rate * gradient(batch, state.w)
        return GradientDescentState(w, None, state.learning_rate, state.n_steps + 1, state.seed, order)


def largest_curvature(problem: Problem) -> float:
    """Bound the curvature of F everywhere, by power iteration.

    v <- B v / ||B v||,  lambda = v . B v,     B = K mean_j s_j (x_j, 1)(x_j, 1)' + l2 D

    Returns
    -------
    An estimate from below, better than half the truth; 0 for a problem without rows and l2.
    """
    factor = _factor(problem)
    n = problem.n_samples or 1.0  # the sum over nothing is 0, and so is its mean
    # Any direction will do that is not orthogonal to the one sought: one without pattern is not, in practice.
    v = np.cos(np.arange(1.0, problem.n_features + 2.0) ** 2)
    curvature = 0.0
    for _ in range(POWER_ITERATIONS):
        v = v / np.linalg.norm(v)
        # B over ``factor``: the Hessian of a problem of two classes with all margins at zero, where kappa is 1/4.
        Hv = LARGEST_KAPPA * gram_vector_sum(problem, v) / n
        Hv[:-1] += problem.l2 / factor * v[:-1]
        curvature = float(v @ Hv)
        if curvature == 0:
            break
        v = Hv
    return factor * curvature + _proximal(problem)


def largest_row_curvature(problem: Problem) -> float:
    """Return max_j K (||x_j||^2 + 1) + l2, which bounds the curvature of F over any batch; 0 without rows and l2."""
    return _factor(problem) * LARGEST_KAPPA * largest_squared_row(problem) + problem.l2 + _proximal(problem)


def _factor(problem: Problem) -> float:
    return 1.0 if problem.n_outputs == 1 else BETWEEN_CLASSES


def _proximal(problem: Problem) -> float:
    return 0.0 if problem.pull is None else problem.pull.proximal


def _inverse(curvature: float) -> float:
    # Where nothing curves, nothing slopes either (no rows, no penalty): any rate stays in place.
    return 1.0 / curvature if curvature > 0 else 1.0
