"""Sites: which files there are, what they are called, whether they fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedmq.errors import CommandError
from fedmq.sites import find_sites
from participant.errors import DataError
from participant.sources import Columns

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fedmq.sites import Site

ROWS = "age,bmi,y\n63,27.5,1\n45,31,0\n"


def write(folder: Path, *names: str, content: str = ROWS) -> None:
    """Write the same site under several file names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text(content)


def sites(*paths: Path, split: str | None = None) -> list[Site]:
    return find_sites(paths, Columns("y", split))


def names(found: Sequence[Site]) -> list[str]:
    return [site.name for site in found]


# --- which files, and their names --------------------------------------------------------------------


def test_every_csv_file_of_a_folder_is_a_site_sorted_by_name(tmp_path: Path) -> None:
    write(tmp_path, "c.csv", "a.csv", "b.csv")
    found = sites(tmp_path)
    assert names(found) == ["a", "b", "c"]
    assert [site.path for site in found] == [tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv"]
    assert found[0].table.features == ("age", "bmi")


def test_sites_of_both_formats_may_stand_in_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "b.csv")
    np.savez(tmp_path / "site-a.npz", X=np.ones((2, 2)), y=np.array([0.0, 1.0]), feature_names=np.array(["age", "bmi"]))
    found = sites(tmp_path)
    assert names(found) == ["b", "a"], "by the names of their files"
    assert [site.table.features for site in found] == [("age", "bmi")] * 2
    assert [site.table.n_train for site in found] == [2, 2]


def test_what_else_the_columns_are_is_passed_on(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", content="age,weight,y\n63,2,2\n45,1,0\n")
    (site,) = find_sites([tmp_path], Columns("y", sample_weight="weight", classes=(0, 1, 2)))
    assert (site.table.features, site.table.weight, site.table.classes) == (("age",), 3.0, (0, 1, 2))


def test_a_leading_site_is_dropped_from_the_name_once(tmp_path: Path) -> None:
    write(tmp_path, "site-berlin.csv", "offsite-x.csv", "site-site-2.csv", "site_3.csv")
    assert names(sites(tmp_path)) == ["offsite-x", "berlin", "site-2", "site_3"]


def test_other_files_and_folders_in_a_folder_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "README.md", "notes.txt", "a.csv.bak", ".hidden")
    (tmp_path / "deeper.csv").mkdir()
    write(tmp_path / "deeper.csv", "b.csv")
    assert names(sites(tmp_path)) == ["a"]


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    write(tmp_path, "a.CSV")
    assert names(sites(tmp_path)) == ["a"]


def test_files_and_folders_may_be_mixed_and_stay_in_the_order_given(tmp_path: Path) -> None:
    write(tmp_path / "one", "b.csv", "a.csv")
    write(tmp_path / "two", "c.csv")
    found = sites(tmp_path / "two" / "c.csv", tmp_path / "one")
    assert names(found) == ["c", "a", "b"]


def test_a_site_may_be_called_something_with_capitals_digits_and_underscores(tmp_path: Path) -> None:
    write(tmp_path, "site-St_Mary-2.csv")
    assert names(sites(tmp_path)) == ["St_Mary-2"]


@pytest.mark.parametrize("name", ["a b", "größe", "a+b", "site-", "-a", "x" * 64])
def test_what_cannot_be_a_word_of_a_routing_key_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}.csv")
    with pytest.raises(CommandError, match="use letters, digits, '-' and '_' in its name"):
        sites(tmp_path)


@pytest.mark.parametrize("name", ["all", "site-all", "aggregator"])
def test_a_name_that_means_something_else_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, f"{name}.csv")
    with pytest.raises(CommandError, match="which means something else: rename it"):
        sites(tmp_path)


@pytest.mark.parametrize("other", ["site-a.csv", "a.CSV", "a.npz"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, other: str) -> None:
    write(tmp_path, "a.csv", other)
    with pytest.raises(CommandError, match="two files are called site 'a': give each site a file name of its own"):
        sites(tmp_path)


def test_the_same_file_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.csv")
    with pytest.raises(CommandError, match="two files are called site 'a'"):
        sites(tmp_path, tmp_path / "a.csv")


def test_a_folder_without_sites_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    with pytest.raises(CommandError, match=r"the folder .* has no \.csv, \.npz or \.parquet file: each site is one"):
        sites(tmp_path)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"there is no file or folder .*nowhere"):
        sites(tmp_path / "nowhere")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.xlsx")
    with pytest.raises(CommandError, match=r"a\.xlsx is not a \.csv, \.npz or \.parquet file"):
        sites(tmp_path / "a.xlsx")


# --- whether they fit together -----------------------------------------------------------------------


def test_columns_may_come_in_another_order(tmp_path: Path) -> None:
    write(tmp_path, "a.csv")
    write(tmp_path, "b.csv", content="y,bmi,age\n1,27.5,63\n")
    assert [site.table.features for site in sites(tmp_path)] == [("age", "bmi"), ("bmi", "age")]


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("age,y", r"b\.csv has no column 'bmi', which .*a\.csv has: all sites need the same"),
        ("age,bmi,weight,y", r"b\.csv has a column 'weight', which .*a\.csv has not: all sites need the same"),
        ("age,weight,y", r"b\.csv has no column 'bmi'"),
        ("age,BMI,y", r"b\.csv has no column 'bmi'"),
    ],
    ids=["one less", "one more", "another", "another case"],
)
def test_columns_that_differ_are_named_with_both_files(tmp_path: Path, header: str, sentence: str) -> None:
    write(tmp_path, "a.csv")
    write(tmp_path, "b.csv", content=header + "\n" + ",".join("1" for _ in header.split(",")) + "\n")
    with pytest.raises(CommandError, match=sentence):
        sites(tmp_path)


def test_a_split_that_one_site_has_not_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a.csv")
    write(tmp_path, "b.csv", content="age,bmi,y,split\n1,2,0,train\n")
    with pytest.raises(DataError, match="column 'split': the cell says train or test: name the column as the split"):
        sites(tmp_path)
    with pytest.raises(DataError, match=r"a\.csv has no column 'split', which was named as the split"):
        sites(tmp_path, split="split")


def test_a_defect_in_any_of_the_files_is_told(tmp_path: Path) -> None:
    write(tmp_path, "a.csv")
    write(tmp_path, "b.csv", content=ROWS + "1,,0\n")
    with pytest.raises(DataError, match=r"b\.csv, line 4, column 'bmi': the cell is empty"):
        sites(tmp_path)
