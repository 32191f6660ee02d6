"""What is sent where two arrays of all parameters are more than a message may hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from golden.examples import MODEL, PLAN

from broker.codec import MARGIN_BYTES, encode
from broker.messages import ModelUpdate
from participant import training
from participant.sources import Table
from participant.training import perform, prepare
from participant.worker import Work

OF_GRADIENTS = replace(PLAN, kind="gradient")


def told() -> ModelUpdate:
    """Return the gradient of twenty rows of three columns: four parameters."""
    rng = np.random.default_rng(0)
    table = Table(PLAN.features, rng.normal(size=(20, 3)), np.arange(20) % 2.0, np.ones(20, dtype=bool))
    work = Work("train", MODEL, OF_GRADIENTS, "h", "hospital-1", "00c0ffee00c0ffee", 1)
    message, _ = perform(work, prepare(table, OF_GRADIENTS, "h"))
    assert isinstance(message, ModelUpdate)
    return message


def test_weights_that_do_not_fit_beside_the_gradient_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told()
    assert whole.arrays.keys() == {"base", "gradient"}
    monkeypatch.setattr(training, "MAX_BODY_BYTES", 64 + MARGIN_BYTES)
    assert told().arrays.keys() == {"base", "gradient"}
    monkeypatch.setattr(training, "MAX_BODY_BYTES", 64 + MARGIN_BYTES - 1)
    short = told()
    assert short.arrays.keys() == {"gradient"}
    np.testing.assert_array_equal(short.arrays["gradient"], whole.arrays["gradient"])
    assert short.base_version == MODEL.version


def test_a_gradient_with_its_weights_needs_no_more_than_its_numbers_and_the_margin() -> None:
    assert len(encode(told())) <= 8 * 2 * PLAN.sizes.parameters + MARGIN_BYTES
