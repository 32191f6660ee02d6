from typing import Any

import numpy as np
import pytest

from logistic import Moments, NonFiniteError, ParameterError, Problem, ShapeError, Vector, merge, merge_all


def test_moments_are_numpys_mean_and_population_variance(rng: np.random.Generator) -> None:
    X = rng.normal(5.0, 2.0, size=(40, 3))
    moments = Moments.of(X)
    assert moments.n == 40.0
    np.testing.assert_allclose(moments.mean, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.m2, 40 * X.var(axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.std(), X.std(axis=0), rtol=1e-13)


def test_a_weight_of_two_is_the_row_twice(rng: np.random.Generator) -> None:
    X = rng.normal(size=(4, 2))
    weighted, repeated = Moments.of(X, np.array([2.0, 1, 0, 1])), Moments.of(X[[0, 0, 1, 3]])
    assert weighted.n == repeated.n
    np.testing.assert_allclose(weighted.mean, repeated.mean, rtol=1e-14)
    np.testing.assert_allclose(weighted.m2, repeated.m2, rtol=1e-13)


def test_merging_sites_gives_the_moments_of_the_pooled_rows(
    train: dict[str, Problem], expected: dict[str, Any]
) -> None:
    merged = merge_all(Moments.of(site.X) for site in train.values())
    assert merged.n == expected["n_train"]
    np.testing.assert_allclose(merged.mean, expected["mean"], rtol=1e-13)
    np.testing.assert_allclose(merged.std(), expected["std"], rtol=1e-13)


def test_a_large_offset_costs_no_digits_of_the_spread(rng: np.random.Generator) -> None:
    X = rng.normal(size=(1000, 1))
    near, far = Moments.of(X), merge(Moments.of(X[:300] + 2.0**30), Moments.of(X[300:] + 2.0**30))
    np.testing.assert_allclose(far.std(), near.std(), rtol=1e-8)


def test_merging_with_nothing_changes_nothing_at_all(rng: np.random.Generator) -> None:
    moments = Moments.of(rng.normal(size=(5, 2)))
    assert merge(moments, Moments.zero(2)) is moments
    assert merge(Moments.zero(2), moments) is moments


def test_merging_nothing_with_nothing_is_nothing() -> None:
    assert merge(Moments.zero(2), Moments.zero(2)).n == 0.0


@pytest.mark.parametrize("weights", [None, np.zeros(3)], ids=["no rows", "no weight"])
def test_without_weight_the_moments_are_zero(weights: Vector | None) -> None:
    X = np.empty((0, 2)) if weights is None else np.ones((3, 2))
    moments = Moments.of(X, weights)
    assert moments.n == 0.0
    np.testing.assert_array_equal(moments.mean, [0.0, 0.0])
    np.testing.assert_array_equal(moments.std(), [1.0, 1.0])


@pytest.mark.parametrize("value", [0.0, 0.1, -1 / 3, 1e9 / 7, 1e-300])
def test_a_constant_column_has_std_1_however_it_was_merged(value: float) -> None:
    parts = [Moments.of(np.full((n_rows, 1), value)) for n_rows in (7, 1000, 13)]
    assert merge_all(parts).std() == [1.0]


def test_a_column_that_varies_in_its_ninth_digit_is_not_constant() -> None:
    X = np.array([[1.0], [1.0 + 1e-9]])
    np.testing.assert_allclose(Moments.of(X).std(), [0.5e-9], rtol=1e-6)


def test_a_column_about_zero_is_not_constant_however_small() -> None:
    assert Moments.of(np.array([[1e-30], [-1e-30]])).std() == pytest.approx([1e-30])


def test_numbers_of_columns_must_agree() -> None:
    with pytest.raises(ShapeError, match="2 and of 3 columns"):
        merge(Moments.zero(2), Moments.zero(3))


def test_merging_no_moments_at_all_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"Moments\.zero"):
        merge_all([])


def test_rows_that_are_no_matrix_are_refused() -> None:
    with pytest.raises(ShapeError, match="n_rows, n_features"):
        Moments.of(np.zeros(3))


def test_a_weight_for_every_row_is_needed() -> None:
    with pytest.raises(ShapeError, match="3 rows"):
        Moments.of(np.zeros((3, 1)), np.ones(2))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200], ids=["nan", "infinity", "overflowing square"])
def test_a_column_without_finite_moments_is_refused(bad: float) -> None:
    with pytest.raises(NonFiniteError):
        Moments.of(np.array([[bad], [0.0]]))


def test_means_too_far_apart_to_square_are_refused() -> None:
    with pytest.raises(NonFiniteError):
        merge(Moments(1.0, np.array([1e200]), np.zeros(1)), Moments(1.0, np.zeros(1), np.zeros(1)))


@pytest.mark.parametrize(
    ("error", "n", "mean", "m2"),
    [
        (ShapeError, 1.0, np.zeros((1, 1)), np.zeros((1, 1))),
        (ShapeError, 1.0, np.zeros(1), np.zeros(2)),
        (NonFiniteError, np.inf, np.zeros(1), np.zeros(1)),
        (NonFiniteError, 1.0, np.zeros(1), np.array([np.nan])),
        (ParameterError, -1.0, np.zeros(1), np.zeros(1)),
        (ParameterError, 1.0, np.zeros(1), np.array([-1.0])),
    ],
)
def test_moments_that_no_rows_could_have_are_refused(
    error: type[Exception], n: float, mean: Vector, m2: Vector
) -> None:
    with pytest.raises(error):
        Moments(n, mean, m2)
