"""The examination that every solver sits: subclass `SolverContract`, say how to make yours, and run pytest.

    class TestMySolver(SolverContract):
        def make_solver(self):
            return MySolver()

What is promised is in the tests' names. The reference answers are computed here, by a Newton's method that
shares no line with the package.
"""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from logistic.loss import gradient
from logistic.problem import Chunk, Matrix, Problem, Vector
from logistic.solvers.driver import Solver, Status, solve

T = TypeVar("T")

LOSS_ROUNDING = 1e-12  # relative; a step may raise the computed loss by so much and still count as not rising
DIFFERENCE_STEP = 1e-5  # of the central differences, which then err by about 1e-10
REFERENCE_STEPS = 30
SINGULAR = 1e-12  # of the largest singular value; what is smaller is a direction in which F is flat


class SolverContract:
    """What `logistic.solvers.Solver` promises, as tests.

    Attributes
    ----------
    full_batch
        Whether every step sees all rows. Then the loss must not rise over a step; otherwise not over the whole run.
    max_steps
        Steps allowed to reach the optimum.
    optimum_tolerance
        Largest distance of a weight from the reference optimum, on columns of unit scale.
    """

    full_batch: bool = True
    max_steps: int = 1000
    optimum_tolerance: float = 1e-7

    def make_solver(self) -> Solver[Any]:
        """Return the solver under examination."""
        raise NotImplementedError("give the contract your solver: def make_solver(self): return MySolver()")

    def test_a_carried_gradient_is_that_of_the_loss_by_finite_differences(self) -> None:
        for problem in contract_problems():
            for state in self._walk(problem, n_steps=3):
                g = gradient(problem, state.w) if state.gradient is None else state.gradient
                np.testing.assert_allclose(g, finite_differences(problem, state.w), rtol=1e-6, atol=1e-8)

    def test_the_loss_does_not_rise(self) -> None:
        for problem in contract_problems():
            losses = [reference_loss(problem, state.w) for state in self._walk(problem, n_steps=20)]
            compared = pairwise(losses) if self.full_batch else [(losses[0], losses[-1])]
            for before, after in compared:
                assert after <= before * (1 + LOSS_ROUNDING), f"the loss rose from {before} to {after}"

    def test_the_run_reaches_the_reference_optimum(self) -> None:
        for problem in contract_problems():
            solution = solve(
                self.make_solver(),
                problem,
                np.zeros(problem.n_parameters),
                rng=np.random.default_rng(1),
                max_steps=self.max_steps,
                tolerance=self.optimum_tolerance * 1e-2,
            )
            assert solution.status is not Status.DIVERGED
            distance = np.abs(solution.w - reference_optimum(problem)).max()
            assert distance <= self.optimum_tolerance, f"{distance} from the optimum: {solution.status}"

    def test_the_same_generator_gives_the_same_run(self) -> None:
        for problem in contract_problems():
            first, second = ([state.w for state in self._walk(problem, n_steps=8)] for _ in range(2))
            np.testing.assert_array_equal(first, second)

    def test_the_inputs_are_left_as_they_were(self) -> None:
        for problem in contract_problems():
            w = np.full(problem.n_parameters, 0.25)
            arrays = (problem.X, problem.y, problem.sample_weight, problem.offset, w)
            inputs = [array for array in arrays if isinstance(array, np.ndarray)]
            copies = [array.copy() for array in inputs]
            list(self._walk(problem, n_steps=5, w=w))
            for array, copy in zip(inputs, copies, strict=True):
                np.testing.assert_array_equal(array, copy)

    def test_an_old_state_can_be_stepped_again_with_the_same_result(self) -> None:
        solver = self.make_solver()
        for problem in contract_problems():
            states = list(self._walk(problem, n_steps=6))
            for state, after in pairwise(states):
                np.testing.assert_array_equal(solver.step(problem, state).w, after.w)

    def test_a_problem_without_rows_ends_at_finite_weights(self) -> None:
        for n_classes in (2, 3):
            problem = Problem(np.empty((0, 2)), np.empty(0), l2=0.5, n_classes=n_classes)
            start, rng = np.ones(problem.n_parameters), np.random.default_rng(1)
            solution = solve(self.make_solver(), problem, start, rng=rng, max_steps=50, tolerance=1e-6)
            assert np.isfinite(solution.w).all()

    def _walk(self, problem: Problem, *, n_steps: int, w: Vector | None = None) -> Iterator[Any]:
        solver = self.make_solver()
        start = np.zeros(problem.n_parameters) if w is None else w
        state = solver.init(problem, start, np.random.default_rng(1))
        yield state
        for _ in range(n_steps):
            state = solver.step(problem, state)
            yield state


@dataclass(frozen=True, slots=True, eq=False)
class Chunked:
    """The rows of a problem of arrays, as `logistic.rows.Rows` and nothing else: for tests of what takes such rows.

    Functions and what they return are pickled on their way, as between machines.
    """

    arrays: Problem
    chunk_rows: int

    @property
    def n_rows(self) -> int:
        return self.arrays.n_rows

    @property
    def n_features(self) -> int:
        return self.arrays.n_features

    @property
    def n_samples(self) -> float:
        return self.arrays.n_samples

    def over(self, function: Callable[[Chunk], T]) -> Iterator[T]:
        sent = _sent(function)
        return (_sent(sent(chunk)) for chunk in self.arrays.chunks(self.chunk_rows))


def chunked(problem: Problem, chunk_rows: int) -> Problem:
    """Return the same problem with its rows `Chunked`."""
    return replace(problem, X=Chunked(problem, chunk_rows), y=None, sample_weight=None, offset=None)


def _sent(message: T) -> T:
    arrived: T = pickle.loads(pickle.dumps(message))  # noqa: S301 - it is our own
    return arrived


def contract_problems() -> list[Problem]:
    """Small problems, columns of unit scale: plain, weighted and correlated, a rare class, offsets, four classes."""
    rng = np.random.default_rng(20)
    plain, correlated, rare = (rng.normal(size=(n_rows, 3)) for n_rows in (60, 90, 120))
    correlated[:, 1] = 0.8 * correlated[:, 0] + 0.6 * correlated[:, 1]
    return [
        Problem(plain, _labels(rng, plain, 0.0), l2=1 / 60),
        Problem(correlated, _labels(rng, correlated, 0.5), rng.uniform(0.0, 2.0, size=90), l2=0.05),
        Problem(rare, _labels(rng, rare, -2.0), l2=0.02),
        Problem(plain, _labels(rng, plain, 0.0), l2=1 / 60, offset=rng.normal(size=60)),
        Problem(correlated, _class_labels(rng, correlated), rng.uniform(0.0, 2.0, size=90), l2=0.05, n_classes=4),
    ]


def reference_loss(problem: Problem, w: Vector) -> float:
    """F written independently: log(sum_c exp(z_c)) - z_y, with the largest exponential taken out."""
    z, s = _margins(problem, w), _sample_weight(problem)
    largest = z.max(axis=1)
    log_losses = largest + np.log(np.exp(z.T - largest).sum(axis=0)) - (z * _one_hot(problem)).sum(axis=1)
    return float(s @ log_losses / s.sum() + w @ (_penalties(problem) * w) / 2)


def reference_optimum(problem: Problem) -> Vector:
    """Minimiser of F by undamped Newton from 0, which suffices for `contract_problems`; of many, the shortest."""
    A, B, s = _design(problem), _classes(problem), _sample_weight(problem)
    w = np.zeros(problem.n_parameters)
    for _ in range(REFERENCE_STEPS):
        p = np.exp(_margins(problem, w))
        p /= p.sum(axis=1, keepdims=True)
        residual = (p - _one_hot(problem)) @ B
        g = (residual.T * s @ A).ravel() / s.sum() + _penalties(problem) * w
        K = np.einsum("jc,ca,cb->jab", p, B, B) - np.einsum("ja,jb->jab", p @ B, p @ B)
        H = np.einsum("j,jab,jk,jl->akbl", s, K, A, A).reshape(w.size, w.size) / s.sum() + np.diag(_penalties(problem))
        w -= np.linalg.lstsq(H, g, rcond=SINGULAR)[0]
    return w


def finite_differences(problem: Problem, w: Vector) -> Vector:
    """Gradient of F by central differences of `reference_loss`."""
    steps = DIFFERENCE_STEP * np.eye(problem.n_parameters)
    rises = [reference_loss(problem, w + step) - reference_loss(problem, w - step) for step in steps]
    return np.array(rises, dtype=np.float64) / (2 * DIFFERENCE_STEP)


def _design(problem: Problem) -> Matrix:
    assert isinstance(problem.X, np.ndarray)
    return np.column_stack([problem.X, np.ones(problem.n_rows)])


def _classes(problem: Problem) -> Matrix:
    """What each output adds to the margin of each class, (n_classes, n_outputs): of two, to that of the label 1."""
    return np.eye(problem.n_classes)[:, -problem.n_outputs :]


def _margins(problem: Problem, w: Vector) -> Matrix:
    z = _design(problem) @ w.reshape(problem.n_outputs, -1).T
    if problem.offset is not None:
        z = z + problem.offset[:, np.newaxis]
    margins: Matrix = z @ _classes(problem).T
    return margins


def _one_hot(problem: Problem) -> Matrix:
    assert problem.y is not None
    one_hot: Matrix = np.eye(problem.n_classes)[problem.y.astype(int)]
    return one_hot


def _penalties(problem: Problem) -> Vector:
    return np.tile([problem.l2] * problem.n_features + [0.0], problem.n_outputs)


def _sample_weight(problem: Problem) -> Vector:
    return np.ones(problem.n_rows) if problem.sample_weight is None else problem.sample_weight


def _labels(rng: np.random.Generator, X: Matrix, intercept: float) -> Vector:
    p = 1 / (1 + np.exp(-(X.sum(axis=1) + intercept)))
    y: Vector = (rng.random(len(X)) < p).astype(np.float64)
    return y


def _class_labels(rng: np.random.Generator, X: Matrix) -> Vector:
    z = X @ rng.normal(size=(X.shape[1], 4)) + rng.gumbel(size=(len(X), 4))
    y: Vector = z.argmax(axis=1).astype(np.float64)
    return y
