"""Whether a contribution is used: one verdict each, and every verdict other than a duplicate's is kept in the ledger.

The order matters. A duplicate is recognised before anything is judged, so that a redelivery is never judged again
by rules that have moved on; what cannot be placed comes before what can be placed and is too old.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from aggregator.fit import plan_of
from aggregator.state import Member, State
from broker.codec import check_lengths
from broker.errors import MalformedMessage
from broker.messages import Array, Evaluation, ModelUpdate, Scores
from logistic.errors import LogisticError
from logistic.moments import Moments
from logistic.quadratic import unpack

#: Nats per row, and a column's own units. Legitimate numbers come nowhere near; what this bounds stays finite when it
#: is squared, multiplied by rows and summed, so that no participant's absurdity makes a state that cannot be kept.
LARGEST = 1e100

#: Sums of weights differ by so much when they are summed in another order.
ROUNDING = 1.0 + 1e-9

#: The kinds of update that answer a question about the last model, and the stage in which it is asked.
ANSWERS = {"ranks": "rank", "sides": "sides", "path": "path"}

#: Sums over rows, and the power of a row's norm that it adds to them at most.
POWERS = {"gradient": 1, "gradients": 1, "hessian": 2, "hessians": 2, "meat": 2}

#: Of a quadratic: the share of the majoriser, the largest norm of a row, the largest change of a margin.
SCALARS = ("theta", "reach", "drift")

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
    "incomplete",
    "malformed",
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
    ``future-version``           of a model that was never published, or is lost
    ``wrong-phase``              of a kind that is not asked for now
    ``training-over``            a step for a model that is not trained any further
    ``failed``                   its participant found no usable result, and says so
    ``unasked``                  its participant's last update is not in a model yet, or it has been gone for too long
    ``stale``                    older than the rules allow
    ``incomplete``               it leaves out a Hessian that nobody has
    ``malformed``                its arrays have not the lengths that its plan implies
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


def _has_its_lengths(state: State, contribution: ModelUpdate | Evaluation) -> bool:
    """Whether its arrays are as long as the plan implies: looked at only now that it is known to be of that plan."""
    try:
        check_lengths(contribution, plan_of(state).sizes)
    except MalformedMessage:
        return False
    return True


def _is_unknown(state: State, version: int, epoch: int) -> bool:
    """Whether ``version`` of term ``epoch`` was never made, or is lost: a later term began before it, from a backup."""
    progress = state.progress
    is_lost = epoch > progress.epoch or (
        epoch > 0 and any(later > epoch and version > began for later, began in progress.terms)
    )
    return is_lost or version > progress.version


def _evaluation(state: State, evaluation: Evaluation) -> Verdict:
    if _is_unknown(state, evaluation.version, evaluation.epoch):
        return "future-version"
    asked = state.progress.phase == "verifying" and state.progress.stage == "evaluate"
    # One that comes later belongs to none of the counts that were made since.
    if not asked or evaluation.version != state.progress.version:
        return "wrong-phase"
    if state.members[evaluation.participant].evicted:
        return "unasked"
    if not _has_its_lengths(state, evaluation):
        return "malformed"
    scores = [evaluation.train] if evaluation.test is None else [evaluation.train, evaluation.test]
    if not all(each.n > 0 for each in scores):
        return "no-samples"
    # Of more than two classes the squared errors of all probabilities count, 2 at most in a row.
    most = 1.0 if state.plan is None or state.plan.sizes.n_outputs == 1 else 2.0
    return (
        "accepted"
        if all(_plausible(each, most) for each in scores) and _has_information(state, evaluation)
        else "out-of-bounds"
    )


def _has_information(state: State, evaluation: Evaluation) -> bool:
    """Whether it brings what standard errors are made of, where they are wanted, and rows can have that."""
    wanted = "none" if state.plan is None else state.plan.inference
    information = evaluation.information
    if information is None:
        return wanted == "none"
    sums = {"gradient": information.gradient, "hessian": information.hessian}
    if information.meat is not None:
        sums["meat"] = information.meat
    plausible = _are_sums(state, sums, evaluation.train.n)
    return plausible and (wanted != "sandwich" or information.meat is not None)


def _plausible(scores: Scores, largest_brier: float) -> bool:
    """Whether each sum over rows lies between what the least and the largest terms would give."""
    n = scores.n
    counts = [scores.positives, scores.negatives]
    return (
        n <= LARGEST
        and 0 <= scores.log_loss_sum <= LARGEST
        and 0 <= scores.brier_sum <= largest_brier * n
        and 0 <= scores.correct <= n
        and all(bool(((count >= 0) & (count <= n)).all()) for count in counts)
    )


def _update(state: State, member: Member, update: ModelUpdate) -> Verdict:
    progress, rules = state.progress, state.rules
    reasons: dict[Verdict, bool] = {
        "future-version": _is_unknown(state, update.base_version, update.epoch),
        "training-over": progress.phase in {"verifying", "converged"} and update.kind not in ANSWERS,
        "failed": update.kind == "failed",
        "wrong-phase": not _is_asked(state, update),
        # To take it would displace the one that was accepted, and that one would be in no model, ever.
        "unasked": member.pending != "" or member.evicted,
        "stale": progress.version - update.base_version > rules.max_staleness,
        "incomplete": _lacks_hessian(state, update),
    }
    refused = next((verdict for verdict, holds in reasons.items() if holds), None)
    return refused or _content(state, member, update)


def _is_asked(state: State, update: ModelUpdate) -> bool:
    """Whether an update of this kind is what is asked for now."""
    phase, kind = state.progress.phase, update.kind
    if kind == "moments":
        return state.needs_moments_of(update.participant)
    if kind in ANSWERS:
        return phase == "verifying" and ANSWERS[kind] == state.progress.stage
    # The penalty of who has not sent its moments is not known: what it contributes comes after them.
    return phase == "training" and kind == state.strategy.kind and not state.needs_moments_of(update.participant)


def _lacks_hessian(state: State, update: ModelUpdate) -> bool:
    """Whether it refers to a Hessian that it sent before, and there is none."""
    held = state.strategy_state.held.get(update.participant)
    return update.kind == "curvature" and "hessian" not in update.arrays and held is None


def _content(state: State, member: Member, update: ModelUpdate) -> Verdict:
    if not _has_its_lengths(state, update):
        return "malformed"
    if not update.n_samples > 0:
        return "no-samples"
    # More rows than it has said would let it pull harder than anybody else.
    plan = state.plan
    heaviest = max(plan.class_weights, default=1.0) if plan is not None else 1.0
    most = member.weight * heaviest * ROUNDING
    believable = update.n_samples <= most and 0 <= update.loss <= LARGEST
    return "accepted" if believable and _within_bounds(state, update) else "out-of-bounds"


def _within_bounds(state: State, update: ModelUpdate) -> bool:
    if update.kind == "moments":
        return _are_moments(update)
    sums = {name: array for name, array in update.arrays.items() if name in POWERS}
    others = {name: array for name, array in update.arrays.items() if name not in POWERS}
    if update.kind in ANSWERS:
        fits = all(len(array) == _n_asked(state, name) for name, array in update.arrays.items())
        return fits and all(map(_are_not_negative, others.values())) and _are_sums(state, sums, update.n_samples)
    small = all(float(np.linalg.norm(array)) <= state.rules.max_norm for array in others.values())
    return small and _is_quadratic(update) and _are_sums(state, sums, update.n_samples)


def _n_asked(state: State, part: str) -> int:
    """Return the length of ``part`` in an answer to what is asked about the last model; 0 of what is not asked."""
    question, sizes = state.question, plan_of(state).sizes
    if part in {"wrong", "on", "right"}:
        return question["directions"].size // sizes.parameters
    if "path_weights" in question:
        each = {"gradients": sizes.parameters, "hessians": sizes.packed}.get(part, 1)
        return question["path_weights"].size // sizes.parameters * each
    edges = question.get(f"{part.partition('_')[0]}_edges")
    return 0 if edges is None else edges.size + 1


def _are_not_negative(sums: Array) -> bool:
    return bool(((sums >= 0) & (sums <= LARGEST)).all())


def _are_sums(state: State, sums: Mapping[str, Array], n: float) -> bool:
    """Whether ``n`` rows of the norm that is allowed can have them; no direction of a matrix bends down then."""
    packed = plan_of(state).sizes.packed
    return all(
        float(np.linalg.norm(array)) <= n * state.rules.max_norm ** POWERS[name]
        and (POWERS[name] == 1 or all(map(_is_positive, array.reshape(-1, packed))))
        for name, array in sums.items()
    )


def _are_moments(update: ModelUpdate) -> bool:
    """Whether rows can have them; they are in the columns' own units, which may be anything."""
    try:
        moments = Moments(update.n_samples, **update.arrays)
    except LogisticError:
        return False
    return bool((np.abs(moments.mean) <= LARGEST).all() and (np.sqrt(moments.m2) <= LARGEST).all())


def _is_quadratic(update: ModelUpdate) -> bool:
    """Whether theta is a share, 0 where a Hessian is left out, and nothing is of a negative length."""
    theta, reach, drift = (update.arrays[name][0] if name in update.arrays else 0.0 for name in SCALARS)
    largest_theta = 1.0 if "hessian" in update.arrays else 0.0
    return bool(0.0 <= theta <= largest_theta and reach >= 0.0 and drift >= 0.0)


def _is_positive(packed: Array) -> bool:
    """Whether no direction of a matrix, (n_packed,), bends down."""
    H = unpack(packed)
    diagonal = np.diag(H)
    shift = CONVEX_TO_ROUNDING * max(float(diagonal.max()), np.finfo(float).tiny)
    try:
        np.linalg.cholesky(H + shift * np.eye(len(H)))
    except np.linalg.LinAlgError:
        return False
    return bool((diagonal >= 0).all())
