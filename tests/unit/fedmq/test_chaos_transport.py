"""Connections under chaos keep the transport contract, and lose what they should when something goes wrong."""

from __future__ import annotations

from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest

from broker.errors import TransportUnavailable
from broker.retry import publish_until_confirmed
from broker.testing import TransportContract, World, bodies, letter, queue, take
from fedmq.chaos.broker import ChaosBroker, Conditions
from fedmq.chaos.transport import ChaosTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from broker.transport import OnEvent, Transport


class ChaosWorld:
    """A broker that nothing befalls but cuts."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.conditions = Conditions()
        self.broker: ChaosBroker | None = None

    def _broker(self) -> ChaosBroker:
        if self.broker is None:
            self.broker = ChaosBroker(
                on_arrival=lambda _message, _who: None, on_loss=self.lost.append, conditions=self.conditions
            )
        return self.broker

    @asynccontextmanager
    async def transport(self, user: str, *, on_event: OnEvent | None = None) -> AsyncIterator[Transport]:
        told = {} if on_event is None else {"on_event": on_event}
        async with ChaosTransport(self._broker(), user, user, Random(0), **told) as transport:
            yield transport

    async def cut(self, user: str) -> None:
        self._broker().cut(user)

    async def heal(self, user: str) -> None:
        self._broker().heal(user)


class TestChaosTransport(TransportContract):
    @pytest.fixture
    def world(self) -> World:
        return ChaosWorld()


async def test_a_half_open_connection_lets_nothing_through_until_each_end_has_noticed() -> None:
    world = ChaosWorld()
    async with world.transport("alice") as alice, world.transport("bob") as bob:
        await alice.declare(queue())
        dead = await alice.consume("q", prefetch=1)
        assert world.broker is not None
        world.broker.half_open("alice", client_after=0.2, broker_after=0.1)
        assert alice.connected
        other = await bob.consume("q", prefetch=2)
        for number in (1, 2):
            await bob.publish(letter(number))
        with pytest.raises(TransportUnavailable):
            await alice.publish(letter(3))
        assert dead.waiting() == []
        assert sorted(bodies(await take(other, 2))) == [1, 2]


async def test_a_restart_loses_what_was_not_persistent_and_a_lost_disk_everything() -> None:
    world = ChaosWorld()
    async with world.transport("alice") as alice:
        await alice.declare(queue())
        await alice.publish(letter(1))
        assert world.broker is not None
        world.broker.forget(disk=False)
        assert len(world.broker.queues["q"]) == 1
        world.broker.forget(disk=True)
        assert world.broker.queues == {}
        assert world.lost == ["m1"]


async def test_a_consumer_whose_queue_was_deleted_goes_on_with_a_new_one() -> None:
    world = ChaosWorld()
    async with world.transport("alice") as alice:
        await alice.declare(queue())
        consumer = await alice.consume("q", prefetch=1)
        assert world.broker is not None
        world.broker.delete("q")
        await publish_until_confirmed(alice, letter(7), rng=Random(0))
        [delivery] = await take(consumer, 1)
        assert delivery.body == b"7"
