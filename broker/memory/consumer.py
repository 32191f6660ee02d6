"""A consumer in memory: what it has of a queue and has not settled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.inbox import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.memory.queue import MemoryQueue, Message
    from broker.transport import Delivery


class MemoryConsumer:
    """A standing subscription to one queue; see the transport contract.

    Parameters
    ----------
    queue
        Where the messages come from.
    prefetch
        Deliveries that may be unsettled at a time.
    connected
        Says whether its transport has a connection.
    forget
        Called with this consumer when it is closed.
    """

    def __init__(
        self,
        queue: MemoryQueue,
        *,
        prefetch: int,
        connected: Callable[[], bool],
        forget: Callable[[MemoryConsumer], None],
    ) -> None:
        self._queue = queue
        self._prefetch = prefetch
        self._connected = connected
        self._forget = forget
        self._unsettled: dict[int, Message] = {}
        self._inbox = Inbox[MemoryDelivery](queue.declared.name)
        self._tags = 0
        self._attached = False
        self._paused = False
        self._closed = False

    async def take(self) -> Delivery:
        """Return the next delivery, waiting for it."""
        return await self._inbox.take()

    def waiting(self) -> list[Delivery]:
        """Take everything that has come already."""
        return [*self._inbox.empty()]

    async def pause(self) -> None:
        """Take no more messages; those that nobody took go back."""
        self._paused = True
        self.detach()
        untaken = self._inbox.empty()
        self._queue.take_back([self._unsettled.pop(delivery.tag) for delivery in untaken])

    async def resume(self) -> None:
        """Take messages again."""
        self._paused = False
        if self._connected():
            self.attach()

    async def close(self) -> None:
        """End the subscription; what is unsettled goes back."""
        self._closed = True
        self._forget(self)
        self.detach()
        self.give_back()
        self._inbox.close()

    def attach(self) -> None:
        """Have messages from now on, unless it is paused or closed."""
        if not (self._attached or self._paused or self._closed):
            self._attached = True
            self._queue.attach(self)

    def detach(self) -> None:
        """Have no more messages; what it has it keeps."""
        if self._attached:
            self._attached = False
            self._queue.detach(self)

    def give_back(self) -> None:
        """Put all that is unsettled back into the queue."""
        unsettled = list(self._unsettled.values())
        self._unsettled.clear()
        self._inbox.empty()
        self._queue.take_back(unsettled)

    def has_room(self) -> bool:
        """Whether less is unsettled than may be."""
        return len(self._unsettled) < self._prefetch

    def receive(self, message: Message) -> None:
        """Have ``message`` waiting for whoever takes it."""
        self._tags += 1
        self._unsettled[self._tags] = message
        self._inbox.put(MemoryDelivery(self, self._tags, message))

    def ack(self, tag: int, *, multiple: bool) -> None:
        """Settle a delivery, or all up to it, for good."""
        if tag not in self._unsettled:
            return
        for settled in [each for each in self._unsettled if each == tag or (multiple and each < tag)]:
            del self._unsettled[settled]
        self._queue.deliver()

    def reject(self, tag: int) -> None:
        """Send a delivery to the dead letters."""
        message = self._unsettled.pop(tag, None)
        if message is not None:
            self._queue.bury(message)
            self._queue.deliver()


class MemoryDelivery:
    """One message in the hands of a consumer."""

    __slots__ = ("_consumer", "_message", "redelivered", "tag")

    def __init__(self, consumer: MemoryConsumer, tag: int, message: Message) -> None:
        self._consumer = consumer
        self.tag = tag
        self._message = message
        # Its own: the message may go to the queue and come again while somebody still looks at this.
        self.redelivered = message.redelivered

    @property
    def body(self) -> bytes:
        """The bytes as they were published."""
        return self._message.body

    @property
    def routing_key(self) -> str:
        """The key it was published with."""
        return self._message.routing_key

    @property
    def message_id(self) -> str | None:
        """The id by which a resend is known."""
        return self._message.message_id

    @property
    def user_id(self) -> str | None:
        """The user of the transport that published it."""
        return self._message.user_id

    async def ack(self, *, multiple: bool = False) -> None:
        """Settle it for good; with ``multiple``, also all that came before it."""
        self._consumer.ack(self.tag, multiple=multiple)

    async def reject(self) -> None:
        """Send it to the dead letters."""
        self._consumer.reject(self.tag)
