"""The participant's state machine: every event in every state, as its table says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden.examples import MODEL, PLAN, PLAN_OF_CLASSES

from broker.codec import plan_hash
from broker.messages import GlobalModel, Standing
from participant.worker import (
    Action,
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

ME, SELF = "hospital-1", "00c0ffee00c0ffee"
OLDER_PLAN, NEWER_PLAN = replace(PLAN, revision=1), replace(PLAN, revision=3)
NOBODY = WorkerState(ME, SELF)


def model(
    bulletin: int,
    asked: str = "train",
    *,
    settled: int = 0,
    refusal: str = "",
    incarnation: str = SELF,
    steps: int = 0,
    **changes: Any,
) -> GlobalModel:
    """Return a model under `PLAN` that asks ``asked`` of us."""
    standing = Standing(incarnation, settled, refusal, asked, steps)  # type: ignore[arg-type]
    fields = {"plan_hash": plan_hash(PLAN), "roster": {ME: standing}, **changes}
    return replace(MODEL, bulletin=bulletin, **fields)


def told(state: WorkerState, *events: Event) -> WorkerState:
    """Return the state after ``events``."""
    for event in events:
        state, _ = step(state, event)
    return state


def kinds(actions: list[Action]) -> list[type]:
    return [type(action) for action in actions]


IDLE = told(NOBODY, PlanArrived(PLAN), ModelArrived(model(10, "")))
WORKING = told(IDLE, ModelArrived(model(11)))
AWAITING = told(WORKING, Finished())

STATES = pytest.mark.parametrize("state", [IDLE, WORKING, AWAITING], ids=["idle", "working", "awaiting"])


def test_the_states_are_what_they_are_called() -> None:
    assert [state.activity for state in (NOBODY, IDLE, WORKING, AWAITING)] == ["idle", "idle", "working", "awaiting"]
    assert [state.bulletin for state in (NOBODY, IDLE, WORKING, AWAITING)] == [0, 10, 11, 11]
    assert (AWAITING.in_flight, AWAITING.sequence) == (1, 1)


# --- a plan ----------------------------------------------------------------------------------


@STATES
def test_a_newer_plan_is_kept_in_any_state(state: WorkerState) -> None:
    after, actions = step(state, PlanArrived(NEWER_PLAN))
    assert after.plan is NEWER_PLAN
    assert after.plan_hash == plan_hash(NEWER_PLAN)
    assert actions == []
    assert after.activity == state.activity


@STATES
def test_an_older_plan_is_passed_over_in_any_state(state: WorkerState) -> None:
    assert step(state, PlanArrived(OLDER_PLAN)) == (state, [Ignore("older plan")])


def test_a_plan_of_an_older_number_is_kept_where_the_newest_model_is_of_it() -> None:
    """The aggregator's store came from a backup, and counts its plans from there."""
    older = replace(MODEL, bulletin=1, epoch=MODEL.epoch + 1, plan_hash=plan_hash(OLDER_PLAN), roster=model(1).roster)
    state = told(IDLE, ModelArrived(older))
    assert (state.plan, state.working) == (PLAN, False)
    after, actions = step(state, PlanArrived(OLDER_PLAN))
    assert (after.plan, kinds(actions)) == (OLDER_PLAN, [Work])


@STATES
def test_the_same_plan_again_changes_nothing(state: WorkerState) -> None:
    after, actions = step(state, PlanArrived(PLAN))
    assert (after.plan_hash, after.activity, actions) == (state.plan_hash, state.activity, [])


def test_a_model_that_came_before_its_plan_is_worked_on_when_the_plan_comes() -> None:
    state, actions = step(NOBODY, ModelArrived(model(10)))
    assert actions == []
    state, [work] = step(state, PlanArrived(PLAN))
    assert isinstance(work, Work)
    assert work.plan is PLAN
    assert state.working


def test_a_model_of_a_newer_plan_waits_for_that_plan_and_is_worked_on_under_it() -> None:
    newer = model(12, plan_hash=plan_hash(NEWER_PLAN))
    state, actions = step(IDLE, ModelArrived(newer))
    assert (state.activity, actions) == ("idle", [])
    _, [work] = step(state, PlanArrived(NEWER_PLAN))
    assert isinstance(work, Work)
    assert (work.plan, work.plan_hash, work.model) == (NEWER_PLAN, plan_hash(NEWER_PLAN), newer)


# --- a model, in any state -------------------------------------------------------------------


@STATES
@pytest.mark.parametrize(
    ("stale", "reason"),
    [
        (model(9), "older bulletin"),
        (model(99, epoch=1), "older epoch"),
    ],
    ids=["bulletin", "epoch"],
)
def test_an_older_model_is_passed_over_in_any_state(state: WorkerState, stale: GlobalModel, reason: str) -> None:
    assert step(state, ModelArrived(stale)) == (state, [Ignore(reason)])


@STATES
def test_a_model_of_a_newer_epoch_is_kept_whatever_its_bulletin(state: WorkerState) -> None:
    """An aggregator whose store came from a backup counts its bulletins from there: it must not be unheard till 11."""
    newer = model(3, "", epoch=3)
    after, _ = step(state, ModelArrived(newer))
    assert after.model is newer
    assert after.bulletin == 3


@STATES
def test_the_newest_model_is_kept_in_any_state(state: WorkerState) -> None:
    newest = model(50, "")
    assert step(state, ModelArrived(newest))[0].model is newest


# --- idle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["moments", "train", "evaluate", "rank", "sides", "path"])
def test_idle_and_asked_it_works_with_the_next_number(task: str) -> None:
    asking = model(11, task)
    state, [work] = step(replace(IDLE, sequence=6), ModelArrived(asking))
    assert isinstance(work, Work)
    assert (work.task, work.model, work.plan) == (task, asking, PLAN)
    assert (work.participant, work.incarnation, work.sequence) == (ME, SELF, 7)
    assert (state.activity, state.sequence, state.in_flight) == ("working", 7, 7)


@pytest.mark.parametrize(("given", "taken"), [(0, PLAN.work.steps), (1, 1), (7, 7)])
def test_it_takes_the_local_steps_that_it_is_given_or_else_the_plans(given: int, taken: int) -> None:
    _, [work] = step(IDLE, ModelArrived(model(11, steps=given)))
    assert isinstance(work, Work)
    assert work.local_steps == taken


def test_a_number_that_the_aggregator_has_seen_of_us_is_not_used_again() -> None:
    """The outbox came from a backup, and forgot what was sent since."""
    _, [work] = step(replace(IDLE, sequence=2), ModelArrived(model(11, settled=9)))
    assert isinstance(work, Work)
    assert work.sequence == 10


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(model(11, ""), id="asks nothing"),
        pytest.param(model(11, roster={}), id="does not know us"),
        pytest.param(model(11, incarnation="before the disk was lost"), id="means our former self"),
        pytest.param(model(11, plan_hash="of another plan"), id="is under a plan we have not"),
    ],
)
def test_idle_and_not_asked_it_stays_idle(silent: GlobalModel) -> None:
    state, actions = step(IDLE, ModelArrived(silent))
    assert (state.activity, actions) == ("idle", [])


def test_idle_weights_that_do_not_fit_the_plan_are_not_worked_on() -> None:
    state, actions = step(IDLE, ModelArrived(model(11, weights=np.zeros(9))))
    assert (state.activity, actions) == ("idle", [Ignore("weights that do not fit the plan")])


@pytest.mark.parametrize(("n_weights", "kind"), [(12, Work), (4, Ignore), (11, Ignore)])
def test_weights_that_fit_a_plan_of_more_classes_are_one_set_for_each(n_weights: int, kind: type) -> None:
    state = told(NOBODY, PlanArrived(PLAN_OF_CLASSES))
    asking = model(11, plan_hash=plan_hash(PLAN_OF_CLASSES), weights=np.zeros(n_weights))
    assert kinds(step(state, ModelArrived(asking))[1]) == [kind]


def test_idle_and_refused_without_being_asked_it_says_why_it_is_barred() -> None:
    state, actions = step(IDLE, ModelArrived(model(11, "", refusal="its columns are not the plan's")))
    assert (state.activity, actions) == ("idle", [Barred("its columns are not the plan's")])


def test_a_refusal_at_the_end_of_training_bars_nobody() -> None:
    _, actions = step(IDLE, ModelArrived(model(11, "", refusal="training-over", phase="converged")))
    assert actions == []


def test_refused_and_asked_again_it_works_again() -> None:
    _, actions = step(IDLE, ModelArrived(model(11, refusal="stale", settled=1)))
    assert kinds(actions) == [Work]


# --- working ----------------------------------------------------------------------------------


def test_what_comes_while_it_works_is_only_remembered() -> None:
    state, actions = step(WORKING, ModelArrived(model(12, settled=1)))
    assert (state.activity, state.in_flight, actions) == ("working", 1, [])
    state, actions = step(state, PlanArrived(NEWER_PLAN))
    assert (state.activity, actions) == ("working", [])


def test_finished_its_contribution_is_in_flight() -> None:
    state, actions = step(WORKING, Finished())
    assert (state.activity, state.in_flight, actions) == ("awaiting", 1, [])


def test_finished_it_looks_at_the_newest_model_that_came_meanwhile() -> None:
    """A roster may have settled a number already that a former life of ours used."""
    remembered = told(WORKING, ModelArrived(model(12, settled=1)))
    state, actions = step(remembered, Finished())
    assert kinds(actions) == [Settle, Work]
    assert state.in_flight == 2


# --- awaiting ----------------------------------------------------------------------------------


def test_awaiting_it_does_nothing_until_its_contribution_is_settled() -> None:
    state, actions = step(AWAITING, ModelArrived(model(12)))
    assert (state.activity, state.in_flight, actions) == ("awaiting", 1, [])


@pytest.mark.parametrize(("refusal", "settled"), [("", 1), ("stale", 1), ("", 5)])
def test_awaiting_it_settles_what_a_roster_says_is_settled(refusal: str, settled: int) -> None:
    state, actions = step(AWAITING, ModelArrived(model(12, "", settled=settled, refusal=refusal)))
    assert (state.activity, state.in_flight, actions) == ("idle", None, [Settle(1, refusal)])


def test_settled_and_asked_again_by_one_model_it_works_at_once() -> None:
    state, [settle, work] = step(AWAITING, ModelArrived(model(12, settled=1)))
    assert settle == Settle(1, "")
    assert isinstance(work, Work)
    assert (work.sequence, state.activity) == (2, "working")


def test_the_settlement_of_a_former_self_is_not_ours() -> None:
    state, actions = step(AWAITING, ModelArrived(model(12, settled=9, incarnation="before the disk was lost")))
    assert (state.activity, actions) == ("awaiting", [])


def test_settled_by_a_model_of_an_unknown_plan_it_settles_and_waits_for_the_plan() -> None:
    state, actions = step(AWAITING, ModelArrived(model(12, settled=1, plan_hash=plan_hash(NEWER_PLAN))))
    assert (state.activity, actions) == ("idle", [Settle(1, "")])
    _, actions = step(state, PlanArrived(NEWER_PLAN))
    assert kinds(actions) == [Work]


def test_a_participant_that_starts_again_with_something_in_its_outbox_awaits() -> None:
    state = WorkerState(ME, SELF, sequence=4, in_flight=4)
    assert state.activity == "awaiting"
    state = told(state, PlanArrived(PLAN))
    assert step(state, ModelArrived(model(12, settled=3)))[1] == []
    assert kinds(step(state, ModelArrived(model(12, settled=4)))[1]) == [Settle, Work]


def test_what_is_no_event_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError, match="unreachable"):
        step(IDLE, PLAN)  # type: ignore[arg-type]


def test_a_step_leaves_the_state_it_was_given_as_it_was() -> None:
    before = replace(IDLE)
    step(before, ModelArrived(model(11)))
    assert (before.activity, before.sequence, before.bulletin) == ("idle", 0, 10)
