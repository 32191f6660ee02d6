"""A broker in this process: the transport contract without a network.

For embedded federations, simulations and tests. All of it happens on one event loop and nothing
happens by itself: publishing routes the message, fills the queues and hands deliveries to consumers
before it returns. The only clock is the loop's, and only messages that can grow too old look at it.
No threads, no random numbers, no sleeps: the same calls in the same order give the same deliveries,
so a loop with virtual time can run thousands of federations a minute.

What RabbitMQ does and no service here relies on is left out: persistence is the life of the object,
and there are no permissions. `MemoryBroker.disconnect` and `reconnect` play an outage.
"""

# ruff: noqa: SLF001 - these classes are the parts of one mechanism; the underscore keeps others out.

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from broker.errors import (
    MessageTooLarge,
    NotDeclared,
    PublishRefused,
    TopologyRefused,
    TransportUnavailable,
    Unroutable,
)
from broker.retry import Connections
from broker.transport import MAX_BODY_BYTES, Delivery, Happening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType

    from broker.topology import Queue, Topology
    from broker.transport import OnEvent, Outgoing


@dataclass(slots=True)
class _Message:
    """A message as one queue holds it."""

    routing_key: str
    body: bytes
    message_id: str
    user_id: str
    expires_at: float | None = None
    position: int = 0
    redelivered: bool = False
    #: Queues that dropped it or let it grow old: it does not go round in circles.
    died_in: frozenset[str] = frozenset()


class MemoryBroker:
    """Exchanges and queues, and the transports that are connected to them."""

    def __init__(self) -> None:
        self._bindings: dict[str, list[tuple[tuple[str, ...], _Queue]]] = {}
        self._queues: dict[str, _Queue] = {}
        self._routes: dict[tuple[str, str], tuple[_Queue, ...]] = {}
        # In the order of their coming: a set's order would differ from run to run.
        self._transports: dict[MemoryTransport, None] = {}
        self._unreachable = False
        self._cut_off: set[str] = set()

    def transport(self, user: str, *, on_event: OnEvent | None = None) -> MemoryTransport:
        """Return a transport that is authenticated as ``user`` once it is entered."""
        return MemoryTransport(self, user, on_event)

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
                transport._lose()
        for transport in self._transports:
            if self._reachable_for(transport.user):
                transport._connect()

    def _reachable_for(self, user: str) -> bool:
        return not self._unreachable and user not in self._cut_off

    def _join(self, transport: MemoryTransport) -> None:
        self._transports[transport] = None
        if self._reachable_for(transport.user):
            transport._connect()

    def _leave(self, transport: MemoryTransport) -> None:
        self._transports.pop(transport, None)

    def _declare(self, topology: Topology) -> None:
        for exchange in topology.exchanges:
            if exchange.passive:
                self._look_for_exchange(exchange.name)
            else:
                self._bindings.setdefault(exchange.name, [])
        for declared in topology.queues:
            queue = self._declare_queue(declared)
            for binding in declared.bindings:
                self._look_for_exchange(binding.exchange)
                bound = (_words(binding.pattern), queue)
                if bound not in self._bindings[binding.exchange]:
                    self._bindings[binding.exchange].append(bound)
        self._routes.clear()

    def _declare_queue(self, declared: Queue) -> _Queue:
        # Bindings are no argument of a queue: declaring again with others adds those.
        arguments = replace(declared, bindings=())
        queue = self._queues.setdefault(declared.name, _Queue(self, arguments))
        if queue.declared != arguments:
            raise TopologyRefused(
                f"the queue {declared.name} exists with other arguments; delete it, "
                f"or declare it as it was: {queue.declared}"
            )
        return queue

    def _look_for_exchange(self, name: str) -> None:
        if name not in self._bindings:
            raise NotDeclared(f"there is no exchange {name} yet; the aggregator declares it when it starts")

    def _queue(self, name: str) -> _Queue:
        if name not in self._queues:
            raise NotDeclared(f"there is no queue {name}; declare it before consuming")
        return self._queues[name]

    def _route(self, exchange: str, routing_key: str) -> tuple[_Queue, ...]:
        """Queues that want the message, each once, in the order of their bindings."""
        route = self._routes.get((exchange, routing_key))
        if route is None:
            words = _words(routing_key)
            matching = [queue for pattern, queue in self._bindings[exchange] if _matches(pattern, words)]
            route = self._routes[exchange, routing_key] = tuple(dict.fromkeys(matching))
        return route

    def _publish(self, outgoing: Outgoing, user: str) -> None:
        self._look_for_exchange(outgoing.exchange)
        queues = self._route(outgoing.exchange, outgoing.routing_key)
        if not queues:
            raise Unroutable(
                f"no queue is bound to {outgoing.exchange} for {outgoing.routing_key}; "
                f"whoever should receive message {outgoing.message_id} has not declared its queue"
            )
        message = _Message(outgoing.routing_key, outgoing.body, outgoing.message_id, user)
        if outgoing.expiration_seconds is not None:
            message.expires_at = _now() + outgoing.expiration_seconds
        # A list: every queue gets its copy, also behind one that is full.
        full = [queue.declared.name for queue in queues if not queue.offer(message)]
        if full:
            raise PublishRefused(
                f"{', '.join(full)} is full and would not take message {outgoing.message_id}; send it later"
            )

    def _bury(self, message: _Message, queue: Queue, *, rejected: bool) -> None:
        """Send a dead message to where ``queue`` wants it, if anywhere."""
        exchange = queue.dead_letter_exchange
        if exchange is None or exchange not in self._bindings:
            return
        died_in = frozenset[str]() if rejected else message.died_in | {queue.name}
        dead = replace(message, expires_at=None, redelivered=False, died_in=died_in)
        for wanting in self._route(exchange, message.routing_key):
            if wanting.declared.name not in died_in:
                wanting.offer(dead)


class _Queue:
    """Messages in order, and the consumers that are to have them."""

    def __init__(self, broker: MemoryBroker, declared: Queue) -> None:
        self.declared = declared
        self._broker = broker
        self._ready: deque[_Message] = deque()
        self._ready_bytes = 0
        self._consumers: deque[MemoryConsumer] = deque()
        self._positions = 0
        self._timer: asyncio.TimerHandle | None = None

    def offer(self, message: _Message) -> bool:
        """Take a copy of ``message``, unless this queue is full and refuses."""
        self._drop_expired()
        if self.declared.overflow == "reject-publish" and self._over(1, len(message.body)):
            return False
        self._positions += 1
        expires_at = message.expires_at
        if self.declared.ttl_seconds is not None:
            too_old_at = _now() + self.declared.ttl_seconds
            expires_at = too_old_at if expires_at is None else min(expires_at, too_old_at)
        self._ready.append(replace(message, position=self._positions, expires_at=expires_at))
        self._ready_bytes += len(message.body)
        self.deliver()
        return True

    def take_back(self, messages: Iterable[_Message]) -> None:
        """Put unsettled messages where they stood; that is before all that were never delivered."""
        returned = list(messages)
        if not returned:
            return
        for message in returned:
            message.redelivered = True
            self._ready_bytes += len(message.body)
        self._ready = deque(sorted([*returned, *self._ready], key=lambda message: message.position))
        self.deliver()

    def bury(self, message: _Message) -> None:
        """Send a rejected message to the dead letters."""
        self._broker._bury(message, self.declared, rejected=True)

    def attach(self, consumer: MemoryConsumer) -> None:
        """Let ``consumer`` have messages; behind those that are here already."""
        self._consumers.append(consumer)
        self.deliver()

    def detach(self, consumer: MemoryConsumer) -> None:
        """Give ``consumer`` no more messages. What it has it keeps."""
        self._consumers.remove(consumer)

    def deliver(self) -> None:
        """Hand out what there is to those who have room, then drop what is too much."""
        self._drop_expired()
        while self._ready and (consumer := self._next_consumer()) is not None:
            consumer._receive(self._pop_first())
            self._drop_expired()
        if self.declared.overflow == "drop-head":
            while self._ready and self._over(0, 0):
                self._broker._bury(self._pop_first(), self.declared, rejected=False)
        self._watch_age()

    def _over(self, more: int, more_bytes: int) -> bool:
        limits = (
            (len(self._ready) + more, self.declared.max_length),
            (self._ready_bytes + more_bytes, self.declared.max_bytes),
        )
        return any(limit is not None and size > limit for size, limit in limits)

    def _next_consumer(self) -> MemoryConsumer | None:
        """Whose turn it is; with a single active consumer, only ever the first one's."""
        if self.declared.single_active_consumer:
            return next((first for first in list(self._consumers)[:1] if first._has_room()), None)
        for _ in range(len(self._consumers)):
            self._consumers.rotate(-1)
            if self._consumers[-1]._has_room():
                return self._consumers[-1]
        return None

    def _pop_first(self) -> _Message:
        message = self._ready.popleft()
        self._ready_bytes -= len(message.body)
        return message

    def _drop_expired(self) -> None:
        # As in RabbitMQ, only the first message is looked at: one behind it expires when its turn comes.
        while self._ready and (at := self._ready[0].expires_at) is not None and at <= _now():
            self._broker._bury(self._pop_first(), self.declared, rejected=False)

    def _watch_age(self) -> None:
        """See to it that the first message leaves in time, even if nothing else happens here."""
        at = self._ready[0].expires_at if self._ready else None
        if self._timer is not None and self._timer.when() != at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        # Forgotten before it is looked at: loops may call a hair too early, and then it is set anew.
        self._timer = None
        self.deliver()


class MemoryTransport:
    """A user's connection to a `MemoryBroker`; see the transport contract."""

    def __init__(self, broker: MemoryBroker, user: str, on_event: OnEvent | None) -> None:
        self._broker = broker
        self._user = user
        self._on_event = on_event
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
        self._broker._declare(topology)

    async def publish(self, message: Outgoing) -> None:
        """Put ``message`` into every queue that wants it."""
        if len(message.body) > MAX_BODY_BYTES:
            raise MessageTooLarge(
                f"message {message.message_id} has {len(message.body):,} bytes; {MAX_BODY_BYTES:,} is the limit"
            )
        self._need_connection()
        self._broker._publish(message, self._user)

    async def consume(self, queue: str, *, prefetch: int) -> MemoryConsumer:
        """Subscribe to ``queue``, with at most ``prefetch`` deliveries unsettled."""
        if prefetch < 1:
            raise ValueError(f"a consumer has at least one delivery at a time, not {prefetch}")
        self._need_connection()
        consumer = MemoryConsumer(self, self._broker._queue(queue), prefetch)
        self._consumers[consumer] = None
        consumer._attach()
        return consumer

    def connections(self) -> AsyncIterator[int]:
        """Yield the number of the connection, now if there is one, then after each reconnection."""
        return aiter(self._connections)

    async def __aenter__(self) -> Self:
        self._broker._join(self)
        try:
            await anext(self.connections(), None)
        except BaseException:
            self._broker._leave(self)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._broker._leave(self)
        self._give_back()
        for consumer in list(self._consumers):
            await consumer.close()
        self._connections.end()

    def _need_connection(self) -> None:
        if not self.connected:
            raise TransportUnavailable(f"{self._user} has no connection to the broker at the moment")

    def _connect(self) -> None:
        if self.connected:
            return
        number = self._connections.made()
        for consumer in self._consumers:
            consumer._attach()
        self._tell(Happening("connected", f"{self._user} is connected to the broker ({number})"))

    def _lose(self) -> None:
        if not self.connected:
            return
        self._connections.lost()
        self._give_back()
        self._tell(Happening("lost", f"{self._user} lost the connection to the broker"))

    def _give_back(self) -> None:
        # First all stop, then all give back: or one would receive what another of them had.
        for consumer in self._consumers:
            consumer._detach()
        for consumer in self._consumers:
            consumer._give_back()

    def _tell(self, happening: Happening) -> None:
        if self._on_event is not None:
            self._on_event(happening)


class MemoryConsumer:
    """A standing subscription to one queue; see the transport contract."""

    def __init__(self, transport: MemoryTransport, queue: _Queue, prefetch: int) -> None:
        self._transport = transport
        self._queue = queue
        self._prefetch = prefetch
        self._unsettled: dict[int, MemoryDelivery] = {}
        self._untaken: deque[MemoryDelivery] = deque()
        self._arrival = asyncio.Event()
        self._tags = 0
        self._attached = False
        self._paused = False
        self._closed = False

    async def take(self) -> Delivery:
        """Return the next delivery, waiting for it."""
        while not self._untaken:
            if self._closed:
                raise TransportUnavailable(f"the consumer of {self._queue.declared.name} is closed")
            self._arrival.clear()
            await self._arrival.wait()
        return self._untaken.popleft()

    def waiting(self) -> list[Delivery]:
        """Take everything that has come already."""
        taken: list[Delivery] = list(self._untaken)
        self._untaken.clear()
        return taken

    async def pause(self) -> None:
        """Take no more messages; those that nobody took go back."""
        self._paused = True
        self._detach()
        untaken = list(self._untaken)
        self._untaken.clear()
        for delivery in untaken:
            del self._unsettled[delivery._tag]
        self._queue.take_back(delivery._message for delivery in untaken)

    async def resume(self) -> None:
        """Take messages again."""
        self._paused = False
        if self._transport.connected:
            self._attach()

    async def close(self) -> None:
        """End the subscription; what is unsettled goes back."""
        self._closed = True
        self._transport._consumers.pop(self, None)
        self._detach()
        self._give_back()
        self._arrival.set()

    def _attach(self) -> None:
        if not (self._attached or self._paused or self._closed):
            self._attached = True
            self._queue.attach(self)

    def _detach(self) -> None:
        if self._attached:
            self._attached = False
            self._queue.detach(self)

    def _give_back(self) -> None:
        unsettled = [delivery._message for delivery in self._unsettled.values()]
        self._unsettled.clear()
        self._untaken.clear()
        self._queue.take_back(unsettled)

    def _has_room(self) -> bool:
        return len(self._unsettled) < self._prefetch

    def _receive(self, message: _Message) -> None:
        self._tags += 1
        delivery = MemoryDelivery(self, self._tags, message)
        self._unsettled[self._tags] = delivery
        self._untaken.append(delivery)
        self._arrival.set()

    def _settle(self, tag: int, *, multiple: bool = False) -> bool:
        """Forget the delivery; False where it is no longer this consumer's to settle."""
        if tag not in self._unsettled:
            return False
        for settled in [each for each in self._unsettled if each == tag or (multiple and each < tag)]:
            del self._unsettled[settled]
        return True


class MemoryDelivery:
    """One message in the hands of a consumer."""

    __slots__ = ("_consumer", "_message", "_tag", "redelivered")

    def __init__(self, consumer: MemoryConsumer, tag: int, message: _Message) -> None:
        self._consumer = consumer
        self._tag = tag
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
        if self._consumer._settle(self._tag, multiple=multiple):
            self._consumer._queue.deliver()

    async def reject(self) -> None:
        """Send it to the dead letters."""
        if self._consumer._settle(self._tag):
            self._consumer._queue.bury(self._message)
            self._consumer._queue.deliver()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _words(key: str) -> tuple[str, ...]:
    return tuple(key.split(".")) if key else ()


def _matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether a topic pattern matches: ``*`` is one word, ``#`` any number of them."""
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _matches(rest, words[1:])
