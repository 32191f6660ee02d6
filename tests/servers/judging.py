"""What must hold at the end of a training, whatever has befallen it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from servers.standing import DATA, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

FIT = json.loads((DATA / "expected.json").read_text())["fits"]["lambda=0.01"]
TOLERANCE = 1e-8


def assert_is_the_pooled_fit(model: Mapping[str, Any]) -> None:
    """The coefficients are those of all rows in one place."""
    assert model["converged"]
    assert np.abs(np.array(model["weights"]) - FIT["w"]).max() <= TOLERANCE
    assert abs(model["intercept"] - FIT["b"]) <= TOLERANCE


def assert_is_clean(verdict: Verdict) -> None:
    """Nothing is lost, counted twice or altered; versions rise by one; nothing was refused but repetitions."""
    assert verdict.is_clean, verdict
    assert not set(verdict.refused) - {"duplicate", "training-over"}, verdict
    assert (
        verdict.attempted
        == verdict.aggregated
        + verdict.answered
        + verdict.unused
        + verdict.in_flight
        + (verdict.refused["training-over"])
    ), verdict
