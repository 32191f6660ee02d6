"""What the RabbitMQ transport decides before, and without, a connection."""

from __future__ import annotations

import asyncio
import logging
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from aio_pika import exceptions as amqp
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource
from servers.processes import free_port

from broker.errors import (
    CredentialsRefused,
    MessageTooLarge,
    NotDeclared,
    TopologyRefused,
    TransportError,
    TransportUnavailable,
    Unroutable,
)
from broker.rabbitmq import RabbitMQTransport
from broker.rabbitmq.declaring import DELIVERY_LIMIT, queue_arguments
from broker.rabbitmq.subscription import Subscription
from broker.rabbitmq.tasks import keep_going
from broker.rabbitmq.words import in_our_words, said, tls_alert, why_no_connection
from broker.testing import letter
from broker.topology import Queue
from broker.transport import MAX_BODY_BYTES
from broker.url import TLSSettings, parse_url

URL = "amqp://alice:secret@broker.example/v"
CERTIFICATE = TLSSettings(cert_file=Path("client.pem"))


def test_a_queue_says_what_it_is_and_nothing_else() -> None:
    assert queue_arguments(Queue("q", kind="classic")) == {"x-queue-type": "classic", "x-overflow": "drop-head"}


def test_everything_that_a_queue_promises_is_asked_of_the_broker() -> None:
    queue = Queue(
        "q",
        max_length=5,
        max_bytes=1000,
        overflow="reject-publish",
        ttl_seconds=1.5,
        single_active_consumer=True,
        dead_letter_exchange="dead",
    )
    assert queue_arguments(queue) == {
        "x-queue-type": "quorum",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-max-length": 5,
        "x-max-length-bytes": 1000,
        "x-overflow": "reject-publish",
        "x-message-ttl": 1500,
        "x-single-active-consumer": True,
        "x-dead-letter-exchange": "dead",
    }


def test_the_user_is_the_login() -> None:
    transport = RabbitMQTransport([URL, URL.replace("broker", "other")])
    assert transport.user == "alice"
    assert "alice" in repr(transport)
    assert "secret" not in repr(transport)
    assert not transport.connected


def test_a_certificate_may_stand_for_a_user_who_is_named() -> None:
    assert RabbitMQTransport(["amqps://broker.example"], user="h1", tls=CERTIFICATE).user == "h1"
    assert RabbitMQTransport(["amqps://h2@broker.example"], tls=CERTIFICATE).user == "h2"


@pytest.mark.parametrize(
    ("urls", "settings", "complaint"),
    [
        ([], {}, "no URL"),
        (["amqp://broker.example"], {}, "neither password nor certificate"),
        (["amqp://alice@broker.example"], {}, "neither password nor certificate"),
        ([URL], {"user": "bob"}, "alice, bob"),
        ([URL, URL.replace("alice", "bob")], {}, "alice, bob"),
        ([URL], {"tls": CERTIFICATE}, "begins with amqp://"),
        (["amqps://broker.example"], {"tls": CERTIFICATE}, "client.pem"),
        (["http://alice:secret@broker.example"], {}, "begins with amqp://"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    urls: list[str], settings: dict[str, str], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        RabbitMQTransport(urls, **settings)  # type: ignore[arg-type]
    assert "secret" not in repr(caught.value)


async def test_before_it_is_entered_there_is_no_connection() -> None:
    transport = RabbitMQTransport([URL])
    for call in (transport.publish(letter(1)), transport.consume("q", prefetch=1)):
        with pytest.raises(TransportUnavailable):
            await call


async def test_what_can_never_work_is_refused_first() -> None:
    transport = RabbitMQTransport([URL])
    with pytest.raises(MessageTooLarge):
        await transport.publish(letter(1, body=bytes(MAX_BODY_BYTES + 1)))
    with pytest.raises(ValueError, match="at least one"):
        await transport.consume("q", prefetch=0)


def why(error: BaseException, cause: BaseException | None = None) -> TransportError:
    error.__cause__ = cause
    return why_no_connection(error, parse_url(URL), "alice")


def untrusted() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"
    return error


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        (why(amqp.ProbableAuthenticationError("ACCESS_REFUSED")), "login of alice"),
        (why(amqp.AuthenticationError("PLAIN", ["EXTERNAL"])), "login of alice"),
        (why(amqp.InvalidFrameError("Expected one of ['Connection.OpenOk'], got ...")), "vhost v"),
        (why(amqp.AMQPConnectionError(), untrusted()), "self-signed"),
        (why(amqp.AMQPConnectionError(), ssl.SSLError(1, "tlsv13 alert certificate required")), "our certificate"),
        (why(ssl.SSLError(1, "tlsv1 alert unknown ca")), "our certificate"),
        (why(amqp.AMQPConnectionError(), ssl.SSLError("TLSV1_ALERT_UNKNOWN_CA")), "our certificate"),
    ],
)
def test_a_refusal_says_who_and_where(refusal: TransportError, says: str) -> None:
    assert isinstance(refusal, CredentialsRefused)
    assert says in str(refusal)
    assert "broker.example:5672" in str(refusal)
    assert "secret" not in str(refusal)


@pytest.mark.parametrize(
    "failure",
    [
        why(amqp.AMQPConnectionError(111, "Connect call failed")),
        why(amqp.InvalidFrameError("Expected Connection.Start")),
        why(TimeoutError()),
        why(amqp.AMQPConnectionError(), ssl.SSLError(1, "wrong version number")),
    ],
)
def test_everything_else_may_be_mended_by_waiting(failure: TransportError) -> None:
    assert isinstance(failure, TransportUnavailable)
    assert "cannot reach the broker at broker.example:5672" in str(failure)


async def test_a_broker_that_hung_up_and_is_gone_gives_no_reason() -> None:
    hung_up = amqp.AMQPConnectionError()
    hung_up.__cause__ = ConnectionResetError()
    nobody = parse_url(f"amqps://alice:secret@127.0.0.1:{free_port()}")
    assert await tls_alert(hung_up, nobody, ssl.create_default_context()) is None
    assert await tls_alert(hung_up, nobody, None) is None


@pytest.mark.parametrize(
    ("raised", "ours"),
    [
        (amqp.ChannelNotFoundEntity("NOT_FOUND - no queue 'q'"), NotDeclared),
        (
            amqp.ChannelNotFoundEntity("NOT_FOUND - home node 'b@h' of durable queue 'q' in vhost '/' is down"),
            TransportUnavailable,
        ),
        (amqp.ChannelPreconditionFailed("PRECONDITION_FAILED - inequivalent arg"), TopologyRefused),
        (ChannelAccessRefused("ACCESS_REFUSED"), TopologyRefused),
        (ChannelLockedResource("RESOURCE_LOCKED"), TopologyRefused),
        (amqp.ChannelClosed(None, None), TransportUnavailable),
        (amqp.ChannelInvalidStateError("closed"), TransportUnavailable),
        (amqp.ConnectionClosed(320, "CONNECTION_FORCED"), TransportUnavailable),
        (ConnectionResetError(104, "reset"), TransportUnavailable),
        (TimeoutError(), TransportUnavailable),
        (struct.error("unpack"), TransportUnavailable),
        (Unroutable("ours already"), Unroutable),
    ],
)
async def test_every_error_of_the_client_becomes_one_of_ours(raised: Exception, ours: type[TransportError]) -> None:
    with pytest.raises(ours), in_our_words():
        raise raised


async def test_a_cancellation_that_nobody_asked_for_is_a_lost_connection() -> None:
    with pytest.raises(TransportUnavailable), in_our_words():
        raise asyncio.CancelledError


@pytest.mark.parametrize("swallowed_by", [None, amqp.AMQPConnectionError("died"), Unroutable("no queue"), "nothing"])
async def test_a_cancellation_that_somebody_asked_for_stays_one(swallowed_by: Exception | str | None) -> None:
    # The client raises the connection's error when that dies at the same moment, or even nothing.
    async def wait() -> None:
        with in_our_words():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if swallowed_by is None:
                    raise
                if isinstance(swallowed_by, Exception):
                    raise swallowed_by from None

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_was_cancelled_before_can_still_say_good_bye() -> None:
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            with in_our_words():
                last_words = "good-bye"
            with pytest.raises(TransportUnavailable), in_our_words():
                raise asyncio.CancelledError
        return last_words  # pragma: no cover

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "closed without a reason"),
        (TimeoutError(), "no answer in time"),
        (asyncio.CancelledError(), "no heartbeat"),
        (amqp.ConnectionClosed(320, "CONNECTION_FORCED - closed"), "CONNECTION_FORCED - closed"),
        (OSError(111, "Connect call failed"), "Connect call failed"),
    ],
)
def test_what_the_broker_or_the_system_said_is_passed_on(error: BaseException | None, words: str) -> None:
    assert said(error) == words


class Lossy:
    """Stands for a link that can be lost."""

    def __init__(self) -> None:
        self.reason = ""

    def lose(self, reason: str) -> None:
        self.reason = reason


def subscription(link: Lossy, *unsettled: int) -> Subscription:
    made = Subscription(link, "q", None, None, None)  # type: ignore[arg-type]
    made._unsettled.update(unsettled)
    return made


async def test_a_settlement_on_a_dead_channel_is_dropped_and_not_tried_again() -> None:
    async def send() -> None:
        raise amqp.ChannelInvalidStateError("closed")

    link = Lossy()
    dead = subscription(link, 1, 2, 3)
    await dead.settle(2, send, multiple=True)
    assert (dead._unsettled, link.reason) == ({3}, "")


async def test_a_settlement_that_nobody_reads_gives_the_link_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.rabbitmq.subscription.ANSWER_SECONDS", 0.001)
    link = Lossy()
    await subscription(link, 1).settle(1, asyncio.Event().wait)  # type: ignore[arg-type]
    assert "could not be sent" in link.reason


async def test_a_settlement_that_was_cancelled_can_be_sent_later() -> None:
    sent: list[int] = []
    alive = subscription(Lossy(), 1, 2)
    settling = asyncio.create_task(alive.settle(2, asyncio.Event().wait, multiple=True))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling

    async def send() -> None:
        sent.append(1)

    await alive.settle(1, send)
    await alive.settle(1, send)
    assert (sent, alive._unsettled) == ([1], {2})


async def test_a_listener_that_fails_stops_nothing() -> None:
    def listen(_: object) -> None:
        raise ZeroDivisionError

    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    RabbitMQTransport([URL], on_event=listen)._supervisor.tell("lost", "gone")
    assert isinstance(reported[0]["exception"], ZeroDivisionError)


async def test_a_supervisor_that_dies_of_a_mistake_is_reported() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    reported: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    await asyncio.wait([keep_going(work(), "connection of alice")])
    await asyncio.sleep(0)
    assert "connection of alice" in str(reported[0]["message"])
    assert isinstance(reported[0]["exception"], ZeroDivisionError)


def test_the_clients_own_log_lines_are_not_wanted() -> None:
    # Told in one sentence by on_event; theirs come with tracebacks, and at debug level with bodies.
    for name in ("aio_pika.connection", "aiormq.connection"):
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


def test_the_memory_broker_does_without_the_client_of_the_real_one() -> None:
    code = "import sys, broker.memory, broker.retry, broker.url; sys.exit('aio_pika' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
