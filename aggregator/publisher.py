"""Sends what was committed until the broker has confirmed it, the newest of each address only.

A task for each address, so that one participant's missing queue holds up nobody else. While a model
is on its way newer ones replace each other in the one place that waits: under load the number of models
published falls by itself. A blocked broker blocks this, and never a delivery that waits for its acknowledgement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random

from broker.errors import TransportError
from broker.retry import publish_until_confirmed
from broker.transport import Outgoing, Transport

OnPublished = Callable[[Outgoing], Awaitable[None]]
OnTrouble = Callable[[Outgoing, TransportError], None]


class Publisher:
    """Owns the publications of one aggregator; runs inside its service's task group."""

    def __init__(
        self,
        transport: Transport,
        tasks: asyncio.TaskGroup,
        *,
        rng: Random,
        on_published: OnPublished,
        on_trouble: OnTrouble,
    ) -> None:
        self._transport = transport
        self._tasks = tasks
        self._rng = rng
        self._on_published = on_published
        self._on_trouble = on_trouble
        self._next: dict[str, Outgoing] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Addresses with something that is not confirmed."""
        return len(self._sending)

    def is_overtaken(self, address: str) -> bool:
        """Whether something waits to go to ``address`` that is newer than what is on its way there."""
        return address in self._next

    def offer(self, address: str, message: Outgoing) -> None:
        """Send ``message``; what still waits to go to ``address`` is replaced by it."""
        self._next[address] = message
        if address not in self._sending:
            self._idle.clear()
            self._sending[address] = self._tasks.create_task(self._send(address), name=f"publish {address}")

    async def drained(self) -> None:
        """Return when everything that was offered is confirmed."""
        await self._idle.wait()

    def cancel(self) -> None:
        """Give up what is on its way; an aggregator that starts again sends it again."""
        for task in self._sending.values():
            task.cancel()
        # One that has not begun never will, and so cannot say that it has ended.
        self._sending.clear()
        self._idle.set()

    def _waits(self, message: Outgoing, error: TransportError, _seconds: float) -> None:
        self._on_trouble(message, error)

    async def _send(self, address: str) -> None:
        try:
            while (message := self._next.pop(address, None)) is not None:
                await publish_until_confirmed(
                    self._transport, message, rng=self._rng, on_wait=partial(self._waits, message)
                )
                await self._on_published(message)
        finally:
            self._sending.pop(address, None)
            if not self._sending:
                self._idle.set()
