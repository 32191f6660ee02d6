"""What every part of the coordinator is made of: a step, two of them in a row, and the state with one thing changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aggregator.announcement import global_model
from aggregator.events import (
    EVERYBODY,
    Action,
    Observe,
    Send,
)
from aggregator.state import Member, Presence, State
from broker import codec
from broker.messages import (
    Plan,
)

Step = tuple[State, list[Action]]


def heard_of(state: State, name: str, at: float, seen: tuple[int, int] | None = None) -> State:
    """Return ``state`` after a sign of life of ``name``."""
    before = state.presence[name]
    # Contributions and goodbyes travel by queues of their own: one that comes after a goodbye was sent before it.
    left = before.state == "left" and seen is None
    return with_presence(state, name, Presence("left" if left else "live", at, seen or before.seen, before.addressed))


def announce(state: State, to: str) -> Step:
    """Publish the model with a newer roster, and note who was sent it."""
    bulletin = state.progress.bulletin + 1
    presence = {
        name: replace(p, addressed=bulletin) if to in {EVERYBODY, name} else p for name, p in state.presence.items()
    }
    state = replace(state, progress=replace(state.progress, bulletin=bulletin), presence=presence)
    return state, [Send(global_model(state), to)]


def phase_entered(state: State) -> Observe:
    """Return what is told of the phase that ``state`` is in."""
    return Observe("phase_entered", {"phase": state.progress.phase, "version": state.progress.version})


def with_plan(state: State, plan: Plan) -> State:
    """Return ``state`` under ``plan``."""
    return replace(state, plan=plan, plan_hash=codec.plan_hash(plan))


def with_member(state: State, member: Member) -> State:
    """Return ``state`` with ``member`` as it is now."""
    return replace(state, members={**state.members, member.name: member})


def with_presence(state: State, name: str, presence: Presence) -> State:
    """Return ``state`` with the presence of ``name`` as it is now."""
    return replace(state, presence={**state.presence, name: presence})


def then(first: Step, following: Callable[[State], Step]) -> Step:
    """Return the first step with the one that follows from it."""
    state, actions = first
    after, more = following(state)
    return after, [*actions, *more]
