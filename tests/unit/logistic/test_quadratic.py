"""The quadratics that travel, and the bound that holds at every margin."""

import numpy as np
import pytest

from logistic.errors import ShapeError
from logistic.loss import curvature
from logistic.quadratic import majoriser, pack, unpack

MARGINS = np.array([-1e4, -30.0, -1.0, -1e-3, -1e-9, 0.0, 1e-12, 0.5, 7.0, 800.0])


def test_the_majoriser_is_a_quarter_at_zero_and_never_below_the_curvature() -> None:
    kappa = majoriser(MARGINS)
    np.testing.assert_allclose(kappa[[4, 5, 6]], 0.25, rtol=1e-15)
    assert (kappa >= curvature(MARGINS) * (1 - 1e-15)).all()
    assert np.isfinite(kappa).all()


@pytest.mark.parametrize("at", MARGINS)
def test_the_quadratic_of_the_majoriser_is_above_the_loss_at_every_margin(at: float) -> None:
    """log(1 + e^z) <= its value and slope at z_0, plus kappa(z_0) (z - z_0)^2 / 2."""
    z = np.linspace(-60, 60, 2001)
    slope = 1.0 / (1.0 + np.exp(-np.clip(at, -700, 700)))
    bound = np.logaddexp(0, at) + slope * (z - at) + majoriser(np.array([at]))[0] * (z - at) ** 2 / 2
    assert (np.logaddexp(0, z) <= bound + 1e-9 * (1 + abs(bound))).all()


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_symmetric_matrix_comes_back_as_it_was(n: int) -> None:
    A = np.random.default_rng(n).normal(size=(n, n))
    H = A + A.T
    assert pack(H).shape == (n * (n + 1) // 2,)
    np.testing.assert_array_equal(unpack(pack(H)), H)


@pytest.mark.parametrize("wrong", [np.zeros(2), np.zeros((3, 1))])
def test_what_is_no_upper_triangle_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="upper triangle of no square matrix"):
        unpack(wrong)
