"""What holds of the participant's state machine in whatever order plans, models and results come."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
from golden.examples import MODEL, PLAN, PLAN_OF_CLASSES
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.codec import plan_hash
from broker.messages import GlobalModel, Plan, Standing, Task
from participant.worker import (
    Barred,
    Event,
    Finished,
    Ignore,
    ModelArrived,
    PlanArrived,
    Settle,
    Work,
    WorkerState,
    step,
)

ME, SELF, FORMER_SELF = "hospital-1", "00c0ffee00c0ffee", "dead"

PLANS = [replace(PLAN, revision=revision, seed=revision) for revision in (1, 2)]
PLANS.append(replace(PLAN_OF_CLASSES, revision=3))
HASHES = [plan_hash(plan) for plan in PLANS]

standings = st.builds(
    Standing,
    incarnation=st.sampled_from([SELF, SELF, SELF, FORMER_SELF]),
    settled=st.integers(0, 12),
    refusal=st.sampled_from(["", "", "stale", "its columns are not the plan's"]),
    asked=st.sampled_from(get_args(Task)),
)
models = st.builds(
    replace,
    st.just(MODEL),
    epoch=st.integers(1, 3),
    bulletin=st.integers(1, 30),
    version=st.integers(0, 9),
    phase=st.sampled_from(["moments", "training", "verifying", "converged"]),
    plan_hash=st.sampled_from([*HASHES, "unknown"]),
    roster=st.one_of(
        standings.map(lambda standing: {ME: standing}),
        standings.map(lambda standing: {"hospital-2": standing}),
    ),
    weights=st.sampled_from([np.zeros(4), np.zeros(4), np.zeros(12), np.zeros(9)]),
)


def age(model: GlobalModel) -> tuple[int, int]:
    """Say how new a model is: by the aggregator's epoch, then by its bulletin."""
    return model.epoch, model.bulletin


class Worker(RuleBasedStateMachine):
    """A participant to which anything may come at any time, and somebody who watches what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.state = WorkerState(ME, SELF)
        self.last_sequence = 0
        self.unsettled: int | None = None
        self.working_on: Work | None = None
        self.newest: GlobalModel | None = None
        self.newest_plan: Plan | None = None
        self.settled_by_rosters = 0

    def tell(self, event: Event) -> None:
        """Take a step and check every action of it against what was seen from outside."""
        self.state, actions = step(self.state, event)
        for action in actions:
            match action:
                case Work():
                    self.check_work(action)
                case Settle(sequence):
                    assert sequence == self.unsettled, "it settles what is in flight"
                    assert sequence <= self.settled_by_rosters, "a roster has settled it"
                    self.unsettled = None
                case Ignore() | Barred():
                    assert action.reason, "there is always a reason"

    def check_work(self, work: Work) -> None:
        assert self.working_on is None, "one thing at a time"
        assert self.unsettled is None, "one contribution in flight"
        assert work.sequence > self.last_sequence, "numbers rise"
        assert self.newest is not None
        assert age(work.model) >= age(self.newest), "the newest model that was seen"
        assert work.model.plan_hash == work.plan_hash == plan_hash(work.plan)
        assert self.newest_plan is not None
        assert work.plan.revision >= self.newest_plan.revision
        assert len(work.model.weights) == (12 if len(work.plan.classes) == 3 else 4)
        standing = work.model.roster[ME]
        assert standing.incarnation == SELF, "it is us who are asked"
        assert standing.asked == work.task != "", "what is asked"
        assert work.sequence > standing.settled, "a number the aggregator has not seen"
        self.last_sequence = self.unsettled = work.sequence
        self.working_on = work

    @rule(plan=st.sampled_from(PLANS))
    def a_plan(self, plan: Plan) -> None:
        # An older one counts where the newest model names it: of an aggregator whose store came from a backup.
        is_wanted = self.newest is not None and self.newest.plan_hash == plan_hash(plan)
        if self.newest_plan is None or plan.revision >= self.newest_plan.revision or is_wanted:
            self.newest_plan = plan
        self.tell(PlanArrived(plan))

    @rule(model=models)
    def a_model(self, model: GlobalModel) -> None:
        if self.newest is None or age(model) >= age(self.newest):
            self.newest = model
            standing = model.roster.get(ME)
            if standing is not None and standing.incarnation == SELF:
                self.settled_by_rosters = max(self.settled_by_rosters, standing.settled)
        self.tell(ModelArrived(model))

    @precondition(lambda self: self.newest is not None and self.newest_plan is not None)
    @rule(
        asked=st.sampled_from(get_args(Task)),
        refusal=st.sampled_from(["", "stale"]),
        ahead=st.integers(0, 2),
        incarnation=st.sampled_from([SELF, SELF, FORMER_SELF]),
    )
    def an_aggregator_in_order(self, asked: Task, refusal: str, ahead: int, incarnation: str) -> None:
        """Answer as a real one would: the plan is known, what is in flight is settled.

        It may be ahead of us, where our outbox came from a backup, or still mean our former self.
        """
        assert self.newest is not None
        assert self.newest_plan is not None
        self.a_model(
            replace(
                self.newest,
                bulletin=self.newest.bulletin + 1,
                plan_hash=plan_hash(self.newest_plan),
                roster={ME: Standing(incarnation, self.last_sequence + ahead, refusal, asked)},
                weights=np.zeros(self.newest_plan.sizes.parameters),
            )
        )

    @precondition(lambda self: self.newest is not None)
    @rule()
    def the_same_model_again(self) -> None:
        assert self.newest is not None
        self.a_model(self.newest)

    @precondition(lambda self: self.working_on is not None)
    @rule()
    def the_work_is_done(self) -> None:
        self.working_on = None
        self.tell(Finished())

    @invariant()
    def it_knows_what_it_is_doing(self) -> None:
        assert self.state.working == (self.working_on is not None)
        assert self.state.in_flight == self.unsettled
        assert self.state.sequence == self.last_sequence
        expected = "working" if self.working_on else "idle" if self.unsettled is None else "awaiting"
        assert self.state.activity == expected

    @invariant()
    def it_says_the_newest_bulletin(self) -> None:
        assert self.state.bulletin == (0 if self.newest is None else self.newest.bulletin)


TestWorker = Worker.TestCase
