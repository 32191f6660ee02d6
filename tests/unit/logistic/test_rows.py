"""What only hands out chunks serves as rows, and threads change nothing but the time."""

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from logistic import (
    Chunk,
    Evaluation,
    Moments,
    NotInMemoryError,
    ParameterError,
    Problem,
    ShapeError,
    Vector,
    gradient,
    gradient_and_hessian_sum,
    gradient_sum,
    gram_vector_sum,
    hessian,
    hessian_sum,
    hessian_vector,
    log_loss_sum,
    loss,
    loss_and_gradient,
    loss_and_gradient_sum,
    make_solver,
    max_row_norm,
    moments_of_rows,
    over_chunks,
    row_margins,
    solve,
)
from logistic.firth import firth_gradient_sum, inverse_information
from logistic.loss import score_product_sum
from logistic.rows import in_blocks
from logistic.separation import sides
from logistic.solvers.gradient_descent import largest_curvature, largest_row_curvature
from logistic.solvers.newton import bound
from logistic.testing import chunked

PATIENCE_SECONDS = 30.0


@pytest.fixture(params=["two classes", "three classes"])
def arrays(request: pytest.FixtureRequest, rng: np.random.Generator) -> Problem:
    """50 weighted rows of four columns, those of two classes with offsets."""
    X, s = rng.normal(size=(50, 4)), rng.uniform(0.0, 2.0, size=50)
    if request.param == "two classes":
        return Problem(X, (rng.random(50) < 0.4).astype(float), s, 0.1, offset=rng.normal(size=50))
    return Problem(X, rng.integers(0, 3, size=50).astype(float), s, 0.1, n_classes=3)


def weights(problem: Problem) -> Vector:
    return np.random.default_rng(1).normal(size=problem.n_parameters)


def _sums(problem: Problem, w: Vector) -> tuple[Any, ...]:
    sums = gradient_and_hessian_sum(problem, w, theta=0.3)
    return sums.log_loss, sums.gradient, sums.hessian


def _evaluation(problem: Problem, w: Vector) -> tuple[Any, ...]:
    found = Evaluation.of(problem, w)
    return found.n, found.log_loss_sum, found.brier_sum, found.correct, found.positives, found.negatives


EVERYTHING: dict[str, Callable[[Problem, Vector], Any]] = {
    "log_loss_sum": log_loss_sum,
    "gradient_sum": gradient_sum,
    "hessian_sum": partial(hessian_sum, theta=0.3),
    "gradient_and_hessian_sum": _sums,
    "loss_and_gradient_sum": loss_and_gradient_sum,
    "score_product_sum": score_product_sum,
    "loss": loss,
    "gradient": gradient,
    "loss_and_gradient": loss_and_gradient,
    "hessian": hessian,
    "hessian_vector": lambda problem, w: hessian_vector(problem, w, w + 1.0),
    "gram_vector_sum": lambda problem, w: gram_vector_sum(problem, w[: problem.n_features + 1]),
    "max_row_norm": lambda problem, w: max_row_norm(problem),
    "evaluation": _evaluation,
    "row_margins": lambda problem, w: tuple(row_margins(problem, w)),
    "largest_curvature": lambda problem, w: largest_curvature(problem),
    "largest_row_curvature": lambda problem, w: largest_row_curvature(problem),
    "bound": lambda problem, w: bound(problem),
}


def assert_same(found: Any, expected: Any, tolerance: float = 0.0) -> None:
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("chunk_rows", [1, 7, 50])
@pytest.mark.parametrize("name", EVERYTHING)
def test_rows_that_only_hand_out_chunks_give_every_sum(arrays: Problem, name: str, chunk_rows: int) -> None:
    w = weights(arrays)
    assert_same(EVERYTHING[name](chunked(arrays, chunk_rows), w), EVERYTHING[name](arrays, w), 1e-12)


@pytest.mark.parametrize("name", EVERYTHING)
def test_threads_change_no_bit_of_any_sum(arrays: Problem, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logistic.rows.CHUNK_ROWS", 7)
    w = weights(arrays)
    assert_same(EVERYTHING[name](replace(arrays, threads=3), w), EVERYTHING[name](arrays, w))


def test_what_is_made_in_one_pass_is_what_each_makes_alone_to_the_bit(
    arrays: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logistic.rows.CHUNK_ROWS", 7)
    w = weights(arrays)
    alone = log_loss_sum(arrays, w), gradient_sum(arrays, w), hessian_sum(arrays, w, theta=0.3)
    assert_same(_sums(arrays, w), alone)
    assert_same(loss_and_gradient_sum(arrays, w), alone[:2])
    assert_same(loss_and_gradient(arrays, w), (loss(arrays, w), gradient(arrays, w)))


def test_firths_score_and_the_sides_come_of_chunks_too(problem: Problem) -> None:
    w, rows = weights(problem), chunked(problem, 7)
    B = inverse_information(hessian_sum(problem, w))
    assert_same(firth_gradient_sum(rows, w, B), firth_gradient_sum(problem, w, B), 1e-13)
    assert sides(rows, w) == sides(problem, w)


@pytest.mark.parametrize("name", ["newton", "lbfgs", "gradient-descent"])
def test_solvers_find_the_same_optimum_over_chunks(arrays: Problem, name: str) -> None:
    start = np.zeros(arrays.n_parameters)
    ends = [
        solve(make_solver(name), problem, start, max_steps=3000, tolerance=1e-9).w
        for problem in (arrays, chunked(arrays, 13))
    ]
    np.testing.assert_allclose(*ends, atol=1e-7)


def test_the_bound_on_the_hessian_knows_no_offsets_whatever_the_rows(problem: Problem) -> None:
    shifted = replace(problem, offset=np.full(50, 9.0))
    np.testing.assert_array_equal(bound(chunked(shifted, 50)), bound(problem))
    assert (bound(problem) > hessian(shifted, np.zeros(5))).any()


def test_moments_of_rows_of_any_kind_are_those_of_the_array(problem: Problem) -> None:
    found, whole = moments_of_rows(chunked(problem, 7).X), Moments.of(problem.X, problem.sample_weight)
    np.testing.assert_allclose(found.m2, whole.m2, rtol=1e-12)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-12)


def test_a_problem_of_chunks_counts_what_the_rows_count(arrays: Problem) -> None:
    rows = chunked(arrays, 7)
    assert (rows.n_rows, rows.n_features, rows.n_samples) == (50, 4, arrays.n_samples)
    assert (rows.n_parameters, rows.n_outputs) == (arrays.n_parameters, arrays.n_outputs)
    assert repr(rows) == repr(arrays)
    assert arrays.in_memory
    assert not rows.in_memory
    without = chunked(arrays, 7).without_offset().X
    assert (without.n_rows, without.n_features, without.n_samples) == (50, 4, arrays.n_samples)


def test_whether_rows_are_weighted_and_have_offsets_is_asked_of_the_first_chunk(problem: Problem) -> None:
    plain = Problem(problem.X, problem.y)
    shifted = Problem(problem.X, problem.y, offset=np.ones(50))
    for make in (lambda each: each, partial(chunked, chunk_rows=7)):
        assert [make(each).is_weighted for each in (plain, shifted, problem)] == [False, False, True]
        assert [make(each).has_offset for each in (plain, shifted, problem)] == [False, True, False]
    nothing = chunked(plain.take(np.arange(0)), 7)
    assert not nothing.is_weighted
    assert not nothing.has_offset


@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_rows_at_all_and_chunks_without_rows_add_nothing(n_classes: int) -> None:
    nothing = Problem(np.empty((0, 2)), np.empty(0), n_classes=n_classes)

    class Empty:
        n_rows, n_features, n_samples = 0, 2, 0.0

        def over(self, function: Callable[[Chunk], Any]) -> Iterator[Any]:
            return map(function, [Chunk(np.empty((0, 2)), np.empty(0), None, None)] * 2)

    w = np.ones(nothing.n_parameters)
    for problem in (nothing, chunked(nothing, 5), Problem(Empty(), n_classes=n_classes)):
        assert log_loss_sum(problem, w) == 0.0
        assert not gradient_sum(problem, w).any()
        assert not hessian_sum(problem, w).any()
        assert max_row_norm(problem) == 0.0
        assert row_margins(problem, w).margins.shape == ((0,) if n_classes == 2 else (0, 3))
        assert row_margins(problem, w).weights.shape == (0,)


def test_gathered_margins_of_unweighted_rows_weigh_one_each(problem: Problem) -> None:
    rows = row_margins(chunked(Problem(problem.X, problem.y), 7), np.zeros(5))
    assert rows.sample_weight is None
    np.testing.assert_array_equal(rows.weights, np.ones(50))
    assert row_margins(problem, np.zeros(5)).weights is not None
    with pytest.raises(ShapeError, match="need"):
        row_margins(problem, np.zeros(4))


def test_rows_in_chunks_cannot_be_taken_by_number(problem: Problem) -> None:
    rows = chunked(problem, 7)
    with pytest.raises(NotInMemoryError, match="mini-batches and folds need rows in memory"):
        rows.take(np.array([1]))
    with pytest.raises(NotInMemoryError, match="in memory"):
        next(rows.chunks())
    solver = make_solver("gradient-descent", batch_size=5)
    with pytest.raises(NotInMemoryError, match="in memory"):
        solve(solver, rows, np.zeros(5), rng=np.random.default_rng(0), max_steps=1, tolerance=0.0)


@pytest.mark.parametrize("name", ["y", "sample_weight", "offset"])
def test_rows_that_have_labels_are_given_no_others(problem: Problem, name: str) -> None:
    with pytest.raises(ParameterError, match="themselves"):
        replace(chunked(problem, 7), **{name: np.ones(50)})


def test_a_problem_of_chunks_checks_its_numbers_too(problem: Problem) -> None:
    with pytest.raises(ParameterError, match="l2 is -1"):
        replace(chunked(problem, 7), l2=-1.0)


def test_an_array_without_labels_and_no_thread_are_refused(problem: Problem) -> None:
    with pytest.raises(ShapeError, match="y is missing"):
        Problem(problem.X)
    with pytest.raises(ParameterError, match="threads is 0"):
        replace(problem, threads=0)


# --- threads ----------------------------------------------------------------------------------


def few(n: int) -> list[Chunk]:
    return [Chunk(np.full((1, 1), float(i)), np.zeros(1), None, None) for i in range(n)]


def first_cell(chunk: Chunk) -> float:
    return float(chunk.dense()[0, 0])


@pytest.mark.parametrize("threads", [1, 2, 3, 30])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 20])
def test_results_come_in_the_order_of_the_chunks(threads: int, n: int) -> None:
    assert list(over_chunks(few(n), first_cell, threads)) == [float(i) for i in range(n)]


def test_the_first_chunk_may_finish_last() -> None:
    done = threading.Event()

    def slow_at_first(chunk: Chunk) -> float:
        if first_cell(chunk) == 0:
            assert done.wait(PATIENCE_SECONDS)
        else:
            done.set()
        return first_cell(chunk)

    assert list(over_chunks(few(2), slow_at_first, 2)) == [0.0, 1.0]


@pytest.mark.parametrize(("threads", "at_most"), [(1, 1), (2, 3), (4, 5)])
def test_no_more_chunks_are_read_than_there_are_threads_and_one(threads: int, at_most: int) -> None:
    read, used = [], 0

    def reading() -> Iterator[Chunk]:
        for chunk in few(40):
            assert len(read) - used < at_most
            read.append(chunk)
            yield chunk

    for _ in over_chunks(reading(), first_cell, threads):
        used += 1
    assert used == 40


@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_are_read_by_the_callers_thread(threads: int) -> None:
    readers = set()

    def reading() -> Iterator[Chunk]:
        for chunk in few(5):
            readers.add(threading.get_ident())
            yield chunk

    list(over_chunks(reading(), first_cell, threads))
    assert readers == {threading.get_ident()}


@pytest.mark.parametrize("threads", [1, 2])
def test_what_goes_wrong_in_a_chunk_is_raised_where_the_sum_is_made(threads: int) -> None:
    def breaking(chunk: Chunk) -> float:
        if first_cell(chunk) == 2:
            raise ShapeError("the third chunk")
        return first_cell(chunk)

    found = over_chunks(few(9), breaking, threads)
    assert [next(found), next(found)] == [0.0, 1.0]
    with pytest.raises(ShapeError, match="third"):
        next(found)
    assert list(found) == []


@pytest.mark.parametrize("threads", [1, 2])
def test_what_goes_wrong_in_reading_is_raised_too(threads: int) -> None:
    def reading() -> Iterator[Chunk]:
        yield from few(3)
        raise ShapeError("the file ended")

    with pytest.raises(ShapeError, match="ended"):
        list(over_chunks(reading(), first_cell, threads))


def test_an_abandoned_sum_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    found = over_chunks(few(40), first_cell, 3)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_an_overflow_that_the_caller_allows_is_allowed_in_threads(threads: int) -> None:
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        assert list(over_chunks(few(3), _overflow, threads)) == [np.inf] * 3


def _overflow(chunk: Chunk) -> float:
    return float((chunk.dense() + 1e308).sum() + np.exp(np.full(1, 1e4)).sum())


def test_an_arrays_chunk_is_one_block_and_no_copy(problem: Problem) -> None:
    (chunk,) = problem.chunks()
    assert list(chunk.blocks()) == [chunk]
    assert chunk.dense() is chunk.X
    assert in_blocks(first_cell, chunk) == problem.X[0, 0]
