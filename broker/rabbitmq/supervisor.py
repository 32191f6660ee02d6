"""The supervisor: one link after another, for the life of a service.

It waits for the link to be gone and tries the URLs in turn, with jittered back-off, until there is a
link on which everything is declared.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

from broker.errors import ConnectionTimeout, TransportError, TransportUnavailable
from broker.rabbitmq.link import Link
from broker.rabbitmq.tasks import end, keep_going
from broker.retry import Connections
from broker.transport import Happening

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from broker.retry import Backoff
    from broker.topology import Topology
    from broker.transport import OnEvent
    from broker.url import Address, TLSSettings


#: A password is not mended within seconds, and the broker logs each attempt.
REFUSED_TIMES = 8


class Supervisor:
    """Keeps a link, and knows what is to be declared on the next one; see `RabbitMQTransport`."""

    def __init__(
        self,
        addresses: Sequence[Address],
        user: str,
        *,
        tls: TLSSettings,
        heartbeat_seconds: int,
        backoff: Backoff,
        rng: random.Random,
        on_event: OnEvent | None,
    ) -> None:
        self.connections = Connections()
        self.topologies: list[Topology] = []
        self._addresses = addresses
        self._user = user
        self._tls = tls
        self.heartbeat_seconds = heartbeat_seconds
        self._backoff = backoff
        self._rng = rng
        self._on_event = on_event
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, timeout_seconds: float | None) -> None:
        """Connect for the first time, and see to it that there is a link from now on."""
        try:
            async with asyncio.timeout(timeout_seconds):
                self._install(await self._connect(first=True))
        except TimeoutError as error:
            raise ConnectionTimeout(
                f"no broker at {' or '.join(address.where for address in self._addresses)} "
                f"within {timeout_seconds:g} s; see that it runs, that host and port are right, "
                f"and that no firewall stands between"
            ) from error
        self._task = keep_going(self._supervise(), f"connection of {self._user}")

    async def stop(self) -> None:
        """Make no further link; the last one stays for good-byes, until `close`."""
        self.connections.end()
        if self._task is not None:
            await end(self._task)

    async def close(self) -> None:
        """Close the last link."""
        if self._link is not None:
            await self._link.close()

    def link(self) -> Link:
        """Return the link. Raises `TransportUnavailable` where there is none at the moment."""
        if self._link is None or not self.connections.up:
            raise TransportUnavailable(f"{self._user} has no connection to the broker at the moment")
        return self._link

    async def next_link(self) -> Link:
        """Return the link as soon as there is one."""
        while self._link is None or not self.connections.up:
            await self.connections.changed()
        return self._link

    async def pause(self, attempt: int, *, times: int = 1) -> None:
        """Wait after failure number ``attempt``, counted from 1; ``times`` as long as usual."""
        await asyncio.sleep(times * self._backoff.seconds(attempt, self._rng))

    def tell(self, kind: Any, detail: str, attempt: int = 0) -> None:
        """Tell the listener what happened, in a sentence without secrets."""
        if self._on_event is None:
            return
        try:
            self._on_event(Happening(kind, detail, attempt))
        except Exception as error:  # noqa: BLE001 - a listener's mistake must not end the reconnecting
            context = {"message": f"on_event failed for {kind}", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _supervise(self) -> None:
        while True:
            link = await self.next_link()
            await link.gone.wait()
            self.connections.lost()
            self.tell("lost", f"the connection to the broker at {link.address.where} is lost: {link.reason}")
            await link.close()
            self._install(await self._connect(first=False))

    def _install(self, link: Link) -> None:
        self._link = link
        number = self.connections.made()
        self.tell("connected", f"{self._user} is connected to the broker at {link.address.where} ({number})")

    async def _connect(self, *, first: bool) -> Link:
        """Try the addresses in turn until one of them gives a link that has all we need."""
        addresses = itertools.cycle(self._addresses)
        for attempt in itertools.count(1):
            times = 1
            try:
                return await self._open(next(addresses))
            except TransportUnavailable as error:
                self.tell("unreachable", str(error), attempt)
            except TransportError as error:
                if first:
                    raise
                # It did work before: somebody is changing a password or restoring the broker.
                self.tell("refused", str(error), attempt)
                times = REFUSED_TIMES
            await self.pause(attempt, times=times)
        raise AssertionError("counting never ends")

    async def _open(self, address: Address) -> Link:
        link = Link(address, self._user, self.tell)
        try:
            await link.open(self._tls, self.heartbeat_seconds)
            await link.declare(self.topologies)
        except BaseException:
            await link.close()
            raise
        return link
