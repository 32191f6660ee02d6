"""Channels: opened for a purpose, closed within seconds.

The broker answers what it does not allow by closing the channel, so whoever asks for something that may
be refused does so on a passing channel, and nothing else is harmed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from broker.errors import TransportError
from broker.rabbitmq.words import CLOSE_SECONDS, in_our_words

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika import Connection
    from aio_pika.abc import AbstractChannel

    #: Opens another channel of the same kind.
    OpenChannel = Callable[[], Awaitable[AbstractChannel]]


async def open_channel(connection: Connection, *, publishing: bool = False) -> AbstractChannel:
    """Open a channel; one for publishing confirms, and raises where a message comes back."""
    channel = connection.channel(publisher_confirms=publishing, on_return_raises=publishing)
    await channel.initialize()
    return channel


async def close_channel(channel: AbstractChannel) -> None:
    """Close ``channel``, if the broker is there to hear it."""
    with suppress(TransportError), in_our_words():
        async with asyncio.timeout(CLOSE_SECONDS):
            await channel.close()


@asynccontextmanager
async def passing_channel(another: OpenChannel) -> AsyncIterator[AbstractChannel]:
    """Open a channel for what is done inside, and close it afterwards."""
    channel = await another()
    try:
        yield channel
    finally:
        await close_channel(channel)
