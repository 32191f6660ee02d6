"""Whether a contribution is used: one verdict each, and every verdict other than a duplicate's is kept in the ledger.

The order matters. A duplicate is recognised first, so that a redelivery is never judged again by
rules that have moved on; what cannot be placed comes before what can be placed and is too old.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from aggregator.state import State
from broker.messages import Evaluation, ModelUpdate

Verdict = Literal[
    "accepted",
    "duplicate",
    "unknown-participant",
    "superseded",
    "wrong-plan",
    "future-version",
    "wrong-phase",
    "training-over",
    "stale",
    "out-of-bounds",
    "no-samples",
]


def examine(state: State, contribution: ModelUpdate | Evaluation) -> Verdict:
    """Return what is to become of ``contribution``.

    ============================ ==========================================================
    ``duplicate``                its number is not above the highest received: nothing changes
    ``unknown-participant``      it never said hello, or may not take part
    ``superseded``               from before its participant lost its disk
    ``wrong-plan``               computed under another plan
    ``future-version``           of a model that was never published
    ``wrong-phase``              of a kind that is not asked for now
    ``training-over``            a step for a model that is not trained any further
    ``stale``                    older than the rules allow
    ``out-of-bounds``            a vector out of all proportion, or squares that sum to less than nothing
    ``no-samples``               no rows behind it
    ============================ ==========================================================
    """
    member = state.members.get(contribution.participant)
    if member is None or member.barred:
        return "unknown-participant"
    if contribution.incarnation != member.incarnation:
        return "superseded"
    if contribution.sequence <= member.received:
        return "duplicate"
    if contribution.plan_hash != state.plan_hash:
        return "wrong-plan"
    if isinstance(contribution, Evaluation):
        return _evaluation(state, contribution)
    return _update(state, contribution)


def _evaluation(state: State, evaluation: Evaluation) -> Verdict:
    if evaluation.version > state.progress.version:
        return "future-version"
    if state.progress.phase != "verifying" or evaluation.version != state.progress.version:
        return "wrong-phase"
    return "accepted"


def _update(state: State, update: ModelUpdate) -> Verdict:
    progress, rules = state.progress, state.rules
    asked_kind = {"moments": "moments", "training": rules.strategy.kind}.get(progress.phase)
    if update.base_version > progress.version:
        return "future-version"
    if progress.phase in {"verifying", "converged"}:
        return "training-over"
    if update.kind != asked_kind:
        return "wrong-phase"
    if progress.version - update.base_version > rules.max_staleness:
        return "stale"
    if not update.n_samples > 0:
        return "no-samples"
    return "accepted" if _within_bounds(update, rules.max_norm) else "out-of-bounds"


def _within_bounds(update: ModelUpdate, max_norm: float) -> bool:
    if update.kind == "moments":  # these are in the columns' own units, which may be anything
        return bool((update.arrays["m2"] >= 0).all())
    return all(float(np.linalg.norm(array)) <= max_norm for array in update.arrays.values())
