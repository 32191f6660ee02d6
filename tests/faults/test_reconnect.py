"""Everybody comes back at once, measured by the benchmark that anyone can rerun."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(300)]

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "reconnect.py"


@pytest.mark.usefixtures("rabbitmq_programs")
@pytest.mark.fault("F42")
def test_two_hundred_services_are_served_again_within_a_minute_of_their_broker_being_back() -> None:
    command = [sys.executable, str(BENCHMARK), "--services", "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    # It ends with 1 where one of them needed longer.
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("200 services, 400 connections; ")
