"""What becomes of a contribution: examined, written into the ledger, and given to the strategy."""

from __future__ import annotations

from dataclasses import replace

from aggregator import admission
from aggregator.events import (
    ContributionArrived,
    Observe,
    Record,
    Reject,
)
from aggregator.fit import plan_of
from aggregator.progression import go_on, suspicions
from aggregator.state import Answer, State
from aggregator.steps import Step, announce, heard_of, then, with_member
from aggregator.strategies import Contribution
from broker.messages import (
    Evaluation,
    ModelUpdate,
    contribution_id,
)
from logistic.moments import Moments

#: Verdicts on what a participant makes of a model, whenever it is asked.
UNUSABLE = {"failed", "malformed", "out-of-bounds", "no-samples"}


def contribution_arrived(state: State, event: ContributionArrived) -> Step:
    """Judge a contribution, once, and go on with it."""
    contribution, at = event.contribution, event.at
    verdict = admission.examine(state, contribution)
    name = contribution.participant
    if verdict == "unknown-participant":
        return _not_waiting(state, contribution), [Reject(verdict)]
    kind = "evaluation" if isinstance(contribution, Evaluation) else contribution.kind
    base = contribution.version if isinstance(contribution, Evaluation) else contribution.base_version
    state = heard_of(state, name, at)
    staleness = state.progress.version - base
    observed = Observe(
        "contribution_examined",
        {"participant": name, "kind": kind, "verdict": verdict, "base_version": base, "staleness": staleness},
    )
    if verdict == "duplicate":
        return state, [observed]
    update_id = contribution_id(contribution)
    record = Record(update_id, name, kind, base, state.progress.version, verdict, event.digest)
    if verdict != "accepted":
        state = _refuse(state, contribution, verdict)
        if state.plan is None:
            return state, [record, observed]  # left over from an earlier life; the first model will settle it
        state, sent = announce(state, name)
        return then((state, [record, observed, *sent]), lambda after: go_on(after, at))
    state = with_quorum(_accept(state, contribution, update_id), at)
    accepted: Step = (state, [record, observed])
    if kind == "moments" and state.progress.phase == "training":
        # Of one that came late: it is asked to train now, and everybody else may be waiting for just that.
        accepted = then((state, [*accepted[1], *suspicions(state, name)]), lambda after: announce(after, name))
    return then(accepted, lambda after: go_on(after, at))


def _not_waiting(state: State, contribution: ModelUpdate | Evaluation) -> State:
    """Settle what a barred participant sent before it knew: barred no longer, it would wait for that for ever."""
    member = state.members.get(contribution.participant)
    ours = member is not None and contribution.incarnation == member.incarnation
    if member is None or not ours or contribution.sequence <= member.received:
        return state
    return _refuse(state, contribution, "unknown-participant")


def with_quorum(state: State, at: float) -> State:
    """Note when so many contributions are in that the others are waited for only so much longer."""
    quorum = state.strategy.pace_of(state.strategy_state).quorum
    reached = state.quorum_since is None and len(state.received) >= quorum
    return replace(state, quorum_since=at) if reached else state


def _refuse(state: State, contribution: ModelUpdate | Evaluation, verdict: str) -> State:
    member, sequence = state.members[contribution.participant], contribution.sequence
    if contribution.incarnation != member.incarnation:
        # The participant that sent it has lost its memory of it: there is nobody to tell. But it was judged.
        return with_member(state, replace(member, former=member.with_former(contribution.incarnation, sequence)))
    member = replace(member, received=sequence, settled=sequence, refusal=verdict)
    # The same fit from the same model would be refused again: it is asked of the next one.
    if verdict in UNUSABLE and isinstance(contribution, ModelUpdate):
        member = replace(member, failed_at=contribution.base_version)
    return with_member(state, member)


def _accept(state: State, contribution: ModelUpdate | Evaluation, update_id: str) -> State:
    name, sequence = contribution.participant, contribution.sequence
    member = replace(state.members[name], received=sequence, refusal="")
    if isinstance(contribution, Evaluation):
        state = replace(state, scores={**state.scores, name: contribution})
        return with_member(state, replace(member, settled=sequence))
    if contribution.kind == "moments":
        moments = Moments(contribution.n_samples, **contribution.arrays)
        state = replace(state, moments={**state.moments, name: moments})
        return with_member(state, replace(member, settled=sequence))
    if contribution.kind in admission.ANSWERS:
        state = replace(state, answers={**state.answers, name: Answer(contribution.arrays)})
        return with_member(state, replace(member, settled=sequence))
    held = Contribution(
        participant=name,
        update_id=update_id,
        base_version=contribution.base_version,
        staleness=state.progress.version - contribution.base_version,
        n_samples=contribution.n_samples,
        share=_share(state, contribution),
        arrays=contribution.arrays,
        loss=contribution.loss,
        fit_seconds=contribution.fit_seconds,
    )
    state = replace(state, strategy_state=state.strategy.receive(state.strategy_state, held))
    fit_steps = member.steps or plan_of(state).work.steps
    measured = replace(member, fit_seconds=contribution.fit_seconds, fit_steps=fit_steps)
    return with_member(state, replace(measured, pending=update_id, loss=contribution.loss))


def _share(state: State, update: ModelUpdate) -> float:
    """Return its rows over the mean of all members' rows."""
    rows = [member.weight for member in state.members.values() if member.takes_part]
    return update.n_samples * len(rows) / max(1, sum(rows))
