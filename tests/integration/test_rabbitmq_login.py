"""Getting in, and not getting in: what is told, how soon, and that no password is ever in it."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from servers.listening import Listener
from servers.processes import free_port
from servers.rabbitmq import PASSWORD

from broker.errors import ConnectionTimeout, CredentialsRefused
from broker.rabbitmq import RabbitMQTransport
from broker.retry import Backoff
from broker.testing import bodies, letter, queue, take

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.rabbitmq import VHost

pytestmark = pytest.mark.rabbitmq

QUICK = Backoff(0.02, 0.2)
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), "s3cret")


@pytest.fixture(autouse=True)
def no_password_in_any_output(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    for name in ("aio_pika", "aiormq", "asyncio"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    output, errors = capfd.readouterr()
    for secret in SECRETS:
        assert secret not in caplog.text
        assert secret not in output + errors


def assert_no_secret(*things: object) -> None:
    for thing in things:
        chain = thing
        while chain is not None:
            assert not any(secret in f"{chain} {chain!r}" for secret in SECRETS)
            chain = getattr(chain, "__cause__", None) or getattr(chain, "__context__", None)


async def refusal(url: str) -> CredentialsRefused:
    """Try to enter; return the refusal, which has to come at once."""
    listener = Listener()
    transport = RabbitMQTransport([url], on_event=listener)
    with pytest.raises(CredentialsRefused) as caught:
        async with asyncio.timeout(10):
            await transport.__aenter__()
    assert_no_secret(transport, caught.value, *listener.heard)
    return caught.value


async def test_a_wrong_password_is_refused_at_once(vhost: VHost) -> None:
    vhost.amqp_url(user="alice", password="another")
    error = await refusal(vhost.url(user="alice"))
    assert "alice" in str(error)
    assert f"127.0.0.1:{vhost.rabbitmq.port}" in str(error)


async def test_an_unknown_user_is_refused_at_once(vhost: VHost) -> None:
    assert "nobody" in str(await refusal(vhost.url(user="nobody")))


async def test_a_vhost_without_permission_is_refused_at_once(vhost: VHost) -> None:
    vhost.rabbitmq.add_user("stranger")
    assert vhost.name in str(await refusal(vhost.url(user="stranger")))


async def test_a_vhost_that_does_not_exist_is_refused_at_once(vhost: VHost) -> None:
    assert "nowhere" in str(await refusal(vhost.amqp_url().replace(quote(vhost.name, safe=""), "nowhere")))


async def test_an_unreachable_broker_is_tried_until_the_time_is_over(vhost: VHost) -> None:
    listener, port = Listener(), free_port()
    transport = RabbitMQTransport(
        [vhost.amqp_url(port=port)], on_event=listener, connect_timeout_seconds=0.5, backoff=QUICK
    )
    with pytest.raises(ConnectionTimeout, match=rf"127\.0\.0\.1:{port} within 0\.5 s") as caught:
        await transport.__aenter__()
    attempts = [happening.attempt for happening in listener.heard]
    assert attempts == list(range(1, len(attempts) + 1))
    assert len(attempts) >= 2
    assert {happening.kind for happening in listener.heard} == {"unreachable"}
    assert_no_secret(transport, caught.value, *listener.heard)


async def test_a_port_where_nobody_speaks_amqp_is_unreachable_too(vhost: VHost) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        transport = RabbitMQTransport(
            [vhost.amqp_url(port=mute.getsockname()[1])], connect_timeout_seconds=0.3, backoff=QUICK
        )
        with pytest.raises(ConnectionTimeout) as caught:
            await transport.__aenter__()
    assert_no_secret(caught.value)


@pytest.mark.fault("F41")
async def test_a_service_that_was_running_waits_for_its_password_to_be_mended(vhost: VHost) -> None:
    listener = Listener()
    url = vhost.amqp_url(user="alice")
    async with RabbitMQTransport([url], on_event=listener, backoff=QUICK) as alice:
        await alice.declare(queue())
        consumer = await alice.consume("q", prefetch=1)
        await listener.next("connected")
        await asyncio.to_thread(vhost.rabbitmq.add_user, "alice", "another")
        await asyncio.to_thread(vhost.rabbitmq.disconnect, "alice")
        assert "refuses the login of alice" in (await listener.next("refused")).detail
        assert (await listener.next("refused")).attempt > 1
        await asyncio.to_thread(vhost.rabbitmq.add_user, "alice")
        await listener.next("connected")
        await alice.publish(letter(1))
        assert bodies(await take(consumer, 1)) == [1]
    assert_no_secret(alice, *listener.heard)
