"""How a plan is made of hellos and moments, and who fits it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unit.aggregator.story import Story, rules

from aggregator.plan import (
    WIDEST_CENTRED,
    chosen_l2,
    enrol,
    first_plan,
    frozen_plan,
    inference_of,
    learning_rate,
    mismatch,
    penalty,
    penalty_scale,
    pooled_moments,
    rescaling,
    without_empty,
)
from aggregator.state import MOST_FORMER, WIDEST_HESSIAN, Member, State
from aggregator.strategies import make_strategy
from broker.messages import Hello, Plan, Sizes
from broker.schema import Feature, Label, Schema, with_levels
from logistic.moments import Moments


def member(name: str, *features: str, n_rows: int = 10) -> Member:
    return Member(name, "i1", n_rows, 0, hello=Hello("heart", name, "i1", features, n_rows, 0))


def hello(incarnation: str = "i1", *, n_rows: int = 10, features: tuple[str, ...] = ("age", "sex")) -> Hello:
    return Hello("heart", "a", incarnation, features, n_rows, 3)


def plan() -> Plan:
    made, _ = first_plan(rules("a", standardise=True, choose_learning_rate=True), [member("a", "age", "sex")])
    return made


# --- who fits -------------------------------------------------------------------------------


TWO = (0, 1)


def why_not(features: tuple[str, ...], expected: tuple[str, ...], classes: tuple[int, ...] = TWO) -> str:
    return mismatch(replace(hello(features=features), classes=classes), replace(plan(), features=expected))


def test_columns_in_another_order_fit() -> None:
    assert why_not(("b", "a"), ("a", "b")) == ""


def test_what_is_missing_and_what_is_unknown_is_named() -> None:
    assert why_not(("a",), ("a", "b")) == "its columns are not the plan's (missing: b)"
    assert why_not(("a", "c"), ("a",)) == "its columns are not the plan's (unknown: c)"


WARD = Feature("ward", "categorical")
TABLE = Schema((Feature("age", unit="years", missing="mean"), WARD), Label("died"))
FOUND = with_levels(TABLE, [{"ward": ("A", "B")}])


def of_table(
    name: str = "a", schema: Schema | None = TABLE, levels: tuple[str, ...] = ("A", "B"), **other: Any
) -> Hello:
    """Return the hello of a site with a table under ``schema``, in which it has ``levels`` of ward."""
    return Hello(
        "heart",
        name,
        "i1",
        TABLE.names,
        10,
        0,
        feature_schema=schema,
        levels={"ward": levels} if schema else {},
        **other,
    )


@pytest.mark.parametrize(
    ("theirs", "ours", "words"),
    [
        (of_table(), FOUND, ""),
        (of_table(levels=("B", "(other)")), FOUND, ""),
        (of_table(), None, "it has a schema, and the plan has none: start every site with the schema's file"),
        (
            of_table(schema=None),
            FOUND,
            "it has no schema, and the plan has one: start it with the schema's file",
        ),
        (
            of_table(schema=replace(TABLE, features=(Feature("age", unit="months", missing="mean"), WARD))),
            FOUND,
            (
                "its schema is not the plan's: feature age: its unit is months, the plan's years; "
                "give every site the same file"
            ),
        ),
        (
            of_table(levels=("A", "C")),
            FOUND,
            (
                "its column ward has levels that no site had when they were merged; "
                "declare all levels in the schema, and begin anew"
            ),
        ),
        (of_table(classes=(0, 1, 2)), FOUND, "its classes are 0, 1, 2, the plan's 0, 1"),
    ],
)
def test_a_table_fits_whose_schema_is_the_plans(theirs: Hello, ours: Schema | None, words: str) -> None:
    assert mismatch(theirs, replace(plan(), feature_schema=ours)) == words


def test_of_many_columns_that_do_not_fit_the_first_five_are_named() -> None:
    assert why_not(tuple("abcdefg"), ()) == "its columns are not the plan's (unknown: a, b, c, d, e)"


def test_other_classes_do_not_fit_whatever_the_columns() -> None:
    assert why_not(("a",), ("b",), classes=(0, 1, 2)) == "its classes are 0, 1, 2, the plan's 0, 1"
    assert why_not(("a",), ("a",), classes=(1, 0)) == "its classes are 1, 0, the plan's 0, 1", (
        "their order is the model's"
    )


# --- enrolment ------------------------------------------------------------------------------


def test_a_newcomer_keeps_its_columns_until_there_is_a_plan() -> None:
    assert enrol(None, hello(), None) == Member("a", "i1", 10, 3, hello=hello())
    assert enrol(None, hello(), plan()) == Member("a", "i1", 10, 3)
    assert enrol(None, hello(features=("age",)), plan()).barred


def test_one_that_is_known_keeps_its_history_and_may_bring_new_rows() -> None:
    known = replace(enrol(None, hello(), plan()), received=4, settled=3, pending="a:i1:4", included=3, loss=0.5)
    assert enrol(known, hello(n_rows=12), plan()) == replace(known, n_rows=12)


def test_one_without_its_disk_counts_anew_and_its_waiting_update_stays_its_own() -> None:
    known = replace(enrol(None, hello(), plan()), received=4, settled=3, pending="a:i1:4", included=3, loss=0.5)
    again = enrol(known, hello("i2"), plan())
    assert (again.incarnation, again.received, again.settled) == ("i2", 0, 0)
    assert (again.pending, again.included, again.loss) == ("a:i1:4", 3, 0.5)
    assert again.former == {"i1": 4}
    assert enrol(again, hello("i3"), plan()).former == {"i1": 4}, "of one that sent nothing nothing is remembered"


def test_an_incarnation_that_returns_goes_on_where_it_was() -> None:
    known = replace(enrol(None, hello(), plan()), received=4, settled=3, pending="a:i1:4")
    other = replace(enrol(known, hello("i2"), plan()), received=2)
    back = enrol(other, hello("i1"), plan())
    assert (back.received, back.settled, back.former) == (4, 3, {"i2": 2})
    after_inclusion = enrol(replace(other, pending=""), hello("i1"), plan())
    assert (after_inclusion.received, after_inclusion.settled) == (4, 4)


def test_who_loses_its_disk_at_each_start_makes_a_member_that_grows_no_further() -> None:
    known = replace(enrol(None, hello("life-0"), plan()), received=1)
    for life in range(1, MOST_FORMER + 4):
        known = replace(enrol(known, hello(f"life-{life}"), plan()), received=1)
    assert len(known.former) == MOST_FORMER
    assert next(iter(known.former)) == "life-3"
    assert list(known.with_former("life-3", 7).items())[-1] == ("life-3", 7)


# --- the first plan -------------------------------------------------------------------------


def test_the_first_participants_columns_lead_and_in_its_order() -> None:
    made, members = first_plan(rules("a", "b", "c"), [member("a", "z", "y"), member("b", "y", "z"), member("c", "y")])
    assert made.features == ("z", "y")
    assert [bool(each.barred) for each in members.values()] == [False, False, True]
    assert all(each.hello is None for each in members.values())


def test_the_penalty_is_one_over_the_rows_of_those_that_fit_unless_it_is_given() -> None:
    enrolled = [member("a", "x", n_rows=30), member("b", "x", n_rows=10), member("c", "y", n_rows=500)]
    assert first_plan(rules("a", "b", "c", l2=None), enrolled)[0].l2 == 1 / 40
    assert first_plan(rules("a", "b", "c", l2=0.0), enrolled)[0].l2 == 0.0
    assert first_plan(rules("a", l2=None), [member("a", "x", n_rows=0)])[0].l2 == 1.0


# --- the frozen plan ------------------------------------------------------------------------


def test_the_frame_is_the_pooled_mean_and_standard_deviation() -> None:
    rng = np.random.default_rng(5)
    X = rng.normal(3.0, 2.0, size=(50, 2))
    parts = {"b": Moments.of(X[:20]), "a": Moments.of(X[20:])}
    frozen = frozen_plan(plan(), rules("a", standardise=True), parts)
    assert frozen.frame is not None
    np.testing.assert_allclose(frozen.frame.mean, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(frozen.frame.scale, X.std(axis=0), rtol=1e-14)
    assert (frozen.revision, frozen.work) == (2, plan().work), "no rate was to be chosen"


def test_the_frame_does_not_depend_on_who_reported_first_bit_for_bit() -> None:
    rng = np.random.default_rng(6)
    parts = {name: Moments.of(rng.normal(size=(7, 2))) for name in "abc"}
    other_order = {name: parts[name] for name in "cab"}
    first, second = (frozen_plan(plan(), rules("a", standardise=True), each).frame for each in (parts, other_order))
    assert first is not None
    assert second is not None
    assert (first.mean.tobytes(), first.scale.tobytes()) == (second.mean.tobytes(), second.scale.tobytes())


def test_columns_that_are_taken_as_they_are_have_no_frame() -> None:
    parts = {"a": Moments.of(np.array([[1.0, 2.0], [3.0, 2.0]]))}
    frozen = frozen_plan(plan(), rules("a", standardise=False, choose_learning_rate=True), parts)
    assert frozen.frame is None
    assert frozen.work.learning_rate == pytest.approx(1 / ((5.0 + 4.0 + 1.0) / 4 + frozen.l2))


@pytest.mark.parametrize("standardised", [True, False])
def test_the_learning_rate_is_one_over_a_bound_on_the_pooled_curvature(*, standardised: bool) -> None:
    rng = np.random.default_rng(7)
    X = np.column_stack([rng.normal(5.0, 3.0, size=80), np.full(80, 2.0)])
    Z = (X - X.mean(axis=0)) / np.array([X[:, 0].std(), 1.0]) if standardised else X
    A = np.column_stack([Z, np.ones(80)])
    largest = float(np.linalg.eigvalsh(A.T @ A / 80).max() / 4) + 0.01
    rate = learning_rate(Moments.of(X), 0.01, standardised=standardised)
    assert rate <= 1 / largest
    assert rate == pytest.approx(1 / (np.trace(A.T @ A) / 80 / 4 + 0.01))


def test_a_column_that_is_constant_everywhere_is_centred_only() -> None:
    story = Story(rules("a", standardise=True)).hello("a")
    update = story.moments("a")
    update.arrays["m2"] = np.array([40.0, 0.0])
    frame = story.arrives(update).plans[0][1].frame
    assert frame is not None
    assert frame.scale.tolist() == [2.0, 1.0]


# --- what the settings make of it -----------------------------------------------------------


def plan_of(given: dict[str, Any], *members: Member) -> Plan:
    enrolled = members or (member("a", "x", "y"),)
    made, _ = first_plan(rules(*(each.name for each in enrolled), **given), enrolled)
    return made


def test_what_the_operator_decided_stands_in_the_plan() -> None:
    made = plan_of({"l1": 0.5, "penalty": "firth", "class_weights": (1.0, 4.0), "missing": "mean", "seed": 7})
    assert (made.l1, made.penalty, made.class_weights, made.missing, made.seed) == (0.5, "firth", (1.0, 4.0), "mean", 7)
    assert (made.strategy, made.kind) == ("fedavg", "weights")


def test_the_first_participants_classes_lead_too() -> None:
    three = [
        replace(member(name, "x"), hello=Hello("heart", name, "i1", ("x",), 10, 0, classes=classes))
        for name, classes in (("a", (0, 1, 2)), ("b", TWO))
    ]
    made, members = first_plan(rules("a", "b"), three)
    assert made.classes == (0, 1, 2)
    assert made.sizes.parameters == 3 * 2
    assert members["b"].barred == "its classes are 0, 1, the plan's 0, 1, 2"


def test_the_default_penalty_is_one_over_the_weight_of_those_who_take_part() -> None:
    weighted = replace(member("a", "x", n_rows=30), n_samples=12.5)
    assert plan_of({"l2": None}, weighted, member("b", "x", n_rows=7)).l2 == 1 / 19.5
    members = {"a": member("a"), "b": replace(member("b"), evicted=True), "c": replace(member("c"), barred="why")}
    assert chosen_l2(rules("a", l2=None), members) == 1 / 10
    assert chosen_l2(rules("a", l2=0.25), members) == 0.25


def wide(n_parameters: int, **given: Any) -> Plan:
    rules_ = rules("a", strategy="incremental-newton", wide_strategy=make_strategy("lbfgs"), **given)
    made, _ = first_plan(rules_, [member("a", *(f"x{j}" for j in range(n_parameters - 1)))])
    return made


def test_a_model_whose_matrices_are_too_large_has_a_strategy_of_its_own() -> None:
    narrow, broad = wide(WIDEST_HESSIAN), wide(WIDEST_HESSIAN + 1)
    assert (narrow.strategy, narrow.kind) == ("incremental-newton", "curvature")
    assert (broad.strategy, broad.kind) == ("lbfgs", "gradient")
    stays = first_plan(rules("a"), [member("a", *(f"x{j}" for j in range(2000)))])[0]
    assert stays.strategy == "fedavg", "where no other was named"


@pytest.mark.parametrize(
    ("asked", "n_parameters", "expected"),
    [
        ("none", 3, "none"),
        ("wald", 3, "wald"),
        ("sandwich", 3, "sandwich"),
        ("wald", 1500, "wald"),
        ("sandwich", 1500, "none"),
        ("wald", 2100, "none"),
        ("sandwich", 1200, "sandwich"),
    ],
)
def test_the_matrices_of_standard_errors_are_asked_for_where_they_fit_into_a_message(
    asked: Any, n_parameters: int, expected: str
) -> None:
    assert inference_of(rules("a", inference=asked), Sizes(n_parameters - 1)) == expected
    assert wide(n_parameters, inference=asked).inference == expected


def test_without_a_penalty_they_are_asked_for_anyway() -> None:
    """They tell whether there is an optimum at all."""
    assert inference_of(rules("a", inference="none", l2=0.0), Sizes(3)) == "wald"
    assert inference_of(rules("a", inference="none", l2=None), Sizes(3)) == "none"
    assert inference_of(rules("a", inference="none", l2=0.0), Sizes(2100)) == "none"


def test_missing_cells_are_filled_with_the_pooled_means_also_where_nothing_else_needs_them() -> None:
    first, second = np.array([[1.0, np.nan], [3.0, 4.0]]), np.array([[np.nan, 8.0], [8.0, 0.0]])
    parts = {"a": Moments.of(first, allow_missing=True), "b": Moments.of(second, allow_missing=True)}
    fills = rules("a", missing="mean")
    planned = replace(plan(), missing="mean")
    assert fills.need_moments(planned)
    frozen = frozen_plan(planned, fills, parts)
    assert frozen.fill is not None
    np.testing.assert_allclose(frozen.fill, [4.0, 4.0])
    assert frozen.frame is None
    assert frozen_plan(plan(), rules("a", standardise=True), parts).fill is None


@pytest.mark.parametrize("needs", [{"standardise": True}, {"choose_learning_rate": True}, {"missing": "mean"}, {}])
def test_moments_are_asked_for_only_where_something_follows_from_them(needs: dict[str, Any]) -> None:
    planned = replace(plan(), missing=needs.get("missing", "refuse"))
    assert rules("a", **needs).need_moments(planned) == bool(needs)


# --- tables under a schema ------------------------------------------------------------------


def first_plan_of(*hellos: Hello) -> tuple[Plan, dict[str, str]]:
    """Return the first plan, and why who does not fit it is barred."""
    enrolled = [replace(member(each.participant), hello=each) for each in hellos]
    made, members = first_plan(rules(*(each.participant for each in hellos)), enrolled)
    assert all(each.hello is None for each in members.values()), "it is kept no longer than it is needed"
    return made, {name: each.barred for name, each in members.items()}


def test_the_plan_has_the_levels_of_all_sites_and_the_columns_that_follow() -> None:
    made, barred = first_plan_of(of_table("a", levels=("C", "A")), of_table("b", levels=("B", "(other)")))
    assert made.features == ("age", "ward=B", "ward=C", "ward=(other)")
    assert made.feature_schema == with_levels(TABLE, [{"ward": ("A", "B", "C", "(other)")}])
    assert made.sizes.parameters == 5
    assert barred == {"a": "", "b": ""}


def test_levels_of_a_site_with_another_schema_do_not_count() -> None:
    other = replace(TABLE, label=Label("days"))
    made, barred = first_plan_of(of_table("a"), of_table("b", other, ("Z",)), of_table("c", None), of_table("d"))
    assert made.features == ("age", "ward=B")
    assert barred == {
        "a": "",
        "b": "its schema is not the plan's: its label is another one; give every site the same file",
        "c": "it has no schema, and the plan has one: start it with the schema's file",
        "d": "",
    }


@pytest.mark.parametrize(("rule", "missing"), [("refuse", "refuse"), ("mean", "mean"), ("indicator", "mean")])
def test_what_becomes_of_missing_cells_is_what_the_schema_says(rule: Any, missing: str) -> None:
    schema = replace(TABLE, features=(Feature("age", missing=rule), WARD))
    made, _ = first_plan_of(of_table(schema=schema))
    assert made.missing == missing


def of_three(a: Moments, b: Moments) -> tuple[Plan, dict[str, Moments]]:
    """Return what is left where the sites have an age, the ward B, and maybe other wards."""
    made, _ = first_plan_of(of_table(levels=("A", "B", "(other)")))
    return without_empty(made, {"b": b, "a": a})


def moments_of(*rows: tuple[float, float, float]) -> Moments:
    return Moments.of(np.array(rows), allow_missing=True)


NONE_ARE_RARE = moments_of((50.0, 0.0, 0.0), (61.0, 1.0, 0.0))


def test_a_column_of_rare_levels_that_no_row_has_is_left_out_with_its_moments() -> None:
    gaps = moments_of((np.nan, 1.0, 0.0), (70.0, 1.0, 0.0))
    made, moments = of_three(NONE_ARE_RARE, gaps)
    assert (made.features, made.feature_schema) == (("age", "ward=B"), FOUND)
    np.testing.assert_array_equal(moments["a"].mean, [55.5, 0.5])
    np.testing.assert_array_equal(moments["a"].m2, NONE_ARE_RARE.m2[:2])
    assert moments["a"].observed is None
    np.testing.assert_array_equal(moments["b"].n_observed, [1.0, 2.0])


def test_one_that_some_row_has_stays_with_the_moments_as_they_are() -> None:
    everywhere, rare = moments_of((50.0, 0.0, 1.0)), moments_of((50.0, 0.0, 1.0), (50.0, 0.0, 0.0))
    for has_one in (everywhere, rare):
        made, moments = of_three(NONE_ARE_RARE, has_one)
        assert made.features == ("age", "ward=B", "ward=(other)")
        np.testing.assert_array_equal(moments["b"].mean, has_one.mean)


def test_other_empty_columns_stay() -> None:
    """A level that a site tells has rows, or had some; the plan has a place for it."""
    made, _ = of_three(moments_of((0.0, 0.0, 1.0)), moments_of((0.0, 0.0, 0.0)))
    assert made.features == ("age", "ward=B", "ward=(other)")


def test_without_a_schema_nothing_is_left_out() -> None:
    without, zeros = plan(), {"a": Moments.zero(2)}
    assert without_empty(without, zeros) == (without, zeros)


def test_of_very_many_columns_the_means_do_not_travel() -> None:
    for width, centred in ((WIDEST_CENTRED, True), (WIDEST_CENTRED + 1, False)):
        wide_plan = replace(plan(), features=tuple(map(str, range(width))))
        moments = {"a": Moments(4.0, np.full(width, 3.0), np.full(width, 16.0))}
        frame = frozen_plan(wide_plan, rules("a", standardise=True), moments).frame
        assert frame is not None
        assert (frame.mean is not None) == centred
        assert set(frame.scale) == {2.0}


# --- the penalty in the frame that was frozen first -------------------------------------------


def rescaled(**given: Any) -> State:
    """Return the state when a site of ten rows was frozen, with scales of 2, and one of other scales has come."""
    story = Story(rules("a", "b", start_with=1, standardise=True, **given)).hello("a").reports_moments("a").hello("b")
    update = story.moments("b")
    update.arrays.update(mean=np.array([1.0, 4.0]), m2=np.array([20.0, 40.0]))
    return story.arrives(update).state


def test_the_penalty_is_that_of_the_new_standard_deviations_and_the_intercepts_have_none() -> None:
    state = rescaled()
    pooled = pooled_moments(state)
    np.testing.assert_allclose(pooled.mean, [1.0, 2.5])
    np.testing.assert_allclose(pooled.m2, [60.0, 80.0 + 5.0 * 9.0])
    sd = np.sqrt(np.array([60.0, 125.0]) / 20.0)
    np.testing.assert_allclose(rescaling(state), sd / 2.0)
    np.testing.assert_allclose(penalty_scale(state), [*(sd / 2.0) ** 2, 0.0])


def test_the_penalty_of_weights_is_that_of_the_same_model_on_the_new_scale() -> None:
    state = rescaled(strategy="incremental-newton", l1=0.3)
    w = np.array([1.5, -2.0, 9.0])
    new = w[:-1] * rescaling(state)
    expected = 0.05 * float(new @ new) + 0.3 * float(np.abs(new).sum())
    assert penalty(state, w) == pytest.approx(expected)


def test_each_class_has_a_penalty_and_an_intercept_without_one() -> None:
    story = Story(rules("a")).hello("a", classes=(0, 1, 2))
    np.testing.assert_array_equal(penalty_scale(story.state), [1.0, 1.0, 0.0] * 3)
    assert penalty(story.state, np.ones(9)) == pytest.approx(0.05 * 6)


def test_rows_that_are_taken_as_they_are_are_penalised_as_they_are() -> None:
    story = Story(rules("a", choose_learning_rate=True)).hello("a").reports_moments("a")
    assert story.state.plan is not None
    assert story.state.plan.frame is None
    np.testing.assert_array_equal(penalty_scale(story.state), [1.0, 1.0, 0.0])


def test_firths_penalty_is_not_one_of_weights() -> None:
    story = Story(rules("a", strategy="firth", penalty="firth", l2=0.0)).hello("a")
    assert penalty(story.state, np.ones(3)) == 0.0


def test_rows_of_those_who_take_part_make_the_moments_and_of_nobody_those_that_are_known() -> None:
    state = rescaled()
    gone = replace(state, members={**state.members, "b": replace(state.members["b"], evicted=True)})
    np.testing.assert_array_equal(pooled_moments(gone).m2, [40.0, 40.0])
    nobody = replace(gone, members={name: replace(each, evicted=True) for name, each in gone.members.items()})
    np.testing.assert_array_equal(pooled_moments(nobody).m2, pooled_moments(state).m2)


def test_before_there_is_a_plan_nothing_is_penalised() -> None:
    with pytest.raises(AssertionError, match="no weights before there is a plan"):
        penalty(Story(rules("a")).state, np.zeros(3))


# --- hellos that bring more ---------------------------------------------------------------


def test_a_hello_brings_classes_weights_and_a_fingerprint() -> None:
    brought = replace(hello(), classes=(0, 1), n_samples=7.5, fingerprint="f1")
    fresh = enrol(None, brought, plan())
    assert (fresh.classes, fresh.n_samples, fresh.fingerprint, fresh.weight) == ((0, 1), 7.5, "f1", 7.5)
    again = enrol(replace(fresh, evicted=True, received=3), replace(brought, n_samples=None, fingerprint="f2"), plan())
    assert (again.n_samples, again.fingerprint, again.weight, again.evicted) == (None, "f2", 10.0, False)
    assert again.received == 3
    assert enrol(fresh, replace(hello("i2"), fingerprint="f3"), plan()).fingerprint == "f3"


def test_a_hello_of_other_classes_is_barred() -> None:
    assert enrol(None, replace(hello(), classes=(0, 1, 2)), plan()).barred == "its classes are 0, 1, 2, the plan's 0, 1"
