"""Where a federation stands, for who asks whether it is stuck or just slow: what it waits for, and who is silent.

Names, states and versions: nothing of anybody's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from aggregator.announcement import asked_of
from aggregator.plan import first_plan
from aggregator.state import Member, State
from aggregator.strategies.pace import NEVER
from broker.messages import Phase, Task


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """One participant of the allow-list.

    Attributes
    ----------
    state : ``expected`` until its first hello.
    heard_seconds_ago : since its last message of any kind.
    asked : what is asked of it and has not come; nothing otherwise.
    included : its updates that are in a version.
    versions_behind : current version minus the base version of the last of these.
    note : what somebody may have to do something about, or nothing.
    """

    name: str
    state: Literal["live", "silent", "left", "expected"]
    heard_seconds_ago: float | None
    asked: Task
    included: int
    versions_behind: int | None
    note: str


@dataclass(frozen=True, slots=True)
class Status:
    """A federation at one moment.

    Attributes
    ----------
    term : epochs so far, with this one.
    waits : a sentence that says what for.
    seconds : since the last version, or since this phase or term began.
    loss : federated, in nats per row.
    """

    strategy: str
    term: int
    phase: Phase
    version: int
    loss: float | None
    waits: str
    seconds: float
    sites: tuple[SiteStatus, ...]


def status(state: State, now: float) -> Status:
    """Return where ``state`` stands ``now``, on the clock of its events."""
    state = _with_verdicts(state)
    progress = state.progress
    return Status(
        strategy=state.strategy.name,
        term=progress.epoch,
        phase=progress.phase,
        version=progress.version,
        loss=progress.loss,
        waits=_waits(state, now),
        seconds=round(now - state.version_since, 1),
        sites=tuple(_site(state, name, now) for name in state.rules.participants),
    )


def _with_verdicts(state: State) -> State:
    """Return ``state`` that says also before there is a plan whose columns do not fit."""
    enrolled = [state.members[name] for name in state.rules.participants if name in state.members]
    if state.plan is not None or len(enrolled) < state.rules.start_with:
        return state
    return replace(state, members=first_plan(state.rules, enrolled)[1])


# --- what for -------------------------------------------------------------------------------


def _waits(state: State, now: float) -> str:
    phase = state.progress.phase
    if phase == "converged":
        return f"for nothing: version {state.progress.version} is released"
    if phase == "enrolling":
        return _waits_for_hellos(state)
    if not state.live:
        return "for anybody: no participant is there"
    asked = sorted(name for name in state.live if asked_of(state, state.members[name]))
    match phase:
        case "moments":
            return f"for the moments of {_listed(asked)}"
        case "verifying":
            left = state.sweep_since + state.rules.sweep_seconds - now
            return f"for what {_listed(asked)} find of the last model, {_at_most(left)}"
        case _:
            return _waits_for_updates(state, asked, now)


def _waits_for_hellos(state: State) -> str:
    missing = [name for name in state.rules.participants if name not in state.members]
    barred = [name for name, member in state.members.items() if member.barred]
    n = state.rules.start_with - (len(state.members) - len(barred))
    if not missing:
        return f"for {_listed(barred)} to be mended"
    if n == len(missing):
        return f"for the hello of {_listed(missing)}"
    return f"for {n} more to say hello, of {_listed(missing)}"


def _waits_for_updates(state: State, asked: Sequence[str], now: float) -> str:
    pace, n_received = state.strategy.pace_of(state.strategy_state), len(state.received)
    until = pace.until(n_received, since=state.version_since, quorum_since=state.quorum_since)
    limit = "" if until is None or until - now > NEVER / 2 else f", {_at_most(until - now)}"
    if pace.count is not None:
        n = max(1, pace.count - n_received)
        return f"for {'an update' if n == 1 else f'{n} updates'} of any of {_listed(asked)}{limit}"
    some = "enough of " if pace.share is not None else ""
    return f"for updates of {some}{_listed(asked)}{limit}"


def _at_most(seconds: float) -> str:
    return f"for {max(0.0, seconds):.0f} s more at most"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "nobody"


# --- who ------------------------------------------------------------------------------------


def _site(state: State, name: str, now: float) -> SiteStatus:
    member, presence = state.members.get(name), state.presence.get(name)
    if member is None or presence is None:
        return SiteStatus(name, "expected", None, "", 0, None, "it has not said hello")
    return SiteStatus(
        name=name,
        state=presence.state,
        heard_seconds_ago=round(max(0.0, now - presence.last_heard), 1),
        asked=asked_of(state, member),
        included=member.included,
        versions_behind=state.progress.version - member.last_base_version if member.included else None,
        note=_note(state, member, presence.state),
    )


def _note(state: State, member: Member, presence: Literal["live", "silent", "left"]) -> str:
    if member.barred:
        return f"barred: {member.barred}"
    if member.evicted:
        return "gone for too long: its rows count no longer"
    if presence == "silent":
        return f"silent for more than {state.rules.silence_seconds:g} s: nobody waits for it"
    return f"its last contribution was refused: {member.refusal}" if member.refusal else ""
