"""Who belongs to the federation, and who is there: hellos, heartbeats, goodbyes, silence, and rows that are others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from aggregator import convergence
from aggregator.announcement import asked_of, global_model
from aggregator.events import (
    EVERYBODY,
    GiveUp,
    HeartbeatArrived,
    HelloArrived,
    Made,
    Observe,
    Outrun,
    Reject,
    Send,
)
from aggregator.fit import plan_of, weights_of
from aggregator.plan import (
    arrays_fit_into_message,
    chosen_l2,
    enrol,
    first_plan,
    fits_into_message,
)
from aggregator.progression import enter, go_on, unverified
from aggregator.state import Member, Presence, Rules, State
from aggregator.steps import Step, announce, heard_of, then, with_member, with_plan, with_presence
from broker.messages import (
    Goodbye,
    Plan,
)

#: A tick so many times later than silence begins: this process, not the participants, was away.
OVERSLEPT = 1.25

#: Terms by which a store from a backup may be behind: who claims more means to use the numbers up. And who claims it
#: again and again makes a term last as long as it takes to fall silent, no shorter.
MOST_TERMS_LOST = 1_000_000


def evictions(state: State) -> dict[str, float]:
    """Return who is gone, and from when on what it contributed counts no longer."""
    patience = state.rules.evict_seconds
    if patience is None or state.plan is None:
        return {}
    return {
        name: presence.last_heard + patience
        for name, presence in state.presence.items()
        if presence.state != "live" and state.members[name].takes_part
    }


def hello_arrived(state: State, event: HelloArrived) -> Step:
    """Enrol who said hello, or know it again; answer with plan and model."""
    hello, at = event.hello, event.at
    name = hello.participant
    if name not in state.rules.participants:
        return state, [Reject("unknown-participant")]
    known = state.members.get(name)
    member = replace(enrol(known, hello, state.plan), heard=event.digest)
    presence = Presence("live", at)
    state = replace(state, members={**state.members, name: member}, presence={**state.presence, name: presence})
    greeted = Observe(
        "participant_said_hello",
        {"participant": name, "n_rows": hello.n_rows, "n_test_rows": hello.n_test_rows, "barred": member.barred},
    )
    if state.plan is None:
        return then((state, [greeted]), lambda after: start_if_enough(after, at))
    took_part = known is not None and known.takes_part
    brings_others = known is not None and _data_of(known) != _data_of(member)
    if member.takes_part and (brings_others or not took_part or _was_missed(state, member)):
        state, reopened = _with_other_data(state, name, at, brings_others=brings_others)
        return then((state, [greeted, *reopened]), lambda after: go_on(after, at))
    state, sent = announce(state, name)
    told: Step = (state, [greeted, Send(plan_of(state), name), *sent])
    if took_part and member.barred:
        told = then(told, lambda after: _without(after, name, at))
    return then(told, lambda after: go_on(after, at))


def _was_missed(state: State, member: Member) -> bool:
    """Whether training has ended without ``member``: gone before it contributed, or before an optimum was verified."""
    progress = state.progress
    # Everybody whom an optimum is verified with has contributed at just the weights before it.
    is_verified = state.strategy.exact and progress.converged
    was_gone = member.loss is None or (is_verified and member.last_base_version < progress.version - 1)
    return progress.phase in {"verifying", "converged"} and was_gone


def _data_of(member: Member) -> tuple[int, float | None, str]:
    """Return what changes when the rows behind ``member`` do."""
    return member.n_rows, member.n_samples, member.fingerprint


def _with_other_data(state: State, name: str, at: float, *, brings_others: bool = False) -> Step:
    """Begin again with what there is, now that ``name`` has joined, left or ``brings_others``: other rows.

    Its moments are asked for anew, and its contributions; those of the others stay.
    """
    state = _forgotten(state, name)
    plan, l2 = plan_of(state), chosen_l2(state.rules, state.members)
    if brings_others or l2 != plan.l2:
        # What is on its way is of rows that are gone, or for another objective: another plan refuses it.
        state = with_plan(state, replace(plan, revision=plan.revision + 1, l2=l2))
    if state.progress.phase == "moments":
        return enter(state, "moments", at, plan_changed=True)
    observed = Observe("training_reopened", {"participant": name, "version": state.progress.version})
    progress = convergence.reopened(state.progress)
    strategy_state = replace(state.strategy_state, wanted=None)
    if brings_others and state.strategy.exact:  # the way to an optimum that is another one now
        strategy_state = replace(strategy_state, shared=state.strategy.init(weights_of(state)).shared)
    state = replace(state, progress=progress, strategy_state=strategy_state)
    return then((state, [observed]), lambda after: enter(after, "training", at, plan_changed=True))


def _forgotten(state: State, name: str) -> State:
    """Return ``state`` without what was made of the rows that ``name`` had; what it has in flight is settled."""
    member = state.members[name]
    member = replace(member, pending="", settled=member.received, loss=None, failed_at=None)
    held = {other: value for other, value in state.strategy_state.held.items() if other != name}
    moments = {other: value for other, value in state.moments.items() if other != name}
    return replace(with_member(state, member), moments=moments, strategy_state=replace(state.strategy_state, held=held))


def evict(state: State, at: float) -> Step:
    """Take out who has been gone too long; the others go on without its rows."""
    step_: Step = (state, [])
    for name, due in sorted(evictions(state).items()):
        if at >= due:
            step_ = then(step_, partial(_evicted, name=name, at=at))
    return step_


def _evicted(state: State, name: str, at: float) -> Step:
    state = with_member(state, replace(state.members[name], evicted=True))
    return then((state, [Observe("participant_evicted", {"participant": name})]), lambda s: _without(s, name, at))


def _without(state: State, name: str, at: float) -> Step:
    """Let the others go on without the rows of ``name``, which takes part no longer; if there are any."""
    if any(member.takes_part for member in state.members.values()):
        return _with_other_data(state, name, at)
    return unverified(_forgotten(state, name)), []


def start_if_enough(state: State, at: float) -> Step:
    """Make the first plan as soon as enough have said hello whose columns fit."""
    rules = state.rules
    enrolled = [state.members[name] for name in rules.participants if name in state.members]
    if len(enrolled) < rules.start_with:
        return state, []
    plan, members = first_plan(rules, enrolled)
    usable = [member for member in members.values() if not member.barred]
    barred = [
        Observe("participant_barred", {"participant": member.name, "reason": member.barred})
        for member in members.values()
        if member.barred
    ]
    if len(usable) < rules.start_with:
        return state, list(barred)
    if problem := _unsuitable(rules, plan):
        return state, [*barred, GiveUp(problem)]
    weights = np.zeros(plan.sizes.parameters)
    state = replace(with_plan(state, plan), members=members, weights=weights)
    state = replace(state, strategy_state=state.strategy.init(weights))
    state, actions = enter(state, "moments" if rules.need_moments(plan) else "training", at, plan_changed=True)
    return state, [*barred, Made(state.progress.version, weights), *actions]


def _unsuitable(rules: Rules, plan: Plan) -> str:
    """Return why the settings do not suit what the sites have, or nothing."""
    n_classes = len(plan.classes)
    if rules.class_weights and len(rules.class_weights) != n_classes:
        return (
            f"class_weights has {len(rules.class_weights)} numbers, and the sites have {n_classes} classes: give each"
        )
    if rules.penalty == "firth" and n_classes != len(("no", "yes")):
        return f"penalty firth is for two classes, and the sites have {n_classes}: use l2"
    n_parameters = plan.sizes.parameters
    if rules.need_moments(plan) and not arrays_fit_into_message(len(plan.features), n_arrays=2):
        return (
            f"the moments of {len(plan.features)} columns are too large for a message: do not standardise "
            "(--no-standardise), with a strategy that needs no learning rate, or use fewer columns"
        )
    if rules.l1 and plan.kind != "curvature":
        return f"l1 needs matrices that are too large with {n_parameters} parameters: use l2, or fewer columns"
    if plan.kind in {"curvature", "firth"} and not fits_into_message(plan.sizes, n_matrices=1):
        return f"strategy {plan.strategy} needs matrices that are too large with {n_parameters} parameters: use lbfgs"
    return ""


def heartbeat_arrived(state: State, event: HeartbeatArrived) -> Step:
    """Note that somebody is there, and send it again what it has missed."""
    heartbeat = event.heartbeat
    name = heartbeat.participant
    if name not in state.presence or state.members[name].incarnation != heartbeat.incarnation:
        return state, []  # its hello is on the way, or it may not take part and was told so
    before = state.presence[name]
    # Who does not tell of terms, as an earlier version of ours, is taken to mean this one.
    seen = heartbeat.epoch or state.progress.epoch, heartbeat.bulletin
    state = heard_of(state, name, event.at, seen)
    heard, ours = (heartbeat.epoch, heartbeat.bulletin), (state.progress.epoch, state.progress.bulletin)
    soon = state.outrun_at is not None and event.at < state.outrun_at + state.rules.silence_seconds
    if not soon and ours < heard < (state.progress.epoch + MOST_TERMS_LOST, 0):
        told = {"participant": name, "epoch": heartbeat.epoch, "ours": state.progress.epoch}
        return state, [Observe("store_is_older", told), Outrun(heartbeat.epoch)]
    member = state.members[name]
    if member.evicted or (before.state == "silent" and member.takes_part and _was_missed(state, member)):
        # It had only been cut off: no other hello is to be expected.
        return _with_other_data(with_member(state, replace(member, evicted=False)), name, event.at)
    # Twice the same, and not the newest that it was sent: that one is lost, not late.
    # Of an earlier term is behind too, whatever its number: after a backup bulletins count from where that stood.
    behind = seen < (state.progress.epoch, before.addressed) and seen == before.seen
    if not behind or heartbeat.state == "working":
        return state, []
    return state, [Send(global_model(state), name)]  # who lacks the plan says hello again


def goodbye_arrived(state: State, goodbye: Goodbye, at: float) -> Step:
    """Wait no longer for who leaves in order."""
    name = goodbye.participant
    if name not in state.presence or state.members[name].incarnation != goodbye.incarnation:
        return state, []
    gone = with_presence(state, name, replace(state.presence[name], state="left", last_heard=at))
    gone, sent = asked_anew(state, gone)
    left = Observe("participant_left", {"participant": name})
    return then((gone, [left, *sent]), lambda after: go_on(after, at))


def asked_anew(before: State, after: State) -> Step:
    """Tell everybody where others are asked now: who has gone is replaced, and who replaces it has to know."""
    if after.progress.phase != "training" or before.live == after.live:
        return after, []
    asked = [{name for name in s.able if asked_of(s, s.members[name])} for s in (before, after)]
    return announce(after, EVERYBODY) if asked[1] - asked[0] else (after, [])


def notice_silence(state: State, at: float) -> State:
    """Mark who has not been heard of for too long; but it was us who slept where even the tick comes too late."""
    limit = state.rules.silence_seconds
    heard = [p.last_heard for p in state.presence.values() if p.state == "live"]
    if heard and at >= min(heard) + OVERSLEPT * limit:
        presence = {name: replace(p, last_heard=at) for name, p in state.presence.items()}
    else:
        presence = {
            name: replace(p, state="silent") if p.state == "live" and at >= p.last_heard + limit else p
            for name, p in state.presence.items()
        }
    return replace(state, presence=presence)


def silences(before: State, after: State) -> list[Observe]:
    """Tell who has fallen silent in a step, and who is heard again; ``n_live`` are those whom anything is asked of."""
    found = []
    for name, now in after.presence.items():
        former = before.presence.get(name, now)
        if former.state == now.state:
            continue
        told = {"participant": name, "n_live": len(after.live)}
        match former.state, now.state:
            case "live", "silent":
                found.append(Observe("participant_silent", {**told, "seconds": after.rules.silence_seconds}))
            case "silent", "live":
                seconds = now.last_heard - former.last_heard
                found.append(Observe("participant_heard_again", {**told, "seconds": seconds}))
    return found
