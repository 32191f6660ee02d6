"""What a participant computes when it is asked: moments, a local fit, an evaluation. Pure functions of its rows.

The rows enter as a `Table`, are put into the plan's columns and frame once (`prepare`), and leave only as
what the plan's kind says: see `broker.messages.UPDATE_ARRAYS`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.codec import MARGIN_BYTES
from broker.messages import (
    MAX_BODY_BYTES,
    Array,
    Evaluation,
    GlobalModel,
    Information,
    ModelUpdate,
    Plan,
    Scores,
    Task,
)
from logistic.evaluation import Evaluation as LocalEvaluation
from logistic.evaluation import exact_auc, row_margins
from logistic.firth import firth_gradient_sum
from logistic.loss import gradient_and_hessian_sum, gradient_sum, hessian_sum, log_loss_sum, score_product_sum
from logistic.moments import Moments, moments_of_blocks
from logistic.problem import Problem
from logistic.quadratic import pack, unpack
from logistic.ranking import count
from logistic.separation import sides
from logistic.sparse import CSR
from participant.clustered import clustered_moments, clustered_problems
from participant.curvature import Quadratic, quadratic
from participant.design import Design, design
from participant.errors import DataError
from participant.local_fit import local_fit, scaffold_fit
from participant.sources.dask import ClusteredTable
from participant.sources.table import Streamed, Table
from participant.streaming import StreamedRows
from participant.worker import Work


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prepared:
    """A site's rows in the columns and the frame of one plan.

    ``design`` says how the plan's columns follow from those of ``table``; ``test`` is None where no row is for testing.
    """

    plan_hash: str
    table: Table
    design: Design
    train: Problem
    test: Problem | None

    def moments(self) -> Moments:
        """Return the moments of the plan's columns as they came, over the training rows; gaps count as gaps."""
        table, X = self.table, self.table.X
        if isinstance(table, ClusteredTable):
            return clustered_moments(table, self.design)
        weights = _of(table.sample_weight, table.is_train)
        if isinstance(X, Streamed):
            rows = StreamedRows(X, self.design, table.is_train, table.y[table.is_train], weights, None)
            return moments_of_blocks(rows.blocks(), n_features=rows.n_features, allow_missing=True)
        which = X.take(np.flatnonzero(table.is_train)) if isinstance(X, CSR) else X[table.is_train]
        raw = self.design.raw_sparse(which) if isinstance(which, CSR) else self.design.raw(which)
        return Moments.of(raw, weights, allow_missing=True)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Memory:
    """What a participant remembers of its last contribution under a plan; a start without it is only slower."""

    quadratic: Quadratic | None = None
    control: Array | None = None


NOTHING = Memory()


def prepare(table: Table, plan: Plan, plan_hash: str, *, threads: int = 1) -> Prepared:
    """Return the rows of ``table`` as ``plan`` wants them: columns by name, standardised once the plan has a frame.

    Raises
    ------
    DataError
        If cells are missing and the plan has nothing to fill them with.
    """
    if plan.feature_schema is None and table.has_missing and plan.missing != "mean":
        raise DataError("cells are missing, and the federation fills none: fill them, or let its operator allow it")
    made = design(table, plan)
    if isinstance(table, ClusteredTable):
        return Prepared(plan_hash, table, made, *clustered_problems(table, plan, made))
    rows = _rows(table, made)
    order = np.argsort(plan.classes)  # the first class is the one that the others are compared with: any may be
    labels = order[np.searchsorted(plan.classes, table.y, sorter=order)].astype(np.float64)
    weights = table.sample_weight
    by_class = None if not plan.class_weights else np.array(plan.class_weights)[labels.astype(np.intp)]
    counting = weights if by_class is None else by_class * (1.0 if weights is None else weights)

    def problem(which: NDArray[np.bool_], sample_weight: Array | None) -> Problem:
        X, y, s, o = rows(which), labels[which], _of(sample_weight, which), _of(table.offset, which)
        if X is None:
            assert isinstance(table.X, Streamed)
            streamed = StreamedRows(table.X, made, which, y, s, o, threads)
            return Problem(streamed, l2=plan.l2, n_classes=len(plan.classes))
        return Problem(X, y, s, l2=plan.l2, offset=o, n_classes=len(plan.classes), threads=threads)

    train, test = table.is_train, ~table.is_train
    return Prepared(
        plan_hash=plan_hash,
        table=table,
        design=made,
        train=problem(train, counting),
        # Classes are weighed to fit; a model is judged on rows as they come.
        test=problem(test, weights) if test.any() else None,
    )


def _rows(table: Table, made: Design) -> Callable[[NDArray[np.bool_]], Array | CSR | None]:
    """Return what gives some of the rows as the plan wants them; None where they are read anew each time."""
    X = table.X
    if isinstance(X, Streamed):
        return lambda _: None
    if isinstance(X, CSR):
        sparse = made.apply_sparse(X)
        return lambda which: sparse.take(np.flatnonzero(which))
    dense = made.apply(X)
    return lambda which: dense[which]


def _of(values: Array | None, which: NDArray[np.bool_]) -> Array | None:
    return None if values is None else values[which]


def perform(work: Work, prepared: Prepared, memory: Memory = NOTHING) -> tuple[ModelUpdate | Evaluation, Memory]:
    """Return what ``work`` asks for, and what to remember; its ``fit_seconds`` is for the service to fill in.

    ``memory`` is what was returned with the last contribution under this plan, where that was used.
    """
    if work.task in ANSWERS:
        return ANSWERS[work.task](work, prepared), memory
    if work.plan.kind == "curvature":
        arrays, last = quadratic(prepared.train, work.model.weights, memory.quadratic)
        return _update(work, prepared, "curvature", arrays, loss=last.loss), Memory(quadratic=last)
    if work.plan.kind in {"gradient", "firth"}:
        return _update(work, prepared, work.plan.kind, _sums(work, prepared.train)), memory
    return _train(work, prepared, memory)


def _sums(work: Work, problem: Problem) -> dict[str, Array]:
    """Return the gradient at the model; of Firth's likelihood the Hessian first, and then the score."""
    weights = np.array(work.model.weights)
    if work.plan.kind == "gradient":
        gradient = gradient_sum(problem, weights)
        fits = weights.nbytes + gradient.nbytes + MARGIN_BYTES <= MAX_BODY_BYTES
        return {"base": weights, "gradient": gradient} if fits else {"gradient": gradient}
    if "inverse_information" not in work.model.extra:
        return {"base": weights, "hessian": pack(hessian_sum(problem, weights))}
    B = unpack(work.model.extra["inverse_information"])
    return {"base": weights, "gradient": firth_gradient_sum(problem, weights, B)}


def _train(work: Work, prepared: Prepared, memory: Memory) -> tuple[ModelUpdate, Memory]:
    problem, model, plan, steps = prepared.train, work.model, work.plan, work.local_steps
    rng = _generator(plan.seed, work.participant, model)
    arrays: dict[str, Array]
    if plan.kind == "control":
        common = model.extra.get("control")
        delta, control = scaffold_fit(
            problem, model.weights, work=plan.work, steps=steps, rng=rng, common=common, own=memory.control
        )
        arrays, memory = {"delta": delta, "control": control}, Memory(control=control)
    else:
        fitted = local_fit(problem, model.weights, work=plan.work, steps=steps, rng=rng)
        arrays = {"weights": fitted} if plan.kind == "weights" else {"delta": fitted - model.weights}
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return _update(work, prepared, "failed", {}), NOTHING
    if plan.kind == "delta":
        arrays["steps"] = np.array([float(steps)])
    return _update(work, prepared, plan.kind, arrays), memory


def _moments(work: Work, prepared: Prepared) -> ModelUpdate:
    moments = prepared.moments()
    arrays = {"mean": moments.mean, "m2": moments.m2}
    if moments.observed is not None:
        arrays["observed"] = moments.observed
    return _update(work, prepared, "moments", arrays, n_samples=moments.n)


def _update(
    work: Work,
    prepared: Prepared,
    kind: str,
    arrays: dict[str, Array],
    *,
    n_samples: float | None = None,
    loss: float | None = None,
) -> ModelUpdate:
    """Return what goes out; ``loss`` is the sum over the rows, where it is known already."""
    problem = prepared.train
    total = log_loss_sum(problem, work.model.weights) if loss is None else loss
    return ModelUpdate(
        federation=work.plan.federation,
        participant=work.participant,
        incarnation=work.incarnation,
        sequence=work.sequence,
        kind=kind,
        base_version=work.model.version,
        plan_hash=prepared.plan_hash,
        n_samples=problem.n_samples if n_samples is None else n_samples,
        loss=total / problem.n_samples,
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
        information=_information(work.plan, prepared.train, weights),
    )


def _scores(problem: Problem, weights: Array) -> Scores:
    local = LocalEvaluation.of(problem, weights)
    rows = row_margins(problem, weights) if _has_own_auc(problem) else None
    return Scores(
        n=local.n,
        log_loss_sum=local.log_loss_sum,
        brier_sum=local.brier_sum,
        correct=local.correct,
        positives=local.positives,
        negatives=local.negatives,
        auc=None if rows is None else exact_auc(rows.y, rows.margins),
    )


def _has_own_auc(problem: Problem) -> bool:
    """Whether the area under the ROC curve of these rows alone means something: of two classes, each row one."""
    return problem.n_outputs == 1 and not problem.is_weighted


def _information(plan: Plan, problem: Problem, weights: Array) -> Information | None:
    if plan.inference == "none":
        return None
    meat = pack(score_product_sum(problem, weights)) if plan.inference == "sandwich" else None
    sums = gradient_and_hessian_sum(problem, weights)
    return Information(sums.gradient, pack(sums.hessian), meat, has_offset=problem.has_offset)


def _ranks(work: Work, prepared: Prepared) -> ModelUpdate:
    """Count the rows of each class between the margins that are asked for."""
    edges, weights = work.model.extra, work.model.weights
    counts: dict[str, Array] = {}
    for name, problem in (("train", prepared.train), ("test", prepared.test)):
        if problem is not None and f"{name}_edges" in edges:
            rows = row_margins(problem, weights)
            found = count(edges[f"{name}_edges"], rows.y, rows.margins, rows.sample_weight)
            counts |= {f"{name}_positives": found.positives, f"{name}_negatives": found.negatives}
    return _update(work, prepared, "ranks", counts)


def _sides(work: Work, prepared: Prepared) -> ModelUpdate:
    """Count the rows by the side that they are on of each of the directions that are asked about."""
    problem = prepared.train
    directions = work.model.extra["directions"].reshape(-1, problem.n_parameters)
    counted = [sides(problem, direction) for direction in directions]
    counts = {
        "wrong": np.array([float(each.wrong) for each in counted]),
        "on": np.array([float(each.boundary) for each in counted]),
        "right": np.array([float(each.right) for each in counted]),
    }
    return _update(work, prepared, "sides", counts)


def _generator(seed: int, participant: str, model: GlobalModel) -> np.random.Generator:
    """Return the randomness of one fit: the same fit draws the same numbers, wherever and whenever it runs."""
    return np.random.default_rng([seed, zlib.crc32(participant.encode()), model.version])


def _path(work: Work, prepared: Prepared) -> ModelUpdate:
    """Return the sums over our rows at each of the models that are asked about."""
    train, test = prepared.train, prepared.test
    models = work.model.extra["path_weights"].reshape(-1, train.n_parameters)
    each = [gradient_and_hessian_sum(train, w) for w in models]
    arrays = {
        "losses": np.array([sums.log_loss for sums in each]),
        "gradients": np.concatenate([sums.gradient for sums in each]),
        "hessians": np.concatenate([pack(sums.hessian) for sums in each]),
    }
    if test is not None:
        arrays["test_losses"] = np.array([log_loss_sum(test, w) for w in models])
    return _update(work, prepared, "path", arrays)


ANSWERS: Mapping[Task, Callable[[Work, Prepared], ModelUpdate | Evaluation]] = {
    "evaluate": _evaluate,
    "moments": _moments,
    "rank": _ranks,
    "sides": _sides,
    "path": _path,
}
