"""Examples of every message, fixed for good: what the golden files hold, and where other tests start from.

An example never changes once its file is committed; a new message or field gets a new schema, a new folder and examples
of its own. Each is listed under the schema in which it first could be said.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from broker.messages import (
    N_BINS,
    SCHEMA,
    ClassModel,
    Coefficient,
    Contributor,
    Convergence,
    Deviation,
    Evaluation,
    FitStatistics,
    Frame,
    GlobalModel,
    Goodbye,
    Heartbeat,
    Hello,
    Heterogeneity,
    Inference,
    Information,
    LocalWork,
    Message,
    Metrics,
    MetricsTable,
    ModelUpdate,
    Objective,
    PathPoint,
    Plan,
    ReleasedModel,
    Scaling,
    Scores,
    Standing,
)
from broker.schema import Feature, Label, Schema, Split, model_columns

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

# --- since schema 2 ----------------------------------------------------------------------------

HELLO_OF_CLASSES = replace(HELLO, classes=(1, 2, 5), n_samples=117.5, fingerprint="9f86d081884c7d65")

PLAN_OF_CLASSES = replace(
    PLAN,
    revision=3,
    strategy="fedprox",
    kind="weights",
    work=LocalWork("lbfgs", 5, None, None, proximal=0.125),
    classes=(1, 2, 5),
    class_weights=(1.0, 2.5, 0.3),
    l1=0.0625,
    inference="sandwich",
    missing="mean",
    fill=np.array([52.95, 0.757, -1e-300]),
)
PLAN_OF_FIRTH = replace(
    PLAN, strategy="incremental-newton", kind="firth", l2=0.0, classes=(0, 2), penalty="firth", inference="wald"
)

MODEL_WITH_QUESTIONS = replace(
    MODEL,
    bulletin=64,
    phase="verifying",
    roster={
        "hospital-1": Standing("00c0ffee00c0ffee", 14, "", "rank"),
        "hospital-2": Standing("0badcafe0badcafe", 10, "incomplete", "sides", steps=7),
    },
    extra={
        "train_edges": np.array([-7.5, -0.0, 1e-11, 0.1]),
        "directions": np.array([0.5, -0.25, 1 / 3, -2.0, 0.0, 1.0, 0.0, 1e-4]),
        "nothing": np.array([]),
    },
)

BASE = MODEL.weights
GRADIENT = np.array([1.5, -0.0, 1e-17, 0.3])
HESSIAN = np.array([30.0, 0.1, -0.5, 2.0, 29.5, 1e-17, 0.0, 28.25, -3.0, 30.0])

MOMENTS_WITH_MISSING = update("moments", {**MOMENTS.arrays, "observed": np.array([120.0, 119.0, 0.5])})
DELTA_OF_STEPS = update("delta", {**DELTA.arrays, "steps": np.array([7.0])})
CONTROL = update("control", {**DELTA.arrays, "control": np.array([0.2, -0.1, 5e-324, 0.0])})
FAILED = update("failed", {})
GRADIENTS = update("gradient", {"base": BASE, "gradient": GRADIENT})
CURVATURE = update(
    "curvature",
    {
        "base": BASE,
        "gradient": GRADIENT,
        "hessian": HESSIAN,
        "theta": np.array([0.1]),
        "reach": np.array([6.5]),
        "drift": np.array([0.0]),
    },
)
CURVATURE_WITHOUT_HESSIAN = update(
    "curvature", {"base": BASE, "gradient": GRADIENT, "theta": np.array([0.0]), "drift": np.array([0.0078125])}
)
FIRTH_INFORMATION = update("firth", {"base": BASE, "hessian": HESSIAN})
FIRTH_SCORE = update("firth", {"base": BASE, "gradient": GRADIENT})
RANKS = update(
    "ranks",
    {
        "train_positives": np.array([0.0, 3.0, 0.0, 1.0, 40.0]),
        "train_negatives": np.array([60.0, 2.0, 0.0, 1.0, 13.0]),
        "test_positives": np.array([1.0, 2.5]),
        "test_negatives": np.array([0.5, 0.0]),
    },
)
RANKS_OF_TRAINING_ROWS = update("ranks", {each: RANKS.arrays[each] for each in ("train_positives", "train_negatives")})
PATH = update(
    "path",
    {
        "losses": np.array([52.5, 60.25]),
        "test_losses": np.array([17.5, 20.125]),
        "gradients": np.concatenate([GRADIENT, -GRADIENT]),
        "hessians": np.concatenate([HESSIAN, HESSIAN / 3.0]),
    },
)
PATH_WITHOUT_TEST = update("path", {name: PATH.arrays[name] for name in ("losses", "gradients", "hessians")})
SIDES = update("sides", {"wrong": np.array([0.0, 3.0]), "on": np.array([114.0, 0.0]), "right": np.array([6.0, 117.0])})

INFORMATION = Information(gradient=GRADIENT, hessian=HESSIAN, meat=HESSIAN * 1.1, has_offset=True)
EVALUATION_FOR_WALD = replace(
    EVALUATION,
    train=replace(SCORES, auc=0.8765),
    test=replace(SCORES, auc=0.1),
    information=replace(INFORMATION, meat=None, has_offset=False),
)
EVALUATION_FOR_THE_SANDWICH = replace(EVALUATION_WITHOUT_TEST, information=INFORMATION)

EXACT_METRICS = replace(METRICS, auc_tie_bound=1e-17)


def line(name: str) -> Coefficient:
    """Return the example of a line with everything in it."""
    return Coefficient(name, 0.25, 0.1, 2.5, 0.0124, 0.054, 0.446, 1.284)


UNDETERMINED = Coefficient("bmi", -0.5, std_error=None, odds_ratio=0.6065)
RELEASED_WITH_INFERENCE = replace(
    RELEASED,
    strategy="incremental-newton",
    coefficients=(line("age"), line("Größe"), UNDETERMINED),
    intercept_coefficient=line("(intercept)"),
    objective=Objective(0.0, 0.438, l1=0.0625, penalty="firth"),
    participants=(RELEASED.participants[0], replace(RELEASED.participants[1], present=False)),
    metrics=MetricsTable(EXACT_METRICS, EXACT_METRICS, {"hospital-1": replace(EXACT_METRICS, auc=None)}),
    convergence=Convergence(1e-12, 3e-11, 2.5e-12, None),
    inference=Inference(
        kind="wald",
        why="",
        statistics=FitStatistics(
            log_likelihood=-87.5,
            deviance=175.0,
            null_deviance=220.25,
            df_model=3.0,
            df_residual=196.0,
            effective_df=3.75,
            aic=182.5,
            bic=None,
            lr_statistic=45.25,
            lr_p_value=8.2e-10,
            pseudo_r2=0.205,
        ),
        covariance=((0.01, None, 1e-17), (None, None, None), (1e-17, None, 0.04)),
        heterogeneity=(
            Heterogeneity("age", 3.5, 1, 0.0614, 0.714, {"hospital-1": Deviation(0.1, 0.05, single_class=False)}),
            Heterogeneity("bmi", None, 0, None, None, {"hospital-2": Deviation(-2.0, 9.5, single_class=True)}),
        ),
    ),
    notes=("hospital-2 did not confirm the last model: its rows count with what it last sent.",),
    path=(
        PathPoint(0.25, 0, 0.6875, 0.6875, None, (0.0, 0.0, -0.0, -2.0), (0.0, 0.0, 0.0, -2.0)),
        PathPoint(0.0625, 2, 0.5, 0.4375, 0.46875, (0.5, -0.25, 0.0, -2.0), (0.052, -0.58, 0.0, -4.5)),
    ),
)


def class_model(label: int) -> ClassModel:
    """Return the example of one class of several."""
    return ClassModel(label, (0.5, -0.25, 1 / 3), -2.0, (line("age"), line("Größe"), UNDETERMINED), line("(intercept)"))


RELEASED_OF_CLASSES = replace(
    RELEASED,
    classes=(1, 2, 5),
    weights=(),
    intercept=0.0,
    coefficients=(),
    intercept_coefficient=Coefficient("(intercept)", 0.0),
    convergence=Convergence(None, None, None, 1e-9),
    inference=Inference("none", "the standard errors were not asked for", None, (), ()),
    by_class=tuple(map(class_model, (1, 2, 5))),
)

# --- since schema 3 ----------------------------------------------------------------------------

TABLE = Schema(
    features=(
        Feature("age", unit="years", low=0.0, high=120.0, missing="mean", missing_values=("-9", "?")),
        Feature("Größe", unit="cm", missing="value", fill=170.0, clip_low=140.0, clip_high=210.0, scale=0.5),
        Feature("lactate", missing="indicator", log1p=True, centre=0.75),
        Feature("smoker", "binary", levels=("no", "yes")),
        Feature("stage", "categorical", reference="I", missing="value", fill_level="II"),
        Feature("ward", "categorical", levels=("A", "B", "C"), missing="indicator"),
    ),
    label=Label("died", values={"nein": 0, "ja": 1}),
    split=Split(key="patient", test_share=0.25, seed=11),
    sample_weight="weight",
    offset="exposure",
)
#: Of the levels of ``stage``, those that were found: three columns.
FROZEN_TABLE = Schema(
    features=(
        TABLE.features[0],
        replace(TABLE.features[4], levels=("I", "II", "(other)"), found=True),
    ),
    label=Label("days", above=30.5),
    split=Split(column="split"),
)
COLUMNS = model_columns(FROZEN_TABLE)

HELLO_OF_A_TABLE = replace(HELLO, features=TABLE.names, feature_schema=TABLE, levels={"stage": ("I", "II", "(other)")})
#: So many that their names are compressed.
HELLO_OF_MANY_COLUMNS = replace(HELLO, features=tuple(f"Wörter {i}" for i in range(4097)))
PLAN_OF_A_TABLE = replace(
    PLAN,
    features=COLUMNS,
    frame=Frame(mean=None, scale=FRAME.scale),
    missing="mean",
    fill=np.array([52.95, 0.5, 1e-17]),
    feature_schema=FROZEN_TABLE,
)
GRADIENT_AT_THE_BASE_VERSION = update("gradient", {"gradient": GRADIENT})
RELEASED_OF_A_TABLE = replace(
    RELEASED,
    features=COLUMNS,
    coefficients=tuple(Coefficient(name, 0.25) for name in COLUMNS),
    feature_schema=FROZEN_TABLE,
    fill=(52.95, 0.5, 1e-17),
)
#: As one of very many columns is released.
RELEASED_WIDE = replace(
    RELEASED,
    standardisation=Scaling((), ()),
    weights=(0.052, -0.58, 1 / 3),
    intercept=-4.5,
    coefficients=(),
    notes=("the standardisation and the coefficients are left out",),
)

#: Schema -> file name -> message, each under the schema in which it first could be said.
EXAMPLES_SINCE: Mapping[int, Mapping[str, Message]] = MappingProxyType(
    {
        1: {
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
        },
        2: {
            "hello-of-classes": HELLO_OF_CLASSES,
            "plan-of-classes": PLAN_OF_CLASSES,
            "plan-of-firth": PLAN_OF_FIRTH,
            "model-with-questions": MODEL_WITH_QUESTIONS,
            "update-moments-with-missing": MOMENTS_WITH_MISSING,
            "update-delta-of-steps": DELTA_OF_STEPS,
            "update-control": CONTROL,
            "update-failed": FAILED,
            "update-gradient": GRADIENTS,
            "update-curvature": CURVATURE,
            "update-curvature-without-hessian": CURVATURE_WITHOUT_HESSIAN,
            "update-firth-information": FIRTH_INFORMATION,
            "update-firth-score": FIRTH_SCORE,
            "update-ranks": RANKS,
            "update-ranks-of-training-rows": RANKS_OF_TRAINING_ROWS,
            "update-path": PATH,
            "update-path-without-test": PATH_WITHOUT_TEST,
            "update-sides": SIDES,
            "evaluation-for-wald": EVALUATION_FOR_WALD,
            "evaluation-for-the-sandwich": EVALUATION_FOR_THE_SANDWICH,
            "released-with-inference": RELEASED_WITH_INFERENCE,
            "released-of-classes": RELEASED_OF_CLASSES,
        },
        3: {
            "hello-of-a-table": HELLO_OF_A_TABLE,
            "hello-of-many-columns": HELLO_OF_MANY_COLUMNS,
            "plan-of-a-table": PLAN_OF_A_TABLE,
            "update-gradient-at-the-base-version": GRADIENT_AT_THE_BASE_VERSION,
            "released-of-a-table": RELEASED_OF_A_TABLE,
            "released-wide": RELEASED_WIDE,
        },
        4: {
            "heartbeat-of-a-term": replace(HEARTBEAT, epoch=3),
            "update-weights-of-a-term": replace(WEIGHTS, epoch=3),
            "evaluation-of-a-term": replace(EVALUATION, epoch=3),
            "model-that-has-heard": replace(
                MODEL, roster={name: replace(each, hello="9f86d081884c7d65") for name, each in MODEL.roster.items()}
            ),
        },
    }
)

#: File name -> message.
EXAMPLES: Mapping[str, Message] = MappingProxyType(
    {name: message for named in EXAMPLES_SINCE.values() for name, message in named.items()}
)


def sayable(schema: int) -> list[str]:
    """Return the names of the examples that a side which speaks ``schema`` can say."""
    return [name for since, named in EXAMPLES_SINCE.items() if since <= schema for name in named]


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
