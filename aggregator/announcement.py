"""What everybody is told: the newest weights, where each participant stands, and what is asked of it."""

from __future__ import annotations

from aggregator.selection import selected
from aggregator.state import Member, State
from broker.messages import Array, GlobalModel, Phase, Standing, Task


def global_model(state: State) -> GlobalModel:
    """Return the announcement of ``state``, which has a plan and weights."""
    assert state.weights is not None, "weights and plan come together"
    progress = state.progress
    return GlobalModel(
        federation=state.rules.federation,
        epoch=progress.epoch,
        version=progress.version,
        bulletin=progress.bulletin,
        phase=progress.phase,
        plan_hash=state.plan_hash,
        loss=progress.loss,
        roster={name: _standing(state, member) for name, member in state.members.items()},
        weights=state.weights,
        extra=_extra(state),
    )


def _extra(state: State) -> dict[str, Array]:
    if state.progress.phase == "training":
        return state.strategy.broadcast(state.strategy_state)
    return dict(state.question)


def _standing(state: State, member: Member) -> Standing:
    refusal = member.barred or member.refusal
    return Standing(member.incarnation, member.settled, refusal, asked_of(state, member), member.steps, member.heard)


def asked_of(state: State, member: Member) -> Task:
    """Return what ``member`` is asked for now: nothing while its last update is not in a model yet."""
    if not member.takes_part or member.pending:
        return ""
    if state.needs_moments_of(member.name):
        return "moments"
    tasks: dict[Phase, Task] = {
        "training": "train" if _is_asked_to_train(state, member) else "",
        "verifying": _asked_of_verifying(state, member),
    }
    return tasks.get(state.progress.phase, "")


def _asked_of_verifying(state: State, member: Member) -> Task:
    """Return what is asked of ``member`` about the last model: its scores first, then whatever else they leave open."""
    if state.progress.stage == "evaluate":
        return "" if member.name in state.scores else "evaluate"
    return state.progress.stage if member.name in state.scores and member.name not in state.answers else ""


def _is_asked_to_train(state: State, member: Member) -> bool:
    asked = state.strategy.pace_of(state.strategy_state).asked
    of_them = selected(state.able, asked, seed=state.rules.seed, version=state.progress.version)
    able = member.failed_at != state.progress.version and state.strategy_state.asks(member.name)
    return able and (asked is None or member.name in of_them)
