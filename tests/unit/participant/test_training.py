"""What a participant computes: from its training rows, and nothing but what it is asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden.examples import MODEL, PLAN, plain
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from broker.codec import decode, encode
from broker.messages import (
    Array,
    Evaluation,
    Frame,
    GlobalModel,
    LocalWork,
    ModelUpdate,
    Plan,
)
from logistic import LogisticError, Moments, Problem, UnknownSolverError, loss, merge_all
from logistic.evaluation import Evaluation as LocalEvaluation
from logistic.firth import firth_gradient_sum, inverse_information
from logistic.loss import gradient_sum, hessian_sum, log_loss_sum
from logistic.quadratic import pack, unpack
from participant.errors import DataError
from participant.local_fit import scaffold_fit
from participant.sources import Table
from participant.training import NOTHING, Memory, perform, prepare
from participant.worker import Work

FEATURES = PLAN.features
RAW = replace(PLAN, frame=None)
MINI = replace(PLAN, work=LocalWork("gradient-descent", 3, 0.25, 8))
WEIGHTS = MODEL.weights
HASH = "the plan's"
FILL = np.array([52.0, 0.75, -1.0])
FILLED = replace(PLAN, missing="mean", fill=FILL)
OF_CLASSES = replace(PLAN, classes=(1, 2, 5))
MODEL_OF_CLASSES = replace(MODEL, weights=np.linspace(-1.0, 1.0, 12))


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


def done(rows: Table, task: str, plan: Plan = PLAN, **changes: Any) -> ModelUpdate | Evaluation:
    """Return what ``rows`` answer, by the way that it travels; with the model of the plan's classes, unless another."""
    model = changes.pop("model", MODEL if plan.sizes.n_outputs == 1 else MODEL_OF_CLASSES)
    travelled = decode(encode(model), sizes=plan.sizes)
    assert isinstance(travelled, GlobalModel)
    message, _ = perform(work(task, plan, model=travelled, **changes), prepare(rows, plan, HASH))
    assert plain(decode(encode(message), sizes=plan.sizes)) == plain(message)
    return message


def update(rows: Table, task: str = "train", plan: Plan = PLAN, **changes: Any) -> ModelUpdate:
    """Return the update that ``rows`` give."""
    message = done(rows, task, plan, **changes)
    assert isinstance(message, ModelUpdate)
    return message


def evaluation(rows: Table, plan: Plan = PLAN) -> Evaluation:
    message = done(rows, "evaluate", plan)
    assert isinstance(message, Evaluation)
    return message


def asking(**extra: Array) -> GlobalModel:
    """Return `MODEL` with what a task needs besides its weights."""
    return replace(MODEL, extra=extra)


def weighted(rows: Table) -> Table:
    """Return ``rows`` with weights, of which one is 0."""
    weights = np.random.default_rng(4).uniform(0.0, 3.0, size=len(rows.y))
    weights[1] = 0.0
    return replace(rows, sample_weight=weights)


def with_offset(rows: Table) -> Table:
    return replace(rows, offset=np.random.default_rng(5).normal(size=len(rows.y)))


def with_gaps(rows: Table) -> Table:
    """Return ``rows`` with cells missing in training and in test rows, none of them in the second column."""
    X = rows.X.copy()
    X[[0, 3, 4, -1], [0, 2, 2, 0]] = np.nan
    return replace(rows, X=X)


def of_classes(rows: Table, classes: tuple[int, ...] = (1, 2, 5)) -> Table:
    """Return ``rows`` with labels among ``classes``."""
    labels = np.random.default_rng(6).choice(classes, size=len(rows.y)).astype(np.float64)
    return replace(rows, y=labels, classes=classes)


def standardised(rows: Table, frame: Frame | None = PLAN.frame) -> Array:
    """Return all rows in the frame of the plan."""
    assert frame is not None
    z: Array = (rows.X - frame.mean) / frame.scale
    return z


def permuted(rows: Table, order: list[int]) -> Table:
    """Return the same rows with their columns in another order."""
    return replace(rows, features=tuple(rows.features[i] for i in order), X=rows.X[:, order])


def with_other_test_rows(rows: Table) -> Table:
    """Return the same training rows and others to be evaluated."""
    X, y = rows.X.copy(), rows.y.copy()
    X[~rows.is_train] = 1e9
    y[~rows.is_train] = 1 - y[~rows.is_train]
    return replace(rows, X=X, y=y)


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


def test_moments_of_weighted_rows_are_those_of_rows_that_are_there_so_often() -> None:
    rows = table(n_test=5)
    times = np.random.default_rng(2).integers(0, 4, size=40)
    told = update(replace(rows, sample_weight=times.astype(np.float64)), "moments", RAW)
    repeated = np.repeat(rows.X[rows.is_train], times[rows.is_train], axis=0)
    assert told.n_samples == len(repeated)
    np.testing.assert_allclose(told.arrays["mean"], repeated.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(told.arrays["m2"], ((repeated - repeated.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-12)


def test_moments_do_not_weigh_classes() -> None:
    heavier = update(table(), "moments", replace(RAW, class_weights=(1.0, 5.0)))
    assert heavier.n_samples == 30.0
    assert plain(heavier.arrays) == plain(update(table(), "moments", RAW).arrays)


def test_moments_of_columns_with_gaps_say_how_much_was_observed() -> None:
    plan = replace(RAW, missing="mean")
    sites = [weighted(with_gaps(table(0))), with_gaps(table(1)), table(2)]
    told = [update(site, "moments", plan) for site in sites]
    assert [set(each.arrays) for each in told] == [{"mean", "m2", "observed"}] * 2 + [{"mean", "m2"}]
    assert told[1].n_samples == 30.0, "a row with a gap is still a row"
    assert told[1].arrays["observed"].tolist() == [29.0, 30.0, 28.0]
    merged = merge_all(Moments(each.n_samples, **each.arrays) for each in told)
    X = np.vstack([site.X[site.is_train] for site in sites])
    s = np.concatenate([np.ones(len(site.y)) if site.sample_weight is None else site.sample_weight for site in sites])
    s = s[np.concatenate([site.is_train for site in sites])][:, np.newaxis] * ~np.isnan(X)
    np.testing.assert_allclose(merged.mean, np.nansum(s * X, axis=0) / s.sum(axis=0), rtol=1e-12)


def test_gaps_in_test_rows_are_no_gaps_in_the_moments() -> None:
    rows = table()
    X = rows.X.copy()
    X[~rows.is_train] = np.nan
    plan = replace(RAW, missing="mean")
    assert plain(update(replace(rows, X=X), "moments", plan)) == plain(update(rows, "moments", plan))


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


@pytest.mark.parametrize("kind", ["moments", "weights", "delta", "control", "gradient", "curvature", "firth"])
def test_test_rows_never_enter_what_is_trained(kind: str) -> None:
    task, plan = ("moments", PLAN) if kind == "moments" else ("train", replace(PLAN, kind=kind))
    assert plain(update(with_other_test_rows(table()), task, plan)) == plain(update(table(), task, plan))


def test_without_test_rows_the_update_is_the_same_as_with_them() -> None:
    rows = table()
    alone = replace(rows, X=rows.X[:30], y=rows.y[:30], is_train=np.ones(30, dtype=np.bool_))
    assert plain(update(alone)) == plain(update(rows))


@pytest.mark.parametrize("solver", ["gradient-descent", "newton", "lbfgs"])
@pytest.mark.parametrize("batch_size", [None, 8])
def test_every_solver_lowers_the_objective_of_the_site(solver: str, batch_size: int | None) -> None:
    plan = replace(PLAN, work=LocalWork(solver, 20, None, batch_size))
    problem = prepare(table(), plan, HASH).train
    fitted = WEIGHTS + update(table(), plan=plan).arrays["delta"]
    assert loss(problem, fitted) < loss(problem, WEIGHTS)


@pytest.mark.parametrize("solver", ["gradient-descent", "newton", "lbfgs"])
@pytest.mark.parametrize(
    ("rows", "plan"),
    [
        (weighted(table()), replace(PLAN, class_weights=(1.0, 4.0))),
        (with_offset(table()), PLAN),
        (with_gaps(table()), FILLED),
        (of_classes(table()), OF_CLASSES),
    ],
    ids=["weights", "offset", "gaps", "classes"],
)
def test_what_is_fitted_is_the_objective_of_the_rows_as_they_were_prepared(
    solver: str, rows: Table, plan: Plan
) -> None:
    plan = replace(plan, l2=0.1, kind="weights", work=LocalWork(solver, 60, None, None))
    problem = prepare(rows, plan, HASH).train
    fitted = update(rows, plan=plan).arrays["weights"]
    reference = update(rows, plan=replace(plan, work=LocalWork("newton", 60, None, None))).arrays["weights"]
    assert loss(problem, reference) <= loss(problem, fitted) * (1 + 1e-12) < loss(problem, np.zeros_like(fitted))


def test_the_model_that_is_fitted_from_stays_as_it_was() -> None:
    frozen = np.frombuffer(WEIGHTS.tobytes())
    for kind in ("delta", "weights", "control", "gradient", "curvature", "firth"):
        plan = replace(PLAN, kind=kind)
        perform(work("train", plan, model=replace(MODEL, weights=frozen)), prepare(table(), plan, HASH))
    assert frozen.tobytes() == WEIGHTS.tobytes()


def test_rows_count_with_their_weights_and_those_of_their_classes() -> None:
    rows = weighted(table())
    assert rows.sample_weight is not None
    plan = replace(PLAN, class_weights=(0.5, 4.0))
    counting = rows.sample_weight * np.where(rows.y == 1.0, 4.0, 0.5)
    assert update(rows).n_samples == pytest.approx(rows.sample_weight[rows.is_train].sum())
    assert update(rows, plan=plan).n_samples == pytest.approx(counting[rows.is_train].sum())
    assert update(table(), plan=plan).n_samples == 30 * 0.5 + 3.5 * table().y[:30].sum()


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


@pytest.mark.parametrize(("given", "taken"), [(0, 3), (1, 1), (7, 7)])
def test_a_delta_says_how_many_local_steps_it_took(given: int, taken: int) -> None:
    told = update(table(), steps=given)
    assert told.arrays["steps"].tolist() == [taken]
    of_plan = update(table(), plan=replace(PLAN, work=replace(PLAN.work, steps=taken)))
    assert plain(told.arrays) == plain(of_plan.arrays)


def test_weights_do_not_say_how_many_steps_they_took_and_take_as_many() -> None:
    plan = replace(PLAN, kind="weights")
    told, longer = update(table(), plan=plan), update(table(), plan=plan, steps=7)
    assert told.arrays.keys() == longer.arrays.keys() == {"weights"}
    assert (longer.arrays["weights"] - WEIGHTS).tobytes() == update(table(), steps=7).arrays["delta"].tobytes()
    assert plain(told.arrays) != plain(longer.arrays)


def test_a_proximal_term_holds_a_fit_near_the_model() -> None:
    held = replace(PLAN, work=replace(PLAN.work, proximal=100.0))
    free, near = update(table()).arrays["delta"], update(table(), plan=held).arrays["delta"]
    assert 0.0 < np.linalg.norm(near) < 0.1 * np.linalg.norm(free)


SCAFFOLD = replace(PLAN, kind="control", work=LocalWork("gradient-descent", 4, 0.1, None))


def test_for_scaffold_it_sends_the_change_and_its_control_variate_and_remembers_that() -> None:
    prepared = prepare(table(), SCAFFOLD, HASH)
    common = np.array([0.1, -0.2, 0.3, 0.0])
    memory, own = NOTHING, None
    for extra in ({}, {"control": common}, {"control": 2 * common}):
        told, memory = perform(work("train", SCAFFOLD, model=asking(**extra), steps=5), prepared, memory)
        assert isinstance(told, ModelUpdate)
        delta, control = scaffold_fit(
            prepared.train,
            WEIGHTS,
            work=SCAFFOLD.work,
            steps=5,
            rng=np.random.default_rng(0),  # all rows in each step: nothing is drawn
            common=extra.get("control"),
            own=own,
        )
        assert (told.kind, plain(told.arrays)) == ("control", plain({"delta": delta, "control": control}))
        assert memory.control is not None
        own = memory.control
        assert own.tobytes() == control.tobytes()


def test_a_corrected_fit_that_diverges_says_so_and_forgets_its_control_variate() -> None:
    plan = replace(SCAFFOLD, l2=1.0, work=LocalWork("gradient-descent", 50, 1e200, None))
    told, memory = perform(
        work("train", plan, model=asking(control=np.ones(4))), prepare(table(), plan, HASH), Memory(control=np.ones(4))
    )
    assert isinstance(told, ModelUpdate)
    assert (told.kind, told.arrays) == ("failed", {})
    assert memory.control is None


def test_a_solver_nobody_knows_is_told_in_a_sentence() -> None:
    with pytest.raises(UnknownSolverError, match="magic"):
        update(table(), plan=replace(PLAN, work=LocalWork("magic", 1, None, None)))


def test_a_frame_that_does_not_fit_its_columns_is_told_in_a_sentence() -> None:
    with pytest.raises(LogisticError):
        prepare(table(), replace(PLAN, frame=Frame(np.zeros(2), np.ones(2))), HASH)


@pytest.mark.parametrize(("n_rows", "label"), [(3, 1.0), (3, 0.0), (1, 1.0)])
@pytest.mark.parametrize("kind", ["delta", "weights", "control", "gradient", "curvature", "firth"])
def test_a_site_of_a_few_rows_of_one_class_takes_part_in_everything(kind: str, n_rows: int, label: float) -> None:
    rows = replace(table(n_rows=n_rows, n_test=0), y=np.full(n_rows, label))
    edges = np.array([0.0])
    questions = asking(train_edges=edges, test_edges=edges, directions=np.ones(8), path_weights=np.ones(8))
    plan = replace(PLAN, kind=kind, inference="sandwich")
    for task in ("moments", "train", "evaluate", "rank", "sides", "path"):
        done(rows, task, plan, model=questions)


@pytest.mark.parametrize("kind", ["delta", "weights", "control", "gradient", "curvature"])
def test_of_more_than_two_classes_everything_but_ranks_and_sides_is_answered(kind: str) -> None:
    rows = of_classes(table())
    plan = replace(OF_CLASSES, kind=kind, class_weights=(1.0, 2.0, 3.0), inference="sandwich")
    for task in ("moments", "train", "evaluate"):
        done(rows, task, plan)


# --- sums: a gradient, a quadratic, Firth's ------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "plan"),
    [
        (table(), PLAN),
        (weighted(with_offset(table())), replace(PLAN, class_weights=(1.0, 3.0))),
        (of_classes(table()), OF_CLASSES),
    ],
    ids=["plain", "weights and offset", "classes"],
)
def test_a_gradient_is_the_sum_over_its_training_rows_at_the_model(rows: Table, plan: Plan) -> None:
    plan = replace(plan, kind="gradient")
    model = MODEL if plan.sizes.n_outputs == 1 else MODEL_OF_CLASSES
    told = update(rows, plan=plan)
    assert told.kind == "gradient"
    np.testing.assert_array_equal(told.arrays["base"], model.weights)
    np.testing.assert_array_equal(told.arrays["gradient"], gradient_sum(prepare(rows, plan, HASH).train, model.weights))


def test_for_the_exact_strategies_it_sends_the_quadratic_of_its_rows_and_remembers_it() -> None:
    plan = replace(PLAN, kind="curvature")
    prepared = prepare(table(), plan, HASH)
    first, memory = perform(work("train", plan), prepared)
    assert isinstance(first, ModelUpdate)
    assert (first.kind, first.arrays["theta"]) == ("curvature", [1.0])
    seen = []
    for _ in range(2):
        message, memory = perform(work("train", plan), prepared, memory)
        assert isinstance(message, ModelUpdate)
        seen.append((round(float(message.arrays["theta"][0]), 6), "hessian" in message.arrays))
    assert seen == [(0.0, True), (0.0, False)]
    assert memory.quadratic is not None


def test_without_its_memory_it_sends_everything() -> None:
    plan = replace(PLAN, kind="curvature")
    for _ in range(2):
        message, _ = perform(work("train", plan), prepare(table(), plan, HASH))
        assert isinstance(message, ModelUpdate)
        assert (message.arrays["theta"], "hessian" in message.arrays) == ([1.0], True)


@pytest.mark.parametrize("task", ["moments", "evaluate", "rank", "sides", "path"])
def test_a_question_in_between_does_not_touch_its_memory(task: str) -> None:
    plan = replace(PLAN, kind="curvature")
    prepared = prepare(table(), plan, HASH)
    _, memory = perform(work("train", plan), prepared)
    questions = asking(train_edges=np.zeros(1), directions=np.ones(4), path_weights=np.ones(4))
    assert perform(work(task, plan, model=questions), prepared, memory)[1] is memory


@pytest.mark.parametrize("kind", ["weights", "gradient", "firth"])
def test_what_builds_on_nothing_leaves_the_memory_as_it_was(kind: str) -> None:
    plan = replace(PLAN, kind=kind)
    assert perform(work("train", plan), prepare(table(), plan, HASH))[1] is NOTHING
    assert (NOTHING.quadratic, NOTHING.control) == (None, None)


def test_firths_first_answer_is_the_hessian() -> None:
    plan = replace(PLAN, kind="firth", penalty="firth")
    told = update(weighted(table()), plan=plan)
    assert told.arrays.keys() == {"base", "hessian"}
    problem = prepare(weighted(table()), plan, HASH).train
    np.testing.assert_array_equal(told.arrays["base"], WEIGHTS)
    np.testing.assert_array_equal(unpack(told.arrays["hessian"]), hessian_sum(problem, WEIGHTS))


def test_firths_second_answer_is_the_score_by_everybodys_hat_values() -> None:
    """Two sites' scores add up to that of both together, which is what no site could have known by itself."""
    plan = replace(PLAN, kind="firth", penalty="firth")
    sites = [weighted(table(0)), weighted(table(1, n_rows=25))]
    problems = [prepare(site, plan, HASH).train for site in sites]
    B = inverse_information(sum(hessian_sum(problem, WEIGHTS) for problem in problems))
    told = [update(site, plan=plan, model=asking(inverse_information=pack(B))) for site in sites]
    assert all(each.arrays.keys() == {"base", "gradient"} for each in told)
    pooled = Problem(
        np.vstack([problem.X for problem in problems]),
        np.concatenate([problem.y for problem in problems]),
        np.concatenate([problem.sample_weight for problem in problems if problem.sample_weight is not None]),
    )
    np.testing.assert_allclose(
        sum(each.arrays["gradient"] for each in told), firth_gradient_sum(pooled, WEIGHTS, B), rtol=1e-12
    )


@pytest.mark.parametrize("n_test", [0, 10])
@pytest.mark.parametrize("n_models", [1, 3])
def test_for_a_path_it_sends_its_sums_at_each_of_several_models(n_models: int, n_test: int) -> None:
    rows = weighted(with_offset(table(n_test=n_test)))
    plan = replace(PLAN, class_weights=(1.0, 3.0))
    models = np.random.default_rng(1).normal(size=(n_models, 4))
    told = update(rows, "path", plan, model=asking(path_weights=models.ravel()))
    prepared = prepare(rows, plan, HASH)
    assert told.kind == "path"
    for k, w in enumerate(models):
        assert told.arrays["losses"][k] == log_loss_sum(prepared.train, w)
        np.testing.assert_array_equal(
            told.arrays["gradients"].reshape(n_models, -1)[k], gradient_sum(prepared.train, w)
        )
        packed = told.arrays["hessians"].reshape(n_models, -1)[k]
        np.testing.assert_array_equal(unpack(packed), hessian_sum(prepared.train, w))
        if prepared.test is not None:
            assert told.arrays["test_losses"][k] == log_loss_sum(prepared.test, w)
    assert ("test_losses" in told.arrays) == (n_test > 0)


# --- ranks and sides -----------------------------------------------------------------------------

EDGES = np.array([-1.5, -0.5, 0.0, 0.25, 1.0])


def brute_counts(rows: Table, which: Any, margins: Array) -> tuple[list[float], list[float]]:
    """Count weights of positives and of negatives between `EDGES`, row by row."""
    counts = np.zeros((2, len(EDGES) + 1))
    weights = np.ones(len(rows.y)) if rows.sample_weight is None else rows.sample_weight
    for y, z, s in zip(rows.y[which], margins[which], weights[which], strict=True):
        counts[int(y), sum(z >= edge for edge in EDGES)] += s
    return counts[1].tolist(), counts[0].tolist()


@pytest.mark.parametrize("rows", [table(), weighted(with_offset(table()))], ids=["plain", "weights and offset"])
def test_ranks_count_the_rows_of_each_class_between_margins(rows: Table) -> None:
    margins = standardised(rows) @ WEIGHTS[:-1] + WEIGHTS[-1] + (0.0 if rows.offset is None else rows.offset)
    told = update(rows, "rank", model=asking(train_edges=EDGES, test_edges=EDGES))
    assert told.kind == "ranks"
    for name, which in (("train", rows.is_train), ("test", ~rows.is_train)):
        positives, negatives = brute_counts(rows, which, margins)
        assert told.arrays[f"{name}_positives"] == pytest.approx(positives)
        assert told.arrays[f"{name}_negatives"] == pytest.approx(negatives)


def test_a_row_on_an_edge_is_in_the_interval_above_it() -> None:
    rows = replace(table(n_rows=2, n_test=0), X=np.zeros((2, 3)), y=np.array([0.0, 1.0]))
    model = replace(asking(train_edges=np.array([0.5, 2.0])), weights=np.array([0.0, 0.0, 0.0, 0.5]))
    told = update(rows, "rank", RAW, model=model)
    assert told.arrays["train_positives"].tolist() == [0.0, 1.0, 0.0] == told.arrays["train_negatives"].tolist()


def test_only_the_sets_that_are_asked_about_are_counted_and_that_are_there() -> None:
    both = asking(train_edges=EDGES, test_edges=EDGES)
    assert update(table(), "rank", model=asking(test_edges=EDGES)).arrays.keys() == {"test_positives", "test_negatives"}
    train = {"train_positives", "train_negatives"}
    assert update(table(), "rank", model=asking(train_edges=EDGES)).arrays.keys() == train
    assert update(table(n_test=0), "rank", model=both).arrays.keys() == train
    assert update(table(), "rank").arrays == {}


def test_rows_of_many_chunks_are_all_counted() -> None:
    told = update(table(n_rows=9000, n_test=4500), "rank", model=asking(train_edges=EDGES, test_edges=EDGES))
    for name in ("train", "test"):
        assert told.arrays[f"{name}_positives"].sum() + told.arrays[f"{name}_negatives"].sum() == 4500


def test_the_order_of_everybodys_rows_follows_from_counts() -> None:
    """What `logistic.ranking` makes of them is examined there: here, that edges between all margins order all rows."""
    rows = table()
    z = standardised(rows) @ WEIGHTS[:-1] + WEIGHTS[-1]
    train = rows.is_train
    told = update(rows, "rank", model=asking(train_edges=np.sort(z[train])))
    positives, negatives = told.arrays["train_positives"], told.arrays["train_negatives"]
    above = float(positives @ (np.cumsum(negatives) - negatives))
    assert above / (positives.sum() * negatives.sum()) == pytest.approx(roc_auc_score(rows.y[train], z[train]))


def test_sides_count_the_training_rows_by_the_side_of_each_direction() -> None:
    X = np.array([[2.0, 0, 0], [1, 0, 0], [3, 0, 0], [0, 0, 0], [-1, 5, 5], [9, 9, 9]])
    rows = replace(table(n_rows=6, n_test=1), X=X, y=np.array([1.0, 1, 0, 0, 0, 1]))
    directions = np.array([[1.0, 0, 0, -1.0], [-1.0, 0, 0, 0]])
    told = update(rows, "sides", RAW, model=asking(directions=directions.ravel()))
    assert told.kind == "sides"
    assert {name: counts.tolist() for name, counts in told.arrays.items()} == {
        "right": [3.0, 1.0],
        "on": [1.0, 1.0],
        "wrong": [1.0, 3.0],
    }


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


def test_scores_come_with_the_exact_area_of_these_rows_alone() -> None:
    rows = replace(table(n_rows=200, n_test=80), X=np.round(table(n_rows=200).X / 10.0))  # with ties
    told = evaluation(rows, RAW)
    z = rows.X @ WEIGHTS[:-1] + WEIGHTS[-1]
    assert len(np.unique(z)) < 50
    for scores, which in ((told.train, rows.is_train), (told.test, ~rows.is_train)):
        assert scores is not None
        assert scores.auc == pytest.approx(roc_auc_score(rows.y[which], z[which]), rel=1e-14)


def test_an_offset_is_in_the_area() -> None:
    rows = with_offset(table())
    assert rows.offset is not None
    z = standardised(rows) @ WEIGHTS[:-1] + WEIGHTS[-1] + rows.offset
    assert evaluation(rows).train.auc == pytest.approx(roc_auc_score(rows.y[:30], z[:30]), rel=1e-14)


@pytest.mark.parametrize(
    ("rows", "plan"),
    [
        (replace(table(), y=np.ones(40)), PLAN),
        (weighted(table()), PLAN),
        (of_classes(table()), OF_CLASSES),
    ],
    ids=["one class", "weights", "three classes"],
)
def test_there_is_no_area_where_it_would_mean_nothing(rows: Table, plan: Plan) -> None:
    assert evaluation(rows, plan).train.auc is None


def test_classes_are_weighed_where_a_model_is_fitted_and_not_where_it_is_judged() -> None:
    plain_, heavier = evaluation(table()), evaluation(table(), replace(PLAN, class_weights=(1.0, 5.0)))
    assert plain(heavier.test) == plain(plain_.test)
    assert heavier.train.n == 30 + 4 * table().y[:30].sum()
    assert heavier.train.log_loss_sum > plain_.train.log_loss_sum


def test_without_test_rows_there_are_no_scores_of_them() -> None:
    assert evaluation(table(n_test=0)).test is None


def test_scores_of_training_rows_do_not_depend_on_test_rows() -> None:
    assert plain(evaluation(with_other_test_rows(table())).train) == plain(evaluation(table()).train)


# --- what standard errors are made of -------------------------------------------------------------


def brute_meat(prepared: Problem, weights: Array) -> Array:
    """Sum over rows of the outer products of their gradients, from the definition."""
    rows = np.column_stack([prepared.X, np.ones(prepared.n_rows)])
    z = rows @ weights.reshape(prepared.n_outputs, -1).T
    if prepared.n_outputs == 1:
        z = z + (0.0 if prepared.offset is None else prepared.offset[:, np.newaxis])
        residuals = 1 / (1 + np.exp(-z)) - prepared.y[:, np.newaxis]
    else:
        residuals = softmax(z, axis=1) - np.eye(prepared.n_classes)[prepared.y.astype(int)]
    s = np.ones(prepared.n_rows) if prepared.sample_weight is None else prepared.sample_weight
    scores = [np.kron(r, row) * each for r, row, each in zip(residuals, rows, s, strict=True)]
    meat: Array = sum(np.outer(score, score) for score in scores)
    return meat


INFORMED = {
    "plain": (table(), PLAN),
    "weights and offset": (weighted(with_offset(table())), replace(PLAN, class_weights=(1.0, 3.0))),
    "gaps": (with_gaps(table()), FILLED),
    "classes": (of_classes(table()), OF_CLASSES),
}


@pytest.mark.parametrize(("rows", "plan"), INFORMED.values(), ids=INFORMED)
def test_for_a_sandwich_there_are_gradient_hessian_and_meat_at_the_evaluated_weights(rows: Table, plan: Plan) -> None:
    plan = replace(plan, inference="sandwich")
    model = MODEL if plan.sizes.n_outputs == 1 else MODEL_OF_CLASSES
    information = evaluation(rows, plan).information
    problem = prepare(rows, plan, HASH).train
    assert information is not None
    assert information.meat is not None
    np.testing.assert_array_equal(information.gradient, gradient_sum(problem, model.weights))
    np.testing.assert_array_equal(information.hessian, pack(hessian_sum(problem, model.weights)))
    np.testing.assert_allclose(unpack(information.meat), brute_meat(problem, model.weights), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("rows", "plan"), INFORMED.values(), ids=INFORMED)
def test_for_walds_standard_errors_the_meat_is_left_out(rows: Table, plan: Plan) -> None:
    wald = evaluation(rows, replace(plan, inference="wald")).information
    sandwich = evaluation(rows, replace(plan, inference="sandwich")).information
    assert wald is not None
    assert sandwich is not None
    assert plain(wald) == plain(replace(sandwich, meat=None))


def test_without_inference_there_is_no_information() -> None:
    assert evaluation(table()).information is None


def test_information_says_whether_rows_have_offsets() -> None:
    plan = replace(PLAN, inference="wald")
    told = [evaluation(rows, plan).information for rows in (table(), with_offset(table()))]
    assert [each is not None and each.has_offset for each in told] == [False, True]


def test_information_is_of_training_rows_only() -> None:
    plan = replace(PLAN, inference="sandwich")
    assert plain(evaluation(with_other_test_rows(table()), plan).information) == plain(
        evaluation(table(), plan).information
    )


# --- what is prepared ---------------------------------------------------------------------------


def test_nothing_that_holds_rows_shows_them() -> None:
    rows = weighted(with_offset(table()))
    shown = f"{rows!r} {prepare(rows, PLAN, HASH)!r} {NOTHING!r}"
    assert "30 training rows, 10 test rows, 3 features" in shown
    for value in rows.X.ravel():
        assert str(value)[:6] not in shown


def test_a_memory_shows_no_sums() -> None:
    plan = replace(PLAN, kind="curvature")
    _, memory = perform(work("train", plan), prepare(table(), plan, HASH))
    assert memory.quadratic is not None
    assert str(memory.quadratic.gradient[0])[:6] not in repr(memory)


def test_rows_are_put_into_the_columns_and_the_frame_of_the_plan() -> None:
    rows = table()
    prepared = prepare(permuted(rows, [2, 0, 1]), PLAN, HASH)
    assert prepared.plan_hash == HASH
    assert prepared.test is not None
    np.testing.assert_allclose(prepared.moments().mean, rows.dense[:30].mean(axis=0))
    np.testing.assert_array_equal(prepared.train.X, standardised(rows)[:30])
    np.testing.assert_array_equal(prepared.test.X, standardised(rows)[30:])
    np.testing.assert_array_equal(prepare(rows, RAW, HASH).train.X, rows.X[:30])
    assert (prepared.train.l2, prepared.train.n_classes) == (PLAN.l2, 2)
    assert prepared.train.sample_weight is prepared.train.offset is None


def test_missing_cells_are_filled_with_what_the_plan_says_also_in_test_rows() -> None:
    rows = with_gaps(table())
    prepared = prepare(rows, FILLED, HASH)
    X = np.where(np.isnan(rows.X), FILL, rows.X)
    assert np.isnan(rows.X[0, 0])
    assert X[0, 0] == 52.0
    assert prepared.test is not None
    np.testing.assert_array_equal(prepared.train.X, standardised(replace(rows, X=X))[:30])
    np.testing.assert_array_equal(prepared.test.X, standardised(replace(rows, X=X))[30:])
    observed = prepared.moments().observed
    assert observed is not None
    assert observed[0] < 30, "the moments are of what was observed"


def test_cells_are_filled_by_the_name_of_their_column() -> None:
    rows = with_gaps(table())
    expected = prepare(rows, FILLED, HASH)
    for order in ([2, 0, 1], [1, 0, 2]):
        assert prepare(permuted(rows, order), FILLED, HASH).train.X.tobytes() == expected.train.X.tobytes()


def test_without_a_gap_filling_changes_nothing() -> None:
    assert plain(update(table(), plan=FILLED).arrays) == plain(update(table()).arrays)


@pytest.mark.parametrize("plan", [PLAN, RAW, replace(PLAN, fill=FILL)])
@pytest.mark.parametrize("row", [0, -1], ids=["training row", "test row"])
def test_missing_cells_are_refused_unless_the_plan_fills_them(plan: Plan, row: int) -> None:
    X = table().X.copy()
    X[row, 1] = np.nan
    with pytest.raises(DataError, match="cells are missing, and the federation fills none: fill them, or let its"):
        prepare(replace(table(), X=X), plan, HASH)


def test_before_anybody_knows_what_to_fill_in_moments_can_be_told() -> None:
    told = update(with_gaps(table()), "moments", replace(RAW, missing="mean"))
    assert np.isfinite(told.loss)
    assert np.isfinite(told.arrays["mean"]).all()


def test_weights_of_rows_and_of_classes_are_multiplied_and_only_to_fit() -> None:
    rows = weighted(table())
    assert rows.sample_weight is not None
    prepared = prepare(rows, replace(PLAN, class_weights=(0.5, 4.0)), HASH)
    by_class = np.where(rows.y == 1.0, 4.0, 0.5)
    assert prepared.test is not None
    np.testing.assert_array_equal(prepared.train.sample_weight, (by_class * rows.sample_weight)[:30])
    np.testing.assert_array_equal(prepared.test.sample_weight, rows.sample_weight[30:])


def test_classes_may_be_weighed_where_rows_are_not() -> None:
    prepared = prepare(table(), replace(PLAN, class_weights=(0.5, 4.0)), HASH)
    np.testing.assert_array_equal(prepared.train.sample_weight, np.where(table().y == 1.0, 4.0, 0.5)[:30])
    assert prepared.test is not None
    assert prepared.test.sample_weight is None


def test_weights_of_classes_go_to_the_classes_in_their_order() -> None:
    rows = of_classes(table())
    prepared = prepare(rows, replace(OF_CLASSES, class_weights=(1.0, 20.0, 300.0)), HASH)
    expected = [{1.0: 1.0, 2.0: 20.0, 5.0: 300.0}[label] for label in rows.y[:30]]
    np.testing.assert_array_equal(prepared.train.sample_weight, expected)


def test_offsets_stay_with_their_rows() -> None:
    rows = with_offset(table())
    assert rows.offset is not None
    prepared = prepare(rows, PLAN, HASH)
    assert prepared.test is not None
    np.testing.assert_array_equal(prepared.train.offset, rows.offset[:30])
    np.testing.assert_array_equal(prepared.test.offset, rows.offset[30:])


@pytest.mark.parametrize("classes", [(0, 1), (1, 2), (3, 900), (2, 1), (0, 1, 2), (1, 2, 5), (5, 1, 2), (7, 5, 3, 1)])
def test_labels_become_the_places_of_their_classes(classes: tuple[int, ...]) -> None:
    """In whatever order the classes are listed: the first is the one that others are compared with."""
    rows = of_classes(table(), classes)
    prepared = prepare(rows, replace(PLAN, classes=classes), HASH)
    assert prepared.test is not None
    assert prepared.train.n_classes == prepared.test.n_classes == len(classes)
    np.testing.assert_array_equal(prepared.train.y, [classes.index(int(label)) for label in rows.y[:30]])
    np.testing.assert_array_equal(prepared.test.y, [classes.index(int(label)) for label in rows.y[30:]])


def test_what_is_fitted_does_not_depend_on_what_two_classes_are_called() -> None:
    rows = table()
    renamed = replace(rows, y=rows.y + 1.0, classes=(1, 2))
    assert plain(update(renamed, plan=replace(PLAN, classes=(1, 2)))) == plain(update(rows))
