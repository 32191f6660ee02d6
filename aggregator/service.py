"""The aggregator as a service: it waits for its turn, and serves for as long as that lasts.

Any number of aggregators may serve one federation over one store. The broker picks one of them, since the
queue of updates has a single active consumer; and whoever is delivered anything knows that it is picked. There
may be nothing to deliver just when the one before has died: each that waits publishes a small probe into the queue, a
few times a second. A queue is no lock, however: who was picked first may only have been frozen, and go on where it
stopped. What fences it is the epoch, which every term raises in the store: see `aggregator.term`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from aggregator.errors import FencedError
from aggregator.probe import probe
from aggregator.report import Reporter
from aggregator.state import Rules
from aggregator.store import Store
from aggregator.term import PREFETCH, InThread, Term, TermEnded
from broker.errors import PublishRefused, TransportUnavailable, Unroutable
from broker.failpoints import Reached, nothing
from broker.retry import RESEND, unless, when_connected
from broker.topology import aggregator_topology, updates_queue
from broker.transport import Consumer, Delivery, Transport

#: How often who waits for its turn asks whether it has come: the time in which nobody serves after a kill -9.
PROBE_SECONDS = 0.25


@dataclass(slots=True)
class AggregatorService:
    """One federation's aggregator, or one of several.

    Attributes
    ----------
    rules : what the operator decided.
    transport : entered already.
    store : opened already; closed by whoever opened it.
    reporter : told of everything that people watch.
    senders : ``participant`` when each one has a broker user of its own name; ``shared`` when all use this
        transport's user, as in trials on one machine: then only routing key and payload are compared.
    exit_after_release : end when a released model is confirmed, as a training command wants it.
    heartbeat_seconds : how often it sees to it that deliveries still reach it.
    shutdown_grace_seconds : how long publications may take to be confirmed once it is asked to stop.
    queue_expiry_seconds : for trials: our queues are removed when nobody has used them for so long.
    in_thread : runs blocking work; a simulation puts something else here.
    reached : told of the places of `broker.failpoints` as they are come by.
    """

    rules: Rules
    transport: Transport
    store: Store
    reporter: Reporter
    senders: Literal["participant", "shared"] = "participant"
    exit_after_release: bool = False
    heartbeat_seconds: float = 10.0
    shutdown_grace_seconds: float = 10.0
    queue_expiry_seconds: float | None = None
    rng: Random = field(default_factory=Random)
    in_thread: InThread = asyncio.to_thread
    reached: Reached = nothing
    _outrun: int = field(init=False, default=0)
    _stop: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    def stop(self) -> None:
        """Ask the service to end in order; `run` returns soon after."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped.

        Raises
        ------
        AggregatorError, TransportError
            What a service cannot mend by itself.
        """
        attempt = 0
        while updates := await unless(self._stop, when_connected(self.transport, self._subscribe, rng=self.rng)):
            try:
                await self._serve(updates)
            except* (FencedError, TermEnded) as ended:
                # A subscription of before may hold deliveries of before: the next turn begins with one that is new.
                self.reporter.stood_down(str(ended.exceptions[0]))
                self._outrun = max(getattr(each, "outrun", 0) for each in ended.exceptions)
                attempt += 1
            finally:
                await updates.close()
            # Two that get in each other's way do not take turns as fast as they can.
            await unless(self._stop, asyncio.sleep(RESEND.seconds(min(attempt, 3), self.rng)))
        self.reporter.stopped()

    async def _subscribe(self) -> Consumer:
        # Each time: between two terms somebody may have deleted what nobody consumed.
        await self.transport.declare(
            aggregator_topology(self.rules.federation, expires_seconds=self.queue_expiry_seconds)
        )
        return await self.transport.consume(updates_queue(self.rules.federation), prefetch=PREFETCH)

    async def _serve(self, updates: Consumer) -> None:
        self.reporter.waits_for_its_turn()
        first = await self._turn(updates)
        if first is None:
            return
        outrun, self._outrun = self._outrun, 0
        term = Term(
            rules=self.rules,
            transport=self.transport,
            store=self.store,
            reporter=self.reporter,
            updates=updates,
            stop=self._stop,
            outrun=outrun,
            senders=self.senders,
            exit_after_release=self.exit_after_release,
            heartbeat_seconds=self.heartbeat_seconds,
            shutdown_grace_seconds=self.shutdown_grace_seconds,
            rng=self.rng,
            in_thread=self.in_thread,
            reached=self.reached,
        )
        await term.serve(first)

    async def _turn(self, updates: Consumer) -> Delivery | None:
        """Return the first delivery of our turn; None when asked to stop before that."""
        async with asyncio.TaskGroup() as tasks:
            probing = tasks.create_task(self._probe(), name="probe")
            first = await unless(self._stop, updates.take())
            probing.cancel()
        return first

    async def _probe(self) -> None:
        """Ask whether it is our turn, again and again."""
        while True:
            with suppress(PublishRefused, TransportUnavailable, Unroutable):
                await self.transport.publish(probe(self.rules.federation))
            await asyncio.sleep(PROBE_SECONDS)
