"""What is made of everybody's last sums, and of the last quadratic of who is not there."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unit.aggregator.federation import Federation, drawn, exact_rules, pooled, table, weights_of
from unit.aggregator.story import Story, rules, scores

from aggregator.fit import (
    absent,
    escape_directions,
    fit_sums,
    merged_scores,
    plan_of,
    scale_of,
    separated,
    sums,
    total,
)
from aggregator.fit import (
    weights_of as last_weights,
)
from aggregator.state import WIDEST_HESSIAN, Answer, State
from aggregator.strategies import make_strategy
from broker.messages import MAX_DIRECTIONS
from broker.schema import OTHER, Feature, Label, Schema
from logistic.loss import gradient_sum, hessian_sum, log_loss_sum, score_product_sum
from logistic.separation import Kind

A, B, C = drawn(1, 90), drawn(2, 120, 1.0, skew=0.5), drawn(3, 70, -1.0, skew=-0.5)
SITES = {"a": A, "b": B, "c": C}


def verified(*gone: str, **given: Any) -> State:
    """Return the state when all but ``gone`` have evaluated the last model; these were heard before."""
    story = Federation(exact_rules(*SITES, exact_auc=False, **given)).joins(**SITES)
    story.runs(until=lambda s: s.phase == "verifying")
    for name in gone:
        story.is_gone(name).goodbye(name, incarnation=f"{name}-1")
    story.runs()
    assert story.phase == "converged"
    return story.state


def test_the_sums_of_all_are_those_of_all_rows_in_one_place() -> None:
    state = verified(l2=0.02, inference="sandwich")
    parts = sums(state)
    assert parts is not None
    assert [part.name for part in parts] == ["a", "b", "c"]
    problem, _ = pooled(*SITES.values(), l2=0.02)
    w = last_weights(state)
    fit = fit_sums(state, parts)
    np.testing.assert_array_equal(fit.w, w)
    np.testing.assert_allclose(fit.H, hessian_sum(problem, w), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(fit.g, gradient_sum(problem, w), atol=1e-10)
    assert fit.meat is not None
    np.testing.assert_allclose(fit.meat, score_product_sum(problem, w), rtol=1e-10, atol=1e-10)
    assert (fit.n, fit.n_positive) == (280.0, problem.y.sum())
    assert fit.log_loss_sum == pytest.approx(log_loss_sum(problem, w), rel=1e-12)
    np.testing.assert_allclose(fit.penalty, [5.6, 5.6, 5.6, 0.0])
    assert fit.standardisation.mean.tolist() == scale_of(plan_of(state)).mean.tolist()


def test_without_matrices_there_are_no_sums() -> None:
    assert sums(verified(l2=0.02, inference="none")) is None


def test_who_has_gone_is_counted_with_its_last_quadratic_carried_to_the_last_weights() -> None:
    state = verified("c", l2=0.02)
    assert absent(state) == ("c",)
    moved = replace(state, weights=last_weights(state) + 0.01)
    parts = {part.name: part for part in sums(moved) or []}
    w = last_weights(moved)
    scale = scale_of(plan_of(state))
    own, _ = pooled(C, standardise=False)
    own = replace(own, X=scale.apply(own.X))
    assert parts["c"].n == 70.0
    # A quadratic leaves out what is of third order in the change.
    assert parts["c"].loss == pytest.approx(log_loss_sum(own, w), abs=1e-3)
    np.testing.assert_allclose(parts["c"].g, gradient_sum(own, w), atol=0.05)
    assert np.abs(gradient_sum(own, w) - gradient_sum(own, w - 0.01)).max() > 0.3
    assert parts["c"].meat is None
    assert fit_sums(moved, list(parts.values())).meat is None


def test_who_takes_part_no_longer_or_never_sent_a_quadratic_is_not_counted() -> None:
    state = verified("c", l2=0.02)
    evicted = {**state.members, "c": replace(state.members["c"], evicted=True)}
    assert absent(replace(state, members=evicted)) == ()
    nothing_held = replace(state, strategy_state=replace(state.strategy_state, held={}))
    assert absent(nothing_held) == ()
    assert [part.name for part in sums(nothing_held) or []] == ["a", "b"]


def test_scores_are_merged_over_those_who_have_rows() -> None:
    story = Story(rules("a", "b")).all_say_hello()
    told = {"a": story.evaluation("a", test=scores(n=4.0)), "b": story.evaluation("b", train=scores(n=6.0))}
    state = replace(story.state, scores=told)
    train, test = merged_scores(state, "train"), merged_scores(state, "test")
    assert train is not None
    assert test is not None
    assert (train.n, test.n) == (16.0, 4.0)
    assert merged_scores(replace(state, scores={"b": told["b"]}), "test") is None


def test_a_plan_without_a_frame_leaves_columns_as_they_are() -> None:
    plan = plan_of(Story(rules("a")).hello("a").state)
    scale = scale_of(plan)
    assert (scale.mean.tolist(), scale.scale.tolist()) == ([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize("part", [plan_of, last_weights])
def test_before_there_is_a_plan_there_is_no_fit(part: Any) -> None:
    with pytest.raises(AssertionError):
        part(Story(rules("a")).state)


def test_a_total_does_not_change_what_it_adds() -> None:
    parts = [np.ones(2), np.ones(2)]
    assert total(parts).tolist() == [2.0, 2.0]
    assert parts[0].tolist() == [1.0, 1.0]


# --- separation -------------------------------------------------------------------------------

ROWS = np.concatenate([np.ones(20), -np.ones(20)])
HALVES = {"a": table(ROWS[::2, None], ROWS[::2] > 0), "b": table(ROWS[1::2, None], ROWS[1::2] > 0)}


def suspected(**given: Any) -> State:
    """Return the state in which somebody has to look at the rows; ``given`` changes the plan."""
    story = Federation(exact_rules(*HALVES, l2=0.0, standardise=False)).joins(**HALVES)
    state = story.runs(until=lambda s: s.state.progress.stage == "sides").state
    return replace(state, plan=replace(plan_of(state), **given))


def test_the_newton_step_and_the_weights_are_the_directions_to_look_along() -> None:
    state = suspected()
    directions = escape_directions(state)
    assert directions is not None
    np.testing.assert_array_equal(directions[1], last_weights(state))
    step = directions[0]
    assert step[0] > 0.5, "about 1 is added to the margins of all rows"
    assert abs(step[1]) < 1e-6
    np.testing.assert_array_equal(state.question["directions"], directions.ravel())


@pytest.mark.parametrize("given", [{"l2": 1e-6}, {"l1": 1e-6}, {"penalty": "firth"}, {"classes": (0, 1, 2)}])
def test_with_a_penalty_or_more_classes_there_is_nothing_to_look_for(given: dict[str, Any]) -> None:
    assert escape_directions(suspected(**given)) is None


def test_where_nothing_was_measured_nothing_is_suspected() -> None:
    state = suspected()
    unmeasured = {name: replace(each, information=None) for name, each in state.scores.items()}
    assert escape_directions(replace(state, scores=unmeasured)) is None


def test_an_optimum_nearby_is_not_suspected_of_being_far_away() -> None:
    story = Federation(exact_rules("a", l2=0.0, strategy="fedavg", max_versions=2)).joins(a=A)
    state = story.runs(until=lambda s: bool(s.state.scores)).state
    assert not state.progress.converged
    assert escape_directions(state) is None


@pytest.mark.parametrize("strategy", ["lbfgs", "incremental-newton"])
def test_weights_so_far_out_that_no_step_leads_on_are_not_taken_for_the_optimum(strategy: str) -> None:
    """On standardised columns the directions of hardly any curvature are asked about, there and back."""
    halves = {name: replace(rows, X=np.column_stack([rows.X, rows.X**2])) for name, rows in HALVES.items()}
    rng = np.random.default_rng(1)
    for name, rows in halves.items():
        halves[name] = table(np.column_stack([rows.X[:, 0], rng.normal(size=len(rows.y))]), rows.y)
    story = Federation(exact_rules(*halves, l2=0.0, strategy=strategy)).joins(**halves).runs()
    assert [given_up.no_model for given_up in story.given_up] == [True]
    assert "x0" in story.given_up[0].reason


def test_directions_that_collinear_columns_leave_open_are_asked_about_and_prove_nothing() -> None:
    many = table(np.column_stack([A.X] * 4), A.y)
    story = Federation(exact_rules("a", l2=0.0)).joins(a=many)
    story.runs(until=lambda s: s.state.progress.stage == "sides")
    n_directions = story.state.question["directions"].size // 13
    assert 2 < n_directions <= MAX_DIRECTIONS, "nine are open"
    story.runs()
    assert (story.phase, story.given_up) == ("converged", [])
    assert story.released.converged


def sides(right: float, on: float, wrong: float, of_weights: float = 0.0) -> Answer:
    """Return the answer of a site; along the weights as many are wrong as said."""
    counts = {"right": [right, right], "on": [on, on], "wrong": [wrong, of_weights]}
    return Answer({name: np.array(values, dtype=float) for name, values in counts.items()})


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ({"a": sides(20, 0, 0), "b": sides(20, 0, 0)}, Kind.COMPLETE),
        ({"a": sides(20, 0, 0), "b": sides(15, 5, 0)}, Kind.QUASI_COMPLETE),
        ({"a": sides(19, 0, 1, 1), "b": sides(20, 0, 0)}, None),
        ({"a": sides(19, 0, 1, 0), "b": sides(20, 0, 0)}, Kind.COMPLETE),
        ({"a": sides(0, 20, 0), "b": sides(0, 20, 0)}, None),
        ({"a": sides(20, 0, 0)}, None),
    ],
)
def test_the_rows_of_all_together_prove_it_along_either_direction(
    answers: dict[str, Answer], kind: Kind | None
) -> None:
    found = separated(replace(suspected(), answers=answers))
    assert (None if found is None else found.kind) == kind
    if found is not None:
        assert found.columns == ("x0",)


def test_the_weights_of_the_release_are_those_of_the_state() -> None:
    story = Federation(exact_rules("a", l2=0.1)).joins(a=A).runs()
    np.testing.assert_array_equal(weights_of(story.released), last_weights(story.state))


def test_a_plan_that_loses_a_column_at_the_limit_keeps_the_strategy_that_it_was_made_for() -> None:
    features = (*(Feature(f"x{number}") for number in range(WIDEST_HESSIAN - 2)), Feature("city", kind="categorical"))
    schema = Schema(features, Label("y"))
    story = Story(
        rules("a", "b", strategy="incremental-newton", wide_strategy=make_strategy("lbfgs"), standardise=True)
    )
    story.hello("a", feature_schema=schema, levels={"city": ("a", OTHER)})
    story.hello("b", feature_schema=schema, levels={"city": ("a", "b")})
    assert story.state.strategy.name == "lbfgs"
    mean, m2 = np.ones(story.width), np.full(story.width, 40.0)
    mean[-1] = m2[-1] = 0.0
    story.reports_moments("a", "b", mean=mean, m2=m2)
    plan = story.state.plan
    assert plan is not None
    assert plan.sizes.parameters == WIDEST_HESSIAN
    assert (plan.strategy, plan.kind) == (story.state.strategy.name, story.state.strategy.kind)
