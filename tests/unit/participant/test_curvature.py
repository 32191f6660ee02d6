"""The quadratic of a participant's rows, and the safeguard in it."""

from dataclasses import replace

import numpy as np
import pytest

from broker.messages import ModelUpdate
from logistic.loss import gradient_sum, hessian_sum, log_loss_sum
from logistic.problem import Problem
from logistic.quadratic import majoriser, unpack
from participant.curvature import next_theta, quadratic

RNG = np.random.default_rng(5)
PROBLEM = Problem(RNG.normal(size=(40, 2)), (RNG.random(40) < 0.5).astype(float), l2=0.1)
W = np.array([0.3, -0.2, 0.1])


def sent(weights: np.ndarray, theta: float) -> ModelUpdate:
    """Return the update that went out from ``weights`` with this ``theta``."""
    arrays = {**quadratic(PROBLEM, weights, None), "theta": np.array([theta])}
    loss = log_loss_sum(PROBLEM, weights) / PROBLEM.n_samples
    return ModelUpdate("f", "a", "i", 1, "curvature", 1, "h", PROBLEM.n_samples, loss, 0.0, arrays)


def test_the_first_one_is_taken_with_the_majoriser() -> None:
    arrays = quadratic(PROBLEM, W, None)
    assert arrays["theta"] == [1.0]
    np.testing.assert_array_equal(arrays["base"], W)
    np.testing.assert_array_equal(arrays["gradient"], gradient_sum(PROBLEM, W))
    np.testing.assert_allclose(unpack(arrays["hessian"]), hessian_sum(PROBLEM, W, kappa=majoriser), rtol=1e-14)


def test_without_theta_it_is_newtons() -> None:
    arrays = quadratic(PROBLEM, W, sent(W, 0.01))
    assert arrays["theta"] == [0.0]
    np.testing.assert_allclose(unpack(arrays["hessian"]), hessian_sum(PROBLEM, W), rtol=1e-14)


@pytest.mark.parametrize(("theta", "after"), [(1.0, 0.1), (0.1, 0.01), (0.01, 0.0), (0.0, 0.0)])
def test_theta_falls_to_a_tenth_while_predictions_hold(theta: float, after: float) -> None:
    near = W + 1e-4
    assert next_theta(sent(W, theta), near, log_loss_sum(PROBLEM, near)) == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize(("theta", "after"), [(0.0, 0.25), (0.1, 0.4), (0.5, 1.0), (1.0, 1.0)])
def test_theta_grows_where_the_loss_is_higher_than_was_predicted(theta: float, after: float) -> None:
    far = W + 3.0
    assert next_theta(sent(W, theta), far, 1e6) == pytest.approx(after, rel=1e-12)


def test_rounding_at_the_optimum_is_no_shortfall() -> None:
    last = sent(W, 0.0)
    loss = log_loss_sum(PROBLEM, W)
    assert next_theta(last, W, loss * (1 + 1e-15)) == 0.0
    assert next_theta(replace(last, loss=last.loss * (1 - 1e-15)), W, loss) == 0.0
