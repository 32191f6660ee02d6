"""The exact strategies end at the pooled fit, to the last digits, whoever is slow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
FITS = json.loads((ROOT / "tests" / "data" / "heart_disease" / "expected.json").read_text())["fits"]


@pytest.mark.parametrize("strategy", ["incremental-newton", "newton"])
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_coefficients_objective_and_metrics_are_those_of_the_pooled_fit(
    tmp_path: Path, strategy: str, fit: dict[str, object]
) -> None:
    command = [sys.executable, "-m", "fedmq", "train", "--data", "examples/heart_disease", "--label", "y"]
    command += ["--split", "split", "--l2", str(fit["lam"]), "--strategy", strategy, "--out", str(tmp_path / "model")]
    command += ["--fit-seconds", "0.005", "--slow", "cleveland=20", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)
    assert model["converged"]
    assert abs(model["objective"]["value"] / fit["loss_objective"] - 1) <= 1e-10
    assert np.abs(np.array(model["weights"]) - fit["w"]).max() <= 1e-8
    assert abs(model["intercept"] - fit["b"]) <= 1e-8
    original = {row["name"]: row["estimate"] for row in model["coefficients"]}
    np.testing.assert_allclose(list(original.values()), fit["w_raw"], rtol=1e-8)
    for rows in ("train", "test"):
        assert model["metrics"][rows]["accuracy"] == pytest.approx(fit[rows]["accuracy"], rel=1e-12)
        assert model["metrics"][rows]["log_loss"] == pytest.approx(fit[rows]["logloss"], rel=1e-10)
        assert model["metrics"][rows]["brier"] == pytest.approx(fit[rows]["brier"], rel=1e-10)
