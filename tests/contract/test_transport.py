"""The transports sit the contract's examination: in memory, on the installed RabbitMQ, and on 4.x."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from servers.proxy import Proxy
from servers.rabbitmq import RabbitMQ, VHost, find_rabbitmq4, fresh_vhost

from broker.memory import MemoryBroker
from broker.rabbitmq import RabbitMQTransport
from broker.retry import Backoff
from broker.testing import TransportContract, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from broker.transport import OnEvent, Transport


class MemoryWorld:
    """A broker in this process."""

    def __init__(self) -> None:
        self._broker = MemoryBroker()

    @asynccontextmanager
    async def transport(self, user: str, *, on_event: OnEvent | None = None) -> AsyncIterator[Transport]:
        async with self._broker.transport(user, on_event=on_event) as transport:
            yield transport

    async def cut(self, user: str) -> None:
        self._broker.disconnect(user)

    async def heal(self, user: str) -> None:
        self._broker.reconnect(user)


class RabbitMQWorld:
    """A vhost of a real broker, and a proxy between it and each user."""

    def __init__(self, vhost: VHost) -> None:
        self._vhost = vhost
        self._proxies: dict[str, Proxy] = {}

    @asynccontextmanager
    async def transport(self, user: str, *, on_event: OnEvent | None = None) -> AsyncIterator[Transport]:
        async with Proxy(self._vhost.rabbitmq.port) as proxy:
            self._proxies[user] = proxy
            url = self._vhost.amqp_url(user=user, port=proxy.port)
            async with RabbitMQTransport([url], on_event=on_event, backoff=Backoff(0.02, 0.1)) as transport:
                yield transport

    async def cut(self, user: str) -> None:
        self._proxies[user].cut()

    async def heal(self, user: str) -> None:
        self._proxies[user].heal()


class TestMemory(TransportContract):
    @pytest.fixture
    def world(self) -> World:
        return MemoryWorld()


@pytest.mark.rabbitmq
class TestRabbitMQ(TransportContract):
    @pytest.fixture
    def world(self, vhost: VHost) -> World:
        return RabbitMQWorld(vhost)


RABBITMQ4 = find_rabbitmq4()

if RABBITMQ4 is None:

    @pytest.mark.skip(reason="no RabbitMQ 4.x here: `make rabbitmq4` gets one and runs the examination on it")
    def test_rabbitmq_4_sits_the_examination_too() -> None:
        """Say once, not for each of its questions, that it does not."""

else:

    @pytest.fixture(scope="session")
    def rabbitmq4() -> Iterator[RabbitMQ]:
        with RabbitMQ(RABBITMQ4) as node:
            yield node

    @pytest.mark.rabbitmq
    class TestRabbitMQ4(TransportContract):
        @pytest.fixture
        def world(self, rabbitmq4: RabbitMQ) -> Iterator[World]:
            for vhost in fresh_vhost(rabbitmq4):
                yield RabbitMQWorld(vhost)
