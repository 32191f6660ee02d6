"""Data that the tests of the mathematics share: small random problems, and the four hospitals' real rows."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logistic import Problem

ROOT = Path(__file__).resolve().parents[3]
EXPECTED = ROOT / "tests" / "data" / "heart_disease" / "expected.json"
SITES = ("cleveland", "hungarian", "switzerland", "va")


def _read(site: str, split: str, features: list[str]) -> Problem:
    with (ROOT / "examples" / "heart_disease" / f"site-{site}.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    X = np.array([[float(row[name]) for name in features] for row in rows])
    return Problem(X, np.array([float(row["y"]) for row in rows]))


@pytest.fixture(scope="session")
def expected() -> dict[str, Any]:
    """Read the verified answers."""
    answers: dict[str, Any] = json.loads(EXPECTED.read_text())
    return answers


@pytest.fixture(scope="session")
def train(expected: dict[str, Any]) -> dict[str, Problem]:
    """Each hospital's training rows, as they came."""
    return {site: _read(site, "train", expected["features"]) for site in SITES}


@pytest.fixture(scope="session")
def test(expected: dict[str, Any]) -> dict[str, Problem]:
    """Each hospital's held-out rows, as they came."""
    return {site: _read(site, "test", expected["features"]) for site in SITES}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    """50 weighted rows of 4 columns."""
    X = rng.normal(size=(50, 4))
    y = (rng.random(50) < 0.4).astype(float)
    return Problem(X, y, rng.uniform(0, 2, size=50), l2=0.1)
