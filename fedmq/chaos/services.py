"""Production's services for one life, and a downstream system: on the stage's broker and disks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, cast

from aggregator.report import Reporter as AggregatorReporter
from aggregator.store.memory import MemoryStore
from broker import codec
from broker.errors import NotDeclared, TransportUnavailable
from broker.messages import Evaluation, ModelUpdate, ReleasedModel
from broker.retry import RECONNECT
from broker.topology import RELEASED, Binding, Exchange, Queue, Topology, released_key
from fedmq.chaos.disks import ChaosStore, digest
from fedmq.chaos.history import Accepted, Released
from fedmq.chaos.life import Life
from fedmq.chaos.stage import Stage
from fedmq.chaos.transport import ChaosTransport
from fedmq.chaos.world import DOWNSTREAM, FEDERATION, RELEASE_COMMITTED
from fedmq.services import aggregator_service, participant_service
from fedmq.simulation.faults import AGGREGATOR
from participant.report import Reporter as ParticipantReporter
from participant.settings import ParticipantSettings

#: What a blocking function does to a disk, by its name.
DISKS = {"commit": "commit", "put": "outbox"}


async def aggregator(stage: Stage, life: Life) -> None:
    """Be the aggregator of ``life``."""
    name = life.name
    store = ChaosStore(
        MemoryStore(stage.memory), name, stage.history, now=stage.now, is_full=lambda: name in stage.full
    )
    life.transport = transport = ChaosTransport(stage.broker, AGGREGATOR, name, life.chance("network"))
    async with transport:
        service = aggregator_service(
            stage.world.settings, transport, cast("Any", store), cast("AggregatorReporter", _Silent())
        )
        service.rng = life.chance("service")
        service.in_thread = _in_line(stage, life)
        service.reached = lambda point: life.reached(
            RELEASE_COMMITTED if point == "committed" and store.has_released else point
        )
        life.service = service
        await service.run()


async def participant(stage: Stage, life: Life) -> None:
    """Be the participant of ``life``."""
    name, rows, outbox = life.name, stage.rows[life.name], stage.outboxes[life.name]
    settings = ParticipantSettings(
        federation=FEDERATION,
        name=name,
        data=name,
        label="",
        aggregator_user=AGGREGATOR,
        heartbeat_seconds=stage.world.settings.heartbeat_seconds,
    )
    life.transport = transport = stage.participants_transport(name, life.chance("network"))
    accepted: list[tuple[int, int]] = []

    def reached(point: str) -> None:
        if point == "model-acknowledged":
            model = service._state.model  # noqa: SLF001 - what it goes by shows in what it computes later
            if model is not None and accepted[-1:] != [(model.epoch, model.bulletin)]:
                accepted.append((model.epoch, model.bulletin))
                seen = digest(model.weights.tobytes())
                stage.history.add(
                    Accepted(stage.now(), name, life.number, model.epoch, model.version, model.bulletin, seen)
                )
        life.reached(point)

    async with transport:
        service = participant_service(
            settings,
            rows.table(),
            transport,
            outbox,
            cast("ParticipantReporter", _Silent()),
            watched=rows.watched(),
            reached=reached,
        )
        service.rng = life.chance("service")
        service.in_thread = _in_line(stage, life)
        life.service = service
        await service.run()


async def downstream(stage: Stage) -> None:
    """Receive releases as a downstream system does: by a queue of its own."""
    rng = Random(f"{stage.world.seed}/{DOWNSTREAM}")  # noqa: S311 - chance
    queue = Queue("downstream", bindings=(Binding(RELEASED, released_key(FEDERATION)),))
    topology = Topology(exchanges=(Exchange(RELEASED, passive=True),), queues=(queue,))
    async with ChaosTransport(stage.broker, DOWNSTREAM, DOWNSTREAM, rng) as transport:
        attempt = 0
        while True:
            try:
                await transport.declare(topology)
                consumer = await transport.consume(queue.name, prefetch=10)
                break
            except (NotDeclared, TransportUnavailable):
                attempt += 1
                await asyncio.sleep(RECONNECT.seconds(attempt, rng))
        while True:
            delivery = await consumer.take()
            model = codec.decode(delivery.body)
            assert isinstance(model, ReleasedModel), "that is what the exchange is for"
            stage.history.add(Released(stage.now(), DOWNSTREAM, model.version, delivery.body))
            await delivery.ack()


class _Silent:
    """A reporter that tells nobody anything."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _say_nothing


def _say_nothing(*_: Any, **__: Any) -> None:
    """Say nothing."""


def _in_line(stage: Stage, life: Life) -> Callable[..., Awaitable[Any]]:
    """Return what runs blocking calls for a life: with the time they take, and maybe the last that it does."""
    conditions, rng, name = stage.conditions, life.chance("disk"), life.name
    fit_seconds = next((site.fit_seconds for site in stage.world.sites if site.name == name), 0.0)
    outbox = stage.outboxes.get(name)

    def die_maybe(chance: Any) -> None:
        life.die_by_chance(conditions.chances.get(chance, 0.0), chance, rng)

    async def take_long() -> None:
        """Be a disk that takes milliseconds to a minute, though not beyond the faults."""
        await asyncio.sleep(stage.not_after_faults(rng.choice([0.1, 5.0, 60.0]) * rng.random()))

    async def in_line(function: Callable[..., Any], *args: Any) -> Any:
        await life.thawed()
        disk = DISKS.get(function.__name__, "")
        slow = conditions.strikes(f"{disk}-slow", rng, name) if disk else False  # type: ignore[arg-type]
        if slow and rng.random() < 0.5:  # noqa: PLR2004 - before or after
            slow = False
            await take_long()
        await life.thawed()
        die_maybe(f"death-before-{disk}")
        if outbox is not None and function.__name__ == "_compute":
            outbox.table = stage.rows[name].index(life.service.rows)
        result = function(*args)
        die_maybe(f"death-after-{disk}")
        if slow:
            await take_long()
        if isinstance(result, ModelUpdate | Evaluation) and fit_seconds:
            await asyncio.sleep(fit_seconds * rng.uniform(0.5, 1.5))
        await life.thawed()
        return result

    return in_line
