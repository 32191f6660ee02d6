"""What is particular to the store in an SQLite file; what every store promises is examined by the contract."""

import sqlite3
from pathlib import Path

import pytest

from aggregator.errors import FencedError, StoreError
from aggregator.events import Include
from aggregator.store import Commit, ReleasedBody
from aggregator.store.sqlite import SQLiteStore
from aggregator.testing import record


def test_what_is_committed_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "federation.sqlite"
    store = SQLiteStore(path, "heart")
    store.commit(
        Commit(
            3,
            {"progress": b"1", "gone": None},
            records=(record(1), record(2)),
            includes=(Include("a:i1:1", 1, 0.5),),
            version_hashes={1: "one"},
            releases=(ReleasedBody(1, 3, b"model"), ReleasedBody(2, 3, b"newer")),
        )
    )
    store.confirm(1)
    store.close()
    store = SQLiteStore(path, "heart")
    assert store.cells() == {"progress": b"1"}
    assert [entry.included_in for entry in store.ledger()] == [1, None]
    assert store.versions() == {1: "one"}
    assert store.unconfirmed() == [ReleasedBody(2, 3, b"newer")]
    with pytest.raises(FencedError):
        store.commit(Commit(2, {}))
    store.close()


def test_a_commit_is_on_the_disk_when_it_returns(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", "heart")
    (mode,) = store._database.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = store._database.execute("PRAGMA synchronous").fetchone()
    assert (mode, synchronous) == ("wal", 2), "2 is FULL"
    store.close()


def test_a_full_disk_is_told_in_a_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", "heart")
    store.commit(Commit(1, {"progress": b"1"}))
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StoreError, match=r"could not be written .*full.*free space"):
        store.commit(Commit(2, {"progress": b"2", "weights": bytes(10**6)}))
    assert store.cells() == {"progress": b"1"}
    store.commit(Commit(1, {"progress": b"3"}))
    store.close()


def test_an_update_that_is_counted_already_and_a_version_with_another_hash_are_refused() -> None:
    store = SQLiteStore(":memory:", "heart")
    store.commit(Commit(1, {}, records=(record(1),), includes=(Include("a:i1:1", 1, 1.0),), version_hashes={1: "x"}))
    with pytest.raises(StoreError, match="counted once only"):
        store.commit(Commit(1, {"progress": b"2"}, includes=(Include("a:i1:1", 2, 1.0),)))
    with pytest.raises(StoreError, match="version 1 stands in :memory: with another hash"):
        store.commit(Commit(1, {"progress": b"2"}, version_hashes={1: "y"}))
    assert store.cells() == {}
    store.close()


def test_a_file_in_a_folder_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be opened .*check its folder"):
        SQLiteStore(tmp_path / "nowhere" / "s", "heart")


def test_a_file_that_is_no_store_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"not a database, just some notes of mine" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"notes.txt cannot be opened"):
        SQLiteStore(path, "heart")
    assert path.read_bytes() == before


def test_the_store_of_another_federation_is_not_continued(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "s", "heart").close()
    with pytest.raises(StoreError, match="is not that of federation 'lungs': use another file"):
        SQLiteStore(tmp_path / "s", "lungs")
    SQLiteStore(tmp_path / "s", "heart").close()


def test_a_store_of_another_layout_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    SQLiteStore(path, "heart").close()
    with sqlite3.connect(path) as database:
        database.execute("UPDATE meta SET value = '2' WHERE key = 'layout'")
        database.execute("DROP TABLE versions")
    database.close()
    with pytest.raises(StoreError, match="written by another version of fedmq"):
        SQLiteStore(path, "heart")
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT name FROM sqlite_master WHERE name = 'versions'").fetchall() == []
    database.close()


def test_a_closed_store_is_told_in_a_sentence() -> None:
    store = SQLiteStore(":memory:", "heart")
    store.close()
    with pytest.raises(StoreError, match="could not be read"):
        store.cells()
    with pytest.raises(StoreError, match="could not be written"):
        store.confirm(1)
