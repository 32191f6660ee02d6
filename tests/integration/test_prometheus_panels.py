"""Dashboard and rules against a real Prometheus that scrapes both services' metrics.

The services here are stand-ins: the metric classes, filled through their methods and served as the services
serve them. `check_panels` takes any Prometheus, so the same questions can be put to a real federation.
"""

from __future__ import annotations

import importlib.util
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from monitoring import AggregatorMetrics, Health, MetricsServer, ParticipantMetrics, dashboards

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

pytestmark = pytest.mark.prometheus

ROOT = Path(__file__).parents[2]
RULES = (ROOT / "monitoring" / "prometheus" / "rules.yml").read_text(encoding="utf-8")


def load(path: Path) -> ModuleType:
    """Import a helper by its path: the tests are files, not a package."""
    name = f"tests_servers_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers: Any = load(ROOT / "tests" / "servers" / "prometheus.py")


class StandIn:
    """An aggregator and two participants, as far as Prometheus can tell."""

    NAMES = ("cleveland", "va")

    def __init__(self, stack: ExitStack) -> None:
        registry = CollectorRegistry()
        self.aggregator = AggregatorMetrics("heart", registry, outcomes=("accepted", "stale"))
        self.targets = {"aggregator": [self._serve(stack, registry)], "participant": []}
        self.participants = []
        for name in self.NAMES:
            registry = CollectorRegistry()
            self.participants.append(ParticipantMetrics("heart", name, registry))
            self.targets["participant"].append(self._serve(stack, registry))
            self.aggregator.enrolled(name)
        self.version = 0

    @staticmethod
    def _serve(stack: ExitStack, registry: CollectorRegistry) -> str:
        return f"127.0.0.1:{stack.enter_context(MetricsServer(registry, Health())).port}"

    def live_a_round(self, *, published_at: float | None = None) -> None:
        """Do one of everything that can happen."""
        self.version += 1
        seen = self.aggregator
        seen.serving(epoch=1)
        seen.phase("training")
        seen.broker_connected(connected=True)
        seen.participants({"live": 2})
        seen.version_published(self.version, 0.2, at=published_at)
        seen.loss(0.6 / self.version)
        seen.commit(0.002)
        seen.outgoing(1)
        seen.published("model", 900)
        seen.released()
        seen.dead_letter("malformed")
        for name, participant in zip(self.NAMES, self.participants, strict=True):
            seen.received("update", 500)
            seen.update(name, "accepted", staleness=1)
            seen.participant(name, versions_behind=1, last_heard=time.time(), awaited=name == "va")
            participant.broker_connected(connected=True)
            participant.model_taken(self.version)
            participant.received("model", 900)
            participant.fitted(0.05)
            participant.outbox(1)
            participant.contribution("confirmed")
            participant.sent("update", 500)
            participant.refused_message("malformed")


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, Any]]:
    """Yield a federation that publishes and the Prometheus that watches it; the first scrape takes 5 s."""
    with ExitStack() as stack:
        stand_in = StandIn(stack)
        stand_in.live_a_round()
        folder = tmp_path_factory.mktemp("prometheus")
        prometheus = stack.enter_context(servers.Prometheus(stand_in.targets, folder, rules=RULES))
        assert servers.eventually(lambda: len(prometheus.query("up == 1")) == 3)
        yield stand_in, prometheus


def test_every_panel_shows_data(lively: tuple[StandIn, Any]) -> None:
    stand_in, prometheus = lively

    def nothing_is_missing() -> bool:
        stand_in.live_a_round()
        return not servers.check_panels(prometheus, federation="heart", rate_interval="10s")

    servers.eventually(nothing_is_missing)
    assert servers.check_panels(prometheus, federation="heart", rate_interval="10s") == []


def test_panels_of_another_federation_stay_empty(lively: tuple[StandIn, Any]) -> None:
    _, prometheus = lively
    queries = dashboards.panel_queries(dashboards.PATH.read_text(encoding="utf-8"), federation="another")
    assert servers.check_panels(prometheus, federation="another") == queries


def test_rules_are_evaluated_without_an_error_and_stay_silent_when_all_is_well(lively: tuple[StandIn, Any]) -> None:
    stand_in, prometheus = lively
    stand_in.live_a_round()
    servers.eventually(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules().values()))
    rules = prometheus.rules()
    assert set(rules) == {"FedmqTrainingStalled", "FedmqNobodyServes", "FedmqParticipantLate"}
    for rule in rules.values():
        assert (rule["health"], rule.get("lastError"), rule["state"]) == ("ok", None, "inactive")


def test_a_stalled_federation_raises_the_alarm_and_names_who_is_awaited(tmp_path: Path) -> None:
    at_once = RULES.replace("for: 5m", "for: 0s")
    with ExitStack() as stack:
        stand_in = StandIn(stack)
        prometheus = stack.enter_context(servers.Prometheus(stand_in.targets, tmp_path, rules=at_once))
        stand_in.live_a_round(published_at=time.time() - 3600)

        def description() -> str:
            alerts = prometheus.rules()["FedmqTrainingStalled"]["alerts"]
            return "".join(alert["annotations"]["description"] for alert in alerts)

        assert servers.eventually(lambda: "Awaited now: va. Broker connected: yes." in description()), description()
