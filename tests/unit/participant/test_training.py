"""What a participant computes: from its training rows, and nothing but what it is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden.examples import MODEL, PLAN, plain

from broker.codec import decode, encode
from broker.messages import Evaluation, Frame, LocalWork, ModelUpdate, Plan, Sizes
from logistic import LogisticError, Moments, Problem, UnknownSolverError, loss, merge_all
from logistic.evaluation import Evaluation as LocalEvaluation
from participant.sources import Table
from participant.training import local_fit, perform, prepare
from participant.worker import Work

FEATURES = PLAN.features
RAW = replace(PLAN, frame=None)
MINI = replace(PLAN, work=LocalWork("gradient-descent", 3, 0.25, 8))
WEIGHTS = MODEL.weights
HASH = "the plan's"


def table(seed: int = 0, n_rows: int = 40, n_test: int = 10) -> Table:
    """Return rows of three columns, the last of them for tests."""
    rng = np.random.default_rng(seed)
    X = rng.normal([50.0, 0.5, 1.0], [10.0, 0.5, 2.0], size=(n_rows, 3))
    y = (rng.random(n_rows) < 0.4).astype(np.float64)
    return Table(FEATURES, X, y, np.arange(n_rows) < n_rows - n_test)


def work(task: str, plan: Plan = PLAN, **changes: Any) -> Work:
    """Return something to do from `MODEL`."""
    fields: dict[str, Any] = {"participant": "hospital-1", "incarnation": "i", "sequence": 3, "model": MODEL}
    return Work(task=task, plan=plan, plan_hash=HASH, **{**fields, **changes})  # type: ignore[arg-type]


def update(rows: Table, task: str = "train", plan: Plan = PLAN, **changes: Any) -> ModelUpdate:
    """Return the update that ``rows`` give."""
    done = perform(work(task, plan, **changes), prepare(rows, plan, HASH))
    assert isinstance(done, ModelUpdate)
    return done


def evaluation(rows: Table, plan: Plan = PLAN) -> Evaluation:
    done = perform(work("evaluate", plan), prepare(rows, plan, HASH))
    assert isinstance(done, Evaluation)
    return done


def permuted(rows: Table, order: list[int]) -> Table:
    """Return the same rows with their columns in another order."""
    return Table(tuple(rows.features[i] for i in order), rows.X[:, order], rows.y, rows.is_train)


def with_other_test_rows(rows: Table) -> Table:
    """Return the same training rows and others to be evaluated."""
    X, y = rows.X.copy(), rows.y.copy()
    X[~rows.is_train] = 1e9
    y[~rows.is_train] = 1 - y[~rows.is_train]
    return Table(rows.features, X, y, rows.is_train)


# --- moments ----------------------------------------------------------------------------------


def test_moments_of_all_sites_merge_to_numpys_of_the_pooled_training_rows() -> None:
    sites = [table(seed, n_rows, 5) for seed, n_rows in enumerate((30, 8, 100))]
    told = [update(site, "moments", RAW) for site in sites]
    merged = merge_all(Moments(each.n_samples, each.arrays["mean"], each.arrays["m2"]) for each in told)
    pooled = np.vstack([site.X[site.is_train] for site in sites])
    assert merged.n == len(pooled)
    np.testing.assert_allclose(merged.mean, pooled.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(merged.std(), pooled.std(axis=0), rtol=1e-12)


def test_moments_are_those_of_the_raw_columns_whatever_the_frame() -> None:
    assert plain(update(table(), "moments", RAW).arrays) == plain(update(table(), "moments", PLAN).arrays)


# --- a local fit --------------------------------------------------------------------------------


def test_an_update_says_whose_it_is_and_where_it_comes_from() -> None:
    told = update(table())
    assert (told.federation, told.participant, told.incarnation, told.sequence) == ("heart", "hospital-1", "i", 3)
    assert (told.base_version, told.plan_hash, told.kind, told.fit_seconds) == (MODEL.version, HASH, "delta", 0.0)
    assert told.n_samples == 30.0


def test_its_loss_is_that_of_the_training_rows_at_the_weights_it_started_from() -> None:
    rows = table()
    assert PLAN.frame is not None
    X = (rows.X - PLAN.frame.mean) / PLAN.frame.scale
    free = Problem(X[rows.is_train], rows.y[rows.is_train])
    assert update(rows).loss == pytest.approx(loss(free, WEIGHTS), rel=1e-13)


def test_a_delta_is_the_fitted_weights_minus_those_it_started_from() -> None:
    weights = update(table(), plan=replace(PLAN, kind="weights")).arrays["weights"]
    delta = update(table()).arrays["delta"]
    assert delta.tobytes() == (weights - WEIGHTS).tobytes()
    assert np.abs(delta).max() > 0


@pytest.mark.parametrize("task", ["moments", "train"])
@pytest.mark.parametrize("kind", ["weights", "delta"])
def test_permuted_columns_give_the_same_update_to_the_bit(task: str, kind: str) -> None:
    plan = replace(PLAN, kind=kind)
    expected = update(table(), task, plan)
    for order in ([2, 0, 1], [1, 0, 2], [2, 1, 0]):
        assert plain(update(permuted(table(), order), task, plan)) == plain(expected)


@pytest.mark.parametrize("task", ["moments", "train"])
def test_test_rows_never_enter_what_is_trained(task: str) -> None:
    assert plain(update(with_other_test_rows(table()), task)) == plain(update(table(), task))


def test_without_test_rows_the_update_is_the_same_as_with_them() -> None:
    rows = table()
    alone = Table(FEATURES, rows.X[:30], rows.y[:30], np.ones(30, dtype=np.bool_))
    assert plain(update(alone)) == plain(update(rows))


@pytest.mark.parametrize("solver", ["gradient-descent", "newton", "lbfgs"])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_every_solver_lowers_the_objective_of_the_site(solver: str, batch_size: int | None) -> None:
    plan = replace(PLAN, work=LocalWork(solver, 20, None, batch_size))
    problem = prepare(table(), plan, HASH).train
    fitted = local_fit(problem, WEIGHTS, plan, np.random.default_rng(0))
    assert loss(problem, fitted) < loss(problem, WEIGHTS)


def test_the_model_that_is_fitted_from_stays_as_it_was() -> None:
    frozen = np.frombuffer(WEIGHTS.tobytes())
    update(table(), model=replace(MODEL, weights=frozen))
    assert frozen.tobytes() == WEIGHTS.tobytes()


def test_a_mini_batch_fit_is_the_same_wherever_and_whenever_it_runs() -> None:
    first, again = update(table(), plan=MINI), update(table(), plan=MINI, sequence=9)
    assert plain(again.arrays) == plain(first.arrays)
    assert plain(first.arrays) != plain(update(table(), plan=PLAN).arrays), "it is another fit than of all rows"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"plan": replace(MINI, seed=8)}, id="seed"),
        pytest.param({"participant": "hospital-2"}, id="participant"),
        pytest.param({"model": replace(MODEL, version=42)}, id="version"),
    ],
)
def test_mini_batches_are_drawn_anew_for_another(other: dict[str, Any]) -> None:
    assert plain(update(table(), **{"plan": MINI, **other}).arrays) != plain(update(table(), plan=MINI).arrays)


@pytest.mark.parametrize("kind", ["weights", "delta"])
def test_a_fit_that_diverges_says_so_and_sends_no_nan(kind: str) -> None:
    plan = replace(PLAN, l2=1.0, kind=kind, work=LocalWork("gradient-descent", 50, 1e200, None))
    failed = update(table(), plan=plan)
    assert (failed.kind, failed.arrays) == ("failed", {})
    assert np.isfinite(failed.loss)
    assert plain(decode(encode(failed), sizes=Sizes(3))) == plain(failed)


def test_a_solver_nobody_knows_is_told_in_a_sentence() -> None:
    with pytest.raises(UnknownSolverError, match="magic"):
        update(table(), plan=replace(PLAN, work=LocalWork("magic", 1, None, None)))


def test_a_frame_that_does_not_fit_its_columns_is_told_in_a_sentence() -> None:
    with pytest.raises(LogisticError):
        prepare(table(), replace(PLAN, frame=Frame(np.zeros(2), np.ones(2))), HASH)


@pytest.mark.parametrize(("n_rows", "label"), [(3, 1.0), (3, 0.0), (1, 1.0)])
def test_a_site_of_a_few_rows_of_one_class_takes_part_in_everything(n_rows: int, label: float) -> None:
    rows = table(n_rows=n_rows, n_test=0)
    rows = Table(FEATURES, rows.X, np.full(n_rows, label), rows.is_train)
    for task in ("moments", "train", "evaluate"):
        done = perform(work(task), prepare(rows, PLAN, HASH))
        assert plain(decode(encode(done), sizes=Sizes(3))) == plain(done)


# --- an evaluation ------------------------------------------------------------------------------


def test_an_evaluation_scores_training_and_test_rows_apart() -> None:
    rows = table()
    told = evaluation(rows, RAW)
    assert (told.version, told.sequence, told.plan_hash, told.participant) == (MODEL.version, 3, HASH, "hospital-1")
    for scores, where in ((told.train, rows.is_train), (told.test, ~rows.is_train)):
        assert scores is not None
        expected = LocalEvaluation.of(Problem(rows.X[where], rows.y[where]), WEIGHTS)
        assert scores.n == where.sum()
        assert (scores.log_loss_sum, scores.brier_sum, scores.correct) == (
            expected.log_loss_sum,
            expected.brier_sum,
            expected.correct,
        )
        assert plain((scores.positives, scores.negatives)) == plain((expected.positives, expected.negatives))


def test_without_test_rows_there_are_no_scores_of_them() -> None:
    assert evaluation(table(n_test=0)).test is None


def test_scores_of_training_rows_do_not_depend_on_test_rows() -> None:
    assert plain(evaluation(with_other_test_rows(table())).train) == plain(evaluation(table()).train)


# --- what is prepared ---------------------------------------------------------------------------


def test_nothing_that_holds_rows_shows_them() -> None:
    rows = table()
    shown = f"{rows!r} {prepare(rows, PLAN, HASH)!r}"
    assert "30 training rows, 10 test rows, 3 features" in shown
    for value in rows.X.ravel():
        assert str(value)[:6] not in shown


def test_for_the_exact_strategies_it_sends_the_quadratic_of_its_rows() -> None:
    plan = replace(PLAN, kind="curvature")
    first = perform(work("train", plan=plan), prepare(table(), plan, HASH))
    assert isinstance(first, ModelUpdate)
    assert (first.kind, first.arrays["theta"]) == ("curvature", [1.0])
    again = perform(work("train", plan=plan), prepare(table(), plan, HASH), first)
    assert isinstance(again, ModelUpdate)
    assert again.arrays["theta"] < 1.0
    assert plain(decode(encode(again), sizes=Sizes(3))) == plain(again)
