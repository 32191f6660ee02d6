"""Sparse rows give what the same rows give as an array, without ever being one."""

import pickle
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from logistic import (
    CSR,
    Evaluation,
    Matrix,
    Moments,
    NonFiniteError,
    ParameterError,
    Problem,
    ShapeError,
    Standardisation,
    Vector,
    class_probabilities,
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
    make_solver,
    margins,
    max_row_norm,
    merge,
    moments_of_blocks,
    probabilities,
    row_margins,
    solve,
)
from logistic.firth import firth_gradient_sum, inverse_information
from logistic.loss import score_product_sum
from logistic.rows import CHUNK_ENTRIES, DENSE_BYTES, row_cuts
from logistic.separation import sides
from logistic.solvers.gradient_descent import largest_curvature, largest_row_curvature

MEAN, SCALE = np.array([0.5, -2.0, 0.0, 0.1, 30.0]), np.array([2.0, 0.5, 1.0, 3.0, 7.0])


def sparse(X: Matrix) -> CSR:
    """Return ``X`` with an entry wherever it is not zero."""
    rows, columns = np.nonzero(X)
    return CSR(np.searchsorted(rows, np.arange(len(X) + 1)), columns, X[rows, columns], X.shape)


@pytest.fixture(name="X")
def some_rows(rng: np.random.Generator) -> Matrix:
    """40 rows of five columns, a third of the cells filled; the third column, the first row and the last are empty."""
    X = rng.normal(size=(40, 5)) * (rng.random((40, 5)) < 0.35)
    X[:, 2] = 0.0
    X[[0, 7, 8, -1]] = 0.0
    return X


@pytest.fixture(params=["plain", "weighted", "three classes"])
def dense(request: pytest.FixtureRequest, rng: np.random.Generator, X: Matrix) -> Problem:
    s = None if request.param == "plain" else rng.uniform(0.0, 2.0, size=40)
    if request.param == "three classes":
        return Problem(X, rng.integers(0, 3, size=40).astype(float), s, 0.1, n_classes=3)
    return Problem(X, (rng.random(40) < 0.4).astype(float), s, 0.1, offset=rng.normal(size=40))


@pytest.fixture(params=[False, True], ids=["as it came", "framed"])
def pair(request: pytest.FixtureRequest, dense: Problem) -> tuple[Problem, Problem]:
    """Return the same problem with an array and with sparse rows, as they came or standardised."""
    X = dense.X
    assert isinstance(X, np.ndarray)
    if not request.param:
        return dense, replace(dense, X=sparse(X))
    return replace(dense, X=(X - MEAN) / SCALE), replace(dense, X=sparse(X).framed(MEAN, SCALE))


def weights(problem: Problem, seed: int = 1) -> Vector:
    return np.random.default_rng(seed).normal(size=problem.n_parameters)


def _parts(sums: Any) -> tuple[Any, ...]:
    return sums.log_loss, sums.gradient, sums.hessian


def _evaluated(problem: Problem, w: Vector) -> tuple[Any, ...]:
    found = Evaluation.of(problem, w)
    return found.n, found.log_loss_sum, found.brier_sum, found.correct


SUMS: dict[str, Callable[[Problem, Vector], Any]] = {
    "log_loss_sum": log_loss_sum,
    "gradient_sum": gradient_sum,
    "hessian_sum": hessian_sum,
    "blended hessian_sum": partial(hessian_sum, theta=0.3),
    "gradient_and_hessian_sum": lambda problem, w: _parts(gradient_and_hessian_sum(problem, w, theta=0.3)),
    "score_product_sum": score_product_sum,
    "loss": loss,
    "gradient": gradient,
    "loss_and_gradient": loss_and_gradient,
    "hessian": hessian,
    "hessian_vector": lambda problem, w: hessian_vector(problem, w, weights(problem, 2)),
    "gram_vector_sum": lambda problem, w: gram_vector_sum(problem, w[: problem.n_features + 1]),
    "max_row_norm": lambda problem, w: max_row_norm(problem),
    "evaluation": _evaluated,
    "row_margins": lambda problem, w: row_margins(problem, w)[:2],
    "largest_curvature": lambda problem, w: largest_curvature(problem),
    "largest_row_curvature": lambda problem, w: largest_row_curvature(problem),
}


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SUMS)
def test_every_sum_over_sparse_rows_is_that_over_the_array(pair: tuple[Problem, Problem], name: str) -> None:
    dense, sparse = pair
    w = weights(dense)
    assert_same(SUMS[name](sparse, w), SUMS[name](dense, w))


@pytest.mark.parametrize("name", ["gradient_sum", "hessian_sum", "score_product_sum", "gradient_and_hessian_sum"])
def test_blocks_of_few_rows_change_sums_by_rounding_only(
    pair: tuple[Problem, Problem], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, sparse = pair
    monkeypatch.setattr("logistic.rows.DENSE_BYTES", 3 * 8 * 5)
    assert [len(block.y) for chunk in sparse.chunks() for block in chunk.blocks()] == [3] * 13 + [1]
    assert_same(SUMS[name](sparse, weights(dense)), SUMS[name](dense, weights(dense)))


@pytest.mark.parametrize("name", ["newton", "lbfgs", "gradient-descent"])
def test_solvers_find_the_same_optimum(pair: tuple[Problem, Problem], name: str) -> None:
    ends = [
        solve(make_solver(name), problem, np.zeros(problem.n_parameters), max_steps=3000, tolerance=1e-8).w
        for problem in pair
    ]
    np.testing.assert_allclose(*ends, atol=1e-6)


def test_mini_batches_are_taken_of_sparse_rows_too(pair: tuple[Problem, Problem]) -> None:
    solver = make_solver("gradient-descent", batch_size=7)
    ends = [
        solve(
            solver, problem, np.zeros(problem.n_parameters), rng=np.random.default_rng(5), max_steps=20, tolerance=0.0
        ).w
        for problem in pair
    ]
    np.testing.assert_allclose(*ends, atol=1e-12)


def test_firths_score_and_the_sides_are_those_of_the_array(rng: np.random.Generator, X: Matrix) -> None:
    filled = X + (np.arange(5) == 2) * rng.normal(size=(40, 1))
    y, s = (rng.random(40) < 0.4).astype(float), rng.uniform(0.0, 2.0, size=40)
    one, other = Problem(filled, y, s), Problem(sparse(filled), y, s)
    w = weights(one)
    B = inverse_information(hessian_sum(one, w))
    assert_same(firth_gradient_sum(other, w, B), firth_gradient_sum(one, w, B))
    for direction in (w, np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])):
        assert sides(other, direction) == sides(one, direction)


def test_margins_and_probabilities_of_sparse_rows_are_those_of_the_array(X: Matrix) -> None:
    w = np.arange(6.0)
    assert_same(margins(sparse(X), w), margins(X, w))
    assert_same(probabilities(sparse(X), w), probabilities(X, w))
    assert_same(class_probabilities(sparse(X), np.arange(18.0)), class_probabilities(X, np.arange(18.0)))


# --- the matrix -------------------------------------------------------------------------------


def test_its_dense_form_is_the_array_and_framed_the_standardised_one_to_the_bit(X: Matrix) -> None:
    np.testing.assert_array_equal(sparse(X).dense(), X)
    np.testing.assert_array_equal(sparse(X).framed(MEAN, SCALE).dense(), Standardisation(MEAN, SCALE).apply(X))


def test_a_standardisation_leaves_sparse_rows_sparse(X: Matrix) -> None:
    framed = Standardisation(MEAN, SCALE).apply(sparse(X))
    assert isinstance(framed, CSR)
    np.testing.assert_array_equal(framed.dense(), (X - MEAN) / SCALE)


@pytest.mark.parametrize("rows", [slice(None), slice(3, 9), slice(30, 100), slice(5, 2), slice(8, 9)])
def test_a_slice_has_the_rows_of_the_slice_and_shares_the_entries(X: Matrix, rows: slice) -> None:
    whole = sparse(X).framed(MEAN, SCALE)
    part = whole[rows]
    np.testing.assert_array_equal(part.dense(), whole.dense()[rows])
    assert part.data.size == 0 or np.shares_memory(part.data, whole.data)


def test_rows_are_taken_by_number_or_mask(X: Matrix) -> None:
    numbers, mask = np.array([5, 0, -2, 5]), X[:, 1] > 0
    np.testing.assert_array_equal(sparse(X).take(numbers).dense(), X[numbers])
    np.testing.assert_array_equal(sparse(X)[numbers].dense(), X[numbers])
    np.testing.assert_array_equal(sparse(X)[mask].dense(), X[mask])


def test_a_slice_that_leaves_rows_out_is_refused(X: Matrix) -> None:
    with pytest.raises(ShapeError, match="consecutive"):
        sparse(X)[::2]


def test_products_with_one_vector_or_several_are_those_of_the_array(X: Matrix, rng: np.random.Generator) -> None:
    v, V, r, R = (rng.normal(size=shape) for shape in (5, (5, 3), 40, (2, 40)))
    for one, other in ((sparse(X), X), (sparse(X).framed(MEAN, SCALE), (X - MEAN) / SCALE)):
        assert_same((one @ v, one @ V, r @ one, R @ one), (other @ v, other @ V, r @ other, R @ other))


def test_products_that_do_not_fit_are_refused(X: Matrix) -> None:
    with pytest.raises(ShapeError, match="columns of X"):
        sparse(X) @ np.ones(6)
    with pytest.raises(ShapeError, match="rows of X"):
        np.ones(41) @ sparse(X)


def test_of_no_rows_or_no_columns_products_are_empty_or_zero() -> None:
    none = CSR(np.zeros(1, int), np.zeros(0, int), np.zeros(0), (0, 3))
    np.testing.assert_array_equal(none @ np.ones(3), [])
    np.testing.assert_array_equal(np.ones(0) @ none, np.zeros(3))
    assert (np.ones(0) @ none).dtype == np.float64
    narrow = CSR(np.zeros(4, int), np.zeros(0, int), np.zeros(0), (3, 0))
    np.testing.assert_array_equal(narrow @ np.ones(0), np.zeros(3))
    assert gradient_sum(Problem(none, np.zeros(0)), np.ones(4)).tolist() == [0.0] * 4
    assert hessian_sum(Problem(none, np.zeros(0)), np.ones(4)).tolist() == np.zeros((4, 4)).tolist()
    assert hessian_sum(Problem(narrow, np.ones(3)), np.zeros(1)).tolist() == [[0.75]]


def test_row_norms_are_exact_also_where_the_mean_is_far_from_zero() -> None:
    framed = sparse(np.array([[3.0, 0.0], [0.0, 0.0], [1e6, 5.0]])).framed(np.array([1e6, 5.0]), np.array([2.0, 1.0]))
    norms = framed.squared_row_norms()
    np.testing.assert_allclose(norms, (framed.dense() ** 2).sum(axis=1), rtol=1e-15, atol=1e-3)
    assert norms[2] == 0.0


def test_entries_in_any_order_are_sorted_and_zeros_may_be_entries() -> None:
    made = CSR(np.array([0, 3, 3, 5]), np.array([2, 0, 1, 1, 0]), np.array([1.0, 2, 0, 4, 5]), (3, 3))
    np.testing.assert_array_equal(made.dense(), [[2, 0, 1], [0, 0, 0], [5, 4, 0]])
    np.testing.assert_array_equal(made.indices, [0, 1, 2, 0, 1])


def test_its_text_shows_no_value(X: Matrix) -> None:
    assert repr(CSR(np.array([0, 1]), np.array([1]), np.array([7.25]), (1, 2))) == (
        "CSR(n_rows=1, n_features=2, n_entries=1)"
    )


def test_it_can_be_pickled(X: Matrix) -> None:
    sent = pickle.loads(pickle.dumps(sparse(X).framed(MEAN, SCALE)))  # noqa: S301 - it is our own
    np.testing.assert_array_equal(sent.dense(), (X - MEAN) / SCALE)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("indptr must have 3 numbers", {"indptr": np.array([0, 2])}),
        ("from 0", {"indptr": np.array([1, 2, 3])}),
        ("never decreasing", {"indptr": np.array([0, 4, 3])}),
        ("indptr speaks of 3 entries", {"indices": np.array([0, 1])}),
        ("indptr speaks of 3 entries", {"data": np.ones(4)}),
        ("columns outside the 2", {"indices": np.array([0, 2, 1])}),
        ("columns outside the 2", {"indices": np.array([0, -1, 1])}),
        ("two entries in one column", {"indices": np.array([1, 1, 0])}),
        ("indices has numbers of type float64", {"indices": np.array([0.0, 1.0, 1.0])}),
    ],
)
def test_what_is_no_matrix_is_refused_in_a_sentence(words: str, change: dict[str, Any]) -> None:
    parts = {"indptr": np.array([0, 2, 3]), "indices": np.array([0, 1, 1]), "data": np.ones(3), "shape": (2, 2)}
    assert CSR(**parts).shape == (2, 2)
    with pytest.raises(ShapeError, match=words):
        CSR(**(parts | change))


@pytest.mark.parametrize(
    ("error", "words", "mean", "scale"),
    [
        (ShapeError, "X has 5 columns", np.zeros(4), np.ones(4)),
        (NonFiniteError, "NaN", np.full(5, np.nan), np.ones(5)),
        (ParameterError, "not positive", np.zeros(5), np.zeros(5)),
    ],
)
def test_a_frame_that_makes_no_sense_is_refused(
    X: Matrix, error: type[Exception], words: str, mean: Vector, scale: Vector
) -> None:
    with pytest.raises(error, match=words):
        sparse(X).framed(mean, scale)


def test_rows_are_framed_once(X: Matrix) -> None:
    with pytest.raises(ParameterError, match="already"):
        sparse(X).framed(MEAN, SCALE).framed(MEAN, SCALE)


def test_a_problem_names_the_columns_of_sparse_rows_that_are_not_finite() -> None:
    rows = CSR(np.array([0, 1, 3]), np.array([2, 0, 3]), np.array([np.nan, 1.0, np.inf]), (2, 4))
    with pytest.raises(NonFiniteError, match=r"columns \[2, 3\]"):
        Problem(rows, np.zeros(2))
    with pytest.raises(ShapeError, match="X has 2 rows"):
        Problem(rows, np.zeros(3))


# --- chunks and memory ------------------------------------------------------------------------


def test_chunks_of_sparse_rows_have_about_as_many_entries_each() -> None:
    n_rows = 3000
    counts = np.full(n_rows, 300)
    counts[1000:2000] = 0
    indptr = np.append(0, np.cumsum(counts))
    X = CSR(indptr, np.tile(np.arange(300), 2000), np.ones(600_000), (n_rows, 300))
    cuts = list(row_cuts(X))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == n_rows
    assert [stop for _, stop in cuts[:-1]] == [start for start, _ in cuts[1:]]
    assert all(indptr[stop] - indptr[start] <= CHUNK_ENTRIES for start, stop in cuts)
    assert len(cuts) == 3
    assert list(row_cuts(X, 2000)) == [(0, 2000), (2000, 3000)]
    assert list(row_cuts(X[:0])) == []


def test_a_row_of_more_entries_than_a_chunk_has_is_a_chunk() -> None:
    n = 2 * CHUNK_ENTRIES + 5
    X = CSR(np.array([0, 1, 1 + n, 2 + n]), np.concatenate([[0], np.arange(n), [0]]), np.ones(n + 2), (3, n))
    assert [stop for _, stop in row_cuts(X)][-1] == 3
    problem = Problem(X, np.array([0.0, 1.0, 1.0]))
    assert sum(len(chunk.y) for chunk in problem.chunks()) == 3


def wide(n_rows: int, n_features: int, per_row: int) -> Problem:
    """Return rows with ``per_row`` entries each, framed."""
    rng = np.random.default_rng(3)
    columns = np.sort(
        rng.integers(0, n_features // per_row, (n_rows, per_row)) + np.arange(per_row) * (n_features // per_row)
    )
    X = CSR(np.arange(n_rows + 1) * per_row, columns.ravel(), rng.normal(size=columns.size), (n_rows, n_features))
    mean, scale = rng.normal(size=n_features) / 100, rng.uniform(0.5, 2.0, size=n_features)
    return Problem(X.framed(mean, scale), (rng.random(n_rows) < 0.5).astype(float), l2=0.01)


def test_a_gradient_of_a_million_columns_takes_the_memory_of_the_entries() -> None:
    problem = wide(20_000, 1_000_000, 50)
    w = np.zeros(problem.n_parameters)
    tracemalloc.start()
    g = gradient_sum(problem, w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert g.shape == (1_000_001,)
    assert peak < 64 * 2**20  # as an array the rows would take 160 GB


def test_an_evaluation_and_row_norms_of_a_million_columns_make_no_array_of_cells() -> None:
    problem = wide(2_000, 1_000_000, 50)
    w = np.zeros(problem.n_parameters)
    tracemalloc.start()
    Evaluation.of(problem, w)
    max_row_norm(problem)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_a_hessian_of_sparse_rows_makes_arrays_of_a_block_only() -> None:
    problem = wide(30_000, 1000, 5)
    tracemalloc.start()
    hessian_sum(problem, np.zeros(1001))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * DENSE_BYTES  # a block and its product with the weights; all rows would be 4 times a block


# --- moments ----------------------------------------------------------------------------------


def assert_same_moments(a: Moments, b: Moments) -> None:
    assert a.n == b.n
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-12, atol=1e-14)
    assert (a.observed is None) == (b.observed is None)
    np.testing.assert_allclose(a.n_observed, b.n_observed, rtol=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_sparse_rows_are_those_of_the_array(X: Matrix, rng: np.random.Generator, weighted: bool) -> None:
    s = rng.uniform(0.0, 2.0, size=40) * (np.arange(40) % 5 > 0) if weighted else None
    assert_same_moments(Moments.of(sparse(X), s), Moments.of(X, s))
    far = X + 1e6
    assert_same_moments(Moments.of(sparse(far), s), Moments.of(far, s))


@pytest.mark.parametrize("weighted", [False, True])
def test_gaps_among_sparse_rows_count_as_gaps(X: Matrix, rng: np.random.Generator, weighted: bool) -> None:
    holes = np.where(rng.random(X.shape) < 0.2, np.nan, X)
    holes[:, 1] = np.nan
    s = rng.uniform(0.0, 2.0, size=40) if weighted else None
    found = Moments.of(sparse(holes), s, allow_missing=True)
    assert_same_moments(found, Moments.of(holes, s, allow_missing=True))
    assert found.n_observed[1] == 0.0
    with pytest.raises(NonFiniteError, match="NaN"):
        Moments.of(sparse(holes), s)


def test_a_constant_column_is_known_as_constant_also_when_sparse() -> None:
    X = np.full((1000, 2), 0.1)
    X[:, 1] = 0.0
    assert Moments.of(sparse(X)).std().tolist() == [1.0, 1.0]


def test_without_weight_the_moments_of_sparse_rows_are_zero(X: Matrix) -> None:
    assert Moments.of(sparse(X), np.zeros(40)).n == 0.0


def test_moments_of_blocks_are_those_of_all_rows(X: Matrix, rng: np.random.Generator) -> None:
    holes, s = np.where(rng.random(X.shape) < 0.2, np.nan, X), rng.uniform(0.0, 2.0, size=40)
    cuts = [slice(0, 7), slice(7, 7), slice(7, 39), slice(39, 40)]
    blocks = [(sparse(holes[cut]) if cut.start else holes[cut], s[cut]) for cut in cuts]
    found = moments_of_blocks(iter(blocks), n_features=5, allow_missing=True)
    pooled = Moments.of(holes, s, allow_missing=True)
    assert found.n == pytest.approx(pooled.n, rel=1e-15)
    np.testing.assert_allclose(found.m2, pooled.m2, rtol=1e-12)
    np.testing.assert_allclose(found.mean, pooled.mean, rtol=1e-12, atol=1e-15)
    assert moments_of_blocks([], n_features=5).mean.shape == (5,)
    with pytest.raises(NonFiniteError, match="NaN"):
        moments_of_blocks(blocks, n_features=5)


def test_moments_of_standardised_sparse_rows_are_refused(X: Matrix) -> None:
    with pytest.raises(ParameterError, match="as they came"):
        Moments.of(sparse(X).framed(MEAN, SCALE))


def test_moments_that_overflow_are_refused_as_those_of_an_array_are() -> None:
    with pytest.raises(NonFiniteError, match="overflow"):
        Moments.of(sparse(np.array([[1e300], [-1e300]])))


def test_moments_of_sparse_and_dense_rows_merge(X: Matrix) -> None:
    assert_same_moments(
        merge(Moments.of(sparse(X[:9])), Moments.of(X[9:])), merge(Moments.of(X[:9]), Moments.of(X[9:]))
    )
