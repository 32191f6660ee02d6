"""The broker in memory: who is connected to its exchanges, and who cannot be for the time being."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.memory.exchanges import Exchanges
from broker.memory.transport import MemoryTransport

if TYPE_CHECKING:
    from broker.transport import OnEvent


class MemoryBroker:
    """Exchanges and queues, and the transports that are connected to them."""

    def __init__(self) -> None:
        self._exchanges = Exchanges()
        # In the order of their coming: a set's order would differ from run to run.
        self._transports: dict[MemoryTransport, None] = {}
        self._unreachable = False
        self._cut_off: set[str] = set()

    def transport(self, user: str, *, on_event: OnEvent | None = None) -> MemoryTransport:
        """Return a transport that is authenticated as ``user`` once it is entered."""
        return MemoryTransport(self._exchanges, user, on_event, join=self._join, leave=self._leave)

    def disconnect(self, user: str | None = None) -> None:
        """Take the connections of ``user`` away, or everybody's, until `reconnect`."""
        if user is None:
            self._unreachable = True
        else:
            self._cut_off.add(user)
        self._update_connections()

    def reconnect(self, user: str | None = None) -> None:
        """Let the transports of ``user``, or all of them, connect again."""
        if user is None:
            self._unreachable = False
            self._cut_off.clear()
        else:
            self._cut_off.discard(user)
        self._update_connections()

    def _update_connections(self) -> None:
        for transport in self._transports:
            if not self._reachable_for(transport.user):
                transport.lose()
        for transport in self._transports:
            if self._reachable_for(transport.user):
                transport.connect()

    def _reachable_for(self, user: str) -> bool:
        return not self._unreachable and user not in self._cut_off

    def _join(self, transport: MemoryTransport) -> None:
        self._transports[transport] = None
        if self._reachable_for(transport.user):
            transport.connect()

    def _leave(self, transport: MemoryTransport) -> None:
        self._transports.pop(transport, None)
