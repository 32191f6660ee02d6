"""A participant's rows on a real Dask cluster of two worker processes: the same model, and what becomes of losses."""

# ruff: noqa: S608 - the queries are the tests' own

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import duckdb
import pytest
from distributed import LocalCluster

from broker.schema import Feature, Label, Schema, Split
from fedmq.embedded import train_embedded
from fedmq.sites import Site
from fedmq.train import train_settings
from participant.errors import DataError
from participant.sources import Reading, Table
from participant.sources import dask as source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.messages import ReleasedModel

SCHEMA = Schema(
    features=(Feature("age"), Feature("bmi", missing="mean"), Feature("town", "categorical", missing="indicator")),
    label=Label("y"),
    split=Split("split"),
)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Give a cluster of two processes, which are ended with the test."""
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as running,
    ):
        address = running.scheduler_address
        yield running
        if client := source._clients.pop(address, None):
            client.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Give a folder with four files; a town that is first in one of them is last, or not at all, in others."""
    for at, (n_rows, towns) in enumerate(((300, "ABC"), (200, "CB"), (50, "D"), (120, "BDA"))):
        draw = f"hash(i * 31 + {at} * 7919 + {{}}) % 1000 / 1000.0"
        rows = (
            f"SELECT 50 + 10 * (a - b) AS age, if(c < 0.1, NULL, 20 + 10 * b) AS bmi, "
            f"if(c > 0.9, NULL, '{towns}'[1 + i % {len(towns)}]) AS town, (d < 0.3 + 0.4 * a)::INT AS y, "
            f"if(i % 4 = 3, 'test', 'train') AS split FROM (SELECT i, {draw.format(1)} AS a, {draw.format(2)} AS b, "
            f"{draw.format(3)} AS c, {draw.format(4)} AS d FROM range({n_rows}) AS t(i))"
        )
        duckdb.sql(f"COPY ({rows}) TO '{tmp_path}/{at}.parquet' (FORMAT parquet)")
    return tmp_path


def table(files: Path, cluster: LocalCluster | None = None) -> Table:
    """Return the rows, those on the ``cluster`` or those here."""
    return Reading(SCHEMA, str(files), scheduler="" if cluster is None else cluster.scheduler_address).table()


def fitted(*tables: Table, **options: Any) -> ReleasedModel:
    """Return the model that a federation of these sites releases."""
    sites = [Site(f"h{at}", Path("nowhere"), rows) for at, rows in enumerate(tables)]
    settings = train_settings(sites, options)
    training = train_embedded(sites, settings, slow={}, least_fit_seconds=0.0, on_progress=lambda _: None)
    return asyncio.run(training)


def assert_one_model(found: ReleasedModel, expected: ReleasedModel) -> None:
    """Compare the weights, their standard errors, and what the models are worth."""
    assert found.converged
    assert found.features == expected.features
    assert [*found.weights, found.intercept] == pytest.approx([*expected.weights, expected.intercept], rel=1e-12)
    for ours, theirs in zip(found.coefficients, expected.coefficients, strict=True):
        assert ours.std_error == pytest.approx(theirs.std_error, rel=1e-12)
    for ours, theirs in ((found.metrics.train, expected.metrics.train), (found.metrics.test, expected.metrics.test)):
        assert ours is not None
        assert theirs is not None
        assert ours.log_loss == pytest.approx(theirs.log_loss, rel=1e-12)
        assert ours.auc == pytest.approx(theirs.auc, rel=1e-12)


def test_a_federation_with_a_site_on_a_cluster_has_the_model_of_one_whose_rows_are_here(
    cluster: LocalCluster, files: Path
) -> None:
    other = table(files)
    options = {"l2": 0.01, "inference": "wald", "strategy": "newton"}  # by rounds: no update comes first by chance
    expected = fitted(table(files), other, **options)
    assert_one_model(fitted(table(files, cluster), other, **options), expected)


def test_rows_of_a_lost_worker_are_read_anew_and_the_model_is_the_same(cluster: LocalCluster, files: Path) -> None:
    rows = table(files, cluster)
    expected = fitted(table(files), l2=0.01)
    client = source._clients[cluster.scheduler_address]
    for lost in client.run(os.getpid).values():
        os.kill(lost, signal.SIGKILL)
    assert_one_model(fitted(rows, l2=0.01), expected)


def test_a_lost_scheduler_is_told_in_one_sentence(cluster: LocalCluster, files: Path) -> None:
    rows = table(files, cluster)
    address = cluster.scheduler_address
    cluster.close()
    for call in (rows.cluster.result, lambda _: table(files, cluster)):  # type: ignore[attr-defined]  # a clustered one
        with pytest.raises(DataError) as raised:
            call(rows.partitions[0])  # type: ignore[attr-defined]  # the same
        assert str(raised.value).startswith("the Dask ")
        assert address in str(raised.value)
        assert "\n" not in str(raised.value)
