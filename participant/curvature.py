"""The quadratic of a participant's own rows, safeguarded: what the exact strategies ask for.

At the newest weights w it sends the sums over its rows of the gradient and of the Hessian, the latter blended,

    H = sum_j ((1 - theta) p (1 - p) + theta kappa) x_j x_j'

with the majoriser kappa of `logistic.quadratic`. theta = 1 cannot overshoot, theta = 0 is Newton. It starts at 1. Each
time, the loss is held against what the last quadratic predicted for this place: where it is higher by more than a
quarter of the quadratic term, theta grows at least to .25; otherwise it falls to a tenth, and below .01 to 0.
"""

from __future__ import annotations

import numpy as np

from broker.messages import Array, ModelUpdate
from logistic.loss import curvature, gradient_sum, hessian_sum, log_loss_sum
from logistic.problem import Problem, Vector
from logistic.quadratic import majoriser, pack, unpack

#: How theta grows and falls, and below what it is 0.
GROWTH, LEAST_GROWN, DECAY, NEGLIGIBLE = 4.0, 0.25, 0.1, 1e-2
#: Of the quadratic term, by which a prediction may fall short.
SHORTFALL = 0.25


def quadratic(problem: Problem, weights: Array, last: ModelUpdate | None) -> dict[str, Array]:
    """Return the arrays of a ``curvature`` update at ``weights``; ``last`` is the one that was sent before."""
    theta = 1.0 if last is None else next_theta(last, weights, log_loss_sum(problem, weights))

    def kappa(z: Vector) -> Vector:
        return (1.0 - theta) * curvature(z) + theta * majoriser(z)

    return {
        "base": np.array(weights),
        "gradient": gradient_sum(problem, weights),
        "hessian": pack(hessian_sum(problem, weights, kappa=kappa)),
        "theta": np.array([theta]),
    }


def next_theta(last: ModelUpdate, weights: Array, loss: float) -> float:
    """Return theta, now that the sum of the losses at ``weights`` is known to be ``loss``."""
    d = weights - last.arrays["base"]
    bend = float(d @ unpack(last.arrays["hessian"]) @ d)
    predicted = last.loss * last.n_samples + float(last.arrays["gradient"] @ d) + bend / 2.0
    theta = float(last.arrays["theta"][0])
    # Rounding of the two sums is no shortfall: at the optimum the quadratic term vanishes before it does.
    rounding = 1e-12 * max(1.0, abs(loss))
    if loss > predicted + SHORTFALL * abs(bend) / 2.0 + rounding:
        return min(1.0, max(GROWTH * theta, LEAST_GROWN))
    theta *= DECAY
    return theta if theta >= NEGLIGIBLE else 0.0
