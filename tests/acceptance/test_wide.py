"""Very many sparse columns: the exact strategy for wide data, the same messages, and a model that fits into one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit

from fedmq.model_file import write_model
from fedmq.show import print_summary
from fedmq.train import TrainRequest, train
from participant import training
from participant.settings import TableSettings

if TYPE_CHECKING:
    from pathlib import Path

    from broker.messages import ReleasedModel

pytestmark = pytest.mark.acceptance

#: More columns than fit into a message with a table of coefficients.
N_COLUMNS, N_ROWS, PER_ROW = 200_000, 2_000, 30
SITES = ("north", "south", "west")
L2 = 1e-3


class Rows:
    """The rows of all sites in one place, as scipy has them."""

    def __init__(self, folder: Path, n_columns: int) -> None:
        self.folder = folder
        truth = np.random.default_rng(9).normal(size=n_columns)
        parts = [self._write(name, k, truth) for k, name in enumerate(SITES)]
        self.X = sparse.vstack([X for X, _, _ in parts], format="csr")
        self.y = np.concatenate([y for _, y, _ in parts])
        self.is_train = np.concatenate([is_train for _, _, is_train in parts])

    def _write(self, name: str, seed: int, truth: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """Draw the rows of a site, a few columns being in most of them and most in hardly any, and write its file."""
        rng = np.random.default_rng(seed)
        columns = [np.unique((truth.size ** rng.random(PER_ROW)).astype(np.int64)) for _ in range(N_ROWS)]
        indptr = np.concatenate([[0], np.cumsum([each.size for each in columns])])
        indices = np.concatenate(columns) - 1
        X = sparse.csr_matrix((rng.uniform(0.5, 2.0, indices.size), indices, indptr), shape=(N_ROWS, truth.size))
        y = (rng.random(N_ROWS) < expit(X @ truth / 2)).astype(float)
        is_train = rng.random(N_ROWS) < 0.75
        np.savez(
            self.folder / f"site-{name}.npz",
            data=X.data,
            indices=X.indices,
            indptr=X.indptr,
            shape=X.shape,
            y=y,
            is_train=is_train,
        )
        return X, y, is_train


def trained(rows: Rows, **options: Any) -> ReleasedModel:
    request = TrainRequest(
        data=[rows.folder], tables=TableSettings(), out=rows.folder / "model", options={"l2": L2, **options}
    )
    return train(request, on_progress=lambda _: None)


def largest_gradient(rows: Rows, model: ReleasedModel, *, standardise: bool) -> float:
    """Return the largest component of the gradient of F at a model whose weights are on the columns' own scale."""
    X, y, w = rows.X[rows.is_train], rows.y[rows.is_train], np.array(model.weights)
    residual = (expit(X @ w + model.intercept) - y) / y.size
    mean, scale = np.zeros(w.size), np.ones(w.size)
    if standardise:
        mean = np.asarray(X.mean(axis=0)).ravel()
        scale = np.sqrt(np.asarray(X.multiply(X).mean(axis=0)).ravel() - mean**2)
        scale[scale == 0.0] = 1.0
    slopes = (X.T @ residual - residual.sum() * mean) / scale + L2 * w * scale
    return float(max(np.abs(slopes).max(), abs(residual.sum())))


@pytest.mark.parametrize("standardise", [True, False], ids=["standardised", "as they are"])
def test_a_federation_of_very_many_sparse_columns_ends_at_the_pooled_optimum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, standardise: bool
) -> None:
    rows = Rows(tmp_path, N_COLUMNS)
    model = trained(rows, standardise=standardise)
    assert (model.strategy, model.converged) == ("lbfgs", True)
    assert (model.coefficients, model.standardisation.mean, len(model.weights)) == ((), (), N_COLUMNS)
    assert any("are left out" in note for note in model.notes)
    assert largest_gradient(rows, model, standardise=standardise) < 1e-10

    p = expit(rows.X @ np.array(model.weights) + model.intercept)[~rows.is_train]
    y = rows.y[~rows.is_train]
    assert model.metrics.test is not None
    assert model.metrics.test.log_loss == pytest.approx(-np.log(np.where(y == 1.0, p, 1.0 - p)).mean(), rel=1e-12)

    written = write_model(tmp_path / "model", model)
    assert json.loads(written.path.read_text())["weights"] == list(model.weights)
    print_summary(model, written, {})
    assert len(capsys.readouterr().out.splitlines()) < 60


def test_where_weights_do_not_fit_beside_the_gradient_the_model_is_the_same_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(tmp_path, 2_000)
    whole = trained(rows, l2=0.1, inference="none")
    left_out = []
    perform = training._sums

    def watched(*arguments: Any) -> dict[str, Any]:
        arrays = perform(*arguments)
        left_out.append("base" not in arrays)
        return arrays

    monkeypatch.setattr(training, "MAX_BODY_BYTES", 20_000)
    monkeypatch.setattr(training, "_sums", watched)
    assert trained(rows, l2=0.1, inference="none") == whole
    assert all(left_out)
    assert len(left_out) > 3 * len(SITES)
