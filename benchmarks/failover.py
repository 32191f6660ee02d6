"""How long nobody serves: when the aggregator is killed or frozen, and after the broker is back.

Two aggregators and three sites as processes over a private RabbitMQ; their store is a private PostgreSQL, or one file
of SQLite for both. Training goes on all the while. Each figure is from the fault, seen from outside, as a subscriber of
models sees it:

    kill -9    until the first model under a new epoch
    freeze     SIGSTOP: the same, in heartbeats; then SIGCONT
    broker     kill -9 and started again: from the moment at which it answers, until the first new version

    python benchmarks/failover.py
    python benchmarks/failover.py --store sqlite --rounds 10 --heartbeat 2 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from broker_for import ROOT

from aggregator.settings import AggregatorSettings
from aggregator.store.opening import open_store
from broker.codec import decode
from broker.messages import GlobalModel
from broker.rabbitmq import RabbitMQTransport
from broker.retry import Backoff
from broker.topology import MODELS, Binding, Exchange, Queue, Topology, routing_key

sys.path.insert(0, str(ROOT / "tests"))

from servers.federation import Federation, ServiceProcess, service
from servers.postgresql import PostgreSQL
from servers.rabbitmq import RabbitMQ, find_rabbitmq, fresh_vhost

DATA = ROOT / "examples" / "heart_disease"
SITES = ("cleveland", "hungarian", "va")
FEDERATION = "failover"
#: A fit takes at least so long, so that there are some ten versions a second and not as many as fit.
FIT_SECONDS = 0.1
LIMIT_SECONDS = 120.0


@dataclass(frozen=True)
class Result:
    """Seconds of each kind of fault, in the order in which they were made; and the verdict of the ledger."""

    store: str
    heartbeat_seconds: float
    killed: list[float]
    frozen: list[float]
    broker_restarted: list[float]
    versions: int
    counted_twice: int
    versions_missing: int
    published_under_an_old_epoch: int


class Observer:
    """Sees every model that is published, and when."""

    def __init__(self) -> None:
        self.epoch, self.version, self.stale = 0, -1, 0
        self._changed = asyncio.Event()

    async def watch(self, transport: RabbitMQTransport) -> None:
        """Take models for ever."""
        seen = Queue("failover.seen", (Binding(MODELS, routing_key(FEDERATION, "model", "#")),), kind="classic")
        await transport.declare(Topology((Exchange(MODELS),), (seen,)))
        consumer = await transport.consume(seen.name, prefetch=100)
        while True:
            delivery = await consumer.take()
            message = decode(delivery.body)
            await delivery.ack()
            if isinstance(message, GlobalModel):
                self.stale += message.epoch < self.epoch and not delivery.redelivered
                self.epoch, self.version = max(self.epoch, message.epoch), max(self.version, message.version)
                self._changed.set()

    async def until(self, holds: Callable[[], bool]) -> float:
        """Return the time at which ``holds``."""
        async with asyncio.timeout(LIMIT_SECONDS):
            while not holds():
                self._changed.clear()
                await self._changed.wait()
        return time.monotonic()


class Pair:
    """Two aggregators: one serves."""

    def __init__(self, aggregators: list[ServiceProcess]) -> None:
        self.aggregators = aggregators

    async def one_that(self, *, serves: bool) -> ServiceProcess:
        """Return the aggregator that serves, or the one that waits, as soon as there is exactly one of each."""
        deadline = time.monotonic() + LIMIT_SECONDS
        wanted = f'fedmq_aggregator_serving{{federation="{FEDERATION}"}} {float(serves)}'
        while time.monotonic() < deadline:
            pages = [(await asyncio.to_thread(each.get, "/metrics"))[1] for each in self.aggregators]
            serving = [f"{wanted[:-3]}1.0" in page for page in pages]
            if sum(serving) == 1 and all(wanted[:-3] in page for page in pages):
                return self.aggregators[serving.index(serves)]
            await asyncio.sleep(0.05)
        raise TimeoutError("there was never one aggregator that serves and one that waits")


async def measure(given: argparse.Namespace, rabbitmq: RabbitMQ, url: str, store: dict[str, object]) -> Result:
    """Make the faults one after the other, and return what they cost."""
    observer = Observer()
    killed, frozen, restarted = [], [], []
    with tempfile.TemporaryDirectory(prefix="fedmq-failover-") as folder, ExitStack() as stack:
        pair, settings = _start(Path(folder), url, {**store, "heartbeat_seconds": given.heartbeat}, stack)
        async with RabbitMQTransport([url], backoff=Backoff(0.02, 0.1), heartbeat_seconds=30) as transport:
            watching = asyncio.create_task(observer.watch(transport))
            await observer.until(lambda: observer.version > 5)
            for _ in range(given.rounds):
                serving = await pair.one_that(serves=True)
                before, began = observer.epoch, time.monotonic()
                serving.__exit__()
                killed.append(await observer.until(lambda: observer.epoch > before) - began)  # noqa: B023 - at once
                serving.__enter__()
                print(f"killed: {killed[-1]:.2f} s", file=sys.stderr)
            for _ in range(given.rounds):
                serving = await pair.one_that(serves=True)
                before, began = observer.epoch, time.monotonic()
                serving.send(signal.SIGSTOP)
                frozen.append(await observer.until(lambda: observer.epoch > before) - began)  # noqa: B023 - at once
                print(f"frozen: {frozen[-1]:.2f} s", file=sys.stderr)
                serving.send(signal.SIGCONT)
                version = observer.version
                await observer.until(lambda: observer.version > version + 10)  # noqa: B023 - at once
            for _ in range(given.rounds):
                await pair.one_that(serves=True)
                await asyncio.to_thread(rabbitmq.kill)
                version = observer.version
                await asyncio.to_thread(rabbitmq.start)
                back = time.monotonic()
                restarted.append(await observer.until(lambda: observer.version > version) - back)  # noqa: B023 - at once
                print(f"broker back: {restarted[-1]:.2f} s", file=sys.stderr)
            watching.cancel()
    made = open_store(settings)
    try:
        versions = sorted(made.versions())
        included = [entry.update_id for entry in made.ledger() if entry.included_in is not None]
    finally:
        made.close()
    return Result(
        store=given.store,
        heartbeat_seconds=given.heartbeat,
        killed=killed,
        frozen=frozen,
        broker_restarted=restarted,
        versions=len(versions),
        counted_twice=len(included) - len(set(included)),
        versions_missing=versions[-1] - versions[0] + 1 - len(versions),
        published_under_an_old_epoch=observer.stale,
    )


def _start(folder: Path, url: str, given: dict[str, object], stack: ExitStack) -> tuple[Pair, AggregatorSettings]:
    common = {"federation": FEDERATION, "broker": url, "heartbeat_seconds": given["heartbeat_seconds"]}
    # Many versions, whatever the optimum: the training must not end while it is being disturbed.
    trains = {
        "strategy": "fedasync",
        "max_versions": 1_000_000,
        "patience": 1_000_000,
        "tolerance": 0,
        "senders": "shared",
    }
    aggregator = {**common, **trains, **given, "participants": ",".join(SITES)}
    both = [service(name, "aggregator", {**aggregator}, folder) for name in ("first", "second")]
    participants = [
        service(
            name,
            "participant",
            {
                **common,
                "name": name,
                "data": DATA / f"site-{name}.csv",
                "label": "y",
                "split": "split",
                "least_fit_seconds": FIT_SECONDS,
                "aggregator_user": "tester",
            },
            folder,
        )
        for name in SITES
    ]
    stack.enter_context(Federation([*both, *participants]))
    return Pair(both), AggregatorSettings(**{**aggregator, "participants": SITES})


@contextmanager
def _store(kind: str) -> Iterator[dict[str, object]]:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="fedmq-failover-store-") as folder:
            yield {"state_dir": folder}
    else:
        with PostgreSQL() as server:
            yield {"store": server.url()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--rounds", type=int, default=5, help="faults of each kind")
    parser.add_argument(
        "--heartbeat", type=int, default=5, help="seconds between the heartbeats of services and broker"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    programs = find_rabbitmq()
    if programs is None:
        sys.exit("RabbitMQ is not installed here: apt-get install --no-install-recommends rabbitmq-server")
    with RabbitMQ(programs) as rabbitmq, contextmanager(fresh_vhost)(rabbitmq) as vhost, _store(given.store) as store:
        result = asyncio.run(measure(given, rabbitmq, vhost.amqp_url(), store))
    if given.json:
        print(json.dumps(asdict(result)))
        return
    print(f"two aggregators over {result.store}, three sites, heartbeats of {result.heartbeat_seconds:g} s")
    for what, seconds, of in (
        ("aggregator killed -9", result.killed, ""),
        ("aggregator frozen", result.frozen, "heartbeats"),
        ("broker back", result.broker_restarted, ""),
    ):
        beats = f", {max(seconds) / result.heartbeat_seconds:.1f} heartbeats at most" if of else ""
        print(f"{what:<22} median {median(seconds):5.2f} s, at most {max(seconds):5.2f} s of {len(seconds)}{beats}")
    print(
        f"{result.versions} versions, {result.versions_missing} missing, {result.counted_twice} updates counted twice, "
        f"{result.published_under_an_old_epoch} models published under an old epoch, which participants pass over"
    )


if __name__ == "__main__":
    main()
