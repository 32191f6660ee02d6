"""Back-off, the connection signal, and publishing until confirmed."""

from __future__ import annotations

import asyncio
import random

import pytest

from broker.errors import MessageTooLarge, PublishRefused, TransportError, TransportUnavailable, Unroutable
from broker.memory import MemoryBroker
from broker.retry import Backoff, Connections, publish_until_confirmed, unless, when_connected
from broker.testing import letter, queue
from broker.transport import MAX_BODY_BYTES

SHORT = Backoff(0.001, 0.004)


def test_waits_double_up_to_the_longest_and_half_of_each_is_random() -> None:
    backoff, rng = Backoff(1.0, 5.0), random.Random(7)
    for attempt, ceiling in enumerate((1.0, 2.0, 4.0, 5.0, 5.0), start=1):
        waits = [backoff.seconds(attempt, rng) for _ in range(200)]
        assert ceiling / 2 <= min(waits) < 0.55 * ceiling
        assert 0.95 * ceiling < max(waits) <= ceiling


def test_a_service_that_has_tried_for_months_still_waits() -> None:
    assert 2.5 <= Backoff(1.0, 5.0).seconds(10**9, random.Random(7)) <= 5.0


def test_the_same_generator_gives_the_same_waits() -> None:
    first, second = ([SHORT.seconds(n, random.Random(n)) for n in range(1, 9)] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("first", "longest"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0)])
def test_a_range_that_is_none_is_refused(first: float, longest: float) -> None:
    with pytest.raises(ValueError, match="no such range"):
        Backoff(first, longest)


async def test_each_listener_hears_of_each_connection_once() -> None:
    connections = Connections()
    assert connections.made() == 1
    one, other = aiter(connections), aiter(connections)
    assert (await anext(one), await anext(other)) == (1, 1)
    waiting = asyncio.create_task(anext(one))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    connections.lost()
    await asyncio.sleep(0)
    assert not waiting.done()
    connections.made()
    assert (await waiting, await anext(other)) == (2, 2)


async def test_a_listener_who_was_away_hears_of_the_last_connection_only() -> None:
    connections = Connections()
    listener = aiter(connections)
    for _ in range(3):
        connections.made()
        connections.lost()
    connections.made()
    assert await anext(listener) == 4


async def test_iterations_end_with_the_connections() -> None:
    connections = Connections()
    connections.made()
    numbers = []
    async for number in aiter(connections):
        numbers.append(number)
        connections.end()
    assert numbers == [1]
    assert not connections.up


class Scripted:
    """A transport that fails as told, then confirms; always connected."""

    def __init__(self, *errors: TransportError) -> None:
        self.errors = list(errors)
        self.published: list[str] = []

    async def publish(self, message: object) -> None:
        self.published.append(message.message_id)  # type: ignore[attr-defined]
        if self.errors:
            raise self.errors.pop(0)

    def connections(self) -> object:
        connections = Connections()
        connections.made()
        return aiter(connections)


async def test_whatever_others_can_mend_is_tried_again_with_the_same_id() -> None:
    errors = [TransportUnavailable("away"), PublishRefused("full"), Unroutable("unbound")]
    transport, told = Scripted(*errors), []
    await publish_until_confirmed(
        transport,  # type: ignore[arg-type]
        letter(1),
        rng=random.Random(7),
        on_wait=lambda error, seconds: told.append((error, seconds)),
        backoff=SHORT,
    )
    assert transport.published == ["m1"] * 4
    assert [error for error, _ in told] == errors
    assert all(0.0005 <= seconds <= 0.004 for _, seconds in told)


async def test_nobody_needs_to_listen() -> None:
    transport = Scripted(Unroutable("unbound"))
    await publish_until_confirmed(transport, letter(1), rng=random.Random(7), backoff=SHORT)  # type: ignore[arg-type]
    assert transport.published == ["m1"] * 2


async def test_a_message_that_will_never_fit_is_not_tried_again() -> None:
    async with MemoryBroker().transport("alice") as alice:
        await alice.declare(queue())
        with pytest.raises(MessageTooLarge):
            await publish_until_confirmed(
                alice, letter(1, body=bytes(MAX_BODY_BYTES + 1)), rng=random.Random(7), backoff=SHORT
            )


async def test_an_outage_is_waited_out_and_not_asked_about() -> None:
    broker = MemoryBroker()
    async with broker.transport("alice") as alice:
        await alice.declare(queue())
        broker.disconnect()
        waits: list[float] = []
        first_wait = asyncio.Event()

        def note(_: object, seconds: float) -> None:
            waits.append(seconds)
            first_wait.set()

        publishing = asyncio.create_task(
            publish_until_confirmed(alice, letter(1), rng=random.Random(7), backoff=SHORT, on_wait=note)
        )
        async with asyncio.timeout(5):
            await first_wait.wait()
            await asyncio.sleep(10 * SHORT.longest_seconds)
            broker.reconnect()
            await publishing
        assert len(waits) == 1


async def test_leaving_the_transport_ends_the_attempts() -> None:
    broker = MemoryBroker()
    async with broker.transport("alice") as alice:
        broker.disconnect()
        publishing = asyncio.create_task(publish_until_confirmed(alice, letter(1), rng=random.Random(7), backoff=SHORT))
        await asyncio.sleep(0)
    with pytest.raises(TransportUnavailable):
        await asyncio.wait_for(publishing, 5)


async def test_what_needs_a_connection_is_done_again_on_the_next_one() -> None:
    broker, tried, began = MemoryBroker(), [], asyncio.Event()

    async def act() -> str:
        began.set()
        tried.append(transport.connected)
        await transport.consume("letters", prefetch=1)
        return "done"

    async with broker.transport("va") as transport:
        await transport.declare(queue("letters"))
        broker.disconnect()
        acting = asyncio.create_task(when_connected(transport, act, rng=random.Random(1), backoff=SHORT))
        await began.wait()
        broker.reconnect()
        assert await acting == "done"
        assert tried == [False, True]


async def test_what_needs_a_connection_fails_when_there_will_be_none() -> None:
    async with MemoryBroker().transport("va") as transport:
        pass

    async def act() -> None:
        raise TransportUnavailable("gone")

    with pytest.raises(TransportUnavailable, match="gone"):
        await when_connected(transport, act, rng=random.Random(1), backoff=SHORT)


async def test_waiting_ends_with_the_result_or_when_it_is_told_to_stop() -> None:
    stop = asyncio.Event()
    assert await unless(stop, asyncio.sleep(0, "result")) == "result"
    waiting = asyncio.create_task(unless(stop, asyncio.sleep(3600, "late")))
    await asyncio.sleep(0)
    stop.set()
    assert await waiting is None
    assert await unless(stop, asyncio.sleep(0, "too late")) is None


async def test_waiting_that_fails_says_why() -> None:
    async def fail() -> None:
        raise TransportUnavailable("gone")

    with pytest.raises(TransportUnavailable, match="gone"):
        await unless(asyncio.Event(), fail())
