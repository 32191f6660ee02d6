"""Incremental Newton against the pooled fit, and its story in the coordinator."""

from dataclasses import replace

import numpy as np
import pytest
from unit.aggregator.story import Story, rules

from aggregator.announcement import asked_of
from aggregator.events import Release, Tick
from aggregator.strategies import Contribution, StrategyState
from aggregator.strategies.base import Situation
from aggregator.strategies.incremental_newton import IncrementalNewton, minimum
from broker.messages import Array
from logistic.loss import gradient, gradient_sum, hessian_sum
from logistic.problem import Problem
from logistic.quadratic import pack

RNG = np.random.default_rng(11)
TRUTH = np.array([1.0, -2.0, 0.5])
L2 = 0.03


def site(n: int, shift: float) -> Problem:
    X = RNG.normal(size=(n, 2)) + shift
    p = 1 / (1 + np.exp(-(X @ TRUTH[:-1] + TRUTH[-1])))
    return Problem(X, (RNG.random(n) < p).astype(float), l2=L2)


SITES = {"a": site(60, 0.0), "b": site(25, 1.0), "c": site(9, -1.0)}
POOLED = Problem(
    np.vstack([each.X for each in SITES.values()]), np.concatenate([each.y for each in SITES.values()]), l2=L2
)
EVERYBODY = frozenset(SITES)


def quadratic(name: str, at: Array, theta: float = 0.0) -> Contribution:
    problem = SITES[name]
    hessian = pack(hessian_sum(problem, at))
    arrays = {"base": at, "gradient": gradient_sum(problem, at), "hessian": hessian, "theta": np.array([theta])}
    return Contribution(name, f"{name}:i:1", 0, 0, float(problem.n_rows), 1.0, arrays)


def receive(strategy: IncrementalNewton, state: StrategyState, *came: Contribution) -> StrategyState:
    for each in came:
        state = strategy.receive(state, each)
    return state


def test_from_quadratics_at_one_point_it_takes_the_pooled_newton_step() -> None:
    w = np.array([0.1, 0.2, 0.3])
    D = np.diag([1.0, 1.0, 0.0])
    n = POOLED.n_samples
    step = np.linalg.solve(hessian_sum(POOLED, w) / n + L2 * D, gradient(POOLED, w))
    found = minimum([quadratic(name, w) for name in SITES], L2)
    np.testing.assert_allclose(found, w - step, rtol=1e-12)


def test_it_reaches_the_pooled_optimum_with_answers_that_are_always_late() -> None:
    strategy, w = IncrementalNewton(), np.zeros(3)
    state = receive(strategy, strategy.init(w), *(quadratic(name, w) for name in SITES))
    older = w
    for turn in range(40):
        state, w_next, _, converged = strategy.finish(state, w, Situation(L2, frozenset("abc"[turn % 3]), EVERYBODY))
        state = receive(strategy, state, quadratic("abc"[(turn + 1) % 3], older))  # from the version before
        older, w = w, w_next
        assert not converged, "nothing is verified that was not taken at these very weights"
    assert np.abs(gradient(POOLED, w)).max() < 1e-14


def test_the_sweep_verifies_at_the_very_weights_and_asks_everybody() -> None:
    strategy, w = IncrementalNewton(), np.zeros(3)
    state = strategy.init(w)
    assert strategy.pace_of(state).count is None, "nothing moves before everybody who is live is heard"
    for _ in range(12):
        state = receive(strategy, state, *(quadratic(name, w) for name in SITES))
        state, w, included, converged = strategy.finish(state, w, Situation(L2, EVERYBODY, EVERYBODY))
        assert included == ("a", "b", "c")
        if converged:
            break
    assert converged
    assert np.abs(gradient(POOLED, w)).max() < 1e-15
    assert (state.wanted, strategy.pace_of(state).count) == (None, None)


@pytest.mark.parametrize("late", SITES)
def test_a_sweep_is_not_verified_by_an_answer_from_elsewhere_or_by_a_safeguarded_one(late: str) -> None:
    strategy = IncrementalNewton(tolerance=1e9)  # whatever the step
    w = np.zeros(3)
    situation = Situation(L2, EVERYBODY, EVERYBODY)
    came = {name: quadratic(name, w) for name in SITES}
    assert strategy.finish(receive(strategy, strategy.init(w), *came.values()), w, situation).converged
    for other in (quadratic(late, w + 1e-9), quadratic(late, w, theta=0.1)):
        state = receive(strategy, strategy.init(w), *{**came, late: other}.values())
        assert not strategy.finish(state, w, situation).converged
    missing = receive(strategy, strategy.init(w), *came.values())
    assert not strategy.finish(missing, w, replace(situation, received=EVERYBODY - {late})).converged


def test_who_is_near_the_model_is_not_asked_and_who_has_gone_is_not_waited_for() -> None:
    strategy = IncrementalNewton()
    w = np.zeros(3)
    first = receive(strategy, strategy.init(w), *(quadratic(name, w) for name in SITES))
    after = strategy.finish(first, w, Situation(L2, EVERYBODY, EVERYBODY))
    assert after.state.wanted == EVERYBODY
    assert strategy.pace_of(after.state).count == 1
    near = receive(strategy, after.state, *(quadratic(name, after.weights) for name in "ab"))
    near = strategy.finish(near, after.weights, Situation(L2, frozenset("ab"), frozenset("ab")))
    assert near.state.wanted is not None
    assert "c" not in near.state.wanted
    assert near.state.asks("d"), "whom nobody has heard is always asked"


def answers(story: Story, *names: str) -> None:
    """Let each of ``names`` send its quadratic at the newest weights."""
    for name in names:
        contribution = quadratic(name, np.array(story.weights))
        update = story.update(name, kind="curvature", arrays=contribution.arrays, n_samples=contribution.n_samples)
        story.arrives(replace(update, loss=0.5))


def begun() -> Story:
    story = Story(rules("a", "b", "c", strategy="incremental-newton", max_versions=100, l2=L2))
    for name, problem in SITES.items():
        story.hello(name, n_rows=problem.n_rows)
    return story


def test_a_federation_ends_at_the_pooled_optimum_and_says_that_it_has_converged() -> None:
    story = begun()
    answers(story, "a", "b")
    assert story.version == 0
    answers(story, "c")
    while story.phase == "training":
        name = next(name for name in SITES if asked_of(story.state, story.state.members[name]))
        answers(story, name)
    assert story.phase == "verifying"
    assert story.state.progress.converged
    assert np.abs(gradient(POOLED, np.array(story.weights))).max() < 1e-14
    story.evaluates("a", "b", "c")
    assert story.last(Release)[0].model.converged


def test_when_all_whom_it_wants_have_gone_it_goes_on_with_those_who_are_there() -> None:
    story = begun()
    answers(story, "a", "b", "c")
    wanted = StrategyState(story.state.strategy_state.held, story.state.strategy_state.shared, wanted=frozenset("c"))
    story.state = replace(story.state, strategy_state=wanted)
    version = story.version
    story.goodbye("c")
    assert story.version == version + 1
    assert story.asked("a") or story.asked("b")
    assert story.happens(Tick(1e6)) is story


@pytest.mark.parametrize(
    "wrong",
    [
        {"hessian": pack(np.diag([1.0, -1.0, 1.0]))},
        {"hessian": pack(np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))},
        {"theta": np.array([1.5])},
        {"theta": np.array([-0.5])},
    ],
)
def test_what_cannot_be_a_hessian_of_this_loss_is_refused(wrong: dict[str, Array]) -> None:
    story = begun()
    good = quadratic("a", np.zeros(3))
    story.arrives(replace(story.update("a", kind="curvature", arrays={**good.arrays, **wrong}), n_samples=60.0))
    assert story.verdicts == ["out-of-bounds"]
