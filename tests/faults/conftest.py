"""What the tests of faults share: each names the faults of the catalogue that it shows to be harmless."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*ids): the faults of docs/reliability.md that a test brings about")
