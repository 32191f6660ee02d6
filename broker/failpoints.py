"""Named places at which a test lets a service die, to see that nothing is lost and nothing counted twice.

A service calls ``reached`` with the name of each place it comes by. In production that is `nothing`; a test gives the
variable FEDMQ_FAILPOINT to a process, or a function of its own to a simulated service.

============================ ==================================================================================
``model-taken``              participant: a model has come; nothing is done about it
``model-acknowledged``       participant: the work is known, the model no longer in its queue
``computed``                 participant: the contribution exists in memory only
``stored``                   participant: it is in the outbox, and not sent
``confirmed``                participant: the broker has it; nobody has noted that
``taken``                    aggregator: deliveries have come; nothing is done about them
``decided``                  aggregator: what they change is known, and not committed
``committed``                aggregator: it is durable; nothing of it is sent or acknowledged
``acknowledged``             aggregator: the deliveries are settled
``published``                aggregator: a model or plan is confirmed
``release-published``        aggregator: a release is confirmed, and the store does not say so yet
``taken-over``               aggregator: the epoch is raised; nobody has heard of it
============================ ==================================================================================
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from itertools import count

VARIABLE = "FEDMQ_FAILPOINT"

PARTICIPANT = ("model-taken", "model-acknowledged", "computed", "stored", "confirmed")
AGGREGATOR = ("taken-over", "taken", "decided", "committed", "acknowledged", "published", "release-published")

Reached = Callable[[str], None]


def nothing(_: str) -> None:
    """Go on."""


def from_environment(environment: Mapping[str, str]) -> Reached:
    """Return what FEDMQ_FAILPOINT asks for: ``stored:3`` is death the third time that the outbox has been written.

    Raises
    ------
    ValueError
        When there is no such place.
    """
    said = environment.get(VARIABLE)
    if said is None:
        return nothing
    name, _, times = said.partition(":")
    if name not in PARTICIPANT + AGGREGATOR or not (times or "1").isdecimal():
        raise ValueError(f"{VARIABLE}: no service has a place {said!r}; broker/failpoints.py names them")
    return _Killer(name, int(times or 1))


class _Killer:
    """Ends this process as ``kill -9`` does, at the ``times``-th coming by of ``name``."""

    def __init__(self, name: str, times: int) -> None:
        self._name = name
        self._times = times
        self._count = count(1)

    def __call__(self, name: str) -> None:
        if name == self._name and next(self._count) == self._times:
            os.kill(os.getpid(), signal.SIGKILL)
