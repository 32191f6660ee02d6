"""Several aggregators of one federation over one store: one serves, another takes over, and the first comes back."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from aggregator.probe import probe
from aggregator.settings import AggregatorSettings
from aggregator.store import Commit, ReleasedBody
from aggregator.store.sqlite import SQLiteStore
from broker.codec import decode, encode
from broker.errors import PublishRefused
from broker.memory import MemoryBroker
from broker.messages import GlobalModel, ReleasedModel
from broker.rabbitmq import RabbitMQTransport
from broker.testing import take
from broker.topology import (
    DEAD,
    MODELS,
    RELEASED,
    UPDATES,
    Binding,
    Queue,
    Topology,
    aggregator_topology,
    probe_key,
    released_queue,
    routing_key,
)
from broker.transport import Outgoing, Transport
from fedmq.services import aggregator_reporter, aggregator_service, participant_reporter, participant_service
from fedmq.sites import Site, find_sites
from monitoring.http import Health
from participant.outbox import Outbox
from participant.settings import ParticipantSettings
from participant.sources import Columns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from servers.rabbitmq import VHost

    from aggregator.state import State
    from broker.memory import MemoryTransport

DATA = Path(__file__).parents[2] / "examples" / "heart_disease"
FEDERATION = "hearts"
LIMIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def sites() -> list[Site]:
    return find_sites([DATA], Columns("y", "split"))


class Aggregator:
    """One of several, which can be killed, cut off and frozen."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.registry = CollectorRegistry()
        self.states: list[State] = []
        self.transport: MemoryTransport = world.broker.transport("aggregator")
        self.store = SQLiteStore(world.folder / "aggregator.sqlite", FEDERATION)
        self.releases: list[ReleasedModel] = []
        reporter = aggregator_reporter(
            world.settings,
            self.registry,
            Health(),
            on_step=lambda state, _: self.states.append(state),
            on_release=self.releases.append,
        )
        self.service = aggregator_service(world.settings, self.transport, self.store, reporter)
        self.service.in_thread = self.in_line
        self.frozen: asyncio.Event | None = None
        self.thaws = asyncio.Event()
        self.task = asyncio.create_task(self.live(), name=name)

    async def live(self) -> None:
        try:
            async with self.transport:
                await self.service.run()
        finally:
            self.store.close()

    async def in_line(self, function: Any, *args: Any) -> Any:
        """Stand still before the next commit, once it is to be frozen: what a stopped process does."""
        if self.frozen is not None and function == self.store.commit and not self.thaws.is_set():
            self.frozen.set()
            await self.thaws.wait()
        return function(*args)

    async def freeze(self) -> None:
        """Return when it stands before a commit; the broker has noticed that it does not answer."""
        self.frozen = asyncio.Event()
        await self.frozen.wait()
        self.transport.lose()

    def thaw(self) -> None:
        self.transport.connect()
        self.thaws.set()

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    @property
    def role(self) -> str:
        serving = self.registry.get_sample_value("fedmq_aggregator_serving", {"federation": FEDERATION})
        return {None: "starting", 0: "waiting", 1: "serving"}[serving]

    @property
    def serves(self) -> bool:
        return self.role == "serving"

    @property
    def version(self) -> int:
        return self.states[-1].progress.version if self.states else -1


class World:
    def __init__(self, folder: Path, sites: list[Site], **settings: Any) -> None:
        self.folder, self.sites = folder, sites
        self.broker = MemoryBroker()
        given = {"federation": FEDERATION, "participants": [site.name for site in sites], "heartbeat_seconds": 0.2}
        self.settings = AggregatorSettings(**{**given, **settings})
        self.tasks: list[asyncio.Task[None]] = []

    def aggregator(self, name: str) -> Aggregator:
        made = Aggregator(self, name)
        self.tasks.append(made.task)
        return made

    def start(self, site: Site) -> None:
        own = ParticipantSettings(
            federation=FEDERATION, name=site.name, data=".", label="y", heartbeat_seconds=0.2, least_fit_seconds=0.02
        )

        async def life() -> None:
            outbox = Outbox(":memory:", owner=site.name, incarnation=f"{site.name}-1")
            reporter = participant_reporter(own, CollectorRegistry(), Health())
            async with self.broker.transport(site.name) as transport:
                await participant_service(own, site.table, transport, outbox, reporter).run()

        self.tasks.append(asyncio.create_task(life(), name=site.name))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when ``holds``; fail when a service does that nobody has killed."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not holds():
                await asyncio.sleep(0)
                for task in self.tasks:
                    if task.done() and not task.cancelled():
                        task.result()

    async def released(self) -> ReleasedModel:
        async with self.broker.transport("outsider") as outsider, asyncio.timeout(LIMIT_SECONDS):
            consumer = await outsider.consume(released_queue(FEDERATION), prefetch=1)
            message = decode((await consumer.take()).body)
        assert isinstance(message, ReleasedModel)
        return message


@asynccontextmanager
async def world(folder: Path, sites: list[Site], **settings: Any) -> AsyncIterator[World]:
    made = World(folder, sites, **settings)
    try:
        yield made
    finally:
        for task in made.tasks:
            task.cancel()
        await asyncio.gather(*made.tasks, return_exceptions=True)


def coefficients(model: ReleasedModel) -> list[float]:
    return [each.estimate for each in model.coefficients]


async def trained(folder: Path, sites: list[Site], strategy: str) -> ReleasedModel:
    async with world(folder, sites, strategy=strategy) as quiet:
        only = quiet.aggregator("only")
        await quiet.until(lambda: only.serves)
        for site in sites:
            quiet.start(site)
        return await quiet.released()


def no_version_is_missing_or_twice(store: SQLiteStore) -> None:
    assert list(store.versions()) == list(range(len(store.versions())))
    included = [entry.update_id for entry in store.ledger() if entry.included_in is not None]
    assert len(included) == len(set(included)) > 0


@pytest.mark.fault("F20", "F26")
async def test_when_the_one_that_serves_is_killed_another_goes_on_where_it_stopped(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, sites: list[Site]
) -> None:
    quiet = await trained(tmp_path_factory.mktemp("quiet"), sites, "incremental-newton")
    async with world(tmp_path, sites, strategy="incremental-newton") as there:
        first = there.aggregator("first")
        await there.until(lambda: first.serves)
        second = there.aggregator("second")
        for site in sites:
            there.start(site)
        await there.until(lambda: first.version >= 4)
        assert not second.serves
        await first.kill()
        await there.until(lambda: second.serves)
        assert second.states[0].progress.version >= 4
        assert second.states[0].progress.epoch == first.states[-1].progress.epoch + 1
        released = await there.released()
        no_version_is_missing_or_twice(second.store)
    assert coefficients(released) == pytest.approx(coefficients(quiet), abs=1e-8)


@pytest.mark.fault("F26")
async def test_an_aggregator_that_was_frozen_in_a_commit_and_comes_back_commits_nothing_and_waits_for_its_turn(
    tmp_path: Path, sites: list[Site]
) -> None:
    async with world(tmp_path, sites, strategy="fedbuff", max_versions=60, patience=1000) as there:
        first = there.aggregator("first")
        await there.until(lambda: first.serves)
        second = there.aggregator("second")
        for site in sites:
            there.start(site)
        await there.until(lambda: first.version >= 3)
        await first.freeze()
        before = first.version
        await there.until(lambda: second.version > before)
        first.thaw()
        await there.until(lambda: not first.serves)
        # Only the other one goes on, until it is killed in turn.
        assert first.version == before
        reached = second.version
        await there.until(lambda: second.version > reached)
        await second.kill()
        await there.until(lambda: first.serves and first.version > reached)
        await there.released()
        assert first.states[-1].progress.version == 60
        no_version_is_missing_or_twice(first.store)


@pytest.mark.fault("F26")
async def test_models_of_an_older_term_are_taken_by_no_participant(tmp_path: Path, sites: list[Site]) -> None:
    async with world(tmp_path, sites, strategy="fedbuff", max_versions=40, patience=1000) as there:
        first = there.aggregator("first")
        for site in sites:
            there.start(site)
        async with there.broker.transport("aggregator") as ours:
            await there.until(lambda: first.version >= 2)
            seen = Queue("seen", bindings=(Binding(MODELS, routing_key(FEDERATION, "model", "#")),))
            await ours.declare(Topology(queues=(seen,)))
            consumer = await ours.consume("seen", prefetch=1000)
            old = (await consumer.take()).body
            await first.kill()
            second = there.aggregator("second")
            await there.until(lambda: second.version >= 4)
            model = decode(old)
            assert isinstance(model, GlobalModel)
            assert model.epoch < second.states[-1].progress.epoch
            for number in range(20):
                await ours.publish(Outgoing(MODELS, routing_key(FEDERATION, "model", "all"), old, f"late {number}"))
            await there.until(lambda: second.version >= 12)
            # What was computed of it would be of its version.
            staleness = [entry.version - entry.base_version for entry in second.store.ledger()]
            assert max(staleness[-8:]) <= len(sites)


async def test_a_probe_is_believed_of_aggregators_only(tmp_path: Path, sites: list[Site]) -> None:
    async with world(tmp_path, sites) as there:
        only = there.aggregator("only")
        await there.until(lambda: only.serves)
        async with there.broker.transport("va") as outsider:
            await outsider.publish(Outgoing(UPDATES, probe_key(FEDERATION), b"", "forged"))
        await there.until(
            lambda: (
                only.registry.get_sample_value(
                    "fedmq_dead_letters_total", {"federation": FEDERATION, "reason": "malformed"}
                )
                == 1
            )
        )


@pytest.mark.fault("F26")
async def test_an_aggregator_whose_deliveries_go_to_another_stands_down(tmp_path: Path, sites: list[Site]) -> None:
    async with world(tmp_path, sites) as there:
        first = there.aggregator("first")
        await there.until(lambda: first.serves)
        second = there.aggregator("second")
        await there.until(lambda: second.role == "waiting")
        # Its connection was away for a moment: it is connected, and the broker has picked the other one.
        first.transport.lose()
        first.transport.connect()
        await there.until(lambda: second.serves and not first.serves)
        assert first.task.done() is False


async def test_an_aggregator_that_waits_for_its_turn_ends_in_order_when_it_is_asked_to(
    tmp_path: Path, sites: list[Site]
) -> None:
    async with world(tmp_path, sites) as there:
        first = there.aggregator("first")
        await there.until(lambda: first.serves)
        second = there.aggregator("second")
        await there.until(lambda: second.role == "waiting")
        second.service.stop()
        await there.until(second.task.done)
        assert first.serves


@pytest.mark.fault("F28")
async def test_a_store_from_a_backup_is_taken_up_while_all_participants_go_on(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, sites: list[Site]
) -> None:
    quiet = await trained(tmp_path_factory.mktemp("quiet"), sites, "incremental-newton")
    async with world(tmp_path, sites, strategy="incremental-newton") as there:
        first = there.aggregator("first")
        await there.until(lambda: first.serves)
        for site in sites:
            there.start(site)
        await there.until(lambda: first.version >= 2)
        with (
            sqlite3.connect(there.folder / "aggregator.sqlite") as live,
            sqlite3.connect(there.folder / "copy") as copy,
        ):
            live.backup(copy)
        await there.until(lambda: first.version >= 8)
        # Some terms more, so that the participants have heard of them.
        for _ in range(3):
            await first.kill()
            first = there.aggregator("again")
            await there.until(lambda: first.serves)  # noqa: B023 - at once
        await first.kill()
        for file in there.folder.glob("aggregator.sqlite*"):
            file.unlink()
        (there.folder / "copy").rename(there.folder / "aggregator.sqlite")
        second = there.aggregator("second")
        await there.until(lambda: bool(second.releases) and second.states[-1].progress.epoch > 4)
        no_version_is_missing_or_twice(second.store)
    assert coefficients(second.releases[-1]) == pytest.approx(coefficients(quiet), abs=1e-8)


async def test_an_aggregator_whose_steps_take_long_keeps_its_term(tmp_path: Path, sites: list[Site]) -> None:
    async with world(
        tmp_path, sites, strategy="fedbuff", max_versions=60, patience=1000, heartbeat_seconds=0.05
    ) as there:
        only = there.aggregator("only")

        async def slowly(function: Any, *args: Any) -> Any:
            if function == only.store.commit:
                await asyncio.sleep(0.3)
            return function(*args)

        only.service.in_thread = slowly
        await there.until(lambda: only.serves)
        for site in sites:
            there.start(site)
        await there.until(lambda: only.version >= 5)
        assert only.states[-1].progress.epoch == 1


async def test_an_aggregator_that_is_told_to_stop_while_a_step_takes_long_finishes_it(
    tmp_path: Path, sites: list[Site]
) -> None:
    async with world(
        tmp_path, sites, strategy="fedbuff", max_versions=60, patience=1000, heartbeat_seconds=0.05
    ) as there:
        only = there.aggregator("only")
        await there.until(lambda: only.serves)
        for site in sites:
            there.start(site)
        await there.until(lambda: only.version >= 2)
        only.frozen = asyncio.Event()
        await only.frozen.wait()
        loop, before = asyncio.get_running_loop(), only.version
        # Until the heartbeats are left to others, three of ours and more.
        since = loop.time()
        await there.until(lambda: loop.time() > since + 0.3)
        only.service.stop()
        only.thaws.set()
        async with asyncio.timeout(LIMIT_SECONDS):
            await only.task
        assert max(SQLiteStore(there.folder / "aggregator.sqlite", FEDERATION).versions()) >= before


# --- releases that could not be published -----------------------------------------------------


async def released_messages(there: World) -> list[ReleasedModel]:
    """Take what waits for whoever comes later, in the order of publication."""
    async with there.broker.transport("outsider") as outsider:
        consumer = await outsider.consume(released_queue(FEDERATION), prefetch=100)
        found = [decode(each.body) for each in [await consumer.take(), *consumer.waiting()]]
    return [each for each in found if isinstance(each, ReleasedModel)]


async def test_of_releases_that_waited_for_a_start_the_newest_is_published_and_all_are_written(
    tmp_path: Path, sites: list[Site]
) -> None:
    async with world(tmp_path, sites, exit_after_release=True) as there:
        first = there.aggregator("first")
        await there.until(lambda: first.serves)
        for site in sites:
            there.start(site)
        await there.until(first.task.done)
        [model] = await released_messages(there)
        newer = [replace(model, version=model.version + n) for n in (1, 2)]
        store = SQLiteStore(there.folder / "aggregator.sqlite", FEDERATION)
        waiting = tuple(ReleasedBody(each.version, each.epoch, encode(each)) for each in newer)
        store.commit(Commit(store.take_over(), {}, releases=waiting))
        second = there.aggregator("second")
        await there.until(second.task.done)
        assert second.releases == newer
        assert (await released_messages(there))[1:] == newer[1:]
        assert store.unconfirmed() == []
        store.close()


async def test_releases_that_the_broker_does_not_take_are_published_in_their_order_and_the_last_one_ends_it(
    tmp_path: Path, sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, sites, start_with=len(sites) - 1, exit_after_release=True) as there:
        only = there.aggregator("only")
        await there.until(lambda: only.serves)
        publish, is_full = only.transport.publish, True

        async def publish_unless_full(message: Outgoing) -> None:
            if is_full and message.exchange == RELEASED:
                raise PublishRefused("the queue is full")
            await publish(message)

        monkeypatch.setattr(only.transport, "publish", publish_unless_full)
        for n, site in enumerate(sites[1:] + sites[:1], 1):
            if n == len(sites):
                await there.until(lambda: len(only.releases) == 1)
            there.start(site)
        await there.until(lambda: len(only.releases) == 2)
        assert not only.task.done()
        is_full = False
        await there.until(only.task.done)
        assert await released_messages(there) == only.releases
        assert SQLiteStore(there.folder / "aggregator.sqlite", FEDERATION).unconfirmed() == []


# --- probes that nobody has heard -------------------------------------------------------------


async def kinds_that_die(transport: Transport) -> list[str]:
    """Let a probe and then a hello expire where nobody serves, and return what becomes a dead letter."""
    await transport.declare(aggregator_topology(FEDERATION))
    unheard = replace(probe(FEDERATION), expiration_seconds=0.05)
    for message in (unheard, replace(unheard, routing_key=routing_key(FEDERATION, "hello", "va"))):
        await transport.publish(message)
    consumer = await transport.consume(DEAD, prefetch=10)
    dead = [*await take(consumer, 1), *consumer.waiting()]
    return [each.routing_key.split(".")[1] for each in dead]


async def test_a_probe_that_expires_is_no_dead_letter() -> None:
    async with MemoryBroker().transport("aggregator") as transport:
        assert await kinds_that_die(transport) == ["hello"]


@pytest.mark.rabbitmq
async def test_rabbitmq_keeps_no_probe_that_expires(vhost: VHost) -> None:
    async with RabbitMQTransport([vhost.amqp_url()]) as transport:
        assert await kinds_that_die(transport) == ["hello"]
