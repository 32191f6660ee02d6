"""Tables as sites have them become a model: without a script before it, whatever the order of columns or the format."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from servers.rabbitmq import VHost

DATA = Path(__file__).parent.parent / "data"
HEART = DATA.parents[1] / "examples" / "heart_disease"
ORIGINAL = DATA / "heart_disease" / "original"
COLUMNS = [
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
]

pytestmark = pytest.mark.acceptance


def trained(out: Path, *arguments: str | Path, broker: str | None = None) -> dict[str, Any]:
    """Return the model's document that the command printed."""
    command = [sys.executable, "-P", "-m", "fedmq", "train", "--json", "--out", out, *arguments]
    environment = dict(os.environ) if broker is None else {**os.environ, "FEDMQ_BROKER": broker}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def estimates(model: dict[str, Any]) -> dict[str, float]:
    return {each["name"]: each["estimate"] for each in [*model["coefficients"], model["intercept_coefficient"]]}


def permuted(path: Path, to: Path) -> None:
    """Write the table at ``path`` with its columns in another order."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    order = list(range(len(rows[0])))
    random.Random(3).shuffle(order)
    assert order != sorted(order)
    with to.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([row[index] for index in order] for row in rows)


@pytest.mark.parametrize("strategy", ["newton", "fedavg"])
def test_columns_in_another_order_at_one_site_give_the_same_model_to_the_bit(tmp_path: Path, strategy: str) -> None:
    sites = tmp_path / "sites"
    sites.mkdir()
    for path in HEART.glob("site-*.csv"):
        (sites / path.name).write_bytes(path.read_bytes())
    permuted(HEART / "site-va.csv", sites / "site-va.csv")
    options = ["--split", "split", "--strategy", strategy, "--max-versions", "30"]
    as_it_was = trained(tmp_path / "a", "--data", *sorted(HEART.glob("site-*.csv")), *options)
    other = trained(tmp_path / "b", "--data", sites, *options)
    assert estimates(other) == estimates(as_it_was)
    assert other["weights"] == as_it_was["weights"]


def pooled_pipeline(l2: float) -> dict[str, float]:
    """Return the coefficients, on the original scale, of the same pipeline on the rows of all hospitals together."""
    tables = [pd.read_csv(path, names=COLUMNS, na_values="?") for path in sorted(ORIGINAL.glob("processed.*.data"))]
    rows = pd.concat(tables, ignore_index=True)
    assert len(rows) == 920
    rows[["chol", "trestbps"]] = rows[["chol", "trestbps"]].replace(0, np.nan)
    columns: dict[str, Any] = {}
    for name in COLUMNS[:-1]:
        levels = {"cp": (2, 3, 4), "restecg": (1, 2), "slope": (2, 3), "thal": (6, 7)}.get(name, ())
        for level in levels:
            gaps = rows[name].isna() if name == "restecg" else False
            columns[f"{name}={level}"] = np.where(gaps, np.nan, (rows[name] == level).astype(float))
        if not levels:
            columns[name] = rows[name]
        if name in {"slope", "ca", "thal"}:
            columns[f"{name}=(missing)"] = rows[name].isna().astype(float)
    X = SimpleImputer(strategy="mean").fit_transform(pd.DataFrame(columns).to_numpy(dtype=float))
    scaler = StandardScaler().fit(X)
    y = (rows["num"] > 0).to_numpy()
    fit = LogisticRegression(C=1.0 / (l2 * len(y)), solver="newton-cholesky", tol=1e-14, max_iter=1000)
    fit.fit(scaler.transform(X), y)
    slopes = fit.coef_[0] / scaler.scale_
    intercept = float(fit.intercept_[0] - slopes @ scaler.mean_)
    return dict(zip(columns, map(float, slopes), strict=True)) | {"(intercept)": intercept}


@pytest.mark.parametrize("l2", [0.001, 0.05])
def test_the_files_as_they_were_published_need_no_script(tmp_path: Path, l2: float) -> None:
    model = trained(tmp_path / "m", "--data", ORIGINAL, "--schema", ORIGINAL / "schema.toml", "--l2", str(l2))
    assert model["n_samples"] == 920
    assert model["converged"]
    found, expected = estimates(model), pooled_pipeline(l2)
    assert found.keys() == expected.keys(), "levels of all hospitals, merged"
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-8), name
    levels = {each["name"]: each["levels"] for each in model["feature_schema"]["features"]}
    assert levels["restecg"] == ["0", "1", "2"], "one of which three patients of Cleveland have"


@pytest.mark.rabbitmq
def test_the_schema_goes_with_each_site_to_its_own_process(vhost: VHost, tmp_path: Path) -> None:
    options = ["--data", ORIGINAL, "--schema", ORIGINAL / "schema.toml", "--strategy", "newton", "--min-cell", "1"]
    embedded = trained(tmp_path / "a", *options)
    served = trained(tmp_path / "b", *options, broker=vhost.amqp_url())
    assert served["weights"] == embedded["weights"]
    assert served["feature_schema"] == embedded["feature_schema"]
    assert [name for name in estimates(served) if "(other)" in name] == [], "each level may be told"


def test_a_site_whose_schema_differs_is_told_so_before_anything_is_trained(tmp_path: Path) -> None:
    """In one command all sites share the file; what differs is the table."""
    sites = tmp_path / "sites"
    sites.mkdir()
    for path in ORIGINAL.glob("processed.*.data"):
        (sites / path.name).write_bytes(path.read_bytes())
    broken = sites / "processed.va.data"
    broken.write_text(broken.read_text(encoding="utf-8").replace("63,1,4,140,", "63,1,4,987654,", 1), encoding="utf-8")
    command = [sys.executable, "-P", "-m", "fedmq", "train", "--data", sites, "--schema", ORIGINAL / "schema.toml"]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "m")], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"fedmq: {broken}, line 1, column 'trestbps': the cell is outside the range that the schema allows\n"
    )
    assert not (tmp_path / "m").exists()
