"""A connection to the broker in memory, which can be lost and made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from broker.errors import MessageTooLarge, TransportUnavailable
from broker.memory.consumer import MemoryConsumer
from broker.retry import Connections
from broker.transport import MAX_BODY_BYTES, Happening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from types import TracebackType

    from broker.memory.exchanges import Exchanges
    from broker.topology import Topology
    from broker.transport import OnEvent, Outgoing


class MemoryTransport:
    """A user's connection to a `MemoryBroker`; see the transport contract.

    Parameters
    ----------
    exchanges
        Where it leads to.
    user
        Whose it is.
    on_event
        Told what befalls the connection.
    join, leave
        Called with this transport when it is entered, to be connected, and when it is left.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        user: str,
        on_event: OnEvent | None,
        *,
        join: Callable[[MemoryTransport], None],
        leave: Callable[[MemoryTransport], None],
    ) -> None:
        self._exchanges = exchanges
        self._user = user
        self._on_event = on_event
        self._join = join
        self._leave = leave
        self._connections = Connections()
        self._consumers: dict[MemoryConsumer, None] = {}

    @property
    def user(self) -> str:
        """The user set on every message that this transport publishes."""
        return self._user

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connections.up

    async def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings. They stay, whatever becomes of this connection."""
        self._need_connection()
        self._exchanges.declare(topology)

    async def publish(self, message: Outgoing) -> None:
        """Put ``message`` into every queue that wants it."""
        if len(message.body) > MAX_BODY_BYTES:
            raise MessageTooLarge(
                f"message {message.message_id} has {len(message.body):,} bytes; {MAX_BODY_BYTES:,} is the limit"
            )
        self._need_connection()
        self._exchanges.publish(message, self._user)

    async def consume(self, queue: str, *, prefetch: int) -> MemoryConsumer:
        """Subscribe to ``queue``, with at most ``prefetch`` deliveries unsettled."""
        if prefetch < 1:
            raise ValueError(f"a consumer has at least one delivery at a time, not {prefetch}")
        self._need_connection()
        consumer = MemoryConsumer(
            self._exchanges.queue(queue), prefetch=prefetch, connected=lambda: self.connected, forget=self._forget
        )
        self._consumers[consumer] = None
        consumer.attach()
        return consumer

    def connections(self) -> AsyncIterator[int]:
        """Yield the number of the connection, now if there is one, then after each reconnection."""
        return aiter(self._connections)

    async def __aenter__(self) -> Self:
        self._join(self)
        try:
            await anext(self.connections(), None)
        except BaseException:
            self._leave(self)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._leave(self)
        self._give_back()
        for consumer in list(self._consumers):
            await consumer.close()
        self._connections.end()

    def connect(self) -> None:
        """Have a connection, unless there is one."""
        if self.connected:
            return
        number = self._connections.made()
        for consumer in self._consumers:
            consumer.attach()
        self._tell(Happening("connected", f"{self._user} is connected to the broker ({number})"))

    def lose(self) -> None:
        """Lose the connection, if there is one."""
        if not self.connected:
            return
        self._connections.lost()
        self._give_back()
        self._tell(Happening("lost", f"{self._user} lost the connection to the broker"))

    def _need_connection(self) -> None:
        if not self.connected:
            raise TransportUnavailable(f"{self._user} has no connection to the broker at the moment")

    def _give_back(self) -> None:
        # First all stop, then all give back: or one would receive what another of them had.
        for consumer in self._consumers:
            consumer.detach()
        for consumer in self._consumers:
            consumer.give_back()

    def _tell(self, happening: Happening) -> None:
        if self._on_event is not None:
            self._on_event(happening)

    def _forget(self, consumer: MemoryConsumer) -> None:
        self._consumers.pop(consumer, None)
