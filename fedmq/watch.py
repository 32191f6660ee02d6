"""What a training shows while it runs, in the same words whether it runs in this process or in several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SiteProgress:
    """Where one site stands. ``staleness`` is that of its last update that came; None before the first."""

    name: str
    included: int = 0
    staleness: int | None = None
    in_last_version: bool = False
    late: bool = False


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Where a training stands; ``loss`` is in nats per row."""

    phase: str = "enrolling"
    version: int = 0
    loss: float | None = None
    sites: dict[str, SiteProgress] = field(default_factory=dict)


OnProgress = Callable[[TrainingProgress], None]
