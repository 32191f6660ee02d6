"""What is loaded, and when: a site installs and starts what it needs, and nothing of what tests compare with."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache

import pytest

#: Heavy ones, which no service may need; tests and extras may.
HEAVY = {"scipy", "sklearn", "pandas", "duckdb", "onnx", "statsmodels", "matplotlib"}

_LIST = "import sys, json, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"


@cache
def loaded_by(module: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has after importing ``module``."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LIST.format(module=module)], capture_output=True, check=True
    )
    return set(json.loads(ended.stdout))


@pytest.mark.parametrize(
    "module",
    ["fedmq", "fedmq.cli", "fedmq.train", "fedmq.services", "participant.service", "aggregator.service"],
)
def test_nothing_heavy_is_loaded(module: str) -> None:
    assert loaded_by(module) & HEAVY == set()


def test_import_fedmq_loads_nothing_but_itself() -> None:
    assert loaded_by("fedmq") & {"numpy", "aio_pika", "pydantic", "rich", "click", "broker", "aggregator"} == set()


def test_the_command_line_is_there_before_the_services_are_loaded() -> None:
    assert loaded_by("fedmq.cli") & {"numpy", "aio_pika", "pydantic", "rich", "broker", "aggregator"} == set()


def test_a_participant_loads_no_aggregator_and_an_aggregator_no_participant() -> None:
    assert "aggregator" not in loaded_by("participant.service")
    assert "participant" not in loaded_by("aggregator.service")
