"""The participant's state machine: (state, event) -> (state, actions). Newest model wins; one contribution in flight.

::

    idle ──a model asks something of us, under a plan we have──► working ──finished──► awaiting
      ▲                                                                                   │
      └───────────────── a model's roster says that our contribution is settled ──────────┘

============= ===================================== ===============================================================
event         in any state                          besides
============= ===================================== ===============================================================
plan          kept unless older                     idle: work on the newest model if it was waiting for this plan
model         kept unless older; of an older epoch  awaiting: settled when its roster says so.
              it is refused                         idle: work, if it asks and its plan is known
finished      -                                     working: the contribution is in flight from here on
============= ===================================== ===============================================================

What arrives while we work is only remembered: the newest model is looked at when the work is done. A contribution is
settled only by what a model says, not by its confirmed publication: that is the credit that keeps updates from
outrunning the aggregator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from broker.codec import plan_hash
from broker.messages import GlobalModel, Plan, Task
from broker.messages import WorkerState as Activity


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One thing to compute, numbered."""

    task: Task
    model: GlobalModel
    plan: Plan
    plan_hash: str
    participant: str
    incarnation: str
    sequence: int
    steps: int = 0

    @property
    def local_steps(self) -> int:
        """How many local steps to take: what we are given, or the plan's number."""
        return self.steps or self.plan.work.steps


@dataclass(frozen=True, slots=True, eq=False)
class WorkerState:
    """What the participant knows. ``sequence`` is the last number used; ``in_flight`` the one not yet settled."""

    participant: str
    incarnation: str
    sequence: int = 0
    in_flight: int | None = None
    working: bool = False
    plan: Plan | None = None
    plan_hash: str = ""
    model: GlobalModel | None = None

    @property
    def activity(self) -> Activity:
        """In one word."""
        if self.working:
            return "working"
        return "idle" if self.in_flight is None else "awaiting"

    def is_known_by(self, hello: str) -> bool:
        """Whether there is a model whose roster has us as we said in ``hello``, its digest, and the model's plan."""
        standing = None if self.model is None else self.model.roster.get(self.participant)
        known = standing is not None and standing.incarnation == self.incarnation and standing.hello in {"", hello}
        return known and self.model is not None and self.model.plan_hash == self.plan_hash

    @property
    def bulletin(self) -> int:
        """The newest seen."""
        return 0 if self.model is None else self.model.bulletin

    @property
    def epoch(self) -> int:
        """The term in which that was published; 0 where none was."""
        return 0 if self.model is None else self.model.epoch


@dataclass(frozen=True, slots=True, eq=False)
class PlanArrived:
    """The aggregator says what is computed."""

    plan: Plan


@dataclass(frozen=True, slots=True, eq=False)
class ModelArrived:
    """The aggregator says where everybody stands."""

    model: GlobalModel


@dataclass(frozen=True, slots=True)
class Finished:
    """The work in hand is done and its result durable."""


Event = PlanArrived | ModelArrived | Finished


@dataclass(frozen=True, slots=True)
class Settle:
    """The contribution need not be kept any longer; ``refusal`` says why it was not used, where it was not."""

    sequence: int
    refusal: str


@dataclass(frozen=True, slots=True)
class Ignore:
    """The message changes nothing; for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Barred:
    """The aggregator takes nothing from us, for a reason that somebody has to read."""

    reason: str


Action = Work | Settle | Ignore | Barred
Step = tuple[WorkerState, list[Action]]


def step(state: WorkerState, event: Event) -> Step:
    """Return the state after ``event``, and what is to be done."""
    match event:
        case PlanArrived(plan):
            return _plan(state, plan)
        case ModelArrived(model):
            return _model(state, model)
        case Finished():
            return _consider(replace(state, working=False), [])
        case _:
            assert_never(event)


def _plan(state: WorkerState, plan: Plan) -> Step:
    named = plan_hash(plan)
    # The newest model knows best: an aggregator whose store came from a backup counts its plans from there.
    is_wanted = state.model is not None and state.model.plan_hash == named
    if state.plan is not None and plan.revision < state.plan.revision and not is_wanted:
        return state, [Ignore("older plan")]
    return _consider(replace(state, plan=plan, plan_hash=named), [])


def _model(state: WorkerState, model: GlobalModel) -> Step:
    known = state.model
    if known is not None and model.epoch < known.epoch:
        return state, [Ignore("older epoch")]
    # Bulletins are compared within an epoch: an aggregator whose store came from a backup counts from there.
    if known is not None and model.epoch == known.epoch and model.bulletin < known.bulletin:
        return state, [Ignore("older bulletin")]
    return _consider(replace(state, model=model), [])


def _consider(state: WorkerState, actions: list[Action]) -> Step:
    """Look at the newest model: what of ours it settles, and what it asks."""
    model = state.model
    standing = None if model is None else model.roster.get(state.participant)
    if model is None or standing is None or standing.incarnation != state.incarnation or state.working:
        return state, actions
    if state.in_flight is not None and standing.settled >= state.in_flight:
        actions = [*actions, Settle(state.in_flight, standing.refusal)]
        state = replace(state, in_flight=None)
    elif state.in_flight is None and standing.refusal and not standing.asked and model.phase != "converged":
        actions = [*actions, Barred(standing.refusal)]
    if state.in_flight is not None or not standing.asked:
        return state, actions
    if state.plan is None or model.plan_hash != state.plan_hash:
        return state, actions  # the plan comes by a queue of its own, and may come later
    if len(model.weights) != state.plan.sizes.parameters:
        return state, [*actions, Ignore("weights that do not fit the plan")]
    # A restored outbox may be older than what the aggregator has seen of us.
    sequence = max(state.sequence, standing.settled) + 1
    work = Work(
        task=standing.asked,
        model=model,
        plan=state.plan,
        plan_hash=state.plan_hash,
        participant=state.participant,
        incarnation=state.incarnation,
        sequence=sequence,
        steps=standing.steps,
    )
    return replace(state, sequence=sequence, in_flight=sequence, working=True), [*actions, work]
