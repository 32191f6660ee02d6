from typing import Any

import numpy as np
import pytest

from logistic import (
    Moments,
    NonFiniteError,
    ParameterError,
    Problem,
    ShapeError,
    Standardisation,
    Vector,
    margins,
    merge_all,
)


@pytest.fixture
def scaling(rng: np.random.Generator) -> Standardisation:
    return Standardisation(rng.normal(size=4), rng.uniform(0.5, 3.0, size=4))


def test_standardised_rows_have_mean_0_and_population_std_1(problem: Problem) -> None:
    Z = Standardisation.from_moments(Moments.of(problem.X)).apply(problem.X)
    np.testing.assert_allclose(Z.mean(axis=0), 0.0, atol=1e-15)
    np.testing.assert_allclose(Z.std(axis=0), 1.0, rtol=1e-14)


def test_a_constant_column_is_only_centred() -> None:
    X = np.array([[5.0, 1.0], [5.0, 3.0]])
    Z = Standardisation.from_moments(Moments.of(X)).apply(X)
    np.testing.assert_array_equal(Z, [[0.0, -1.0], [0.0, 1.0]])


def test_identity_leaves_rows_and_weights_as_they_are(problem: Problem, rng: np.random.Generator) -> None:
    identity, w = Standardisation.identity(4), rng.normal(size=5)
    np.testing.assert_array_equal(identity.apply(problem.X), problem.X)
    np.testing.assert_array_equal(identity.to_original(w), w)
    np.testing.assert_array_equal(identity.to_standardised(w), w)


def test_a_model_gives_the_same_margins_on_either_scale(
    scaling: Standardisation, problem: Problem, rng: np.random.Generator
) -> None:
    w = rng.normal(size=5)
    standardised = margins(scaling.apply(problem.X), w)
    np.testing.assert_allclose(margins(problem.X, scaling.to_original(w)), standardised, rtol=1e-12, atol=1e-13)


def test_there_and_back_is_where_it_began(scaling: Standardisation, rng: np.random.Generator) -> None:
    w = rng.normal(size=5)
    np.testing.assert_allclose(scaling.to_standardised(scaling.to_original(w)), w, rtol=1e-13)
    np.testing.assert_allclose(scaling.to_original(scaling.to_standardised(w)), w, rtol=1e-13)


def test_the_hospitals_weights_on_the_original_scale_are_the_verified_ones(
    train: dict[str, Problem], expected: dict[str, Any]
) -> None:
    scaling = Standardisation.from_moments(merge_all(Moments.of(site.X) for site in train.values()))
    for fit in expected["fits"].values():
        w, raw = np.append(fit["w"], fit["b"]), np.append(fit["w_raw"], fit["b_raw"])
        np.testing.assert_allclose(scaling.to_original(w), raw, rtol=1e-12)
        np.testing.assert_allclose(scaling.to_standardised(raw), w, rtol=1e-11)


def test_the_rows_handed_in_are_left_as_they_were(scaling: Standardisation, problem: Problem) -> None:
    copy = problem.X.copy()
    scaling.apply(problem.X)
    np.testing.assert_array_equal(problem.X, copy)


def test_rows_and_weights_that_do_not_fit_are_refused(scaling: Standardisation) -> None:
    with pytest.raises(ShapeError, match="4 columns"):
        scaling.apply(np.zeros((2, 3)))
    for convert in (scaling.to_original, scaling.to_standardised):
        with pytest.raises(ShapeError, match=r"need \(5,\)"):
            convert(np.zeros(4))


@pytest.mark.parametrize(
    ("error", "mean", "scale"),
    [
        (ShapeError, np.zeros((1, 1)), np.ones((1, 1))),
        (ShapeError, np.zeros(1), np.ones(2)),
        (NonFiniteError, np.array([np.nan]), np.ones(1)),
        (NonFiniteError, np.zeros(1), np.array([np.inf])),
        (ParameterError, np.zeros(1), np.zeros(1)),
        (ParameterError, np.zeros(1), np.array([-1.0])),
    ],
)
def test_a_scale_that_cannot_be_undone_is_refused(error: type[Exception], mean: Vector, scale: Vector) -> None:
    with pytest.raises(error):
        Standardisation(mean, scale)
