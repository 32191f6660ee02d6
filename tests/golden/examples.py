"""One example of every message, fixed for good: what the golden files hold, and where other tests start from.

An example never changes once its file is committed; a new message or field gets a new schema, a new folder and examples
of its own.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from broker.messages import (
    N_BINS,
    SCHEMA,
    Coefficient,
    Contributor,
    Evaluation,
    Frame,
    GlobalModel,
    Goodbye,
    Heartbeat,
    Hello,
    LocalWork,
    Message,
    Metrics,
    MetricsTable,
    ModelUpdate,
    Objective,
    Plan,
    ReleasedModel,
    Scaling,
    Scores,
    Standing,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).parent

FEATURES = ("age", "Größe", "bmi")

HELLO = Hello("heart", "hospital-1", "00c0ffee00c0ffee", FEATURES, 120, 40)
HEARTBEAT = Heartbeat("heart", "hospital-1", "00c0ffee00c0ffee", "awaiting", 17)
GOODBYE = Goodbye("heart", "hospital-1", "00c0ffee00c0ffee")

FRAME = Frame(mean=np.array([52.95, 0.757, -1e-300]), scale=np.array([9.6, 0.43, 1.0]))
FIRST_PLAN = Plan(
    federation="heart",
    revision=1,
    features=FEATURES,
    l2=0.002,
    strategy="fedbuff",
    kind="delta",
    work=LocalWork("gradient-descent", 3, None, None),
    seed=7,
    frame=None,
)
PLAN = Plan(
    federation="heart",
    revision=2,
    features=FEATURES,
    l2=0.002,
    strategy="fedbuff",
    kind="delta",
    work=LocalWork("gradient-descent", 3, 0.25, 32),
    seed=7,
    frame=FRAME,
)
PLAN_HASH = "2f7a" * 16

FIRST_MODEL = GlobalModel(
    federation="heart",
    epoch=1,
    version=0,
    bulletin=1,
    phase="moments",
    plan_hash=PLAN_HASH,
    loss=None,
    roster={},
    weights=np.zeros(4),
)
MODEL = GlobalModel(
    federation="heart",
    epoch=2,
    version=41,
    bulletin=63,
    phase="training",
    plan_hash=PLAN_HASH,
    loss=0.4375,
    roster={
        "hospital-1": Standing("00c0ffee00c0ffee", 12, "", "train"),
        "hospital-2": Standing("0badcafe0badcafe", 9, "stale", ""),
    },
    weights=np.array([0.5, -0.25, 1 / 3, -2.0]),
)


def update(kind: str, arrays: dict[str, Any]) -> ModelUpdate:
    """Return the example of an update of ``kind``."""
    return ModelUpdate(
        federation="heart",
        participant="hospital-1",
        incarnation="00c0ffee00c0ffee",
        sequence=13,
        kind=kind,
        base_version=41,
        plan_hash=PLAN_HASH,
        n_samples=120.0,
        loss=0.4375,
        fit_seconds=0.0625,
        arrays=arrays,
    )


MOMENTS = update("moments", {"mean": np.array([50.0, 0.5, -0.0]), "m2": np.array([4000.0, 30.0, 5e-324])})
WEIGHTS = update("weights", {"weights": np.array([0.5, -0.25, 0.125, -1.75])})
DELTA = update("delta", {"delta": np.array([0.0625, -0.0, 1e-17, 0.1])})

SCORES = Scores(
    n=120.0,
    log_loss_sum=52.5,
    brier_sum=16.125,
    correct=95.0,
    positives=np.arange(N_BINS) % 7 / 2.0,
    negatives=np.arange(N_BINS)[::-1] % 5 / 4.0,
)
EVALUATION = Evaluation("heart", "hospital-1", "00c0ffee00c0ffee", 14, 42, PLAN_HASH, SCORES, SCORES)
EVALUATION_WITHOUT_TEST = Evaluation("heart", "hospital-1", "00c0ffee00c0ffee", 14, 42, PLAN_HASH, SCORES, None)

METRICS = Metrics(160, 0.4375, 0.134375, 0.8125, 0.875)
RELEASED = ReleasedModel(
    federation="heart",
    epoch=2,
    version=42,
    strategy="fedbuff",
    converged=True,
    n_samples=200,
    features=FEATURES,
    classes=(0, 1),
    standardisation=Scaling((52.95, 0.757, 0.1), (9.6, 0.43, 1.0)),
    weights=(0.5, -0.25, 1 / 3),
    intercept=-2.0,
    coefficients=tuple(Coefficient(name, 0.25) for name in FEATURES),
    intercept_coefficient=Coefficient("(intercept)", -4.5),
    objective=Objective(0.002, 0.4380),
    participants=(Contributor("hospital-1", 120, 13, 41), Contributor("hospital-2", 80, 9, 33)),
    metrics=MetricsTable(METRICS, METRICS, {"hospital-1": Metrics(40, 0.5, 0.15, 0.75, None)}),
)

#: File name -> message.
EXAMPLES: Mapping[str, Message] = MappingProxyType(
    {
        "hello": HELLO,
        "heartbeat": HEARTBEAT,
        "goodbye": GOODBYE,
        "plan-first": FIRST_PLAN,
        "plan": PLAN,
        "model-first": FIRST_MODEL,
        "model": MODEL,
        "update-moments": MOMENTS,
        "update-weights": WEIGHTS,
        "update-delta": DELTA,
        "evaluation": EVALUATION,
        "evaluation-without-test": EVALUATION_WITHOUT_TEST,
        "released": RELEASED,
    }
)


def golden_file(name: str, schema: int = SCHEMA) -> Path:
    """Return where the bytes of an example are."""
    return FOLDER / f"schema-{schema}" / f"{name}.msgpack"


def plain(value: Any) -> Any:
    """Return ``value`` as something that ``==`` compares to the bit: arrays do not compare by themselves."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, float):
        return value.hex()
    if is_dataclass(value):
        return type(value).__name__, {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(each) for each in value)
    return value
