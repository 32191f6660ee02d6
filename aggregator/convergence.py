"""When training is over: the loss has stopped falling, or the versions are used up.

The loss of a version is the row-weighted mean of what the participants last reported, each at the
version it worked from, plus the penalty. Under asynchrony it flickers: the test is on the best
seen so far, with patience, not on the difference of two.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from aggregator.state import Member, Progress, Rules
from broker.messages import Array

#: Relative to the best loss: one further above it flickers no longer, it has run away.
NEAR_BEST = 0.1


def federated_loss(members: Iterable[Member], l2: float, weights: Array) -> float | None:
    """Return sum n_i loss_i / sum n_i + (l2 / 2) ||w||^2 in nats per row; None until all ``members`` have reported."""
    total, rows = 0.0, 0
    for member in members:
        if member.loss is None:
            return None
        total += member.n_rows * member.loss
        rows += member.n_rows
    return total / rows + 0.5 * l2 * float(np.dot(weights[:-1], weights[:-1])) if rows else None


def observe_loss(progress: Progress, loss: float | None, rules: Rules) -> Progress:
    """Return ``progress`` that has seen ``loss`` at its version; ``converged`` when patience ends near the best."""
    if loss is None:
        return replace(progress, loss=None)
    best = progress.best_loss
    if best is None or loss < best - rules.tolerance * abs(best):
        return replace(progress, loss=loss, best_loss=loss, best_version=progress.version)
    near = loss <= best + NEAR_BEST * abs(best)
    return replace(progress, loss=loss, converged=near and _is_patience_over(progress, rules))


def _is_patience_over(progress: Progress, rules: Rules) -> bool:
    return progress.best_loss is not None and progress.version - progress.best_version >= rules.patience


def observe(progress: Progress, loss: float | None, converged: bool | None, rules: Rules) -> Progress:
    """Return ``progress`` that has seen a version: a strategy that verifies its optimum decides by that alone."""
    if converged is None:
        return observe_loss(progress, loss, rules)
    return replace(progress, loss=loss, converged=converged)


def is_over(progress: Progress, rules: Rules) -> bool:
    """Whether no further version is to be made."""
    return progress.converged or _is_patience_over(progress, rules) or progress.version >= rules.max_versions
