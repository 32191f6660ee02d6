"""Deliveries that have come to a consumer and that nobody has taken yet: the same for every transport."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from broker.errors import TransportUnavailable

D = TypeVar("D")


class Inbox(Generic[D]):
    """What has come by ``queue``, in its order."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._untaken: deque[D] = deque()
        self._changed = asyncio.Event()
        self._is_closed = False

    def __iter__(self) -> Iterator[D]:
        return iter(self._untaken)

    def put(self, delivery: D) -> None:
        """Have ``delivery`` waiting for whoever takes it."""
        self._untaken.append(delivery)
        self._changed.set()

    async def take(self) -> D:
        """Return the next delivery, waiting for it; raises `TransportUnavailable` when there will be none."""
        while not self._untaken:
            if self._is_closed:
                raise TransportUnavailable(f"the consumer of {self._queue} is closed")
            self._changed.clear()
            await self._changed.wait()
        return self._untaken.popleft()

    def empty(self) -> list[D]:
        """Return everything that has come, which then waits here no longer."""
        untaken = list(self._untaken)
        self._untaken.clear()
        return untaken

    def close(self) -> None:
        """Let whoever waits know that nothing more comes."""
        self._is_closed = True
        self._changed.set()
