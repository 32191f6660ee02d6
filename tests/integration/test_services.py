"""Both services together on the broker in memory: what happens when something is not as it should be."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from aggregator.service import AggregatorService
from aggregator.settings import AggregatorSettings
from aggregator.store.sqlite import SQLiteStore
from broker.codec import decode, encode
from broker.errors import TransportUnavailable
from broker.memory import MemoryBroker, MemoryTransport
from broker.messages import Hello, ModelUpdate, ReleasedModel
from broker.topology import (
    DEAD,
    MODELS,
    UPDATES,
    models_queue,
    presence_queue,
    released_queue,
    routing_key,
    updates_queue,
)
from broker.transport import Outgoing
from fedmq.services import aggregator_reporter, aggregator_service, participant_reporter, participant_service
from fedmq.sites import Site, find_sites
from monitoring.http import Health
from participant.outbox import Entry, Outbox
from participant.service import ParticipantService
from participant.settings import ParticipantSettings
from participant.sources import Columns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


DATA = Path(__file__).parents[2] / "examples" / "heart_disease"
FEDERATION = "hearts"
LIMIT_SECONDS = 30.0


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    return {site.name: site for site in find_sites([DATA], Columns("y", "split"))}


class World:
    """A broker, an aggregator and participants, each of which can be killed and started again."""

    def __init__(self, folder: Path, sites: dict[str, Site], **settings: Any) -> None:
        self.folder, self.sites = folder, sites
        self.broker = MemoryBroker()
        self.registry = CollectorRegistry()
        self.health = Health(("service",))
        given = {"federation": FEDERATION, "participants": list(sites), "max_versions": 40, "tolerance": 0.0}
        # A strategy that makes all the versions there may be, whatever the optimum.
        averaging = {"strategy": "fedbuff", "patience": 1000, "heartbeat_seconds": 0.2}
        self.settings = AggregatorSettings(**{**given, **averaging, **settings})
        self.stack = AsyncExitStack()
        self.running: dict[str, asyncio.Task[None]] = {}
        self.services: dict[str, AggregatorService | ParticipantService] = {}
        self.version = 0
        self.numbers = itertools.count()

    async def start_aggregator(self) -> None:
        registry = self.registry = CollectorRegistry()
        reporter = aggregator_reporter(
            self.settings, registry, self.health, on_step=lambda state, _: self._see(state.progress.version)
        )
        store = SQLiteStore(self.folder / "aggregator.sqlite", FEDERATION)
        transport = await self.broker.transport("aggregator").__aenter__()
        self._run("aggregator", aggregator_service(self.settings, transport, store, reporter), transport, store)

    async def start(self, name: str, *, table: Any = None, **options: Any) -> None:
        own = ParticipantSettings(
            federation=FEDERATION, name=name, data=str(self.folder), label="y", heartbeat_seconds=0.2, **options
        )
        outbox = Outbox(self.folder / f"{name}.sqlite", owner=name, incarnation=f"{name}-{next(self.numbers)}")
        transport = await self.broker.transport(name).__aenter__()
        reporter = participant_reporter(own, CollectorRegistry(), Health())
        site = self.sites[name].table if table is None else table
        self._run(name, participant_service(own, site, transport, outbox, reporter), transport, outbox)

    async def start_all(self) -> None:
        """Start the aggregator, and every site with fits that others see."""
        await self.start_aggregator()
        for name in self.sites:
            await self.start(name, least_fit_seconds=0.005)

    def lose_disk(self, name: str) -> None:
        for file in self.folder.glob(f"{name}.sqlite*"):
            file.unlink()

    def _run(self, name: str, service: Any, transport: MemoryTransport, file: SQLiteStore | Outbox) -> None:
        async def life() -> None:
            try:
                await service.run()
            finally:
                await transport.__aexit__(None, None, None)
                file.close()

        self.services[name] = service
        self.running[name] = asyncio.create_task(life(), name=name)

    def _see(self, version: int) -> None:
        self.version = version

    async def kill(self, name: str) -> None:
        """End a service at whatever point it is, without its farewells."""
        task = self.running.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def at_version(self, wanted: int) -> None:
        await self.until(lambda: self.version >= wanted)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when ``holds``, looked at each time the loop has turned; fail when a service does."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not holds():
                await asyncio.sleep(0)
                for task in self.running.values():
                    if task.done():
                        task.result()

    async def released(self) -> ReleasedModel:
        await self.at_version(1)
        outsider = await self.stack.enter_async_context(self.broker.transport("outsider"))
        consumer = await outsider.consume(released_queue(FEDERATION), prefetch=1)
        async with asyncio.timeout(LIMIT_SECONDS):
            message = decode((await consumer.take()).body)
        assert isinstance(message, ReleasedModel)
        return message

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, {"federation": FEDERATION, **labels}) or 0.0

    async def publish(self, user: str, key: str, body: bytes, exchange: str = UPDATES) -> None:
        transport = await self.stack.enter_async_context(self.broker.transport(user))
        await transport.publish(Outgoing(exchange, key, body, "planted"))

    def ledger(self) -> list[Any]:
        store = SQLiteStore(self.folder / "aggregator.sqlite", FEDERATION)
        try:
            return list(store.ledger())
        finally:
            store.close()


@asynccontextmanager
async def world(folder: Path, sites: dict[str, Site], **settings: Any) -> AsyncIterator[World]:
    made = World(folder, sites, **settings)
    try:
        yield made
    finally:
        for name in list(made.running):
            await made.kill(name)
        await made.stack.aclose()


@pytest.mark.fault("B19", "B24", "F38")
async def test_malformed_and_forged_messages_are_dead_lettered_and_counted_and_training_goes_on(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_all()
        await w.at_version(3)
        hello = Hello(FEDERATION, "va", "x", ("age",), 1, 0)
        key = routing_key(FEDERATION, "hello", "va")
        await w.publish("va", key, b"")
        await w.publish("va", routing_key(FEDERATION, "update", "va"), encode(hello))
        await w.publish("cleveland", key, encode(hello))  # another's user
        await w.publish("va", key, encode(replace(hello, participant="cleveland")))  # another's name inside
        await w.publish("va", key, encode(replace(hello, federation="other")))
        await w.publish(
            "stranger", routing_key(FEDERATION, "hello", "stranger"), encode(replace(hello, participant="stranger"))
        )
        model = await w.released()
        assert w.counted("fedmq_dead_letters_total", reason="malformed") == 2
        assert w.counted("fedmq_dead_letters_total", reason="forged") == 3
        assert w.counted("fedmq_dead_letters_total", reason="unknown-participant") == 1
        outsider = await w.stack.enter_async_context(w.broker.transport("outsider"))
        dead = await outsider.consume(DEAD, prefetch=100)
        await dead.take()
        assert len(dead.waiting()) == 5
    assert model.version == 40
    assert [each.name for each in model.participants] == sorted(sites)


@pytest.mark.fault("B25")
async def test_what_is_left_in_an_outbox_of_a_plan_with_other_columns_is_refused_and_its_site_goes_on(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_all()
        await w.at_version(3)
        await w.kill("va")
        outbox = Outbox(tmp_path / "va.sqlite", owner="va", incarnation="another")
        number, own = outbox.last_sequence + 1, outbox.incarnation
        arrays = {"mean": np.ones(99), "m2": np.ones(99)}
        left = ModelUpdate(FEDERATION, "va", own, number, "moments", 0, "0" * 64, 1.0, 0.0, 0.0, arrays)
        outbox.put(Entry(number, "update", encode(left)))
        outbox.close()
        await w.start("va", least_fit_seconds=0.005)
        await w.released()
        judged = {entry.update_id: entry for entry in w.ledger() if entry.participant == "va"}
        assert judged[f"va:{own}:{number}"].verdict == "wrong-plan"
        assert judged[f"va:{own}:{number + 1}"].verdict == "accepted"
        assert w.counted("fedmq_dead_letters_total", reason="malformed") == 0


async def test_a_line_that_breaks_at_every_contribution_piles_up_no_copies_of_it(
    tmp_path: Path, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_all()
        va = w.services["va"]
        assert isinstance(va, ParticipantService)
        line, publish, waits = cast("MemoryTransport", va.transport), MemoryTransport.publish, asyncio.Event()

        async def broken(self: MemoryTransport, message: Outgoing) -> None:
            if self is line and ".update." in message.routing_key:
                waits.set()
                raise TransportUnavailable("the connection broke before all of it was sent")
            await publish(self, message)

        with monkeypatch.context() as patched:
            patched.setattr(MemoryTransport, "publish", broken)
            for _ in range(5):
                waits.clear()
                line.lose()
                line.connect()
                async with asyncio.timeout(LIMIT_SECONDS):
                    await waits.wait()
            assert va._unsent.qsize() <= 1
        assert (await w.released()).version == 40


@pytest.mark.parametrize("queue", [presence_queue(FEDERATION), updates_queue(FEDERATION)])
@pytest.mark.fault("F36")
async def test_a_queue_that_is_deleted_between_two_terms_is_made_anew(
    tmp_path: Path, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_all()
        await w.at_version(3)
        aggregator = w.services["aggregator"]
        assert isinstance(aggregator, AggregatorService)
        stood_down, deleted = aggregator.reporter.stood_down, []

        def and_deleted(why: str) -> None:
            stood_down(why)
            w.broker._exchanges.delete(queue)
            deleted.append(queue)

        monkeypatch.setattr(aggregator.reporter, "stood_down", and_deleted)
        with closing(SQLiteStore(tmp_path / "aggregator.sqlite", FEDERATION)) as store:
            store.take_over()  # another one has served, and died
        await w.until(lambda: bool(deleted))
        assert (await w.released()).version == 40


@pytest.mark.fault("B26")
async def test_a_participant_takes_no_model_from_anybody_but_the_aggregator(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_all()
        await w.at_version(2)
        await w.publish("cleveland", routing_key(FEDERATION, "model", "va"), b"not from the aggregator", MODELS)
        model = await w.released()
    assert model.version == 40


async def test_no_update_is_lost_or_counted_twice_when_services_are_killed_at_any_point(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites, strategy="fedasync", max_versions=60) as w:
        await w.start_all()
        for version, victim in ((5, "va"), (9, "aggregator"), (14, "cleveland"), (20, "aggregator"), (30, "hungarian")):
            await w.at_version(version)
            await w.kill(victim)
            await (w.start_aggregator() if victim == "aggregator" else w.start(victim, least_fit_seconds=0.005))
        model = await w.released()
        entries = w.ledger()
    included = [entry for entry in entries if entry.included_in is not None]
    assert sorted(entry.included_in for entry in included) == list(range(1, 61)), "one update makes one version"
    assert sum(each.updates_included for each in model.participants) == 60
    for name in sites:
        numbers = sorted(int(entry.update_id.rpartition(":")[2]) for entry in entries if entry.participant == name)
        assert numbers == list(range(1, len(numbers) + 1)), "each number that was used has a verdict"


async def test_a_participant_that_lost_its_disk_is_not_mistaken_for_its_former_self(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_all()
        await w.at_version(10)
        await w.kill("va")
        for file in tmp_path.glob("va.sqlite*"):  # noqa: ASYNC240 - a test's own folder
            file.unlink()
        await w.start("va", least_fit_seconds=0.005)
        model = await w.released()
        incarnations = {entry.update_id.split(":")[1] for entry in w.ledger() if entry.participant == "va"}
    assert len(incarnations) == 2
    # Its fingerprint is salted with what was on the disk: its rows are taken for others, and training begins again.
    assert 40 < model.version <= 40 + 40
    assert model.n_samples == sum(site.table.n_train for site in sites.values()), "they are counted once"


async def test_a_late_joiner_trains_with_the_others(tmp_path: Path, sites: dict[str, Site]) -> None:
    async with world(tmp_path, sites, start_with=3) as w:
        await w.start_aggregator()
        for name in ("cleveland", "hungarian", "switzerland"):
            await w.start(name, least_fit_seconds=0.01)
        await w.at_version(5)
        await w.start("va")
        model = await w.released()
    included = {each.name: each.updates_included for each in model.participants}
    assert included["va"] > 0


async def test_a_site_that_joins_after_the_release_makes_another_one_of_everybodys_rows(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites, start_with=3, strategy="auto", max_versions=500) as w:
        await w.start_aggregator()
        for name in ("cleveland", "hungarian", "switzerland"):
            await w.start(name)
        first = await w.released()
        await w.start("va")
        second = await w.released()
    assert (first.converged, second.converged) == (True, True)
    assert [each.name for each in second.participants] == sorted(sites)
    assert second.objective.l2 == pytest.approx(1 / sum(site.table.n_train for site in sites.values()))
    assert second.version > first.version


@pytest.mark.fault("B28")
async def test_a_site_whose_columns_differ_is_told_so_and_the_others_go_on(
    tmp_path: Path, sites: dict[str, Site], caplog: pytest.LogCaptureFixture
) -> None:
    odd = replace(sites["va"].table, features=("years", *sites["va"].table.features[1:]))
    async with world(tmp_path, sites, start_with=3) as w:
        await w.start_aggregator()
        await w.start("va", table=odd)
        for name in ("cleveland", "hungarian", "switzerland"):
            await w.start(name, least_fit_seconds=0.005)
        model = await w.released()
    assert "its columns are not the plan's (missing: age; unknown: years)" in caplog.text
    assert [each.name for each in model.participants] == ["cleveland", "hungarian", "switzerland"]


@pytest.mark.fault("F30")
async def test_a_dead_site_does_not_hold_up_the_end(tmp_path: Path, sites: dict[str, Site]) -> None:
    async with world(tmp_path, sites, sweep_seconds=60.0) as w:
        await w.start_all()
        await w.at_version(10)
        await w.kill("switzerland")
        model = await w.released()
    assert "switzerland" not in model.metrics.test_by_site
    assert set(model.metrics.test_by_site) == {"cleveland", "hungarian", "va"}


@pytest.mark.fault("F35")
async def test_a_model_that_was_lost_on_the_way_is_sent_again(tmp_path: Path, sites: dict[str, Site]) -> None:
    async with world(tmp_path, sites, strategy="fedavg", deadline_seconds=0.5, quorum=3) as w:
        await w.start_all()
        await w.at_version(5)
        thief = await w.stack.enter_async_context(w.broker.transport("thief"))
        stealing = await thief.consume(models_queue(FEDERATION, "va"), prefetch=1)
        async with asyncio.timeout(LIMIT_SECONDS):
            await (await stealing.take()).ack()
        await stealing.close()
        model = await w.released()
    included = {each.name: each.updates_included for each in model.participants}
    assert included["va"] >= 5


@pytest.mark.fault("F40")
async def test_services_end_in_order_when_they_are_asked_to(tmp_path: Path, sites: dict[str, Site]) -> None:
    async with world(tmp_path, sites, max_versions=10_000) as w:
        await w.start_all()
        await w.at_version(5)
        async with asyncio.timeout(LIMIT_SECONDS):
            w.services["va"].stop()
            await w.running["va"]
            await w.until(lambda: w.counted("fedmq_participants", state="left") == 1)
            w.services["aggregator"].stop()
            await w.running["aggregator"]
        entries = w.ledger()
    numbers = [int(e.update_id.rpartition(":")[2]) for e in entries if e.participant == "va"]
    assert numbers == list(range(1, len(numbers) + 1)), "its last update was sent before it left"


async def test_a_store_of_another_strategy_is_not_taken_up(tmp_path: Path, sites: dict[str, Site]) -> None:
    async with world(tmp_path, sites) as w:
        await w.start_aggregator()
        for name in sites:
            await w.start(name)
        await w.at_version(2)
    async with world(tmp_path, sites, strategy="fedavg") as w:
        await w.start_aggregator()
        with pytest.raises(Exception, match="trains with fedbuff, the configuration says fedavg"):
            await asyncio.wait_for(w.running["aggregator"], LIMIT_SECONDS)


async def test_a_model_is_written_down_though_the_aggregator_dies_between_its_commit_and_that(
    tmp_path: Path, sites: dict[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[ReleasedModel] = []
    async with world(tmp_path, sites, max_versions=5) as w:
        await w.start_aggregator()
        for name in sites:
            await w.start(name)

        def die(*_: object) -> None:
            raise RuntimeError("killed here")

        monkeypatch.setattr("aggregator.report.Reporter.released", die)
        await asyncio.wait({w.running["aggregator"]}, timeout=LIMIT_SECONDS)
        await w.kill("aggregator")
        monkeypatch.setattr("aggregator.report.Reporter.released", lambda _, model: written.append(model))
        await w.start_aggregator()
        model = await w.released()
    assert [each.version for each in written] == [model.version] == [5]


async def test_an_aggregator_that_was_to_end_after_its_release_ends_when_started_again(
    tmp_path: Path, sites: dict[str, Site]
) -> None:
    async with world(tmp_path, sites, max_versions=5, exit_after_release=True) as w:
        await w.start_aggregator()
        for name in sites:
            await w.start(name)
        async with asyncio.timeout(LIMIT_SECONDS):
            await w.running["aggregator"]
            await w.start_aggregator()
            await w.running["aggregator"]
