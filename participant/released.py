"""What a participant keeps of a release: ``global.json``, and ``local.json`` with models of its own compared with it.

``global.json`` is all that is needed to score with the model, and to make the own models from again: who is killed
between the two files goes on from the first at its next start. ``local.json`` names the release it belongs to. Each is
written beside its name and then renamed, so that a reader finds the old one or the new one, whole.

The formats are in docs/local.md: keys may be added, none changes its meaning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from broker.messages import Array, Frame, GlobalModel, LocalWork, Plan
from broker.schema import Feature, Label, Schema, Split
from logistic.standardisation import Standardisation
from participant.comparison import Scores
from participant.errors import ReleaseError
from participant.personal import Judged, Kind, Personal, generator, never, personalise
from participant.sources.table import Table
from participant.training import Prepared, prepare

GLOBAL, LOCAL = "global.json", "local.json"

#: Of both documents.
FORMAT = 1

INTERCEPT = "(intercept)"

#: Columns up to which there is a table of coefficients: of more, weights and standardisation say the same in less.
WIDEST_TABLE = 100_000

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Released:
    """A release as ``global.json`` has it: the weights, the plan in whose frame they are, and which one it is."""

    plan: Plan
    weights: Array
    plan_hash: str
    version: int
    epoch: int


# --- documents --------------------------------------------------------------------------------


def global_document(plan: Plan, model: GlobalModel) -> Document:
    """Return the released ``model`` as ``global.json`` has it."""
    frame = _frame(plan)
    return {
        "format": FORMAT,
        "features": list(plan.features),
        "classes": list(plan.classes),
        "standardisation": {"mean": frame.mean.tolist(), "scale": frame.scale.tolist()},
        **coefficients(plan, model.weights),
        "objective": {"l2": plan.l2, "l1": plan.l1, "penalty": plan.penalty, "class_weights": list(plan.class_weights)},
        "fill": None if plan.fill is None else plan.fill.tolist(),
        "feature_schema": None if plan.feature_schema is None else _plain(plan.feature_schema),
        "version": model.version,
        "strategy": plan.strategy,
        "seed": plan.seed,
        "federation": plan.federation,
        "epoch": model.epoch,
        "plan_hash": model.plan_hash,
    }


def _plain(schema: Schema) -> Document:
    """Return ``schema`` as it is read back: a list is no tuple."""
    document: Document = json.loads(json.dumps(asdict(schema)))
    return document


def coefficients(plan: Plan, weights: Array) -> Document:
    """Return ``weights`` as they are, and on the original scale of each column, under the keys of ``model.json``.

    Of very many columns the latter are left out, but for the intercept's.
    """
    frame = _frame(plan)
    rows = weights.reshape(plan.sizes.n_outputs, -1)
    original = [frame.to_original(w) for w in rows]
    if len(rows) == 1:
        return {**_row(plan.features, rows[0], original[0]), "by_class": []}
    by_class = [
        {"label": label, **_row(plan.features, w, estimates - original[0])}
        for label, w, estimates in zip(plan.classes, rows, original, strict=True)
    ]
    nothing = {"weights": [], "intercept": 0.0, "coefficients": []}
    return {**nothing, "intercept_coefficient": {"name": INTERCEPT, "estimate": 0.0}, "by_class": by_class}


def _row(features: tuple[str, ...], w: Array, estimates: Array) -> Document:
    table = zip(features, estimates[:-1], strict=True) if len(features) <= WIDEST_TABLE else ()
    named = [{"name": name, "estimate": float(each)} for name, each in table]
    return {
        "weights": w[:-1].tolist(),
        "intercept": float(w[-1]),
        "coefficients": named,
        "intercept_coefficient": {"name": INTERCEPT, "estimate": float(estimates[-1])},
    }


def _frame(plan: Plan) -> Standardisation:
    if plan.frame is None:
        return Standardisation.identity(len(plan.features))
    return Standardisation(plan.frame.centre, plan.frame.scale)


def read_release(document: Document) -> Released:
    """Return what ``document`` says, which `global_document` made; what the plan says of local work is not in it."""
    weights = [[*each["weights"], each["intercept"]] for each in document["by_class"] or [document]]
    mean, scale = (np.array(document["standardisation"][key]) for key in ("mean", "scale"))
    schema = document.get("feature_schema")
    plan = Plan(
        federation=document["federation"],
        revision=0,
        features=tuple(document["features"]),
        l2=document["objective"]["l2"],
        strategy=document["strategy"],
        kind="",
        work=LocalWork("", 0, None, None),
        seed=document["seed"],
        frame=Frame(mean if mean.any() else None, scale),
        classes=tuple(document["classes"]),
        class_weights=tuple(document["objective"]["class_weights"]),
        penalty=document["objective"]["penalty"],
        l1=document["objective"]["l1"],
        missing="refuse" if document["fill"] is None else "mean",
        fill=None if document["fill"] is None else np.array(document["fill"]),
        feature_schema=None if schema is None else _schema(schema),
    )
    flat = np.array(weights, dtype=np.float64).ravel()
    return Released(plan, flat, document["plan_hash"], document["version"], document["epoch"])


def _schema(document: Document) -> Schema:
    """Return what `_plain` wrote."""
    return Schema(
        features=tuple(Feature(**_with_tuples(each)) for each in document["features"]),
        label=Label(**document["label"]),
        split=Split(**document["split"]),
        sample_weight=document["sample_weight"],
        offset=document["offset"],
    )


def _with_tuples(fields: Mapping[str, Any]) -> Document:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}


def local_document(release: Released, participant: str, found: Personal) -> Document:
    """Return the own models and how they compare as ``local.json`` has them."""
    plan = release.plan
    frame = _frame(plan)
    return {
        "format": FORMAT,
        "participant": participant,
        "features": list(plan.features),
        "classes": list(plan.classes),
        "standardisation": {"mean": frame.mean.tolist(), "scale": frame.scale.tolist()},
        "n_train_rows": found.n_train_rows,
        "n_test_rows": found.n_test_rows,
        "verdict": found.verdict,
        "global": {**coefficients(plan, release.weights), "test": _scores(found.global_scores)},
        **{kind: _own(plan, each) for kind, each in found.own.items()},
        "version": release.version,
        "federation": plan.federation,
        "epoch": release.epoch,
        "plan_hash": release.plan_hash,
    }


def _own(plan: Plan, each: Judged) -> Document:
    model, comparison = each.model, each.comparison
    document = {
        **coefficients(plan, model.weights),
        "kept": model.kept,
        "test": _scores(each.scores),
        "comparison": None
        if comparison is None
        else {
            "n_rows": comparison.n_rows,
            "difference": comparison.difference,
            "std_error": comparison.std_error,
            "better": comparison.better,
        },
        "verdict": each.verdict,
    }
    if model.trials:
        document["mu"] = _finite(model.mu)
        document["cross_validation"] = [{"mu": _finite(trial.mu), "log_loss": trial.log_loss} for trial in model.trials]
    return document


def _scores(scores: Scores | None) -> Document | None:
    return None if scores is None else asdict(scores)


def _finite(mu: float) -> float | None:
    return None if mu == inf else mu  # JSON has no infinity


# --- the folder -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReleaseFolder:
    """The folder of one participant, for one release after the other.

    Attributes
    ----------
    wanted : which models of its own; none keeps the global one only.
    """

    path: Path
    participant: str
    wanted: tuple[Kind, ...] = ()

    def keep(self, plan: Plan, model: GlobalModel) -> bool:
        """Write ``global.json``, durably, unless it is there; return whether it was another.

        An aggregator that starts again announces the same release under another epoch.

        Raises
        ------
        ReleaseError
            When it cannot be written.
        """
        document = global_document(plan, model)
        before = _read(self.path / GLOBAL)
        if before is not None and {**before, "epoch": 0} == {**document, "epoch": 0}:
            return False
        write_whole(self.path / GLOBAL, document)
        return True

    def unfinished(self, federation: str) -> Released | None:
        """Return the release that own models are wanted of and not there; None where there is nothing to do."""
        document = _read(self.path / GLOBAL)
        if not self.wanted or document is None or document["federation"] != federation:
            return None
        local = _read(self.path / LOCAL)
        same = ("federation", "epoch", "version", "plan_hash")
        if local is not None and all(local[key] == document[key] for key in same) and set(self.wanted) <= set(local):
            return None
        return read_release(document)

    def personalise(
        self,
        release: Released,
        table: Table,
        *,
        prepared: Prepared | None = None,
        interrupt: Callable[[], None] = never,
    ) -> Personal:
        """Make the models that are wanted of ``release``, and write ``local.json``, durably.

        Parameters
        ----------
        prepared : the rows of ``table`` under the plan of ``release``, where they are at hand.

        Raises
        ------
        ReleaseError
            When it cannot be written.
        """
        plan = release.plan
        rows = prepared if prepared is not None else prepare(table, plan, release.plan_hash)
        found = personalise(
            rows.train,
            rows.test,
            release.weights,
            wanted=self.wanted,
            classes=plan.classes,
            rng=generator(plan.seed, self.participant),
            interrupt=interrupt,
        )
        write_whole(self.path / LOCAL, local_document(release, self.participant, found))
        return found


def _read(path: Path) -> Document | None:
    """Return the document at ``path``; None where there is none of ours."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("format") == FORMAT else None


def write_whole(path: Path, document: Document) -> None:
    """Write ``document`` to ``path``, durably: a reader finds the former one or this one, whole."""
    try:
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise ReleaseError(f"{path} is not written: a coefficient is beyond all numbers; see to its column") from None
    # One name, not a new one each time: what a crash leaves behind is overwritten.
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise ReleaseError(
            f"{path} could not be written ({error.strerror}): check its folder, the free space and who may write"
        ) from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
