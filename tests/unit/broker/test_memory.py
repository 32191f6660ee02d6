"""What the broker in memory does beyond the contract: determinism, age by the loop's clock, whole outages."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from broker.errors import PublishRefused, TransportUnavailable
from broker.memory import MemoryBroker
from broker.testing import bodies, letter, queue
from broker.topology import Binding, Exchange, Queue, Topology
from broker.transport import Happening, Outgoing

if TYPE_CHECKING:
    from broker.transport import Consumer


class VirtualTime(asyncio.SelectorEventLoop):
    """A loop on which waiting takes no time: when nothing is left to do, the clock jumps to what is next."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0]._when)
        super()._run_once()


def on_virtual_time(main: object) -> object:
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        return runner.run(main)  # type: ignore[arg-type]


def numbers(consumer: Consumer) -> list[int]:
    return bodies(consumer.waiting())


async def test_publishing_has_delivered_when_it_returns() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue())
        consumer = await alice.consume("q", prefetch=10)
        await alice.publish(letter(1))
        await alice.publish(letter(2))
        assert numbers(consumer) == [1, 2]
        assert numbers(consumer) == []


async def test_consumers_of_one_queue_are_served_in_turn() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue())
        consumers = [await alice.consume("q", prefetch=2) for _ in range(3)]
        for number in range(8):
            await alice.publish(letter(number))
        assert [numbers(consumer) for consumer in consumers] == [[0, 3], [1, 4], [2, 5]]


async def test_a_settlement_lets_the_next_one_come() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue())
        consumer = await alice.consume("q", prefetch=1)
        for number in range(3):
            await alice.publish(letter(number))
        for number in range(3):
            [delivery] = consumer.waiting()
            assert bodies([delivery]) == [number]
            await (delivery.ack() if number else delivery.reject())


async def test_consumers_of_a_lost_transport_do_not_pass_messages_among_themselves() -> None:
    broker = MemoryBroker()
    async with broker.transport("alice") as alice, broker.transport("bob") as bob:
        await alice.declare(queue())
        for _ in range(2):
            await alice.consume("q", prefetch=2)
        standby = await bob.consume("q", prefetch=10)
        for number in range(6):
            await bob.publish(letter(number))
        broker.disconnect("alice")
        assert sorted(numbers(standby)) == list(range(6))


async def test_what_comes_back_to_a_full_queue_makes_it_drop_the_oldest() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue(max_length=1))
        consumer = await alice.consume("q", prefetch=1)
        await alice.publish(letter(1))
        await alice.publish(letter(2))
        await consumer.close()
        assert numbers(await alice.consume("q", prefetch=10)) == [2]


async def test_a_refusing_queue_does_not_keep_the_message_from_others() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue("full", max_length=0, overflow="reject-publish"))
        await alice.declare(queue("open"))
        with pytest.raises(PublishRefused, match="full is full"):
            await alice.publish(letter(1))
        assert numbers(await alice.consume("open", prefetch=1)) == [1]


async def test_dead_letters_do_not_go_round_in_circles() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue("circle", max_length=1, dead_letter_exchange="x"))
        for number in range(3):
            await alice.publish(letter(number))
        assert numbers(await alice.consume("circle", prefetch=10)) == [2]


async def test_an_empty_routing_key_has_no_words() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue("any", "#"))
        await alice.declare(queue("one", "*"))
        await alice.publish(letter(1, key=""))
        assert numbers(await alice.consume("any", prefetch=1)) == [1]
        assert numbers(await alice.consume("one", prefetch=1)) == []


async def test_a_prefetch_of_nothing_is_refused() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue())
        with pytest.raises(ValueError, match="at least one"):
            await alice.consume("q", prefetch=0)


async def test_an_outage_of_the_broker_is_everybodys() -> None:
    broker, told = MemoryBroker(), []

    def listen(happening: Happening) -> None:
        told.append(happening.kind)

    async with broker.transport("alice", on_event=listen) as alice, broker.transport("bob") as bob:
        broker.disconnect("bob")
        broker.disconnect()
        broker.disconnect()
        assert (alice.connected, bob.connected) == (False, False)
        with pytest.raises(TransportUnavailable, match="alice"):
            await alice.publish(letter(1))
        broker.reconnect("alice")
        assert not alice.connected
        broker.reconnect()
        broker.reconnect()
        assert (alice.connected, bob.connected) == (True, True)
    assert told == ["connected", "lost", "connected"]


async def test_a_transport_that_comes_during_an_outage_waits_for_its_end() -> None:
    broker = MemoryBroker()
    broker.disconnect()
    alice = broker.transport("alice")
    entering = asyncio.create_task(alice.__aenter__())
    await asyncio.sleep(0)
    assert not entering.done()
    broker.reconnect()
    assert (await entering).connected
    await alice.__aexit__(None, None, None)


async def test_a_transport_that_gave_up_waiting_is_not_connected_later() -> None:
    broker = MemoryBroker()
    broker.disconnect()
    alice = broker.transport("alice")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(alice.__aenter__(), 0.001)
    broker.reconnect()
    assert not alice.connected


async def test_a_consumer_may_be_paused_and_closed_while_the_connection_is_away() -> None:
    broker = MemoryBroker()
    async with broker.transport("alice") as alice, broker.transport("bob") as bob:
        await alice.declare(queue())
        consumers = [await alice.consume("q", prefetch=1) for _ in range(3)]
        broker.disconnect("alice")
        await consumers[0].close()
        await consumers[1].pause()
        await consumers[2].pause()
        await consumers[2].resume()
        await bob.publish(letter(1))
        broker.reconnect("alice")
        assert [numbers(consumer) for consumer in consumers] == [[], [], [1]]


def test_messages_grow_old_by_the_clock_of_the_loop() -> None:
    async def main() -> list[float]:
        died_at = []
        loop = asyncio.get_running_loop()
        async with MemoryBroker().transport("alice") as alice:
            dead = Queue("dead", (Binding("x.dead", "#"),))
            live = queue(ttl_seconds=3600.0, dead_letter_exchange="x.dead")
            await alice.declare(Topology((Exchange("x.dead"), *live.exchanges), (dead, *live.queues)))
            consumer = await alice.consume("dead", prefetch=10)
            await alice.publish(letter(1))
            await asyncio.sleep(600)
            await alice.publish(Outgoing("x", "a.b", b"2", "m2", expiration_seconds=7200.0))
            await alice.publish(Outgoing("x", "a.b", b"3", "m3", expiration_seconds=60.0))
            for number in (1, 2, 3):
                assert bodies([await consumer.take()]) == [number]
                died_at.append(loop.time())
        return died_at

    # The third had only a minute, and stood behind the second: it is looked at when its turn comes.
    assert on_virtual_time(main()) == [3600.0, 4200.0, 4200.0]


def test_what_is_taken_does_not_grow_old_and_what_comes_back_does() -> None:
    async def main() -> None:
        async with MemoryBroker().transport("alice") as alice:
            await alice.declare(queue(ttl_seconds=10.0))
            await alice.publish(letter(1))
            await asyncio.sleep(5)
            await alice.publish(letter(2))
            consumer = await alice.consume("q", prefetch=1)
            [first] = consumer.waiting()
            await asyncio.sleep(60)
            await first.ack()
            assert numbers(consumer) == []
            await alice.publish(letter(3))
            [third] = consumer.waiting()
            await asyncio.sleep(60)
            await consumer.close()
            assert bodies([first, third]) == [1, 3]
            assert numbers(await alice.consume("q", prefetch=10)) == []

    on_virtual_time(main())


def test_the_same_calls_give_the_same_deliveries() -> None:
    async def main() -> list[list[int]]:
        broker, seen = MemoryBroker(), []
        async with broker.transport("alice") as alice, broker.transport("bob") as bob:
            await alice.declare(queue())
            consumers = [await each.consume("q", prefetch=3) for each in (alice, bob, alice, bob)]
            for number in range(40):
                await bob.publish(letter(number))
                if number % 7 == 3:
                    broker.disconnect("alice")
                if number % 7 == 5:
                    broker.reconnect("alice")
                for consumer in consumers:
                    deliveries = consumer.waiting()
                    seen.append(bodies(deliveries))
                    for delivery in deliveries[number % 2 :]:
                        await delivery.ack()
        return seen

    assert on_virtual_time(main()) == on_virtual_time(main())
