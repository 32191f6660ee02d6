"""The line searches, and what the solvers built on them do when a search fails."""

import numpy as np
import pytest

from logistic import LBFGS, Newton, ParameterError, Problem, gradient, hessian, loss, solve_positive
from logistic.solvers.lbfgs import LBFGSState, Pair, two_loop_direction
from logistic.solvers.search import CURVATURE, SUFFICIENT_DECREASE, Point, backtracking, wolfe


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_backtracking_ends_where_the_loss_has_decreased_enough(problem: Problem, scale: float) -> None:
    start = Point.at(problem, np.full(5, 3.0))
    direction = -scale * start.gradient
    after = backtracking(problem, start, direction)
    t = (after.w - start.w)[0] / direction[0]
    assert after.loss <= start.loss + SUFFICIENT_DECREASE * t * (start.gradient @ direction) * (1 - 1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e6])
def test_wolfe_ends_where_also_the_slope_has_risen_enough(problem: Problem, scale: float) -> None:
    start = Point.at(problem, np.full(5, 3.0))
    direction = -scale * start.gradient
    after = wolfe(problem, start, direction)
    assert after.loss < start.loss
    assert after.gradient @ direction >= CURVATURE * (start.gradient @ direction)
    assert (after.gradient - start.gradient) @ (after.w - start.w) > 0


def test_a_direction_that_does_not_lead_down_is_not_searched(problem: Problem) -> None:
    start = Point.at(problem, np.ones(5))
    for direction in (start.gradient, np.zeros(5), np.full(5, np.nan)):
        assert backtracking(problem, start, direction) is None
        assert wolfe(problem, start, direction) is None


def test_a_direction_too_long_to_shorten_is_given_up(problem: Problem) -> None:
    start = Point.at(problem, np.ones(5))
    assert backtracking(problem, start, -1e30 * start.gradient) is None
    assert wolfe(problem, start, -1e30 * start.gradient) is None


def test_a_first_trial_that_overflows_is_only_shortened(problem: Problem) -> None:
    start = Point.at(problem, np.ones(5))
    direction = np.zeros(5)
    direction[0] = -np.sign(start.gradient[0]) * 1e160
    assert backtracking(problem, start, direction) is None


def test_where_the_loss_is_flat_to_rounding_the_gradient_decides(problem: Problem) -> None:
    optimum = Newton()
    state = optimum.init(problem, np.zeros(5), None)
    for _ in range(20):
        state = optimum.step(problem, state)
    near = Point.at(problem, state.w + 1e-10)
    assert near.loss == pytest.approx(state.loss, rel=1e-15)
    exact = -np.linalg.solve(hessian(problem, near.w), near.gradient)
    for search in (backtracking, wolfe):
        after = search(problem, near, exact)
        assert np.abs(after.gradient).max() < np.abs(near.gradient).max() / 100


def test_newton_returns_its_very_state_when_no_step_improves_on_it(problem: Problem) -> None:
    state = Newton().init(problem, np.zeros(5), None)
    for _ in range(30):
        state = Newton().step(problem, state)
    assert Newton().step(problem, state) is state


def test_newton_converges_quadratically(problem: Problem) -> None:
    state = Newton().init(problem, np.zeros(5), None)
    norms = []
    for _ in range(4):
        state = Newton().step(problem, state)
        norms.append(np.abs(state.gradient).max())
    assert norms[1] < norms[0] ** 1.5
    assert norms[2] < norms[1] ** 1.5
    assert norms[3] < 1e-12


def test_newton_takes_the_global_bound_where_the_curvature_has_vanished() -> None:
    problem = Problem(np.array([[1.0], [1.0], [1.0]]), np.array([0.0, 0, 1]), l2=0.0)
    state = Newton().init(problem, np.full(2, 300.0), None)  # kappa is 1e-261
    newton = solve_positive(hessian(problem, state.w), -state.gradient)
    assert backtracking(problem, state, newton) is None
    assert Newton().step(problem, state).loss < state.loss


def test_newton_at_an_exact_optimum_stays_there() -> None:
    problem = Problem(np.array([[1.0], [-1.0]]), np.array([1.0, 1.0]), np.zeros(2))
    state = Newton().init(problem, np.ones(2), None)
    assert Newton().step(problem, state) is state


def test_two_loops_over_all_directions_of_a_parabola_are_the_newton_step(rng: np.random.Generator) -> None:
    A = rng.normal(size=(6, 3))
    H, g = A.T @ A, rng.normal(size=3)
    _, eigenvectors = np.linalg.eigh(H)
    pairs = [Pair(v, H @ v) for v in eigenvectors.T]
    np.testing.assert_allclose(two_loop_direction(g, pairs), -np.linalg.solve(H, g), rtol=1e-9)


@pytest.mark.parametrize("length", [0.1, 50.0])
def test_without_memory_it_is_steepest_descent_at_most_one_long(length: float) -> None:
    g = np.array([0.6, 0.8]) * length
    direction = two_loop_direction(g, [])
    np.testing.assert_allclose(direction, -g / max(1.0, length))


def test_the_two_loops_leave_gradient_and_pairs_as_they_were(rng: np.random.Generator) -> None:
    g, s = rng.normal(size=3), rng.normal(size=3)
    pair, copies = Pair(s, 2 * s), (g.copy(), s.copy())
    two_loop_direction(g, [pair])
    np.testing.assert_array_equal(g, copies[0])
    np.testing.assert_array_equal(pair.s, copies[1])


def test_only_the_last_steps_are_remembered(problem: Problem) -> None:
    solver = LBFGS(memory=3)
    state = solver.init(problem, np.full(5, 5.0), None)
    for n_steps in range(1, 7):
        state = solver.step(problem, state)
        assert len(state.pairs) == min(n_steps, 3)
        assert all(pair.s @ pair.y > 0 for pair in state.pairs)


def test_a_spoilt_memory_is_forgotten_before_giving_up(problem: Problem) -> None:
    start = Point.at(problem, np.ones(5))
    uphill = Pair(start.gradient, -start.gradient)
    state = LBFGSState(start, (uphill,))
    forgetful = LBFGS().step(problem, state)
    assert forgetful.pairs == ()
    assert LBFGS().step(problem, forgetful).point.loss < start.loss


def test_a_step_whose_curvature_is_too_small_to_measure_is_taken_and_not_remembered() -> None:
    parabola = Problem(np.empty((0, 1)), np.empty(0), l2=0.5)
    state = LBFGS().init(parabola, np.array([4e-162, 0.0]), None)  # s . y is 2e-324, half the smallest float
    after = LBFGS().step(parabola, state)
    assert after.w[0] == 2e-162
    assert after.pairs == ()


def test_lbfgs_returns_its_very_state_when_steepest_descent_leads_nowhere() -> None:
    flat = Problem(np.ones((2, 1)), np.ones(2), np.zeros(2))
    state = LBFGS().init(flat, np.ones(2), None)
    assert LBFGS().step(flat, state) is state


def test_a_memory_of_no_steps_is_refused() -> None:
    with pytest.raises(ParameterError, match="memory"):
        LBFGS(memory=0)


def test_a_point_carries_the_loss_and_gradient_of_its_weights(problem: Problem) -> None:
    point = Point.at(problem, np.ones(5))
    assert point.loss == loss(problem, point.w)
    np.testing.assert_array_equal(point.gradient, gradient(problem, point.w))
