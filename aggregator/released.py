"""The released model: what everybody downstream gets, made of the state at the end of the last evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import numpy as np

from aggregator.state import State
from broker.messages import (
    Array,
    Coefficient,
    Contributor,
    Metrics,
    MetricsTable,
    Objective,
    ReleasedModel,
    Scaling,
    Scores,
)
from logistic.evaluation import Evaluation
from logistic.standardisation import Standardisation

INTERCEPT = "(intercept)"


def release(state: State) -> ReleasedModel:
    """Return the model to release; needs a plan, weights, and the scores of at least one participant."""
    plan, weights = state.plan, state.weights
    assert plan is not None, "a model without a plan cannot have been trained"
    assert weights is not None, "weights and plan come together"
    scale = (
        Standardisation(plan.frame.mean, plan.frame.scale)
        if plan.frame
        else Standardisation.identity(len(plan.features))
    )
    original = scale.to_original(weights)
    train = _merged(evaluation.train for _, evaluation in sorted(state.scores.items()))
    penalty = 0.5 * plan.l2 * float(weights[:-1] @ weights[:-1])
    taking_part = [member for name, member in sorted(state.members.items()) if not member.barred]
    return ReleasedModel(
        federation=plan.federation,
        epoch=state.progress.epoch,
        version=state.progress.version,
        strategy=plan.strategy,
        converged=state.progress.converged,
        n_samples=sum(member.n_rows for member in taking_part),
        features=plan.features,
        classes=(0, 1),
        standardisation=Scaling(_numbers(scale.mean), _numbers(scale.scale)),
        weights=_numbers(weights[:-1]),
        intercept=float(weights[-1]),
        coefficients=tuple(
            Coefficient(name, float(value)) for name, value in zip(plan.features, original[:-1], strict=True)
        ),
        intercept_coefficient=Coefficient(INTERCEPT, float(original[-1])),
        objective=Objective(plan.l2, train.log_loss + penalty),
        participants=tuple(
            Contributor(member.name, member.n_rows, member.included, member.last_base_version) for member in taking_part
        ),
        metrics=_metrics_table(state, train),
    )


def _metrics_table(state: State, train: Evaluation) -> MetricsTable:
    tested = {name: _evaluation(e.test) for name, e in sorted(state.scores.items()) if e.test is not None}
    return MetricsTable(
        train=_metrics(train),
        test=_metrics(reduce(Evaluation.merge, tested.values())) if tested else None,
        test_by_site={name: _metrics(evaluation) for name, evaluation in tested.items()},
    )


def _merged(scores: Iterable[Scores]) -> Evaluation:
    return reduce(Evaluation.merge, (_evaluation(each) for each in scores))


def _evaluation(scores: Scores) -> Evaluation:
    return Evaluation(
        scores.n, scores.log_loss_sum, scores.brier_sum, scores.correct, scores.positives, scores.negatives
    )


def _metrics(evaluation: Evaluation) -> Metrics:
    return Metrics(round(evaluation.n), evaluation.log_loss, evaluation.brier, evaluation.accuracy, evaluation.auc)


def _numbers(array: Array) -> tuple[float, ...]:
    return tuple(float(number) for number in np.asarray(array))
