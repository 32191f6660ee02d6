"""A subscription, and its deliveries: what lasts as long as one channel that consumes.

Deliveries are settled by tags that mean something on their own channel only. So a delivery belongs to
its subscription, and where that is gone, settling is dropped: the message comes again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from broker.errors import NotDeclared, TransportError, TransportUnavailable
from broker.rabbitmq.channels import close_channel
from broker.rabbitmq.words import ANSWER_SECONDS, FAILURES, in_our_words, said

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aio_pika.abc import AbstractChannel
    from aiormq.abc import AbstractChannel as RawChannel
    from aiormq.abc import DeliveredMessage

    from broker.rabbitmq.link import Link

    #: Given each delivery, and the subscription that it came by.
    Receive = Callable[["Subscription", "RabbitMQDelivery"], None]


class Subscription:
    """What lasts as long as one channel of a consumer: the tags of its deliveries mean nothing later."""

    def __init__(self, link: Link, queue: str, receive: Receive, channel: AbstractChannel, raw: RawChannel) -> None:
        self.gone = asyncio.Event()
        self.reason = ""
        self.raw = raw
        self._link = link
        self._queue = queue
        self._receive = receive
        self._channel = channel
        self._unsettled: set[int] = set()
        #: Of the consumer, unless it is stopped; another one each time that it starts.
        self.tag: str | None = None

    @classmethod
    async def open(cls, link: Link, queue: str, receive: Receive, *, prefetch: int) -> Subscription:
        """Open a channel with ``prefetch``; `start` consumes."""
        async with asyncio.timeout(ANSWER_SECONDS):
            channel = await link.open_channel()
            await channel.set_qos(prefetch_count=prefetch)
            # Below aio-pika's queue: it would wrap each delivery in two more tasks, and does not tell
            # when the broker cancels a consumer.
            raw = await channel.get_underlay_channel()
        subscription = cls(link, queue, receive, channel, raw)
        channel.close_callbacks.add(subscription._on_close)
        raw.on_consumer_cancel_callbacks.add(subscription._on_cancel)
        link.on_gone.add(subscription.lose)
        if link.gone.is_set():
            subscription.lose(link.reason)
        return subscription

    async def start(self) -> None:
        """Consume, unless it does already."""
        if self.tag is not None:
            return
        try:
            with in_our_words():
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        answer = await self.raw.basic_consume(self._queue, self._on_message)
                except TimeoutError:
                    # A quorum queue whose node was killed before it had written the queue's name to its disk, seconds
                    # after the queue was made: declaring it again changes nothing, and only who deletes it helps.
                    raise TransportUnavailable(
                        f"the queue {self._queue} does not answer; if that stays so while its broker runs, the broker "
                        f"lost it in a crash: delete it there (rabbitmqctl delete_queue), and it is made again"
                    ) from None
        except TransportError as error:
            # Also where the channel is still open: without an answer nobody knows whether it consumes.
            self.lose(str(error))
            raise
        self.tag = answer.consumer_tag

    async def stop(self) -> bool:
        """Cancel the consumer and keep the channel; False where it is not there to be stopped."""
        tag, self.tag = self.tag, None
        if tag is None or self.gone.is_set():
            return False
        try:
            with in_our_words():
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self.raw.basic_cancel(tag)
        except TransportError as error:
            self.lose(str(error))
            return False
        return True

    async def is_known(self) -> bool:
        """Whether the broker, too, says that somebody consumes here; it is believed to where it does not answer."""
        try:
            return await self._link.count_consumers(self._queue) > 0
        except NotDeclared:
            return False
        except TransportError:
            return True

    async def close(self) -> None:
        """Close the channel: the broker puts back what is unsettled."""
        self.gone.set()
        self._link.on_gone.discard(self.lose)
        await close_channel(self._channel)

    def lose(self, reason: str) -> None:
        """Give it up."""
        self.reason = self.reason or reason
        self.gone.set()

    async def settle(self, tag: int, send: Callable[[], Awaitable[None]], *, multiple: bool = False) -> None:
        """Send a settlement once; drop it where the delivery is no longer ours to settle."""
        if self.gone.is_set() or tag not in self._unsettled:
            return
        settled = {each for each in self._unsettled if each <= tag} if multiple else {tag}
        self._unsettled -= settled
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await send()
        except TimeoutError:
            # Nothing is read at the other end, and the broker still counts these against the prefetch.
            self._link.lose("a settlement could not be sent")
        except FAILURES:
            pass
        except asyncio.CancelledError:
            self._unsettled |= settled
            raise

    async def _on_message(self, message: DeliveredMessage) -> None:
        tag = message.delivery_tag or 0
        delivery = RabbitMQDelivery(self, tag, message)
        self._unsettled.add(tag)
        self._receive(self, delivery)

    def _on_close(self, _sender: object, error: BaseException | None) -> None:
        self.lose(said(error))

    def _on_cancel(self, _frame: object) -> None:
        self.lose("the queue was deleted or its leader is gone")


class RabbitMQDelivery:
    """One message in the hands of a consumer, to be settled once."""

    __slots__ = ("_subscription", "_tag", "body", "message_id", "redelivered", "routing_key", "user_id")

    def __init__(self, subscription: Subscription, tag: int, message: DeliveredMessage) -> None:
        properties = message.header.properties
        self._subscription = subscription
        self._tag = tag
        self.body = message.body
        self.routing_key = message.routing_key or ""
        self.message_id = properties.message_id
        self.user_id = properties.user_id
        self.redelivered = bool(message.redelivered)

    async def ack(self, *, multiple: bool = False) -> None:
        """Settle it for good; with ``multiple``, also all that came before it."""
        raw, tag = self._subscription.raw, self._tag
        await self._subscription.settle(
            tag, lambda: raw.basic_ack(tag, multiple=multiple, wait=False), multiple=multiple
        )

    async def reject(self) -> None:
        """Send it to the dead letters."""
        raw, tag = self._subscription.raw, self._tag
        await self._subscription.settle(tag, lambda: raw.basic_reject(tag, requeue=False, wait=False))

    async def give_back(self) -> None:
        """Put it back into its queue."""
        raw, tag = self._subscription.raw, self._tag
        await self._subscription.settle(tag, lambda: raw.basic_reject(tag, requeue=True, wait=False))
