"""The transport contract: what a service may rely on, whichever broker carries its messages.

Two implementations sit the same examination (`broker.testing.TransportContract`): `broker.memory`
in one process, and `broker.rabbitmq` over AMQP 0-9-1. In prose, the contract is this.

Publishing
    `publish` returns when the broker has taken responsibility for the message: it is in every
    queue that wants it, and on disk where queue and message are durable. It raises `Unroutable`
    when no queue wants it, `PublishRefused` when a full queue would not take it, and
    `TransportUnavailable` when the connection is away or goes away before the confirmation. In the
    last case the message may or may not have arrived: the caller sends it again with the same
    `message_id`, and the receiver knows it by that. `NotDeclared` and `TopologyRefused` say that the
    exchange is not there or not this user's to write to, and harm no other publication. Several may
    be under way at once; messages that one caller publishes one after the other to one queue arrive
    in that order.

Routing
    Exchanges are topic exchanges: words are separated by dots, ``*`` stands for one word and ``#``
    for any number of them, none included. A message goes at most once into each queue.

Consuming
    At most `prefetch` deliveries are with a consumer unsettled. `ack` settles one (or, with
    ``multiple``, all up to it) for good, `reject` sends it to the queue's dead-letter exchange.
    What is unsettled when a consumer is closed, or its process or connection lost, comes again with
    `redelivered` set, to the front of the queue, in its old order, any number of times. A settlement
    that cannot be sent since the connection is gone is no error: the message comes again, and its id
    is known. A second settlement changes nothing. `pause` stops further deliveries, also through a
    reconnection: what had come and was not taken goes back to the queue; what was taken stays with
    the consumer and can still be settled. `take` on a consumer that is or gets closed raises
    `TransportUnavailable`; a `take` that is cancelled loses nothing.

Queues
    Durable: a queue keeps its messages without a consumer, and through a restart of the broker.
    ``max_length`` with ``drop-head`` keeps the newest (so length 1 is "the newest only");
    with ``reject-publish`` the publisher is told. What is dropped, rejected or refused for its
    age goes to the dead-letter exchange where one is named.
    With a single active consumer, one of several gets all deliveries until it is gone.

Connection
    Entering the transport connects. Afterwards it reconnects by itself, for ever, with jittered
    back-off, declares again what `declare` was given, and its consumers go on; so do they when only
    a consumer was lost, as when its queue is deleted. `connections` yields once for each connection
    made, so that a service can introduce itself again (only the last one to who was away meanwhile),
    and ends when the transport is left. Credentials that are refused are an error at first; once it
    has worked, somebody is changing them, and it is tried again.
    What happens on the way is told to `on_event`, in sentences without secrets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from broker.messages import MAX_BODY_BYTES
from broker.topology import Topology

__all__ = ["MAX_BODY_BYTES", "Consumer", "Delivery", "Happening", "OnEvent", "Outgoing", "Transport"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to publish: where to, what, and the id by which a resend is known."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str
    persistent: bool = True
    expiration_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Happening:
    """What befell a connection, for logs, metrics and readiness.

    `detail` is a sentence for people; no secret is in it. `attempt` counts tries since the last success.
    """

    kind: Literal["connected", "lost", "unreachable", "refused", "consumer-lost", "blocked", "unblocked"]
    detail: str
    attempt: int = 0


OnEvent = Callable[[Happening], None]


class Delivery(Protocol):
    """One message in the hands of a consumer, to be settled once."""

    @property
    def body(self) -> bytes:
        """What was published, byte for byte."""

    @property
    def routing_key(self) -> str:
        """The key it was published with."""

    @property
    def message_id(self) -> str | None:
        """The publisher's id for it, by which a resend is known."""

    @property
    def user_id(self) -> str | None:
        """The authenticated sender. The broker validates it only where it is set: None is unknown."""

    @property
    def redelivered(self) -> bool:
        """Whether it may have been delivered before."""

    async def ack(self, *, multiple: bool = False) -> None:
        """Settle it for good; with ``multiple`` also all that this consumer was given before it."""

    async def reject(self) -> None:
        """Send it to the queue's dead-letter exchange."""


class Consumer(Protocol):
    """A standing subscription to one queue."""

    async def take(self) -> Delivery:
        """Return the next delivery, waiting for it."""

    def waiting(self) -> list[Delivery]:
        """Take everything that has come already, without waiting; may be empty."""

    async def pause(self) -> None:
        """Let no more come; what had come and was not taken goes back to the queue."""

    async def resume(self) -> None:
        """Let deliveries come again."""

    async def close(self) -> None:
        """End the subscription: what is unsettled comes again, to whoever consumes next."""


class Transport(Protocol):
    """A connection to a broker, kept for the life of a service."""

    @property
    def user(self) -> str:
        """The user that this transport is authenticated as, set on every message it publishes."""

    @property
    def connected(self) -> bool:
        """Whether messages can travel at this moment."""

    async def declare(self, topology: Topology) -> None:
        """Declare, now and after every reconnection; raises `NotDeclared` or `TopologyRefused`."""

    async def publish(self, message: Outgoing) -> None:
        """Return when the broker has taken responsibility for ``message``; see the contract for what is raised."""

    async def consume(self, queue: str, *, prefetch: int) -> Consumer:
        """Subscribe to ``queue`` with at most ``prefetch`` unsettled deliveries; raises `NotDeclared`."""

    def connections(self) -> AsyncIterator[int]:
        """Yield the number of the connection, now if there is one, then after each reconnection."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...
