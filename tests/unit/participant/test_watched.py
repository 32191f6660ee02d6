"""Rows that may change: when they are looked at, when they count as read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from participant.errors import DataError
from participant.sources import Columns, Reading, Table
from participant.watched import Watched

if TYPE_CHECKING:
    from pathlib import Path

ROWS = "age,y\n50,0\n60,1\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    return path


@pytest.fixture
def watched(path: Path) -> Watched:
    reading = Reading(Columns("y"), str(path))
    return Watched(reading, reading.signature(), seconds=60.0)


def change(path: Path, content: str) -> None:
    path.write_text(content)
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)  # whatever the file system's clock ticks in


def test_rows_that_nobody_touched_have_not_changed(watched: Watched) -> None:
    assert not watched.have_changed()


def test_rows_that_were_added_are_noticed_and_read_once(watched: Watched, path: Path) -> None:
    change(path, ROWS + "70,1\n")
    assert watched.have_changed()
    assert watched.read().n_train == 3
    assert not watched.have_changed()


def test_a_file_written_again_as_it_was_may_have_changed(watched: Watched, path: Path) -> None:
    change(path, ROWS)
    assert watched.have_changed()


def test_rows_that_were_refused_count_as_not_read(watched: Watched, path: Path) -> None:
    change(path, ROWS + "seventy,1\n")
    with pytest.raises(DataError, match=r"rows\.csv, line 4, column 'age'"):
        watched.read()
    assert watched.have_changed()


def test_a_file_that_is_away_is_told_and_unchanged_when_it_is_back(watched: Watched, path: Path) -> None:
    path.rename(path.with_suffix(".away"))
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        watched.have_changed()
    path.with_suffix(".away").rename(path)
    assert not watched.have_changed()


def test_what_changes_while_it_is_read_is_noticed_by_the_next_look(
    watched: Watched, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Reading.table

    def read_and_change(reading: Reading) -> Table:
        table = read(reading)
        change(path, ROWS + "70,1\n")
        return table

    monkeypatch.setattr(Reading, "table", read_and_change)
    assert watched.read().n_train == 2
    assert watched.have_changed()


def test_rows_that_nothing_tells_of_never_change() -> None:
    reading = Reading(Columns("y"), query="SELECT age, y FROM visits", url="sqlite:///nowhere.db")
    assert not Watched(reading, reading.signature(), seconds=60.0).have_changed()
