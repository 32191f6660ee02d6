from typing import Any

import numpy as np
import pytest

from logistic import GradientDescent, ParameterError, Problem, Status, gradient, hessian, loss, solve
from logistic.solvers.gradient_descent import largest_curvature, largest_row_curvature


def test_one_step_is_exactly_the_learning_rate_times_the_gradient(problem: Problem, rng: np.random.Generator) -> None:
    w = rng.normal(size=5)
    solution = solve(GradientDescent(learning_rate=0.37), problem, w, max_steps=1, tolerance=0.0)
    np.testing.assert_array_equal(solution.w, w - 0.37 * gradient(problem, w))


def test_without_a_learning_rate_it_is_the_inverse_of_the_largest_curvature(problem: Problem) -> None:
    state = GradientDescent().init(problem, np.zeros(5), None)
    largest = np.linalg.eigvalsh(hessian(problem, np.zeros(5)))[-1]
    assert state.learning_rate == pytest.approx(1 / largest, rel=0.05)


def test_the_power_iteration_is_never_below_half_the_truth_nor_above_it(rng: np.random.Generator) -> None:
    for n_features in (1, 3, 40):
        X = rng.normal(size=(60, n_features)) * np.geomspace(1, 1e3, n_features)
        problem = Problem(X, np.ones(60), l2=0.01)
        largest = np.linalg.eigvalsh(hessian(problem, np.zeros(n_features + 1)))[-1]
        assert largest / 2 < largest_curvature(problem) <= largest * (1 + 1e-12)


def test_the_derived_rate_never_lets_the_loss_rise_on_raw_columns(train: dict[str, Problem]) -> None:
    site = train["cleveland"]
    solver = GradientDescent()
    state = solver.init(site, np.zeros(14), None)
    losses = [loss(site, state.w)]
    for _ in range(50):
        state = solver.step(site, state)
        losses.append(loss(site, state.w))
    assert (np.diff(losses) <= 0).all()


def test_no_batch_curves_more_than_the_rate_for_batches_allows(problem: Problem) -> None:
    bound = largest_row_curvature(problem)
    for rows in (np.array([0]), np.array([3, 17]), np.arange(20)):
        H = hessian(problem.take(rows), np.zeros(5))
        assert np.linalg.eigvalsh(H)[-1] <= bound * (1 + 1e-12)


def test_where_nothing_curves_the_rate_is_one() -> None:
    nothing = Problem(np.empty((0, 2)), np.empty(0))
    assert GradientDescent().init(nothing, np.zeros(3), None).learning_rate == 1.0
    assert GradientDescent(batch_size=4).init(nothing, np.zeros(3), np.random.default_rng(1)).learning_rate == 1.0


def test_weights_that_no_longer_move_end_the_run_as_stalled(problem: Problem) -> None:
    solution = solve(GradientDescent(learning_rate=1e-300), problem, np.ones(5), max_steps=9, tolerance=1e-9)
    assert (solution.status, solution.n_steps) == (Status.STALLED, 0)


@pytest.mark.parametrize("batch_size", [1, 7, 25, 50, 80])
def test_an_epoch_of_batches_sees_every_row_once_in_a_new_order_each_time(problem: Problem, batch_size: int) -> None:
    solver = GradientDescent(learning_rate=0.1, batch_size=batch_size)
    state = solver.init(problem, np.zeros(5), np.random.default_rng(3))
    orders = []
    for _ in range(3 * -(-50 // batch_size)):
        state = solver.step(problem, state)
        orders.append(state.order)
    distinct = {tuple(order) for order in orders}
    assert len(distinct) == 3
    assert all(sorted(order) == list(range(50)) for order in distinct)


def test_a_batch_step_goes_down_the_gradient_of_its_rows_alone(problem: Problem) -> None:
    state = GradientDescent(0.5, 10).init(problem, np.ones(5), np.random.default_rng(3))
    after = GradientDescent(0.5, 10).step(problem, state)
    batch = problem.take(after.order[:10])
    np.testing.assert_array_equal(after.w, np.ones(5) - 0.5 * gradient(batch, np.ones(5)))


def test_another_seed_is_another_run(problem: Problem) -> None:
    ends = [
        solve(
            GradientDescent(0.1, 10),
            problem,
            np.zeros(5),
            rng=np.random.default_rng(seed),
            max_steps=3,
            tolerance=0.0,
        ).w
        for seed in (1, 2)
    ]
    assert not np.array_equal(*ends)


def test_a_batch_of_rows_without_weight_does_not_end_the_run() -> None:
    problem = Problem(np.ones((4, 1)), np.array([0.0, 1, 1, 1]), np.array([1.0, 0, 0, 0]))
    solver = GradientDescent(batch_size=1)
    solution = solve(solver, problem, np.zeros(2), rng=np.random.default_rng(0), max_steps=4, tolerance=0.0)
    assert (solution.status, solution.n_steps) == (Status.MAX_STEPS, 4)
    assert solution.loss < np.log(2)


def test_batches_are_examined_once_after_the_last_step(problem: Problem) -> None:
    run = {"rng": np.random.default_rng(0), "max_steps": 5}
    solution = solve(GradientDescent(batch_size=10), problem, np.zeros(5), tolerance=1e3, **run)
    assert (solution.status, solution.n_steps) == (Status.CONVERGED, 5)


def test_batches_without_a_generator_are_refused(problem: Problem) -> None:
    with pytest.raises(ParameterError, match="default_rng"):
        solve(GradientDescent(batch_size=10), problem, np.zeros(5), max_steps=1, tolerance=0.0)


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": 0.0}, {"learning_rate": -1.0}, {"learning_rate": np.inf}, {"learning_rate": np.nan}],
)
def test_a_learning_rate_that_leads_nowhere_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="learning_rate"):
        GradientDescent(**options)


def test_batches_of_no_rows_are_refused() -> None:
    with pytest.raises(ParameterError, match="batch_size"):
        GradientDescent(batch_size=0)


def test_without_looking_the_steps_are_the_same_bits_and_nobody_knows_the_gradient(problem: Problem) -> None:
    start = np.zeros(problem.n_parameters)
    looking, blind = GradientDescent(learning_rate=0.1), GradientDescent(learning_rate=0.1, look=False)
    seen, unseen = looking.init(problem, start, None), blind.init(problem, start, None)
    for _ in range(3):
        seen, unseen = looking.step(problem, seen), blind.step(problem, unseen)
    assert unseen.gradient is None
    assert np.array_equal(seen.w, unseen.w)
