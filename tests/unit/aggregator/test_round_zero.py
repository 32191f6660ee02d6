"""What is settled before the first training: whose tables fit, which levels there are, which columns are left."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unit.aggregator.federation import weights_of
from unit.aggregator.story import Story, rules

from aggregator import plan as planning
from aggregator.events import GiveUp, Made
from aggregator.progression import MOST_SUSPECTED
from broker.schema import Feature, Label, Schema

AGE = Feature("age", unit="years")
WARD = Feature("ward", "categorical")
TABLE = Schema((AGE, WARD), Label("died"))
UNKNOWN = (
    "its column ward has levels that no site had when they were merged; "
    "declare all levels in the schema, and begin anew"
)


def with_tables(*levels: tuple[str, ...], start_with: int | None = None, **given: Any) -> Story:
    """Return a story in which a, b, ... have said hello with tables that have these ``levels`` of ward."""
    names = "abcdef"[: len(levels)]
    story = Story(rules(*"abcdef", start_with=len(levels) if start_with is None else start_with, **given))
    for name, each in zip(names, levels, strict=True):
        joins(story, name, *each)
    return story


def joins(story: Story, name: str, *levels: str, schema: Schema = TABLE) -> Story:
    return story.hello(name, feature_schema=schema, levels={"ward": levels})


def columns(story: Story) -> tuple[str, ...]:
    assert story.state.plan is not None
    return story.state.plan.features


# --- which levels there are ---------------------------------------------------------------------


def test_the_columns_are_those_of_all_sites_levels_and_training_begins_at_once() -> None:
    story = with_tables(("A", "C"), ("B",))
    assert columns(story) == ("age", "ward=B", "ward=C")
    assert story.phase == "training"
    assert story.trains("a", "b").version == 1
    assert story.weights == [1.0] * 4


def test_where_levels_are_rare_somewhere_moments_are_asked_for_first() -> None:
    story = with_tables(("A", "B"), ("B", "(other)"))
    assert columns(story) == ("age", "ward=B", "ward=(other)")
    assert (story.phase, story.asked("a"), story.asked("b")) == ("moments", "moments", "moments")


def frozen(*, n_rare: float, **given: Any) -> Story:
    """Return a story in which two sites have reported moments, and of ten rows at one so many have a rare level."""
    story = with_tables(("A", "B"), ("B", "(other)"), **given)
    none = {"mean": np.array([50.0, 0.5, 0.0]), "m2": np.array([40.0, 2.5, 0.0])}
    p = n_rare / 10
    some = {"mean": np.array([50.0, 0.5, p]), "m2": np.array([40.0, 2.5, 10 * p * (1 - p)])}
    return story.reports_moments("a", **none).reports_moments("b", **some)


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm", "scaffold", "lbfgs", "incremental-newton"])
def test_an_empty_column_of_rare_levels_goes_with_its_weights_moments_and_what_the_strategy_keeps(
    strategy: str,
) -> None:
    story = frozen(n_rare=0, strategy=strategy)
    state = story.state
    assert (story.phase, columns(story)) == ("training", ("age", "ward=B"))
    assert story.weights == [0.0] * 3
    assert [state.moments[name].mean.tolist() for name in "ab"] == [[50.0, 0.5]] * 2
    fresh = state.strategy.init(np.zeros(3))
    assert {name: array.shape for name, array in state.strategy_state.shared.items()} == {
        name: array.shape for name, array in fresh.shared.items()
    }
    (_, plan), (_, model) = story.plans[0], story.models[0]
    assert (plan.features, plan.revision) == (("age", "ward=B"), 2)
    assert (len(model.weights), model.plan_hash) == (3, state.plan_hash)


def test_training_goes_on_with_the_columns_that_are_left_also_after_a_restart() -> None:
    story = frozen(n_rare=0, strategy="fedadam", standardise=True, max_versions=1).restart()
    assert (story.phase, columns(story)) == ("training", ("age", "ward=B"))
    assert story.trains("a", "b").version == 1
    model = story.evaluates("a", "b").releases[0].model
    assert (model.features, len(weights_of(model))) == (("age", "ward=B"), 3)
    assert model.feature_schema is not None
    assert model.feature_schema.features[1].levels == ("A", "B")


@pytest.mark.parametrize("n_rare", [1, 10])
def test_one_that_some_row_has_stays(n_rare: int) -> None:
    story = frozen(n_rare=n_rare)
    assert (columns(story), len(story.weights)) == (("age", "ward=B", "ward=(other)"), 4)


# --- who fits -----------------------------------------------------------------------------------


def test_whose_schema_is_another_is_barred_by_name_with_the_difference() -> None:
    story = Story(rules("a", "b", "c", start_with=2))
    joins(story, "b", "Z", schema=replace(TABLE, features=(replace(AGE, unit="months"), WARD)))
    joins(story, "a", "A", "B")
    reason = (
        "its schema is not the plan's: feature age: its unit is months, the plan's years; give every site the same file"
    )
    assert story.observed("participant_barred") == [{"participant": "b", "reason": reason}]
    assert story.phase == "enrolling", "one that fits is too few"
    joins(story, "c", "A")
    assert (story.phase, columns(story)) == ("training", ("age", "ward=B"))
    assert story.observed("participant_barred") == [{"participant": "b", "reason": reason}]
    assert (story.model.roster["b"].asked, story.model.roster["b"].refusal) == ("", reason)


@pytest.mark.parametrize("without", ["a", "b"])
def test_a_site_with_a_schema_and_one_without_do_not_train_together(without: str) -> None:
    story = Story(rules("a", "b", start_with=1))
    for name in "ab":
        if name == without:
            story.hello(name, features=TABLE.names)
        else:
            joins(story, name, "A", "B")
    (greeted,) = story.observed("participant_said_hello")
    assert greeted["barred"] == (
        "it has a schema, and the plan has none: start every site with the schema's file"
        if without == "a"
        else "it has no schema, and the plan has one: start it with the schema's file"
    )


def test_a_late_joiner_with_levels_that_nobody_had_is_barred_and_they_are_not_named() -> None:
    story = with_tables(("A", "B"))
    joins(story, "b", "A", "canary")
    assert story.observed("participant_said_hello")[0]["barred"] == UNKNOWN
    assert (story.model.roster["b"].asked, story.model.roster["b"].refusal) == ("", UNKNOWN)
    assert story.trains("a").version == 1, "nobody waits for it"


def test_a_late_joiner_with_rare_levels_only_is_not() -> None:
    story = with_tables(("A", "B"))
    joins(story, "b", "B", "(other)")
    assert story.asked("b") == "train"
    assert columns(story) == ("age", "ward=B"), "the columns stay as they are"


def test_where_there_is_a_column_of_rare_levels_any_level_of_a_late_joiner_goes_there() -> None:
    story = frozen(n_rare=1)
    joins(story, "c", "A", "D")
    assert story.observed("participant_said_hello")[0]["barred"] == ""
    assert story.asked("c") == "moments"


def test_a_site_that_comes_back_with_another_schema_is_waited_for_no_longer() -> None:
    story = with_tables(("A", "B"), ("A", "B"))
    joins(story, "b", "A", "B", schema=replace(TABLE, label=Label("days")))
    assert story.model.roster["b"].refusal == (
        "its schema is not the plan's: its label is another one; give every site the same file"
    )
    assert story.trains("a").version == 1


# --- how many columns there may be --------------------------------------------------------------


def test_with_too_many_columns_for_moments_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MAX_BODY_BYTES", planning.MARGIN_BYTES + 2 * 8 * 3)
    fits = Story(rules("a", standardise=True)).hello("a", features=("x", "y", "z"))
    assert fits.phase == "moments"
    too_many = Story(rules("a", standardise=True)).hello("a", features=("x", "y", "z", "u"))
    (given_up,) = too_many.last(GiveUp)
    assert given_up.reason == (
        "the moments of 4 columns are too large for a message: do not standardise (--no-standardise), with a strategy "
        "that needs no learning rate, or use fewer columns"
    )
    assert (too_many.phase, too_many.last(Made)) == ("enrolling", [])
    without = Story(rules("a")).hello("a", features=("x", "y", "z", "u"))
    assert without.phase == "training", "nothing follows from them"


# --- whether they mean the same -----------------------------------------------------------------


def in_units(*factors: float, d: int = 2) -> dict[str, np.ndarray]:
    """Return moments of ten rows whose first columns are in units that make their numbers so many times."""
    by = np.ones(d)
    by[: len(factors)] = factors
    return {"mean": 20.0 * by, "m2": 160.0 * by**2}


def test_columns_in_another_unit_are_told_when_the_plan_is_frozen_and_training_goes_on() -> None:
    story = Story(rules("a", "b", "c", standardise=True)).all_say_hello()
    story.reports_moments("a", **in_units()).reports_moments("b", **in_units(1.0, 38.67))
    assert story.observed("units_disagree") == []
    story.reports_moments("c", **in_units())
    (seen,) = story.observed("units_disagree")
    assert (seen["participant"], seen["column"], seen["ratio"]) == ("b", "sex", pytest.approx(38.67))
    assert (story.phase, story.asked("b")) == ("training", "train")


def test_nothing_is_told_where_all_are_alike() -> None:
    story = Story(rules("a", "b", standardise=True)).all_say_hello().reports_moments("a", "b")
    assert story.phase == "training"
    assert story.observed("units_disagree") == []


def test_of_a_late_joiner_only_what_is_odd_about_itself_is_told() -> None:
    story = Story(rules("a", "b", "c", "d", start_with=3, standardise=True)).hello("a").hello("b").hello("c")
    for name, factor in (("a", 1.0), ("b", 0.1), ("c", 1.0)):
        story.reports_moments(name, **in_units(factor))
    assert [seen["participant"] for seen in story.observed("units_disagree")] == ["b"]
    story.hello("d").reports_moments("d", **in_units(1.0, 10.0))
    assert [(seen["participant"], seen["column"]) for seen in story.observed("units_disagree")] == [("d", "sex")]


def test_where_very_many_columns_are_odd_something_else_is_wrong_and_the_first_are_told() -> None:
    d = MOST_SUSPECTED + 5
    story = Story(rules("a", "b", standardise=True))
    for name in "ab":
        story.hello(name, features=tuple(f"x{j}" for j in range(d)))
    story.reports_moments("a", **in_units(d=d)).reports_moments("b", **in_units(*[10.0] * d, d=d))
    assert len(story.observed("units_disagree")) == MOST_SUSPECTED


def test_columns_that_are_left_out_are_not_compared() -> None:
    story = with_tables(("A", "B"), ("B", "(other)"))
    for name, age in (("a", 50.0), ("b", 600.0)):
        story.reports_moments(name, mean=np.array([age, 0.5, 0.0]), m2=np.array([age**2 / 2, 2.5, 0.0]))
    assert [seen["column"] for seen in story.observed("units_disagree")] == ["age", "age"]
