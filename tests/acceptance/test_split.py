"""One table cut into sites and trained on: the model is that of the table, whichever way it is cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from command import Ended, run_command, without_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]
CSV = ROOT / "examples" / "heart_disease" / "site-cleveland.csv"
NPZ = ROOT / "tests" / "data" / "adult_workclass" / "site-state-gov.npz"
#: Of a model that is exact and cheap to train.
EXACT = ("--l2", "0.001")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start as a fresh process would, and leave no configured log behind."""
    without_settings(monkeypatch)
    yield
    structlog.reset_defaults()


@pytest.fixture
def fedmq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Give the command, run in this process."""

    def run(*arguments: object) -> Ended:
        return run_command(monkeypatch, capsys, *arguments)

    return run


def train(fedmq: Callable[..., Ended], data: Path, out: Path, *options: str) -> dict[str, Any]:
    ended = fedmq("train", "--data", data, "--out", out, *EXACT, *options)
    assert ended.code == 0, ended.err
    model: dict[str, Any] = json.loads((out / "model.json").read_text())
    return model


@pytest.mark.parametrize(
    ("how", "n_sites"),
    [
        (("--sites", "5"), 5),
        (("--sites", "4", "--dirichlet", "1", "--seed", "3"), 4),
        (("--by", "sex", "--keep"), 2),
    ],
    ids=["at random", "by labels", "by a column"],
)
def test_the_model_over_the_sites_of_a_csv_file_is_the_model_of_the_file(
    fedmq: Callable[..., Ended], tmp_path: Path, how: tuple[str, ...], n_sites: int
) -> None:
    ended = fedmq("split", CSV, *how, "--out", tmp_path / "sites")
    assert ended.code == 0, ended.err
    assert f"303 rows, each at one of {n_sites} sites, are in" in ended.out
    cut = train(fedmq, tmp_path / "sites", tmp_path / "cut", "--split", "split")
    whole = train(fedmq, CSV, tmp_path / "whole", "--split", "split")
    assert len(cut["participants"]) == n_sites
    assert cut["n_samples"] == whole["n_samples"]
    assert cut["weights"] == pytest.approx(whole["weights"], abs=1e-6)


def test_the_model_over_the_sites_of_an_npz_file_is_the_model_of_the_file(
    fedmq: Callable[..., Ended], tmp_path: Path
) -> None:
    assert fedmq("split", NPZ, "--sites", 3, "--out", tmp_path / "sites").code == 0
    cut = train(fedmq, tmp_path / "sites", tmp_path / "cut")
    whole = train(fedmq, NPZ, tmp_path / "whole")
    assert [site["name"] for site in cut["participants"]] == ["1", "2", "3"]
    assert cut["weights"] == pytest.approx(whole["weights"], abs=1e-6)


def test_the_column_that_the_cut_is_by_is_no_feature_of_the_sites(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    assert fedmq("split", CSV, "--by", "cp_4", "--out", tmp_path / "sites").code == 0
    assert "cp_4" not in train(fedmq, tmp_path / "sites", tmp_path / "cut", "--split", "split")["features"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "give --by COLUMN or --sites N: one of the two"),
        (("--by", "sex", "--dirichlet", "1"), "--dirichlet needs --sites N"),
        (("--sites", "0"), "Invalid value for '--sites'"),
        (("--sites", "2", "--delimiter", "::"), "the delimiter of a CSV file is one character"),
        (("--by", "clinic"), "has no column 'clinic'"),
    ],
)
def test_what_is_asked_wrongly_ends_with_2_and_a_sentence(
    fedmq: Callable[..., Ended], tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    ended = fedmq("split", CSV, *options, "--out", tmp_path / "sites")
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_as_it_is(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    shutil.copy(CSV, tmp_path)
    ended = fedmq("split", CSV, "--sites", 2, "--out", tmp_path)
    assert ended.code == 2
    assert "is there already, and not an empty folder" in ended.err
    assert [each.name for each in tmp_path.iterdir()] == [CSV.name]
