"""Waiting, in a test, for what a transport tells."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.transport import Happening

_PATIENCE_SECONDS = 30.0


class Listener:
    """An ``on_event`` that remembers, and can be waited on."""

    def __init__(self) -> None:
        self.heard: list[Happening] = []
        self._read = 0
        self._more = asyncio.Event()

    def __call__(self, happening: Happening) -> None:
        self.heard.append(happening)
        self._more.set()

    async def next(self, kind: str) -> Happening:
        """Return the next happening of a kind, after those that were waited for already."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                while self._read < len(self.heard):
                    happening = self.heard[self._read]
                    self._read += 1
                    if happening.kind == kind:
                        return happening
                self._more.clear()
                await self._more.wait()
