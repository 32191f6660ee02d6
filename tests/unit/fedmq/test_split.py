"""Cutting a table into sites: every row goes to exactly one, as it was, and all files are written or none."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import click
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq import split_files
from fedmq.errors import CommandError
from fedmq.split import Column, SplitRequest, at_random, by_value, run_split
from participant.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Planted in cells: in no sentence.
CANARY = "canary-7731"

ROWS = "age,ward,y\n63,north,1\n45,south,0\n50,north,0\n38,east 2,1\n"


def cut(folder: Path, content: str | bytes = ROWS, **options: Any) -> dict[str, bytes]:
    """Return the sites' files, by their names, of a CSV file with this content."""
    file = folder / "table.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return cut_file(file, folder / "sites", **options)


def cut_file(file: Path, out: Path, **options: Any) -> dict[str, bytes]:
    run_split(SplitRequest(file, out, **options))
    return {each.name: each.read_bytes() for each in sorted(out.iterdir())}


def column(cells: Sequence[str]) -> Column:
    values = tuple(sorted(set(cells)))
    return Column(values, np.array([values.index(cell) for cell in cells], dtype=np.intp))


# --- by the values of a column -----------------------------------------------------------------------


def test_each_value_of_a_column_is_a_site_without_that_column(tmp_path: Path) -> None:
    assert cut(tmp_path, by="ward") == {
        "site-east-2.csv": b"age,y\n38,1\n",
        "site-north.csv": b"age,y\n63,1\n50,0\n",
        "site-south.csv": b"age,y\n45,0\n",
    }


def test_the_column_stays_when_it_is_kept(tmp_path: Path) -> None:
    assert cut(tmp_path, by="ward", keep=True)["site-north.csv"] == b"age,ward,y\n63,north,1\n50,north,0\n"


def test_spaces_around_a_value_and_zeros_behind_a_whole_number_make_no_other_site(tmp_path: Path) -> None:
    made = cut(tmp_path, "ward,a\n1,0\n 1.0 ,1\n2.,2\n2.5,3\n", by="ward")
    assert made == {"site-1.csv": b"a\n0\n1\n", "site-2.csv": b"a\n2\n", "site-2-5.csv": b"a\n3\n"}


def test_the_rows_of_each_site_and_the_shares_of_its_labels_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(tmp_path, by="ward")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["site", "rows", "y", "=", "0", "y", "=", "1"]
    assert lines[1:4] == [
        ["east-2", "1", "0.000", "1.000"],
        ["north", "2", "0.500", "0.500"],
        ["south", "1", "1.000", "0.000"],
    ]
    assert " ".join(lines[-1]).startswith("4 rows, each at one of 3 sites, are in")


@pytest.mark.parametrize(
    ("content", "label"),
    [
        (ROWS.replace("y\n", "event\n"), None),
        ("ward,y\n" + "".join(f"a,{number}\n" for number in range(13)), None),
    ],
    ids=["no label", "a label of many values"],
)
def test_shares_are_printed_of_a_few_labels_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, label: str | None
) -> None:
    cut(tmp_path, content, by="ward", label=label)
    assert capsys.readouterr().out.splitlines()[0].split() == ["site", "rows"]


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (["a", f"{CANARY} 1", f"{CANARY}/1"], "column 'ward': two of its values give sites of one name"),
        (["a", CANARY, CANARY.upper()], "column 'ward': two of its values give sites of one name"),
        (["a", "b", ""], "row 3, column 'ward': the cell cannot name a site"),
        (["a", "--", "b"], "row 2, column 'ward': the cell cannot name a site"),
        (["a", "b", "b", CANARY * 6], "row 4, column 'ward': the cell cannot name a site"),
        (["all", "b"], "row 1, column 'ward': the cell cannot name a site: .* is none of aggregator, all"),
    ],
    ids=["one name", "one name but for capitals", "empty", "no letter", "too long", "reserved"],
)
def test_values_that_cannot_name_sites_are_refused_and_not_shown(cells: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence) as told:
        by_value(Path("t.csv"), "ward", column(cells))
    assert CANARY not in str(told.value)


def test_other_characters_become_hyphens() -> None:
    made = by_value(Path("t.csv"), "ward", column(["St. Mary's", "(Süd)", "a_b-c"]))
    assert sorted(made.names) == ["S-d-", "St--Mary-s", "a_b-c"]


def test_a_column_with_a_value_in_nearly_every_row_is_no_site(tmp_path: Path) -> None:
    content = "age,y\n" + "".join(f"{number},1\n" for number in range(1001))
    with pytest.raises(CommandError, match="column 'age' has 1001 different values, at most 1000"):
        cut(tmp_path, content, by="age")


def test_a_table_of_that_column_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="has no column beside 'ward': with --keep it stays"):
        cut(tmp_path, "ward\na\nb\n", by="ward")
    assert len(cut(tmp_path, "ward\na\nb\n", by="ward", keep=True)) == 2


# --- at random ---------------------------------------------------------------------------------------


def test_sites_have_one_row_more_or_less_and_names_that_sort(tmp_path: Path) -> None:
    content = "a\n" + "".join(f"{number}\n" for number in range(32))
    made = cut(tmp_path, content, sites=10)
    assert list(made) == [f"site-{number:02}.csv" for number in range(1, 11)]
    assert sorted(text.count(b"\n") - 1 for text in made.values()) == [3] * 8 + [4] * 2


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    sites=st.integers(1, 12),
    alpha=st.none() | st.floats(1e-300, 1e300),
    seed=st.integers(0, 100),
)
def test_every_row_goes_to_exactly_one_site_and_none_is_empty(
    labels: list[int], sites: int, alpha: float | None, seed: int
) -> None:
    given_labels = column([str(label) for label in labels]).codes if alpha is not None else None

    def made() -> split_files.Cut:
        return at_random(Path("t.csv"), len(labels), sites=sites, labels=given_labels, alpha=alpha, seed=seed)

    if len(labels) < sites:
        with pytest.raises(CommandError, match=f"not enough for {sites} sites"):
            made()
    else:
        counts = np.bincount(made().site_of, minlength=sites)
        assert len(counts) == len(made().names) == sites
        assert counts.min() >= 1
        assert counts.sum() == len(labels)
        assert np.array_equal(made().site_of, made().site_of)


def test_the_same_seed_is_the_same_cut_and_another_is_another(tmp_path: Path) -> None:
    content = "a,y\n" + "".join(f"{number},{number % 2}\n" for number in range(50))
    made = []
    for number, options in enumerate([{"seed": 3}, {"seed": 3}, {"seed": 4}, {}, {"seed": 0}]):
        (tmp_path / str(number)).mkdir()
        made.append(cut(tmp_path / str(number), content, sites=3, **options))
    assert made[0] == made[1] != made[2]
    assert made[3] == made[4]


def shares(alpha: float, labels: int) -> np.ndarray[Any, Any]:
    """Return the largest share of a label at each site."""
    codes = np.arange(6000) % labels
    made = at_random(Path("t.csv"), 6000, sites=10, labels=codes, alpha=alpha, seed=1)
    counts = np.array([np.bincount(codes[made.site_of == site], minlength=labels) for site in range(10)])
    return counts.max(axis=1) / counts.sum(axis=1)


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_a_small_alpha_gives_sites_of_nearly_one_label_and_a_large_one_sites_alike(labels: int) -> None:
    assert shares(0.01, labels).mean() > 0.85
    assert shares(1e6, labels).max() < 1 / labels + 0.01


def test_the_label_of_the_shares_may_be_text_of_another_name(tmp_path: Path) -> None:
    content = "a,event\n" + "".join(f"{number},{'yes' if number % 2 else 'no'}\n" for number in range(100))
    made = cut(tmp_path, content, sites=8, dirichlet=1e-6, label="event")
    assert any(b"yes" in text and b"no" not in text for text in made.values())


def test_shares_need_a_label_that_is_there_and_has_few_values(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no column 'y'; its columns are a, b; --label names one of them"):
        cut(tmp_path, "a,b\n1,2\n", sites=1, dirichlet=1.0)
    content = "a,y\n" + "".join(f"1,{number}\n" for number in range(1001))
    with pytest.raises(CommandError, match="column 'y' has 1001 different values"):
        cut(tmp_path, content, sites=2, dirichlet=1.0)


def test_columns_that_are_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no column 'clinic'; its columns are age, ward, y; --by names one of them"):
        cut(tmp_path, by="clinic")
    with pytest.raises(CommandError, match=r"no column 'event'; .*; --label names one of them"):
        cut(tmp_path, sites=2, label="event")


def test_more_sites_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"table\.csv has 4 rows, not enough for 5 sites: set fewer with --sites"):
        cut(tmp_path, sites=5)


# --- what was asked for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "give --by COLUMN or --sites N"),
        ({"by": "a", "sites": 2}, "give --by COLUMN or --sites N"),
        ({"by": "a", "dirichlet": 1.0}, "--dirichlet needs --sites N"),
        ({"sites": 2, "keep": True}, "--keep goes with --by"),
        ({"by": "a", "seed": 0}, "--seed goes with --sites"),
        ({"sites": 2, "dirichlet": 0.0}, "--dirichlet is a number above 0"),
        ({"sites": 2, "dirichlet": float("nan")}, "--dirichlet is a number above 0"),
        ({"sites": 2, "dirichlet": float("inf")}, "--dirichlet is a number above 0"),
    ],
)
def test_options_that_contradict_one_another_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(click.UsageError, match=sentence):
        SplitRequest(Path("t.csv"), Path("out"), **options)


def test_a_delimiter_goes_with_csv_files_only() -> None:
    with pytest.raises(click.UsageError, match=r"--delimiter goes with a \.csv file"):
        SplitRequest(Path("t.npz"), Path("out"), sites=2, delimiter=";")


@pytest.mark.parametrize("name", ["t.xlsx", "nowhere.csv"])
def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "t.xlsx").write_text("a")
    with pytest.raises(CommandError, match=r"is not a \.csv, \.npz or \.parquet file|there is no file"):
        cut_file(tmp_path / name, tmp_path / "sites", sites=2)
    assert not (tmp_path / "sites").exists()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a,y\n", "has no rows to be cut"),
        ("", "is empty: it needs a header line and rows"),
        ("63,1\n45,0\n", "numbers stand where the column names belong"),
        ("a,a\n1,2\n", "the column name 'a' stands twice"),
        (f"a,y\n1,2\n1,{CANARY},3\n", "line 3: 3 cells where the header has 2 columns"),
        (f'a,y\n1,2\n1,"{CANARY}\n', "line 3: not well-formed CSV"),
        (b"a,y\n\xff,2\n", "is not UTF-8 text"),
    ],
    ids=["no rows", "empty", "no header", "names twice", "too many cells", "open quote", "no UTF-8"],
)
def test_a_file_that_is_no_table_is_refused_and_nothing_is_left_behind(
    tmp_path: Path, content: str | bytes, sentence: str
) -> None:
    with pytest.raises((CommandError, DataError), match=sentence) as told:
        cut(tmp_path, content, sites=1)
    assert CANARY not in str(told.value)
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


# --- cells stay as they are --------------------------------------------------------------------------

_TRICKY = 'id,"the ""ward""",note\r\n1,north,"a, b\r\nc ""d"""\r\n"2", south ,é" x\r\n\r\n3,"north",""\r\n4,south,"\n"'


def test_quotes_line_endings_and_line_breaks_in_cells_stay(tmp_path: Path) -> None:
    made = cut(tmp_path, _TRICKY, by='the "ward"', keep=True)
    head = b'id,"the ""ward""",note\r\n'
    assert made["site-north.csv"] == head + b'1,north,"a, b\r\nc ""d"""\r\n3,"north",""\r\n'
    assert made["site-south.csv"] == head + '"2", south ,é" x\r\n4,south,"\n"\r\n'.encode()


def test_so_do_those_beside_a_column_that_is_left_out(tmp_path: Path) -> None:
    made = cut(tmp_path, _TRICKY, by='the "ward"')
    assert made["site-north.csv"] == b'id,note\r\n1,"a, b\r\nc ""d"""\r\n3,""\r\n'
    assert made["site-south.csv"] == 'id,note\r\n"2",é" x\r\n4,"\n"\r\n'.encode()


@pytest.mark.parametrize(("at", "rest"), [(0, b"b,c\n2,3\n"), (1, b"a,c\n1,3\n"), (2, b"a,b\n1,2\n")])
def test_the_column_may_stand_anywhere(tmp_path: Path, at: int, rest: bytes) -> None:
    assert list(cut(tmp_path, "a,b,c\n1,2,3\n", by="abc"[at]).values()) == [rest]


def test_a_byte_order_mark_stays_and_stands_once_in_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_files, "WAITING", 1)
    made = cut(tmp_path, b"\xef\xbb\xbf" + ROWS.encode(), by="ward")
    assert made["site-north.csv"] == b"\xef\xbb\xbfage,y\n63,1\n50,0\n"


def test_a_row_of_which_one_empty_cell_is_left_stays_a_row(tmp_path: Path) -> None:
    made = cut(tmp_path, "ward,a\nn,1\nn,\nn,2\n", by="ward")
    assert made["site-n.csv"] == b'a\n1\n""\n2\n'


@pytest.mark.parametrize(
    ("given_as", "delimiter"), [(";", ";"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t"), ("^", "^")]
)
def test_other_delimiters_stay_too(tmp_path: Path, given_as: str, delimiter: str) -> None:
    content = 'a,w,c\n1,n,"2,5"\n'.replace(",", delimiter)
    made = cut(tmp_path, content, by="w", delimiter=given_as)
    assert made["site-n.csv"] == 'a,c\n1,"2,5"\n'.replace(",", delimiter).encode()


@pytest.mark.parametrize("wrong", ["", ";;", '"', "\n"])
def test_what_cannot_be_a_delimiter_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(DataError, match="the delimiter of a CSV file is one character"):
        cut(tmp_path, sites=1, delimiter=wrong)


_CELL = st.text(st.sampled_from('ab,;"\n\r é\t'), max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    cells=st.lists(st.tuples(_CELL, st.sampled_from("NESW"), _CELL), min_size=1, max_size=12),
    ending=st.sampled_from(["\n", "\r\n"]),
    dropped=st.booleans(),
    waiting=st.sampled_from([1, 30, 10**6]),
)
def test_whatever_is_in_the_cells_is_in_the_sites_files(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[tuple[str, str, str]],
    ending: str,
    dropped: bool,
    waiting: int,
) -> None:
    def rows(chosen: Sequence[tuple[str, ...]]) -> bytes:
        quoted = (('"' + cell.replace('"', '""') + '"' for cell in row) for row in chosen)
        return "".join(",".join(row) + ending for row in quoted).encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_files, "WAITING", waiting)
        content = rows([("a", "ward", "b"), *cells])
        made = cut(tmp_path_factory.mktemp("cut"), content, by="ward", keep=not dropped)
    for ward in {row[1] for row in cells}:
        here = [("a", "ward", "b"), *(row for row in cells if row[1] == ward)]
        assert made[f"site-{ward}.csv"] == rows([(a, b) for a, _, b in here] if dropped else here)


def test_text_that_waits_is_written_when_there_is_much_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    made = cut(tmp_path, by="ward")
    monkeypatch.setattr(split_files, "WAITING", 10)
    assert cut(tmp_path / "other", by="ward") == made


@pytest.mark.parametrize("more", ["9,north,1\n", '9,"north'], ids=["another row", "half a row"])
def test_a_file_that_grows_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    def read(table: split_files.Csv, names: Sequence[str]) -> tuple[int, Mapping[str, Column]]:
        found = original(table, names)
        with table.source.path.open("a") as file:
            file.write(more)
        return found

    original = split_files.Csv.read
    monkeypatch.setattr(split_files.Csv, "read", read)
    with pytest.raises(CommandError, match="has changed while it was read"):
        cut(tmp_path, by="ward")


# --- where the files go ------------------------------------------------------------------------------


def test_an_empty_folder_is_filled_and_folders_above_are_made(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    assert len(cut(tmp_path, by="ward")) == 3
    assert len(cut_file(tmp_path / "table.csv", tmp_path / "a" / "b" / "c", by="ward")) == 3


def test_what_a_link_points_to_is_filled(tmp_path: Path) -> None:
    (tmp_path / "sites").symlink_to(tmp_path / "elsewhere")
    assert len(cut(tmp_path, by="ward")) == 3
    assert (tmp_path / "sites").is_symlink()
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


def test_a_folder_with_anything_in_it_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "mine.txt").write_text("mine")
    with pytest.raises(CommandError, match="is there already, and not an empty folder"):
        cut(tmp_path, by="ward")
    with pytest.raises(CommandError, match="is there already, and not an empty folder"):
        cut_file(tmp_path / "table.csv", tmp_path / "table.csv", by="ward")
    assert [each.name for each in (tmp_path / "sites").iterdir()] == ["mine.txt"]


def test_the_folder_that_one_is_in_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sites").mkdir()
    monkeypatch.chdir(tmp_path / "sites")
    with pytest.raises(CommandError, match="is the folder that you are in"):
        cut(tmp_path, by="ward")


def test_a_folder_under_a_file_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "table.csv").write_text(ROWS)
    with pytest.raises(CommandError, match="could not be written: Not a directory; nothing of it is left behind"):
        cut_file(tmp_path / "table.csv", tmp_path / "file" / "sites", by="ward")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_cut_that_fails_half_way_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def add(files: Any, index: int, text: str) -> None:
        if "38" in text:
            raise error
        original(files, index, text)

    original = split_files._Texts.add
    monkeypatch.setattr(split_files._Texts, "add", add)
    monkeypatch.setattr(split_files, "WAITING", 1)
    (tmp_path / "table.csv").write_text(ROWS)
    with pytest.raises((CommandError, KeyboardInterrupt)):
        cut_file(tmp_path / "table.csv", tmp_path / "a" / "sites", by="ward")
    assert [each.name for each in tmp_path.iterdir()] == ["table.csv"]


# --- NPZ ---------------------------------------------------------------------------------------------

X = np.arange(12, dtype=">f4").reshape(4, 3)
DENSE: dict[str, Any] = {
    "X": X,
    "y": np.array([1, 0, 0, 1], dtype=np.uint8),
    "is_train": np.array([True, True, False, True]),
    "ward": np.array(["north", "south", "north", "east"]),
    "when": np.array(["2001-01-01"] * 3 + ["2002-01-01"], dtype="datetime64[D]"),
    "about": np.array([7.0, 8.0]),
}
CSR: dict[str, Any] = {
    "shape": np.array([4, 3]),
    "indptr": np.array([0, 2, 2, 3, 4], dtype=np.int32),
    "indices": np.array([0, 2, 1, 2], dtype=np.uint8),
    "data": np.array([1.0, 2.0, 3.0, 4.0]),
    "y": DENSE["y"],
    "ward": DENSE["ward"],
}


def cut_npz(folder: Path, arrays: dict[str, Any], save: Any = np.savez, **options: Any) -> dict[str, dict[str, Any]]:
    save(folder / "table.npz", **arrays)
    made = cut_file(folder / "table.npz", folder / "sites", **options)
    return {name: dict(np.load(io.BytesIO(content))) for name, content in made.items()}


def dense(parts: Mapping[str, Any]) -> list[list[float]]:
    made = np.zeros(parts["shape"])
    for row, (begin, end) in enumerate(zip(parts["indptr"][:-1], parts["indptr"][1:], strict=True)):
        made[row, parts["indices"][begin:end]] = parts["data"][begin:end] if "data" in parts else 1.0
    return made.tolist()


def test_arrays_with_an_entry_for_each_row_are_cut_and_others_are_copied(tmp_path: Path) -> None:
    made = cut_npz(tmp_path, DENSE, by="ward")
    assert list(made) == ["site-east.npz", "site-north.npz", "site-south.npz"]
    north = made["site-north.npz"]
    assert list(north) == ["X", "y", "is_train", "when", "about"]
    for name, array in north.items():
        expected = DENSE[name] if name == "about" else DENSE[name][[0, 2]]
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == DENSE[name].dtype


def test_an_array_that_the_cut_is_by_may_be_kept(tmp_path: Path) -> None:
    made = cut_npz(tmp_path, DENSE, by="ward", keep=True)
    assert made["site-north.npz"]["ward"].tolist() == ["north", "north"]


@pytest.mark.parametrize("values", [[3, 1, 3, 1], [3.0, 1.0, 3.0, 1.0]])
def test_sites_may_be_numbers(tmp_path: Path, values: list[float]) -> None:
    made = cut_npz(tmp_path, {**DENSE, "ward": np.array(values)}, by="ward")
    assert list(made) == ["site-1.npz", "site-3.npz"]
    assert made["site-1.npz"]["X"].tolist() == X[[1, 3]].tolist()


@pytest.mark.parametrize("left_out", [set(), {"data"}])
def test_the_rows_of_a_csr_matrix_are_cut(tmp_path: Path, left_out: set[str]) -> None:
    arrays = {name: array for name, array in CSR.items() if name not in left_out}
    made = cut_npz(tmp_path, arrays, by="ward")
    whole = np.array(dense(arrays))
    assert dense(made["site-north.npz"]) == whole[[0, 2]].tolist()
    assert dense(made["site-south.npz"]) == whole[[1]].tolist()
    assert dense(made["site-east.npz"]) == whole[[3]].tolist()
    for name, array in made["site-north.npz"].items():
        assert array.dtype == arrays[name].dtype


def test_names_of_columns_stay_also_where_there_are_as_many_rows(tmp_path: Path) -> None:
    arrays = {"X": np.eye(3), "y": np.ones(3), "feature_names": np.array(["a", "b", "c"])}
    made = cut_npz(tmp_path, arrays, sites=3)
    assert all(site["feature_names"].tolist() == ["a", "b", "c"] for site in made.values())


@settings(max_examples=25, deadline=None)
@given(n_rows=st.integers(3, 30), sites=st.integers(1, 3), seed=st.integers(0, 50), sparse=st.booleans())
def test_the_rows_of_all_sites_are_the_rows_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, n_rows: int, sites: int, seed: int, sparse: bool
) -> None:
    X = np.random.default_rng(seed).integers(0, 2, (n_rows, 4)) * np.arange(1, n_rows + 1)[:, None]
    arrays: dict[str, Any] = {"X": X}
    if sparse:
        rows, indices = np.nonzero(X)
        indptr = np.searchsorted(rows, np.arange(n_rows + 1))
        arrays = {"shape": np.array(X.shape), "indptr": indptr, "indices": indices, "data": X[rows, indices]}
    arrays["y"] = np.arange(n_rows)
    made = cut_npz(tmp_path_factory.mktemp("cut"), arrays, sites=sites, seed=seed)
    order = np.concatenate([site["y"] for site in made.values()])
    rows_of = [dense(site) if sparse else site["X"].tolist() for site in made.values()]
    assert sorted(order.tolist()) == list(range(n_rows))
    assert [row for site in rows_of for row in site] == X[order].tolist()
    assert all((np.diff(site["y"]) > 0).all() for site in made.values()), "in the table's order"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_are_compressed_as_they_were_and_the_same_cut_is_the_same_bytes(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "table.npz", **DENSE)
    first, again = (cut_file(tmp_path / "table.npz", tmp_path / name, sites=2) for name in ("one", "two"))
    assert first == again
    (kind,) = {member.compress_type for member in ZipFile(tmp_path / "table.npz").infolist()}
    assert {member.compress_type for member in ZipFile(tmp_path / "one" / "site-1.npz").infolist()} == {kind}


def test_python_objects_are_copied_unread_and_never_loaded(tmp_path: Path) -> None:
    arrays = {**DENSE, "extra": np.array([None, {}], dtype=object)}
    np.savez(tmp_path / "table.npz", **arrays)
    cut_file(tmp_path / "table.npz", tmp_path / "sites", sites=2)
    whole, site = ZipFile(tmp_path / "table.npz"), ZipFile(tmp_path / "sites" / "site-1.npz")
    assert site.read("extra.npy") == whole.read("extra.npy")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({**DENSE, "ward": np.array([None] * 4)}, "array 'ward' holds Python objects, which are never loaded"),
        ({"y": DENSE["y"]}, "has neither an array 'X' nor the CSR parts"),
        ({"X": np.array(1.0), "y": DENSE["y"]}, "array 'X' is a single number, and no rows"),
        ({**CSR, "indptr": np.array([0, 2, 1, 3, 4])}, "'indptr' must begin with 0, never fall"),
        ({**CSR, "indptr": np.array([1, 2, 2, 3, 4])}, "'indptr' must begin with 0, never fall"),
        ({**CSR, "indptr": np.array([0, 2, 2, 3, 9])}, "'indptr' must begin with 0, never fall"),
        ({**CSR, "data": np.array([1.0])}, "array 'data' has shape"),
        ({**CSR, "shape": np.array([5, 3])}, "array 'indptr' has shape"),
        ({**CSR, "indptr": np.zeros(0, dtype=np.intp), "ward": np.ones(0)}, "has no rows to be cut"),
        ({**CSR, "indptr": np.array([0, 2.0, 2, 3, 4])}, "array 'indptr' holds float64, not whole numbers"),
        ({**CSR, "shape": np.array([4])}, "array 'shape' has shape"),
        ({**DENSE, "ward": np.array(["n", "s"])}, "has no column 'ward'; its columns are y, is_train, when; --by"),
        ({"X": np.ones((0, 2)), "y": np.ones(0), "ward": np.ones(0)}, "has no rows to be cut"),
    ],
    ids=[
        "objects",
        "no X",
        "a number",
        "falls",
        "begins",
        "ends",
        "data",
        "rows",
        "empty",
        "floats",
        "shape",
        "not by row",
        "no rows",
    ],
)
def test_an_npz_file_that_cannot_be_cut_is_refused_with_nothing_left_behind(
    tmp_path: Path, arrays: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((CommandError, DataError), match=sentence):
        cut_npz(tmp_path, {"ward": DENSE["ward"], **arrays}, by="ward")
    assert [each.name for each in tmp_path.iterdir()] == ["table.npz"]


def test_a_damaged_npz_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="is no NPZ file, or not a whole one"):
        cut_file(tmp_path / "table.npz", tmp_path / "sites", sites=2)
    with pytest.raises(DataError, match=r"nowhere\.npz cannot be read: No such file"):
        split_files.Npz(tmp_path / "nowhere.npz").columns()


def test_a_damaged_array_that_is_only_copied_is_told_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "table.npz", **DENSE)
    whole = (tmp_path / "table.npz").read_bytes()
    (tmp_path / "table.npz").write_bytes(whole.replace(DENSE["about"].tobytes(), b"x" * 16))
    with pytest.raises(DataError, match="array 'about' is damaged"):
        cut_file(tmp_path / "table.npz", tmp_path / "sites", sites=2)
    assert [each.name for each in tmp_path.iterdir()] == ["table.npz"]


# --- Parquet -----------------------------------------------------------------------------------------


@pytest.fixture
def duckdb() -> Any:
    return pytest.importorskip("duckdb")


def write_parquet(duckdb: Any, file: Path, select: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    duckdb.execute(f"COPY ({select}) TO '{file}' (FORMAT parquet, ROW_GROUP_SIZE 2048)")


def read_parquet(duckdb: Any, file: Path) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return names and types of the columns, and the rows."""
    described = duckdb.execute("DESCRIBE FROM read_parquet(?)", [str(file)]).fetchall()
    return [row[:2] for row in described], duckdb.execute("FROM read_parquet(?)", [str(file)]).fetchall()


_SELECT = """
SELECT i AS id, ['north', 'it''s s'][1 + i % 2] AS "my ""ward"" x", (i % 3 = 0)::DOUBLE AS y, {{'a': i}} AS nested
FROM range({}) t(i)
"""


def test_a_parquet_file_is_cut_with_types_and_order_kept(tmp_path: Path, duckdb: Any) -> None:
    file = tmp_path / "year=2020" / "a[b].parquet"
    write_parquet(duckdb, tmp_path / "plain.parquet", _SELECT.format(5000))
    file.parent.mkdir()
    (tmp_path / "plain.parquet").rename(file)
    made = cut_file(file, tmp_path / "sites", by='my "ward" x')
    assert list(made) == ["site-it-s-s.parquet", "site-north.parquet"]
    types, rows = read_parquet(duckdb, tmp_path / "sites" / "site-north.parquet")
    assert types == [("id", "BIGINT"), ("y", "DOUBLE"), ("nested", "STRUCT(a BIGINT)")]
    assert rows == [(i, float(i % 3 == 0), {"a": i}) for i in range(0, 5000, 2)]


def test_the_shares_of_a_parquet_file_s_labels_are_printed(
    tmp_path: Path, duckdb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(duckdb, tmp_path / "t.parquet", _SELECT.format(300))
    cut_file(tmp_path / "t.parquet", tmp_path / "sites", sites=2, dirichlet=1e6)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["site", "rows", "y", "=", "0", "y", "=", "1"]
    assert [line[2:] for line in lines[1:3]] == [["0.667", "0.333"]] * 2
    ids = [{row[0] for row in read_parquet(duckdb, tmp_path / "sites" / f"site-{site}.parquet")[1]} for site in (1, 2)]
    assert ids[0] | ids[1] == set(range(300))
    assert not ids[0] & ids[1]


def test_columns_of_parquet_files_may_be_called_anything(tmp_path: Path, duckdb: Any) -> None:
    write_parquet(duckdb, tmp_path / "t.parquet", "SELECT 1 AS site, 2 AS row, 3 AS cell, 4 AS here, 5 AS whole")
    cut_file(tmp_path / "t.parquet", tmp_path / "sites", by="site")
    assert read_parquet(duckdb, tmp_path / "sites" / "site-1.parquet")[1] == [(2, 3, 4, 5)]


def test_a_parquet_row_without_a_site_is_refused(tmp_path: Path, duckdb: Any) -> None:
    write_parquet(duckdb, tmp_path / "t.parquet", "SELECT * FROM (VALUES ('a', 1), (NULL, 2)) t(ward, y)")
    with pytest.raises(CommandError, match="row 2, column 'ward': the cell cannot name a site"):
        cut_file(tmp_path / "t.parquet", tmp_path / "sites", by="ward")


@pytest.mark.parametrize("content", [b"", b"PAR1" + CANARY.encode()])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, duckdb: Any, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet cannot be split by DuckDB \(\w+\): save it anew") as told:
        cut_file(tmp_path / "t.parquet", tmp_path / "sites", sites=1)
    assert CANARY not in str(told.value)
    assert not (tmp_path / "sites").exists()


def test_without_duckdb_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(CommandError, match=re.escape("pip install 'fedmq[data]'")):
        cut_file(tmp_path / "t.parquet", tmp_path / "sites", sites=1)
