"""From a source to a table: batch by batch, in memory or read anew in each pass, as long as the rows stay the same."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.schema import OTHER, Feature, Label, Schema, Split
from participant.errors import DataError
from participant.sources import Columns, Reading, Table
from participant.sources.csv import CSVSource
from participant.sources.reading import Batch, DataChanged, read, schema_columns
from participant.sources.table import Streamed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from participant.sources.coding import Cells


@dataclass
class Rows:
    """A source in memory, of which ``batch_rows`` come at a time."""

    cells: Mapping[str, Cells]
    batch_rows: int = 3
    signature_: Any = None
    place: str = "the query"
    row_word: str = "row"
    decimal: str = "."
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def names(self) -> Sequence[str]:
        return list(self.cells)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        self.asked.append(tuple(names))
        n_rows = len(next(iter(self.cells.values())))
        for start in range(0, n_rows, self.batch_rows):
            stop = min(start + self.batch_rows, n_rows)
            cells = {name: self.cells[name][start:stop] for name in names}
            yield Batch(cells, stop - start, range(start + 1, stop + 1))

    def signature(self) -> Any:
        return self.signature_


SCHEMA = Schema(
    (
        Feature("age", missing="mean"),
        Feature("stage", kind="categorical"),
        Feature("site", kind="categorical", levels=("a", "b", "c"), missing="indicator"),
    ),
    Label("ill", {"no": 0, "yes": 1}),
    Split("part"),
    sample_weight="w",
    offset="o",
)
CELLS: dict[str, Cells] = {
    "note": ["canary"] * 7,
    "site": ["b", "", "a", "b", "b", "a", ""],
    "age": ["63", "45", "", "50", "71", "33", "60"],
    "stage": ["2", "1", "2", "2.0", "10", "x", "2"],
    "ill": ["yes", "no", "no", "yes", "no", "no", "yes"],
    "part": ["train", "train", "train", "train", "train", "test", "train"],
    "w": ["1", "2", "1", "1", "0", "1", "1"],
    "o": ["0", "0.5", "0", "0", "-1", "0", "0"],
}


def with_cells(**changes: Cells) -> dict[str, Cells]:
    return {**CELLS, **changes}


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 7, 100])
def test_a_table_is_what_the_schema_says_whatever_comes_at_a_time(batch_rows: int) -> None:
    table = read(Rows(CELLS, batch_rows), SCHEMA)
    nan = np.nan
    assert table.features == ("age", "stage", "site")
    np.testing.assert_array_equal(
        table.dense, [[63, 0, 1], [45, 1, nan], [nan, 0, 0], [50, 0, 1], [71, 2, 1], [33, 3, 0], [60, 0, nan]]
    )
    assert table.dense.flags.c_contiguous
    assert table.y.tolist() == [1, 0, 0, 1, 0, 0, 1]
    assert table.is_train.tolist() == [True] * 5 + [False, True]
    assert table.sample_weight is not None
    assert table.offset is not None
    assert (table.sample_weight[1], table.offset[1]) == (2.0, 0.5)
    assert table.levels == {"stage": ("2", "1", "10", "x"), "site": ("a", "b", "c")}
    assert table.level_counts == {"stage": (4, 1, 1, 0), "site": (1, 3, 0)}
    assert table.n_missing.tolist() == [1, 0, 2]
    assert (table.schema, table.classes) == (SCHEMA, (0, 1))


def test_only_the_columns_of_the_schema_are_read_each_once() -> None:
    rows = Rows(CELLS)
    read(rows, SCHEMA)
    assert rows.asked == [("age", "stage", "site", "ill", "part", "w", "o")]
    by_key = replace(SCHEMA, split=Split(key="age", test_share=0.5), offset="")
    assert schema_columns(by_key) == ("age", "stage", "site", "ill", "w")


def test_levels_with_few_training_rows_are_not_told() -> None:
    """Test rows do not make a level common, and where all are told there are no others."""
    table = read(Rows(CELLS), SCHEMA)
    assert table.told_levels(1) == {"stage": ("1", "10", "2", OTHER)}
    assert table.told_levels(4) == {"stage": ("2", OTHER)}
    assert table.told_levels(5) == {"stage": (OTHER,)}
    common = read(Rows(with_cells(stage=["2"] * 7)), SCHEMA)
    assert common.told_levels(5) == {"stage": ("2",)}
    assert replace(common, schema=None).told_levels(5) == {}


def test_a_level_that_is_filled_in_counts_as_one_that_was_there() -> None:
    feature = Feature("site", kind="categorical", missing="value", fill_level="none")
    table = read(Rows(CELLS), Schema((feature,), SCHEMA.label))
    assert table.levels["site"] == ("b", "none", "a")
    assert table.level_counts["site"] == (3, 2, 2)
    assert not table.has_missing


TYPED: dict[str, dict[str, Cells]] = {
    "floats with NaN": {
        "age": np.array([63, 45, np.nan, 50, 71, 33, 60]),
        "w": np.array([1.0, 2, 1, 1, 0, 1, 1]),
        "o": np.array([0, 0.5, 0, 0, -1, 0, 0]),
    },
    "whole numbers": {"w": np.array([1, 2, 1, 1, 0, 1, 1]), "age": [63, 45, None, 50, 71, 33, 60]},
    "mixed": {"stage": [2, "1", 2.0, 2, 10, "x", "2"], "site": ["b", None, "a", "b", "b", "a", float("nan")]},
}


@pytest.mark.parametrize("changes", TYPED.values(), ids=TYPED)
@pytest.mark.parametrize("batch_rows", [2, 100])
def test_columns_with_types_are_the_same_table_as_text(changes: dict[str, Cells], batch_rows: int) -> None:
    typed, text = read(Rows(with_cells(**changes), batch_rows), SCHEMA), read(Rows(CELLS), SCHEMA)
    assert typed.fingerprint("") == text.fingerprint("")
    assert (typed.levels, typed.level_counts) == (text.levels, text.level_counts)


def test_truth_values_are_the_same_table_as_text() -> None:
    schema = Schema((Feature("x", kind="binary"), Feature("z")), Label("y"))
    true = np.array([True, False, True])
    text = read(Rows({"x": ["true", "False", "1"], "z": ["1", "0", "1"], "y": ["1", "0", "1"]}), schema)
    assert read(Rows({"x": true, "z": true, "y": true}), schema).fingerprint("") == text.fingerprint("")


# --- what is refused ----------------------------------------------------------------------------------

DEFECTS: dict[str, tuple[dict[str, Cells], Any, str]] = {
    "number": (
        with_cells(age=["63", "45", "", "50", "canary", "1", "2"]),
        SCHEMA,
        ", row 5, column 'age': the cell is not a number; every feature needs a number in every row",
    ),
    "no column": ({"age": ["1"]}, SCHEMA, " has no column 'stage', which the schema names; its columns are age"),
    "no name": ({"": ["1"]}, SCHEMA, ": column 1 has no name; give it one, or remove it"),
    "no rows": ({name: [] for name in CELLS}, SCHEMA, " has a header and no rows: it needs at least one training row"),
    "no training rows": (
        with_cells(part=["test"] * 7),
        SCHEMA,
        ": no row is marked 'train' in column 'part'; it needs at least one",
    ),
    "no training keys": (
        with_cells(age=["1"] * 7),
        replace(SCHEMA, split=Split(key="age", test_share=1.0 - 1e-9)),
        ": no row is for training; change the seed or the test_share of the split",
    ),
    "no weight": (
        with_cells(w=["0", "0", "0", "0", "0", "1", "0"]),
        SCHEMA,
        ": the sample weights of all training rows are 0; at least one row must count",
    ),
    "no label": (CELLS, Columns("y"), " has no column 'y', which was named as the label; its columns are note, site"),
    "no features": ({"y": ["1"]}, Columns("y"), " has no feature columns beside 'y'"),
}


@pytest.mark.parametrize(("cells", "what", "sentence"), DEFECTS.values(), ids=DEFECTS)
def test_what_cannot_be_used_is_named_by_its_place(cells: dict[str, Cells], what: Any, sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        read(Rows(cells), what)
    assert str(raised.value).startswith(f"the query{sentence}")
    assert "canary" not in str(raised.value)


# --- rows that are read anew --------------------------------------------------------------------------


def streamed(rows: Rows, what: Columns | Schema = SCHEMA) -> Table:
    table = read(rows, what, in_memory_bytes=0)
    assert isinstance(table.X, Streamed)
    return table


def all_rows(table: Table) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert isinstance(table.X, Streamed)
    return np.concatenate([coded.X for coded in table.X.rows])


def test_rows_that_do_not_stay_in_memory_are_the_same_in_each_pass() -> None:
    table, dense = streamed(Rows(CELLS)), read(Rows(CELLS), SCHEMA)
    assert isinstance(table.X, Streamed)
    assert table.X.shape == dense.dense.shape
    for _ in range(2):
        np.testing.assert_array_equal(all_rows(table), dense.dense)
    for name in ("y", "is_train", "sample_weight", "offset", "n_missing"):
        np.testing.assert_array_equal(getattr(table, name), getattr(dense, name))
    assert (table.levels, table.level_counts) == (dense.levels, dense.level_counts)
    assert repr(table) == repr(dense)


def test_a_table_stays_in_memory_as_long_as_it_fits() -> None:
    n_bytes = 7 * 3 * 8
    assert isinstance(read(Rows(CELLS), SCHEMA, in_memory_bytes=n_bytes).X, np.ndarray)
    assert isinstance(read(Rows(CELLS), SCHEMA, in_memory_bytes=n_bytes - 1).X, Streamed)


@pytest.mark.parametrize(
    "changes",
    [
        {"age": ["63", "45", "", "50", "71", "33", "61"]},
        {"stage": ["2", "1", "2", "2", "11", "x", "2"]},
        {"site": ["b", "", "a", "b", "b", "a", "a"]},
        {"ill": ["yes", "no", "no", "yes", "no", "no", "no"]},
        {"part": ["train"] * 7},
        {"w": ["1"] * 7},
        {"o": ["0"] * 7},
    ],
)
def test_the_fingerprint_changes_with_any_cell_also_of_rows_that_are_read_anew(changes: dict[str, Cells]) -> None:
    for in_memory_bytes in (0, 10**6):
        before, again, after = (
            read(Rows(cells), SCHEMA, in_memory_bytes=in_memory_bytes)
            for cells in (CELLS, CELLS, with_cells(**changes))
        )
        assert before.fingerprint("salt") == again.fingerprint("salt") != after.fingerprint("salt")
        assert before.fingerprint("salt") != before.fingerprint("other")


OTHER_ROWS: dict[str, dict[str, Cells]] = {
    "another label": with_cells(ill=["yes", "no", "no", "yes", "no", "no", "no"]),
    "another split": with_cells(part=["train"] * 7),
    "another order": {name: cells[::-1] for name, cells in CELLS.items()},
    "fewer rows": {name: cells[:6] for name, cells in CELLS.items()},
    "more rows": {name: [*cells, *cells[:4]] for name, cells in CELLS.items()},
    "another first row of a batch": with_cells(age=["63", "45", "", "51", "71", "33", "60"]),
    "a level that was not there": with_cells(stage=["2", "new", "2", "2.0", "10", "x", "2"]),
}


@pytest.mark.parametrize("cells", OTHER_ROWS.values(), ids=OTHER_ROWS)
def test_other_rows_are_noticed_where_no_signature_tells(cells: dict[str, Cells]) -> None:
    rows = Rows(CELLS)
    table = streamed(rows)
    all_rows(table)
    rows.cells = cells
    with pytest.raises(DataChanged, match=r"^the query has not the rows that it had, .* a query needs an ORDER BY$"):
        all_rows(table)


def test_a_pass_that_is_broken_off_leaves_the_next_one_whole() -> None:
    table, rows = streamed(Rows(CELLS)), 0
    assert isinstance(table.X, Streamed)
    for coded in table.X.rows:
        rows += len(coded.X)
        break
    assert rows == 3
    assert len(all_rows(table)) == 7


def test_rows_that_change_between_two_passes_are_noticed_before_one_is_read() -> None:
    rows = Rows(CELLS, signature_=1)
    table = streamed(rows)
    rows.signature_ = 2
    with pytest.raises(DataChanged, match=r"^the query has changed since it was read; its rows are read anew$"):
        all_rows(table)
    assert len(rows.asked) == 1


def test_rows_that_change_during_a_pass_are_noticed_at_its_end() -> None:
    rows = Rows(CELLS, signature_=1)
    table = streamed(rows)
    assert isinstance(table.X, Streamed)
    passing = iter(table.X.rows)
    next(passing)
    rows.signature_ = 2
    with pytest.raises(DataChanged, match=r"^the query has changed while it was read; its rows are read anew$"):
        list(passing)


def test_rows_that_change_while_they_are_first_read_are_refused() -> None:
    @dataclass
    class Restless(Rows):
        def signature(self) -> Any:
            self.signature_ = (self.signature_ or 0) + 1
            return self.signature_

    with pytest.raises(DataChanged, match="has changed while it was read"):
        read(Restless(CELLS), SCHEMA)


def test_a_file_that_another_replaces_is_noticed(tmp_path: Path) -> None:
    file, other = tmp_path / "site.csv", tmp_path / "new.csv"
    file.write_text("x,y\n" + "1,0\n2,1\n" * 5000)
    table = read(CSVSource(file, label="y"), Columns("y"), in_memory_bytes=0)
    assert isinstance(table.X, Streamed)
    assert len(all_rows(table)) == 10_000
    passing = iter(table.X.rows)
    next(passing)
    other.write_text(file.read_text())
    os.replace(other, file)  # noqa: PTH105 - as docs/data.md says: under another name, then renamed
    with pytest.raises(DataChanged, match="has changed while it was read"):
        list(passing)
    with pytest.raises(DataChanged, match="has changed since it was read"):
        all_rows(table)


# --- what is read -------------------------------------------------------------------------------------

TEXT = "x,y\n1,0\n2,1\n"
PLAIN = Schema((Feature("x"),), Label("y"))


def test_a_reading_names_the_columns_and_gives_what_can_be_read_batch_by_batch(tmp_path: Path) -> None:
    file, arrays = tmp_path / "a.csv", tmp_path / "a.npz"
    file.write_text(TEXT)
    np.savez(arrays, X=np.array([[1.0], [2.0]]), y=np.array([0.0, 1.0]), feature_names=np.array(["x"]))
    for data in (file, arrays):
        for what in (Columns("y"), PLAIN):
            reading = Reading(what, str(data))
            assert set(reading.names()) == {"x", "y"}
            assert reading.source().place == str(data)
            assert reading.table().dense.tolist() == [[1.0], [2.0]]
            assert reading.signature() == reading.signature() is not None


def test_the_signature_of_arrays_changes_with_their_file(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    for what in (Columns("y"), PLAIN):
        np.savez(file, X=np.array([[1.0], [2.0]]), y=np.array([0.0, 1.0]))
        before = Reading(what, str(file)).signature()
        np.savez(file, X=np.array([[1.0], [2.0], [3.0]]), y=np.array([0.0, 1.0, 0.0]))
        assert Reading(what, str(file)).signature() != before
    file.unlink()
    with pytest.raises(DataError, match=r"a\.npz cannot be read: No such file or directory"):
        Reading(Columns("y"), str(file)).signature()


def test_a_query_is_put_to_files_or_to_a_database_and_no_password_is_shown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(TEXT)
    query = "SELECT CAST(x AS DOUBLE) * 2 AS x, y FROM data ORDER BY x"
    assert Reading(PLAIN, str(tmp_path / "a.csv"), query=query).table().dense.tolist() == [[2.0], [4.0]]
    (tmp_path / "canary-7731.db").touch()
    url = f"sqlite:///{tmp_path / 'canary-7731.db'}"
    reading = Reading(PLAIN, query="SELECT 3 AS x, 1 AS y", url=url, watermark="SELECT 7")
    assert reading.table().dense.tolist() == [[3.0]]
    assert reading.signature() is not None
    assert "canary" not in repr(reading)
