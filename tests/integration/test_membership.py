"""Who joins, leaves, falls silent and comes back, on the broker in memory: what the others do, and what people see."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from aggregator.settings import AggregatorSettings
from aggregator.store.memory import MemoryStore
from broker.memory import MemoryBroker
from fedmq.services import aggregator_reporter, aggregator_service, participant_reporter, participant_service
from fedmq.sites import Site, find_sites
from monitoring.http import Health
from participant.outbox import Outbox
from participant.settings import ParticipantSettings
from participant.sources import Columns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from aggregator.events import Observe
    from aggregator.state import State
    from broker.memory import MemoryTransport
    from participant.service import ParticipantService

DATA = Path(__file__).parents[2] / "examples" / "heart_disease"
FEDERATION = "hearts"
LIMIT_SECONDS = 30.0
HEARTBEAT = 0.2
SILENCE = 3.5 * HEARTBEAT


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    return {site.name: site for site in find_sites([DATA], Columns("y", "split"))}


class World:
    """An aggregator, and participants that can be started, cut off, connected and asked to leave."""

    def __init__(self, sites: dict[str, Site], **settings: Any) -> None:
        self.sites = sites
        self.broker = MemoryBroker()
        given = {"federation": FEDERATION, "participants": list(sites), "heartbeat_seconds": HEARTBEAT}
        endless = {"strategy": "fedavg", "max_versions": 10_000, "tolerance": 0.0, "patience": 10_000}
        self.settings = AggregatorSettings(**{**given, **endless, **settings})
        self.registries: dict[str, CollectorRegistry] = {"aggregator": CollectorRegistry()}
        self.services: dict[str, ParticipantService] = {}
        self.transports: dict[str, MemoryTransport] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.state: State | None = None
        self.seen: list[tuple[float, Observe]] = []

    def start_aggregator(self) -> None:
        reporter = aggregator_reporter(self.settings, self.registries["aggregator"], Health(), on_step=self._stepped)
        transport = self.broker.transport("aggregator")
        service = aggregator_service(self.settings, transport, MemoryStore(), reporter)
        self._run("aggregator", service, transport)

    def _stepped(self, state: State, observed: Sequence[Observe]) -> None:
        self.state = state
        self.seen += [(asyncio.get_running_loop().time(), each) for each in observed]

    def start(self, *names: str) -> None:
        for name in names:
            own = ParticipantSettings(
                federation=FEDERATION,
                name=name,
                data=".",
                label="y",
                heartbeat_seconds=HEARTBEAT,
                least_fit_seconds=0.02,
            )
            registry = self.registries[name] = CollectorRegistry()
            transport = self.transports[name] = self.broker.transport(name)
            outbox = Outbox(":memory:", owner=name, incarnation=f"{name}-1")
            reporter = participant_reporter(own, registry, Health())
            service = participant_service(own, self.sites[name].table, transport, outbox, reporter)
            self.services[name] = service
            self._run(name, service, transport)

    def _run(self, name: str, service: Any, transport: MemoryTransport) -> None:
        async def life() -> None:
            async with transport:
                await service.run()

        self.tasks[name] = asyncio.create_task(life(), name=name)

    @property
    def version(self) -> int:
        return self.state.progress.version if self.state else 0

    def metric(self, name: str, of: str = "aggregator", **labels: str) -> float | None:
        return self.registries[of].get_sample_value(name, {"federation": FEDERATION, **labels})

    def taken(self, name: str) -> float:
        """Return the newest version that a participant has, -1 for none."""
        found = self.metric("fedmq_participant_model_version", name, participant=name)
        return -1.0 if found is None else found

    def included(self) -> dict[str, int]:
        """Return how many contributions of each participant are in a version."""
        return {} if self.state is None else {name: member.included for name, member in self.state.members.items()}

    def told(self, event: str) -> list[tuple[float, dict[str, Any]]]:
        return [(at, dict(each.fields)) for at, each in self.seen if each.event == event]

    async def until(self, holds: Callable[[], object]) -> None:
        """Return when ``holds``; fail when a service does."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not holds():
                await asyncio.sleep(0.002)  # looking costs those who are looked at
                for task in self.tasks.values():
                    if task.done():
                        task.result()

    async def more_versions(self, n: int = 3) -> None:
        wanted = self.version + n
        await self.until(lambda: self.version >= wanted)


@asynccontextmanager
async def world(sites: dict[str, Site], **settings: Any) -> AsyncIterator[World]:
    made = World(sites, **settings)
    try:
        yield made
    finally:
        for task in made.tasks.values():
            task.cancel()
        await asyncio.gather(*made.tasks.values(), return_exceptions=True)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_late_joiner_has_the_current_model_within_a_second_of_its_start(sites: dict[str, Site]) -> None:
    async with world(sites, start_with=3) as w:
        w.start_aggregator()
        w.start("cleveland", "hungarian", "switzerland")
        await w.until(lambda: w.version >= 5)
        began, at = now(), w.version
        w.start("va")
        await w.until(lambda: w.taken("va") >= at)
        took = now() - began
    assert took < 1.0


async def test_who_leaves_in_order_is_waited_for_no_longer_and_is_welcome_back(sites: dict[str, Site]) -> None:
    async with world(sites, deadline_seconds=1000.0) as w:
        w.start_aggregator()
        w.start(*sites)
        await w.until(lambda: w.version >= 3)
        w.services["va"].stop()
        await w.until(w.tasks["va"].done)
        began = now()
        await w.more_versions()
        assert now() - began < SILENCE, "nobody had to wait until it counts as silent"
        assert w.metric("fedmq_participants", state="left") == 1
        assert w.metric("fedmq_participant_awaited", participant="va") == 0
        w.start("va")
        await w.until(lambda: w.metric("fedmq_participants", state="live") == 4)
        await w.more_versions()


async def test_a_silent_participant_is_named_after_three_heartbeats_and_a_half_and_again_when_it_is_back(
    sites: dict[str, Site], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="fedmq")  # whoever ran before in this process may have wanted errors only
    async with world(sites, deadline_seconds=1000.0) as w:
        w.start_aggregator()
        w.start(*sites)
        await w.until(lambda: w.version >= 3)
        w.transports["va"].lose()
        cut = now()
        await w.until(lambda: w.told("participant_silent"))
        ((at, silent),) = w.told("participant_silent")
        assert silent == {"participant": "va", "n_live": 3, "seconds": pytest.approx(SILENCE)}
        # What it said last may be as old as a heartbeat, and may have been taken up a moment later.
        assert SILENCE - 2 * HEARTBEAT < at - cut < SILENCE + 2 * HEARTBEAT
        assert w.metric("fedmq_participants", state="silent") == 1
        assert w.metric("fedmq_participant_awaited", participant="va") == 1, (
            "the alert FedmqParticipantLate looks at it"
        )
        await w.more_versions()
        w.transports["va"].connect()
        await w.until(lambda: w.told("participant_heard_again"))
        ((_, back),) = w.told("participant_heard_again")
        assert (back["participant"], back["n_live"]) == ("va", 4)
        await w.until(lambda: w.metric("fedmq_participants", state="silent") == 0)
        await w.more_versions()
    lines = [record for record in caplog.records if "participant_silent" in record.getMessage()]
    assert [record.levelname for record in lines] == ["WARNING"]
    assert "va" in lines[0].getMessage()


async def test_rounds_below_their_quorum_pause_until_who_is_missing_counts_as_silent_and_then_go_on_without(
    sites: dict[str, Site],
) -> None:
    async with world(sites, quorum=3, deadline_seconds=0.05) as w:
        w.start_aggregator()
        w.start(*sites)
        await w.until(lambda: w.version >= 3)
        gone = ("switzerland", "va")
        for name in gone:
            w.transports[name].lose()
        at = w.version
        await w.until(lambda: len(w.told("participant_silent")) == 2)
        assert w.version <= at + 2, "the round that they were in, and with it the one that silence ended"
        assert w.told("participant_silent")[-1][1]["n_live"] == 2
        await w.more_versions()
        for name in gone:
            w.transports[name].connect()
        await w.until(lambda: len(w.told("participant_heard_again")) == 2)
        before = w.included()
        await w.more_versions()
        await w.until(lambda: all(w.included()[name] > before[name] for name in gone))


async def test_when_all_have_gone_nothing_is_made_or_released_and_training_goes_on_when_they_are_back(
    sites: dict[str, Site],
) -> None:
    async with world(sites, deadline_seconds=0.1) as w:
        w.start_aggregator()
        w.start(*sites)
        await w.until(lambda: w.version >= 3)
        for name in sites:
            w.transports[name].lose()
        await w.until(lambda: len(w.told("participant_silent")) == len(sites))
        at = w.version
        assert w.metric("fedmq_participants", state="live") == 0
        assert w.told("participant_silent")[-1][1]["n_live"] == 0
        some_rounds_later = now() + 5 * w.settings.heartbeat_seconds
        await w.until(lambda: now() > some_rounds_later)
        assert w.version == at
        assert w.state is not None
        assert w.state.progress.phase == "training"
        for name in sites:
            w.transports[name].connect()
        await w.until(lambda: w.metric("fedmq_participants", state="live") == len(sites))
        await w.more_versions()
