"""The traffic of a federation and nothing else: a bare aio-pika loop, to hold rounds per second against.

One process publishes a body to as many newest-only queues as there are participants, each of which
is consumed by a process of its own that answers once with a body of the same size into one quorum queue. Persistent
messages, publisher confirms, an acknowledgement each; no codec, no store, no mathematics.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from contextlib import AsyncExitStack

import aio_pika

QUORUM = {"x-queue-type": "quorum"}
NEWEST = {"x-queue-type": "classic", "x-max-length": 1}


def rounds_per_second(url: str, *, n_participants: int, n_bytes: int, n_rounds: int, name: str) -> float:
    """Return how many rounds a second the bare loop makes."""
    command = [sys.executable, __file__, "--url", url, "--bytes", str(n_bytes), "--name", name]
    answerers = [
        subprocess.Popen([*command, "--answer", str(number), "--rounds", str(n_rounds)])
        for number in range(n_participants)
    ]
    try:
        return asyncio.run(_ask(url, name, n_participants, n_bytes, n_rounds))
    finally:
        for process in answerers:
            process.terminate()
            process.wait()


async def _open(
    stack: AsyncExitStack, url: str, name: str
) -> tuple[aio_pika.abc.AbstractChannel, aio_pika.abc.AbstractExchange]:
    connection = await stack.enter_async_context(await aio_pika.connect(url))
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    await channel.set_qos(32)
    exchange = await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
    return channel, exchange


async def _ask(url: str, name: str, n_participants: int, n_bytes: int, n_rounds: int) -> float:
    async with AsyncExitStack() as stack:
        _, publishing = await _open(stack, url, name)
        consuming, exchange = await _open(stack, url, name)
        size = {"n_participants": n_participants, "n_bytes": n_bytes, "n_rounds": n_rounds}
        return await _rounds(consuming, exchange, publishing, name, **size)


async def _rounds(
    consuming: aio_pika.abc.AbstractChannel,
    exchange: aio_pika.abc.AbstractExchange,
    publishing: aio_pika.abc.AbstractExchange,
    name: str,
    *,
    n_participants: int,
    n_bytes: int,
    n_rounds: int,
) -> float:
    answers = await consuming.declare_queue(f"{name}.answers", durable=True, arguments=QUORUM)
    await answers.bind(exchange, "answer.*")
    arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    await answers.consume(arrived.put)
    for _ in range(n_participants):  # each says that it is there
        await (await arrived.get()).ack()
    body = bytes(n_bytes)
    began = time.perf_counter()
    for _ in range(n_rounds):
        await publishing.publish(_message(body), "model.all", mandatory=True)
        for _ in range(n_participants):
            await (await arrived.get()).ack()
    return n_rounds / (time.perf_counter() - began)


async def _answer(url: str, name: str, number: int, n_bytes: int) -> None:
    stack = AsyncExitStack()  # ends with the process
    _, publishing = await _open(stack, url, name)
    consuming, exchange = await _open(stack, url, name)
    own = await consuming.declare_queue(f"{name}.models.{number}", durable=True, arguments=NEWEST)
    await own.bind(exchange, "model.all")
    body = bytes(n_bytes)

    async def say(body: bytes) -> None:
        while True:
            try:
                await publishing.publish(_message(body), f"answer.{number}", mandatory=True)
            except aio_pika.exceptions.PublishError:
                await asyncio.sleep(0.1)  # the asker has not declared its queue yet
            else:
                return

    await say(b"here")
    async with own.iterator() as models:
        async for model in models:
            await model.ack()
            await say(body)


def _message(body: bytes) -> aio_pika.Message:
    return aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--answer", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    given = parser.parse_args()
    asyncio.run(_answer(given.url, given.name, given.answer, given.bytes))
