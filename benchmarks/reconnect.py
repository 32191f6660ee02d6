"""How long many services need to be back after their broker was killed.

Each has the two connections of a service, a queue of its own and a consumer, in a few processes; the broker is killed
-9 and started again. A service is back when it has received what it sent to itself over the new connection.

    python benchmarks/reconnect.py --services 200
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from multiprocessing.queues import Queue as Results
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers.rabbitmq import RabbitMQ, find_rabbitmq, fresh_vhost

from broker.rabbitmq import RabbitMQTransport
from broker.retry import publish_until_confirmed
from broker.testing import letter, queue

PROCESSES = 4
LIMIT_SECONDS = 60.0
START_SECONDS = 120.0
HEARTBEAT_SECONDS = 10


async def serve(url: str, name: str, started: Results[str], back: Results[tuple[float, float]]) -> None:
    """Be one service: say when it is there, and when its connection and its first message are there again."""
    async with RabbitMQTransport([url], heartbeat_seconds=HEARTBEAT_SECONDS) as transport:
        await transport.declare(queue(name, kind="classic", exchange=name))
        consumer = await transport.consume(name, prefetch=1)
        connections = transport.connections()
        await anext(connections)
        started.put(name)
        await anext(connections)
        connected = time.time()
        await publish_until_confirmed(transport, letter(1, exchange=name), rng=Random())
        await (await consumer.take()).ack()
        back.put((connected, time.time()))


def serve_all(url: str, names: list[str], started: Results[str], back: Results[tuple[float, float]]) -> None:
    """Be several of them in this process."""

    async def together() -> None:
        await asyncio.gather(*(serve(url, name, started, back) for name in names))

    asyncio.run(together())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--services", type=int, default=200)
    given = parser.parse_args()
    programs = find_rabbitmq()
    if programs is None:
        sys.exit("no RabbitMQ is installed here: apt-get install rabbitmq-server")
    names = [f"service-{number}" for number in range(given.services)]
    spawning = multiprocessing.get_context("spawn")
    started: Results[str] = spawning.Queue()
    back: Results[tuple[float, float]] = spawning.Queue()
    with RabbitMQ(programs) as node:
        for vhost in fresh_vhost(node):
            url = vhost.amqp_url()
            processes = [
                spawning.Process(target=serve_all, args=(url, names[first::PROCESSES], started, back), daemon=True)
                for first in range(PROCESSES)
            ]
            for process in processes:
                process.start()
            for _ in names:
                started.get(timeout=START_SECONDS)
            node.kill()
            killed = time.time()
            node.start()
            up = time.time()
            times = [back.get(timeout=START_SECONDS) for _ in names]
            for process in processes:
                process.join()
    connected = sorted(first for first, _ in times)
    served = sorted(last for _, last in times)
    after_up = [moment - up for moment in served]
    print(f"{given.services} services, {2 * given.services} connections; the broker was away for {up - killed:.1f} s")
    print(f"connected again after the kill: first {connected[0] - killed:.1f} s, last {connected[-1] - killed:.1f} s")
    print(
        f"served again after the broker answers: median {statistics.median(after_up):.1f} s, last {after_up[-1]:.1f} s"
    )
    sys.exit(1 if after_up[-1] > LIMIT_SECONDS else 0)


if __name__ == "__main__":
    main()
