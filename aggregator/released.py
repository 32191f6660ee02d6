"""The released model: what everybody downstream gets, made of the state at the end of the last evaluation.

It is one message. Where the columns are so many that names, standardisation, weights and a table of coefficients are
more than that, the weights alone are released, on the columns' own scale: all that scoring needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from aggregator import inference, path
from aggregator.agreement import disagreements
from aggregator.errors import TrainingFailed
from aggregator.fit import absent, current_scale, evaluation_of, merged_scores, plan_of, scale_of, sums, weights_of
from aggregator.inference import INTERCEPT
from aggregator.plan import penalty
from aggregator.state import State
from aggregator.verification import ranks
from broker import codec
from broker.messages import (
    MAX_BODY_BYTES,
    Array,
    ClassModel,
    Coefficient,
    Contributor,
    Metrics,
    MetricsTable,
    Objective,
    Plan,
    ReleasedModel,
    Scaling,
    Scores,
)
from logistic.evaluation import Evaluation
from logistic.ranking import Ranks

#: Of a message, at least: the name of a column twice, its mean, scale, weight, and its line of the table.
COLUMN_BYTES = 100

#: Columns whose units are doubted in the notes; the log has more.
UNITS_SHOWN = 5

WIDE = (
    "its columns are too many for one message with everything: the weights are on the columns' own scale, and the "
    "standardisation and the table of coefficients are left out"
)


def release(state: State) -> ReleasedModel:
    """Return the model to release; needs a plan, weights, and the scores of at least one participant.

    Raises
    ------
    TrainingFailed
        If names and weights alone are more than a message may hold.
    """
    plan, weights, frozen = plan_of(state), weights_of(state), scale_of(plan_of(state))
    found = inference.examine(state)
    original = [frozen.to_original(w) for w in weights.reshape(plan.sizes.n_outputs, -1)]
    lean = _lean(state, found, original)
    if COLUMN_BYTES * len(plan.features) <= MAX_BODY_BYTES:
        scale = current_scale(state, frozen)
        standardised = weights if scale is frozen else np.concatenate([scale.to_standardised(w) for w in original])
        tables = found.tables or [_estimates(plan.features, w) for w in _relative(original)]
        whole = replace(
            lean,
            standardisation=Scaling(_numbers(scale.mean), _numbers(scale.scale)),
            **_weights(plan, np.split(standardised, len(original)), tables),
        )
        if _fits(whole):
            return whole
    wide = replace(lean, notes=(*lean.notes, WIDE))
    if not _fits(wide):
        raise TrainingFailed(
            f"the model of {len(plan.features)} columns cannot be released: its names and weights are larger than one "
            f"message may be ({MAX_BODY_BYTES} bytes); train on fewer columns, or give them shorter names"
        )
    return wide


def _fits(model: ReleasedModel) -> bool:
    return len(codec.encode(model)) <= MAX_BODY_BYTES


def _lean(state: State, found: inference.Found, original: Sequence[Array]) -> ReleasedModel:
    """Return the model with its weights on the ``original`` scale, and without anything that is as long besides."""
    plan = plan_of(state)
    taking_part = [member for name, member in sorted(state.members.items()) if member.takes_part]
    kept = absent(state)
    counted = [member for member in taking_part if member.name in state.scores or member.name in kept]
    left_out = [member.name for member in taking_part if member not in counted]
    return ReleasedModel(
        federation=plan.federation,
        epoch=state.progress.epoch,
        version=state.progress.version,
        strategy=plan.strategy,
        converged=state.progress.converged,
        n_samples=sum(member.n_rows for member in counted),
        features=plan.features,
        classes=plan.classes,
        standardisation=Scaling((), ()),
        **_weights(plan, original, [_estimates((), w[-1:]) for w in _relative(original)]),
        objective=Objective(plan.l2, _mean_loss(state) + penalty(state, weights_of(state)), plan.l1, plan.penalty),
        participants=tuple(
            Contributor(
                name=member.name,
                n_samples=member.n_rows,
                updates_included=member.included,
                last_base_version=member.last_base_version,
                present=member.name in state.scores,
            )
            for member in taking_part
        ),
        metrics=_metrics_table(state),
        convergence=found.convergence,
        inference=found.inference,
        path=path.points(state),
        notes=(*found.notes, *_of_absence(kept, left_out), *_of_units(state)),
        feature_schema=plan.feature_schema,
        fill=() if plan.fill is None else _numbers(plan.fill),
    )


def _relative(original: Sequence[Array]) -> list[Array]:
    """Return the estimates; of more than two classes, relative to the first one."""
    return [w - original[0] for w in original] if len(original) > 1 else list(original)


def _estimates(features: Sequence[str], original: Array) -> list[Coefficient]:
    return [Coefficient(name, float(value)) for name, value in zip([*features, INTERCEPT], original, strict=True)]


def _weights(plan: Plan, rows: Sequence[Array], tables: Sequence[Sequence[Coefficient]]) -> dict[str, Any]:
    """Return the fields with the weights ``rows`` of each output, and the ``tables`` of each, the intercept last."""
    by_class = tuple(
        ClassModel(label, _numbers(w[:-1]), float(w[-1]), tuple(table[:-1]), table[-1])
        for label, w, table in zip(plan.classes[-len(rows) :], rows, tables, strict=True)
    )
    if len(rows) > 1:
        return {
            "weights": (),
            "intercept": 0.0,
            "coefficients": (),
            "intercept_coefficient": Coefficient(INTERCEPT, 0.0),
            "by_class": by_class,
        }
    (only,) = by_class
    return {
        "weights": only.weights,
        "intercept": only.intercept,
        "coefficients": only.coefficients,
        "intercept_coefficient": only.intercept_coefficient,
    }


def _of_units(state: State) -> tuple[str, ...]:
    found = disagreements(plan_of(state), state.moments)
    more = (f"and {len(found) - UNITS_SHOWN} columns more",) if len(found) > UNITS_SHOWN else ()
    return (*(each.words for each in found[:UNITS_SHOWN]), *more)


def _of_absence(kept: Sequence[str], left_out: Sequence[str]) -> tuple[str, ...]:
    said = {
        "gone before the end, and counted with what they last sent": kept,
        "gone before the end, and not counted in scores and standard errors": left_out,
    }
    return tuple(f"{what}: {', '.join(names)}" for what, names in said.items() if names)


def _mean_loss(state: State) -> float:
    """Return the mean log-loss of all training rows, in nats."""
    parts = sums(state)
    if parts is not None:
        return sum(part.loss for part in parts) / sum(part.n for part in parts)
    train = merged_scores(state, "train")
    assert train is not None, "a model is released when somebody has evaluated it"
    return train.log_loss


def _metrics_table(state: State) -> MetricsTable:
    return MetricsTable(
        train=_pooled(state, "train"),
        test=_pooled(state, "test") if any(each.test is not None for each in state.scores.values()) else None,
        test_by_site={
            name: _own(evaluation.test)
            for name, evaluation in sorted(state.scores.items())
            if evaluation.test is not None
        },
    )


def _pooled(state: State, which: str) -> Metrics:
    """Return the scores on everybody's rows; the area under the ROC curve by what was found about their order."""
    scores, order = merged_scores(state, which), ranks(state.found, which)
    assert scores is not None, "rows that nobody has are not asked about"
    if order is None:
        return _metrics(scores, scores.auc, scores.auc_tie_bound)
    return _metrics(scores, order.auc, _undecided(order))


def _undecided(order: Ranks) -> float | None:
    """Return how far the area can be from the one of ``order``: rows that are alike are tied whoever looks."""
    if order.tie_bound is None:
        return None
    open_ = order.mixed
    pairs = float(order.positives[open_] @ order.negatives[open_])
    return pairs / 2.0 / float(order.positives.sum() * order.negatives.sum())


def _own(scores: Scores) -> Metrics:
    evaluation = evaluation_of(scores)
    if scores.auc is None:
        return _metrics(evaluation, evaluation.auc, evaluation.auc_tie_bound)
    return _metrics(evaluation, scores.auc, 0.0)


def _metrics(evaluation: Evaluation, auc: float | None, tie_bound: float | None) -> Metrics:
    return Metrics(
        n=round(evaluation.n),
        log_loss=evaluation.log_loss,
        brier=evaluation.brier,
        accuracy=evaluation.accuracy,
        auc=auc,
        auc_tie_bound=tie_bound,
    )


def _numbers(array: Array) -> tuple[float, ...]:
    return tuple(float(number) for number in np.asarray(array))
