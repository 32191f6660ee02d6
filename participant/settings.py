"""The participant's settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from broker.settings import ParticipantName, ServiceSettings


class ParticipantSettings(ServiceSettings):
    """Where the rows are, and who we are."""

    name: ParticipantName = Field(
        description="Our name in the federation; also our broker user, unless users are shared."
    )
    data: Path = Field(description="The CSV file with our rows.")
    label: str = Field(description="Its column of 0 and 1 to be predicted.")
    split: str | None = Field(None, description="Its column that says train or test; without it all rows train.")
    aggregator_user: str = Field("aggregator", description="The broker user that models must come from.")
    least_fit_seconds: float = Field(0.0, ge=0, description="Trials: make a local fit take at least so long.")
    slowdown: float = Field(1.0, ge=1, description="Trials: make a local fit take so many times longer.")
    exit_when_released: bool = Field(False, description="End when the model is released.")
