"""Rows that are read anew in each pass: a participant makes of them what it makes of the same rows in memory."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from golden.examples import MODEL, PLAN, plain

from broker.messages import Array, Evaluation, Frame, GlobalModel, ModelUpdate, Plan
from broker.schema import Feature, Label, Schema, Split, model_columns, with_levels
from logistic import Moments
from logistic.loss import gradient_and_hessian_sum, log_loss_sum
from logistic.problem import CHUNK_ROWS, Chunk
from logistic.sparse import CSR
from participant.design import design
from participant.sources import Columns, Table
from participant.sources.csv import CSVSource
from participant.sources.reading import DataChanged, read
from participant.sources.table import Streamed
from participant.streaming import StreamedRows
from participant.training import perform, prepare
from participant.worker import Work

if TYPE_CHECKING:
    from collections.abc import Iterator

N = 9000
SCHEMA = Schema(
    (
        Feature("age", missing="mean", low=0.0, log1p=True),
        Feature("stage", kind="categorical"),
        Feature("sex", kind="binary", levels=("f", "m"), missing="indicator"),
        Feature("site", kind="categorical", levels=("a", "b", "c"), missing="mean"),
    ),
    Label("ill", above=0.0),
    Split(key="patient", test_share=0.3),
    sample_weight="w",
    offset="o",
)
HEADER = ("patient", "age", "stage", "sex", "site", "ill", "w", "o")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of several batches; three of its rows have a level that the others have not."""
    rng = np.random.default_rng(8)
    columns = [
        rng.integers(3000, size=N),
        np.where(rng.random(N) < 0.1, "", rng.integers(90, size=N).astype(str)),
        np.where(np.arange(N) % 3000 == 7, "11", rng.choice(["1", "2", "10"], size=N)),
        rng.choice(["f", "m", "?"], size=N),
        rng.choice(["a", "b", "c", "NA"], size=N),
        rng.integers(-1, 3, size=N),
        rng.integers(3, size=N),
        rng.normal(size=N).round(3),
    ]
    path: Path = tmp_path_factory.mktemp("site") / "site.csv"
    lines = [",".join(HEADER), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(lines))
    return path


def tables(file: Path, what: Columns | Schema = SCHEMA) -> tuple[Table, Table]:
    """Return the table as it is in memory, and as it is where it is read anew."""
    dense, streamed = (read(CSVSource(file), what, in_memory_bytes=size) for size in (2**30, 0))
    assert isinstance(streamed.X, Streamed)
    return dense, streamed


def plan_of(table: Table, **changes: Any) -> Plan:
    """Return a plan of this site alone, with what it would fill in and scale by."""
    schema = with_levels(SCHEMA, [table.told_levels(5)])
    features = model_columns(schema)
    raw = replace(PLAN, kind="gradient", features=features, feature_schema=schema, frame=None)
    moments = prepare(table, raw, "").moments()
    frame = Frame(mean=moments.mean, scale=np.sqrt(moments.m2 / moments.n) + 0.5)
    return replace(raw, fill=moments.mean, frame=frame, **changes)


def answered(table: Table, task: str, plan: Plan, *, threads: int = 1, **extra: Array) -> ModelUpdate | Evaluation:
    weights = np.linspace(-0.5, 0.5, len(plan.features) + 1)
    model: GlobalModel = replace(MODEL, weights=weights, extra=extra)
    who = {"participant": "hospital-1", "incarnation": "i", "sequence": 3}
    asked = Work(task=task, plan=plan, plan_hash="", model=model, **who)  # type: ignore[arg-type]
    message, _ = perform(asked, prepare(table, plan, "", threads=threads))
    return message


def assert_close(found: Any, expected: Any) -> None:
    """Compare two messages; sums of other parts are rounded otherwise."""
    if is_dataclass(expected) and not isinstance(expected, type):
        assert type(found) is type(expected)
        found, expected = asdict(found), asdict(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_close(found[key], value)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert found == expected


# --- the same rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("task", ["train", "moments", "evaluate", "rank", "path", "sides"])
@pytest.mark.parametrize("changes", [{}, {"class_weights": (1.0, 3.0), "inference": "sandwich", "l2": 0.1}])
def test_what_goes_out_is_what_would_go_out_of_the_same_rows_in_memory(
    file: Path, task: str, threads: int, changes: dict[str, Any]
) -> None:
    dense, streamed = tables(file)
    plan = plan_of(dense, **changes)
    n = len(plan.features) + 1
    edges = np.linspace(-2.0, 2.0, 9)
    extra = {"train_edges": edges, "test_edges": edges, "path_weights": np.linspace(-1.0, 1.0, 2 * n)}
    extra["directions"] = extra["path_weights"]
    asked = {"rank": ("train_edges", "test_edges"), "path": ("path_weights",), "sides": ("directions",)}.get(task, ())
    given = {name: extra[name] for name in asked}
    found = answered(streamed, task, plan, threads=threads, **given)
    assert_close(found, answered(dense, task, plan, **given))


@pytest.mark.parametrize("kind", ["curvature", "firth"])
def test_sums_of_every_kind_are_the_same(file: Path, kind: str) -> None:
    dense, streamed = tables(file)
    plan = plan_of(dense, kind=kind)
    assert_close(answered(streamed, "train", plan), answered(dense, "train", plan))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_problem_is_the_same_and_its_sums_do_not_depend_on_threads(file: Path, threads: int) -> None:
    dense, streamed = tables(file)
    plan = plan_of(dense)
    weights = np.linspace(-0.5, 0.5, len(plan.features) + 1)
    there, here = prepare(streamed, plan, "", threads=threads), prepare(dense, plan, "")
    alone = prepare(streamed, plan, "")
    for of_rows, of_array, by_one in (
        (there.train, here.train, alone.train),
        (there.test, here.test, alone.test),
    ):
        assert of_rows is not None
        assert of_array is not None
        assert by_one is not None
        assert (of_rows.n_rows, of_rows.n_features, of_rows.n_parameters) == (
            of_array.n_rows,
            of_array.n_features,
            of_array.n_parameters,
        )
        assert of_rows.n_samples == of_array.n_samples
        assert log_loss_sum(of_rows, weights) == log_loss_sum(by_one, weights)
        found, expected = gradient_and_hessian_sum(of_rows, weights), gradient_and_hessian_sum(of_array, weights)
        np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-10, atol=1e-8)
        np.testing.assert_allclose(found.hessian, expected.hessian, rtol=1e-10, atol=1e-8)


def test_moments_are_of_the_columns_as_they_came_whatever_the_plan_fills_and_scales(file: Path) -> None:
    dense, streamed = tables(file)
    plan = plan_of(dense)
    expected = Moments.of(
        design(dense, plan).raw(dense.dense[dense.is_train]),
        None if dense.sample_weight is None else dense.sample_weight[dense.is_train],
        allow_missing=True,
    )
    for table in (dense, streamed):
        moments = prepare(table, plan, "").moments()
        assert moments.n == pytest.approx(expected.n)
        np.testing.assert_allclose(moments.mean, expected.mean, rtol=1e-12)
        np.testing.assert_allclose(moments.m2, expected.m2, rtol=1e-10)
        assert moments.observed is not None
        np.testing.assert_array_equal(moments.observed, expected.observed)


def test_the_same_rows_in_other_columns_give_the_same_update(file: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.csv"
    turned.write_text("\n".join(",".join(line.split(",")[::-1]) for line in file.read_text().splitlines()))
    plan = plan_of(tables(file)[0])
    for table, other in zip(tables(file), tables(turned), strict=True):
        for task in ("train", "moments", "evaluate"):
            assert plain(answered(other, task, plan)) == plain(answered(table, task, plan))


def test_without_a_schema_or_weights_too(tmp_path: Path) -> None:
    file = tmp_path / "site.csv"
    file.write_text("bmi,age,y,Größe\n" + "1,2,0,3\n4,,1,6\n7,8,0,-9\n" * 2000)
    plan = replace(PLAN, kind="gradient", missing="mean", fill=np.array([5.0, 1.0, 2.0]))
    dense, streamed = tables(file, Columns("y", missing="mean"))
    for task in ("train", "moments", "evaluate"):
        assert_close(answered(streamed, task, plan), answered(dense, task, plan))
    assert prepare(streamed, plan, "").test is None


def test_sparse_rows_have_the_same_problem_and_moments_as_dense_ones() -> None:
    rng = np.random.default_rng(9)
    X = rng.normal(size=(60, 3)) * (rng.random((60, 3)) < 0.3)
    counts = np.concatenate([[0], np.cumsum((X != 0).sum(axis=1))])
    sparse = CSR(counts, np.nonzero(X)[1], X[X != 0], X.shape)
    y, is_train = (rng.random(60) < 0.5).astype(float), rng.random(60) < 0.7
    dense = Table(PLAN.features[::-1], X, y, is_train, sample_weight=rng.random(60))
    plan = replace(PLAN, kind="gradient")
    assert not replace(dense, X=sparse).has_missing
    for task in ("train", "moments", "evaluate"):
        assert_close(answered(replace(dense, X=sparse), task, plan), answered(dense, task, plan))


# --- how they are gone over ---------------------------------------------------------------------------


def rows_of(table: Table, plan: Plan) -> StreamedRows:
    assert isinstance(table.X, Streamed)
    found = prepare(table, plan, "").train.X
    assert isinstance(found, StreamedRows)
    return found


def test_chunks_have_the_rows_that_are_meant_in_their_order_and_are_small(file: Path) -> None:
    dense, streamed = tables(file)
    plan = plan_of(dense)
    rows, expected = rows_of(streamed, plan), prepare(dense, plan, "").train
    chunks: list[Chunk] = list(rows.over(lambda chunk: chunk))
    assert max(len(chunk.y) for chunk in chunks) <= CHUNK_ROWS
    np.testing.assert_array_equal(np.concatenate([chunk.dense() for chunk in chunks]), expected.X)
    np.testing.assert_array_equal(np.concatenate([chunk.y for chunk in chunks]), expected.y)
    np.testing.assert_array_equal(np.concatenate([chunk.sample_weight for chunk in chunks]), expected.sample_weight)
    np.testing.assert_array_equal(np.concatenate([chunk.offset for chunk in chunks]), expected.offset)


def test_a_batch_that_is_larger_than_a_chunk_is_cut() -> None:
    class Batch:
        X = np.arange(2.0 * CHUNK_ROWS + 5)[:, np.newaxis]

    n = len(Batch.X)
    streamed = Streamed((n, 1), [Batch()], "", np.zeros(1, dtype=np.intp))
    table = Table(("x",), streamed, np.zeros(n), np.ones(n, dtype=np.bool_))
    under = replace(PLAN, features=("x",), frame=None)
    rows = StreamedRows(streamed, design(table, under), table.is_train, table.y, None, None)
    found = list(rows.over(lambda chunk: chunk.dense()[:, 0]))
    assert [len(part) for part in found] == [CHUNK_ROWS, CHUNK_ROWS, 5]
    np.testing.assert_array_equal(np.concatenate(found), Batch.X[:, 0])
    assert (rows.n_rows, rows.n_features, rows.n_samples) == (n, 1, float(n))


def test_rows_that_are_others_by_now_end_a_pass(file: Path, tmp_path: Path) -> None:
    copy = tmp_path / "site.csv"
    copy.write_bytes(file.read_bytes())
    _, streamed = tables(copy)
    plan = plan_of(streamed)
    rows = rows_of(streamed, plan)

    def replaced() -> Iterator[int]:
        for part in rows.over(lambda chunk: len(chunk.y)):
            (tmp_path / "new.csv").write_bytes(file.read_bytes())
            (tmp_path / "new.csv").replace(copy)
            yield part

    with pytest.raises(DataChanged, match="has changed while it was read"):
        list(replaced())
    with pytest.raises(DataChanged, match="has changed since it was read"):
        answered(streamed, "train", plan)


def test_rows_that_are_read_anew_show_none(file: Path) -> None:
    _, streamed = tables(file)
    rows = rows_of(streamed, plan_of(streamed))
    assert "array" not in repr(rows)
    assert "array" not in repr(streamed.X)
