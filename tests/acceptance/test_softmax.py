"""More than two classes: the digits of scikit-learn, split by label over five sites, one of which knows only zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from broker.messages import ReleasedModel
from fedmq.train import TrainRequest, train
from logistic import Problem, loss
from participant.settings import TableSettings

pytestmark = pytest.mark.acceptance

L2 = 0.01
SITES = {"zeros": [0], "low": [1, 2], "middle": [3, 4], "high": [5, 6], "top": [7, 8, 9]}


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X, y.astype(np.float64)


def train_on(folder: Path, digits: tuple[np.ndarray, np.ndarray], **options: object) -> ReleasedModel:
    X, y = digits
    sites = folder / "sites"
    sites.mkdir()
    for name, labels in SITES.items():
        rows = np.isin(y, labels)
        np.savez(sites / f"site-{name}.npz", X=X[rows], y=y[rows])
    request = TrainRequest(
        data=[sites],
        tables=TableSettings(classes=tuple(range(10))),
        out=folder / "model",
        options={"l2": L2, **options},
        slow=("zeros=10",),
        least_fit_seconds=0.005,
    )
    return train(request, on_progress=lambda _: None)


def test_sites_of_one_class_or_a_few_together_reach_the_pooled_optimum(
    tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    X, y = digits
    model = train_on(tmp_path, digits)
    assert model.converged
    assert model.classes == tuple(range(10))
    assert model.weights == ()
    assert len(model.by_class) == 10
    Z = StandardScaler().fit_transform(X)
    reference = LogisticRegression(C=1 / (L2 * len(y)), solver="newton-cg", tol=1e-12, max_iter=1000).fit(Z, y)
    best = np.column_stack([reference.coef_, reference.intercept_]).ravel()
    found = np.array([[*each.weights, each.intercept] for each in model.by_class]).ravel()
    pooled = Problem(Z, y, l2=L2, n_classes=10)
    assert loss(pooled, found) <= loss(pooled, best) * (1 + 1e-12)
    assert model.objective.value == pytest.approx(loss(pooled, best), rel=1e-9)
    assert np.abs(reference.predict_proba(Z) - probabilities(model, X)).max() < 1e-5


def probabilities(model: ReleasedModel, X: np.ndarray) -> np.ndarray:
    """Score by the coefficients on the original scale, as a consumer does."""
    margins = np.column_stack(
        [
            X @ [row.estimate for row in each.coefficients] + each.intercept_coefficient.estimate
            for each in model.by_class
        ]
    )
    e = np.exp(margins - margins.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_the_first_class_is_the_one_that_the_others_are_compared_with(
    tmp_path: Path, digits: tuple[np.ndarray, np.ndarray]
) -> None:
    model = train_on(tmp_path, digits)
    first, second = model.by_class[:2]
    assert all(row.estimate == 0.0 and row.std_error is None for row in first.coefficients)
    assert any(row.std_error is not None for row in second.coefficients)
