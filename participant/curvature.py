"""The quadratic of a participant's own rows, safeguarded: what the exact strategies ask for.

At the newest weights w it sends the sums over its rows of the gradient and of the Hessian, the latter blended,

    H = sum_j ((1 - theta) p (1 - p) + theta kappa) x_j x_j'

with the majoriser kappa of `logistic.quadratic`; of more than two classes, with what `logistic.softmax` has in their
place. theta = 1 cannot overshoot, theta = 0 is Newton. It starts at 1. Each time, the loss is held against what the
last quadratic predicted for this place: where it is higher by more than a quarter of the quadratic term, theta grows
fourfold, at least to .25; otherwise it is 0 from there on. (To let it fall by tenths costs each slow site two more
trips, and kept nothing from diverging that this does not: `benchmarks/safeguard.py`.)

A Hessian is left out where no margin has moved by more than `UNCHANGED` since the last one was sent: no curvature of a
row has changed by more than that share, and the next step is as good to that share. It is the far larger part of
what travels, and of the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from broker.messages import Array
from logistic.loss import (
    chunk_loss_and_gradient,
    gradient_and_hessian_sum,
    hessian_sum,
    margins,
    max_row_norm,
)
from logistic.problem import Chunk, Problem
from logistic.quadratic import pack, unpack
from logistic.softmax import class_margins

#: How theta grows.
GROWTH, LEAST_GROWN = 4.0, 0.25
#: Of the quadratic term, by which a prediction may fall short.
SHORTFALL = 0.25
#: Of a margin: a Hessian from so near is as good as a fresh one, to a hundredth.
UNCHANGED = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """What was sent last, whole: ``loss`` is the sum over the rows at ``base``, ``hessian`` packed, taken at ``at``."""

    base: Array
    loss: float
    gradient: Array
    hessian: Array
    theta: float
    at: Array
    reach: float


def quadratic(problem: Problem, weights: Array, last: Quadratic | None) -> tuple[dict[str, Array], Quadratic]:
    """Return the arrays of a ``curvature`` update at ``weights``, and what to remember; ``last`` is the one before.

    The rows are gone over twice at most, and once where the last Hessian is as good as a fresh one.
    """
    weights = np.array(weights)
    if last is None:
        sums = gradient_and_hessian_sum(problem, weights, theta=1.0)
        reach = max_row_norm(problem)
        now = Quadratic(weights, sums.log_loss, sums.gradient, pack(sums.hessian), 1.0, weights, reach)
        return {**_arrays(now, 0.0), "hessian": now.hessian}, now
    loss, gradient, drift = _first_look(problem, weights, weights - last.at)
    theta = next_theta(last, weights, loss)
    if theta == last.theta == 0.0 and drift <= UNCHANGED:
        now = Quadratic(weights, loss, gradient, last.hessian, theta, last.at, last.reach)
        return _arrays(now, drift), now
    hessian = pack(hessian_sum(problem, weights, theta=theta))
    now = Quadratic(weights, loss, gradient, hessian, theta, weights, last.reach)
    return {**_arrays(now, 0.0), "hessian": hessian}, now


def _arrays(now: Quadratic, drift: float) -> dict[str, Array]:
    """Return what of ``now`` is sent each time."""
    return {
        "base": now.base,
        "gradient": now.gradient,
        "theta": np.array([now.theta]),
        "reach": np.array([now.reach]),
        "drift": np.array([drift]),
    }


def _first_look(problem: Problem, weights: Array, change: Array) -> tuple[float, Array, float]:
    """Return the sums of losses and gradients at ``weights``, and `largest_margin` of ``change``, in one pass."""
    loss, gradient, largest = 0.0, np.zeros(weights.size), 0.0
    for (part_loss, part_gradient), part_largest in problem.over(partial(_looked_at, weights=weights, change=change)):
        loss, gradient, largest = loss + part_loss, gradient + part_gradient, max(largest, part_largest)
    return loss, gradient, largest


def _looked_at(chunk: Chunk, weights: Array, change: Array) -> tuple[tuple[float, Array], float]:
    return chunk_loss_and_gradient(chunk, weights), _largest_margin(chunk, change)


def next_theta(last: Quadratic, weights: Array, loss: float) -> float:
    """Return theta, now that the sum of the losses at ``weights`` is known to be ``loss``."""
    d = weights - last.base
    bend = float(d @ unpack(last.hessian) @ d)
    predicted = last.loss + float(last.gradient @ d) + bend / 2.0
    # Rounding of the two sums is no shortfall: at the optimum the quadratic term vanishes before it does.
    rounding = 1e-12 * max(1.0, abs(loss))
    if loss > predicted + SHORTFALL * abs(bend) / 2.0 + rounding:
        return min(1.0, max(GROWTH * last.theta, LEAST_GROWN))
    return 0.0


def largest_margin(problem: Problem, change: Array) -> float:
    """Return how far a margin moves at most when the weights change by ``change``; of classes, between any two."""
    return max(problem.over(partial(_largest_margin, change=change)), default=0.0)


def _largest_margin(chunk: Chunk, change: Array) -> float:
    if change.size == chunk.X.shape[1] + 1:
        moved = np.abs(margins(chunk.X, change))
    else:
        moved = np.ptp(class_margins(chunk.X, change), axis=1)
    return float(moved.max(initial=0.0))
