"""The aggregator's state machine: (state, event) -> (state, actions). All that it decides is decided here.

Theory of operation. A federation starts when enough participants have said hello: the first one's columns
become the plan. If the columns are to be standardised, or a learning rate chosen, everybody is first asked for the
moments of its rows; merged, they are frozen into the plan. Then everybody is asked to train, contributions go
to the strategy, and whenever its pace says so there is a next version. When the loss has stopped falling
the model is frozen, everybody evaluates it, answers what `aggregator.verification` still wants to know, and it is
released.

::

    enrolling ──enough hellos──► moments ──all live have reported──► training
        └──────────────nothing needs them───────────────────────────────►│
    training ──no further version to be made──► verifying ──all live have answered, or in time──► converged
        ▲                                           │                                                 │
        └──────── it was not the optimum ───────────┘                                                 │
        └──────── a site has joined, or its rows have changed, or it has been gone too long ──────────┘

============ ==================================== ==============================================================
event        in any phase                         besides
============ ==================================== ==============================================================
hello        enrol, or know again; answer with    enrolling: start when enough are there. Later: of other rows than
             plan and model                       were known, or of none, training begins again
update       examine; ledger; a refused one is    moments: merge. training: to the strategy, and on to the next
             settled and answered                 version when it is due. verifying: on to the next question
evaluation   examine; ledger                      verifying: on to the next question when all live have answered
heartbeat    it is live; one that stays behind    whoever was silent is waited for again; of one that counts no
             the newest bulletin gets it again;   longer, training begins again
             one that is ahead of it: our store
             is an old one, and a term begins
             that is above all
goodbye      it has left, nobody waits for it     whatever waited only for it goes on
tick         who has not been heard of is silent  deadlines: of the buffer, of the last questions, of an absence
============ ==================================== ==============================================================

When the rows of a site are not those any more that it contributed from, or do not count any more, whatever was made of
them is forgotten, also what was accepted and is in no version yet; what is on its way is refused, by another plan.
Everything else stays, in the frame that was frozen first.

One update in flight: a participant is asked again only when its last contribution is settled, that is
included or refused. Answering every broadcast would let updates outrun the buffer, and staleness grow without bound.

Time comes in the events, as seconds of a clock that never goes back; nothing here looks at a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial
from typing import assert_never

import numpy as np

from aggregator import admission, convergence, verification
from aggregator.agreement import disagreements
from aggregator.announcement import asked_of, global_model
from aggregator.effort import Measured, local_steps
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
    Outrun,
    Record,
    Reject,
    Release,
    Send,
    Tick,
)
from aggregator.plan import (
    arrays_fit_into_message,
    chosen_l2,
    enrol,
    first_plan,
    fits_into_message,
    frozen_plan,
    penalty,
    penalty_scale,
    without_empty,
)
from aggregator.released import release
from aggregator.state import Answer, Member, Presence, Progress, Rules, State, recipe
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
from logistic.errors import IndefiniteError
from logistic.moments import Moments

Step = tuple[State, list[Action]]

#: A tick so many times later than silence begins: this process, not the participants, was away.
OVERSLEPT = 1.25

#: Terms by which a store from a backup may be behind: who claims more means to use the numbers up.
MOST_TERMS_LOST = 1_000_000

#: Columns that are told of when sites seem not to mean the same by them; of more, something else is wrong.
MOST_SUSPECTED = 20

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
            present = _asked_anew(state, _notice_silence(state, at))
            return _then(_then(present, lambda after: _evict(after, at)), lambda after: _go_on(after, at))
    assert_never(event)


def restored(state: State, at: float, epoch: int, *, outrun: int = 0) -> Step:
    """Return ``state``, fresh from the store, under a new ``epoch``; everybody is taken to be there until silent.

    ``outrun`` is a term that participants have heard of, of which the store knows nothing; 0 where there is none.
    """
    if outrun:
        lost = replace(state.progress, lost_from=state.progress.version, lost_epoch=outrun)
        state = replace(state, progress=lost)
    presence = {name: Presence("live", at) for name in state.members}
    state = replace(
        state,
        progress=replace(state.progress, epoch=epoch),
        presence=presence,
        version_since=at,
        sweep_since=at,
    )
    state = _with_quorum(state, at)
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
    silence, pace = state.rules.silence_seconds, state.strategy.pace_of(state.strategy_state)
    times = [p.last_heard + silence for p in state.presence.values() if p.state == "live"]
    if state.progress.phase == "training":
        enough = pace.until(len(state.received), since=state.version_since, quorum_since=state.quorum_since)
        times.extend([] if enough is None else [enough])
    if state.progress.phase == "verifying" and state.scores:
        times.append(state.sweep_since + state.rules.sweep_seconds)
    times.extend(_evictions(state).values())
    return min(times, default=None)


def _evictions(state: State) -> dict[str, float]:
    """Return who is gone, and from when on what it contributed counts no longer."""
    patience = state.rules.evict_seconds
    if patience is None or state.plan is None:
        return {}
    return {
        name: presence.last_heard + patience
        for name, presence in state.presence.items()
        if presence.state != "live" and state.members[name].takes_part
    }


# --- hello ----------------------------------------------------------------------------------


def _hello(state: State, event: HelloArrived) -> Step:
    hello, at = event.hello, event.at
    name = hello.participant
    if name not in state.rules.participants:
        return state, [Reject("unknown-participant")]
    known = state.members.get(name)
    member = enrol(known, hello, state.plan)
    presence = Presence("live", at)
    state = replace(state, members={**state.members, name: member}, presence={**state.presence, name: presence})
    greeted = Observe(
        "participant_said_hello",
        {"participant": name, "n_rows": hello.n_rows, "n_test_rows": hello.n_test_rows, "barred": member.barred},
    )
    if state.plan is None:
        return _then((state, [greeted]), lambda after: _start_if_enough(after, at))
    took_part = known is not None and known.takes_part
    brings_others = known is not None and _data_of(known) != _data_of(member)
    if member.takes_part and (brings_others or not took_part or _was_missed(state, member)):
        state, reopened = _with_other_data(state, name, at, brings_others=brings_others)
        return _then((state, [greeted, *reopened]), lambda after: _go_on(after, at))
    state, sent = _announce(state, name)
    told: Step = (state, [greeted, Send(_plan(state), name), *sent])
    if took_part and member.barred:
        told = _then(told, lambda after: _without(after, name, at))
    return _then(told, lambda after: _go_on(after, at))


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
    plan, l2 = _plan(state), chosen_l2(state.rules, state.members)
    if brings_others or l2 != plan.l2:
        # What is on its way is of rows that are gone, or for another objective: another plan refuses it.
        state = _with_plan(state, replace(plan, revision=plan.revision + 1, l2=l2))
    if state.progress.phase == "moments":
        return _enter(state, "moments", at, plan_changed=True)
    observed = Observe("training_reopened", {"participant": name, "version": state.progress.version})
    progress = convergence.reopened(state.progress)
    strategy_state = replace(state.strategy_state, wanted=None)
    if brings_others and state.strategy.exact:  # the way to an optimum that is another one now
        strategy_state = replace(strategy_state, shared=state.strategy.init(_weights(state)).shared)
    state = replace(state, progress=progress, strategy_state=strategy_state)
    return _then((state, [observed]), lambda after: _enter(after, "training", at, plan_changed=True))


def _forgotten(state: State, name: str) -> State:
    """Return ``state`` without what was made of the rows that ``name`` had; what it has in flight is settled."""
    member = state.members[name]
    member = replace(member, pending="", settled=member.received, loss=None, failed_at=None)
    held = {other: value for other, value in state.strategy_state.held.items() if other != name}
    moments = {other: value for other, value in state.moments.items() if other != name}
    return replace(
        _with_member(state, member), moments=moments, strategy_state=replace(state.strategy_state, held=held)
    )


def _evict(state: State, at: float) -> Step:
    """Take out who has been gone too long; the others go on without its rows."""
    step_: Step = (state, [])
    for name, due in sorted(_evictions(state).items()):
        if at >= due:
            step_ = _then(step_, partial(_evicted, name=name, at=at))
    return step_


def _evicted(state: State, name: str, at: float) -> Step:
    state = _with_member(state, replace(state.members[name], evicted=True))
    return _then((state, [Observe("participant_evicted", {"participant": name})]), lambda s: _without(s, name, at))


def _without(state: State, name: str, at: float) -> Step:
    """Let the others go on without the rows of ``name``, which takes part no longer; if there are any."""
    if any(member.takes_part for member in state.members.values()):
        return _with_other_data(state, name, at)
    return _unverified(_forgotten(state, name)), []


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
    if problem := _unsuitable(rules, plan):
        return state, [*barred, GiveUp(problem)]
    weights = np.zeros(plan.sizes.parameters)
    state = replace(_with_plan(state, plan), members=members, weights=weights)
    state = replace(state, strategy_state=state.strategy.init(weights))
    state, actions = _enter(state, "moments" if rules.need_moments(plan) else "training", at, plan_changed=True)
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


# --- contributions --------------------------------------------------------------------------


def _contribution(state: State, event: ContributionArrived) -> Step:
    contribution, at = event.contribution, event.at
    verdict = admission.examine(state, contribution)
    name = contribution.participant
    if verdict == "unknown-participant":
        return _not_waiting(state, contribution), [Reject(verdict)]
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
    state = _with_quorum(_accept(state, contribution, update_id), at)
    accepted: Step = (state, [record, observed])
    if kind == "moments" and state.progress.phase == "training":
        # Of one that came late: it is asked to train now, and everybody else may be waiting for just that.
        accepted = _then((state, [*accepted[1], *_suspected(state, name)]), lambda after: _announce(after, name))
    return _then(accepted, lambda after: _go_on(after, at))


def _not_waiting(state: State, contribution: ModelUpdate | Evaluation) -> State:
    """Settle what a barred participant sent before it knew: barred no longer, it would wait for that for ever."""
    member = state.members.get(contribution.participant)
    ours = member is not None and contribution.incarnation == member.incarnation
    if member is None or not ours or contribution.sequence <= member.received:
        return state
    return _refuse(state, contribution, "unknown-participant")


def _with_quorum(state: State, at: float) -> State:
    """Note when so many contributions are in that the others are waited for only so much longer."""
    quorum = state.strategy.pace_of(state.strategy_state).quorum
    reached = state.quorum_since is None and len(state.received) >= quorum
    return replace(state, quorum_since=at) if reached else state


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
        moments = Moments(contribution.n_samples, **contribution.arrays)
        state = replace(state, moments={**state.moments, name: moments})
        return _with_member(state, replace(member, settled=sequence))
    if contribution.kind in admission.ANSWERS:
        state = replace(state, answers={**state.answers, name: Answer(contribution.arrays)})
        return _with_member(state, replace(member, settled=sequence))
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
    fit_steps = member.steps or _plan(state).work.steps
    measured = replace(member, fit_seconds=contribution.fit_seconds, fit_steps=fit_steps)
    return _with_member(state, replace(measured, pending=update_id, loss=contribution.loss))


def _share(state: State, update: ModelUpdate) -> float:
    """Return its rows over the mean of all members' rows."""
    rows = [member.weight for member in state.members.values() if member.takes_part]
    return update.n_samples * len(rows) / max(1, sum(rows))


# --- what may have become due -----------------------------------------------------------------


def _go_on(state: State, at: float) -> Step:
    """Take every step that nothing more needs to be waited for."""
    phase, live = state.progress.phase, state.live
    if phase == "moments" and live and state.moments.keys() >= live:
        return _freeze(state, at)
    if phase == "training":
        received, able = state.received, state.able
        pace = state.strategy.pace_of(state.strategy_state)
        since, quorum_since = state.version_since, state.quorum_since
        if pace.due(received, able, since=since, now=at, quorum_since=quorum_since) or _nobody_is_asked(state):
            return _next_version(state, at)
        if live and not able and not received:
            return state, [_diverged(state)]
    if phase == "verifying" and state.scores:
        late = at >= state.sweep_since + state.rules.sweep_seconds
        if late or (live and _have_answered(state) >= live):
            return _after_stage(state, at)
    return state, []


def _have_answered(state: State) -> AbstractSet[str]:
    """Return of whom nothing more is to be expected in the stage that is on."""
    if state.progress.stage == "evaluate":
        return state.scores.keys()
    # Who has no scores came too late to be asked anything else.
    return state.answers.keys() | (state.live - state.scores.keys())


def _after_stage(state: State, at: float) -> Step:
    match verification.after_stage(state):
        case verification.Ask(stage, question, found):
            progress = replace(state.progress, stage=stage)
            state = replace(state, progress=progress, question=question, answers={}, found=found)
            return _enter(state, "verifying", at)
        case verification.Resume():
            progress = replace(state.progress, examined_at=state.progress.version)
            return _enter(_unverified(replace(state, progress=progress)), "training", at)
        case verification.Impossible(reason):
            return state, [GiveUp(reason, no_model=True)]
        case verified:
            return _release(replace(state, found=verified.found), at)


def _unverified(state: State) -> State:
    """Return ``state`` that knows nothing yet of how its model does."""
    progress = replace(state.progress, stage="evaluate")
    return replace(state, progress=progress, scores={}, question={}, answers={}, found={})


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
    plan, moments = without_empty(_plan(state), state.moments)
    if plan.features != _plan(state).features:  # there are fewer weights now, all of them 0 as before
        weights = np.zeros(plan.sizes.parameters)
        state = replace(state, moments=moments, weights=weights, strategy_state=state.strategy.init(weights))
    plan = frozen_plan(plan, state.rules, moments)
    suspected = _suspected(_with_plan(state, plan))
    return _then((_with_plan(state, plan), suspected), lambda s: _enter(s, "training", at, plan_changed=True))


def _suspected(state: State, only: str | None = None) -> list[Action]:
    """Tell of the columns that the sites seem not to mean the same by; of one site's ``only``, where it is given."""
    found = [each for each in disagreements(_plan(state), state.moments) if only in {None, each.participant}]
    return [
        Observe("units_disagree", {"participant": each.participant, "column": each.column, "ratio": each.ratio})
        for each in found[:MOST_SUSPECTED]
    ]


def _next_version(state: State, at: float) -> Step:
    rules, progress = state.rules, state.progress
    held = state.strategy_state.held
    try:
        situation = _situation(state)
        finished = state.strategy.finish(state.strategy_state, _weights(state), situation)
    except IndefiniteError as error:
        return state, [GiveUp(f"there is no final model: {error}", no_model=True)]
    version = progress.version + 1
    included = [Include(held[name].update_id, version, state.strategy.weigh(held[name])) for name in finished.included]
    members = {**state.members}
    for name in finished.included:
        members[name] = _included(members[name], held[name])
    members = _with_steps(state, members)
    made = Made(version, finished.weights)
    loss = convergence.federated_loss(_reporting(state, members), penalty(state, finished.weights))
    progress = convergence.observe(replace(progress, version=version), loss, finished, rules)
    observed = Observe(
        "version_made",
        {
            "version": version,
            "loss": loss,
            "gap_bound": finished.gap_bound,
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
        recipe=recipe(version, state.strategy_state, _weights(state), situation),
        version_since=at,
        quorum_since=None,
    )
    if convergence.is_over(progress, rules):
        return _then((state, [*included, made, observed]), lambda after: _enter(_unverified(after), "verifying", at))
    state, sent = _announce(state, EVERYBODY)
    return state, [*included, made, observed, *sent]


def _with_steps(state: State, members: dict[str, Member]) -> dict[str, Member]:
    """Return ``members`` with the number of local steps that each is given, where that follows their speed."""
    if not state.rules.adapt_steps:
        return members
    measured = {
        name: Measured(members[name].fit_seconds or 0.0, members[name].fit_steps)
        for name in state.live
        if members[name].fit_seconds is not None
    }
    given = local_steps(measured, _plan(state).work.steps)
    return {name: replace(member, steps=given.get(name, member.steps)) for name, member in members.items()}


def _situation(state: State) -> Situation:
    plan = _plan(state)
    return Situation(
        l2=plan.l2,
        received=state.received,
        live=state.live,
        l1=plan.l1,
        n_outputs=plan.sizes.n_outputs,
        penalty_scale=penalty_scale(state),
        learning_rate=plan.work.learning_rate,
    )


def _reporting(state: State, members: Mapping[str, Member]) -> list[Member]:
    """Return whose losses make the loss: all that may take part, but not who has gone before it ever reported one."""
    live = state.live
    return [m for m in members.values() if m.takes_part and (m.loss is not None or m.name in live)]


def _late(state: State, version: int, included: set[str]) -> set[str]:
    """Return who is later than the others.

    In rounds that is who missed this one. Where versions are made at a count, most participants are not in
    each: late is who has let more versions pass than there are participants to make them.
    """
    missing = set(state.live) - included
    if state.strategy.pace.count is None:
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
    state = replace(
        state, progress=replace(state.progress, phase=phase), version_since=at, quorum_since=None, sweep_since=at
    )
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
    heard, ours = (heartbeat.epoch, heartbeat.bulletin), (state.progress.epoch, state.progress.bulletin)
    if ours < heard < (state.progress.epoch + MOST_TERMS_LOST, 0):
        told = {"participant": name, "epoch": heartbeat.epoch, "ours": state.progress.epoch}
        return state, [Observe("store_is_older", told), Outrun(heartbeat.epoch)]
    member = state.members[name]
    if member.evicted or (before.state == "silent" and member.takes_part and _was_missed(state, member)):
        # It had only been cut off: no other hello is to be expected.
        return _with_other_data(_with_member(state, replace(member, evicted=False)), name, event.at)
    # Twice the same, and not the newest that it was sent: that one is lost, not late.
    behind = heartbeat.bulletin < before.addressed and heartbeat.bulletin == before.bulletin_seen
    if not behind or heartbeat.state == "working":
        return state, []
    return state, [Send(_plan(state), name), Send(global_model(state), name)]


def _goodbye(state: State, goodbye: Goodbye, at: float) -> Step:
    name = goodbye.participant
    if name not in state.presence or state.members[name].incarnation != goodbye.incarnation:
        return state, []
    gone = _with_presence(state, name, replace(state.presence[name], state="left", last_heard=at))
    gone, sent = _asked_anew(state, gone)
    left = Observe("participant_left", {"participant": name})
    return _then((gone, [left, *sent]), lambda after: _go_on(after, at))


def _asked_anew(before: State, after: State) -> Step:
    """Tell everybody where others are asked now: who has gone is replaced, and who replaces it has to know."""
    if after.progress.phase != "training" or before.live == after.live:
        return after, []
    asked = [{name for name in s.able if asked_of(s, s.members[name])} for s in (before, after)]
    return _announce(after, EVERYBODY) if asked[1] - asked[0] else (after, [])


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
