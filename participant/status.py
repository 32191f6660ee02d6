"""Where a participant stands, for who asks at its site whether it is stuck or just slow."""

from __future__ import annotations

from dataclasses import dataclass

from broker.messages import GlobalModel, Standing
from broker.messages import WorkerState as Activity
from participant.worker import WorkerState


@dataclass(frozen=True, slots=True)
class Status:
    """A participant at one moment.

    Attributes
    ----------
    term : of the aggregator whose model is the newest here; 0 where there is none.
    version : of that model.
    waits : a sentence that says what for.
    seconds : since what it does now began.
    """

    activity: Activity
    term: int
    version: int | None
    waits: str
    seconds: float


def status(state: WorkerState, seconds: float) -> Status:
    """Return where ``state`` stands, ``seconds`` after its activity began."""
    version = None if state.model is None else state.model.version
    return Status(state.activity, state.epoch, version, _waits(state), round(seconds, 1))


def _waits(state: WorkerState) -> str:
    if state.working:
        return "for its own fit, which goes on"
    if state.in_flight is not None:
        return f"for the aggregator to judge contribution {state.in_flight}, which is sent until it is"
    if state.model is None:
        return "for a first model of the aggregator"
    standing = state.model.roster.get(state.participant)
    if standing is None or standing.incarnation != state.incarnation:
        return "for the aggregator to hear its hello"
    return _waits_for_a_question(state.model, standing)


def _waits_for_a_question(model: GlobalModel, standing: Standing) -> str:
    if standing.asked:
        return "for the plan of what it is asked"
    if model.phase == "converged":
        return f"for nothing: version {model.version} is released"
    if standing.refusal:
        return f"for nothing: the aggregator takes nothing from it ({standing.refusal})"
    return "for the aggregator to ask something of it"
