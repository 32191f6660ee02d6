"""The strategies that ask for gradients: the pooled objective, gradient descent on it, and L-BFGS."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import cos, exp, sin

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from unit.aggregator.hospitals import (
    EVERYBODY,
    SITES,
    contribution,
    gradients,
    hospitals,
    last,
    optimum,
    pooled,
    rounds,
)
from unit.aggregator.story import Story, rules

from aggregator.announcement import asked_of
from aggregator.errors import StrategyError
from aggregator.strategies import (
    Contribution,
    Finished,
    Situation,
    Strategy,
    StrategyOptions,
    StrategyState,
    lbfgs,
    make_strategy,
)
from aggregator.strategies.fedsgd import FedSGD
from aggregator.strategies.lbfgs import LBFGS, advance, begin
from aggregator.strategies.line_search import MAX_LOOKS, Search, look, search_from
from aggregator.strategies.pooled import pooled as pooled_at
from aggregator.testing import _packed, _unpacked
from broker.messages import Array
from logistic import Problem, gradient, loss
from logistic.solvers.search import CURVATURE, SUFFICIENT_DECREASE, Point

L2 = 0.01
PROBLEMS = hospitals(L2)
POOLED = pooled(PROBLEMS)
OPTIMUM = optimum(POOLED)
N = POOLED.n_parameters
SITUATION = Situation(L2, EVERYBODY, EVERYBODY)
EXACT = [FedSGD(server_learning_rate=1.3), LBFGS()]


def held(strategy: Strategy, at: dict[str, Array], state: StrategyState | None = None) -> StrategyState:
    """Return the state in which each of ``at`` has sent its gradient from there."""
    state = strategy.init(np.zeros(N)) if state is None else state
    for name, w in at.items():
        state = strategy.receive(state, contribution(PROBLEMS, name, w, gradients(PROBLEMS)(name, w, {})))
    return state


def everybody(w: Array) -> dict[str, Array]:
    return dict.fromkeys(SITES, w)


# --- the pooled objective -------------------------------------------------------------------


def test_losses_and_gradients_of_all_add_up_to_those_of_the_pooled_rows() -> None:
    w = np.linspace(-1, 1, N)
    here = pooled_at(held(FedSGD(), everybody(w)), w, SITUATION)
    assert here is not None
    assert here.n_samples == POOLED.n_samples
    assert here.loss == pytest.approx(loss(POOLED, w), rel=1e-14)
    np.testing.assert_allclose(here.gradient, gradient(POOLED, w), rtol=0, atol=1e-15)


def test_the_penalty_is_on_the_scale_of_release_where_the_rows_have_changed() -> None:
    w, scale = np.linspace(-1, 1, N), np.append(np.full(N - 1, 4.0), 0.0)
    state = held(FedSGD(), everybody(w))
    plain = pooled_at(state, w, SITUATION)
    scaled = pooled_at(state, w, replace(SITUATION, penalty_scale=scale))
    assert plain is not None
    assert scaled is not None
    assert scaled.loss - plain.loss == pytest.approx(0.5 * L2 * 3.0 * float(w[:-1] @ w[:-1]))
    np.testing.assert_allclose(scaled.gradient - plain.gradient, 3.0 * L2 * np.append(w[:-1], 0.0), atol=1e-15)


def test_many_classes_have_an_intercept_each_that_is_not_penalised() -> None:
    X, y = np.array([[1.0], [2.0], [4.0]]), np.array([0.0, 1.0, 2.0])
    problems = {"a": Problem(X, y, l2=0.5, n_classes=3)}
    end, _ = last(rounds(LBFGS(), problems, gradients(problems), most=200, live=lambda _: frozenset("a")))
    assert end.converged
    np.testing.assert_allclose(end.weights, optimum(problems["a"]), atol=1e-9)


# --- a gradient belongs to its point --------------------------------------------------------


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_a_gradient_from_elsewhere_is_not_used_and_its_participant_is_asked_again(strategy: Strategy) -> None:
    w = np.zeros(N)
    state = held(strategy, {**everybody(w), "va": w + 1e-9})
    after = strategy.finish(state, w, SITUATION)
    assert after.weights is w
    assert after.state is state
    assert after.included == SITES, "it is settled, or it could not answer again"
    assert after.converged is False
    assert strategy.finish(held(strategy, {"va": w}, state), w, SITUATION).weights is not w


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_nothing_is_said_of_a_point_as_long_as_somebody_who_is_there_has_not_answered(strategy: Strategy) -> None:
    state = held(strategy, {name: OPTIMUM for name in SITES if name != "va"})
    assert not strategy.finish(state, OPTIMUM, replace(SITUATION, received=EVERYBODY - {"va"})).converged
    gone = replace(SITUATION, received=EVERYBODY - {"va"}, live=EVERYBODY - {"va"})
    assert strategy.finish(state, OPTIMUM, gone).weights is not OPTIMUM


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_nobody_s_gradient_is_weighed_down_and_rounds_have_no_deadline(strategy: Strategy) -> None:
    sent = contribution(PROBLEMS, "va", OPTIMUM, {}, version=9, staleness=9)
    assert strategy.weigh(sent) == 85.0
    pace = strategy.pace_of(strategy.init(OPTIMUM))
    assert not pace.due(EVERYBODY - {"va"}, EVERYBODY, since=0.0, now=1e8)


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_without_one_who_has_gone_it_is_the_fit_of_the_others_and_with_him_again_that_of_all(
    strategy: Strategy,
) -> None:
    others = {name: problem for name, problem in PROBLEMS.items() if name != "va"}
    there = frozenset(others)
    answer = gradients(PROBLEMS)
    end, n = last(rounds(strategy, PROBLEMS, answer, most=4000, live=lambda v: EVERYBODY if v < 5 else there))
    assert end.converged
    assert "va" in end.state.held
    np.testing.assert_allclose(end.weights, optimum(pooled(others)), atol=1e-7)
    back, _ = last(rounds(strategy, PROBLEMS, answer, most=4000, live=lambda v: there if 5 <= v < n - 3 else EVERYBODY))
    assert back.converged
    np.testing.assert_allclose(back.weights, OPTIMUM, atol=1e-7)


def without_base(sent: Contribution, **changes: int) -> Contribution:
    return replace(sent, arrays={"gradient": sent.arrays["gradient"]}, **changes)


def bare(strategy: Strategy, state: StrategyState, *names: str, w: Array, **changes: int) -> StrategyState:
    """Return ``state`` in which each of ``names`` has sent its gradient at ``w`` and not said where it was taken."""
    for name in names:
        sent = contribution(PROBLEMS, name, w, gradients(PROBLEMS)(name, w, {}))
        state = strategy.receive(state, without_base(sent, **changes))
    return state


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_a_gradient_that_does_not_say_where_it_was_taken_is_of_the_newest_version_and_counts_there_alone(
    strategy: Strategy,
) -> None:
    w = np.linspace(-1, 1, N)
    others = dict.fromkeys(SITES[:3], w)
    expected = strategy.finish(held(strategy, everybody(w)), w, SITUATION)
    here = strategy.finish(bare(strategy, held(strategy, others), "va", w=w), w, SITUATION)
    assert here.weights.tobytes() == expected.weights.tobytes()
    late = strategy.finish(bare(strategy, held(strategy, others), "va", w=w, staleness=1), w, SITUATION)
    assert late.weights is w, "nobody knows any more where that was"
    assert late.included == SITES, "it is settled, or it could not answer again"
    assert late.converged is False


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_one_who_did_not_say_where_and_has_gone_counts_in_no_later_version(strategy: Strategy) -> None:
    w = np.linspace(-1, 1, N)
    there = EVERYBODY - {"va"}
    situation = replace(SITUATION, received=there, live=there)
    left = strategy.finish(held(strategy, dict.fromkeys(there, w)), w, situation)
    gone = bare(strategy, held(strategy, dict.fromkeys(there, w)), "va", w=w)
    assert strategy.finish(gone, w, situation).weights.tobytes() == left.weights.tobytes()


@pytest.mark.parametrize("strategy", EXACT, ids=lambda each: each.name)
def test_rounds_in_which_nobody_says_where_are_those_in_which_all_do(strategy: Strategy) -> None:
    def silent(name: str, w: Array, _: object) -> dict[str, Array]:
        return {"gradient": gradients(PROBLEMS)(name, w, {})["gradient"]}

    said = rounds(strategy, PROBLEMS, gradients(PROBLEMS), most=25)
    unsaid = rounds(strategy, PROBLEMS, silent, most=25)
    for one, other in zip(said, unsaid, strict=True):
        assert one.weights.tobytes() == other.weights.tobytes()


# --- FedSGD ---------------------------------------------------------------------------------


def test_a_step_of_fedsgd_is_that_of_training_in_one_place() -> None:
    w, eta = np.linspace(-1, 1, N), 0.3
    after = FedSGD(server_learning_rate=eta).finish(held(FedSGD(), everybody(w)), w, SITUATION)
    np.testing.assert_allclose(after.weights, w - eta * gradient(POOLED, w), rtol=0, atol=1e-15)


def test_the_step_length_is_the_user_s_or_the_plan_s_or_one_over_a_bound_on_the_curvature() -> None:
    w = np.zeros(N)
    state, g = held(FedSGD(), everybody(w)), gradient(POOLED, w)

    def rate(strategy: FedSGD, situation: Situation) -> float:
        return float(-strategy.finish(state, w, situation).weights[0] / g[0])

    planned = replace(SITUATION, learning_rate=0.7)
    assert rate(FedSGD(server_learning_rate=0.2), planned) == pytest.approx(0.2)
    assert rate(FedSGD(), planned) == pytest.approx(0.7)
    assert rate(FedSGD(), SITUATION) == pytest.approx(1 / (14 / 4 + L2))
    assert rate(FedSGD(), replace(SITUATION, n_outputs=7)) == pytest.approx(1 / (2 / 2 + L2))


def test_fedsgd_ends_at_the_pooled_optimum_and_says_so() -> None:
    end, n = last(rounds(FedSGD(server_learning_rate=1.3), PROBLEMS, gradients(PROBLEMS), most=2000))
    assert end.converged
    assert n < 600
    assert np.abs(gradient(POOLED, end.weights)).max() <= 1e-10
    np.testing.assert_allclose(end.weights, OPTIMUM, atol=1e-8)


def test_fedsgd_with_a_robust_rule_does_not_call_itself_exact() -> None:
    assert make_strategy("fedsgd").exact
    assert make_strategy("fedsgd", StrategyOptions(clip=0.0)) == make_strategy("fedsgd")
    for options in (StrategyOptions(robust="median"), StrategyOptions(clip=5.0)):
        assert not make_strategy("fedsgd", options).exact


def test_a_robust_fedsgd_steps_along_the_gradient_per_row() -> None:
    w = np.linspace(-1, 1, N)
    state = held(FedSGD(), everybody(w))
    means = [gradient(problem, w) for problem in PROBLEMS.values()]
    after = make_strategy("fedsgd", StrategyOptions(robust="median", server_learning_rate=1.0)).finish(
        state, w, SITUATION
    )
    np.testing.assert_allclose(after.weights, w - np.median(means, axis=0), atol=1e-15)
    clipped = make_strategy("fedsgd", StrategyOptions(clip=100.0, server_learning_rate=1.0)).finish(state, w, SITUATION)
    np.testing.assert_allclose(clipped.weights, w - gradient(POOLED, w), atol=1e-15)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_server_learning_rate_lies_above_zero(rate: float) -> None:
    with pytest.raises(StrategyError, match="server learning rate"):
        FedSGD(server_learning_rate=rate)


# --- the line search ------------------------------------------------------------------------


def searched(f: Callable[[float], float], slope: Callable[[float], float]) -> list[Search]:
    """Return the search after each look, the good one last."""
    seen = [search_from(f(0.0), slope(0.0))]
    while (after := look(seen[-1], f(seen[-1].step), slope(seen[-1].step))) is not None and not after.is_lost:
        seen.append(after)
    return seen


def test_a_step_that_is_good_at_once_costs_one_look() -> None:
    assert len(searched(lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1))) == 1


def test_a_parabola_s_minimum_too_near_or_far_is_found_by_one_secant() -> None:
    (_, back) = searched(lambda t: (t - 0.3) ** 2, lambda t: 2 * (t - 0.3))
    assert back.step == pytest.approx(0.3)
    assert (back.high, back.low) == (1.0, 0.0)
    (_, further) = searched(lambda t: (t - 40) ** 2, lambda t: 2 * (t - 40))
    assert further.step == 10.0, "no more than ten times as far at once: the slope at 10 is good"
    assert further.low == 1.0


def test_a_line_is_followed_ten_times_as_far_and_a_corner_is_bracketed() -> None:
    """F is -t up to 700, then rising steeply: slopes -1 until the corner."""
    steps = [s.step for s in searched(lambda t: abs(t - 700), lambda t: 1.0 if t > 700 else -1.0)]
    assert steps[:4] == [1.0, 10.0, 100.0, 1000.0]
    assert all(100.0 < step < 1000.0 for step in steps[4:])
    assert len(steps) < MAX_LOOKS


def test_back_it_goes_by_tens_as_well_where_the_secant_does_not_help() -> None:
    """Both slopes of F are straight, so that the secant would come nearer by a quarter each time."""
    far = searched(lambda t: abs(t - 1e-4), lambda t: 0.3 if t > 1e-4 else -1.0)
    assert len(far) < 12
    assert abs(far[-1].step - 1e-4) < 1e-4


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda t: exp(-t) + 0.01 * t, lambda t: -exp(-t) + 0.01),
        (lambda t: exp(-t) + 1e-5 * t, lambda t: -exp(-t) + 1e-5),
        (lambda t: (t - 1e-3) ** 2 + (t - 1e-3) ** 4, lambda t: 2 * (t - 1e-3) + 4 * (t - 1e-3) ** 3),
        (lambda t: exp(30 * t) - 60 * t, lambda t: 30 * exp(30 * t) - 60),
        (lambda t: -sin(t / 5), lambda t: -cos(t / 5) / 5),
        (lambda t: 1e6 + (t - 7) ** 2 * 1e-9, lambda t: 2e-9 * (t - 7)),
    ],
)
def test_the_step_it_ends_with_is_good(f: Callable[[float], float], slope: Callable[[float], float]) -> None:
    end = searched(f, slope)[-1]
    t, first = end.step, slope(0.0)
    assert f(t) <= f(0.0) + SUFFICIENT_DECREASE * t * first + 1e-9
    assert slope(t) >= CURVATURE * first
    assert look(end, f(t), slope(t)) is None


def test_where_the_loss_is_flat_to_rounding_the_slopes_decide() -> None:
    """F is 1 up to 1e-16; its slope is 1e-9 (t - 1): t = 1 is perfect, t = 3 too long, t = 0.05 too short."""
    search = search_from(1.0, -1e-9)
    assert look(search, 1.0 + 1e-16, 0.0) is None
    beyond = look(search._replace(step=3.0), 1.0, 2e-9)
    assert beyond is not None
    assert beyond.high == 3.0
    short = look(search._replace(step=0.05), 1.0, -0.95e-9)
    assert short is not None
    assert short.low == 0.05


def test_a_step_to_where_the_loss_is_no_number_is_too_long() -> None:
    after = look(search_from(1.0, -1.0), float("nan"), float("nan"))
    assert after is not None
    assert after.high == 1.0
    assert 0.0 < after.step < 1.0


# --- L-BFGS ---------------------------------------------------------------------------------


def test_lbfgs_ends_at_the_pooled_optimum_to_rounding_and_says_so() -> None:
    for l2 in (0.0, L2):
        problems = hospitals(l2)
        end, n = last(rounds(LBFGS(), problems, gradients(problems), most=100))
        assert end.converged
        assert not end.flat
        assert n < 30
        np.testing.assert_allclose(end.weights, optimum(pooled(problems)), atol=1e-10)


def test_rounding_of_the_loss_does_not_stop_it_short_of_a_gradient_of_1e_15() -> None:
    end, n = last(rounds(LBFGS(gradient_tolerance=1e-15), PROBLEMS, gradients(PROBLEMS), most=100))
    assert end.converged
    assert n < 40
    assert np.abs(gradient(POOLED, end.weights)).max() <= 1.2e-15


def ill_conditioned() -> dict[str, Problem]:
    """Four sites of 150 rows with twelve columns of scale 1 to 1e-3: the condition number of F is above 1e5."""
    rng = np.random.default_rng(2)
    scale = np.logspace(0, -3, 12)
    truth = rng.normal(size=12)
    problems = {}
    for name in SITES:
        X = rng.normal(size=(150, 12))
        y = (rng.random(150) < 1 / (1 + np.exp(-X @ truth))).astype(float)
        problems[name] = Problem(X * scale, y, l2=1e-6)
    return problems


def test_on_breast_cancer_with_a_small_penalty_it_is_within_1e_8_of_the_pooled_fit() -> None:
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    site = np.random.default_rng(0).integers(4, size=len(y))
    problems = {name: Problem(X[site == k], y[site == k].astype(float), l2=1e-4) for k, name in enumerate(SITES)}
    end, n = last(rounds(LBFGS(), problems, gradients(problems), most=200))
    assert end.converged
    assert n < 130
    np.testing.assert_allclose(end.weights, optimum(pooled(problems)), rtol=0, atol=1e-8)


def test_where_the_gradient_vanishes_before_the_step_does_it_goes_on_until_both_have() -> None:
    problems = ill_conditioned()
    best = optimum(pooled(problems))
    answer, hasty = gradients(problems), LBFGS(tolerance=1e9, gradient_tolerance=1e-9)
    early, n_early = last(rounds(hasty, problems, answer, most=500))
    assert np.abs(early.weights - best).max() > 1e-6
    end, n = last(rounds(LBFGS(gradient_tolerance=1e-9), problems, answer, most=500))
    assert end.converged
    assert n_early < n
    assert not end.flat, "with a penalty there is a minimum"
    np.testing.assert_allclose(end.weights, best, atol=1e-8, rtol=1e-9)


def test_on_separable_rows_without_a_penalty_it_does_not_converge_and_says_that_f_is_flat() -> None:
    X = np.array([[-2.0], [-1.0], [1.0], [3.0]])
    problems = {"a": Problem(X, (X[:, 0] > 0).astype(float))}
    versions = list(rounds(LBFGS(), problems, gradients(problems), most=80, live=lambda _: frozenset("a")))
    assert not any(version.converged for version in versions)
    assert versions[-1].flat or versions[-2].flat
    penalised = {"a": replace(problems["a"], l2=0.1)}
    end, _ = last(rounds(LBFGS(), penalised, gradients(penalised), most=80, live=lambda _: frozenset("a")))
    assert end.converged
    assert not end.flat


def test_at_the_optimum_from_the_start_it_stays() -> None:
    X, y = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([0.0, 0.0, 1.0, 1.0])
    problems = {"a": Problem(X, y)}
    end, n = last(rounds(LBFGS(), problems, gradients(problems), most=9, live=lambda _: frozenset("a")))
    assert (end.converged, n) == (True, 1)
    np.testing.assert_array_equal(end.weights, [0.0, 0.0])


def test_columns_of_any_size_converge_by_the_size_of_their_first_gradient() -> None:
    """Not standardised, F may be a million times as steep: the first direction is far too long, or far too short."""
    best = optimum(pooled(hospitals(0.0)))
    for unit in (1e-2, 1e4):
        problems = {name: replace(problem, X=problem.X * unit, l2=0.0) for name, problem in PROBLEMS.items()}
        end, _ = last(rounds(LBFGS(), problems, gradients(problems), most=100))
        assert end.converged
        np.testing.assert_allclose(end.weights * np.append(np.full(N - 1, unit), 1.0), best, atol=1e-9)


def walk(strategy: LBFGS, most: int, keep: Callable[[StrategyState], StrategyState]) -> Iterator[Finished]:
    """Yield round after round, letting ``keep`` have the state between any two messages."""
    weights = np.zeros(N)
    state = strategy.init(weights)
    for _ in range(most):
        for name in SITES:
            state = keep(held(strategy, {name: weights}, state))
        finished = strategy.finish(state, weights, SITUATION)
        yield finished
        state, weights = keep(finished.state), finished.weights


def test_a_search_survives_a_restart_between_any_two_messages_bit_for_bit() -> None:
    plain = walk(LBFGS(), 40, lambda state: state)
    restarted = walk(LBFGS(), 40, lambda state: _unpacked(_packed(state)))
    for one, other in zip(plain, restarted, strict=True):
        assert one.weights.tobytes() == other.weights.tobytes()


def test_only_what_has_changed_is_written_anew() -> None:
    """A commit writes the cells whose value is another object: of eighty pairs, the newest."""
    versions = list(walk(LBFGS(), 12, lambda state: state))
    before, after = versions[-2].state.shared, versions[-1].state.shared
    pairs = [key for key in after if key.startswith("pair/")]
    assert len(pairs) > 5
    assert sum(after[key] is not before.get(key) for key in pairs) <= 1
    assert after["scope"] is before["scope"]


def test_it_remembers_as_many_steps_as_it_was_told_and_the_newest() -> None:
    *_, end = walk(make_strategy("lbfgs", StrategyOptions(memory=3)), 15, lambda state: state)  # type: ignore[arg-type]
    pairs = sorted(key for key in end.state.shared if key.startswith("pair/"))
    assert len(pairs) == 3
    assert pairs[0] > "pair/000000003"
    with pytest.raises(StrategyError, match="1 step or more"):
        LBFGS(memory=0)


@pytest.mark.parametrize(
    ("n_parameters", "steps"), [(1, 80), (200_000, 80), (1_000_001, 16), (3_000_000, 5), (10**8, 5)]
)
def test_of_very_many_parameters_it_remembers_fewer_steps_unless_it_was_told(n_parameters: int, steps: int) -> None:
    """Two vectors of a million float64 numbers are 16 MB."""
    assert LBFGS().steps_remembered(n_parameters) == steps
    assert LBFGS(memory=7).steps_remembered(n_parameters) == 7


def test_it_forgets_the_oldest_steps_where_their_bytes_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lbfgs, "MEMORY_BYTES", 16 * N * 6 + 15)
    *_, end = walk(LBFGS(), 15, lambda state: state)
    assert sum(key.startswith("pair/") for key in end.state.shared) == 6


def test_when_somebody_comes_or_goes_the_search_begins_anew_where_it_is() -> None:
    *_, before = walk(LBFGS(), 10, lambda state: state)
    there = EVERYBODY - {"va"}
    state = held(LBFGS(), dict.fromkeys(there, before.weights), before.state)
    after = LBFGS().finish(state, before.weights, Situation(L2, there, there))
    np.testing.assert_array_equal(after.state.shared["point"], before.weights)
    assert not any(key.startswith("pair/") for key in after.state.shared)
    assert after.state.shared["scope"][0] == POOLED.n_samples - 85


P0 = Point(np.zeros(2), 1.0, np.array([1.0, 0.5]))


def lost(shared: dict[str, Array]) -> dict[str, Array]:
    """Return the state in which one more look gives the direction up."""
    search = Search(*shared["search"].tolist())
    return {**shared, "search": np.array(search._replace(looks=MAX_LOOKS - 1.0))}


def test_a_direction_that_leads_nowhere_is_given_up_for_steepest_descent_from_the_better_end() -> None:
    pair = {"pair/000000001": np.array([1.0, 0.0, 2.0, 1.0])}
    shared = {**begin(P0, pair), "scope": np.ones(2)}
    trial = shared["point"] + shared["direction"]
    higher = advance(lost(shared), Point(trial, 5.0, np.array([-1.0, -1.0])), 80)
    np.testing.assert_array_equal(higher["point"], P0.w)
    np.testing.assert_allclose(higher["direction"], -P0.gradient / np.linalg.norm(P0.gradient))
    # Down, but not by as much as it should: it goes on from there.
    lower = advance(lost(shared), Point(trial, 1.0 - 1e-9, np.array([-1.0, -1.0])), 80)
    np.testing.assert_array_equal(lower["point"], trial)
    for after in (higher, lower):
        assert not any(key.startswith("pair/") for key in after)
        assert after["search"][3] == 0.0


def test_steepest_descent_itself_is_never_given_up_or_it_would_try_the_same_for_ever() -> None:
    shared = {**begin(P0, {}), "scope": np.ones(2)}
    after = advance(lost(shared), Point(shared["point"] + shared["direction"], 5.0, np.array([-1.0, -1.0])), 80)
    assert after["direction"] is shared["direction"]
    assert Search(*after["search"].tolist()).looks == MAX_LOOKS
    assert 0.0 < Search(*after["search"].tolist()).step < 1.0


def test_pairs_that_make_no_direction_down_are_forgotten() -> None:
    uphill = {"pair/000000001": np.array([1.0, 0.0, -1.0, 0.0])}
    overflow = {"pair/000000001": np.array([1e200, 0.0, 1e-200, 0.0])}
    for pairs in (uphill, overflow):
        shared = begin(P0, pairs)
        assert not any(key.startswith("pair/") for key in shared)
        np.testing.assert_allclose(shared["direction"], -P0.gradient / np.linalg.norm(P0.gradient))


def test_the_first_trial_is_not_further_than_a_hundred_away() -> None:
    flat = {"pair/000000001": np.array([1.0, 0.0, 1e-9, 0.0])}
    shared = begin(P0, flat)
    assert np.linalg.norm(shared["direction"]) == pytest.approx(100.0)
    assert shared["search"][1] == pytest.approx(float(P0.gradient @ shared["direction"]))


def test_a_change_that_is_rounding_is_not_remembered() -> None:
    """An accepted step raises the slope, so s . y is positive, unless that cannot be told from the size of y."""
    shared = {**begin(P0, {}), "scope": np.ones(2)}
    d = shared["direction"]
    flatter = Point(P0.w + d, 0.5, 0.5 * P0.gradient)
    assert [key for key in advance(shared, flatter, 80) if key.startswith("pair/")] == ["pair/000000001"]
    across = Point(P0.w + d, 0.5, 0.5 * P0.gradient + 1e14 * np.array([d[1], -d[0]]))
    after = advance(shared, across, 80)
    np.testing.assert_array_equal(after["point"], across.w)
    assert not any(key.startswith("pair/") for key in after)


# --- in the coordinator ---------------------------------------------------------------------


def begun(strategy: str) -> Story:
    story = Story(rules(*SITES, strategy=strategy, max_versions=500, l2=L2, max_staleness=100))
    for name, problem in PROBLEMS.items():
        story.hello(name, n_rows=problem.n_rows, features=tuple(f"x{k}" for k in range(problem.n_features)))
    return story


def answer(story: Story, *names: str) -> None:
    """Let each of ``names`` that is asked send its gradient at the newest weights."""
    for name in names:
        if story.phase == "training" and asked_of(story.state, story.state.members[name]) == "train":
            w = np.array(story.weights)
            sent = contribution(PROBLEMS, name, w, gradients(PROBLEMS)(name, w, {}))
            story.arrives(
                story.update(name, kind="gradient", arrays=sent.arrays, n_samples=sent.n_samples, loss=sent.loss)
            )


def test_a_federation_by_lbfgs_ends_at_the_pooled_fit_with_restarts_and_late_answers_on_the_way() -> None:
    story, versions = begun("lbfgs"), 0
    while story.phase == "training":
        versions += 1
        assert versions < 60
        answer(story, "cleveland", "va")
        if versions % 5 == 0:
            story.restart()
        if versions == 7:  # one answers once more what it was asked before, from the version before
            held_ = story.state.strategy_state.held["hungarian"]
            story.arrives(story.update("hungarian", kind="gradient", arrays=held_.arrays, base_version=5))
        answer(story, "switzerland", "hungarian")
        assert set(story.verdicts) == {"accepted"}
    assert story.phase == "verifying"
    assert story.state.progress.converged
    np.testing.assert_allclose(story.weights, OPTIMUM, atol=1e-10)


def test_a_federation_by_lbfgs_goes_on_without_one_who_leaves_and_ends_at_the_fit_of_the_others() -> None:
    story = begun("lbfgs")
    for _ in range(4):
        answer(story, *SITES)
    story.goodbye("va")
    for _ in range(60):
        answer(story, "cleveland", "hungarian", "switzerland")
    assert story.phase == "verifying"
    assert story.state.progress.converged
    others = pooled({name: PROBLEMS[name] for name in SITES if name != "va"})
    np.testing.assert_allclose(story.weights, optimum(others), atol=1e-10)
