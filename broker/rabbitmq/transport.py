"""The transport contract over RabbitMQ, as services see it: a supervisor's links, and their consumers."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Self

from broker.errors import MessageTooLarge
from broker.rabbitmq.consumer import RabbitMQConsumer
from broker.rabbitmq.supervisor import Supervisor
from broker.retry import RECONNECT, Backoff
from broker.transport import MAX_BODY_BYTES
from broker.url import Address, TLSSettings, parse_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from types import TracebackType

    from broker.rabbitmq.link import Link
    from broker.topology import Topology
    from broker.transport import OnEvent, Outgoing


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
        tls = tls or TLSSettings()
        self._user = _common_user(self._addresses, tls, user)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._publish_timeout_seconds = publish_timeout_seconds
        self._supervisor = Supervisor(
            self._addresses,
            self._user,
            tls=tls,
            heartbeat_seconds=heartbeat_seconds,
            backoff=backoff,
            rng=rng or random.Random(),  # noqa: S311 - jitter is no secret
            on_event=on_event,
        )
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
        return self._supervisor.connections.up

    def connections(self) -> AsyncIterator[int]:
        """Yield the number of the connection, now if there is one, then after each reconnection."""
        return aiter(self._supervisor.connections)

    async def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings, now and after every reconnection."""
        await self._link.declare([topology])
        if topology not in self._supervisor.topologies:
            self._supervisor.topologies.append(topology)

    async def publish(self, message: Outgoing) -> None:
        """Publish and wait until the broker has taken responsibility."""
        if len(message.body) > MAX_BODY_BYTES:
            raise MessageTooLarge(
                f"message {message.message_id} has {len(message.body):,} bytes; {MAX_BODY_BYTES:,} is the limit"
            )
        await self._link.publish(message, self._publish_timeout_seconds)

    async def consume(self, queue: str, *, prefetch: int) -> RabbitMQConsumer:
        """Subscribe to ``queue``, with at most ``prefetch`` deliveries unsettled, until closed."""
        if prefetch < 1:
            raise ValueError(f"a consumer has at least one delivery at a time, not {prefetch}")
        consumer = RabbitMQConsumer(self._supervisor, queue, prefetch=prefetch, forget=self._forget)
        await consumer.start(self._link)
        self._consumers[consumer] = None
        return consumer

    async def __aenter__(self) -> Self:
        await self._supervisor.start(self._connect_timeout_seconds)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        await self._supervisor.stop()
        await asyncio.gather(*(consumer.close() for consumer in list(self._consumers)))
        await self._supervisor.close()

    @property
    def _link(self) -> Link:
        return self._supervisor.link()

    def _forget(self, consumer: RabbitMQConsumer) -> None:
        self._consumers.pop(consumer, None)


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
