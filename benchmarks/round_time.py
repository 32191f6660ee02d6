"""Rounds per second of a whole federation, beside a bare loop of the same traffic in the same run.

Four participants as processes over RabbitMQ, `fedavg`, fits that cost nothing, everything on: publisher
confirms, durable commits, ledger, metrics. What differs from the bare loop is what fedmq itself costs.

    python benchmarks/round_time.py                # both sizes, a private RabbitMQ node
    python benchmarks/round_time.py --features 100 --json
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bare_loop import rounds_per_second
from broker_for import ROOT, broker_url

N_PARTICIPANTS = 4
#: Features -> rounds that are measured, after as many to warm up.
SIZES = {100: 300, 1_000_000: 20}
#: Asking for the metrics costs the aggregator time of its own.
POLL_SECONDS = 0.5
#: Seconds without a version after which something is wrong.
PATIENCE = 120.0


@dataclass(frozen=True)
class Result:
    """One size, both ways."""

    features: int
    rounds_per_second: float
    bare_rounds_per_second: float

    @property
    def share(self) -> float:
        """Rounds per second as a share of the bare loop's."""
        return self.rounds_per_second / self.bare_rounds_per_second


def measure(url: str, features: int, n_rounds: int) -> Result:
    """Return the rounds per second of both at one size."""
    federation = federation_rounds_per_second(url, features, n_rounds)
    bare = rounds_per_second(
        url,
        n_participants=N_PARTICIPANTS,
        n_bytes=8 * (features + 1),
        n_rounds=n_rounds,
        name=f"bare-{secrets.token_hex(4)}",
    )
    return Result(features, federation, bare)


def federation_rounds_per_second(url: str, features: int, n_rounds: int) -> float:
    """Return how many versions a second the federation makes, read from its own metrics."""
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder, ExitStack() as stack:
        names = [f"s{number}" for number in range(N_PARTICIPANTS)]
        common = {
            "FEDMQ_BROKER": url,
            "FEDMQ_FEDERATION": f"bench-{secrets.token_hex(4)}",
            "FEDMQ_STATE_DIR": folder,
            "FEDMQ_QUEUE_EXPIRY_SECONDS": "60",
        }
        user = url.partition("://")[2].partition(":")[0]
        _start(
            stack,
            "aggregator",
            {
                **common,
                "FEDMQ_PARTICIPANTS": ",".join(names),
                "FEDMQ_SENDERS": "shared",
                "FEDMQ_STRATEGY": "fedavg",
                "FEDMQ_STANDARDISE": "false",
                "FEDMQ_LOCAL_STEPS": "1",
                "FEDMQ_LEARNING_RATE": "1e-9",
                "FEDMQ_PATIENCE": "1000000",
                "FEDMQ_MAX_VERSIONS": "1000000",
            },
            Path(folder) / "aggregator.log",
        )
        for number, name in enumerate(names):
            table = Path(folder) / f"{name}.csv"
            _write_table(table, features, number)
            own = {"FEDMQ_NAME": name, "FEDMQ_DATA": str(table), "FEDMQ_LABEL": "y", "FEDMQ_AGGREGATOR_USER": user}
            _start(stack, "participant", {**common, **own}, Path(folder) / f"{name}.log")
        port = _metrics_port(Path(folder) / "aggregator.log")
        began = _at_version(port, n_rounds)
        ended = _at_version(port, began[0] + n_rounds)
        return (ended[0] - began[0]) / (ended[1] - began[1])


def _start(stack: ExitStack, command: str, settings: dict[str, str], log: Path) -> None:
    output = stack.enter_context(log.open("wb"))
    process = subprocess.Popen(
        [sys.executable, "-m", "fedmq", command],
        cwd=ROOT,
        env={**os.environ, **settings},
        stdout=output,
        stderr=output,
    )
    stack.callback(process.wait)
    stack.callback(process.send_signal, signal.SIGKILL)


def _write_table(path: Path, features: int, number: int) -> None:
    names = ",".join(f"x{index}" for index in range(features))
    rows = [f"{label}," + ",".join(str((index + label + number) % 3) for index in range(features)) for label in (0, 1)]
    path.write_text("\n".join([f"y,{names}", *rows]) + "\n")


def _metrics_port(log: Path) -> int:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"metrics_served"' in line:
                return int(json.loads(line)["port"])
        time.sleep(0.05)
    sys.exit(f"the aggregator did not start:\n{log.read_text()}")


def _at_version(port: int, wanted: int) -> tuple[int, float]:
    """Return the first version from ``wanted`` on that is seen, and when."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        version = _version(port)
        if version >= wanted:
            return version, time.perf_counter()
        time.sleep(POLL_SECONDS)
    sys.exit(f"version {wanted} did not come within {PATIENCE:g} s")


def _version(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("fedmq_model_version{"):
                return int(float(line.rpartition(" ")[2]))
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", help="AMQP URL; a private node by default")
    parser.add_argument("--features", type=int, action="append", help="may be given again; both sizes by default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sizes = given.features or list(SIZES)
    with broker_url(given.broker) as url:
        results = [measure(url, features, SIZES.get(features, 20)) for features in sizes]
    if given.json:
        print(json.dumps([{**asdict(result), "share": result.share} for result in results]))
        return
    print(f"{N_PARTICIPANTS} participants as processes, fedavg, confirms, durable commits, metrics")
    print(f"{'features':>10} {'rounds/s':>10} {'s/round':>10} {'bare loop, rounds/s':>20} {'share':>7}")
    for result in results:
        print(
            f"{result.features:>10} {result.rounds_per_second:>10.1f} {1 / result.rounds_per_second:>10.3f} "
            f"{result.bare_rounds_per_second:>20.1f} {result.share:>7.2f}"
        )


if __name__ == "__main__":
    main()
