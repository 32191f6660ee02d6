"""Whether a contribution is used: one verdict each, and every verdict other than a duplicate's is kept in the ledger.

The order matters. A duplicate is recognised before anything is judged, so that a redelivery is never judged again
by rules that have moved on; what cannot be placed comes before what can be placed and is too old.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from aggregator.state import Member, State
from broker.messages import Evaluation, ModelUpdate, Scores
from logistic.quadratic import unpack

#: Nats per row, and a column's own units. Legitimate numbers come nowhere near; what this bounds stays finite when it
#: is squared, multiplied by rows and summed, so that no participant's absurdity makes a state that cannot be kept.
LARGEST = 1e100

#: Of the largest diagonal element: sums over rows err by less, and a matrix that bends down by more is none of ours.
CONVEX_TO_ROUNDING = 1e-9

Verdict = Literal[
    "accepted",
    "duplicate",
    "unknown-participant",
    "superseded",
    "wrong-plan",
    "future-version",
    "wrong-phase",
    "training-over",
    "failed",
    "unasked",
    "stale",
    "out-of-bounds",
    "no-samples",
]


def examine(state: State, contribution: ModelUpdate | Evaluation) -> Verdict:
    """Return what is to become of ``contribution``.

    ============================ ==========================================================
    ``unknown-participant``      it never said hello, or may not take part
    ``duplicate``                its number is not above the highest received: nothing changes
    ``superseded``               from before its participant lost its disk
    ``wrong-plan``               computed under another plan
    ``future-version``           of a model that was never published
    ``wrong-phase``              of a kind that is not asked for now
    ``training-over``            a step for a model that is not trained any further
    ``failed``                   its participant found no usable result, and says so
    ``unasked``                  its participant's last update is not in a model yet
    ``stale``                    older than the rules allow
    ``no-samples``               no rows behind it
    ``out-of-bounds``            a number out of all proportion, or one that no rows can have
    ============================ ==========================================================
    """
    member = state.members.get(contribution.participant)
    if member is None or member.barred:
        return "unknown-participant"
    former = contribution.incarnation != member.incarnation
    received = member.former.get(contribution.incarnation, 0) if former else member.received
    if contribution.sequence <= received:
        return "duplicate"
    if former:
        return "superseded"
    if contribution.plan_hash != state.plan_hash:
        return "wrong-plan"
    if isinstance(contribution, Evaluation):
        return _evaluation(state, contribution)
    return _update(state, member, contribution)


def _evaluation(state: State, evaluation: Evaluation) -> Verdict:
    if evaluation.version > state.progress.version:
        return "future-version"
    if state.progress.phase != "verifying" or evaluation.version != state.progress.version:
        return "wrong-phase"
    scores = [evaluation.train] if evaluation.test is None else [evaluation.train, evaluation.test]
    if not all(each.n > 0 for each in scores):
        return "no-samples"
    return "accepted" if all(map(_plausible, scores)) else "out-of-bounds"


def _plausible(scores: Scores) -> bool:
    """Whether each sum over rows lies between what the least and the largest terms would give."""
    n = scores.n
    counts = [scores.positives, scores.negatives]
    return (
        n <= LARGEST
        and 0 <= scores.log_loss_sum <= LARGEST
        and 0 <= scores.brier_sum <= n
        and 0 <= scores.correct <= n
        and all(bool(((count >= 0) & (count <= n)).all()) for count in counts)
    )


def _update(state: State, member: Member, update: ModelUpdate) -> Verdict:
    progress, rules = state.progress, state.rules
    asked_kind = {"moments": "moments", "training": rules.strategy.kind}.get(progress.phase)
    reasons: dict[Verdict, bool] = {
        "future-version": update.base_version > progress.version,
        "training-over": progress.phase in {"verifying", "converged"},
        "failed": update.kind == "failed",
        "wrong-phase": update.kind != asked_kind,
        # To take it would displace the one that was accepted, and that one would be in no model, ever.
        "unasked": member.pending != "",
        "stale": progress.version - update.base_version > rules.max_staleness,
    }
    refused = next((verdict for verdict, holds in reasons.items() if holds), None)
    return refused or _content(update, member.n_rows, rules.max_norm)


def _content(update: ModelUpdate, n_rows: int, max_norm: float) -> Verdict:
    if not update.n_samples > 0:
        return "no-samples"
    # More rows than it has said would let it pull harder than anybody else.
    believable = update.n_samples <= n_rows and 0 <= update.loss <= LARGEST
    return "accepted" if believable and _within_bounds(update, max_norm) else "out-of-bounds"


def _within_bounds(update: ModelUpdate, max_norm: float) -> bool:
    if update.kind == "moments":  # these are in the columns' own units, which may be anything
        mean, m2 = update.arrays["mean"], update.arrays["m2"]
        return bool((np.abs(mean) <= LARGEST).all() and (m2 >= 0).all() and (np.sqrt(m2) <= LARGEST).all())
    if update.kind == "curvature" and not _is_convex(update):
        return False
    return all(float(np.linalg.norm(array)) <= max_norm for array in update.arrays.values())


def _is_convex(update: ModelUpdate) -> bool:
    """Whether it can be a Hessian of this loss: no direction bends down, and theta is a share."""
    H = unpack(update.arrays["hessian"])
    diagonal = np.diag(H)
    shift = CONVEX_TO_ROUNDING * max(float(diagonal.max()), np.finfo(float).tiny)
    try:
        np.linalg.cholesky(H + shift * np.eye(len(H)))
    except np.linalg.LinAlgError:
        return False
    return bool((diagonal >= 0).all()) and 0.0 <= update.arrays["theta"][0] <= 1.0
