"""The aggregator's state machine: (state, event) -> (state, actions). All that it decides is decided here.

Theory of operation. A federation starts when enough participants have said hello: the first one's columns
become the plan. If the columns are to be standardised, or a learning rate chosen, everybody is first asked for the
moments of its rows; merged, they are frozen into the plan. Then everybody is asked to train, contributions go
to the strategy, and whenever its pace says so there is a next version. When the loss has stopped falling
the model is frozen, everybody evaluates it once, and it is released.

::

    enrolling ──enough hellos──► moments ──all live have reported──► training
        └──────────────nothing needs them───────────────────────────────►│
    training ──no further version to be made──► verifying ──all live have evaluated, or in time──► converged

============ ==================================== ==============================================================
event        in any phase                         besides
============ ==================================== ==============================================================
hello        enrol, or know again; answer with    enrolling: start when enough are there
             plan and model
update       examine; ledger; a refused one is    moments: merge. training: to the strategy, and on to the next
             settled and answered                 version when it is due
evaluation   examine; ledger                      verifying: release when all live have answered
heartbeat    it is live; one that stays behind    whoever was silent is waited for again
             the newest bulletin gets it again
goodbye      it has left, nobody waits for it     whatever waited only for it goes on
tick         who has not been heard of is silent  deadlines: of the buffer, of the last evaluation
============ ==================================== ==============================================================

One update in flight: a participant is asked again only when its last contribution is settled, that is
included or refused. Answering every broadcast would let updates outrun the buffer, and staleness grow without bound.

Time comes in the events, as seconds of a clock that never goes back; nothing here looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

import numpy as np

from aggregator import admission, convergence
from aggregator.announcement import asked_of, global_model
from aggregator.events import (
    EVERYBODY,
    Action,
    ContributionArrived,
    Event,
    GiveUp,
    GoodbyeArrived,
    HeartbeatArrived,
    HelloArrived,
    Include,
    Made,
    Observe,
    Record,
    Reject,
    Release,
    Send,
    Tick,
)
from aggregator.plan import enrol, first_plan, frozen_plan
from aggregator.released import release
from aggregator.state import Member, Presence, Progress, Rules, State
from aggregator.strategies import Contribution, Situation
from broker import codec
from broker.messages import (
    Array,
    Evaluation,
    Goodbye,
    ModelUpdate,
    Phase,
    Plan,
    contribution_id,
)
from logistic.moments import Moments

Step = tuple[State, list[Action]]

#: A tick so many times later than silence begins: this process, not the participants, was away.
OVERSLEPT = 1.25

#: Verdicts on what a participant makes of a model, whenever it is asked.
UNUSABLE = {"failed", "out-of-bounds", "no-samples"}


def step(state: State, event: Event) -> Step:
    """Return the state after ``event``, and what is to be done; commit before anything is sent or acknowledged."""
    match event:
        case HelloArrived():
            return _hello(state, event)
        case ContributionArrived():
            return _contribution(state, event)
        case HeartbeatArrived():
            return _heartbeat(state, event)
        case GoodbyeArrived(goodbye, at):
            return _goodbye(state, goodbye, at)
        case Tick(at):
            return _go_on(_notice_silence(state, at), at)
    assert_never(event)


def restored(state: State, at: float) -> Step:
    """Return ``state``, fresh from the store, under a new epoch; everybody is taken to be there until silent."""
    presence = {name: Presence("live", at) for name in state.members}
    state = replace(
        state,
        progress=replace(state.progress, epoch=state.progress.epoch + 1),
        presence=presence,
        version_since=at,
        sweep_since=at,
    )
    if state.plan is None:
        return _start_if_enough(state, at)
    state, sent = _announce(state, EVERYBODY)
    return _then((state, [Send(_plan(state), EVERYBODY), *sent, _phase(state)]), lambda after: _go_on(after, at))


def wake_at(state: State) -> float | None:
    """Return when the next `Tick` can change something; None while only messages can.

    A time that has come must not be returned again after its tick: whoever sleeps until then would not sleep
    at all. So what is due is found by comparing with the very sums that stand here, not with differences of times,
    which round otherwise.
    """
    silence, pace = state.rules.silence_seconds, state.rules.strategy.pace_of(state.strategy_state)
    times = [p.last_heard + silence for p in state.presence.values() if p.state == "live"]
    if state.progress.phase == "training" and len(state.received) >= pace.quorum:
        times.append(state.version_since + pace.deadline_seconds)
    if state.progress.phase == "verifying" and state.scores:
        times.append(state.sweep_since + state.rules.sweep_seconds)
    return min(times, default=None)


# --- hello ----------------------------------------------------------------------------------


def _hello(state: State, event: HelloArrived) -> Step:
    hello, at = event.hello, event.at
    name = hello.participant
    if name not in state.rules.participants:
        return state, [Reject("unknown-participant")]
    member = enrol(state.members.get(name), hello, state.plan)
    presence = Presence("live", at)
    state = replace(state, members={**state.members, name: member}, presence={**state.presence, name: presence})
    greeted = Observe(
        "participant_said_hello",
        {"participant": name, "n_rows": hello.n_rows, "n_test_rows": hello.n_test_rows, "barred": member.barred},
    )
    if state.plan is None:
        return _then((state, [greeted]), lambda after: _start_if_enough(after, at))
    state, sent = _announce(state, name)
    # One whose columns have changed is barred from here on, and others may have waited only for it.
    return _then((state, [greeted, Send(_plan(state), name), *sent]), lambda after: _go_on(after, at))


def _start_if_enough(state: State, at: float) -> Step:
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
    weights = np.zeros(len(plan.features) + 1)
    started = rules.strategy.init(weights)
    state = replace(_with_plan(state, plan), members=members, weights=weights, strategy_state=started)
    needs_moments = rules.standardise or rules.choose_learning_rate
    state, actions = _enter(state, "moments" if needs_moments else "training", at, plan_changed=True)
    return state, [*barred, Made(state.progress.version, weights), *actions]


# --- contributions --------------------------------------------------------------------------


def _contribution(state: State, event: ContributionArrived) -> Step:
    contribution, at = event.contribution, event.at
    verdict = admission.examine(state, contribution)
    if verdict == "unknown-participant":
        return state, [Reject(verdict)]
    name = contribution.participant
    kind = "evaluation" if isinstance(contribution, Evaluation) else contribution.kind
    base = contribution.version if isinstance(contribution, Evaluation) else contribution.base_version
    state = _heard(state, name, at)
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
        state, sent = _announce(state, name)
        return _then((state, [record, observed, *sent]), lambda after: _go_on(after, at))
    state = _accept(state, contribution, update_id)
    return _then((state, [record, observed]), lambda after: _go_on(after, at))


def _refuse(state: State, contribution: ModelUpdate | Evaluation, verdict: str) -> State:
    member, sequence = state.members[contribution.participant], contribution.sequence
    if contribution.incarnation != member.incarnation:
        # The participant that sent it has lost its memory of it: there is nobody to tell. But it was judged.
        return _with_member(state, replace(member, former={**member.former, contribution.incarnation: sequence}))
    member = replace(member, received=sequence, settled=sequence, refusal=verdict)
    # The same fit from the same model would be refused again: it is asked of the next one.
    if verdict in UNUSABLE and isinstance(contribution, ModelUpdate):
        member = replace(member, failed_at=contribution.base_version)
    return _with_member(state, member)


def _accept(state: State, contribution: ModelUpdate | Evaluation, update_id: str) -> State:
    name, sequence = contribution.participant, contribution.sequence
    member = replace(state.members[name], received=sequence, refusal="")
    if isinstance(contribution, Evaluation):
        state = replace(state, scores={**state.scores, name: contribution})
        return _with_member(state, replace(member, settled=sequence))
    if contribution.kind == "moments":
        moments = Moments(contribution.n_samples, contribution.arrays["mean"], contribution.arrays["m2"])
        state = replace(state, moments={**state.moments, name: moments})
        return _with_member(state, replace(member, settled=sequence))
    held = Contribution(
        participant=name,
        update_id=update_id,
        base_version=contribution.base_version,
        staleness=state.progress.version - contribution.base_version,
        n_samples=contribution.n_samples,
        share=_share(state, contribution),
        arrays=contribution.arrays,
    )
    state = replace(state, strategy_state=state.rules.strategy.receive(state.strategy_state, held))
    return _with_member(state, replace(member, pending=update_id, loss=contribution.loss))


def _share(state: State, update: ModelUpdate) -> float:
    """Return its rows over the mean of all members' rows."""
    rows = [member.n_rows for member in state.members.values() if not member.barred]
    return update.n_samples * len(rows) / max(1, sum(rows))


# --- what may have become due -----------------------------------------------------------------


def _go_on(state: State, at: float) -> Step:
    """Take every step that nothing more needs to be waited for."""
    phase, live = state.progress.phase, state.live
    if phase == "moments" and live and state.moments.keys() >= live:
        return _freeze(state, at)
    if phase == "training":
        received, able = state.received, state.able
        pace = state.rules.strategy.pace_of(state.strategy_state)
        if pace.due(received, able, since=state.version_since, now=at) or _nobody_is_asked(state):
            return _next_version(state, at)
        if live and not able and not received:
            return state, [_diverged(state)]
    if phase == "verifying" and state.scores:
        late = at >= state.sweep_since + state.rules.sweep_seconds
        if late or (live and state.scores.keys() >= live):
            return _release(state, at)
    return state, []


def _nobody_is_asked(state: State) -> bool:
    """Whether all whom the strategy wants to hear have gone meanwhile: it has to think again."""
    return (
        bool(state.able) and not state.received and not any(asked_of(state, state.members[name]) for name in state.able)
    )


def _diverged(state: State) -> GiveUp:
    return GiveUp(
        f"the local fit of every site diverged from version {state.progress.version} on, or is out of all bounds: set "
        "a smaller learning_rate or fewer local_steps; a service begins again with a new state folder"
    )


def _freeze(state: State, at: float) -> Step:
    plan = frozen_plan(_plan(state), state.rules, state.moments)
    return _enter(_with_plan(state, plan), "training", at, plan_changed=True)


def _next_version(state: State, at: float) -> Step:
    rules, progress = state.rules, state.progress
    held = state.strategy_state.held
    situation = Situation(_plan(state).l2, state.received, state.live)
    finished = rules.strategy.finish(state.strategy_state, _weights(state), situation)
    version = progress.version + 1
    included = [Include(held[name].update_id, version, rules.strategy.weigh(held[name])) for name in finished.included]
    members = {**state.members}
    for name in finished.included:
        members[name] = _included(members[name], held[name])
    made = Made(version, finished.weights)
    loss = convergence.federated_loss(_reporting(state, members), _plan(state).l2, finished.weights)
    progress = convergence.observe(replace(progress, version=version), loss, finished.converged, rules)
    observed = Observe(
        "version_made",
        {
            "version": version,
            "loss": loss,
            "round_seconds": at - state.version_since,
            "staleness": {name: held[name].staleness for name in finished.included},
            "late": sorted(_late(state, version, set(finished.included))),
        },
    )
    state = replace(
        state,
        progress=progress,
        members=members,
        weights=finished.weights,
        strategy_state=finished.state,
        version_since=at,
    )
    if convergence.is_over(progress, rules):
        return _then((state, [*included, made, observed]), lambda after: _enter(after, "verifying", at))
    state, sent = _announce(state, EVERYBODY)
    return state, [*included, made, observed, *sent]


def _reporting(state: State, members: Mapping[str, Member]) -> list[Member]:
    """Return whose losses make the loss: all that may take part, but not who has gone before it ever reported one."""
    live = state.live
    return [m for m in members.values() if not m.barred and (m.loss is not None or m.name in live)]


def _late(state: State, version: int, included: set[str]) -> set[str]:
    """Return who is later than the others.

    In rounds that is who missed this one. Where versions are made at a count, most participants are not in
    each: late is who has let more versions pass than there are participants to make them.
    """
    missing = set(state.live) - included
    if state.rules.strategy.pace.count is None:
        return missing
    patience = len(state.live) + 1
    return {name for name in missing if version - state.members[name].last_base_version > patience}


def _included(member: Member, held: Contribution) -> Member:
    """Return ``member`` whose pending update is in a model now."""
    mine, _, sequence = held.update_id.rpartition(":")
    settled = int(sequence) if mine == f"{member.name}:{member.incarnation}" else 0
    return replace(
        member,
        settled=max(member.settled, settled),
        pending="",
        included=member.included + 1,
        last_base_version=held.base_version,
    )


def _release(state: State, at: float) -> Step:
    model = release(state)
    observed = Observe("model_released", {"version": model.version, "converged": model.converged})
    return _then(_enter(state, "converged", at), lambda after: (after, [Release(model), observed]))


def _enter(state: State, phase: Phase, at: float, *, plan_changed: bool = False) -> Step:
    """Go to another phase and tell everybody what is asked of them there."""
    state = replace(state, progress=replace(state.progress, phase=phase), version_since=at, sweep_since=at)
    state, sent = _announce(state, EVERYBODY)
    plan: list[Action] = [Send(_plan(state), EVERYBODY)] if plan_changed else []
    return _then((state, [*plan, *sent, _phase(state)]), lambda after: _go_on(after, at))


# --- presence -------------------------------------------------------------------------------


def _heartbeat(state: State, event: HeartbeatArrived) -> Step:
    heartbeat = event.heartbeat
    name = heartbeat.participant
    if name not in state.presence or state.members[name].incarnation != heartbeat.incarnation:
        return state, []  # its hello is on the way, or it may not take part and was told so
    before = state.presence[name]
    state = _heard(state, name, event.at, bulletin=heartbeat.bulletin)
    # Twice the same, and not the newest that it was sent: that one is lost, not late.
    behind = heartbeat.bulletin < before.addressed and heartbeat.bulletin == before.bulletin_seen
    if not behind or heartbeat.state == "working":
        return state, []
    return state, [Send(_plan(state), name), Send(global_model(state), name)]


def _goodbye(state: State, goodbye: Goodbye, at: float) -> Step:
    name = goodbye.participant
    if name not in state.presence or state.members[name].incarnation != goodbye.incarnation:
        return state, []
    state = _with_presence(state, name, replace(state.presence[name], state="left", last_heard=at))
    return _then((state, [Observe("participant_left", {"participant": name})]), lambda after: _go_on(after, at))


def _heard(state: State, name: str, at: float, bulletin: int | None = None) -> State:
    before = state.presence[name]
    # Contributions and goodbyes travel by queues of their own: one that comes after a goodbye was sent before it.
    left = before.state == "left" and bulletin is None
    seen = before.bulletin_seen if bulletin is None else bulletin
    return _with_presence(state, name, Presence("left" if left else "live", at, seen, before.addressed))


def _notice_silence(state: State, at: float) -> State:
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


# --- small parts ----------------------------------------------------------------------------


def _announce(state: State, to: str) -> Step:
    """Publish the model with a newer roster, and note who was sent it."""
    bulletin = state.progress.bulletin + 1
    presence = {
        name: replace(p, addressed=bulletin) if to in {EVERYBODY, name} else p for name, p in state.presence.items()
    }
    state = replace(state, progress=replace(state.progress, bulletin=bulletin), presence=presence)
    return state, [Send(global_model(state), to)]


def _phase(state: State) -> Observe:
    return Observe("phase_entered", {"phase": state.progress.phase, "version": state.progress.version})


def _plan(state: State) -> Plan:
    assert state.plan is not None, "no plan before enough participants have said hello"
    return state.plan


def _weights(state: State) -> Array:
    assert state.weights is not None, "weights and plan come together"
    return state.weights


def _with_plan(state: State, plan: Plan) -> State:
    return replace(state, plan=plan, plan_hash=codec.plan_hash(plan))


def _with_member(state: State, member: Member) -> State:
    return replace(state, members={**state.members, member.name: member})


def _with_presence(state: State, name: str, presence: Presence) -> State:
    return replace(state, presence={**state.presence, name: presence})


def _then(first: Step, following: Callable[[State], Step]) -> Step:
    state, actions = first
    after, more = following(state)
    return after, [*actions, *more]


def first_state(rules: Rules) -> State:
    """Return the state of a federation that nobody has joined yet."""
    return State(rules=rules, progress=Progress())
