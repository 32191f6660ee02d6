"""What a service notices when its broker dies, freezes, fills up or loses a queue."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import TYPE_CHECKING

import pytest
from servers.listening import Listener
from servers.processes import free_port

from broker.errors import NotDeclared, TopologyRefused, TransportUnavailable
from broker.rabbitmq import RabbitMQTransport
from broker.retry import Backoff, publish_until_confirmed
from broker.testing import assert_silent, bodies, letter, queue, take

if TYPE_CHECKING:
    from servers.rabbitmq import VHost

pytestmark = pytest.mark.rabbitmq

QUICK = Backoff(0.02, 0.2)


@pytest.mark.fault("F23")
async def test_confirmed_messages_and_the_consumer_survive_a_broker_that_is_killed(vhost: VHost) -> None:
    listener = Listener()
    async with RabbitMQTransport([vhost.amqp_url()], on_event=listener, backoff=QUICK) as transport:
        await transport.declare(queue())
        connections = transport.connections()
        assert await anext(connections) == 1
        for number in range(20):
            await transport.publish(letter(number))
        await asyncio.to_thread(vhost.wait_until_registered, "q")
        await asyncio.to_thread(vhost.rabbitmq.kill)
        await listener.next("lost")
        late = asyncio.create_task(publish_until_confirmed(transport, letter(20), rng=random.Random(1)))
        assert "cannot reach" in (await listener.next("unreachable")).detail
        await asyncio.to_thread(vhost.rabbitmq.start)
        async with asyncio.timeout(30):
            assert await anext(connections) == 2
            await late
        consumer = await transport.consume("q", prefetch=100)
        assert bodies(await take(consumer, 21)) == list(range(21))


async def test_a_consumer_goes_on_after_its_broker_was_killed(vhost: VHost) -> None:
    listener = Listener()
    async with RabbitMQTransport([vhost.amqp_url()], on_event=listener, backoff=QUICK) as transport:
        await transport.declare(queue(kind="classic"))
        consumer = await transport.consume("q", prefetch=10)
        await transport.publish(letter(1))
        [held] = await take(consumer, 1)
        await listener.next("connected")
        await asyncio.to_thread(vhost.rabbitmq.restart)
        await listener.next("connected")
        await transport.publish(letter(2))
        again, new = await take(consumer, 2)
        assert bodies([again, new]) == [1, 2]
        assert (again.redelivered, held.redelivered) == (True, False)


async def test_a_queue_that_its_broker_lost_in_a_crash_is_named_and_made_again_once_deleted(
    vhost: VHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.rabbitmq.subscription.ANSWER_SECONDS", 2.0)
    listener = Listener()
    async with RabbitMQTransport([vhost.amqp_url()], on_event=listener, backoff=QUICK) as transport:
        await transport.declare(queue())
        consumer = await transport.consume("q", prefetch=10)
        await listener.next("connected")
        await asyncio.to_thread(vhost.rabbitmq.restart)  # before the queue is registered
        lost = await listener.next("consumer-lost")
        assert "the queue q does not answer" in lost.detail
        assert "delete it there" in lost.detail
        await asyncio.to_thread(vhost.rabbitmq.api, "DELETE", "queues", vhost.name, "q")
        await publish_until_confirmed(transport, letter(1), rng=random.Random(1))
        assert bodies(await take(consumer, 1)) == [1]


@pytest.mark.fault("F36")
async def test_a_consumer_comes_back_when_its_queue_is_deleted_underneath(vhost: VHost) -> None:
    listener = Listener()
    async with RabbitMQTransport([vhost.amqp_url()], on_event=listener, backoff=QUICK) as transport:
        await transport.declare(queue())
        consumer = await transport.consume("q", prefetch=10)
        for number in range(3):
            await asyncio.to_thread(vhost.delete_queue, "q")
            await listener.next("consumer-lost")
            await publish_until_confirmed(transport, letter(number), rng=random.Random(1), backoff=QUICK)
            [delivery] = await take(consumer, 1)
            assert bodies([delivery]) == [number]
            await delivery.ack()
        assert transport.connected


async def test_a_consumer_waits_for_a_queue_that_is_not_its_own_to_declare(vhost: VHost) -> None:
    listener, owner_url = Listener(), vhost.amqp_url(user="owner")
    async with (
        RabbitMQTransport([owner_url]) as owner,
        RabbitMQTransport([vhost.amqp_url()], on_event=listener, backoff=QUICK) as transport,
    ):
        await owner.declare(queue())
        consumer = await transport.consume("q", prefetch=10)
        await asyncio.to_thread(vhost.delete_queue, "q")
        while (await listener.next("consumer-lost")).attempt < 2:
            pass
        await owner.declare(queue())
        await owner.publish(letter(1))
        assert bodies(await take(consumer, 1)) == [1]


async def test_a_cluster_is_reached_through_any_of_its_nodes(vhost: VHost) -> None:
    listener = Listener()
    urls = [vhost.amqp_url(port=free_port()), vhost.amqp_url()]
    async with RabbitMQTransport(urls, on_event=listener, backoff=QUICK) as transport:
        assert transport.connected
        assert [happening.kind for happening in listener.heard] == ["unreachable", "connected"]


@pytest.mark.fault("F25")
async def test_a_frozen_broker_is_given_up_and_nobody_is_cancelled(vhost: VHost) -> None:
    # The client ends what waits on a connection without heartbeats in CancelledError.
    listener = Listener()
    async with RabbitMQTransport(
        [vhost.amqp_url()], on_event=listener, backoff=QUICK, heartbeat_seconds=1, publish_timeout_seconds=60
    ) as transport:
        await transport.declare(queue())
        consumer = await transport.consume("q", prefetch=10)
        await transport.publish(letter(1))
        [held] = await take(consumer, 1)
        vhost.rabbitmq.node.signal_all(signal.SIGSTOP)
        try:
            with pytest.raises(TransportUnavailable):
                await transport.publish(letter(2))
            await listener.next("lost")
            await held.ack()
        finally:
            vhost.rabbitmq.node.signal_all(signal.SIGCONT)
        await listener.next("connected")
        await publish_until_confirmed(transport, letter(3), rng=random.Random(1), backoff=QUICK)
        while bodies(await take(consumer, 1)) != [3]:
            pass


async def test_a_confirmation_that_does_not_come_in_time_is_no_confirmation(vhost: VHost) -> None:
    async with RabbitMQTransport([vhost.amqp_url()], backoff=QUICK, publish_timeout_seconds=0.2) as transport:
        await transport.declare(queue())
        await transport.publish(letter(1))
        vhost.rabbitmq.node.signal_all(signal.SIGSTOP)
        try:
            with pytest.raises(TransportUnavailable, match="m2"):
                await transport.publish(letter(2))
        finally:
            vhost.rabbitmq.node.signal_all(signal.SIGCONT)
        async with asyncio.timeout(30):
            await publish_until_confirmed(transport, letter(3), rng=random.Random(1), backoff=QUICK)


@pytest.mark.fault("F27")
async def test_a_broker_that_is_full_blocks_publishers_says_so_and_still_takes_settlements(vhost: VHost) -> None:
    listener = Listener()
    async with RabbitMQTransport([vhost.amqp_url()], on_event=listener, publish_timeout_seconds=3) as transport:
        await transport.declare(queue())
        consumer = await transport.consume("q", prefetch=1)
        await transport.publish(letter(1))
        await transport.publish(letter(2))
        [first] = await take(consumer, 1)
        await asyncio.to_thread(vhost.rabbitmq.control, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            # The first of them finds out; the second one is not sent at all.
            for number in (3, 4):
                with pytest.raises(TransportUnavailable, match=f"m{number}"):
                    await transport.publish(letter(number))
            assert "memory or disk" in (await listener.next("blocked")).detail
            await first.ack()
            [second] = await take(consumer, 1)
            assert bodies([second]) == [2]
            await second.ack()
        finally:
            await asyncio.to_thread(vhost.rabbitmq.control, "set_vm_memory_high_watermark", "0.8")
        await listener.next("unblocked")
        await publish_until_confirmed(transport, letter(4), rng=random.Random(1))
        arrived: list[int] = []
        while not arrived or arrived[-1] != 4:
            [delivery] = await take(consumer, 1)
            arrived += bodies([delivery])
            await delivery.ack()
        await assert_silent(consumer)
        # Twice would mean that it was also sent while the broker was known to block.
        assert arrived.count(4) == 1
        assert transport.connected


async def test_a_sender_who_is_not_who_it_says_is_refused(vhost: VHost) -> None:
    async with RabbitMQTransport([vhost.amqp_url(user="alice")]) as alice:
        await alice.declare(queue())
        await alice.publish(letter(1))
        assert alice._link is not None
        alice._link._user = "bob"
        with pytest.raises(TopologyRefused, match="user_id"):
            await alice.publish(letter(2))


async def test_a_forbidden_message_harms_none_of_those_under_way_with_it(vhost: VHost) -> None:
    listener, url = Listener(), vhost.amqp_url(user="alice")
    vhost.rabbitmq.permit("alice", vhost.name, write="^(x|q)$")
    async with (
        RabbitMQTransport([url], on_event=listener) as alice,
        RabbitMQTransport([vhost.amqp_url(user="bob")]) as bob,
    ):
        await bob.declare(queue("other", exchange="forbidden"))
        await alice.declare(queue())
        for _ in range(5):
            messages = [letter(number, exchange="x" if number % 10 else "forbidden") for number in range(100)]
            results = await asyncio.gather(*(alice.publish(each) for each in messages), return_exceptions=True)
            for number, result in enumerate(results):
                assert result is None if number % 10 else isinstance(result, TopologyRefused)
            assert "forbidden" in str(results[0])
        # On a shared channel, the client's late frames would have cost the connection.
        assert [happening.kind for happening in listener.heard] == ["connected"]


@pytest.mark.fault("F41")
async def test_a_permission_that_is_taken_away_is_noticed(vhost: VHost) -> None:
    listener, url = Listener(), vhost.amqp_url(user="alice")
    async with RabbitMQTransport([url], on_event=listener, backoff=QUICK) as alice:
        await alice.declare(queue())
        await alice.publish(letter(1))
        await listener.next("connected")
        # Enough to bind, not to publish. The broker asks itself again when there is a new connection.
        vhost.rabbitmq.permit("alice", vhost.name, write="^q$")
        await asyncio.to_thread(vhost.rabbitmq.disconnect, "alice")
        await listener.next("connected")
        with pytest.raises(TopologyRefused):
            await alice.publish(letter(2))


async def test_an_exchange_that_is_deleted_is_noticed_and_harms_no_other(vhost: VHost) -> None:
    async with RabbitMQTransport([vhost.amqp_url()], backoff=QUICK) as transport:
        for exchange in ("x", "y"):
            await transport.declare(queue(f"q.{exchange}", exchange=exchange))
            await transport.publish(letter(1, exchange=exchange))
        vhost.rabbitmq.api("DELETE", "exchanges", vhost.name, "y")
        with pytest.raises(NotDeclared, match="'y'"):
            await transport.publish(letter(2, exchange="y"))
        await transport.publish(letter(2))


async def test_declaring_what_a_user_may_not_declare_is_refused(vhost: VHost) -> None:
    url = vhost.amqp_url(user="alice")
    vhost.rabbitmq.permit("alice", vhost.name, configure="^$")
    async with RabbitMQTransport([url]) as alice:
        with pytest.raises(TopologyRefused, match="'x'"):
            await alice.declare(queue())
        assert alice.connected


async def test_a_transport_that_is_left_leaves_no_task_and_no_connection(vhost: VHost) -> None:
    before = asyncio.all_tasks()
    async with RabbitMQTransport([vhost.amqp_url()]) as transport:
        await transport.declare(queue())
        await transport.consume("q", prefetch=1)
        await transport.publish(letter(1))
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.fault("F36")
async def test_a_consumer_that_ended_without_a_word_is_noticed_and_made_anew(vhost: VHost) -> None:
    listener = Listener()
    async with RabbitMQTransport(
        [vhost.amqp_url()], on_event=listener, backoff=QUICK, heartbeat_seconds=1
    ) as transport:
        await transport.declare(queue())
        consumer = await transport.consume("q", prefetch=10)
        paused = await transport.consume("q", prefetch=10)
        await paused.pause()
        subscription = consumer._subscription
        assert subscription is not None
        assert subscription.tag is not None
        # Behind the back of the subscription, as when the frame that says so gets lost.
        await subscription.raw.basic_cancel(subscription.tag)
        await transport.publish(letter(1))
        assert "no consumer" in (await listener.next("consumer-lost")).detail
        assert bodies(await take(consumer, 1)) == [1]
        assert [happening.kind for happening in listener.heard] == ["connected", "consumer-lost"]
        assert paused._subscription is not None
        assert paused._subscription.tag is None
