"""The examination that every transport sits: the contract of `broker.transport`, promise by promise.

Subclass `TransportContract` and give it a fixture ``world``; pytest with asyncio's auto mode does the rest::

    class TestMyTransport(TransportContract):
        @pytest.fixture
        def world(self) -> World:
            return MyWorld()

Nothing here sleeps for a fixed time and hopes: every wait is for something to happen, and has a limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from broker.errors import (
    MessageTooLarge,
    NotDeclared,
    PublishRefused,
    TopologyRefused,
    TransportUnavailable,
    Unroutable,
)
from broker.retry import publish_until_confirmed
from broker.topology import Binding, Exchange, Queue, Topology
from broker.transport import MAX_BODY_BYTES, Outgoing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from broker.transport import Consumer, Delivery, Happening, OnEvent, Transport

#: Seconds for what should happen at once, on the slowest machine that anybody tests on.
PATIENCE_SECONDS = 20.0
#: Seconds of silence that count as "nothing more comes": a local broker delivers in milliseconds.
SILENCE_SECONDS = 0.1
#: Seconds: the age limit in tests of age limits.
TTL_SECONDS = 0.3
# More than the 20 returns after which RabbitMQ 4 drops a message by default.
_MANY_RETURNS = 25
_RNG = random.Random(1)  # noqa: S311 - jitter


class World(Protocol):
    """A broker of one test's own, and a network to it that can fail."""

    def transport(self, user: str, *, on_event: OnEvent | None = None) -> AbstractAsyncContextManager[Transport]:
        """Give a transport of ``user``, entered; with waits between attempts to connect that suit a test."""

    async def cut(self, user: str) -> None:
        """Break the connections of ``user`` and let no new one through."""

    async def heal(self, user: str) -> None:
        """Let the connections of ``user`` through again."""


def queue(name: str = "q", pattern: str = "#", *, exchange: str = "x", **arguments: Any) -> Topology:
    """Return the topology of one exchange and one queue on it."""
    return Topology((Exchange(exchange),), (Queue(name, (Binding(exchange, pattern),), **arguments),))


def letter(number: int, *, exchange: str = "x", key: str = "a.b", body: bytes | None = None) -> Outgoing:
    """Return a message that says its number."""
    return Outgoing(exchange, key, b"%d" % number if body is None else body, f"m{number}")


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Take exactly ``count`` deliveries."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [await consumer.take() for _ in range(count)]


async def assert_silent(consumer: Consumer) -> None:
    """Check that nothing (more) comes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SILENCE_SECONDS):
            delivery = await consumer.take()
            pytest.fail(f"nothing should come, and {delivery.body!r} did")


def is_connected(transport: Transport) -> bool:
    """Return what the transport says now; a type checker takes an attribute's value for lasting."""
    return transport.connected


def bodies(deliveries: list[Delivery]) -> list[int]:
    """Return the numbers of what was delivered."""
    return [int(delivery.body) for delivery in deliveries]


async def _publish_all(transport: Transport, numbers: range) -> None:
    for number in numbers:
        await transport.publish(letter(number))


async def _next(connections: AsyncIterator[int]) -> int:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await anext(connections)


class TransportContract:
    """The promises. A subclass gives the fixture ``world``."""

    # Publishing

    async def test_what_is_confirmed_is_in_the_queue(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await alice.publish(letter(1))
            consumer = await alice.consume("q", prefetch=1)
            [delivery] = await take(consumer, 1)
            assert (delivery.body, delivery.routing_key) == (b"1", "a.b")
            assert not delivery.redelivered

    async def test_an_empty_body_travels_and_so_does_a_large_one(self, world: World) -> None:
        large = bytes(range(256)) * 8192
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await alice.publish(letter(1, body=b""))
            await alice.publish(letter(2, body=large))
            consumer = await alice.consume("q", prefetch=2)
            empty, full = await take(consumer, 2)
            assert empty.body == b""
            assert full.body == large

    async def test_the_message_id_and_the_authenticated_user_travel_with_the_message(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await alice.declare(queue())
            assert (alice.user, bob.user) == ("alice", "bob")
            await alice.publish(letter(1))
            await bob.publish(letter(2))
            consumer = await alice.consume("q", prefetch=2)
            deliveries = await take(consumer, 2)
            assert [delivery.message_id for delivery in deliveries] == ["m1", "m2"]
            assert [delivery.user_id for delivery in deliveries] == ["alice", "bob"]

    async def test_messages_published_one_after_the_other_arrive_in_order(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=100)
            await _publish_all(alice, range(50))
            assert bodies(await take(consumer, 50)) == list(range(50))

    async def test_many_publications_at_once_all_arrive_once(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await asyncio.gather(*(alice.publish(letter(number)) for number in range(50)))
            consumer = await alice.consume("q", prefetch=100)
            assert sorted(bodies(await take(consumer, 50))) == list(range(50))
            await assert_silent(consumer)

    async def test_a_message_that_no_queue_wants_is_unroutable(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(pattern="a.*"))
            with pytest.raises(Unroutable, match=r"b\.c"):
                await alice.publish(letter(1, key="b.c"))
            await alice.publish(letter(2, key="a.c"))

    async def test_publishing_to_an_exchange_that_is_not_there_says_so_and_harms_nobody_else(
        self, world: World
    ) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            lost = Outgoing("nowhere", "a", b"", "m0")
            results = await asyncio.gather(
                *(alice.publish(message) for message in (letter(1), lost, letter(2))), return_exceptions=True
            )
            assert results[::2] == [None, None]
            assert isinstance(results[1], NotDeclared)
            await alice.publish(letter(3))

    async def test_a_message_over_the_limit_is_never_sent(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            with pytest.raises(MessageTooLarge):
                await alice.publish(letter(1, body=bytes(MAX_BODY_BYTES + 1)))
            consumer = await alice.consume("q", prefetch=1)
            await assert_silent(consumer)

    # Routing

    @pytest.mark.parametrize(
        ("pattern", "wanted"),
        [
            ("a.b", {"a.b"}),
            ("a.*", {"a.b", "a.c"}),
            ("*.b", {"a.b"}),
            ("*", {"a"}),
            ("a.#", {"a", "a.b", "a.c", "a.b.c"}),
            ("#.c", {"a.c", "a.b.c"}),
            ("a.#.c", {"a.c", "a.b.c"}),
            ("a.*.#", {"a.b", "a.c", "a.b.c"}),
            ("#", {"a", "a.b", "a.c", "a.b.c"}),
        ],
    )
    async def test_a_star_is_one_word_and_a_hash_any_number(self, world: World, pattern: str, wanted: set[str]) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue("all"))
            await alice.declare(queue("some", pattern))
            for number, key in enumerate(("a", "a.b", "a.c", "a.b.c")):
                await alice.publish(letter(number, key=key))
            consumer = await alice.consume("some", prefetch=10)
            assert {delivery.routing_key for delivery in await take(consumer, len(wanted))} == wanted
            await assert_silent(consumer)

    async def test_every_queue_gets_a_copy_and_none_gets_two(self, world: World) -> None:
        async with world.transport("alice") as alice:
            twice = Queue("twice", (Binding("x", "a.*"), Binding("x", "*.b")))
            await alice.declare(Topology((Exchange("x"),), (twice,)))
            await alice.declare(queue("once"))
            await alice.publish(letter(1))
            for name in ("twice", "once"):
                consumer = await alice.consume(name, prefetch=10)
                assert bodies(await take(consumer, 1)) == [1]
                await assert_silent(consumer)

    # Consuming

    async def test_no_more_than_the_prefetch_is_unsettled(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=3)
            await _publish_all(alice, range(5))
            first, *_ = await take(consumer, 3)
            await assert_silent(consumer)
            await first.ack()
            assert bodies(await take(consumer, 1)) == [3]

    async def test_waiting_takes_what_has_come_and_does_not_wait(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=10)
            assert consumer.waiting() == []
            await _publish_all(alice, range(3))
            deliveries = await take(consumer, 1)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(deliveries) < 3:
                    deliveries += consumer.waiting()
                    await asyncio.sleep(0)
            assert bodies(deliveries) == [0, 1, 2]

    async def test_what_is_acknowledged_never_comes_again(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await _publish_all(alice, range(3))
            consumer = await alice.consume("q", prefetch=10)
            for delivery in await take(consumer, 3):
                await delivery.ack()
            await consumer.close()
            await assert_silent(await alice.consume("q", prefetch=10))

    async def test_a_multiple_ack_settles_all_up_to_it_and_nothing_after(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await _publish_all(alice, range(4))
            consumer = await alice.consume("q", prefetch=10)
            deliveries = await take(consumer, 4)
            await deliveries[2].ack(multiple=True)
            await consumer.close()
            again = await alice.consume("q", prefetch=10)
            assert bodies(await take(again, 1)) == [3]
            await assert_silent(again)

    async def test_settling_twice_changes_nothing(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await _publish_all(alice, range(3))
            consumer = await alice.consume("q", prefetch=2)
            first, second = await take(consumer, 2)
            await second.ack(multiple=True)
            await first.ack()
            await second.reject()
            [third] = await take(consumer, 1)
            assert not third.redelivered

    async def test_what_a_closed_consumer_held_comes_again_first_and_in_order(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await _publish_all(alice, range(6))
            consumer = await alice.consume("q", prefetch=4)
            deliveries = await take(consumer, 3)
            await deliveries[1].ack()
            await take(consumer, 2)
            await consumer.close()
            again = await take(await alice.consume("q", prefetch=10), 5)
            assert bodies(again) == [0, 2, 3, 4, 5]
            assert [delivery.redelivered for delivery in again] == [True, True, True, True, False]

    async def test_what_a_lost_connection_held_comes_again_first_and_in_order(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await bob.declare(queue())
            await _publish_all(bob, range(5))
            consumer = await alice.consume("q", prefetch=4)
            await take(consumer, 4)
            await world.cut("alice")
            again = await take(await bob.consume("q", prefetch=10), 5)
            assert bodies(again) == [0, 1, 2, 3, 4]
            assert [delivery.redelivered for delivery in again] == [True] * 4 + [False]

    async def test_settling_after_the_connection_is_lost_is_no_error(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await alice.declare(queue())
            await _publish_all(alice, range(2))
            connections = alice.connections()
            await _next(connections)
            first, second = await take(await alice.consume("q", prefetch=2), 2)
            await world.cut("alice")
            again = await take(await bob.consume("q", prefetch=2), 2)
            await world.heal("alice")
            await _next(connections)
            await first.ack()
            await second.reject()
            assert bodies(again) == [0, 1]

    async def test_a_take_that_waits_ends_when_its_consumer_is_closed(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=1)
            taking = asyncio.create_task(consumer.take())
            await asyncio.sleep(0)
            await consumer.close()
            with pytest.raises(TransportUnavailable):
                await asyncio.wait_for(taking, PATIENCE_SECONDS)

    async def test_a_take_that_is_cancelled_loses_nothing(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=1)
            await assert_silent(consumer)
            await alice.publish(letter(1))
            assert bodies(await take(consumer, 1)) == [1]

    async def test_a_pause_gives_back_the_untaken_and_resuming_goes_on(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=3)
            await _publish_all(alice, range(4))
            [taken] = await take(consumer, 1)
            await consumer.pause()
            await consumer.pause()
            await assert_silent(consumer)
            other = await alice.consume("q", prefetch=10)
            assert bodies(await take(other, 3)) == [1, 2, 3]
            await other.close()
            await taken.ack()
            await consumer.resume()
            await consumer.resume()
            assert bodies(await take(consumer, 3)) == [1, 2, 3]

    async def test_a_pause_lasts_through_a_reconnection(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await alice.declare(queue())
            connections = alice.connections()
            await _next(connections)
            consumer = await alice.consume("q", prefetch=1)
            await consumer.pause()
            await world.cut("alice")
            await bob.publish(letter(1))
            await world.heal("alice")
            await _next(connections)
            await assert_silent(consumer)
            await consumer.resume()
            assert bodies(await take(consumer, 1)) == [1]

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_a_message_may_come_back_any_number_of_times(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(kind=kind))
            await alice.publish(letter(1))
            for _ in range(_MANY_RETURNS):
                consumer = await alice.consume("q", prefetch=1)
                assert bodies(await take(consumer, 1)) == [1]
                await consumer.close()

    # Queues

    async def test_a_queue_keeps_its_messages_for_a_transport_that_comes_later(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await _publish_all(alice, range(3))
        async with world.transport("bob") as bob:
            consumer = await bob.consume("q", prefetch=10)
            assert bodies(await take(consumer, 3)) == [0, 1, 2]

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_a_queue_of_length_one_keeps_the_newest_only(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(kind=kind, max_length=1))
            await _publish_all(alice, range(5))
            consumer = await alice.consume("q", prefetch=10)
            assert bodies(await take(consumer, 1)) == [4]
            await assert_silent(consumer)

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_a_full_queue_that_refuses_tells_the_publisher(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(kind=kind, max_length=3, overflow="reject-publish"))
            kept = await _publish_until_refused(alice)
            # A quorum queue notices one message late.
            assert kept in (3, 4)
            consumer = await alice.consume("q", prefetch=10)
            assert bodies(await take(consumer, kept)) == list(range(kept))
            await assert_silent(consumer)

    async def test_a_queue_with_room_again_takes_messages_again(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(max_length=2, overflow="reject-publish"))
            kept = await _publish_until_refused(alice)
            consumer = await alice.consume("q", prefetch=10)
            for delivery in await take(consumer, kept):
                await delivery.ack()
            async with asyncio.timeout(PATIENCE_SECONDS):
                # The broker learns of the room a moment later.
                while True:
                    with contextlib.suppress(PublishRefused):
                        await alice.publish(letter(9))
                        break
                    await asyncio.sleep(0.01)
            assert bodies(await take(consumer, 1)) == [9]

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_bytes_are_limited_as_well(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(kind=kind, max_bytes=3000, overflow="reject-publish"))
            assert await _publish_until_refused(alice, n_bytes=1000) in (3, 4)

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_what_is_rejected_goes_to_the_dead_letters(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(_with_dead_letters(kind=kind))
            await alice.publish(letter(7))
            [delivery] = await take(await alice.consume("q", prefetch=1), 1)
            await delivery.reject()
            [dead] = await take(await alice.consume("dead", prefetch=1), 1)
            assert (dead.body, dead.routing_key, dead.message_id, dead.user_id) == (b"7", "a.b", "m7", "alice")

    async def test_what_is_rejected_without_dead_letters_is_gone(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(dead_letter_exchange="not.there"))
            await _publish_all(alice, range(2))
            consumer = await alice.consume("q", prefetch=1)
            [first] = await take(consumer, 1)
            await first.reject()
            assert bodies(await take(consumer, 1)) == [1]

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_what_is_dropped_goes_to_the_dead_letters(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(_with_dead_letters(kind=kind, max_length=1))
            await _publish_all(alice, range(3))
            assert bodies(await take(await alice.consume("dead", prefetch=10), 2)) == [0, 1]

    @pytest.mark.parametrize("kind", ["quorum", "classic"])
    async def test_what_grows_too_old_goes_to_the_dead_letters(self, world: World, kind: str) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(_with_dead_letters(kind=kind, ttl_seconds=TTL_SECONDS))
            await alice.publish(letter(1))
            assert bodies(await take(await alice.consume("dead", prefetch=1), 1)) == [1]
            await assert_silent(await alice.consume("q", prefetch=1))

    async def test_a_message_may_have_an_age_limit_of_its_own(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(_with_dead_letters())
            await alice.publish(Outgoing("x", "a.b", b"1", "m1", persistent=False, expiration_seconds=TTL_SECONDS))
            await alice.publish(letter(2))
            assert bodies(await take(await alice.consume("dead", prefetch=1), 1)) == [1]
            assert bodies(await take(await alice.consume("q", prefetch=1), 1)) == [2]

    async def test_one_of_several_consumers_is_active_until_it_is_gone(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await alice.declare(queue(single_active_consumer=True))
            active = await alice.consume("q", prefetch=2)
            standby = await bob.consume("q", prefetch=10)
            await _publish_all(bob, range(4))
            first, _ = await take(active, 2)
            await assert_silent(standby)
            await first.ack()
            assert bodies(await take(active, 1)) == [2]
            await world.cut("alice")
            assert bodies(await take(standby, 3)) == [1, 2, 3]

    async def test_several_consumers_share_a_queue(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await alice.declare(queue())
            consumers = [await each.consume("q", prefetch=1) for each in (alice, bob)]
            await _publish_all(alice, range(2))
            taken = [(await take(consumer, 1))[0] for consumer in consumers]
            assert sorted(bodies(taken)) == [0, 1]

    # Declaring

    async def test_declaring_again_changes_nothing(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await alice.declare(queue(max_length=5))
            await alice.publish(letter(1))
            await alice.declare(queue(max_length=5))
            await bob.declare(queue(max_length=5))
            assert bodies(await take(await alice.consume("q", prefetch=1), 1)) == [1]

    async def test_declaring_with_other_arguments_is_refused_and_harms_nothing(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue(max_length=5))
            with pytest.raises(TopologyRefused, match="q"):
                await alice.declare(queue(max_length=6))
            await alice.publish(letter(1))
            assert bodies(await take(await alice.consume("q", prefetch=1), 1)) == [1]

    async def test_a_passive_exchange_is_not_made(self, world: World) -> None:
        passive = Topology((Exchange("x", passive=True),))
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            with pytest.raises(NotDeclared, match="x"):
                await bob.declare(passive)
            await alice.declare(Topology((Exchange("x"),)))
            await bob.declare(passive)

    async def test_binding_to_an_exchange_that_is_not_there_says_so(self, world: World) -> None:
        async with world.transport("alice") as alice:
            with pytest.raises(NotDeclared, match="nowhere"):
                await alice.declare(Topology((), (Queue("q", (Binding("nowhere", "#"),)),)))

    async def test_consuming_from_a_queue_that_is_not_there_says_so(self, world: World) -> None:
        async with world.transport("alice") as alice:
            with pytest.raises(NotDeclared, match="nowhere"):
                await alice.consume("nowhere", prefetch=1)
            await alice.declare(queue())
            await alice.consume("q", prefetch=1)

    # Connection

    async def test_entering_connects_and_leaving_ends_the_connections(self, world: World) -> None:
        async with world.transport("alice") as alice:
            assert is_connected(alice)
            connections = alice.connections()
            assert await _next(connections) == 1
        assert not is_connected(alice)
        with pytest.raises(StopAsyncIteration):
            await _next(connections)
        with pytest.raises(TransportUnavailable):
            await alice.publish(letter(1))

    async def test_a_transport_that_was_left_holds_nothing_back(self, world: World) -> None:
        async with world.transport("alice") as alice:
            await alice.declare(queue())
            await _publish_all(alice, range(2))
            consumer = await alice.consume("q", prefetch=2)
            await take(consumer, 2)
            taking = asyncio.create_task(consumer.take())
        with pytest.raises(TransportUnavailable):
            await asyncio.wait_for(taking, PATIENCE_SECONDS)
        async with world.transport("bob") as bob:
            assert bodies(await take(await bob.consume("q", prefetch=2), 2)) == [0, 1]

    async def test_an_outage_is_told_and_mended_and_everything_goes_on(self, world: World) -> None:
        told: list[str] = []
        outage = asyncio.Event()

        def listen(happening: Happening) -> None:
            told.append(happening.kind)
            if happening.kind == "lost":
                outage.set()

        async with world.transport("alice", on_event=listen) as alice, world.transport("bob") as bob:
            await alice.declare(queue())
            consumer = await alice.consume("q", prefetch=10)
            connections = alice.connections()
            assert await _next(connections) == 1
            await world.cut("alice")
            async with asyncio.timeout(PATIENCE_SECONDS):
                await outage.wait()
            assert not is_connected(alice)
            for call in (alice.publish(letter(0)), alice.declare(queue()), alice.consume("q", prefetch=1)):
                with pytest.raises(TransportUnavailable):
                    await call
            await bob.publish(letter(1))
            await world.heal("alice")
            assert await _next(connections) == 2
            assert is_connected(alice)
            await alice.publish(letter(2))
            assert bodies(await take(consumer, 2)) == [1, 2]
            assert (told[0], told[1], told[-1]) == ("connected", "lost", "connected")

    async def test_leaving_in_the_midst_of_a_reconnection_ends(self, world: World) -> None:
        for steps in range(0, 60, 6):
            async with asyncio.timeout(PATIENCE_SECONDS), world.transport("alice") as alice:
                await alice.declare(queue())
                await alice.consume("q", prefetch=1)
                await world.cut("alice")
                await world.heal("alice")
                for _ in range(steps):
                    await asyncio.sleep(0)

    async def test_a_late_listener_gets_the_current_connection_only(self, world: World) -> None:
        async with world.transport("alice") as alice:
            early = alice.connections()
            await _next(early)
            await world.cut("alice")
            await world.heal("alice")
            assert await _next(early) == 2
            assert await _next(alice.connections()) == 2

    async def test_a_publication_that_the_connection_does_not_survive_raises_or_arrives(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await bob.declare(queue())
            consumer = await bob.consume("q", prefetch=100)
            publications = [asyncio.create_task(alice.publish(letter(number))) for number in range(20)]
            await asyncio.sleep(0)
            await world.cut("alice")
            results = await asyncio.wait_for(asyncio.gather(*publications, return_exceptions=True), PATIENCE_SECONDS)
            confirmed = {number for number, result in enumerate(results) if result is None}
            assert all(isinstance(result, TransportUnavailable) for result in results if result is not None)
            assert confirmed <= set(bodies(await take(consumer, len(confirmed))) if confirmed else [])

    async def test_publishing_until_confirmed_outlasts_an_outage(self, world: World) -> None:
        async with world.transport("alice") as alice, world.transport("bob") as bob:
            await bob.declare(queue())
            consumer = await bob.consume("q", prefetch=10)
            await world.cut("alice")
            waits = asyncio.Event()
            publishing = asyncio.create_task(
                publish_until_confirmed(alice, letter(1), rng=_RNG, on_wait=lambda _error, _seconds: waits.set())
            )
            async with asyncio.timeout(PATIENCE_SECONDS):
                await waits.wait()
                await world.heal("alice")
                await publishing
            assert {int(delivery.body) for delivery in await take(consumer, 1)} == {1}


def _with_dead_letters(**arguments: Any) -> Topology:
    """Return a queue ``q`` on ``x``, whose dead letters go to the queue ``dead``."""
    dead = Queue("dead", (Binding("x.dead", "#"),))
    live = queue(dead_letter_exchange="x.dead", **arguments)
    return Topology((Exchange("x.dead"), *live.exchanges), (dead, *live.queues))


async def _publish_until_refused(transport: Transport, *, n_bytes: int = 0) -> int:
    """Publish until the queue is full; return how many it took."""
    for number in range(100):
        try:
            await transport.publish(letter(number, body=b"%0*d" % (n_bytes, number)))
        except PublishRefused:
            return number
    pytest.fail("the queue took a hundred messages")
