"""The client's errors in our words: what it raises, what the broker said, and what somebody has to mend.

Whoever calls the client does it inside `in_our_words`, and knows the errors of `broker.errors` only.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aio_pika import exceptions as amqp
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from broker.errors import CredentialsRefused, NotDeclared, TopologyRefused, TransportError, TransportUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from broker.url import Address

#: Seconds for one attempt to connect, and for any other question that a healthy broker answers at once.
ANSWER_SECONDS = 10.0
#: Seconds for a good-bye; a broker that is gone or frozen gives none.
CLOSE_SECONDS = 3.0
#: What the client raises when its connection or channel is not what it was; the last four are how a frame
#: shows that makes no sense.
FAILURES = (*amqp.CONNECTION_EXCEPTIONS, EOFError, LookupError, ValueError, struct.error)

_REFUSALS = (ChannelAccessRefused, ChannelLockedResource, amqp.ChannelPreconditionFailed)
_HUNG_UP = (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)
#: Of a classic queue in a cluster: it is declared, and waiting for its node mends that. The code is that of no queue.
_NODE_IS_DOWN = "home node"
_CERTIFICATE_ALERT = re.compile(r"certificate|unknown[ _]ca", re.IGNORECASE)


@contextmanager
def in_our_words() -> Iterator[None]:
    """Turn whatever the client raises into one of our errors, and leave cancelling to those who cancel.

    The client confuses the two. It ends its futures in `CancelledError` when a connection dies of
    missing heartbeats: the caller's task would end in silence. And where a connection dies while the
    caller is being cancelled, it raises the connection's error, or nothing: the caller would go on.
    """
    task = asyncio.current_task()
    assert task is not None, "a transport is used inside tasks"
    before = task.cancelling()
    try:
        with _errors_in_our_words():
            yield
    except asyncio.CancelledError:
        if task.cancelling() > before:
            raise
        raise TransportUnavailable("the connection to the broker died") from None
    except TransportError:
        if task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError


@contextmanager
def _errors_in_our_words() -> Iterator[None]:
    try:
        yield
    except TransportError:
        raise
    except amqp.ChannelNotFoundEntity as error:
        if _NODE_IS_DOWN in said(error):
            raise TransportUnavailable(f"a node of the broker is missed: {said(error)}") from error
        raise NotDeclared(f"{said(error)}; its owner has not declared it yet") from error
    except _REFUSALS as error:
        raise TopologyRefused(f"the broker does not allow this: {said(error)}") from error
    except FAILURES as error:
        raise TransportUnavailable(f"the connection to the broker failed: {said(error)}") from error


def said(error: BaseException | None) -> str:
    """Return what the broker or the system said, without numbers and types."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, asyncio.CancelledError):
        return "no heartbeat"
    words = [str(word) for word in error.args if isinstance(word, str)] if error is not None else []
    return ", ".join(words) or "closed without a reason"


async def tls_alert(error: BaseException, address: Address, context: ssl.SSLContext | None) -> ssl.SSLError | None:
    """Return why a broker hung up on a TLS connection, if it says so.

    In TLS 1.3 the client takes the handshake for done before the broker has looked at its certificate.
    Our first bytes then meet a closed door, and the reset that answers them overtakes the alert with the
    reason; every second time, where measured. Who listens before speaking hears it.
    """
    if context is None or not isinstance(error.__cause__, _HUNG_UP):
        return None
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
            try:
                await reader.read(1)
            finally:
                writer.transport.abort()
    except ssl.SSLError as alert:
        return alert
    except OSError:
        return None
    return None


def why_no_connection(error: BaseException, address: Address, user: str) -> TransportError:
    """Tell apart what somebody has to mend from what waiting may mend."""
    where = address.where
    cause = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(error, (amqp.ProbableAuthenticationError, amqp.AuthenticationError)):
        return CredentialsRefused(
            f"the broker at {where} refuses the login of {user}: {said(error)}; "
            f"check the user name and the password or certificate"
        )
    if isinstance(error, amqp.InvalidFrameError) and "OpenOk" in str(error):
        # The client hides the broker's reason (530) for closing where it should have opened the vhost.
        return CredentialsRefused(
            f"the broker at {where} does not let {user} into the vhost {address.vhost}; "
            f"check that it exists and that the user has permissions there"
        )
    if isinstance(cause, ssl.SSLCertVerificationError):
        return CredentialsRefused(
            f"the certificate of the broker at {where} is not to be trusted: {cause.verify_message}; "
            f"check the CA file, and that the certificate names this host"
        )
    if isinstance(cause, ssl.SSLError) and _CERTIFICATE_ALERT.search(str(cause)):
        return CredentialsRefused(f"the broker at {where} refuses our certificate: {cause}; check who signed it")
    return TransportUnavailable(
        f"cannot reach the broker at {where}: {said(error)}; is it running, and is nothing in between?"
    )
