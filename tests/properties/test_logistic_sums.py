"""What holds of the sums over rows whatever the rows are."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from logistic import (
    Moments,
    Problem,
    Vector,
    gradient,
    gradient_sum,
    hessian,
    hessian_sum,
    log_loss_sum,
    loss,
    merge,
    probabilities,
)

N_FEATURES = 3


@st.composite
def problems(draw: st.DrawFn, largest: float = 10.0) -> Problem:
    """Draw up to 30 weighted rows of three columns."""
    n_rows = draw(st.integers(1, 30))
    X = draw(arrays(np.float64, (n_rows, N_FEATURES), elements=st.floats(-largest, largest)))
    y = draw(arrays(np.float64, n_rows, elements=st.sampled_from([0.0, 1.0])))
    s = draw(st.none() | arrays(np.float64, n_rows, elements=st.floats(0, 5)))
    return Problem(X, y, s, l2=draw(st.floats(0, 2)))


def weights(largest: float = 3.0) -> st.SearchStrategy[Vector]:
    """Draw weights and an intercept."""
    return arrays(np.float64, N_FEATURES + 1, elements=st.floats(-largest, largest))


@given(problem=problems(), w=weights(), chunk_rows=st.integers(1, 40))
def test_the_size_of_the_chunks_changes_sums_by_rounding_only(problem: Problem, w: Vector, chunk_rows: int) -> None:
    for total in (log_loss_sum, gradient_sum, hessian_sum):
        np.testing.assert_allclose(total(problem, w, chunk_rows=chunk_rows), total(problem, w), rtol=1e-11, atol=1e-9)


@given(problem=problems(), w=weights(), cut=st.integers(0, 30))
def test_however_the_rows_are_split_between_two_sites_the_sums_add_up(problem: Problem, w: Vector, cut: int) -> None:
    rows = np.arange(problem.n_rows)
    one, other = problem.take(rows[:cut]), problem.take(rows[cut:])
    for total in (log_loss_sum, gradient_sum, hessian_sum):
        np.testing.assert_allclose(total(one, w) + total(other, w), total(problem, w), rtol=1e-11, atol=1e-9)


@given(problem=problems(), w=weights(), v=weights(1.0))
def test_the_gradient_is_the_slope_of_the_loss_in_any_direction(problem: Problem, w: Vector, v: Vector) -> None:
    step = 1e-5 * v
    rise = loss(problem, w + step) - loss(problem, w - step)
    np.testing.assert_allclose(gradient(problem, w) @ v, rise / 2e-5, rtol=1e-4, atol=1e-4)


@given(problem=problems(), w=weights(), v=weights(1.0))
def test_the_hessian_is_the_slope_of_the_gradient_in_any_direction(problem: Problem, w: Vector, v: Vector) -> None:
    step = 1e-5 * v
    change = gradient(problem, w + step) - gradient(problem, w - step)
    np.testing.assert_allclose(hessian(problem, w) @ v, change / 2e-5, rtol=1e-4, atol=1e-4)


@given(problem=problems(largest=1e150), w=weights(1e150))
def test_at_any_margin_the_loss_and_its_derivatives_are_finite(problem: Problem, w: Vector) -> None:
    free = Problem(problem.X / 1e6, problem.y)
    p = probabilities(free.X, w)
    assert ((p >= 0) & (p <= 1)).all()
    assert np.isfinite(log_loss_sum(free, w))
    assert log_loss_sum(free, w) >= 0
    assert np.isfinite(gradient_sum(free, w)).all()


@given(problem=problems(largest=1e4), w=weights(1e4))
def test_the_hessian_is_positive_semi_definite_up_to_rounding(problem: Problem, w: Vector) -> None:
    H = hessian(problem, w)
    np.testing.assert_array_equal(H, H.T)
    assert np.linalg.eigvalsh(H).min() >= -1e-12 * max(1.0, np.abs(H).max())


def moments() -> st.SearchStrategy[Moments]:
    """Draw the moments of up to 8 weighted rows."""
    return problems(largest=1e3).map(lambda problem: Moments.of(problem.X, problem.sample_weight))


def assert_same(a: Moments, b: Moments) -> None:
    """Compare up to the rounding of columns within a thousand."""
    np.testing.assert_allclose(a.n, b.n, rtol=1e-12)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(a.m2, b.m2, rtol=1e-9, atol=1e-8)


@given(a=moments(), b=moments())
def test_merging_moments_is_commutative(a: Moments, b: Moments) -> None:
    assert_same(merge(a, b), merge(b, a))


@given(a=moments(), b=moments(), c=moments())
def test_merging_moments_is_associative(a: Moments, b: Moments, c: Moments) -> None:
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))


@given(problem=problems(largest=1e3), cut=st.integers(0, 30))
def test_however_rows_are_split_their_merged_moments_are_the_same(problem: Problem, cut: int) -> None:
    X = problem.X
    assert_same(merge(Moments.of(X[:cut]), Moments.of(X[cut:])), Moments.of(X))


@given(value=st.floats(-1e100, 1e100), n_rows=st.lists(st.integers(1, 60), min_size=1, max_size=5))
def test_a_constant_column_is_known_as_constant_however_it_was_merged(value: float, n_rows: list[int]) -> None:
    merged = Moments.zero(1)
    for n in n_rows:
        merged = merge(merged, Moments.of(np.full((n, 1), value)))
    assert merged.std() == [1.0]
