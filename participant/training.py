"""What a participant computes when it is asked: moments, a local fit, an evaluation. Pure functions of its rows.

The rows enter as a `Table`, are put into the plan's columns and frame once (`prepare`), and leave only as
what the plan's kind says: see `broker.messages.UPDATE_ARRAYS`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from broker.messages import Array, Evaluation, GlobalModel, ModelUpdate, Plan, Scores
from logistic.evaluation import Evaluation as LocalEvaluation
from logistic.loss import log_loss_sum
from logistic.moments import Moments
from logistic.problem import Problem
from logistic.solvers import make_solver
from logistic.standardisation import Standardisation
from participant.curvature import quadratic
from participant.sources.table import Table
from participant.worker import Work


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prepared:
    """A site's rows in the columns and the frame of one plan."""

    plan_hash: str
    raw: Array
    train: Problem
    test: Problem | None


def prepare(table: Table, plan: Plan, plan_hash: str) -> Prepared:
    """Return the rows of ``table`` as ``plan`` wants them: columns by name, standardised once the plan has a frame."""
    columns = table.columns(plan.features)
    frame = plan.frame
    rows = columns if frame is None else Standardisation(frame.mean, frame.scale).apply(columns)
    test = ~table.is_train
    return Prepared(
        plan_hash=plan_hash,
        raw=columns[table.is_train],
        train=Problem(rows[table.is_train], table.y[table.is_train], l2=plan.l2),
        test=Problem(rows[test], table.y[test], l2=plan.l2) if test.any() else None,
    )


def perform(work: Work, prepared: Prepared, last: ModelUpdate | None = None) -> ModelUpdate | Evaluation:
    """Return what ``work`` asks for; its ``fit_seconds`` is for the service to fill in.

    ``last`` is the last quadratic that was sent under this plan, where there is one.
    """
    if work.task == "evaluate":
        return _evaluate(work, prepared)
    if work.task == "moments":
        return _moments(work, prepared)
    if work.plan.kind == "curvature":
        return _update(work, prepared, "curvature", quadratic(prepared.train, work.model.weights, last))
    return _train(work, prepared)


def local_fit(problem: Problem, weights: Array, plan: Plan, rng: np.random.Generator) -> Array:
    """Return ``weights`` after the plan's local steps on ``problem``, (n_parameters,); not finite where it diverged."""
    options: dict[str, Any] = {}
    if plan.work.solver == "gradient-descent":
        options = {"learning_rate": plan.work.learning_rate, "batch_size": plan.work.batch_size, "look": False}
    solver = make_solver(plan.work.solver, **options)
    with np.errstate(over="ignore", invalid="ignore"):  # a fit that runs away is told below, in a sentence
        state = solver.init(problem, np.array(weights), rng)
        for _ in range(plan.work.steps):
            state = solver.step(problem, state)
    fitted: Array = state.w
    return fitted


def _train(work: Work, prepared: Prepared) -> ModelUpdate:
    problem, model, plan = prepared.train, work.model, work.plan
    fitted = local_fit(problem, model.weights, plan, _generator(plan.seed, work.participant, model))
    if not np.isfinite(fitted).all():
        return _update(work, prepared, "failed", {})
    arrays = {"weights": fitted} if plan.kind == "weights" else {"delta": fitted - model.weights}
    return _update(work, prepared, plan.kind, arrays)


def _moments(work: Work, prepared: Prepared) -> ModelUpdate:
    moments = Moments.of(prepared.raw)
    return _update(work, prepared, "moments", {"mean": moments.mean, "m2": moments.m2})


def _update(work: Work, prepared: Prepared, kind: str, arrays: dict[str, Array]) -> ModelUpdate:
    problem = prepared.train
    return ModelUpdate(
        federation=work.plan.federation,
        participant=work.participant,
        incarnation=work.incarnation,
        sequence=work.sequence,
        kind=kind,
        base_version=work.model.version,
        plan_hash=prepared.plan_hash,
        n_samples=problem.n_samples,
        loss=log_loss_sum(problem, work.model.weights) / problem.n_samples,
        fit_seconds=0.0,
        arrays=arrays,
    )


def _evaluate(work: Work, prepared: Prepared) -> Evaluation:
    weights = work.model.weights
    return Evaluation(
        federation=work.plan.federation,
        participant=work.participant,
        incarnation=work.incarnation,
        sequence=work.sequence,
        version=work.model.version,
        plan_hash=prepared.plan_hash,
        train=_scores(prepared.train, weights),
        test=None if prepared.test is None else _scores(prepared.test, weights),
    )


def _scores(problem: Problem, weights: Array) -> Scores:
    local = LocalEvaluation.of(problem, weights)
    return Scores(local.n, local.log_loss_sum, local.brier_sum, local.correct, local.positives, local.negatives)


def _generator(seed: int, participant: str, model: GlobalModel) -> np.random.Generator:
    """Return the randomness of one fit: the same fit draws the same numbers, wherever and whenever it runs."""
    return np.random.default_rng([seed, zlib.crc32(participant.encode()), model.version])
