"""Dashboard, rules and scrape configuration name metrics that exist, and say what they mean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from monitoring import PHASES, STATES, AggregatorMetrics, ParticipantMetrics, dashboards

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "monitoring"
RULES_TEST = Path(__file__).parent / "rules_test.yml"

DASHBOARD = dashboards.PATH.read_text(encoding="utf-8")
PANELS = [panel for panel in json.loads(DASHBOARD)["panels"] if panel["type"] != "row"]
RULES: list[dict[str, Any]] = yaml.safe_load((MONITORING / "prometheus" / "rules.yml").read_text())["groups"][0][
    "rules"
]


def families() -> set[str]:
    registry = CollectorRegistry()
    AggregatorMetrics("heart", registry)
    ParticipantMetrics("heart", "va", registry)
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes[family.type]}


def named_in(text: str) -> set[str]:
    return set(re.findall(r"\bfedmq_\w+", text))


@pytest.fixture
def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        sentence = "promtool cannot be found on PATH; install the package prometheus"
        if os.environ.get("CI") or os.environ.get("FEDMQ_REQUIRE_SERVERS") == "1":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return program


def test_the_committed_dashboard_is_what_the_generator_writes(tmp_path: Path) -> None:
    again = tmp_path / "dashboards" / "fedmq.json"
    dashboards.write(again)
    assert again.read_bytes() == dashboards.PATH.read_bytes(), "run python -m monitoring.dashboards"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_has_title_description_unit_and_queries(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert all('federation=~"$federation"' in target["expr"] for target in panel["targets"])
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_panels_do_not_overlap_and_fit_the_grid() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells, panel["title"]
        assert at["x"] + at["w"] <= 24
        cells |= own


def test_the_dashboard_shows_every_metric_there_is_and_no_other() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named_in(DASHBOARD)}
    there = {re.sub(r"_(bucket|sum|count)$", "", name) for name in families()}
    assert shown == there


def test_rules_name_metrics_that_exist() -> None:
    for rule in RULES:
        texts = (rule["expr"], *rule["annotations"].values())
        named = named_in("\n".join(texts))
        assert named
        assert named <= families()


def test_rules_name_a_phase_that_exists() -> None:
    named = set(re.findall(r'phase="(\w+)"', "\n".join(rule["expr"] for rule in RULES)))
    assert named == {"training"}
    assert named <= set(PHASES)


def test_every_rule_waits_has_a_severity_and_says_what_to_do() -> None:
    assert [rule["alert"] for rule in RULES] == ["FedmqTrainingStalled", "FedmqNobodyServes", "FedmqParticipantLate"]
    for rule in RULES:
        assert rule["for"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]
        assert "What to do:" in rule["annotations"]["description"]


def test_rules_and_dashboard_use_words_of_each_other() -> None:
    titles = {panel["title"] for panel in PANELS}
    for rule in RULES:
        quoted = re.findall(r'"([A-Z][a-z]+(?: [a-z]+)*)"', rule["annotations"]["description"])
        assert quoted
        assert set(quoted) <= titles


def test_the_description_of_the_phase_panel_names_every_phase() -> None:
    (phase,) = [panel for panel in PANELS if panel["title"] == "Phase"]
    (states,) = [panel for panel in PANELS if panel["title"] == "Participants by state"]
    assert all(name in phase["description"] for name in PHASES)
    assert all(state in states["description"].lower() for state in STATES)


def test_queries_come_with_their_variables_filled_in() -> None:
    queries = dashboards.panel_queries(DASHBOARD, federation="heart", rate_interval="7s")
    assert ("Model version", 'max by (federation) (fedmq_model_version{federation=~"heart"})') in queries
    assert any("[7s]" in expr for _, expr in queries)
    assert not any("$" in expr for _, expr in queries)


def test_grafana_finds_its_data_and_its_dashboards() -> None:
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "fedmq.yml").read_text())["providers"]
    scraped = yaml.safe_load((MONITORING / "prometheus" / "prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    assert provider["type"] == "file"


@pytest.mark.prometheus
def test_promtool_accepts_configuration_and_rules(promtool: str) -> None:
    folder = MONITORING / "prometheus"
    subprocess.run([promtool, "check", "config", folder / "prometheus.yml"], check=True, timeout=60)
    subprocess.run([promtool, "check", "rules", "--lint-fatal", folder / "rules.yml"], check=True, timeout=60)


@pytest.mark.prometheus
def test_alerts_fire_when_they_should_and_only_then(promtool: str) -> None:
    tested = subprocess.run(
        [promtool, "test", "rules", RULES_TEST], capture_output=True, text=True, timeout=60, check=False
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
