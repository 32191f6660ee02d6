"""The estimator is one of scikit-learn's, is what the command trains, and docs/python.md says nothing else.

Its suite for estimators takes some seconds: hundreds of federations of one site are trained on a broker in memory.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pooled import ROOT, SETS
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from fedmq import FederatedLogisticRegression
from fedmq.model_file import document

pytestmark = pytest.mark.acceptance

HEART = SETS["heart_disease"]
FILES = {path.stem.removeprefix("site-"): path for path in sorted(HEART.folder.glob("*.csv"))}
FRAMES = {name: pd.read_csv(path) for name, path in FILES.items()}

#: The one check that is passed over: it is skipped for every estimator unless SCIPY_ARRAY_API is set.
SKIPPED = {"check_array_api_input"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("parameters", [{}, {"missing": "mean"}, {"l1": 0.001}], ids=str)
def test_it_passes_every_check_of_scikit_learn(parameters: dict[str, Any]) -> None:
    done = check_estimator(FederatedLogisticRegression(**parameters))
    assert len(done) > 50
    assert {each["check_name"] for each in done if each["status"] != "passed"} <= SKIPPED


# --- the fit ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled() -> tuple[pd.DataFrame, pd.Series]:
    """Give the training rows of all sites."""
    rows = pd.concat(FRAMES.values())
    rows = rows[rows["split"] == "train"]
    return rows.drop(columns=["y", "split"]), rows["y"]


@pytest.mark.parametrize("sites", [FILES, FRAMES], ids=["files", "frames"])
def test_over_sites_it_is_the_pooled_fit_of_scikit_learn(sites: Any, pooled: Any) -> None:
    X, y = pooled
    scaler = StandardScaler().fit(X)
    reference = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(scaler.transform(X), y)
    coef = reference.coef_ / scaler.scale_
    fitted = FederatedLogisticRegression(split="split").fit(sites)
    np.testing.assert_allclose(fitted.coef_, coef, atol=1e-8, rtol=0)
    np.testing.assert_allclose(fitted.intercept_, reference.intercept_ - coef @ scaler.mean_, atol=1e-8, rtol=0)
    np.testing.assert_allclose(fitted.predict_proba(X), reference.predict_proba(scaler.transform(X)), atol=1e-8, rtol=0)
    np.testing.assert_array_equal(fitted.predict(X), reference.predict(scaler.transform(X)))


def test_it_ends_where_the_reference_of_the_data_does() -> None:
    fit = HEART.fits["lambda=0"]
    model = FederatedLogisticRegression(l2=0.0, split="split").fit(FRAMES).model_
    np.testing.assert_allclose(model.weights, fit["w"], atol=1e-8, rtol=0)
    np.testing.assert_allclose([row.std_error for row in model.coefficients], fit["se_raw"], rtol=1e-6)


def command(data: Path, out: Path, *more: str) -> Any:
    """Return the document of the model that the command trains."""
    given = ["--data", str(data), "--split", "split", "--out", str(out), "--json", *more]
    ended = subprocess.run([sys.executable, "-m", "fedmq", "train", *given], capture_output=True, check=True)
    return json.loads(ended.stdout)


def test_it_is_the_model_that_the_command_trains_bit_for_bit(tmp_path: Path) -> None:
    """By rounds: else whose update comes first differs from one training to the next, and so do the last digits."""
    expected = command(HEART.folder, tmp_path / "model", "--strategy", "newton")
    model = FederatedLogisticRegression(split="split", strategy="newton").fit(FRAMES).model_
    assert [*model.weights] == expected["weights"]
    assert model.objective.value == expected["objective"]["value"]
    assert [*model.features] == expected["features"]
    assert model.n_samples == expected["n_samples"]


def test_of_one_site_it_is_the_model_that_the_command_trains_bit_for_bit(tmp_path: Path) -> None:
    fitted = FederatedLogisticRegression(split="split").fit({"va": FRAMES["va"]})
    found = json.loads(json.dumps(document(fitted.model_)))
    assert found == command(FILES["va"], tmp_path / "model")


# --- the tools ----------------------------------------------------------------------------------------


def test_cross_validation_scores_it_as_it_scores_the_one_of_scikit_learn(pooled: Any) -> None:
    X, y = pooled
    ours = cross_val_score(FederatedLogisticRegression(), X, y, scoring="neg_log_loss")
    theirs = cross_val_score(
        make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10)), X, y, scoring="neg_log_loss"
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_grid_search_finds_a_penalty(pooled: Any) -> None:
    X, y = pooled
    grid = {"l2": np.logspace(-4, 0, 5)}
    search = GridSearchCV(FederatedLogisticRegression(inference="none"), grid, scoring="neg_log_loss").fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_params_["l2"] == grid["l2"][np.argmax(scores)] < 1.0
    assert search.best_estimator_.model_.objective.l2 == search.best_params_["l2"]


def test_it_ends_a_pipeline(pooled: Any) -> None:
    X, y = pooled
    pipeline = make_pipeline(SplineTransformer(n_knots=3, degree=2), FederatedLogisticRegression()).fit(X, y)
    assert pipeline.score(X, y) >= FederatedLogisticRegression().fit(X, y).score(X, y)
    assert pipeline[-1].n_features_in_ == pipeline[:-1].transform(X).shape[1]


def test_its_probabilities_can_be_calibrated(pooled: Any) -> None:
    X, y = pooled
    p = (
        CalibratedClassifierCV(FederatedLogisticRegression(inference="none"), method="sigmoid")
        .fit(X, y)
        .predict_proba(X)
    )
    assert p.shape == (len(y), 2)
    assert abs(p[:, 1].mean() - y.mean()) < 0.05


# --- the document -------------------------------------------------------------------------------------

PAGE = ROOT / "docs" / "python.md"
_BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


#: Of several sites' fits, no two are alike in these.
_VARYING = re.compile(r"(?<=version )\d+|(?<=step left )\S+")


def test_the_session_in_the_document_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    printed, n_compared = "", 0
    for kind, text in _BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(text, names)  # noqa: S102 - the document's own code
            printed = out.getvalue()
        else:
            said, found = (_VARYING.sub("(varies)", each) for each in (text, printed))
            how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(said, found, how), printed
            n_compared += 1
    assert n_compared == 4
