"""How long after its hello a late joiner has a model of 8 MiB.

An aggregator and one participant as processes over RabbitMQ; training stands still, since that one takes its time.
Then participants join one after the other: each subscribes, says hello, and is there when it has decoded the plan
and a model in whose roster it stands. It leaves again before the next one comes.

    python benchmarks/membership.py                                  # a million columns, two classes
    python benchmarks/membership.py --features 10484 --classes 100   # as many weights; few names to be sent with them
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from broker_for import ROOT, broker_url

from broker.codec import decode, encode
from broker.messages import GlobalModel, Goodbye, Hello, Plan
from broker.rabbitmq import RabbitMQTransport
from broker.topology import UPDATES, models_queue, participant_topology, plans_queue, routing_key
from broker.transport import Outgoing

FIRST = "first"
N_ROWS = 4
LIMIT_SECONDS = 60.0
#: What we promise for 8 MiB, at the median.
TARGET_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Federation:
    """Its name, where its broker is, and what its members know of each other."""

    name: str
    url: str
    features: tuple[str, ...]
    classes: tuple[int, ...]

    async def join(self, name: str) -> float:
        """Return the seconds from the hello of ``name`` until it has plan and model."""
        hello = Hello(self.name, name, "1", self.features, N_ROWS, 0, classes=self.classes, n_samples=float(N_ROWS))
        async with RabbitMQTransport([self.url]) as transport, asyncio.timeout(LIMIT_SECONDS):
            await transport.declare(participant_topology(self.name, name, expires_seconds=60))
            plans = await transport.consume(plans_queue(self.name, name), prefetch=1)
            models = await transport.consume(models_queue(self.name, name), prefetch=1)
            body = encode(hello)
            began = time.perf_counter()
            await transport.publish(self._outgoing("hello", name, body))
            plan = await plans.take()
            assert isinstance(decode(plan.body), Plan)
            await plan.ack()
            while True:
                delivery = await models.take()
                model = decode(delivery.body)
                assert isinstance(model, GlobalModel)
                await delivery.ack()
                if name in model.roster:
                    break
            took = time.perf_counter() - began
            await transport.publish(self._outgoing("goodbye", name, encode(Goodbye(self.name, name, "1"))))
        return took

    def _outgoing(self, kind: str, name: str, body: bytes) -> Outgoing:
        return Outgoing(UPDATES, routing_key(self.name, kind, name), body, f"{name}:1:{kind}")


def measure(url: str, n_features: int, n_classes: int, n_joins: int) -> list[float]:
    """Return how long each join took."""
    digits = len(str(n_features - 1))
    features = tuple(f"x{index:0{digits}}" for index in range(n_features))
    federation = Federation(f"bench-{secrets.token_hex(4)}", url, features, tuple(range(n_classes)))
    names = [f"late-{number}" for number in range(n_joins)]
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder, ExitStack() as stack:
        rows = Path(folder) / "rows.npz"
        y = np.arange(N_ROWS) % n_classes
        X = np.arange(N_ROWS * n_features, dtype=float).reshape(N_ROWS, n_features) % 3
        np.savez(rows, X=X, y=y, feature_names=np.array(features))
        common = {"broker": url, "federation": federation.name, "state_dir": folder, "queue_expiry_seconds": 60}
        rules = {
            "participants": ",".join([FIRST, *names]),
            "start_with": 1,
            "senders": "shared",
            "strategy": "fedavg",
            "standardise": False,
            "learning_rate": 1e-9,
            "l2": 0.1,
        }
        _start(stack, "aggregator", {**common, **rules}, Path(folder) / "aggregator.log")
        user = url.partition("://")[2].partition(":")[0]
        classes = ",".join(map(str, federation.classes))
        own = {"name": FIRST, "data": rows, "label": "y", "classes": classes, "aggregator_user": user}
        _start(stack, "participant", {**common, **own, "least_fit_seconds": 3600}, Path(folder) / "first.log")
        _wait_for(Path(folder) / "aggregator.log", '"phase": "training"')
        return asyncio.run(_join_all(federation, names))


async def _join_all(federation: Federation, names: list[str]) -> list[float]:
    return [await federation.join(name) for name in names]


def _start(stack: ExitStack, command: str, settings: dict[str, object], log: Path) -> None:
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedmq", command],
        cwd=ROOT,
        env={**os.environ, **{f"FEDMQ_{name.upper()}": str(value) for name, value in settings.items()}},
        stdout=output,
        stderr=output,
    )
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGKILL)


def _wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while text not in log.read_text():
        if time.monotonic() > deadline:
            sys.exit(f"no {text} within {LIMIT_SECONDS:g} s:\n{log.read_text()}")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", help="AMQP URL; a private node by default")
    parser.add_argument("--features", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--joins", type=int, default=20)
    given = parser.parse_args()
    with broker_url(given.broker) as url:
        seconds = sorted(measure(url, given.features, given.classes, given.joins))
    n_weights = (given.features + 1) * (1 if given.classes == 2 else given.classes)
    p50, p95 = (float(np.quantile(seconds, q)) for q in (0.5, 0.95))
    print(
        f"{given.joins} late joiners, a model of {8 * n_weights / 2**20:.1f} MiB, {given.features} columns: from hello "
        f"to model {1000 * p50:.0f} ms at the median, {1000 * p95:.0f} ms at the 95th percentile"
    )
    sys.exit(0 if p50 <= TARGET_SECONDS else 1)


if __name__ == "__main__":
    main()
