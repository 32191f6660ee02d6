"""Weights, offsets, missing cells, l1: the federation fits what the same options fit on the pooled rows elsewhere."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from broker.messages import ReleasedModel
from fedmq.train import TrainRequest, train
from participant.settings import TableSettings

pytestmark = pytest.mark.acceptance

NAMES = ["a", "b", "c", "d"]


@dataclass(frozen=True)
class Rows:
    """Pooled rows, some cells missing, and which of three sites each is at."""

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray
    offset: np.ndarray
    site: np.ndarray


@pytest.fixture(scope="module")
def rows() -> Rows:
    rng = np.random.default_rng(5)
    site = rng.integers(0, 3, size=400)
    X = rng.normal(size=(400, 4)) * [1.0, 10.0, 0.1, 3.0] + site[:, np.newaxis] * [0.5, 2.0, 0.0, -1.0]
    offset = rng.normal(size=400) / 2
    margin = X @ [0.8, -0.05, 4.0, 0.2] + offset - 0.5
    y = (rng.random(400) < 1 / (1 + np.exp(-margin))).astype(float)
    return Rows(X, y, rng.integers(1, 4, size=400).astype(float), offset, site)


def fitted(
    rows: Rows, folder: Path, *, tables: TableSettings, X: np.ndarray | None = None, **options: object
) -> ReleasedModel:
    X = rows.X if X is None else X
    sites = folder / "sites"
    sites.mkdir()
    for number in range(3):
        with (sites / f"site-{number}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            named = [name for name in (tables.sample_weight, tables.offset) if name]
            writer.writerow([*NAMES, "y", *named])
            for j in np.flatnonzero(rows.site == number):
                cells = ["" if np.isnan(value) else repr(float(value)) for value in X[j]]
                extra = [repr(float(getattr(rows, name)[j])) for name in named]
                writer.writerow([*cells, int(rows.y[j]), *extra])
    request = TrainRequest(data=[sites], tables=tables, out=folder / "model", options=options)
    model = train(request, on_progress=lambda _: None)
    assert model.converged
    return model


def estimates(model: ReleasedModel) -> np.ndarray:
    return np.array([row.estimate for row in (*model.coefficients, model.intercept_coefficient)])


def std_errors(model: ReleasedModel) -> np.ndarray:
    return np.array([row.std_error for row in (*model.coefficients, model.intercept_coefficient)])


@pytest.mark.parametrize("inference", ["wald", "sandwich"])
def test_offset_and_sample_weights_are_those_of_a_pooled_glm(rows: Rows, tmp_path: Path, inference: str) -> None:
    tables = TableSettings(sample_weight="weight", offset="offset")
    model = fitted(rows, tmp_path, tables=tables, l2=0.0, inference=inference)
    design = np.column_stack([rows.X, np.ones(400)])
    glm = sm.GLM(rows.y, design, family=sm.families.Binomial(), offset=rows.offset, freq_weights=rows.weight).fit(
        tol=1e-14
    )
    np.testing.assert_allclose(estimates(model), glm.params, rtol=1e-8)
    if inference == "wald":
        np.testing.assert_allclose(std_errors(model), glm.bse, rtol=1e-6)
        assert model.inference.statistics.deviance == pytest.approx(glm.deviance, rel=1e-9)
        assert model.inference.statistics.null_deviance is None
    else:
        residual = rows.weight * (rows.y - glm.fittedvalues)
        bread = np.linalg.inv(design.T @ (design * (rows.weight * glm.fittedvalues * (1 - glm.fittedvalues))[:, None]))
        covariance = bread @ ((design * residual[:, None]).T @ (design * residual[:, None])) @ bread
        np.testing.assert_allclose(std_errors(model), np.sqrt(np.diag(covariance)), rtol=1e-6)


def test_class_weights_are_those_of_scikit_learn(rows: Rows, tmp_path: Path) -> None:
    model = fitted(rows, tmp_path, tables=TableSettings(), l2=0.05, class_weights=(1.0, 3.0))
    Z = StandardScaler().fit_transform(rows.X)
    n = np.where(rows.y == 1, 3.0, 1.0).sum()
    pooled = LogisticRegression(C=1 / (0.05 * n), class_weight={0: 1.0, 1: 3.0}, solver="newton-cg", tol=1e-12)
    pooled.fit(Z, rows.y)
    np.testing.assert_allclose(model.weights, pooled.coef_[0], rtol=1e-6)
    np.testing.assert_allclose(model.intercept, pooled.intercept_[0], rtol=1e-6)


def test_missing_cells_are_filled_with_the_mean_of_all_sites(rows: Rows, tmp_path: Path) -> None:
    X = rows.X.copy()
    X[np.random.default_rng(6).random(X.shape) < 0.2] = np.nan
    X[rows.site == 1, 2] = np.nan  # one site has never measured it
    model = fitted(rows, tmp_path, tables=TableSettings(missing="mean"), X=X, l2=0.01, missing="mean")
    Z = StandardScaler().fit_transform(SimpleImputer().fit_transform(X))
    pooled = LogisticRegression(C=1 / (0.01 * 400), solver="newton-cg", tol=1e-12).fit(Z, rows.y)
    np.testing.assert_allclose(model.weights, pooled.coef_[0], rtol=1e-6)
    np.testing.assert_allclose(model.intercept, pooled.intercept_[0], rtol=1e-6)


def test_elastic_net_fulfils_the_conditions_for_its_minimum(rows: Rows, tmp_path: Path) -> None:
    l1, l2 = 0.06, 0.02
    model = fitted(rows, tmp_path, tables=TableSettings(), l1=l1, l2=l2)
    Z, w = StandardScaler().fit_transform(rows.X), np.array(model.weights)
    residual = 1 / (1 + np.exp(-(Z @ w + model.intercept))) - rows.y
    gradient = Z.T @ residual / 400 + l2 * w
    assert abs(residual.mean()) < 1e-9
    assert (w == 0).any()
    assert (w != 0).any()
    np.testing.assert_allclose(gradient[w != 0], -l1 * np.sign(w[w != 0]), atol=1e-9)
    assert (np.abs(gradient[w == 0]) <= l1).all()
    assert all(row.std_error is None for row in model.coefficients)
    assert "l1" in model.inference.why


def test_each_point_of_a_path_is_the_fit_for_its_penalty(rows: Rows, tmp_path: Path) -> None:
    model = fitted(rows, tmp_path, tables=TableSettings(), l2=0.001, path=8)
    assert len(model.path) == 8
    assert model.path[0].n_nonzero == 0
    assert model.path[-1].n_nonzero == 4
    Z = StandardScaler().fit_transform(rows.X)
    for point in model.path:
        w = np.array(point.weights)
        residual = 1 / (1 + np.exp(-(Z @ w[:-1] + w[-1]))) - rows.y
        gradient = Z.T @ residual / 400 + 0.001 * w[:-1]
        assert abs(residual.mean()) < 1e-8
        assert (np.abs(gradient) <= point.l1 * (1 + 1e-9) + 1e-9).all()
        chosen = w[:-1] != 0
        np.testing.assert_allclose(gradient[chosen], -point.l1 * np.sign(w[:-1][chosen]), atol=1e-8)
