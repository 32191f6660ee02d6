"""Waiting for a broker: how long, for what, and sending until a message is confirmed.

A transport that is away comes back by itself, so whoever must deliver waits for its connection
rather than asking again and again; and when hundreds of services wait for one broker, jitter keeps
them from coming back in the same instant.

Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 (the "equal jitter" variant:
half of the wait is certain, so that a refusing broker is left in peace).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from broker.errors import PublishRefused, TransportUnavailable, Unroutable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from random import Random

    from broker.transport import Outgoing, Transport

    #: Told before each wait: what went wrong, and how many seconds are waited at most.
    OnWait = Callable[[PublishRefused | TransportUnavailable | Unroutable, float], None]

T = TypeVar("T")

# Doublings after which the wait no longer grows, whatever its bounds: 2**32 times anything is for ever,
# and a service that has tried for months must not overflow a float.
_MAX_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double from ``first_seconds`` to ``longest_seconds``, half of each one random."""

    first_seconds: float
    longest_seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.first_seconds <= self.longest_seconds:
            raise ValueError(
                f"the waits of a back-off grow from a positive number of seconds: "
                f"{self.first_seconds:g} to {self.longest_seconds:g} is no such range"
            )

    def seconds(self, attempt: int, rng: Random) -> float:
        """Return the wait after failure number ``attempt``, counted from 1.

        d = min(longest, first * 2**(attempt - 1)),  uniformly between d / 2 and d
        """
        doublings = min(attempt - 1, _MAX_DOUBLINGS)
        ceiling = min(self.longest_seconds, self.first_seconds * 2.0**doublings)
        return ceiling * rng.uniform(0.5, 1.0)


#: A full queue or a missing binding is looked at again soon, since an update that waits holds up a
#: participant; ten seconds at most, so that what was repaired is noticed while the repairer watches.
RESEND = Backoff(first_seconds=0.1, longest_seconds=10.0)

#: Waits between attempts to connect: two seconds after a broker is back everybody is. Of a thousand services that is
#: some seven hundred attempts a second, which a closed port answers in no time and an open one accepts.
RECONNECT = Backoff(first_seconds=0.2, longest_seconds=2.0)


class Connections:
    """Counts the connections of a transport and wakes whoever waits for the next one."""

    def __init__(self) -> None:
        self.number = 0
        self.up = False
        self.ended = False
        self._changed = asyncio.Event()

    def made(self) -> int:
        """Note a new connection and return its number, counted from 1."""
        self.number += 1
        self.up = True
        self._wake()
        return self.number

    def lost(self) -> None:
        """Note that there is no connection now."""
        self.up = False
        self._wake()

    def end(self) -> None:
        """Note that there will be no further one: iterations end."""
        self.up, self.ended = False, True
        self._wake()

    async def changed(self) -> None:
        """Return when anything was noted since the call."""
        # The event that is current now: a later one would miss what happens in between.
        await self._changed.wait()

    def __aiter__(self) -> AsyncIterator[int]:
        return _Listener(self)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Listener:
    """One iteration over connections; an object, since a generator left half-way needs closing."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._seen = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> int:
        connections = self._connections
        while not connections.ended:
            if connections.up and connections.number > self._seen:
                self._seen = connections.number
                return self._seen
            await connections.changed()
        raise StopAsyncIteration


async def publish_until_confirmed(
    transport: Transport,
    message: Outgoing,
    *,
    rng: Random,
    on_wait: OnWait | None = None,
    backoff: Backoff = RESEND,
) -> None:
    """Publish ``message`` again, with the same id, until the broker has confirmed it.

    Waits while the connection is away, a queue is full or no queue is bound: all three are mended by
    somebody else, and the message is still wanted then. There is no limit to the number of attempts;
    whoever has one in mind puts an `asyncio.timeout` around the call.

    Raises
    ------
    MessageTooLarge
        The message will not fit the next time either.
    NotDeclared, TopologyRefused
        There is no such exchange, or this user may not write to it: somebody has to be told.
    TransportUnavailable
        The transport was left meanwhile; it does not come back.
    """
    attempt = 0
    while True:
        try:
            await transport.publish(message)
        except (PublishRefused, TransportUnavailable, Unroutable) as error:
            attempt += 1
            seconds = backoff.seconds(attempt, rng)
            if on_wait is not None:
                on_wait(error, seconds)
            await asyncio.sleep(seconds)
            if isinstance(error, TransportUnavailable) and await _next_connection(transport) is None:
                raise
        else:
            return


async def when_connected(
    transport: Transport, act: Callable[[], Awaitable[T]], *, rng: Random, backoff: Backoff = RESEND
) -> T:
    """Return what ``act`` returns: done again where the connection was away, as often as that takes.

    Raises
    ------
    TransportUnavailable
        The transport was left meanwhile; it does not come back.
    """
    attempt = 0
    while True:
        try:
            return await act()
        except TransportUnavailable:
            attempt += 1
            await asyncio.sleep(backoff.seconds(attempt, rng))
            if await _next_connection(transport) is None:
                raise


async def unless(stop: asyncio.Event, act: Coroutine[Any, Any, T]) -> T | None:
    """Return what ``act`` returns; None when ``stop`` is set before, and then it is cancelled."""
    acting, stopping = asyncio.ensure_future(act), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({acting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return acting.result() if acting.done() and not stop.is_set() else None
    finally:
        for task in (acting, stopping):
            task.cancel()
        await asyncio.gather(acting, stopping, return_exceptions=True)


async def _next_connection(transport: Transport) -> int | None:
    """Return the number of the connection as soon as there is one, None if there never will be."""
    return await anext(transport.connections(), None)
