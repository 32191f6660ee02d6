"""The composition root of the two services: what each one is made of, and how it lives and ends as a process."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random, SystemRandom
from typing import get_args

from prometheus_client import CollectorRegistry

from aggregator.admission import Verdict
from aggregator.report import OnRelease, OnStep
from aggregator.report import Reporter as AggregatorReporter
from aggregator.service import AggregatorService
from aggregator.settings import AggregatorSettings
from aggregator.store import Store
from aggregator.store.opening import open_store
from broker import failpoints
from broker.rabbitmq import RabbitMQTransport
from broker.settings import ServiceSettings
from broker.transport import OnEvent, Transport
from broker.url import TLSSettings
from fedmq.errors import CommandError
from fedmq.model_file import check_out, write_model
from monitoring.http import Health, MetricsServer
from monitoring.logs import configure_logging, logger
from monitoring.metrics import AggregatorMetrics, ParticipantMetrics
from participant.outbox import Outbox
from participant.personal import Kind
from participant.released import ReleaseFolder
from participant.report import Reporter as ParticipantReporter
from participant.service import ParticipantService
from participant.settings import ParticipantSettings
from participant.sources import Table
from participant.watched import Watched

#: Seconds between signs of life of the event loop, well under the ten after which it counts as blocked.
BEAT_SECONDS = 2.0

REASONS = ("malformed", "forged", "unknown-participant")


def aggregator_reporter(
    settings: AggregatorSettings,
    registry: CollectorRegistry,
    health: Health,
    *,
    on_step: OnStep | None = None,
    on_release: OnRelease | None = None,
) -> AggregatorReporter:
    """Return what tells people of the aggregator."""
    metrics = AggregatorMetrics(
        settings.federation,
        registry,
        outcomes=get_args(Verdict),
        received_kinds=("hello", "update", "evaluation", "heartbeat", "goodbye"),
        published_kinds=("plan", "model", "released"),
        dead_letter_reasons=REASONS,
    )
    return AggregatorReporter(metrics, health, on_step=on_step, on_release=on_release)


def participant_reporter(
    settings: ParticipantSettings, registry: CollectorRegistry, health: Health
) -> ParticipantReporter:
    """Return what tells people of a participant."""
    metrics = ParticipantMetrics(
        settings.federation,
        settings.name,
        registry,
        contribution_outcomes=("confirmed", "resent", "settled", "refused", "failed"),
        received_kinds=("plan", "model"),
        sent_kinds=("hello", "update", "evaluation"),
        refusal_reasons=REASONS[:2],
    )
    return ParticipantReporter(metrics, health, settings.name)


def aggregator_service(
    settings: AggregatorSettings,
    transport: Transport,
    store: Store,
    reporter: AggregatorReporter,
    *,
    reached: failpoints.Reached = failpoints.nothing,
) -> AggregatorService:
    """Return the aggregator over an entered ``transport``."""
    return AggregatorService(
        rules=settings.rules(),
        transport=transport,
        store=store,
        reporter=reporter,
        senders=settings.senders,
        exit_after_release=settings.exit_after_release,
        heartbeat_seconds=settings.heartbeat_seconds,
        shutdown_grace_seconds=settings.shutdown_grace_seconds,
        queue_expiry_seconds=settings.queue_expiry_seconds,
        reached=reached,
    )


def participant_service(
    settings: ParticipantSettings,
    table: Table,
    transport: Transport,
    outbox: Outbox,
    reporter: ParticipantReporter,
    *,
    watched: Watched | None = None,
    reached: failpoints.Reached = failpoints.nothing,
) -> ParticipantService:
    """Return a participant over an entered ``transport``; without ``watched`` its rows stay what they are."""
    return ParticipantService(
        federation=settings.federation,
        name=settings.name,
        table=table,
        transport=transport,
        outbox=outbox,
        reporter=reporter,
        aggregator_user=settings.aggregator_user,
        heartbeat_seconds=settings.heartbeat_seconds,
        least_fit_seconds=settings.least_fit_seconds,
        slowdown=settings.slowdown,
        shutdown_grace_seconds=settings.shutdown_grace_seconds,
        queue_expiry_seconds=settings.queue_expiry_seconds,
        releases=_release_folder(settings),
        exit_when_released=settings.exit_when_released,
        min_cell=settings.min_cell,
        threads=settings.threads,
        watched=watched,
        reached=reached,
    )


def _release_folder(settings: ParticipantSettings) -> ReleaseFolder | None:
    if settings.out is None:
        return None
    kinds: dict[Kind, bool] = {"own_intercept": settings.site_intercepts, "fine_tuned": settings.local_model}
    return ReleaseFolder(settings.out, settings.name, tuple(kind for kind, is_wanted in kinds.items() if is_wanted))


def new_incarnation() -> str:
    """Return a name for a new outbox, never drawn twice."""
    return f"{SystemRandom().getrandbits(64):016x}"


# --- as processes ---------------------------------------------------------------------------


async def serve_aggregator(settings: AggregatorSettings) -> None:
    """Be the aggregator until told to stop; SIGTERM drains and ends."""
    configure_logging(level=settings.log_level)
    reached = _failpoint()
    settings.rules()  # a wrong strategy or option ends here, before anything is opened
    if settings.out is not None:
        check_out(settings.out)
    registry, health = CollectorRegistry(), Health(("broker", "service"))
    write = None if settings.out is None else partial(write_model, settings.out)
    reporter = aggregator_reporter(settings, registry, health, on_release=write)
    store = open_store(settings)
    try:
        async with _process(settings, registry, health, reporter) as run:
            await run(lambda transport: aggregator_service(settings, transport, store, reporter, reached=reached))
    finally:
        store.close()


async def serve_participant(settings: ParticipantSettings) -> None:
    """Be a participant until told to stop; SIGTERM drains and ends."""
    configure_logging(level=settings.log_level)
    reached = _failpoint()
    settings = settings.model_copy(update={"out": _folder(settings.out or settings.state_dir / settings.name)})
    reading = settings.rows()
    signature = reading.signature()  # before the rows are read: what changes from here on is noticed
    table = reading.table()
    registry, health = CollectorRegistry(), Health(("broker", "service"))
    reporter = participant_reporter(settings, registry, health)
    outbox = Outbox(
        _state_file(settings, f"{settings.name}.sqlite"),
        owner=f"{settings.federation}/{settings.name}",
        incarnation=new_incarnation(),
    )
    try:
        async with _process(settings, registry, health, reporter) as run:
            watched = Watched(reading, signature, settings.watch_seconds)
            await run(
                lambda transport: participant_service(
                    settings, table, transport, outbox, reporter, watched=watched, reached=reached
                )
            )
    finally:
        outbox.close()


def _failpoint() -> failpoints.Reached:
    """Return what is told where a service is: nothing, except in tests."""
    try:
        return failpoints.from_environment(os.environ)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _state_file(settings: ServiceSettings, name: str) -> Path:
    return _folder(settings.state_dir) / name


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"the folder {path} cannot be made: {error.strerror}") from None
    return path


Service = AggregatorService | ParticipantService
Run = Callable[[Callable[[Transport], Service]], Awaitable[None]]


@asynccontextmanager
async def _process(
    settings: ServiceSettings,
    registry: CollectorRegistry,
    health: Health,
    reporter: AggregatorReporter | ParticipantReporter,
) -> AsyncIterator[Run]:
    """What every service process has around it: metrics, health and status over HTTP, signals, the broker."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    host, port = settings.metrics_host, settings.metrics_port
    with MetricsServer(registry, health, host, port, standing=reporter.standing) as server:
        logger("http").info("metrics_served", host=host, port=server.port)
        beating = asyncio.create_task(_beat(health))
        try:
            yield partial(_serve, settings, reporter.happened, stop)
        finally:
            beating.cancel()


async def _serve(
    settings: ServiceSettings, on_event: OnEvent, stop: asyncio.Event, make: Callable[[Transport], Service]
) -> None:
    """Connect, for as long as it takes, and serve; leave everything as soon as asked to stop."""
    transport = rabbitmq_transport(settings, on_event)
    entering = asyncio.ensure_future(transport.__aenter__())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({entering, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not entering.done():
        entering.cancel()
        await asyncio.gather(entering, return_exceptions=True)
        return
    await entering
    try:
        service = make(transport)
        stopping.add_done_callback(lambda _: service.stop())
        await service.run()
    finally:
        stopping.cancel()
        await transport.__aexit__(None, None, None)


def rabbitmq_transport(
    settings: ServiceSettings, on_event: OnEvent | None = None, *, connect_timeout_seconds: float | None = None
) -> RabbitMQTransport:
    """Return the transport that ``settings`` describe."""
    try:
        return RabbitMQTransport(
            settings.broker_urls(),
            on_event=on_event,
            connect_timeout_seconds=connect_timeout_seconds,
            heartbeat_seconds=max(1, round(settings.heartbeat_seconds)),
            rng=Random(),  # noqa: S311 - jitter is no secret
            tls=TLSSettings(settings.ca_file, settings.cert_file, settings.key_file),
        )
    except ValueError as error:  # settings that are each right and do not go together
        raise CommandError(f"broker: {error}") from None


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(BEAT_SECONDS)
