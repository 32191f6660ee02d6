"""The estimator: what a fit leaves, what is refused, and how it runs in a notebook."""

from __future__ import annotations

import asyncio
import pickle
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

import fedmq
from fedmq import FederatedLogisticRegression
from fedmq.estimator import _run

RNG = np.random.default_rng(7)
X = RNG.normal(size=(90, 2)) * [3.0, 0.1] + [50.0, 0.0]
Z = (X - X.mean(axis=0)) / X.std(axis=0)
Y = (Z @ [1.0, -2.0] + RNG.logistic(size=90) > 0).astype(int)
THREE = np.clip(Y + (Z[:, 0] > 1.0), 0, 2)


def sites(y: Any = Y, rows: Any = X) -> dict[str, Any]:
    """Return the rows in three sites."""
    return {name: (rows[start::3], y[start::3]) for start, name in enumerate("abc")}


def model(**parameters: Any) -> FederatedLogisticRegression:
    return FederatedLogisticRegression(inference="none", **parameters)


# --- what a fit leaves --------------------------------------------------------------------------------


def test_several_sites_are_fitted_as_one_is() -> None:
    several, one = model().fit(sites()), model().fit(X, Y)
    np.testing.assert_allclose(several.coef_, one.coef_, rtol=1e-9)
    np.testing.assert_allclose(several.intercept_, one.intercept_, rtol=1e-9)
    assert [each.name for each in several.model_.participants] == ["a", "b", "c"]
    assert several.n_features_in_ == one.n_features_in_ == 2
    assert several.n_iter_ == several.model_.version


@pytest.mark.parametrize("labels", [np.array(["no", "yes"]), np.array([-1, 1]), np.array([2.0, 5.0])])
def test_labels_may_be_of_any_kind(labels: Any) -> None:
    fitted, coded = model().fit(sites(labels[Y])), model().fit(sites())
    assert fitted.classes_.tolist() == labels.tolist()
    np.testing.assert_allclose(fitted.coef_, coded.coef_, rtol=1e-9)
    np.testing.assert_array_equal(fitted.predict(X), labels[coded.predict(X)])


@pytest.mark.parametrize("y", [Y, THREE], ids=["two classes", "three"])
def test_decisions_and_probabilities_follow_from_the_coefficients(y: Any) -> None:
    fitted = model().fit(sites(y))
    n_outputs = 1 if len(fitted.classes_) == 2 else 3
    assert (fitted.coef_.shape, fitted.intercept_.shape) == ((n_outputs, 2), (n_outputs,))
    margins = X @ fitted.coef_.T + fitted.intercept_
    np.testing.assert_array_equal(fitted.decision_function(X), margins.ravel() if n_outputs == 1 else margins)
    e = np.exp(margins if n_outputs == 3 else np.column_stack([np.zeros(90), margins]))
    p = e / e.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(fitted.predict_proba(X), p, rtol=1e-9)
    np.testing.assert_allclose(fitted.predict_log_proba(X), np.log(p), rtol=1e-9)
    np.testing.assert_array_equal(fitted.predict(X), fitted.classes_[p.argmax(axis=1)])
    assert fitted.score(X, y) == np.mean(fitted.predict(X) == y)


@pytest.mark.parametrize("y", [Y, THREE], ids=["two classes", "three"])
def test_the_coefficients_are_those_of_the_document(y: Any) -> None:
    fitted = model().fit(sites(y))
    outputs = fitted.model_.by_class or [fitted.model_]
    document = np.array([[row.estimate for row in each.coefficients] for each in outputs])
    compared = fitted.coef_ - (fitted.coef_[0] if len(y[y == 2]) else 0.0)
    np.testing.assert_allclose(compared, document, rtol=1e-12, atol=1e-14)


def test_far_away_the_logarithms_of_probabilities_are_finite() -> None:
    fitted = model().fit(X, Y)
    assert np.isfinite(fitted.predict_log_proba(X * 1e6)).all()


def test_a_label_that_one_site_alone_has_is_a_class() -> None:
    fitted = model().fit({"low": (X[THREE < 2], THREE[THREE < 2]), "high": (X[THREE > 0], THREE[THREE > 0])})
    assert fitted.classes_.tolist() == [0, 1, 2]


def test_classes_may_be_said_when_no_site_has_them() -> None:
    fitted = model(classes=[2, 1, 0]).fit(sites())
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.coef_.shape == (3, 2)


def test_sites_that_are_files_have_the_classes_0_and_1(tmp_path: Any) -> None:
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    fitted = model().fit({"a": tmp_path / "a.npz"})
    np.testing.assert_allclose(fitted.coef_, model().fit(X, Y).coef_, rtol=1e-12)
    assert fitted.classes_.tolist() == [0, 1]


def test_columns_that_have_names_are_remembered_by_them() -> None:
    frame = pd.DataFrame(X, columns=["age", "bmi"])
    assert model().fit(frame, Y).model_.features == ("age", "bmi")
    fitted = model().fit({"a": (frame, Y), "b": (frame[["bmi", "age"]], Y)})
    assert fitted.feature_names_in_.tolist() == ["age", "bmi"]
    with pytest.raises(ValueError, match="feature names"):
        fitted.predict(frame[["bmi", "age"]])
    assert not hasattr(fitted.fit(sites()), "feature_names_in_")


def test_a_frame_has_the_columns_that_were_named() -> None:
    frame = pd.DataFrame(X, columns=["age", "bmi"]).assign(sick=Y, split="train", n=2.0)
    fitted = model(label="sick", split="split", sample_weight="n").fit({"a": frame})
    assert fitted.feature_names_in_.tolist() == ["age", "bmi"]
    np.testing.assert_allclose(fitted.model_.objective.l2, 1 / 180)


def test_weights_count_as_repeated_rows_do() -> None:
    counts = np.arange(90) % 3
    weighted = model().fit(X, Y, sample_weight=counts)
    repeated = model().fit(np.repeat(X, counts, axis=0), np.repeat(Y, counts))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-9)


def test_weights_of_classes_count_as_those_of_their_rows() -> None:
    of_classes = model(l2=0.0, class_weights={"yes": 3.0}).fit(X, np.array(["no", "yes"])[Y])
    of_rows = model(l2=0.0).fit(X, Y, sample_weight=1 + 2 * Y)
    np.testing.assert_allclose(of_classes.coef_, of_rows.coef_, rtol=1e-9)


TO_SPARSE = [scipy.sparse.csr_array, scipy.sparse.coo_matrix, scipy.sparse.dok_array]


@pytest.mark.parametrize("to_sparse", TO_SPARSE)
def test_sparse_rows_are_taken(to_sparse: Any) -> None:
    fitted = model().fit(to_sparse(X), Y)
    np.testing.assert_allclose(fitted.coef_, model().fit(X, Y).coef_, rtol=1e-9)
    np.testing.assert_allclose(fitted.predict_proba(to_sparse(X)), fitted.predict_proba(X), rtol=1e-12)


@pytest.mark.parametrize("standardise", [True, False])
def test_missing_cells_are_the_mean_of_all_sites_in_the_fit_and_after_it(standardise: bool) -> None:
    holed = X.copy()
    holed[::7, 0] = np.nan
    fitted = model(missing="mean", standardise=standardise).fit(sites(rows=holed))
    filled = np.where(np.isnan(holed), np.nanmean(holed, axis=0), holed)
    np.testing.assert_allclose(fitted.coef_, model(standardise=standardise).fit(filled, Y).coef_, rtol=1e-7)
    for rows in (holed, scipy.sparse.csr_array(holed)):
        np.testing.assert_allclose(fitted.predict_proba(rows), fitted.predict_proba(filled), rtol=1e-12)
    with pytest.raises(ValueError, match="NaN"):
        model().fit(X, Y).predict(holed)


def test_a_fit_that_stops_early_says_so() -> None:
    with pytest.warns(ConvergenceWarning, match="not converged"):
        fitted = model(strategy="fedavg", options={"max_versions": 2}).fit(sites())
    assert fitted.n_iter_ == 2


def test_it_is_cloned_and_pickled() -> None:
    fitted = FederatedLogisticRegression(l2=0.1).fit(sites())
    assert clone(fitted).get_params() == fitted.get_params()
    assert not hasattr(clone(fitted), "coef_")
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - bytes of our own
    assert again.model_ == fitted.model_
    np.testing.assert_array_equal(again.predict_proba(X), fitted.predict_proba(X))


# --- what people read ---------------------------------------------------------------------------------


def test_the_summary_is_what_the_command_prints() -> None:
    fitted = FederatedLogisticRegression().fit(sites())
    text = fitted.summary()
    assert repr(text) == text
    assert text.startswith(f"incremental-newton, converged: version {fitted.n_iter_}, 90 rows at 3 sites\n")
    assert "std error" in text
    assert "training, all sites" in text.splitlines()[-1]


def test_the_summary_says_what_labels_stand_for() -> None:
    text = model().fit(sites(np.array(["no", "yes"])[Y])).summary()
    assert text.splitlines()[-1] == "classes: 0 is no, 1 is yes"


def test_in_a_notebook_the_summary_is_a_text_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """What rich takes for a notebook, in which it displays each line by itself."""

    fitted = model().fit(X, Y)
    expected = fitted.summary()
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    assert fitted.summary() == expected


@pytest.mark.parametrize("strategy", ["auto", "fedbuff"])
def test_a_fit_prints_nothing(strategy: str, capfd: pytest.CaptureFixture[str]) -> None:
    model(strategy=strategy).fit(sites())
    assert capfd.readouterr() == ("", "")


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"l2": -1.0}, "the settings: l2: Input should be greater than or equal to 0"),
        ({"strategy": "nope"}, "there is no strategy 'nope': choose one of "),
        ({"options": {"nope": 1}}, "the settings: there is no setting 'nope'"),
        ({"options": {"l2": 1.0}}, "options: 'l2' is a parameter of its own; give it there"),
        ({"class_weights": {"yes": 2.0}}, "class_weights: there is no class 'yes'"),
        ({"classes": [0, 2]}, "site 'a': the label of row 1 is none of the classes that were given"),
    ],
)
def test_a_parameter_that_means_nothing_is_refused(parameters: dict[str, Any], sentence: str) -> None:
    y = np.array([0, 1, 0])
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        model(**parameters).fit({"a": (X[:3], y)})
    assert str(refused.value).startswith(sentence)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((X, Y * 0), "all rows that count are of one class: rows of another are needed"),
        ((X, Y, Y), "all rows that count are of one class: rows of another are needed"),
        ((X, Y, -1 * Y), "Negative values in data passed to `sample_weight`"),
        ((sites(), Y), "X is a mapping of sites: give each one's y and sample_weight there"),
        ((sites(), None, Y), "X is a mapping of sites: give each one's y and sample_weight there"),
        ((sites(Y + 7731.5),), "Unknown label type: continuous"),
        (({"a": (X, Y), "b": (X, Y.astype(str))},), "the labels are text at one site and numbers at another: use the"),
        ((X.astype(str) + " 7731 mg", Y), "X holds text where numbers belong; code it as numbers"),
        ((X * np.nan, Y), "Input X contains NaN"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(given: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        model().fit(*given)
    assert str(refused.value).startswith(sentence)
    assert "7731" not in str(refused.value)


def test_without_a_finite_estimate_it_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="separates the labels completely"):
        model(l2=0).fit([[1.0], [2.0], [3.0], [4.0]], [0, 0, 1, 1])
    assert capfd.readouterr() == ("", "")


def test_a_bug_is_not_taken_for_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("fedmq.estimator.train_settings", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        model().fit(X, Y)


# --- where it runs ------------------------------------------------------------------------------------


async def test_it_fits_while_an_event_loop_is_running() -> None:
    assert asyncio.get_running_loop().is_running()
    assert model().fit(X, Y).n_iter_ > 0


def test_an_interrupted_training_ends() -> None:
    main, ended = threading.get_ident(), threading.Event()

    async def interrupted() -> Any:
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    # A shell's background process ignores this signal from its start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            _run(interrupted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(10)


def test_it_is_imported_when_it_is_asked_for() -> None:
    assert "FederatedLogisticRegression" in dir(fedmq)
    with pytest.raises(AttributeError, match="module 'fedmq' has no attribute 'nope'"):
        fedmq.nope  # noqa: B018 - asking is what is tried


@pytest.mark.parametrize(
    ("missing", "error", "sentence"),
    [
        ("sklearn", "ImportError", "needs scikit-learn: pip install 'fedmq[sklearn]'"),
        ("numpy", "ModuleNotFoundError", "numpy"),
    ],
)
def test_without_scikit_learn_it_says_what_to_install(missing: str, error: str, sentence: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import fedmq; fedmq.FederatedLogisticRegression"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"{error}: ")
    assert sentence in last
