"""Where a participant stands, in words."""

from __future__ import annotations

from dataclasses import replace

from golden.examples import MODEL, PLAN

from broker.codec import plan_hash
from broker.messages import GlobalModel, Phase, Standing, Task
from participant.status import Status, status
from participant.worker import Finished, ModelArrived, PlanArrived, WorkerState, step

ME, SELF = "hospital-1", "00c0ffee00c0ffee"
NOBODY = WorkerState(ME, SELF)


def model(asked: Task = "", *, incarnation: str = SELF, refusal: str = "", phase: Phase = "training") -> GlobalModel:
    roster = {ME: Standing(incarnation, 0, refusal, asked)}
    return replace(MODEL, plan_hash=plan_hash(PLAN), roster=roster, phase=phase)


def told(*models: GlobalModel, plan: bool = True) -> WorkerState:
    state = step(NOBODY, PlanArrived(PLAN))[0] if plan else NOBODY
    for each in models:
        state, _ = step(state, ModelArrived(each))
    return state


def waits(state: WorkerState) -> str:
    return status(state, 1.0).waits


def test_at_first_it_waits_for_a_model() -> None:
    assert status(NOBODY, 2.0) == Status("idle", 0, None, "for a first model of the aggregator", 2.0)


def test_while_it_computes_it_waits_for_itself_and_then_for_a_verdict() -> None:
    working = told(model("train"))
    assert status(working, 3.0) == Status("working", MODEL.epoch, MODEL.version, "for its own fit, which goes on", 3.0)
    done, _ = step(working, Finished())
    assert status(done, 0.0).activity == "awaiting"
    assert waits(done) == "for the aggregator to judge contribution 1, which is sent until it is"


def test_it_waits_to_be_known_as_it_is() -> None:
    assert waits(told(model(incarnation="0" * 16))) == "for the aggregator to hear its hello"
    assert waits(told(replace(model(), roster={}))) == "for the aggregator to hear its hello"


def test_it_waits_for_its_plan_and_for_a_question() -> None:
    assert waits(told(model("train"), plan=False)) == "for the plan of what it is asked"
    assert waits(told(model())) == "for the aggregator to ask something of it"


def test_who_is_barred_is_told_why() -> None:
    barred = told(model(refusal="its columns are others"))
    assert waits(barred) == "for nothing: the aggregator takes nothing from it (its columns are others)"


def test_after_the_release_nothing_is_waited_for() -> None:
    assert waits(told(model(phase="converged"))) == f"for nothing: version {MODEL.version} is released"
