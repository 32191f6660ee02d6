"""Sending until it is confirmed, the newest of each address only; with a transport that does as the test says."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest

from aggregator.publisher import Publisher
from broker.errors import MessageTooLarge, NotDeclared, PublishRefused, TransportError, TransportUnavailable
from broker.transport import Outgoing, Transport


class NoWait(Random):
    """Jitter that takes no time, so that nothing here waits for a clock."""

    def uniform(self, a: float, b: float) -> float:
        return 0.0


@dataclass
class Scripted:
    """A transport that fails as it is told, and holds publications back while its gate is shut."""

    failures: list[TransportError] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    comes_back: bool = True

    def __post_init__(self) -> None:
        self.gate.set()

    async def publish(self, message: Outgoing) -> None:
        self.attempts.append(message.message_id)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.confirmed.append(message.message_id)

    async def connections(self) -> AsyncIterator[int]:
        if self.comes_back:
            yield 1


@dataclass
class World:
    """A publisher, its transport, and what it told."""

    transport: Scripted
    publisher: Publisher
    published: list[str]
    trouble: list[tuple[str, str]]

    def offer(self, address: str, number: int) -> None:
        self.publisher.offer(address, Outgoing("models", address, b"", f"{address} {number}"))


def world(tasks: asyncio.TaskGroup, *failures: TransportError, **given: Any) -> World:
    transport = Scripted(list(failures), **given)
    published: list[str] = []
    trouble: list[tuple[str, str]] = []

    async def note(message: Outgoing) -> None:
        published.append(message.message_id)

    publisher = Publisher(
        cast("Transport", transport),
        tasks,
        rng=NoWait(),
        on_published=note,
        on_trouble=lambda message, error: trouble.append((message.message_id, str(error))),
    )
    return World(transport, publisher, published, trouble)


async def until_waiting(transport: Scripted, n: int) -> None:
    """Let the publisher's tasks run until ``n`` publications were begun."""
    for _ in range(10 * n):
        await asyncio.sleep(0)  # not a wait: each turn lets every task run on to where it really waits
    assert len(transport.attempts) == n


async def test_what_is_offered_is_published_and_told() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        assert w.publisher.waiting == 0
        w.offer("a", 1)
        assert w.publisher.waiting == 1
        await w.publisher.drained()
        assert (w.published, w.trouble, w.publisher.waiting) == (["a 1"], [], 0)


async def test_while_a_model_is_on_its_way_newer_ones_replace_each_other() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        w.transport.gate.clear()
        w.offer("a", 1)
        await until_waiting(w.transport, 1)
        for number in (2, 3, 4):
            w.offer("a", number)
        assert w.publisher.waiting == 1
        w.transport.gate.set()
        await w.publisher.drained()
        assert w.published == ["a 1", "a 4"]


async def test_what_is_on_its_way_is_overtaken_while_something_newer_waits_for_the_same_address() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        w.transport.gate.clear()
        w.offer("a", 1)
        await until_waiting(w.transport, 1)
        assert not w.publisher.is_overtaken("a")
        w.offer("b", 1)
        w.offer("a", 2)
        assert w.publisher.is_overtaken("a")
        w.transport.gate.set()
        await w.publisher.drained()
        assert w.published[-1] == "a 2"
        assert not w.publisher.is_overtaken("a")


async def test_of_what_is_offered_at_once_only_the_newest_is_sent() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        w.offer("a", 1)
        w.offer("a", 2)
        await w.publisher.drained()
        assert w.published == ["a 2"]


async def test_an_address_that_is_stuck_holds_up_no_other() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        w.transport.gate.clear()
        w.offer("stuck", 1)
        await until_waiting(w.transport, 1)
        w.offer("free", 1)
        await until_waiting(w.transport, 2)
        assert w.publisher.waiting == 2
        w.transport.gate.set()
        await w.publisher.drained()
        assert sorted(w.published) == ["free 1", "stuck 1"]


async def test_a_publication_that_fails_is_sent_again_with_the_same_id_and_the_trouble_is_told() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks, PublishRefused("the queue is full"), TransportUnavailable("away"))
        w.offer("a", 1)
        await w.publisher.drained()
        assert w.transport.attempts == ["a 1"] * 3
        assert w.trouble == [("a 1", "the queue is full"), ("a 1", "away")]
        assert w.published == ["a 1"]


@pytest.mark.parametrize("defect", [NotDeclared("no such exchange"), MessageTooLarge("over the cap")])
async def test_what_waiting_does_not_mend_ends_the_service(defect: TransportError) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            world(tasks, defect).offer("a", 1)
    assert caught.group_contains(type(defect))


async def test_a_transport_that_does_not_come_back_ends_the_service() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as tasks:
            world(tasks, TransportUnavailable("left"), comes_back=False).offer("a", 1)
    assert caught.group_contains(TransportUnavailable)


async def test_cancelling_gives_up_what_is_on_its_way_and_lets_whoever_waits_go() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        w.transport.gate.clear()
        w.offer("a", 1)
        w.offer("b", 1)
        await until_waiting(w.transport, 2)
        w.publisher.cancel()
        await w.publisher.drained()
        assert (w.published, w.publisher.waiting) == ([], 0)


async def test_after_it_was_drained_it_can_be_offered_more() -> None:
    async with asyncio.TaskGroup() as tasks:
        w = world(tasks)
        await w.publisher.drained()
        for number in (1, 2):
            w.offer("a", number)
            await w.publisher.drained()
        assert w.published == ["a 1", "a 2"]
