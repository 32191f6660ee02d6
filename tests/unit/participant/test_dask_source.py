"""Rows on a Dask cluster: the same sums as here, and what is said where they cannot be had."""

# ruff: noqa: S608 - the queries are the tests' own

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask
import duckdb
import numpy as np
import pytest
from distributed import LocalCluster
from golden.examples import MODEL, PLAN
from pydantic import ValidationError

from broker.messages import Evaluation, Frame, LocalWork, Plan
from broker.schema import Feature, Label, Schema, Split, model_columns, with_levels
from logistic.problem import Problem
from participant import clustered
from participant.comparison import labels_and_weights
from participant.errors import DataError
from participant.settings import ParticipantSettings
from participant.sources import Columns, Reading, Table
from participant.sources import dask as source
from participant.sources.dask import Cluster, ClusteredTable
from participant.sources.duckdb import DuckDBSource
from participant.sources.reading import DataChanged, read
from participant.training import Prepared, perform, prepare
from participant.worker import Work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Planted in a cell: in no sentence.
CANARY = "canary-7731"

SCHEMA = Schema(
    features=(
        Feature("age"),
        Feature("bmi", missing="mean"),
        Feature("town", "categorical", missing="indicator"),
        Feature("stage", "categorical", levels=("I", "II"), missing="mean"),
    ),
    label=Label("y"),
    split=Split("split"),
    sample_weight="counts",
    offset="known",
)
COLUMNS = Columns("y", "split")
TOWNS = (("Ghent", "Ulm"), ("Ulm", "Bonn", "Ghent"), ("Metz",))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """Give the address of a scheduler with two workers, which are threads of this process."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster.scheduler_address
        source._clients.pop(cluster.scheduler_address).close()


def write(path: Path, seed: int, n_rows: int, towns: tuple[str, ...] = ("Ghent",)) -> None:
    """Write a file of random rows, the first of which are for training."""
    rng = np.random.default_rng(seed)
    cells = [
        (
            age,
            None if rng.random() < 0.2 else bmi,
            None if rng.random() < 0.2 else towns[at % len(towns)],
            None if rng.random() < 0.1 else "I" * (1 + at % 2),
            int(rng.random() < 0.4),
            "train" if at < 0.7 * n_rows else "test",
            1.0 + at % 3,
            rng.normal(),
        )
        for at, (age, bmi) in enumerate(rng.normal([50.0, 27.0], [10.0, 4.0], size=(n_rows, 2)).tolist())
    ]
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE t (age DOUBLE, bmi DOUBLE, town VARCHAR, stage VARCHAR, y INT, split VARCHAR, "
            "counts DOUBLE, known DOUBLE)"
        )
        if cells:
            connection.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?, ?)", cells)
        connection.execute(f"COPY t TO '{path}' (FORMAT parquet)")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with four files; one of them has no rows."""
    folder = tmp_path_factory.mktemp("visits")
    for at, (n_rows, towns) in enumerate(zip((40, 25, 11), TOWNS, strict=True)):
        write(folder / f"{at}.parquet", at, n_rows, towns)
    write(folder / "9.parquet", 9, 0)
    return folder


def both(scheduler: str, data: Path, what: Columns | Schema = SCHEMA) -> tuple[ClusteredTable, Table]:
    """Return the table on the cluster, and the one that is here."""
    there = Reading(what, str(data), scheduler=scheduler).table()
    assert isinstance(there, ClusteredTable)
    return there, read(DuckDBSource((str(data),)), what)


def plan_of(table: Table, **changes: Any) -> Plan:
    """Return a plan with columns for all that ``table`` has, which are filled and standardised."""
    schema = with_levels(SCHEMA, [table.told_levels(1)])
    names = model_columns(schema)
    d = np.arange(len(names))
    frame = Frame(mean=0.5 + d / 10, scale=2.0 + d)
    return replace(PLAN, features=names, feature_schema=schema, frame=frame, missing="mean", fill=0.1 * d, **changes)


def answer(prepared: Prepared, plan: Plan, task: str = "train") -> dict[str, Any]:
    """Return the numbers of an answer."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=plan.sizes.parameters) / 10
    extra = {
        "train_edges": np.array([-1.0, 0.0, 1.0]),
        "test_edges": np.array([0.0]),
        "directions": weights,
        "path_weights": np.concatenate([weights, 2 * weights]),
    }
    model = replace(MODEL, weights=weights, extra=extra)
    work = Work(task, model, plan, "plan", "hospital-1", "i", 3)  # type: ignore[arg-type]
    message, _ = perform(work, prepared)
    if isinstance(message, Evaluation):
        assert message.information is not None
        assert message.test is not None
        assert message.information.meat is not None
        scores = {
            f"{name} {number}": getattr(of, number)
            for name, of in (("train", message.train), ("test", message.test))
            for number in ("n", "log_loss_sum", "brier_sum", "correct", "positives", "negatives", "auc")
        }
        return {**scores, "hessian": message.information.hessian, "meat": message.information.meat}
    return {**message.arrays, "n": message.n_samples, "loss": message.loss}


def assert_alike(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare numbers by their names, to rounding."""
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        if numbers is None:
            assert found[name] is None, name
        else:
            np.testing.assert_allclose(found[name], numbers, rtol=1e-12, atol=1e-12, err_msg=name)


def said_of(reading: Reading) -> str:
    """Return the sentence in which ``reading`` is refused, which is one line without a planted value."""
    with pytest.raises(DataError) as raised:
        reading.table()
    said = str(raised.value)
    assert "\n" not in said
    assert "canary" not in said
    assert "7731" not in said
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"
    return said


# --- what is told of a table ------------------------------------------------------------------------


def test_a_table_on_a_cluster_tells_what_one_here_does(scheduler: str, files: Path) -> None:
    there, here = both(scheduler, files)
    assert repr(there) == repr(here)
    assert (there.n_train, there.n_test, there.weight) == (here.n_train, here.n_test, here.weight)
    assert (there.features, there.classes, there.schema) == (here.features, here.classes, here.schema)
    assert (there.levels, there.level_counts) == (here.levels, here.level_counts)
    assert there.told_levels(3) == here.told_levels(3)
    np.testing.assert_array_equal(there.n_missing, here.n_missing)


def test_no_row_is_here(scheduler: str, files: Path) -> None:
    there, _ = both(scheduler, files)
    assert len(there.y) == len(there.is_train) == 0
    assert list(there.X.rows) == []  # type: ignore[union-attr]
    partition = there.partitions[0].result()
    assert repr(partition).startswith("<participant.sources.dask.Partition object")
    assert sys.getsizeof(partition) > 40 * (4 + 3) * 8
    with pytest.raises(TypeError, match="rows stay where they are"):
        pickle.dumps(there)


def test_a_fingerprint_is_of_the_rows_and_not_of_the_files(scheduler: str, files: Path, tmp_path: Path) -> None:
    for file in files.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    first, same = both(scheduler, files)[0], both(scheduler, tmp_path)[0]
    assert first.fingerprint("salt") == same.fingerprint("salt") != first.fingerprint("other")
    write(tmp_path / "1.parquet", 77, 25, TOWNS[1])
    assert both(scheduler, tmp_path)[0].fingerprint("salt") != first.fingerprint("salt")


def test_the_signature_is_of_the_files(scheduler: str, files: Path) -> None:
    assert Reading(SCHEMA, str(files), scheduler=scheduler).signature() == Reading(SCHEMA, str(files)).signature()


# --- the same sums ----------------------------------------------------------------------------------

TASKS = {
    "curvature": ("train", {"kind": "curvature"}),
    "gradient": ("train", {"kind": "gradient"}),
    "gradient descent": ("train", {"work": LocalWork("gradient-descent", 3, 0.25, None)}),
    "evaluation": ("evaluate", {"inference": "sandwich"}),
    "moments": ("moments", {}),
    "ranks": ("rank", {}),
    "sides": ("sides", {}),
    "path": ("path", {}),
    "class weights": ("train", {"kind": "curvature", "class_weights": (1.0, 2.5)}),
    "classes in another order": ("train", {"kind": "curvature", "classes": (1, 0), "class_weights": (1.0, 2.5)}),
}


@pytest.mark.parametrize(("task", "changes"), TASKS.values(), ids=TASKS)
def test_sums_are_those_of_rows_that_are_here(
    scheduler: str, files: Path, monkeypatch: pytest.MonkeyPatch, task: str, changes: dict[str, Any]
) -> None:
    monkeypatch.setattr(clustered, "CHUNK_ROWS", 7)
    monkeypatch.setattr(clustered, "CHUNK_BYTES", 0)
    there, here = both(scheduler, files)
    plan = plan_of(here, **changes)
    found, expected = (answer(prepare(table, plan, "plan"), plan, task) for table in (there, here))
    assert_alike(found, expected)


@pytest.fixture(scope="module")
def numbers(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder of files of numbers alone, three classes and no weights."""
    folder = tmp_path_factory.mktemp("numbers")
    for at in range(3):
        duckdb.sql(
            f"COPY (SELECT age, coalesce(bmi, 27) AS bmi, (y + (age > 50)::INT) AS grade, y, split "
            f"FROM '{files}/{at}.parquet') TO '{folder}/{at}.parquet' (FORMAT parquet)"
        )
    return folder


@pytest.mark.parametrize("classes", [(0, 1), (0, 1, 2)])
@pytest.mark.parametrize("task", ["train", "evaluate", "moments"])
def test_without_a_schema_sums_are_those_of_rows_that_are_here(
    scheduler: str, numbers: Path, classes: tuple[int, ...], task: str
) -> None:
    label, other = ("y", "grade") if len(classes) == 2 else ("grade", "y")
    what = Columns(label, "split", classes=classes)
    there, here = both(scheduler, numbers, what)
    assert there.weight is None
    assert there.schema is None
    frame = Frame(mean=np.array([50.0, 27.0, 0.5]), scale=np.array([10.0, 4.0, 0.5]))
    changes: dict[str, Any] = {"features": ("age", "bmi", other), "classes": classes, "frame": frame}
    plan = replace(PLAN, **changes, kind="curvature" if len(classes) == 2 else "gradient", inference="sandwich")
    found, expected = (answer(prepare(table, plan, "plan"), plan, task) for table in (there, here))
    assert_alike(found, expected)


def test_rows_tell_of_themselves_what_rows_here_do(scheduler: str, files: Path) -> None:
    there, here = both(scheduler, files)
    plan = plan_of(here)
    found, expected = (prepare(table, plan, "plan").train for table in (there, here))
    assert (found.n_rows, found.n_features, found.n_samples) == (
        expected.n_rows,
        expected.n_features,
        expected.n_samples,
    )
    assert found.is_weighted
    assert found.has_offset
    assert not found.without_offset().has_offset
    np.testing.assert_array_equal(labels_and_weights(found)[0], labels_and_weights(expected)[0])
    np.testing.assert_array_equal(labels_and_weights(found)[1], labels_and_weights(expected)[1])


def test_sixty_partitions_of_two_workers_are_gone_over_in_their_order(scheduler: str) -> None:
    assert list(Cluster(scheduler).in_order(int, [(at,) for at in range(60)])) == list(range(60))


def test_without_test_rows_there_is_nothing_to_judge(scheduler: str, files: Path) -> None:
    there, here = both(scheduler, files, replace(SCHEMA, split=Split()))
    plan = plan_of(here)
    prepared = prepare(there, plan, "plan")
    assert prepared.test is None
    assert isinstance(prepared.train, Problem)
    assert prepared.train.n_rows == here.n_train


def test_what_the_caller_allows_of_numbers_is_allowed_on_the_workers(scheduler: str, files: Path) -> None:
    there, here = both(scheduler, files)
    problem = prepare(there, plan_of(here), "plan").train
    with np.errstate(over="ignore"):
        assert next(problem.over(_overflown)) == np.inf
    with np.errstate(over="raise"), pytest.raises(DataError, match="FloatingPointError"):
        list(problem.over(_overflown))


def _overflown(chunk: Any) -> float:
    return float(np.max(np.full(len(chunk.y), 1e300) * 1e300))


# --- what is refused --------------------------------------------------------------------------------


def test_rows_that_have_changed_when_a_worker_reads_them_anew_are_told(
    scheduler: str, files: Path, tmp_path: Path
) -> None:
    (tmp_path / "0.parquet").write_bytes((files / "0.parquet").read_bytes())
    there, here = both(scheduler, tmp_path)
    write(tmp_path / "0.parquet", 5, 40, TOWNS[0])
    lost = replace(there, partitions=both(scheduler, tmp_path)[0].partitions)
    with pytest.raises(DataChanged, match="has not the rows that it had"):
        list(prepare(lost, plan_of(here), "plan").train.over(len))


def defect(folder: Path, query: str) -> str:
    duckdb.sql(f"COPY ({query}) TO '{folder}/2.parquet' (FORMAT parquet)")
    return str(folder)


GOOD = "SELECT 1.5 AS age, 0 AS y, 'train' AS split, 1.0 AS counts"
WEIGHTED = Columns("y", "split", "counts")
DEFECTS = {
    "no such label": (GOOD, Columns("outcome"), "has no column 'outcome', which was named as the label"),
    "no such feature": (GOOD, SCHEMA, "has no column 'bmi', which the schema names; its columns are age, y"),
    "a cell": (f"{GOOD} UNION ALL SELECT 2, 0, '{CANARY}', 1", WEIGHTED, "2.parquet, row 2, column 'split': the cell"),
    "no rows": (f"{GOOD} LIMIT 0", WEIGHTED, "has columns and no rows: it needs at least one training row"),
    "no training rows": (GOOD.replace("train", "test"), WEIGHTED, "no row is for training; check the split"),
    "no weight": (GOOD.replace("1.0", "0.0"), WEIGHTED, "the sample weights of all training rows are 0"),
    "no weight of test rows": (
        f"{GOOD} UNION ALL SELECT 2, 0, 'test', 0",
        WEIGHTED,
        "the sample weights of all test rows are 0",
    ),
}


@pytest.mark.parametrize(("query", "what", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_told_in_one_sentence(
    scheduler: str, tmp_path: Path, query: str, what: Columns | Schema, sentence: str
) -> None:
    data = defect(tmp_path, query)
    said = said_of(Reading(what, data, scheduler=scheduler))
    assert said.startswith(data)
    assert sentence in said


def test_more_levels_than_a_feature_may_have_are_told_of_all_files_together(scheduler: str, tmp_path: Path) -> None:
    for at in range(2):
        rows = f"SELECT 'c' || ({at} * 600 + i) AS town, i % 2 AS y FROM range(600) AS t(i)"
        duckdb.sql(f"COPY ({rows}) TO '{tmp_path}/{at}.parquet' (FORMAT parquet)")
    schema = Schema((Feature("town", "categorical"),), Label("y"), Split())
    said = said_of(Reading(schema, str(tmp_path), scheduler=scheduler))
    assert "column 'town': the files have more than 1000 different levels" in said


def test_other_files_than_parquet_are_refused(scheduler: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,y\n1,0\n")
    assert "is not a .parquet file" in said_of(Reading(COLUMNS, str(tmp_path / "a.csv"), scheduler=scheduler))


def test_files_that_are_not_there_are_told(scheduler: str, tmp_path: Path) -> None:
    assert said_of(Reading(COLUMNS, f"{tmp_path}/*.parquet", scheduler=scheduler)).endswith("matches no file")


def test_a_query_is_refused() -> None:
    reading = Reading(COLUMNS, "a.parquet", query="SELECT 1", scheduler="tcp://127.0.0.1:1")
    assert "leave the query and database out" in said_of(reading)


@pytest.mark.parametrize("address", ["nonsense"])
def test_a_scheduler_that_is_not_there_is_told(address: str) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "200ms"}):
        said = said_of(Reading(COLUMNS, "a.parquet", scheduler=address))
    assert said.startswith(f"the Dask scheduler at {address} cannot be reached (")
    assert said.endswith("); check the address, and that it runs")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert said_of(Reading(COLUMNS, "a.parquet", scheduler="tcp://127.0.0.1:1")).endswith("pip install 'fedmq[dask]'")


def test_the_setting_is_how_rows_are_read() -> None:
    given = {"federation": "heart", "name": "h1", "data": "a.parquet", "scheduler": "tcp://10.0.0.7:8786"}
    assert ParticipantSettings(**given).rows().scheduler == "tcp://10.0.0.7:8786"
    for other in ({"query": "SELECT * FROM data"}, {"data": "", "database": "sqlite://", "query": "SELECT 1"}):
        with pytest.raises(ValidationError, match="scheduler: a Dask cluster reads"):
            ParticipantSettings(**{**given, **other})
