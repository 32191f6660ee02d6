"""Two connections to one node, used and lost together.

An alarm on the broker blocks the connection that publishes, and what arrives must still be settled: so
one publishes and the other does the rest.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import aio_pika
from aio_pika.connection import make_url

from broker.errors import TransportError, TransportUnavailable
from broker.rabbitmq.channels import open_channel, passing_channel
from broker.rabbitmq.declaring import declare_topology
from broker.rabbitmq.publishing import Publisher
from broker.rabbitmq.tasks import end
from broker.rabbitmq.words import (
    ANSWER_SECONDS,
    CLOSE_SECONDS,
    FAILURES,
    in_our_words,
    said,
    tls_alert,
    why_no_connection,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aio_pika.abc import AbstractChannel, UnderlayConnection
    from pamqp.common import FieldTable

    from broker.topology import Topology
    from broker.transport import Outgoing
    from broker.url import Address, TLSSettings

#: Seconds after which an unconfirmed publication makes us look whether the broker blocks publishers.
BLOCK_SUSPECTED_SECONDS = 1.0
#: Seconds within which a connection that is not blocked is ready: it is so already.
READY_SECONDS = 0.1

# All that they tell is told to `on_event`, in one sentence each; theirs come with tracebacks at every
# attempt, and at debug level with the bodies of messages.
for _name in ("aio_pika", "aiormq"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Link:
    """Two connections to one node, and what publishes over them. Once gone, it stays gone.

    Parameters
    ----------
    address
        The node.
    user
        Who logs in, and in whose name messages are published.
    tell
        Told when the broker blocks publishers, and when it no longer does.
    """

    def __init__(self, address: Address, user: str, tell: Callable[..., None]) -> None:
        self.address = address
        self.gone = asyncio.Event()
        self.reason = ""
        #: Told why, when the link is gone: what depends on it is gone as well.
        self.on_gone: set[Callable[[str], None]] = set()
        self._user = user
        self._tell = tell
        self._connections: list[aio_pika.Connection] = []
        self._publisher = Publisher(partial(self._open_channel, publishing=True), self.gone)
        self._block_watch: asyncio.Task[None] | None = None
        self._asking = asyncio.Lock()
        self._questions: AbstractChannel | None = None

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
            with in_our_words():
                try:
                    await connection.connect(timeout=ANSWER_SECONDS)
                except FAILURES as error:
                    alert = await tls_alert(error, address, context)
                    raise why_no_connection(alert or error, address, self._user) from error

    async def close(self) -> None:
        """Say good-bye, if anybody is there to hear it."""
        self.gone.set()
        if self._block_watch is not None:
            await end(self._block_watch)
        for connection in self._connections:
            with suppress(TransportError), in_our_words():
                async with asyncio.timeout(CLOSE_SECONDS):
                    await connection.close()

    def lose(self, reason: str) -> None:
        """Give the link up, and all that depends on it."""
        self.reason = self.reason or reason
        self.gone.set()
        for tell_dependent in self.on_gone:
            tell_dependent(reason)

    def _on_close(self, _sender: object, error: BaseException | None) -> None:
        self.lose(said(error))

    async def open_channel(self) -> AbstractChannel:
        """Open a channel for anything but publishing."""
        return await self._open_channel(publishing=False)

    async def _open_channel(self, *, publishing: bool) -> AbstractChannel:
        return await open_channel(self._connections[0 if publishing else 1], publishing=publishing)

    async def declare(self, topologies: Sequence[Topology]) -> None:
        """Declare everything. Raises `NotDeclared` or `TopologyRefused`, naming what the broker named."""
        if not topologies:
            return
        with in_our_words():
            # A refusal closes the channel, so it is one for this purpose.
            async with asyncio.timeout(ANSWER_SECONDS), passing_channel(self.open_channel) as channel:
                for topology in topologies:
                    await declare_topology(channel, topology)

    async def count_consumers(self, queue: str) -> int:
        """Ask how many consumers ``queue`` has, whoever they are. Raises `NotDeclared` where there is no such queue."""
        with in_our_words():
            async with asyncio.timeout(ANSWER_SECONDS), self._asking:
                if self._questions is None or self._questions.is_closed:
                    self._questions = await self.open_channel()
                raw = await self._questions.get_underlay_channel()
                answer = await raw.queue_declare(queue, passive=True)
                return answer.consumer_count or 0

    async def publish(self, message: Outgoing, timeout_seconds: float) -> None:
        """Send ``message`` and wait for the answer."""
        suspicion = asyncio.get_running_loop().call_later(BLOCK_SUSPECTED_SECONDS, self._look_for_block)
        try:
            with in_our_words():
                async with asyncio.timeout(timeout_seconds):
                    # While the broker blocks publishers nothing is sent: each retry would arrive later.
                    await self._unblocked()
                    await self._publisher.publish(message, self._user)
        except TransportUnavailable as error:
            raise TransportUnavailable(f"message {message.message_id} is not confirmed: {error}") from error
        finally:
            suspicion.cancel()

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
