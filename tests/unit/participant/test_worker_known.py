"""When a participant may think that the aggregator knows it: another hello is due otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from golden.examples import MODEL, PLAN

from broker.codec import plan_hash
from broker.messages import Standing
from participant.worker import ModelArrived, PlanArrived, WorkerState, step

ME, SELF = "hospital-1", "00c0ffee00c0ffee"
NOBODY = WorkerState(ME, SELF)


def known(*, incarnation: str = SELF, name: str = ME, has_plan: bool = True, heard: str = "") -> bool:
    standing = Standing(incarnation, 0, "", "", hello=heard)
    model = replace(MODEL, plan_hash=plan_hash(PLAN), roster={name: standing})
    state, _ = step(NOBODY, ModelArrived(model))
    if has_plan:
        state, _ = step(state, PlanArrived(PLAN))
    return state.is_known_by("now")


def test_without_any_model_it_is_not_known() -> None:
    assert not NOBODY.is_known_by("now")


def test_a_model_that_has_it_in_its_roster_and_the_plan_make_it_known() -> None:
    assert known()


@pytest.mark.parametrize("wrong", [{"incarnation": "former"}, {"name": "hospital-2"}, {"has_plan": False}])
def test_its_former_self_another_site_or_a_missing_plan_do_not(wrong: dict[str, str]) -> None:
    assert not known(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("heard", "expected"), [("now", True), ("before", False), ("", True)])
def test_an_aggregator_that_has_heard_another_hello_knows_it_as_it_was(heard: str, expected: bool) -> None:
    assert known(heard=heard) is expected
