"""The participant's settings: what is what in its file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from broker.schema import Feature, Label, Schema
from broker.settings import SettingsError
from participant.settings import ParticipantSettings
from participant.sources import Columns, Dialect

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without settings in the environment."""
    for key in list(os.environ):
        if key.startswith("FEDMQ_"):
            monkeypatch.delenv(key)


def load(**flags: Any) -> ParticipantSettings:
    return ParticipantSettings.load(None, {"name": "h1", "data": "rows.csv", **flags})


def test_without_anything_y_is_the_label_and_everything_else_a_feature() -> None:
    assert load().rows().what == Columns("y")


def test_every_role_of_a_column_can_be_set() -> None:
    settings = load(
        label="outcome", split="part", sample_weight="w", offset="exposure", classes="1,2,5", missing="mean"
    )
    assert settings.rows().what == Columns("outcome", "part", "w", "exposure", (1, 2, 5), "mean")


def test_classes_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMQ_CLASSES", "0,1,2")
    assert load().classes == (0, 1, 2)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"missing": "median"}, "missing: Input should be 'refuse' or 'mean'"),
        ({"classes": "none"}, "classes: whole numbers separated by commas"),
    ],
)
def test_what_means_nothing_is_told(flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(**flags)


# --- a schema's file, and where rows come from --------------------------------------------------------


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """Write the file of a schema."""
    file = tmp_path / "schema.toml"
    file.write_text('format = 1\ncolumns = ["age", "ill"]\n[label]\ncolumn = "ill"\n[features.age]\n')
    return file


def database(**flags: Any) -> ParticipantSettings:
    return load(**{"data": "", "database": "sqlite:///canary.db", "query": "SELECT 1", **flags})


def test_a_schema_says_what_the_columns_are_and_names_them_where_files_do_not(schema: Path) -> None:
    reading = load(feature_schema=schema, delimiter=";", decimal=",").rows()
    assert reading.what == Schema((Feature("age"),), Label("ill"))
    assert reading.dialect == Dialect(";", ",", ("age", "ill"))


def test_without_a_schema_there_is_no_file_of_one() -> None:
    assert load().schema_file() is None
    assert load().rows().dialect == Dialect()


def test_tabulators_are_called_tab() -> None:
    assert load(delimiter="tab").rows().dialect.delimiter == "\t"


@pytest.mark.parametrize(
    "flags", [{"label": "y"}, {"split": "s"}, {"sample_weight": "w"}, {"offset": "o"}, {"classes": "0,1"}]
)
def test_what_a_schema_says_is_not_said_a_second_time(schema: Path, flags: dict[str, str]) -> None:
    (name,) = flags
    with pytest.raises(SettingsError, match=f"{name}: the schema says so; leave the setting out"):
        load(feature_schema=schema, **flags)


@pytest.mark.parametrize("delimiter", ["", ";;", "tabs"])
def test_a_delimiter_is_one_character_or_tab(delimiter: str) -> None:
    with pytest.raises(SettingsError, match="delimiter: one character, or tab"):
        load(delimiter=delimiter)


def test_rows_may_be_what_a_database_answers(tmp_path: Path) -> None:
    reading = database(watermark="SELECT 2").rows()
    assert (reading.data, reading.url) == ("", "sqlite:///canary.db")
    assert (reading.query, reading.watermark) == ("SELECT 1", "SELECT 2")
    secret = tmp_path / "url"
    secret.write_text("sqlite:///other.db\n")
    secret.chmod(0o600)
    assert database(database="", database_file=secret).rows().url == "sqlite:///other.db"
    assert "canary" not in repr(database())


def test_a_query_may_be_put_to_files() -> None:
    reading = load(query="SELECT * FROM data").rows()
    assert (reading.data, reading.query, reading.url) == ("rows.csv", "SELECT * FROM data", "")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"data": ""}, "data: give data, or database and query"),
        ({"database": "sqlite://", "query": "SELECT 1"}, "data: give data, or database and query"),
        ({"data": "", "database": "sqlite://"}, "query: give the query that the database answers with our rows"),
        ({"scheduler": "tcp://a:1", "query": "SELECT 1"}, "scheduler: a Dask cluster reads the .parquet files"),
        ({"watermark": "SELECT 1"}, "watermark: it is put to a database; files tell by themselves when they change"),
    ],
)
def test_rows_come_from_one_place(flags: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load(**flags)
