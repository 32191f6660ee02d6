"""The transport contract over RabbitMQ: AMQP 0-9-1 with aio-pika, kept connected.

A `_Link` is two connections to one node, used and lost together: an alarm on the broker blocks the one
that publishes, and what arrives must still be settled. Three kinds of task keep things going:

===============  =================================  ==================================================
who              waits for                          then
===============  =================================  ==================================================
the supervisor   the link to be gone                next URL, with jittered back-off, until there is a
                                                    link again; declares; `connections` yields
each consumer    its channel to be gone             declares if only the channel went; a new channel
                 (error, queue deleted, link lost)  with its own prefetch; consumes again
a publication    the broker's answer                returns or raises
===============  =================================  ==================================================

aio-pika's own robust connection is not used: it knows one URL, no jitter, and retries a wrong password
for ever without a word. Its errors do not leave this module (`_in_our_words`).
"""

# ruff: noqa: SLF001 - these classes are the parts of one mechanism; the underscore keeps others out.

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import re
import ssl
import struct
from collections import defaultdict, deque
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Self

import aio_pika
from aio_pika import exceptions as amqp
from aio_pika.connection import make_url
from aiormq import spec
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from broker.errors import (
    ConnectionTimeout,
    CredentialsRefused,
    MessageTooLarge,
    NotDeclared,
    PublishRefused,
    TopologyRefused,
    TransportError,
    TransportUnavailable,
    Unroutable,
)
from broker.retry import Backoff, Connections
from broker.transport import MAX_BODY_BYTES, Delivery, Happening
from broker.url import Address, TLSSettings, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
    from types import TracebackType

    from aio_pika.abc import AbstractChannel, UnderlayConnection
    from aiormq.abc import AbstractChannel as RawChannel
    from aiormq.abc import DeliveredMessage
    from pamqp.common import FieldTable

    from broker.topology import Queue, Topology
    from broker.transport import OnEvent, Outgoing

#: Seconds for one attempt to connect, and for any other question that a healthy broker answers at once.
ANSWER_SECONDS = 10.0
#: Seconds for a good-bye; a broker that is gone or frozen gives none.
CLOSE_SECONDS = 3.0
#: Seconds after which an unconfirmed publication makes us look whether the broker blocks publishers.
BLOCK_SUSPECTED_SECONDS = 1.0
#: Seconds within which a connection that is not blocked is ready: it is so already.
READY_SECONDS = 0.1
#: Waits between attempts to connect: a restart takes seconds, and a hundred services share the broker.
RECONNECT = Backoff(first_seconds=0.2, longest_seconds=15.0)
#: RabbitMQ 4 drops a message of a quorum queue that came back 20 times. A pause or a crash sends messages
#: back that nothing is wrong with, and the receiver rejects what is, so the limit is put out of reach.
DELIVERY_LIMIT = 1_000_000

_HUNG_UP = (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)
_CERTIFICATE_ALERT = re.compile(r"certificate|unknown[ _]ca", re.IGNORECASE)
_TRANSIENT, _PERSISTENT = 1, 2  # delivery modes of AMQP 0-9-1
# What the client raises when its connection or channel is not what it was; the last four are how a frame
# shows that makes no sense.
_FAILURES = (*amqp.CONNECTION_EXCEPTIONS, EOFError, LookupError, ValueError, struct.error)
_REFUSALS = (ChannelAccessRefused, ChannelLockedResource, amqp.ChannelPreconditionFailed)

# All that they tell is told to `on_event`, in one sentence each; theirs come with tracebacks at every
# attempt, and at debug level with the bodies of messages.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class RabbitMQTransport:
    """A connection to RabbitMQ, kept for the life of a service; see the transport contract.

    Parameters
    ----------
    urls
        One, or those of the nodes of a cluster, which are tried in turn. The user is the same in all.
    user
        Who the client certificate stands for, where neither the URL nor its common name says so.
    on_event
        Told what befalls the connection, in sentences without secrets.
    connect_timeout_seconds
        How long entering tries to reach a broker before it raises `ConnectionTimeout`; None is for ever.
    heartbeat_seconds
        A peer that is silent for three of these is taken for dead.
    publish_timeout_seconds
        How long a publication waits for its confirmation before it raises `TransportUnavailable`.
    rng
        For the jitter.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        user: str | None = None,
        on_event: OnEvent | None = None,
        connect_timeout_seconds: float | None = None,
        heartbeat_seconds: int = 10,
        publish_timeout_seconds: float = 30.0,
        backoff: Backoff = RECONNECT,
        rng: random.Random | None = None,
        tls: TLSSettings | None = None,
    ) -> None:
        self._addresses = [parse_url(url) for url in ([urls] if isinstance(urls, str) else urls)]
        self._tls = tls or TLSSettings()
        self._user = _common_user(self._addresses, self._tls, user)
        self._on_event = on_event
        self._connect_timeout_seconds = connect_timeout_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._publish_timeout_seconds = publish_timeout_seconds
        self._backoff = backoff
        self._rng = rng or random.Random()  # noqa: S311 - jitter is no secret
        self._connections = Connections()
        self._link: _Link | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._topologies: list[Topology] = []
        self._consumers: dict[RabbitMQConsumer, None] = {}

    def __repr__(self) -> str:
        where = ", ".join(address.where for address in self._addresses)
        return f"<{type(self).__name__} {self._user} at {where}>"

    @property
    def user(self) -> str:
        """The login, set on every message that this transport publishes."""
        return self._user

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self._connections.up

    def connections(self) -> AsyncIterator[int]:
        """Yield the number of the connection, now if there is one, then after each reconnection."""
        return aiter(self._connections)

    async def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings, now and after every reconnection."""
        await self._need_link().declare([topology])
        if topology not in self._topologies:
            self._topologies.append(topology)

    async def publish(self, message: Outgoing) -> None:
        """Publish and wait until the broker has taken responsibility."""
        if len(message.body) > MAX_BODY_BYTES:
            raise MessageTooLarge(
                f"message {message.message_id} has {len(message.body):,} bytes; {MAX_BODY_BYTES:,} is the limit"
            )
        await self._need_link().publish(message, self._publish_timeout_seconds)

    async def consume(self, queue: str, *, prefetch: int) -> RabbitMQConsumer:
        """Subscribe to ``queue``, with at most ``prefetch`` deliveries unsettled, until closed."""
        if prefetch < 1:
            raise ValueError(f"a consumer has at least one delivery at a time, not {prefetch}")
        consumer = RabbitMQConsumer(self, queue, prefetch)
        await consumer._start(self._need_link())
        self._consumers[consumer] = None
        return consumer

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                self._install(await self._connect(first=True))
        except TimeoutError as error:
            raise ConnectionTimeout(
                f"no broker at {' or '.join(address.where for address in self._addresses)} "
                f"within {self._connect_timeout_seconds:g} s; see that it runs, that host and port are right, "
                f"and that no firewall stands between"
            ) from error
        self._supervisor = _keep_going(self._supervise(), f"connection of {self._user}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._connections.end()
        if self._supervisor is not None:
            await _end(self._supervisor)
        await asyncio.gather(*(consumer.close() for consumer in list(self._consumers)))
        if self._link is not None:
            await self._link.close()

    def _need_link(self) -> _Link:
        if self._link is None or not self.connected:
            raise TransportUnavailable(f"{self._user} has no connection to the broker at the moment")
        return self._link

    async def _next_link(self) -> _Link:
        """Return the link as soon as there is one."""
        while self._link is None or not self.connected:
            await self._connections.changed()
        return self._link

    async def _supervise(self) -> None:
        while True:
            link = await self._next_link()
            await link.gone.wait()
            self._connections.lost()
            self._tell("lost", f"the connection to the broker at {link.address.where} is lost: {link.reason}")
            await link.close()
            self._install(await self._connect(first=False))

    def _install(self, link: _Link) -> None:
        self._link = link
        number = self._connections.made()
        self._tell("connected", f"{self._user} is connected to the broker at {link.address.where} ({number})")

    async def _connect(self, *, first: bool) -> _Link:
        """Try the addresses in turn until one of them gives a link that has all we need."""
        addresses = itertools.cycle(self._addresses)
        for attempt in itertools.count(1):
            try:
                return await self._open(next(addresses))
            except TransportUnavailable as error:
                self._tell("unreachable", str(error), attempt)
            except TransportError as error:
                if first:
                    raise
                # It did work before: somebody is changing a password or restoring the broker.
                self._tell("refused", str(error), attempt)
            await asyncio.sleep(self._backoff.seconds(attempt, self._rng))
        raise AssertionError("counting never ends")

    async def _open(self, address: Address) -> _Link:
        link = _Link(address, self._user, self._tell)
        try:
            await link.open(self._tls, self._heartbeat_seconds)
            await link.declare(self._topologies)
        except BaseException:
            await link.close()
            raise
        return link

    def _tell(self, kind: Any, detail: str, attempt: int = 0) -> None:
        if self._on_event is None:
            return
        try:
            self._on_event(Happening(kind, detail, attempt))
        except Exception as error:  # noqa: BLE001 - a listener's mistake must not end the reconnecting
            context = {"message": f"on_event failed for {kind}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def _common_user(addresses: list[Address], tls: TLSSettings, user: str | None) -> str:
    """Return who we are: one user, whichever node of the cluster is asked."""
    if not addresses:
        raise ValueError("there is no URL of a broker")
    for address in addresses:
        if not address.tls and tls != TLSSettings():
            raise ValueError(f"TLS settings are given; the URL of the broker at {address.where} begins with amqp://")
        if address.password is None and tls.cert_file is None:
            raise ValueError(f"neither password nor certificate for the broker at {address.where}")
    names = {name for name in (user, *(address.user for address in addresses)) if name is not None}
    if len(names) > 1:
        raise ValueError(f"one service is one user; here are {', '.join(sorted(names))}")
    return names.pop() if names else tls.common_name()


class _Link:
    """Two connections to one node, and the channel that publishes. Once gone, it stays gone."""

    def __init__(self, address: Address, user: str, tell: Callable[..., None]) -> None:
        self.address = address
        self.gone = asyncio.Event()
        self.reason = ""
        self.subscriptions: set[_Subscription] = set()
        self._user = user
        self._tell = tell
        self._connections: list[aio_pika.Connection] = []
        self._publishing: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._trying: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._routes_tried: set[tuple[str, str]] = set()
        self._block_watch: asyncio.Task[None] | None = None

    async def open(self, tls: TLSSettings, heartbeat_seconds: int) -> None:
        """Connect both. Raises `TransportUnavailable` or `CredentialsRefused`."""
        address = self.address
        url = make_url(
            host=address.host,
            port=address.port,
            login=self._user,
            password=address.password or "",
            virtualhost=address.vhost,
            ssl=address.tls,
            heartbeat=heartbeat_seconds,
            auth="EXTERNAL" if address.password is None else "PLAIN",
        )
        context = await asyncio.to_thread(tls.context) if address.tls else None
        for purpose in ("publish", "consume"):
            properties: FieldTable = {"connection_name": f"fedmq {self._user} {purpose}"}
            connection = aio_pika.Connection(url, ssl_context=context, client_properties=properties)
            self._connections.append(connection)
            connection.close_callbacks.add(self._on_close)
            with _in_our_words():
                try:
                    await connection.connect(timeout=ANSWER_SECONDS)
                except _FAILURES as error:
                    alert = await _tls_alert(error, address, context)
                    raise _why_no_connection(alert or error, address, self._user) from error

    async def close(self) -> None:
        """Say good-bye, if anybody is there to hear it."""
        self.gone.set()
        if self._block_watch is not None:
            await _end(self._block_watch)
        for connection in self._connections:
            with suppress(TransportError), _in_our_words():
                async with asyncio.timeout(CLOSE_SECONDS):
                    await connection.close()

    def lose(self, reason: str) -> None:
        """Give the link up, and all that depends on it."""
        self.reason = self.reason or reason
        self.gone.set()
        for subscription in self.subscriptions:
            subscription.lose(reason)

    def _on_close(self, _sender: object, error: BaseException | None) -> None:
        self.lose(_said(error))

    async def open_channel(self, *, publishing: bool) -> AbstractChannel:
        """Open a channel on the connection for its purpose."""
        connection = self._connections[0 if publishing else 1]
        channel = connection.channel(publisher_confirms=publishing, on_return_raises=publishing)
        await channel.initialize()
        return channel

    @asynccontextmanager
    async def _passing_channel(self, *, publishing: bool) -> AsyncIterator[AbstractChannel]:
        channel = await self.open_channel(publishing=publishing)
        try:
            yield channel
        finally:
            await _close(channel)

    async def declare(self, topologies: Sequence[Topology]) -> None:
        """Declare everything. Raises `NotDeclared` or `TopologyRefused`, naming what the broker named."""
        if not topologies:
            return
        with _in_our_words():
            # A refusal closes the channel, so it is one for this purpose.
            async with asyncio.timeout(ANSWER_SECONDS), self._passing_channel(publishing=False) as channel:
                for topology in topologies:
                    await _declare(channel, topology)

    async def publish(self, message: Outgoing, timeout_seconds: float) -> None:
        """Send ``message`` and wait for the answer.

        The broker answers a forbidden or misaddressed message by closing the channel, which fails
        whatever else is under way there, and what the client still writes to a closed channel costs
        the connection. So the first message of each route goes alone, on a channel of its own; all
        that follow share one.
        """
        suspicion = asyncio.get_running_loop().call_later(BLOCK_SUSPECTED_SECONDS, self._look_for_block)
        try:
            with _in_our_words():
                async with asyncio.timeout(timeout_seconds):
                    # While the broker blocks publishers nothing is sent: each retry would arrive later.
                    await self._unblocked()
                    await self._publish(message)
        except TransportUnavailable as error:
            raise TransportUnavailable(f"message {message.message_id} is not confirmed: {error}") from error
        finally:
            suspicion.cancel()

    async def _publish(self, message: Outgoing) -> None:
        route = message.exchange, message.routing_key
        if route not in self._routes_tried:
            async with self._trying[route]:
                if route not in self._routes_tried:
                    await self._try_route(route, message)
                    return
        try:
            await self._send(await self._shared_channel(), message)
        except (amqp.AMQPChannelError, amqp.ChannelInvalidStateError):
            if self.gone.is_set():
                raise
            # Somebody deleted an exchange or took a permission away. Whose message it was shows alone; the
            # receiver knows one that comes twice by its id.
            await self._publish_alone(message)

    async def _try_route(self, route: tuple[str, str], message: Outgoing) -> None:
        try:
            await self._publish_alone(message)
        except (PublishRefused, Unroutable):
            # Answers to a message that is allowed.
            self._routes_tried.add(route)
            raise
        self._routes_tried.add(route)

    async def _publish_alone(self, message: Outgoing) -> None:
        async with self._passing_channel(publishing=True) as alone:
            await self._send(alone, message)

    async def _send(self, channel: AbstractChannel, message: Outgoing) -> None:
        # Below aio-pika's exchange, which costs as much again as the rest of a publication.
        raw = await channel.get_underlay_channel()
        lifetime = message.expiration_seconds
        properties = spec.Basic.Properties(
            message_id=message.message_id,
            user_id=self._user,
            delivery_mode=_PERSISTENT if message.persistent else _TRANSIENT,
            expiration=None if lifetime is None else str(round(lifetime * 1000)),
        )
        try:
            await raw.basic_publish(
                message.body,
                exchange=message.exchange,
                routing_key=message.routing_key,
                properties=properties,
                mandatory=True,
            )
        except amqp.PublishError as error:
            raise Unroutable(
                f"no queue is bound to {message.exchange} for {message.routing_key}; "
                f"whoever should receive message {message.message_id} has not declared its queue"
            ) from error
        except amqp.DeliveryError as error:
            raise PublishRefused(
                f"a queue behind {message.exchange} would not take message {message.message_id}, "
                f"since it is full or has no leader; send it later"
            ) from error

    async def _shared_channel(self) -> AbstractChannel:
        """Return the channel that all publications share; opened anew after the broker closed it."""
        if self._publishing is not None and not self._publishing.is_closed:
            return self._publishing
        async with self._opening:
            if self._publishing is None or self._publishing.is_closed:
                self._publishing = await self.open_channel(publishing=True)
            return self._publishing

    async def _unblocked(self) -> None:
        transport = self._connections[0].transport
        if transport is None or self.gone.is_set():
            raise TransportUnavailable(f"the connection to the broker at {self.address.where} is lost")
        await transport.ready()

    def _look_for_block(self) -> None:
        transport = self._connections[0].transport
        watching = self._block_watch is not None and not self._block_watch.done()
        if transport is not None and not (watching or self.gone.is_set()):
            self._block_watch = asyncio.create_task(self._watch_block(transport))

    async def _watch_block(self, transport: UnderlayConnection) -> None:
        # The client keeps to itself that it is blocked; that it is not ready is all it shows.
        ready = asyncio.ensure_future(transport.ready())
        try:
            done, _ = await asyncio.wait([ready], timeout=READY_SECONDS)
            if not done:
                where = self.address.where
                self._tell("blocked", f"the broker at {where} takes no messages: its memory or disk is full")
                await asyncio.wait([ready])
                self._tell("unblocked", f"the broker at {where} takes messages again")
        finally:
            ready.cancel()


async def _declare(channel: AbstractChannel, topology: Topology) -> None:
    for exchange in topology.exchanges:
        if exchange.passive:
            await channel.get_exchange(exchange.name)
        else:
            await channel.declare_exchange(exchange.name, aio_pika.ExchangeType.TOPIC, durable=True)
    for declared in topology.queues:
        queue = await channel.declare_queue(declared.name, durable=True, arguments=_arguments(declared))
        for binding in declared.bindings:
            await queue.bind(binding.exchange, binding.pattern)


def _arguments(queue: Queue) -> dict[str, Any]:
    """Return the AMQP arguments for what ``queue`` promises."""
    arguments = {
        "x-queue-type": queue.kind,
        "x-delivery-limit": DELIVERY_LIMIT if queue.kind == "quorum" else None,
        "x-max-length": queue.max_length,
        "x-max-length-bytes": queue.max_bytes,
        "x-overflow": queue.overflow,
        "x-message-ttl": None if queue.ttl_seconds is None else round(queue.ttl_seconds * 1000),
        "x-expires": None if queue.expires_seconds is None else round(queue.expires_seconds * 1000),
        "x-single-active-consumer": queue.single_active_consumer or None,
        "x-dead-letter-exchange": queue.dead_letter_exchange,
    }
    return {name: value for name, value in arguments.items() if value is not None}


class RabbitMQConsumer:
    """A standing subscription to one queue, on a channel of its own; see the transport contract."""

    def __init__(self, transport: RabbitMQTransport, queue: str, prefetch: int) -> None:
        self._transport = transport
        self._queue = queue
        self._prefetch = prefetch
        self._untaken: deque[RabbitMQDelivery] = deque()
        self._arrival = asyncio.Event()
        self._paused = False
        self._closed = False
        # Held while the subscription is made, paused, resumed or ended.
        self._changing = asyncio.Lock()
        self._subscription: _Subscription | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def take(self) -> Delivery:
        """Return the next delivery, waiting for it."""
        while not self._untaken:
            if self._closed:
                raise TransportUnavailable(f"the consumer of {self._queue} is closed")
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
        async with self._changing:
            self._paused = True
            if self._subscription is not None and await self._subscription.stop():
                untaken = list(self._untaken)
                self._untaken.clear()
                for delivery in untaken:
                    await delivery._give_back()

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
        self._transport._consumers.pop(self, None)
        if self._keeper is not None:
            await _end(self._keeper)
        async with self._changing:
            await self._drop_subscription()
        self._arrival.set()

    async def _start(self, link: _Link) -> None:
        await self._subscribe(link)
        self._keeper = _keep_going(self._keep(link), f"consumer of {self._queue}")

    async def _keep(self, link: _Link) -> None:
        """Subscribe again, whatever ended the subscription."""
        while (subscription := self._subscription) is not None:
            await subscription.gone.wait()
            async with self._changing:
                await self._drop_subscription()
            if not link.gone.is_set():
                self._tell_lost(f"the broker ended the consumer of {self._queue}: {subscription.reason}", 0)
            link = await self._subscribe_again()

    async def _subscribe_again(self) -> _Link:
        for attempt in itertools.count(1):
            link = await self._transport._next_link()
            try:
                # The queue may have been deleted; where it was not, this changes nothing.
                await link.declare(self._transport._topologies)
                await self._subscribe(link)
            except TransportError as error:
                if not link.gone.is_set():
                    self._tell_lost(f"cannot consume from {self._queue}: {error}", attempt)
                await asyncio.sleep(self._transport._backoff.seconds(attempt, self._transport._rng))
            else:
                return link
        raise AssertionError("counting never ends")

    def _tell_lost(self, detail: str, attempt: int) -> None:
        self._transport._tell("consumer-lost", detail, attempt)

    async def _subscribe(self, link: _Link) -> None:
        async with self._changing:
            with _in_our_words():
                subscription = await _Subscription.open(link, self)
            # Before it starts: the first delivery may come before the answer does.
            self._subscription = subscription
            if not self._paused:
                try:
                    await subscription.start()
                except BaseException:
                    await self._drop_subscription()
                    raise

    async def _drop_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        self._untaken.clear()
        if subscription is not None:
            await subscription.close()


class _Subscription:
    """What lasts as long as one channel of a consumer: the tags of its deliveries mean nothing later."""

    def __init__(self, link: _Link, consumer: RabbitMQConsumer, channel: AbstractChannel, raw: RawChannel) -> None:
        self.gone = asyncio.Event()
        self.reason = ""
        self.raw = raw
        self._link = link
        self._consumer = consumer
        self._channel = channel
        self._unsettled: set[int] = set()
        self._tag: str | None = None

    @classmethod
    async def open(cls, link: _Link, consumer: RabbitMQConsumer) -> _Subscription:
        """Open a channel with the consumer's prefetch; `start` consumes."""
        async with asyncio.timeout(ANSWER_SECONDS):
            channel = await link.open_channel(publishing=False)
            await channel.set_qos(prefetch_count=consumer._prefetch)
            # Below aio-pika's queue: it would wrap each delivery in two more tasks, and does not tell
            # when the broker cancels a consumer.
            raw = await channel.get_underlay_channel()
        subscription = cls(link, consumer, channel, raw)
        channel.close_callbacks.add(subscription._on_close)
        raw.on_consumer_cancel_callbacks.add(subscription._on_cancel)
        link.subscriptions.add(subscription)
        if link.gone.is_set():
            subscription.lose(link.reason)
        return subscription

    async def start(self) -> None:
        """Consume, unless it does already."""
        if self._tag is not None:
            return
        try:
            with _in_our_words():
                async with asyncio.timeout(ANSWER_SECONDS):
                    answer = await self.raw.basic_consume(self._consumer._queue, self._on_message)
        except TransportError as error:
            # Also where the channel is still open: without an answer nobody knows whether it consumes.
            self.lose(str(error))
            raise
        self._tag = answer.consumer_tag

    async def stop(self) -> bool:
        """Cancel the consumer and keep the channel; False where it is not there to be stopped."""
        tag, self._tag = self._tag, None
        if tag is None or self.gone.is_set():
            return False
        try:
            with _in_our_words():
                async with asyncio.timeout(ANSWER_SECONDS):
                    await self.raw.basic_cancel(tag)
        except TransportError as error:
            self.lose(str(error))
            return False
        return True

    async def close(self) -> None:
        """Close the channel: the broker puts back what is unsettled."""
        self.gone.set()
        self._link.subscriptions.discard(self)
        await _close(self._channel)

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
        except _FAILURES:
            pass
        except asyncio.CancelledError:
            self._unsettled |= settled
            raise

    async def _on_message(self, message: DeliveredMessage) -> None:
        delivery = RabbitMQDelivery(self, message)
        self._unsettled.add(delivery._tag)
        consumer = self._consumer
        if consumer._subscription is self:
            consumer._untaken.append(delivery)
            consumer._arrival.set()

    def _on_close(self, _sender: object, error: BaseException | None) -> None:
        self.lose(_said(error))

    def _on_cancel(self, _frame: object) -> None:
        self.lose("the queue was deleted or its leader is gone")


class RabbitMQDelivery:
    """One message in the hands of a consumer, to be settled once."""

    __slots__ = ("_subscription", "_tag", "body", "message_id", "redelivered", "routing_key", "user_id")

    def __init__(self, subscription: _Subscription, message: DeliveredMessage) -> None:
        properties = message.header.properties
        self._subscription = subscription
        self._tag = message.delivery_tag or 0
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

    async def _give_back(self) -> None:
        raw, tag = self._subscription.raw, self._tag
        await self._subscription.settle(tag, lambda: raw.basic_reject(tag, requeue=True, wait=False))


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turn whatever the client raises into one of our errors, and leave cancelling to those who cancel.

    The client confuses the two. It ends its futures in `CancelledError` when a connection dies of
    missing heartbeats: the caller's task would end in silence. And where a connection dies while the
    caller is being cancelled, it raises the connection's error, or nothing: the caller would go on.
    """
    task = asyncio.current_task()
    assert task is not None, "a transport is used inside tasks"
    before = task.cancelling()
    try:
        with _errors_in_our_words():
            yield
    except asyncio.CancelledError:
        if task.cancelling() > before:
            raise
        raise TransportUnavailable("the connection to the broker died") from None
    except TransportError:
        if task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError


@contextmanager
def _errors_in_our_words() -> Iterator[None]:
    try:
        yield
    except TransportError:
        raise
    except amqp.ChannelNotFoundEntity as error:
        raise NotDeclared(f"{_said(error)}; its owner has not declared it yet") from error
    except _REFUSALS as error:
        raise TopologyRefused(f"the broker does not allow this: {_said(error)}") from error
    except _FAILURES as error:
        raise TransportUnavailable(f"the connection to the broker failed: {_said(error)}") from error


async def _tls_alert(error: BaseException, address: Address, context: ssl.SSLContext | None) -> ssl.SSLError | None:
    """Return why a broker hung up on a TLS connection, if it says so.

    In TLS 1.3 the client takes the handshake for done before the broker has looked at its certificate.
    Our first bytes then meet a closed door, and the reset that answers them overtakes the alert with the
    reason; every second time, where measured. Who listens before speaking hears it.
    """
    if context is None or not isinstance(error.__cause__, _HUNG_UP):
        return None
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            try:
                await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLError as alert:
        return alert
    except OSError:
        return None
    return None


def _why_no_connection(error: BaseException, address: Address, user: str) -> TransportError:
    """Tell apart what somebody has to mend from what waiting may mend."""
    where = address.where
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.AuthenticationError)):
        return CredentialsRefused(
            f"the broker at {where} refuses the login of {user}: {_said(error)}; "
            f"check the user name and the password or certificate"
        )
    if isinstance(error, amqp.InvalidFrameError) and "OpenOk" in str(error):
        # The client hides the broker's reason (530) for closing where it should have opened the vhost.
        return CredentialsRefused(
            f"the broker at {where} does not let {user} into the vhost {address.vhost}; "
            f"check that it exists and that the user has permissions there"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return CredentialsRefused(
            f"the certificate of the broker at {where} is not to be trusted: {cause.verify_message}; "
            f"check the CA file, and that the certificate names this host"
        )
    if isinstance(cause, ssl.SSLError) and _CERTIFICATE_ALERT.search(str(cause)):
        return CredentialsRefused(f"the broker at {where} refuses our certificate: {cause}; check who signed it")
    return TransportUnavailable(
        f"cannot reach the broker at {where}: {_said(error)}; is it running, and is nothing in between?"
    )


def _said(error: BaseException | None) -> str:
    """Return what the broker or the system said, without numbers and types."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, asyncio.CancelledError):
        return "no heartbeat"
    words = [str(word) for word in error.args if isinstance(word, str)] if error is not None else []
    return ", ".join(words) or "closed without a reason"


async def _close(channel: AbstractChannel) -> None:
    with suppress(TransportError), _in_our_words():
        async with asyncio.timeout(CLOSE_SECONDS):
            await channel.close()


def _keep_going(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task that ends by being cancelled only; any other end is a mistake in here, and is reported."""

    def report(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            context = {"message": f"the {name} is not kept up any more", "exception": task.exception()}
            task.get_loop().call_exception_handler(context)

    task = asyncio.create_task(work, name=name)
    task.add_done_callback(report)
    return task


async def _end(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])
