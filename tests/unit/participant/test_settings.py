"""The participant's settings: what is what in its file."""

from __future__ import annotations

import os
from typing import Any

import pytest

from broker.settings import SettingsError
from participant.settings import ParticipantSettings
from participant.sources import Columns


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without settings in the environment."""
    for key in list(os.environ):
        if key.startswith("FEDMQ_"):
            monkeypatch.delenv(key)


def load(**flags: Any) -> ParticipantSettings:
    return ParticipantSettings.load(None, {"name": "h1", "data": "rows.csv", **flags})


def test_without_anything_y_is_the_label_and_everything_else_a_feature() -> None:
    assert load().rows().what == Columns("y")


def test_every_role_of_a_column_can_be_set() -> None:
    settings = load(
        label="outcome", split="part", sample_weight="w", offset="exposure", classes="1,2,5", missing="mean"
    )
    assert settings.rows().what == Columns("outcome", "part", "w", "exposure", (1, 2, 5), "mean")


def test_classes_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_CLASSES", "0,1,2")
    assert load().classes == (0, 1, 2)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"missing": "median"}, "missing: Input should be 'refuse' or 'mean'"),
        ({"classes": "none"}, "classes: whole numbers separated by commas"),
    ],
)
def test_what_means_nothing_is_told(flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(**flags)
