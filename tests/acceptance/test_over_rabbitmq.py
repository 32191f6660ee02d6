"""The product's own commands over a real broker, with each service in a process of its own."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.acceptance, pytest.mark.rabbitmq, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "heart_disease"
EXPECTED = json.loads((ROOT / "tests" / "data" / "heart_disease" / "expected.json").read_text())
OPTIMUM = EXPECTED["fits"]["lambda=0.01"]["loss_objective"]


def _command(out: Path, *more: str) -> list[str]:
    given = ["--data", str(DATA), "--label", "y", "--split", "split", "--l2", "0.01", "--out", str(out), "--json"]
    return [sys.executable, "-m", "fedmq", "train", *given, *more]


def _train(out: Path, *more: str, broker: str | None = None) -> dict[str, Any]:
    done = _run(_command(out, *more), broker)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _run(command: Sequence[str], broker: str | None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) if broker is None else {**os.environ, "FEDMQ_BROKER": broker}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_fedavg_gives_identical_coefficients_embedded_and_over_rabbitmq(vhost: VHost, tmp_path: Path) -> None:
    options = ("--strategy", "fedavg", "--max-versions", "40", "--tolerance", "0", "--patience", "1000")
    embedded = _train(tmp_path / "embedded", *options)
    served = _train(tmp_path / "served", *options, broker=vhost.amqp_url())
    assert served["weights"] == embedded["weights"]
    assert served["intercept"] == embedded["intercept"]
    assert served["coefficients"] == embedded["coefficients"]
    assert served["metrics"] == embedded["metrics"]


def test_version_continues_and_nothing_is_counted_twice_after_the_aggregator_is_killed(
    vhost: VHost, tmp_path: Path
) -> None:
    state, out = tmp_path / "state", tmp_path / "model"
    training = subprocess.Popen(
        _command(out, "--state", str(state), "--fit-seconds", "0.05"),
        cwd=ROOT,
        env={**os.environ, "FEDMQ_BROKER": vhost.amqp_url()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed_at = []
    for version in (8, 20):
        killed_at.append(_wait_for_version(state, version, training))
        os.kill(int((state / "aggregator.pid").read_text()), signal.SIGKILL)
    printed, told = training.communicate(timeout=200)
    assert training.returncode == 0, told
    model = json.loads(printed)

    rows = _rows(state, "SELECT * FROM ledger")
    included = [row for row in rows if row["included_in"] is not None]
    per_version = {(row["participant"], row["base_version"]) for row in included}
    assert len(per_version) == len(included), "an update from one version is included once"
    assert sum(each["updates_included"] for each in model["participants"]) == len(included)
    versions = [row["version"] for row in _rows(state, "SELECT version FROM versions ORDER BY version")]
    assert versions == list(range(versions[0], model["version"] + 1)), "versions rise by one through the restarts"
    assert model["version"] > max(killed_at)
    assert model["epoch"] == 3, "each start raises the epoch"
    assert model["objective"]["value"] / OPTIMUM - 1 <= 0.02


def _wait_for_version(state: Path, wanted: int, training: subprocess.Popen[str]) -> int:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and training.poll() is None:
        found = [row["version"] for row in _rows(state, "SELECT MAX(version) AS version FROM versions")]
        if found and found[0] is not None and found[0] >= wanted and (state / "aggregator.pid").exists():
            return int(found[0])
        time.sleep(0.01)
    raise AssertionError(f"version {wanted} did not come")


def _rows(state: Path, query: str) -> list[sqlite3.Row]:
    path = state / "aggregator.sqlite"
    if not path.exists():
        return []
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    database.row_factory = sqlite3.Row
    try:
        return database.execute(query).fetchall()
    except sqlite3.OperationalError:  # its tables are being made
        return []
    finally:
        database.close()


def test_a_process_that_knows_nothing_of_ours_receives_the_model_and_scores_with_it(
    vhost: VHost, tmp_path: Path
) -> None:
    url = vhost.amqp_url()
    rows = DATA / "site-va.csv"
    script = ROOT / "examples" / "score_released.py"
    assert not {"fedmq", "broker", "logistic"} & set(script.read_text().replace(".", " ").split("import", 1)[1].split())
    # The exchange is there before downstream is, as deploy/make_secrets.py sees to it.
    exchange = {"type": "topic", "durable": True}
    vhost.rabbitmq.api("PUT", "exchanges", vhost.name, "fedmq.released", body=exchange)
    downstream = subprocess.Popen(
        [sys.executable, "-I", str(script), url, str(rows)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert downstream.stderr is not None
    assert downstream.stderr.readline() == "waiting for a model\n"
    model = _train(tmp_path / "model", broker=url)
    printed, _ = downstream.communicate(timeout=60)
    scores = np.array([float(line) for line in printed.split()])

    with rows.open() as file:
        table = [[float(row[name]) for name in model["features"]] for row in csv.DictReader(file)]
    scaled = (np.array(table) - model["standardisation"]["mean"]) / model["standardisation"]["scale"]
    margins = scaled @ np.array(model["weights"]) + model["intercept"]
    assert np.allclose(scores, 1 / (1 + np.exp(-margins)), atol=1e-6)
    assert len(scores) == 130


def test_the_released_queue_keeps_the_model_for_whoever_comes_later(vhost: VHost, tmp_path: Path) -> None:
    """Debian's AMQP tools, which know nothing but AMQP, find the model after the training has ended."""
    url = vhost.amqp_url()
    model = _train(tmp_path / "model", broker=url)
    queue = f"fedmq.{model['federation']}.released"
    done = subprocess.run(["amqp-get", "--url", url, "--queue", queue], capture_output=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert b"intercept_coefficient" in done.stdout


def test_incremental_newton_is_the_pooled_fit_with_a_straggler_and_an_aggregator_that_is_killed(
    vhost: VHost, tmp_path: Path
) -> None:
    state, out = tmp_path / "state", tmp_path / "model"
    options = ("--strategy", "incremental-newton", "--fit-seconds", "0.05", "--slow", "hungarian=10")
    training = subprocess.Popen(
        _command(out, "--state", str(state), *options),
        cwd=ROOT,
        env={**os.environ, "FEDMQ_BROKER": vhost.amqp_url()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_version(state, 5, training)
    os.kill(int((state / "aggregator.pid").read_text()), signal.SIGKILL)
    printed, told = training.communicate(timeout=200)
    assert training.returncode == 0, told
    model = json.loads(printed)
    fit = EXPECTED["fits"]["lambda=0.01"]
    assert model["converged"]
    assert model["epoch"] == 2
    assert abs(model["objective"]["value"] / OPTIMUM - 1) <= 1e-10
    assert np.abs(np.array(model["weights"]) - fit["w"]).max() <= 1e-8
    assert abs(model["intercept"] - fit["b"]) <= 1e-8
    assert model["metrics"]["test"]["accuracy"] == pytest.approx(fit["test"]["accuracy"], rel=1e-12)


def test_an_aggregator_that_is_asked_to_end_in_the_middle_is_started_again_and_no_file_here_is_imported(
    vhost: VHost, tmp_path: Path
) -> None:
    (tmp_path / "broker.py").write_text("raise SystemExit('the folder where the user stands was imported')")
    state = tmp_path / "state"
    training = subprocess.Popen(
        [sys.executable, "-P", *_command(tmp_path / "model", "--state", str(state), "--fit-seconds", "0.05")[1:]],
        cwd=tmp_path,
        env={**os.environ, "FEDMQ_BROKER": vhost.amqp_url(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_version(state, 5, training)
    os.kill(int((state / "aggregator.pid").read_text()), signal.SIGTERM)
    printed, told = training.communicate(timeout=200)
    assert training.returncode == 0, told
    assert json.loads(printed)["epoch"] == 2
