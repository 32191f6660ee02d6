"""The first command a newcomer runs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def test_demo_trains_within_20_seconds_and_every_hospital_is_at_least_as_good_as_alone(tmp_path: Path) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "fedmq", "demo", "--out", str(tmp_path / "model")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 20

    model = json.loads((tmp_path / "model" / "model.json").read_text())
    assert model["metrics"]["test"]["auc"] >= 0.87
    lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.split()}
    for hospital in HOSPITALS:
        *alone, federation, _pooled = lines[hospital][3:]
        if hospital == "switzerland":
            assert alone == ["cannot", "train", "*"]
        else:
            assert float(federation) >= float(alone[0])
    assert "all 30 training rows of switzerland are with the disease" in done.stdout


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "fedmq", "--help"], cwd=ROOT, capture_output=True, check=True, timeout=30)
        return time.monotonic() - began

    assert min(seconds() for _ in range(5)) < 0.4
