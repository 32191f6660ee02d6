"""``fedmq schema`` as a person at a site uses it: draft, check, mend, train."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pytest
import structlog
from command import Ended, run_command, without_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).resolve().parents[2]
HEART = ROOT / "tests" / "data" / "heart_disease" / "original"
COLUMNS = "age,sex,cp,trestbps,chol,fbs,restecg,thalach,exang,oldpeak,slope,ca,thal,num"

#: Planted in cells: no part of any output.
CANARY = "canary-7731"
CANARY_NUMBER = "7731.7731"


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
        said = run_command(monkeypatch, capsys, *arguments)
        assert CANARY not in said.out + said.err
        assert CANARY_NUMBER not in said.out + said.err
        return said

    return run


def test_a_draft_is_checked_and_trained_with(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    schema, table = tmp_path / "schema.toml", tmp_path / "site-cleveland.csv"
    rows = (HEART / "processed.cleveland.data").read_text()
    table.write_text(f"{COLUMNS}\n{rows}")
    ended = fedmq("schema", "infer", table, "--label", "num", "--out", schema)
    assert ended == (0, "", "")
    ended = fedmq("schema", "check", table, "--schema", schema)
    assert ended.code == 0, ended.out
    assert "would be accepted: 303 training rows" in ended.out
    ended = fedmq("train", "--data", table, "--schema", schema, "--out", tmp_path / "model")
    assert ended.code == 0, ended.err
    assert "thal=(missing)" in json.loads((tmp_path / "model" / "model.json").read_text())["features"]


@pytest.mark.parametrize("hospital", ["cleveland", "hungarian", "switzerland", "va"])
def test_the_schema_of_the_four_hospitals_fits_each_of_them(fedmq: Callable[..., Ended], hospital: str) -> None:
    ended = fedmq("schema", "check", HEART / f"processed.{hospital}.data", "--schema", HEART / "schema.toml", "--json")
    report = json.loads(ended.out)
    assert (ended.code, report["accepted"], report["defects"]) == (0, True, [])


def test_a_draft_of_one_hospital_tells_another_what_is_wrong_with_all_its_columns(
    fedmq: Callable[..., Ended], tmp_path: Path
) -> None:
    schema = tmp_path / "schema.toml"
    table = HEART / "processed.cleveland.data"
    assert fedmq("schema", "infer", table, "--columns", COLUMNS, "--label", "num", "--out", schema).code == 0
    ended = fedmq("schema", "check", HEART / "processed.switzerland.data", "--schema", schema, "--json")
    report = json.loads(ended.out)
    assert (ended.code, report["accepted"], report["told"]) == (2, False, None)
    found = {(each["column"], each["n"]) for each in report["defects"]}
    assert {("chol", 123), ("fbs", 75), ("slope", 17), ("oldpeak", 6)} <= found


def test_the_command_itself_ends_with_2_for_a_table_that_would_be_refused(tmp_path: Path) -> None:
    table, schema = tmp_path / "rows.csv", tmp_path / "schema.toml"
    table.write_text(f"age,note,y\n{CANARY_NUMBER},{CANARY},1\n50,{CANARY},{CANARY}\n")
    schema.write_text('format = 1\n[label]\ncolumn = "y"\n[features.age]\nrange = [0, 120]\n')
    ended = subprocess.run(
        [sys.executable, "-m", "fedmq", "schema", "check", table, "--schema", schema],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (2, "")
    assert "would be refused" in ended.stdout
    assert "7731" not in ended.stdout
    assert "passed over: note" in ended.stdout


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (f"age,y\n50,{CANARY},3\n", "line 2: 3 cells where the header has 2 columns"),
        (f'age,y\n50,"{CANARY}\n', "not well-formed CSV"),
        ("age,y\n", "it needs at least one training row"),
        (f"{CANARY_NUMBER},1\n", "numbers stand where the column names belong"),
        ("age;y\n50;1\n", "say what is between its cells, as with --delimiter ';'"),
    ],
)
def test_a_table_that_cannot_be_read_ends_with_2_and_a_sentence(
    fedmq: Callable[..., Ended], tmp_path: Path, rows: str, sentence: str
) -> None:
    table, schema = tmp_path / "rows.csv", tmp_path / "schema.toml"
    table.write_text(rows)
    schema.write_text('format = 1\n[label]\ncolumn = "y"\n[features.age]\n')
    ended = fedmq("schema", "check", table, "--schema", schema)
    assert ended.code == 2
    assert sentence in ended.out + ended.err


def test_names_and_extremes_of_people_are_in_no_draft(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    people = [f"{40 + index},{CANARY}-{index},{'ab'[index % 2]},{index % 2}" for index in range(60)]
    table.write_text("\n".join(["age,name,ward,y", *people, f"{CANARY_NUMBER},{CANARY},{CANARY},1"]))
    ended = fedmq("schema", "infer", table)
    assert ended.code == 0
    document = tomllib.loads(ended.out)
    assert document["features"] == {"age": {"unit": "", "range": [0, 10000]}, "ward": {"kind": "categorical"}}


# --- the other sources ---------------------------------------------------------------------------------


def fits_its_draft(fedmq: Callable[..., Ended], folder: Path, *source: object) -> dict[str, object]:
    """Return the draft for a source, under which it is accepted."""
    schema = folder / "schema.toml"
    ended = fedmq("schema", "infer", *source, "--out", schema)
    assert ended == (0, "", "")
    ended = fedmq("schema", "check", *source, "--schema", schema)
    assert ended.code == 0, ended.out + ended.err
    return tomllib.loads(schema.read_text())


def test_an_npz_file_fits_its_draft(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    file = tmp_path / "rows.npz"
    is_train, y = np.arange(60) % 4 > 0, rng.integers(0, 2, 60)
    np.savez(file, X=rng.normal(size=(60, 2)), y=y, is_train=is_train, feature_names=np.array(["age", "bmi"]))
    document = fits_its_draft(fedmq, tmp_path, file)
    assert document["split"] == {"column": "is_train"}
    assert document["features"] == {"age": {"unit": "", "range": [-5, 2]}, "bmi": {"unit": "", "range": [-5, 5]}}


def test_a_parquet_file_and_a_query_over_it_fit_their_drafts(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    columns = "range AS id, range * 0.7 AS age, ['a', 'b', 'c'][range % 3 + 1] AS ward, range % 2 AS y"
    duckdb.sql(f"COPY (SELECT {columns} FROM range(100)) TO '{file}'")  # noqa: S608 - the test's own
    document = fits_its_draft(fedmq, tmp_path, file)
    assert list(document["features"]) == ["age", "ward"]  # type: ignore[call-overload]  # TOML has no types
    (tmp_path / "schema.toml").unlink()
    document = fits_its_draft(fedmq, tmp_path, file, "--query", "SELECT age AS years, y FROM data WHERE id >= 10")
    assert document["features"] == {"years": {"unit": "", "range": [5, 100]}}


def test_what_a_database_answers_fits_its_draft(fedmq: Callable[..., Ended], tmp_path: Path) -> None:
    file = tmp_path / "rows.db"
    with sqlite3.connect(file) as rows:
        rows.execute("CREATE TABLE visits (age REAL, sex TEXT, y INTEGER)")
        people = [(None if index % 9 == 0 else 40.5 + index, "fm"[index % 2], index % 2) for index in range(80)]
        rows.executemany("INSERT INTO visits VALUES (?, ?, ?)", people)
    rows.close()
    url = tmp_path / "url"
    url.write_text(f"sqlite:///{file}\n")
    document = fits_its_draft(fedmq, tmp_path, "--database-file", url, "--query", "SELECT * FROM visits ORDER BY rowid")
    assert document["features"] == {
        "age": {"unit": "", "range": [20, 200], "missing": "mean"},
        "sex": {"kind": "binary", "levels": ["f", "m"]},
    }
