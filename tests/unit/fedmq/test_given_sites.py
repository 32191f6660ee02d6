"""Sites in a notebook: what may be given as one, and how labels of any kind become whole numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedmq.errors import CommandError
from fedmq.given_sites import Rows, codes_of, make_sites, read_given
from participant.errors import DataError
from participant.sources import Columns

X = np.array([[63, 27.5], [45, 31], [50, 22.25]])
Y = np.array([1, 0, 0])
FRAME = pd.DataFrame({"age": X[:, 0], "bmi": X[:, 1], "y": Y, "split": ["train", "train", "test"], "w": 2.0, "o": 0.5})
BINARY = np.array([0, 1])


def made(sites: dict[Any, Any], columns: Columns | None = None, classes: Any = BINARY) -> Any:
    columns = Columns("y") if columns is None else columns
    return make_sites(read_given(sites, columns), columns, np.array(classes))


def refusal(*given: Any, **options: Any) -> str:
    with pytest.raises((CommandError, DataError)) as refused:
        made(*given, **options)
    return str(refused.value)


def test_rows_may_come_with_weights_or_without() -> None:
    plain, weighted = made({"a": (X, Y), "b": [X, list(Y), [1, 2, 3]]})
    assert (plain.name, weighted.name) == ("a", "b")
    np.testing.assert_array_equal(plain.table.X, X)
    assert plain.table.sample_weight is None
    np.testing.assert_array_equal(weighted.table.sample_weight, [1, 2, 3])


def test_what_a_frame_has_beside_its_roles_are_features() -> None:
    (site,) = made({"a": FRAME}, Columns("y", split="split", sample_weight="w", offset="o"))
    assert site.table.features == ("age", "bmi")
    np.testing.assert_array_equal(site.table.is_train, [True, True, False])
    np.testing.assert_array_equal(site.table.sample_weight, [2, 2, 2])
    np.testing.assert_array_equal(site.table.offset, [0.5, 0.5, 0.5])


def test_without_a_split_all_rows_of_a_frame_are_for_training() -> None:
    (site,) = made({"a": FRAME[["age", "bmi", "y"]]})
    assert (site.table.n_train, site.table.n_test) == (3, 0)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_read_as_the_command_reads_it(kind: Any, tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    columns = Columns("y", split="split", sample_weight="w", offset="o")
    of_file, of_frame = made({"file": kind(tmp_path / "a.csv"), "frame": FRAME}, columns)
    assert of_file.path == tmp_path / "a.csv"
    assert of_file.table.fingerprint("") == of_frame.table.fingerprint("")


@pytest.mark.parametrize(
    ("classes", "codes"),
    [
        ([0, 1], (0, 1)),
        ([1, 2, 7], (1, 2, 7)),
        ([1.0, 2.0], (1, 2)),
        ([False, True], (0, 1)),
        ([-1, 1], (0, 1)),
        ([0.5, 1.0], (0, 1)),
        (["sick", "well"], (0, 1)),
        (np.array(["a", "b", "c"], dtype=object), (0, 1, 2)),
    ],
)
def test_labels_that_are_whole_numbers_from_0_stay_and_others_are_counted(classes: Any, codes: tuple[int, ...]) -> None:
    assert codes_of(np.array(classes)) == codes
    (site,) = made({"a": (np.ones((len(codes), 2)), list(classes)[::-1])}, classes=classes)
    assert site.table.y.tolist() == list(codes)[::-1]
    assert site.table.classes == codes


@pytest.mark.parametrize(
    ("sites", "sentence"),
    [
        ({}, "there is no site: give a mapping of names to sites"),
        ({"a b": (X, Y)}, "'a b' cannot be a site's name: use letters, digits, '-' and '_'"),
        ({3: (X, Y)}, "3 cannot be a site's name: use letters, digits, '-' and '_'"),
        ({"all": (X, Y)}, "a site cannot be called 'all', which means something else: rename it"),
        ({"a": X}, "site 'a' is a ndarray: give (X, y), (X, y, sample_weight), a data frame, or the path of a .csv or"),
        ({"a": (X, Y, Y, Y)}, "site 'a' is a tuple: give"),
        ({"a": (X, X)}, "site 'a': y has 2 dimensions; give one label for each row"),
        ({"a": (X, Y[:2])}, "site 'a': y has shape (2,) where X has 3 rows"),
        ({"a": (X, [1, 0, 7731])}, "site 'a': the label of row 2 is none of the classes that were given"),
        ({"a": (X * np.nan, Y)}, "site 'a': row 0, column 'x0': the cell is not a finite number"),
        ({"a": FRAME[["age"]]}, "site 'a' has no column 'y', which was named as the label"),
        ({"a": (X, Y), "b": (X[:, :1], Y)}, "site 'b' has no column 'x1', which 'a' has"),
        ({"a": (X[:, :1], Y), "b": (X, Y)}, "site 'b' has a column 'x1', which 'a' has not"),
        ({"a": "no.csv"}, "no.csv cannot be read: No such file or directory"),
    ],
)
def test_sites_that_cannot_be_used_are_refused(sites: Any, sentence: str) -> None:
    assert refusal(sites).startswith(sentence)


def test_a_split_that_is_neither_is_refused_with_its_place() -> None:
    frame = FRAME.assign(split=["train", "7731", None])
    expected = "site 'a', row 1, column 'split': the cell is the split and neither 'train' nor 'test'"
    assert refusal({"a": frame}, Columns("y", split="split")) == expected


def test_a_file_does_not_go_with_labels_that_are_text() -> None:
    found = refusal({"a": (X, ["sick", "well", "well"]), "b": "b.csv"}, classes=["sick", "well"])
    assert found == "b.csv has whole numbers from 0 as labels, other sites have not: use the same"


@pytest.mark.parametrize(
    ("rows", "has_names"), [(Rows(X, Y), False), (Rows(X, Y, features=["a", "b"]), True), (Rows(FRAME, Y), True)]
)
def test_columns_have_names_where_somebody_gave_them(rows: Rows, has_names: bool) -> None:
    assert rows.has_names is has_names
