"""The exact strategies end at the pooled fit, standard errors included, to the last digits, whoever is slow.

The references in tests/data were computed from the pooled rows with two other solvers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pooled import ROOT, SETS, Reference, a9a_sites

from broker.messages import ReleasedModel
from fedmq.train import TrainRequest, train
from participant.settings import TableSettings

pytestmark = pytest.mark.acceptance

FITS = [(name, fit) for name, reference in SETS.items() for fit in reference.fits]
IDS = [f"{name}, {fit}" for name, fit in FITS]


def trained(
    reference: Reference, fit: dict[str, Any], folder: Path, *, slow: str = "", **options: Any
) -> ReleasedModel:
    data = a9a_sites(folder) if reference.folder.name == "a9a" else reference.folder
    request = TrainRequest(
        data=[data],
        tables=TableSettings(label="y", split="split"),
        out=folder / "model",
        options={"l2": fit["lam"], "standardise": reference.standardised, **options},
        slow=(slow,) if slow else (),
        least_fit_seconds=0.002 if slow else 0.0,
    )
    return train(request, on_progress=lambda _: None)


@pytest.mark.parametrize(("name", "key"), FITS, ids=IDS)
def test_the_default_ends_at_the_pooled_fit(name: str, key: str, tmp_path: Path) -> None:
    reference = SETS[name]
    fit = reference.fits[key]
    model = trained(reference, fit, tmp_path)
    assert model.strategy == "incremental-newton"
    assert_is_pooled_fit(model, fit)
    assert_metrics_are_pooled(model, fit)
    if "se_z" in fit:
        found = np.array([c.std_error for c in model.coefficients])
        np.testing.assert_allclose(found, fit["se_raw"], rtol=1e-6)


def assert_is_pooled_fit(model: ReleasedModel, fit: dict[str, Any]) -> None:
    assert model.converged
    assert abs(model.objective.value / fit["loss_objective"] - 1) <= 1e-10
    assert np.abs(np.array(model.weights) - fit["w"]).max() <= 1e-8
    assert abs(model.intercept - fit["b"]) <= 1e-8


def assert_metrics_are_pooled(model: ReleasedModel, fit: dict[str, Any]) -> None:
    found, expected = model.metrics.test, fit["test"]
    assert found is not None
    assert found.accuracy == pytest.approx(expected["accuracy"], rel=1e-12)
    assert found.log_loss == pytest.approx(expected["logloss"], rel=1e-8)
    positives = expected["positives"]
    one_pair = 1.0 / (positives * (expected["n"] - positives))
    assert abs(found.auc - expected["auc"]) <= one_pair
    assert found.auc_tie_bound is not None


@pytest.mark.parametrize("strategy", ["incremental-newton", "newton", "lbfgs"])
@pytest.mark.parametrize("key", SETS["heart_disease"].fits)
def test_every_exact_strategy_ends_there_although_a_site_is_slow(strategy: str, key: str, tmp_path: Path) -> None:
    reference = SETS["heart_disease"]
    model = trained(reference, reference.fits[key], tmp_path, slow="cleveland=20", strategy=strategy)
    assert_is_pooled_fit(model, reference.fits[key])


def test_the_document_has_the_columns_that_statisticians_read(tmp_path: Path) -> None:
    from fedmq.model_file import document  # noqa: PLC0415 - of what is written, only here

    reference = SETS["heart_disease"]
    fit = reference.fits["lambda=0"]
    found = json.loads(json.dumps(document(trained(reference, fit, tmp_path))))
    np.testing.assert_allclose([row["std_error"] for row in found["coefficients"]], fit["se_raw"], rtol=1e-6)
    np.testing.assert_allclose([row["odds_ratio"] for row in found["coefficients"]], fit["odds_ratio_raw"], rtol=1e-7)
    assert ROOT.is_dir()
