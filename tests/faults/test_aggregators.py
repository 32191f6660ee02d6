"""Two aggregators over one PostgreSQL, as processes: one is killed, the other is frozen, and both come back."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from servers.federation import ROOT, Federation, ServiceProcess, service, wait_until
from servers.postgresql import PostgreSQL

from aggregator.settings import AggregatorSettings
from aggregator.store.opening import open_store
from fedmq.check_store import check

if TYPE_CHECKING:
    from pathlib import Path

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.rabbitmq, pytest.mark.postgresql, pytest.mark.timeout(200)]

DATA = ROOT / "examples" / "heart_disease"
SITES = ("cleveland", "hungarian", "va")


def metric(process: ServiceProcess, name: str) -> float | None:
    """Return the value of a metric that has no label but the federation."""
    page = process.get("/metrics")[1]
    found = [line for line in page.splitlines() if line.startswith(f'{name}{{federation="pair"}}')]
    return float(found[0].rpartition(" ")[2]) if found else None


def serves(process: ServiceProcess) -> bool:
    return metric(process, "fedmq_aggregator_serving") == 1


def version(process: ServiceProcess) -> float:
    return metric(process, "fedmq_model_version") or 0.0


@pytest.mark.fault("F13", "F22", "F26")
def test_whichever_aggregator_dies_or_hangs_the_other_goes_on_and_the_ledger_is_whole(
    vhost: VHost, tmp_path: Path
) -> None:
    with PostgreSQL() as database:
        common = {"federation": "pair", "broker": vhost.amqp_url(), "heartbeat_seconds": 1}
        # More versions than the test lives, whatever the optimum.
        settings = {
            **common,
            "participants": ",".join(SITES),
            "senders": "shared",
            "store": database.url(),
            "strategy": "fedasync",
            "max_versions": 1_000_000,
            "patience": 1_000_000,
        }
        first, second = (service(name, "aggregator", settings, tmp_path) for name in ("first", "second"))
        sites = [
            service(
                name,
                "participant",
                {
                    **common,
                    "name": name,
                    "data": DATA / f"site-{name}.csv",
                    "label": "y",
                    "split": "split",
                    "aggregator_user": "tester",
                    "least_fit_seconds": 0.1,
                },
                tmp_path,
            )
            for name in SITES
        ]
        with Federation([first, second, *sites]):
            wait_until(lambda: serves(first) or serves(second), "one of them serves")
            serving, other = (first, second) if serves(first) else (second, first)
            wait_until(lambda: version(serving) >= 5, "there are versions")
            assert not serves(other)
            before = version(serving)
            serving.__exit__()  # kill -9
            wait_until(lambda: serves(other), "the other one has taken over")
            wait_until(lambda: version(other) > before, "it makes versions")

            serving.__enter__()
            wait_until(lambda: metric(serving, "fedmq_aggregator_serving") == 0, "the first is back, and waits")
            other.send(signal.SIGSTOP)
            wait_until(lambda: serves(serving), "the first has taken over again")
            reached = version(serving)
            other.send(signal.SIGCONT)
            wait_until(lambda: not serves(other), "the one that was frozen has stood down")
            wait_until(lambda: version(serving) > reached + 5, "the first goes on")
            assert serves(serving)
        made = AggregatorSettings(**{**settings, "participants": SITES})
        store = open_store(made, read_only=True)
        try:
            report = check(store, made)
        finally:
            store.close()
        assert report.defects == []
        assert report.version >= reached + 5
        assert report.included >= report.version, "each version of fedasync has an update of its own"
