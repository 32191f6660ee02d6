"""Publishing on one connection, so that a message that is refused costs no other.

The broker answers a forbidden or misaddressed message by closing the channel, which fails whatever else
is under way there, and what the client still writes to a closed channel costs the connection. So the
first message of each route goes alone, on a channel of its own; all that follow share one.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING

from aio_pika import exceptions as amqp
from aiormq import spec

from broker.errors import PublishRefused, Unroutable
from broker.rabbitmq.channels import passing_channel

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel

    from broker.rabbitmq.channels import OpenChannel
    from broker.transport import Outgoing

_TRANSIENT, _PERSISTENT = 1, 2  # delivery modes of AMQP 0-9-1


class Publisher:
    """The publishing channel of a link, and the routes that are known to be allowed.

    Parameters
    ----------
    another_channel
        Opens a channel of the connection that publishes.
    gone
        Set when that connection is lost: then no other channel is tried.
    """

    def __init__(self, another_channel: OpenChannel, gone: asyncio.Event) -> None:
        self._another_channel = another_channel
        self._gone = gone
        self._shared: AbstractChannel | None = None
        self._opening = asyncio.Lock()
        self._trying: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._routes_tried: set[tuple[str, str]] = set()

    async def publish(self, message: Outgoing, user: str) -> None:
        """Send ``message`` in the name of ``user`` and wait for the answer."""
        route = message.exchange, message.routing_key
        if route not in self._routes_tried:
            async with self._trying[route]:
                if route not in self._routes_tried:
                    await self._try_route(route, message, user)
                    return
        try:
            await _send(await self._shared_channel(), message, user)
        except (amqp.AMQPChannelError, amqp.ChannelInvalidStateError):
            if self._gone.is_set():
                raise
            # Somebody deleted an exchange or took a permission away. Whose message it was shows alone; the
            # receiver knows one that comes twice by its id.
            await self._publish_alone(message, user)

    async def _try_route(self, route: tuple[str, str], message: Outgoing, user: str) -> None:
        try:
            await self._publish_alone(message, user)
        except (PublishRefused, Unroutable):
            # Answers to a message that is allowed.
            self._routes_tried.add(route)
            raise
        self._routes_tried.add(route)

    async def _publish_alone(self, message: Outgoing, user: str) -> None:
        async with passing_channel(self._another_channel) as alone:
            await _send(alone, message, user)

    async def _shared_channel(self) -> AbstractChannel:
        """Return the channel that all publications share; opened anew after the broker closed it."""
        if self._shared is not None and not self._shared.is_closed:
            return self._shared
        async with self._opening:
            if self._shared is None or self._shared.is_closed:
                self._shared = await self._another_channel()
            return self._shared


async def _send(channel: AbstractChannel, message: Outgoing, user: str) -> None:
    # Below aio-pika's exchange, which costs as much again as the rest of a publication.
    raw = await channel.get_underlay_channel()
    lifetime = message.expiration_seconds
    properties = spec.Basic.Properties(
        message_id=message.message_id,
        user_id=user,
        delivery_mode=_PERSISTENT if message.persistent else _TRANSIENT,
        expiration=None if lifetime is None else str(round(lifetime * 1000)),
    )
    try:
        await raw.basic_publish(
            message.body,
            exchange=message.exchange,
            routing_key=message.routing_key,
            properties=properties,
            mandatory=True,
        )
    except amqp.PublishError as error:
        raise Unroutable(
            f"no queue is bound to {message.exchange} for {message.routing_key}; "
            f"whoever should receive message {message.message_id} has not declared its queue"
        ) from error
    except amqp.DeliveryError as error:
        raise PublishRefused(
            f"a queue behind {message.exchange} would not take message {message.message_id}, "
            f"since it is full or has no leader; send it later"
        ) from error
