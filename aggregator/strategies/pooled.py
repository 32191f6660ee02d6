"""The pooled objective and its gradient at one point, from what participants sent of their own rows.

    F(w) = (1/n) sum_i n_i loss_i  +  (l2/2) sum_j D_j w_j^2          g = (1/n) sum_i g_i  +  l2 D w

Sums are the pooled ones only where all are taken at the same w. One that is not says nothing of this point, unlike a
quadratic, which says where it leads; so it is not counted. Of a participant who is there that is a matter of one more
round. One who has gone is left out: F is then the objective of those who are there, and its minimum is
their pooled fit, as if the other had never taken part. It counts again as soon as it answers.

Where w is left out of a message that is full without it, it is that of the base version; of which only the newest is
still known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aggregator.strategies.base import Contribution, Situation, StrategyState, in_order, received
from broker.messages import Array


@dataclass(frozen=True, slots=True, eq=False)
class Pooled:
    """F and its gradient at ``w``: ``contributions`` are those that were taken there, ``n_samples`` their rows."""

    w: Array
    loss: float
    gradient: Array
    n_samples: float
    contributions: tuple[Contribution, ...]


def pooled(state: StrategyState, weights: Array, situation: Situation) -> Pooled | None:
    """Return F at ``weights``, or None where somebody who is there has answered from elsewhere, or not at all."""
    came = received(state, situation)
    here = tuple(c for c in in_order(state) if _was_taken_at(weights, c, is_new=c.participant in came))
    if not here or not {c.participant for c in here} >= situation.live | came:
        return None
    n = sum(contribution.n_samples for contribution in here)
    penalised = situation.l2 * situation.penalised(weights.size)
    loss = sum(contribution.n_samples * contribution.loss for contribution in here) / n
    gradient = sum((contribution.arrays["gradient"] for contribution in here), np.zeros_like(weights)) / n
    return Pooled(
        w=weights,
        loss=loss + 0.5 * float(penalised @ weights**2),
        gradient=gradient + penalised * weights,
        n_samples=n,
        contributions=here,
    )


def _was_taken_at(weights: Array, contribution: Contribution, *, is_new: bool) -> bool:
    """Whether these are sums at ``weights``; ``is_new``: it came since they were published."""
    base = contribution.arrays.get("base")
    return (is_new and contribution.staleness == 0) if base is None else np.array_equal(base, weights)
