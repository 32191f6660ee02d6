"""How training goes on: what may have become due, the next version, the questions about the last one, the release."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

import numpy as np

from aggregator import convergence, verification
from aggregator.agreement import disagreements
from aggregator.announcement import asked_of
from aggregator.effort import Measured, local_steps
from aggregator.events import (
    EVERYBODY,
    Action,
    GiveUp,
    Include,
    Made,
    Observe,
    Release,
    Send,
)
from aggregator.fit import plan_of, weights_of
from aggregator.plan import (
    frozen_plan,
    penalty,
    penalty_scale,
    without_empty,
)
from aggregator.released import release
from aggregator.state import Member, State, recipe
from aggregator.steps import Step, announce, phase_entered, then, with_plan
from aggregator.strategies import Contribution, Situation
from broker.messages import (
    Phase,
)
from logistic.errors import IndefiniteError

#: Columns that are told of when sites seem not to mean the same by them; of more, something else is wrong.
MOST_SUSPECTED = 20


def go_on(state: State, at: float) -> Step:
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
            return enter(state, "verifying", at)
        case verification.Resume():
            progress = replace(state.progress, examined_at=state.progress.version)
            return enter(unverified(replace(state, progress=progress)), "training", at)
        case verification.Impossible(reason):
            return state, [GiveUp(reason, no_model=True)]
        case verified:
            return _release(replace(state, found=verified.found), at)


def unverified(state: State) -> State:
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
    plan, moments = without_empty(plan_of(state), state.moments)
    if plan.features != plan_of(state).features:  # there are fewer weights now, all of them 0 as before
        weights = np.zeros(plan.sizes.parameters)
        state = replace(state, moments=moments, weights=weights, strategy_state=state.strategy.init(weights))
    plan = frozen_plan(plan, state.rules, moments)
    suspected = suspicions(with_plan(state, plan))
    return then((with_plan(state, plan), suspected), lambda s: enter(s, "training", at, plan_changed=True))


def suspicions(state: State, only: str | None = None) -> list[Action]:
    """Tell of the columns that the sites seem not to mean the same by; of one site's ``only``, where it is given."""
    found = [each for each in disagreements(plan_of(state), state.moments) if only in {None, each.participant}]
    return [
        Observe("units_disagree", {"participant": each.participant, "column": each.column, "ratio": each.ratio})
        for each in found[:MOST_SUSPECTED]
    ]


def _next_version(state: State, at: float) -> Step:
    rules, progress = state.rules, state.progress
    held = state.strategy_state.held
    try:
        situation = _situation(state)
        finished = state.strategy.finish(state.strategy_state, weights_of(state), situation)
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
        recipe=recipe(version, state.strategy_state, weights_of(state), situation),
        version_since=at,
        quorum_since=None,
    )
    if convergence.is_over(progress, rules):
        return then((state, [*included, made, observed]), lambda after: enter(unverified(after), "verifying", at))
    state, sent = announce(state, EVERYBODY)
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
    given = local_steps(measured, plan_of(state).work.steps)
    return {name: replace(member, steps=given.get(name, member.steps)) for name, member in members.items()}


def _situation(state: State) -> Situation:
    plan = plan_of(state)
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
    return then(enter(state, "converged", at), lambda after: (after, [Release(model), observed]))


def enter(state: State, phase: Phase, at: float, *, plan_changed: bool = False) -> Step:
    """Go to another phase and tell everybody what is asked of them there."""
    state = replace(
        state, progress=replace(state.progress, phase=phase), version_since=at, quorum_since=None, sweep_since=at
    )
    state, sent = announce(state, EVERYBODY)
    plan: list[Action] = [Send(plan_of(state), EVERYBODY)] if plan_changed else []
    return then((state, [*plan, *sent, phase_entered(state)]), lambda after: go_on(after, at))
