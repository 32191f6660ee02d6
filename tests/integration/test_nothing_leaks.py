"""What was planted in cells is in no message, metric, log or model of a federation, whatever column it stands in."""

from __future__ import annotations

import asyncio
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from structlog.testing import capture_logs

from aggregator.report import Reporter as AggregatorReporter
from broker.memory.transport import MemoryTransport
from fedmq import embedded
from fedmq.embedded import train_embedded
from fedmq.model_file import document
from fedmq.sites import find_sites
from fedmq.train import train_settings
from participant.report import Reporter as ParticipantReporter
from participant.schema_file import parse_schema

if TYPE_CHECKING:
    from broker.transport import Outgoing

CANARY = "canary"
NUMBER = 7731.7731

SCHEMA = parse_schema(
    {
        "format": 1,
        "label": {"column": "outcome", "values": {"canary-well": 0, "canary-ill": 1}},
        "split": {"key": "patient", "test_share": 0.2},
        "features": {
            "age": {},
            "crp": {"missing": "mean", "range": [-1e6, 1e6]},
            "ward": {"kind": "categorical"},
            "smoker": {"kind": "binary", "levels": ["canary-no", "canary-yes"], "missing": "indicator"},
        },
    }
).schema


def write_site(path: Path, seed: int) -> None:
    """Write sixty patients; a ward of two of them, a value, their names and their keys are planted."""
    rng = np.random.default_rng(seed)
    lines = ["patient,name,age,crp,ward,smoker,outcome"]
    for row in range(60):
        age = NUMBER if row == 0 else round(rng.normal(60, 10), 2)
        crp = "" if row % 7 == 0 else repr(NUMBER if row == 1 else round(rng.normal(5, 2), 3))
        ward = f"{CANARY}-ward" if row < 2 else rng.choice(["north", "south"])
        smoker = rng.choice(["canary-no", "canary-yes", ""])
        outcome = rng.choice(["canary-well", "canary-ill"])
        lines.append(f"{CANARY}-{seed}-{row},{CANARY} Smith,{age},{crp},{ward},{smoker},{outcome}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize("strategy", ["incremental-newton", "lbfgs", "fedavg"])
def test_what_is_planted_in_cells_leaves_no_site(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: list[bytes] = []
    registries: list[CollectorRegistry] = []
    publish = MemoryTransport.publish

    async def recorded(self: MemoryTransport, message: Outgoing) -> None:
        bodies.append(message.body)
        await publish(self, message)

    def registry() -> CollectorRegistry:
        registries.append(CollectorRegistry())
        return registries[-1]

    monkeypatch.setattr(MemoryTransport, "publish", recorded)
    monkeypatch.setattr(embedded, "CollectorRegistry", registry)
    standings = recorded_standings(monkeypatch)
    for seed in (1, 2, 3):
        write_site(tmp_path / f"site-h{seed}.csv", seed)
    sites = find_sites([tmp_path], SCHEMA)
    settings = train_settings(sites, {"strategy": strategy, "max_versions": 30})
    with capture_logs() as events:
        model = asyncio.run(train_embedded(sites, settings, slow={}, least_fit_seconds=0.0, on_progress=lambda _: None))
    assert len(bodies) > 20
    assert len(registries) == 1 + len(sites)
    metrics = b"".join(map(generate_latest, registries)).decode()
    assert {each["service"] for each in standings} == {"aggregator", "participant"}
    told = {
        "metrics": metrics,
        "status": json.dumps(standings),
        "logs": f"{events} {caplog.text}",
        "model": json.dumps(without_words(model)),
    }
    for place, text in told.items():
        assert CANARY not in text, place
        # As it would be printed: four digits alone are in many a time and bound.
        assert not any(printed in text for printed in ("7731.7", "7.7317731")), place
    words = [
        word.encode() for word in (f"{CANARY}-ward", f"{CANARY} Smith", *(f"{CANARY}-{seed}-" for seed in (1, 2, 3)))
    ]
    cells = [struct.pack("<d", NUMBER), struct.pack(">d", NUMBER)]
    for body in bodies:
        assert not any(planted in body for planted in [*words, *cells])


def recorded_standings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return a list that fills with what each service would say of itself after each of its steps."""
    said: list[dict[str, Any]] = []

    def told(reporter: type[Any], name: str) -> None:
        before = getattr(reporter, name)

        def and_stands(self: Any, *arguments: Any) -> None:
            before(self, *arguments)
            # Its loss is the federation's, and has any digits.
            said.append({**self.standing(), "loss": None})

        monkeypatch.setattr(reporter, name, and_stands)

    told(AggregatorReporter, "stepped")
    told(ParticipantReporter, "stands")
    return said


def without_words(model: Any) -> dict[str, Any]:
    """Return the model's document without the words that the schema itself gives away."""
    found = document(model)
    (smoker,) = (each for each in found["feature_schema"]["features"] if each["name"] == "smoker")
    assert list(smoker.pop("levels")) == ["canary-no", "canary-yes"]
    assert set(found["feature_schema"]["label"].pop("values")) == {"canary-well", "canary-ill"}
    return found
