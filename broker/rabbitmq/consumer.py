"""A consumer: one subscription after another, whatever ended the last one.

It waits for its channel to be gone (by an error, a deleted queue, a lost link), and has a new one with
its own prefetch as soon as there is a link. What was unsettled on the old channel comes again.

A consumer may also end without a word to us, and who waits for deliveries would wait for ever. So the broker is asked
at each heartbeat whether the queue has a consumer. Of several that share a queue it counts the others too:
these have to see to it themselves that deliveries reach them.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import TYPE_CHECKING

from broker.errors import TransportError
from broker.inbox import Inbox
from broker.rabbitmq.subscription import RabbitMQDelivery, Subscription
from broker.rabbitmq.tasks import end, keep_going
from broker.rabbitmq.words import in_our_words

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.rabbitmq.link import Link
    from broker.rabbitmq.supervisor import Supervisor
    from broker.transport import Delivery


class RabbitMQConsumer:
    """A standing subscription to one queue, on a channel of its own; see the transport contract.

    Parameters
    ----------
    supervisor
        Gives the links.
    queue
        Its name.
    prefetch
        Deliveries that may be unsettled at a time.
    forget
        Called with this consumer when it is closed.
    """

    def __init__(
        self, supervisor: Supervisor, queue: str, *, prefetch: int, forget: Callable[[RabbitMQConsumer], None]
    ) -> None:
        self._supervisor = supervisor
        self._queue = queue
        self._prefetch = prefetch
        self._forget = forget
        self._inbox = Inbox[RabbitMQDelivery](queue)
        self._paused = False
        self._closed = False
        # Held while the subscription is made, paused, resumed or ended.
        self._changing = asyncio.Lock()
        self._subscription: Subscription | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, link: Link) -> None:
        """Subscribe on ``link``, and see to it that there is a subscription from now on."""
        await self._subscribe(link)
        self._tasks = [
            keep_going(self._keep(link), f"consumer of {self._queue}"),
            keep_going(self._watch(), f"watch over the consumer of {self._queue}"),
        ]

    async def take(self) -> Delivery:
        """Return the next delivery, waiting for it."""
        return await self._inbox.take()

    def waiting(self) -> list[Delivery]:
        """Take everything that has come already."""
        return [*self._inbox.empty()]

    async def pause(self) -> None:
        """Take no more messages; those that nobody took go back."""
        async with self._changing:
            self._paused = True
            if self._subscription is not None and await self._subscription.stop():
                untaken = self._inbox.empty()
                for delivery in untaken:
                    await delivery.give_back()

    async def resume(self) -> None:
        """Take messages again."""
        async with self._changing:
            self._paused = False
            if self._subscription is not None:
                with suppress(TransportError):
                    await self._subscription.start()

    async def close(self) -> None:
        """End the subscription; what is unsettled goes back."""
        self._closed = True
        self._forget(self)
        for task in self._tasks:
            await end(task)
        async with self._changing:
            await self._drop_subscription()
        self._inbox.close()

    async def _keep(self, link: Link) -> None:
        """Subscribe again, whatever ended the subscription."""
        while (subscription := self._subscription) is not None:
            await subscription.gone.wait()
            async with self._changing:
                await self._drop_subscription()
            if not link.gone.is_set():
                self._tell_lost(f"the broker ended the consumer of {self._queue}: {subscription.reason}", 0)
            link = await self._subscribe_again()

    async def _watch(self) -> None:
        """Give up a subscription that the broker knows nothing of, when it is asked for the second time."""
        suspected: str | None = None
        while True:
            await asyncio.sleep(self._supervisor.heartbeat_seconds)
            subscription = self._subscription
            tag = None if subscription is None else subscription.tag
            if subscription is None or tag is None or subscription.gone.is_set() or await subscription.is_known():
                suspected = None
            elif suspected != tag:
                suspected = tag
            elif subscription.tag == tag:  # nobody has paused it meanwhile
                subscription.lose("it knows of no consumer there")

    async def _subscribe_again(self) -> Link:
        for attempt in itertools.count(1):
            link = await self._supervisor.next_link()
            try:
                # The queue may have been deleted; where it was not, this changes nothing.
                await link.declare(self._supervisor.topologies)
                await self._subscribe(link)
            except TransportError as error:
                if not link.gone.is_set():
                    self._tell_lost(f"cannot consume from {self._queue}: {error}", attempt)
                await self._supervisor.pause(attempt)
            else:
                return link
        raise AssertionError("counting never ends")

    def _tell_lost(self, detail: str, attempt: int) -> None:
        self._supervisor.tell("consumer-lost", detail, attempt)

    async def _subscribe(self, link: Link) -> None:
        async with self._changing:
            with in_our_words():
                subscription = await Subscription.open(link, self._queue, self._receive, prefetch=self._prefetch)
            # Before it starts: the first delivery may come before the answer does.
            self._subscription = subscription
            if not self._paused:
                try:
                    await subscription.start()
                except BaseException:
                    await self._drop_subscription()
                    raise

    def _receive(self, subscription: Subscription, delivery: RabbitMQDelivery) -> None:
        if subscription is self._subscription:
            self._inbox.put(delivery)

    async def _drop_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._inbox.empty()
        if subscription is not None:
            await subscription.close()
