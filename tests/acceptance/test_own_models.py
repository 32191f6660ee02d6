"""The local side: each site keeps the released model, makes its own, and is told which is better on its rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pooled import DATA, ROOT, SETS

from fedmq.own_models import OwnModels
from fedmq.train import TrainRequest, train
from participant.settings import TableSettings

if TYPE_CHECKING:
    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

BANK = DATA / "bank_marketing_year"
SITES = ("2008", "2009", "2010")
#: What differs between two trainings that end at the same model.
NAMES = ("federation", "epoch", "version", "plan_hash")


def command(out: Path, *more: str) -> list[str]:
    given = ["--data", str(BANK), "--l2", "0.001", "--out", str(out), "--site-intercepts", "--local-models", *more]
    return [sys.executable, "-m", "fedmq", "train", *given]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def local(out: Path, site: str) -> Any:
    return read(out / "sites" / site / "local.json")


def test_on_bank_marketing_the_local_model_wins_at_the_last_site_and_it_is_told_so(tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = subprocess.run(command(out), cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    model, of_2010 = read(out / "model.json"), local(out, "2010")
    tuned, compared = of_2010["fine_tuned"], of_2010["fine_tuned"]["comparison"]

    assert of_2010["verdict"] == tuned["verdict"]
    assert tuned["verdict"].startswith("the local model is better here: log-loss 0.6")
    assert tuned["verdict"].endswith(
        f" against 0.740 on 655 test rows (difference {compared['difference']:.3f}, "
        f"standard error {compared['std_error']:.3f})"
    )
    assert compared["difference"] > 4 * compared["std_error"]
    assert tuned["test"]["log_loss"] < of_2010["own_intercept"]["test"]["log_loss"] < 0.7
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("2010 ")]
    assert line.split()[1:3] == ["655", "0.740"]
    assert line.rstrip().endswith("its own is better here")
    for site in SITES:
        kept, found = read(out / "sites" / site / "global.json"), local(out, site)
        assert kept["coefficients"] == [
            {"name": each["name"], "estimate": each["estimate"]} for each in model["coefficients"]
        ], "the released model, to the bit"
        assert kept["weights"] == found["global"]["weights"] == model["weights"]
        for name in ("log_loss", "brier", "accuracy", "auc"):
            assert found["global"]["test"][name] == pytest.approx(model["metrics"]["test_by_site"][site][name])
        assert kept["version"] == found["version"] == model["version"]


def test_the_hospitals_each_get_a_verdict_that_their_rows_allow(tmp_path: Path) -> None:
    """One has rows of one class to train on, one too few rows to test on."""
    own = OwnModels(tmp_path, site_intercepts=True, local_models=True)
    reference = SETS["heart_disease"]
    tables = TableSettings(split="split")
    options = {"l2": 0.01}
    request = TrainRequest([reference.folder], tables, tmp_path / "model", options, own_models=own)
    train(request, on_progress=lambda _: None)
    verdicts = {site: own.document(site)["verdict"] for site in ("cleveland", "hungarian", "switzerland", "va")}  # type: ignore[index]
    assert verdicts["switzerland"].startswith("all training rows here are of class 1: fine-tuned on them")
    assert verdicts["hungarian"].startswith("no difference that these rows could tell")


@pytest.mark.rabbitmq
def test_over_rabbitmq_a_site_that_is_killed_while_it_makes_them_ends_with_the_same_models(
    vhost: VHost, tmp_path: Path
) -> None:
    """The aggregator has gone by then: the site goes on from what it had kept."""
    embedded = subprocess.run(
        command(tmp_path / "embedded", "--strategy", "newton"), cwd=ROOT, capture_output=True, check=False, timeout=200
    )
    assert embedded.returncode == 0, embedded.stderr
    state, work = tmp_path / "state", tmp_path / "work"
    work.mkdir()
    training = subprocess.Popen(
        command(tmp_path / "served", "--strategy", "newton", "--state", str(state)),
        cwd=ROOT,
        env={**os.environ, "FEDMQ_BROKER": vhost.amqp_url(), "TMPDIR": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    kill_while_it_makes_them("2008", state, work, training)
    printed, told = training.communicate(timeout=200)
    assert training.returncode == 0, told
    assert "participant_started" in (state / "site-2008.log").read_text().split("release_kept")[-1], "it began again"
    assert "test rows" in printed
    for site in SITES:
        first, second = ({**local(tmp_path / name, site), **dict.fromkeys(NAMES)} for name in ("embedded", "served"))
        assert first == second


def kill_while_it_makes_them(site: str, state: Path, work: Path, training: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and training.poll() is None:
        kept = list(work.glob(f"*/{site}/global.json"))
        if kept:
            os.kill(int((state / f"site-{site}.pid").read_text()), signal.SIGKILL)
            assert not kept[0].with_name("local.json").exists(), "it was quicker than this test"
            return
        time.sleep(0.005)
    raise AssertionError("no release was kept")
