"""Connections to a `ChaosBroker`, the client's end: messages take their time, get lost, and come more than once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from random import Random
from types import TracebackType
from typing import Self

from broker.errors import (
    MessageTooLarge,
    NotDeclared,
    PublishRefused,
    TransportError,
    TransportUnavailable,
    Unroutable,
)
from broker.inbox import Inbox
from broker.memory.queue import MemoryQueue, Message
from broker.retry import RECONNECT, Connections
from broker.topology import Topology
from broker.transport import MAX_BODY_BYTES, Delivery, Happening, OnEvent, Outgoing
from fedmq.chaos.broker import Channel, ChaosBroker, Link

#: Of the transport over RabbitMQ: seconds until a publication gives up.
PUBLISH_TIMEOUT_SECONDS = 30.0

#: Seconds between two things on one channel: timers of the same time may go off in any order.
MOMENT = 1e-6
#: Largest number of times that a message arrives.
MOST_COPIES = 20


class ChaosDelivery:
    """One message in the hands of a consumer."""

    __slots__ = ("_channel", "body", "message_id", "redelivered", "routing_key", "tag", "user_id")

    def __init__(self, channel: Channel, tag: int, message: Message) -> None:
        self._channel = channel
        self.tag = tag
        self.body = message.body
        self.routing_key = message.routing_key
        self.message_id: str | None = message.message_id
        self.user_id: str | None = message.user_id
        self.redelivered = message.redelivered

    async def ack(self, *, multiple: bool = False) -> None:
        """Settle it for good; with ``multiple``, also all that came before it."""
        self._channel.settle(self.tag, multiple=multiple, rejected=False)

    async def reject(self) -> None:
        """Send it to the dead letters."""
        self._channel.settle(self.tag, multiple=False, rejected=True)


class ChaosConsumer:
    """The client's end of a subscription, through one link after another."""

    def __init__(self, transport: ChaosTransport, queue: str, prefetch: int) -> None:
        self._transport = transport
        self.queue = queue
        self._prefetch = prefetch
        self._channel: Channel | None = None
        self._inbox = Inbox[ChaosDelivery](queue)
        self._taken_tags: set[int] = set()
        self._next_at = 0.0
        self._paused = False
        self._closed = False

    async def take(self) -> Delivery:
        """Return the next delivery, waiting for it."""
        return await self._inbox.take()

    def waiting(self) -> list[Delivery]:
        """Take everything that has come already."""
        return [*self._inbox.empty()]

    async def pause(self) -> None:
        """Take no more messages; those that nobody took go back, also those that are on their way."""
        self._paused = True
        channel = self._channel
        if channel is not None and channel.usable:
            channel.detach()
            channel.give_back(tuple(delivery.tag for delivery in self._inbox) + self._on_the_way(channel))
        self._inbox.empty()

    async def resume(self) -> None:
        """Take messages again."""
        self._paused = False
        if self._channel is not None and self._channel.usable:
            self._channel.attach()

    async def close(self) -> None:
        """End the subscription; what is unsettled goes back."""
        self._closed = True
        self._inbox.empty()
        self._transport.forget(self)
        if self._channel is not None and self._channel.usable:
            self._channel.detach()
            self._channel.give_back()
            self._channel.link.channels.pop(self._channel, None)
        self.lose()
        self._inbox.close()

    def subscribe(self, link: Link, queue: MemoryQueue) -> None:
        """Have messages of ``queue`` through ``link``."""
        self._taken_tags = set()
        self._channel = Channel(link, queue, self._prefetch, deliver=self._send, on_cancel=self._on_cancel)
        if not self._paused:
            self._channel.attach()

    def lose(self) -> None:
        """Have no channel any more; what was taken can no longer be settled."""
        if self._channel is not None:
            self._channel.open = False
            self._channel = None
        self._inbox.empty()

    def _on_the_way(self, channel: Channel) -> tuple[int, ...]:
        return tuple(tag for tag in channel.unsettled if tag not in self._taken_tags)

    def _send(self, channel: Channel, tag: int, message: Message) -> None:
        loop, seconds = asyncio.get_running_loop(), self._transport.delay()
        # A channel keeps the order of what it carries.
        self._next_at = max(loop.time() + seconds, self._next_at + MOMENT if self._next_at > loop.time() else 0.0)
        if self._next_at > loop.time():
            loop.call_at(self._next_at, self._arrive, channel, tag, message)
        else:
            self._arrive(channel, tag, message)

    def _arrive(self, channel: Channel, tag: int, message: Message) -> None:
        if channel is self._channel and channel.usable and tag in channel.unsettled:
            self._taken_tags.add(tag)
            self._inbox.put(ChaosDelivery(channel, tag, message))

    def _on_cancel(self) -> None:
        self.lose()
        self._transport.resubscribe(self)


class ChaosTransport:
    """A connection to the broker, kept for the life of a service; see the transport contract.

    Parameters
    ----------
    who : the service; several may share a ``user``.
    rng : of what happens to its messages.
    on_event : told what befalls the connection.
    on_sent, on_confirmed : told of each message that is given to it, and of each that is confirmed.
    """

    def __init__(
        self,
        broker: ChaosBroker,
        user: str,
        who: str,
        rng: Random,
        *,
        on_event: OnEvent = lambda _: None,
        on_sent: Callable[[Outgoing], None] = lambda _: None,
        on_confirmed: Callable[[Outgoing], None] = lambda _: None,
    ) -> None:
        self._broker = broker
        self._user = user
        self._who = who
        self._rng = rng
        self._on_event = on_event
        self._on_sent = on_sent
        self._on_confirmed = on_confirmed
        self._connections = Connections()
        self._topologies: list[Topology] = []
        self._consumers: dict[ChaosConsumer, None] = {}
        self._link: Link | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._repairs: dict[asyncio.Task[None], None] = {}
        self._is_dead = False

    @property
    def user(self) -> str:
        """The user set on every message that this transport publishes."""
        return self._user

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._connections.up

    @property
    def is_sound(self) -> bool:
        """Whether messages can travel at this moment, whatever we believe."""
        return self.connected and self._link is not None and not self._link.frozen

    def connections(self) -> AsyncIterator[int]:
        """Yield the number of the connection, now if there is one, then after each reconnection."""
        return aiter(self._connections)

    def die(self, *, noticed_after: float) -> None:
        """Be a process that is no more; the broker notices after some seconds."""
        self._is_dead = True
        link, self._link = self._link, None
        if link is None:
            return
        link.frozen = True
        if noticed_after:
            asyncio.get_running_loop().call_later(noticed_after, self._broker.leave, link)
        else:
            self._broker.leave(link)

    async def declare(self, topology: Topology) -> None:
        """Declare, now and after every reconnection."""
        await self._needed()
        self._broker.declare(topology)
        if topology not in self._topologies:
            self._topologies.append(topology)

    async def consume(self, queue: str, *, prefetch: int) -> ChaosConsumer:
        """Subscribe to ``queue``."""
        link = await self._needed()
        consumer = ChaosConsumer(self, queue, prefetch)
        consumer.subscribe(link, self._broker.queue(queue))
        self._consumers[consumer] = None
        return consumer

    async def publish(self, message: Outgoing) -> None:
        """Publish, under the conditions that there are."""
        if len(message.body) > MAX_BODY_BYTES:
            raise MessageTooLarge(f"message {message.message_id} has {len(message.body):,} bytes")
        self._on_sent(message)
        if self.is_sound and self._broker.is_in_order:
            self._broker.publish(message, self._user, self._who)
        else:
            try:
                async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                    await self._publish(message)
            except TimeoutError:
                raise TransportUnavailable(f"message {message.message_id} is not confirmed in time") from None
        self._on_confirmed(message)

    async def _publish(self, message: Outgoing) -> None:
        conditions, rng, who, name = self._broker.conditions, self._rng, self._who, message.message_id
        await self._broker.unblocked()
        link = await self._needed()
        await self._travel(link, conditions.latency)
        if conditions.strikes("lost", rng, who, name):
            await self._fail_later(f"message {name} is lost")
        if conditions.strikes("unroutable", rng, who, name):
            raise Unroutable(f"no queue is bound for message {name}")
        if conditions.strikes("refused", rng, who, name):
            raise PublishRefused(f"a queue is full for message {name}")
        copies = 1
        if conditions.strikes("duplicated", rng, who, name):
            copies = rng.randint(2, rng.choice([2, 3, MOST_COPIES]))
        for _ in range(copies):
            self._broker.publish(message, self._user, who)
        await self._travel(link, conditions.latency)
        if conditions.strikes("unconfirmed", rng, who, name):
            await self._fail_later(f"message {name} is not confirmed")

    async def _travel(self, link: Link, mean: float) -> None:
        """Be on the way over ``link``; raises `TransportUnavailable` where it gets lost there."""
        if mean:
            await asyncio.sleep(self._rng.expovariate(1.0 / mean))
        if self._is_dead:
            raise asyncio.CancelledError
        if link.frozen:
            await link.gone.wait()
        if link.gone.is_set():
            raise TransportUnavailable(f"{self._who} lost the connection to the broker")

    async def _fail_later(self, why: str) -> None:
        await asyncio.sleep(self._rng.uniform(0.0, 3.0))
        raise TransportUnavailable(why)

    def delay(self) -> float:
        """Return how long the next delivery takes, in seconds."""
        mean = self._broker.conditions.delay
        return self._rng.expovariate(1.0 / mean) if mean else 0.0

    async def _needed(self) -> Link:
        if self._is_dead:
            raise asyncio.CancelledError
        if self._link is None or not self.connected:
            raise TransportUnavailable(f"{self._who} has no connection to the broker at the moment")
        if self._link.frozen:
            await self._link.gone.wait()
            raise TransportUnavailable(f"{self._who} lost the connection to the broker")
        return self._link

    def forget(self, consumer: ChaosConsumer) -> None:
        """Let ``consumer`` go."""
        self._consumers.pop(consumer, None)

    def resubscribe(self, consumer: ChaosConsumer) -> None:
        """Subscribe again when the broker has cancelled ``consumer``, after declaring its queue anew."""
        task = asyncio.create_task(self._resubscribe(consumer), name=f"resubscribe {self._who}")
        self._repairs[task] = None
        task.add_done_callback(lambda done: self._repairs.pop(done, None))

    async def _resubscribe(self, consumer: ChaosConsumer) -> None:
        link = self._link
        await asyncio.sleep(self._rng.uniform(0.0, 1.0))
        if link is None or link is not self._link or not self.is_sound or consumer not in self._consumers:
            return  # the next link subscribes to everything
        with suppress(NotDeclared):
            for topology in self._topologies:
                self._broker.declare(topology)
            consumer.subscribe(link, self._broker.queue(consumer.queue))
            return
        self._broker.drop(link)  # a link on which not everything is there is of no use

    async def __aenter__(self) -> Self:
        self._install(await self._connect())
        self._keeper = asyncio.create_task(self._keep(), name=f"connection of {self._who}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        tasks = [*self._repairs, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        link, self._link = self._link, None
        if link is not None:
            self._broker.leave(link)
        for consumer in list(self._consumers):
            await consumer.close()
        self._connections.end()

    async def _keep(self) -> None:
        while True:
            assert self._link is not None, "it is kept from the first link on"
            await self._link.gone.wait()
            self._connections.lost()
            self._on_event(Happening("lost", f"{self._who} lost the connection to the broker"))
            for consumer in self._consumers:
                consumer.lose()
            self._install(await self._connect())

    async def _connect(self) -> Link:
        attempt = 0
        while True:
            attempt += 1
            if self._broker.reachable(self._who):
                with suppress(TransportError):
                    for topology in self._topologies:
                        self._broker.declare(topology)
                    return Link(self._who)
            await asyncio.sleep(RECONNECT.seconds(attempt, self._rng))

    def _install(self, link: Link) -> None:
        self._link = link
        self._broker.join(link)
        for consumer in list(self._consumers):
            consumer.subscribe(link, self._broker.queue(consumer.queue))
        self._connections.made()
        self._on_event(Happening("connected", f"{self._who} is connected to the broker"))
