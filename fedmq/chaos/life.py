"""A service that can die at any moment, and its supervisor, who starts it again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from fedmq.chaos.stage import Stage
from fedmq.chaos.transport import ChaosTransport
from fedmq.chaos.world import AT_RELEASE

#: Seconds that a service may take to stop in order.
STOP_SECONDS = 60.0


class Life:
    """The service ``name``, whose every life is a call of ``live``.

    Attributes
    ----------
    number : how many lives it has had.
    transport, service : of its last life; ``live`` sets them.
    frozen_until : when it goes on, on the clock of its stage.
    """

    def __init__(self, name: str, stage: Stage, live: Callable[[Stage, Life], Coroutine[Any, Any, None]]) -> None:
        self.name = name
        self.number = 0
        self.is_alive = False
        self.transport: ChaosTransport | None = None
        self.service: Any = None
        self.frozen_until = 0.0
        self.rng = Random(f"{stage.world.seed}/life/{name}")  # noqa: S311 - chance
        self._stage = stage
        self._live = live
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._comes_back_after: float | None = None
        self._is_over = False

    @property
    def is_sound(self) -> bool:
        """Whether it is alive, and connected as it believes to be."""
        return self.is_alive and self.transport is not None and self.transport.is_sound

    def chance(self, what: str) -> Random:
        """Return the chance that ``what`` of this life goes by."""
        return Random(f"{self._stage.world.seed}/{what}/{self.name}/{self.number}")  # noqa: S311 - chance

    def start(self) -> None:
        """Begin another life, unless there is one."""
        self._again = None
        if self._is_over or (self._task is not None and not self._task.done()):
            return
        self.number += 1
        self.is_alive, self.service, self._comes_back_after = True, None, None
        self._stage.came(self.name, f"starts ({self.number})")
        self._task = asyncio.get_running_loop().create_task(self._live(self._stage, self), name=self.name)
        self._task.add_done_callback(self._done)

    def die(self, what: str, *, down: float | None = None, noticed_after: float = 0.0) -> None:
        """End at this very point: nothing that it still does reaches anybody."""
        if not self.is_alive or self._task is None:
            return
        self._stage.fault(self.name, what)
        self.is_alive = False
        self._comes_back_after = self.rng.choice([0.01, 1.0, 10.0]) * self.rng.random() if down is None else down
        if self.transport is not None:
            self.transport.die(noticed_after=noticed_after)
        self._task.cancel()

    def die_by_chance(self, probability: float, what: str, rng: Random) -> None:
        """Maybe die here, and then raise `asyncio.CancelledError`."""
        if probability and rng.random() < probability:
            self.die(what)
            raise asyncio.CancelledError

    def leave(self, down: float) -> None:
        """End in order, and come back later."""
        if self.is_alive and self.service is not None:
            self._comes_back_after = down
            self._stage.fault(self.name, "leaves")
            self.service.stop()

    async def stop(self) -> None:
        """End in order, for good."""
        self._is_over = True
        if self._again is not None:
            self._again.cancel()
        if self._task is None:
            return
        if self.service is not None:
            self.service.stop()
        done, _ = await asyncio.wait([self._task], timeout=STOP_SECONDS)
        if not done:
            self._stage.ended(self.name, TimeoutError("it does not stop in time"))
            self._task.cancel()
            await asyncio.wait([self._task])

    def reached(self, point: str) -> None:
        """Maybe die at ``point``, and then raise `asyncio.CancelledError`."""
        if not self.is_alive:
            raise asyncio.CancelledError
        probability = self._stage.world.faults.points.get(point, 0.0)
        # A release mostly comes after the faults: one death at it is among them all the same.
        struck = self._stage.struck
        is_exposed = self._stage.is_chaotic or (point in AT_RELEASE and point not in struck)
        if is_exposed and probability and self.rng.random() < probability:
            struck.add(point)
            self.die(f"kill at {point}", noticed_after=self.rng.choice([0.0, 0.0, 2.0]))
            raise asyncio.CancelledError

    async def thawed(self) -> None:
        """Return when it is not frozen; a frozen process does nothing."""
        now = self._stage.now()
        if now < self.frozen_until:
            await asyncio.sleep(self.frozen_until - now)
        if not self.is_alive:
            raise asyncio.CancelledError

    def _done(self, task: asyncio.Task[None]) -> None:
        was_alive, self.is_alive = self.is_alive, False
        down = self._comes_back_after
        if not task.cancelled():
            error = task.exception()
            if error is not None and was_alive:
                self._stage.ended(self.name, error)
                down = self.rng.uniform(0.5, 3.0)
            elif down is None and not self._is_over:
                self._stage.ended(self.name, RuntimeError("it ended by itself"))
                down = 1.0
        elif down is None and not self._is_over:
            self._stage.ended(self.name, RuntimeError("it was cancelled by itself"))
            down = 1.0
        if not self._is_over and down is not None:
            self._again = task.get_loop().call_later(self._stage.not_after_faults(down), self.start)
