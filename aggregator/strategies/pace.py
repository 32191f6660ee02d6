"""When to aggregate: at a count, when everybody is in, or at a deadline with a quorum.

This is a switch of its own, whatever a strategy then does with what has come:

==========  =========================================================
count = 1   at each arrival (FedAsync)
count = K   when K are in (FedBuff)
count None  when every live participant is in (rounds: FedAvg)
==========  =========================================================

Two rules hold for all. When every live participant is in there is nobody left to wait for: with
one update in flight each, fewer than K live participants would otherwise wait for ever. After the
deadline a quorum is enough, so a slow or dead participant delays a version by the deadline and no more.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from aggregator.errors import StrategyError


@dataclass(frozen=True, slots=True)
class Pace:
    """When the updates that have come are aggregated.

    Attributes
    ----------
    count : aggregate as soon as this many are in; None waits for every live participant.
    quorum : updates that are enough once the deadline has passed.
    deadline_seconds : measured from the publication of the version that the updates answer.
    """

    count: int | None
    quorum: int = 1
    deadline_seconds: float = 30.0

    def __post_init__(self) -> None:
        if (self.count is not None and self.count < 1) or self.quorum < 1 or not self.deadline_seconds > 0:
            raise StrategyError("a count and a quorum are at least 1, and a deadline is more than 0 seconds")

    def due(self, received: AbstractSet[str], live: AbstractSet[str], *, since: float, now: float) -> bool:
        """Whether to aggregate what came from ``received`` since the last version, when ``live`` may still send."""
        if not received:
            return False
        full = self.count is not None and len(received) >= self.count
        late = now >= since + self.deadline_seconds and len(received) >= self.quorum
        return full or late or received >= live
