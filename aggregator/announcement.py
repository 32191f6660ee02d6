"""What everybody is told: the newest weights, where each participant stands, and what is asked of it."""

from __future__ import annotations

from aggregator.state import Member, State
from broker.messages import GlobalModel, Phase, Standing, Task


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
    )


def _standing(state: State, member: Member) -> Standing:
    return Standing(member.incarnation, member.settled, member.barred or member.refusal, asked_of(state, member))


def asked_of(state: State, member: Member) -> Task:
    """Return what ``member`` is asked for now: nothing while its last update is not in a model yet."""
    if member.barred or member.pending:
        return ""
    tasks: dict[Phase, Task] = {
        "moments": "" if member.name in state.moments else "moments",
        "training": "train" if _is_asked_to_train(state, member) else "",
        "verifying": "" if member.name in state.scores else "evaluate",
    }
    return tasks.get(state.progress.phase, "")


def _is_asked_to_train(state: State, member: Member) -> bool:
    return member.failed_at != state.progress.version and state.strategy_state.asks(member.name)
