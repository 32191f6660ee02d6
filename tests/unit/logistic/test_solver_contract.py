"""Our own solvers sit the examination that we ship for others, and it fails those that should fail."""

from typing import Any

import numpy as np
import pytest

from logistic import LBFGS, GradientDescent, Newton, Problem, Solver, Vector
from logistic.solvers.gradient_descent import GradientDescentState
from logistic.testing import SolverContract


class TestNewton(SolverContract):
    def make_solver(self) -> Solver[Any]:
        return Newton()


class TestLBFGS(SolverContract):
    def make_solver(self) -> Solver[Any]:
        return LBFGS()


class TestGradientDescent(SolverContract):
    def make_solver(self) -> Solver[Any]:
        return GradientDescent()


class TestMiniBatchGradientDescent(SolverContract):
    full_batch = False
    optimum_tolerance = 0.2  # a fixed rate ends in a neighbourhood

    def make_solver(self) -> Solver[Any]:
        return GradientDescent(learning_rate=0.05, batch_size=16)


class _Uphill(GradientDescent):
    def step(self, problem: Problem, state: GradientDescentState) -> GradientDescentState:
        down = GradientDescent.step(self, problem, state)
        return GradientDescentState(2 * state.w - down.w, down.gradient, state.learning_rate)


class _Meddler(GradientDescent):
    def init(self, problem: Problem, w: Vector, rng: np.random.Generator | None) -> GradientDescentState:
        w += 1.0
        return GradientDescent.init(self, problem, w, rng)


def _examine(solver: Solver[Any]) -> SolverContract:
    class Examination(SolverContract):
        def make_solver(self) -> Solver[Any]:
            return solver

    return Examination()


def test_the_contract_fails_a_solver_that_walks_uphill() -> None:
    with pytest.raises(AssertionError, match="rose"):
        _examine(_Uphill()).test_the_loss_does_not_rise()


def test_the_contract_fails_a_gradient_that_is_not_the_losss() -> None:
    with pytest.raises(AssertionError):
        _examine(_Uphill()).test_a_carried_gradient_is_that_of_the_loss_by_finite_differences()


def test_the_contract_fails_a_solver_that_modifies_its_start() -> None:
    with pytest.raises(AssertionError):
        _examine(_Meddler()).test_the_inputs_are_left_as_they_were()


def test_the_contract_fails_a_solver_that_stops_short() -> None:
    with pytest.raises(AssertionError, match="from the optimum"):
        _examine(GradientDescent(learning_rate=1e-6)).test_the_run_reaches_the_reference_optimum()


def test_the_contract_asks_for_a_solver() -> None:
    with pytest.raises(NotImplementedError, match="make_solver"):
        SolverContract().make_solver()
