"""What holds of sparse rows, chunks and threads whatever the rows are."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from logistic import (
    CSR,
    Evaluation,
    Moments,
    Problem,
    Vector,
    gradient_and_hessian_sum,
    gradient_sum,
    hessian_sum,
    hessian_vector_sum,
    log_loss_sum,
    max_row_norm,
    moments_of_blocks,
)
from logistic.loss import score_product_sum
from logistic.testing import chunked

MOST_CLASSES = 4

cells = st.just(0.0) | st.floats(-10, 10)


def sparse(X: Vector) -> CSR:
    """Return ``X`` with an entry wherever it is not zero."""
    rows, columns = np.nonzero(X)
    return CSR(np.searchsorted(rows, np.arange(len(X) + 1)), columns, X[rows, columns], X.shape)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Problem, Problem, Vector]:
    """Draw rows as an array and sparse, as they came or standardised, and weights that fit them."""
    n_rows, n_features, n_classes = (
        draw(st.integers(0, 20)),
        draw(st.integers(1, 5)),
        draw(st.integers(2, MOST_CLASSES)),
    )
    X = draw(arrays(np.float64, (n_rows, n_features), elements=cells))
    y = draw(arrays(np.float64, n_rows, elements=st.integers(0, n_classes - 1).map(float)))
    s = draw(st.none() | arrays(np.float64, n_rows, elements=st.floats(0, 5)))
    offset = draw(st.none() | arrays(np.float64, n_rows, elements=st.floats(-5, 5))) if n_classes == 2 else None
    dense = Problem(X, y, s, offset=offset, n_classes=n_classes)
    w = draw(arrays(np.float64, dense.n_parameters, elements=st.floats(-3, 3)))
    rows = sparse(X)
    if draw(st.booleans()):
        mean = draw(arrays(np.float64, n_features, elements=st.floats(-5, 5)))
        scale = draw(arrays(np.float64, n_features, elements=st.floats(0.1, 10)))
        dense, rows = replace(dense, X=(X - mean) / scale), rows.framed(mean, scale)
    return dense, replace(dense, X=rows), w


Pair = tuple[Problem, Problem, Vector]
theta_sums = (log_loss_sum, gradient_sum, score_product_sum, partial(hessian_sum, theta=0.3))


@given(pair=pairs())
def test_sums_over_sparse_rows_are_those_over_the_array(pair: Pair) -> None:
    dense, sparse_rows, w = pair
    for total in (*theta_sums, partial(hessian_vector_sum, v=w)):
        np.testing.assert_allclose(total(sparse_rows, w), total(dense, w), rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(max_row_norm(sparse_rows) ** 2, max_row_norm(dense) ** 2, rtol=1e-10)
    one, other = (Evaluation.of(each, w) for each in (sparse_rows, dense))
    np.testing.assert_allclose(one.log_loss_sum, other.log_loss_sum, rtol=1e-10, atol=1e-10)


@given(pair=pairs(), chunk_rows=st.integers(1, 25))
def test_however_rows_come_in_chunks_the_sums_are_the_same(pair: Pair, chunk_rows: int) -> None:
    for problem in pair[:2]:
        rows, w = chunked(problem, chunk_rows), pair[2]
        for total in theta_sums:
            np.testing.assert_allclose(total(rows, w), total(problem, w), rtol=1e-9, atol=1e-8)
        np.testing.assert_allclose(
            gradient_and_hessian_sum(rows, w, theta=0.3).hessian,
            hessian_sum(problem, w, theta=0.3),
            rtol=1e-9,
            atol=1e-8,
        )


@given(pair=pairs(), chunk_rows=st.integers(1, 25))
def test_three_threads_give_what_one_gives_to_the_bit(pair: Pair, chunk_rows: int) -> None:
    for problem in pair[:2]:
        with patch.multiple("logistic.rows", CHUNK_ROWS=chunk_rows, CHUNK_ENTRIES=chunk_rows, ENTRIES_PER_COLUMN=1):
            for total in theta_sums:
                alone, together = (total(replace(problem, threads=n), pair[2]) for n in (1, 3))
                np.testing.assert_array_equal(together, alone)


@given(pair=pairs(), missing=st.integers(0, 2**32), cut=st.integers(0, 20))
def test_moments_of_sparse_rows_with_gaps_are_those_of_the_array(pair: Pair, missing: int, cut: int) -> None:
    dense = pair[0]
    holes = np.where(np.random.default_rng(missing).random(dense.X.shape) < 0.2, np.nan, np.round(dense.X, 3))
    found = Moments.of(sparse(holes), dense.sample_weight, allow_missing=True)
    whole = Moments.of(holes, dense.sample_weight, allow_missing=True)
    s = np.ones(len(holes)) if dense.sample_weight is None else dense.sample_weight
    blocks = [(sparse(holes[:cut]), s[:cut]), (holes[cut:], s[cut:])]
    merged = moments_of_blocks(blocks, n_features=holes.shape[1], allow_missing=True)
    for each in (found, merged):
        np.testing.assert_allclose(each.n_observed, whole.n_observed, rtol=1e-10, atol=1e-10)
        # Of a weight that is next to nothing beside the others' rounding leaves no mean.
        seen = whole.n_observed > 1e-9
        np.testing.assert_allclose(each.mean[seen], whole.mean[seen], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(each.m2, whole.m2, rtol=1e-8, atol=1e-6)
