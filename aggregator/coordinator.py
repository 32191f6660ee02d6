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

What an event does stands in a module for each kind, each of which knows only those to its right::

    coordinator ──► membership, contributions ──► progression ──► steps
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from aggregator.contributions import contribution_arrived, with_quorum
from aggregator.events import (
    EVERYBODY,
    ContributionArrived,
    Event,
    GoodbyeArrived,
    HeartbeatArrived,
    HelloArrived,
    Send,
    Tick,
)
from aggregator.fit import plan_of
from aggregator.membership import (
    asked_anew,
    evict,
    evictions,
    goodbye_arrived,
    heartbeat_arrived,
    hello_arrived,
    notice_silence,
    silences,
    start_if_enough,
)
from aggregator.progression import go_on
from aggregator.state import Presence, Progress, Rules, State
from aggregator.steps import Step, announce, phase_entered, then

#: Terms whose beginning is remembered: more of them within the versions that are built upon are no ordinary life.
MOST_TERMS = 1000


def step(state: State, event: Event) -> Step:
    """Return the state after ``event``, and what is to be done; commit before anything is sent or acknowledged."""
    after, actions = _after(state, event)
    return after, [*silences(state, after), *actions]


def _after(state: State, event: Event) -> Step:
    match event:
        case HelloArrived():
            return hello_arrived(state, event)
        case ContributionArrived():
            return contribution_arrived(state, event)
        case HeartbeatArrived():
            return heartbeat_arrived(state, event)
        case GoodbyeArrived(goodbye, at):
            return goodbye_arrived(state, goodbye, at)
        case Tick(at):
            present = asked_anew(state, notice_silence(state, at))
            return then(then(present, lambda after: evict(after, at)), lambda after: go_on(after, at))
    assert_never(event)


def restored(state: State, at: float, epoch: int, *, outrun: int = 0) -> Step:
    """Return ``state``, fresh from the store, under a new ``epoch``; everybody is taken to be there until silent.

    ``outrun`` is a term that participants have heard of, of which the store knows nothing; 0 where there is none.
    """
    version = state.progress.version
    # Of terms that began later than this one the store has lost all; of versions too old to be built upon nobody asks.
    known = tuple(each for each in state.progress.terms if each[1] >= version - state.rules.max_staleness)[-MOST_TERMS:]
    presence = {name: Presence("live", at) for name in state.members}
    state = replace(
        state,
        progress=replace(state.progress, epoch=epoch, terms=(*known, (epoch, version))),
        presence=presence,
        outrun_at=at if outrun else None,
        version_since=at,
        sweep_since=at,
    )
    state = with_quorum(state, at)
    if state.plan is None:
        return start_if_enough(state, at)
    state, sent = announce(state, EVERYBODY)
    return then((state, [Send(plan_of(state), EVERYBODY), *sent, phase_entered(state)]), lambda after: go_on(after, at))


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
    times.extend(evictions(state).values())
    return min(times, default=None)


def first_state(rules: Rules) -> State:
    """Return the state of a federation that nobody has joined yet."""
    return State(rules=rules, progress=Progress())
