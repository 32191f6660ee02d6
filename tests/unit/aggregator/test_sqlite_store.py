"""What is particular to the store in an SQLite file; what every store promises is examined by the contract."""

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import pytest

from aggregator.errors import FencedError, StoreError
from aggregator.events import Include
from aggregator.store import Commit, ReleasedBody
from aggregator.store.sqlite import SQLiteStore
from aggregator.testing import record
from broker.checksum import with_checksum


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
    with pytest.raises(StoreError, match=r"notes.txt could not be read .* or no store; restore the newest backup"):
        SQLiteStore(path, "heart")
    assert path.read_bytes() == before


def test_the_store_of_another_federation_is_not_continued(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / "s", "heart").close()
    with pytest.raises(StoreError, match="is not that of federation 'lungs': use another store"):
        SQLiteStore(tmp_path / "s", "lungs")
    SQLiteStore(tmp_path / "s", "heart").close()


def test_a_store_of_another_layout_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    SQLiteStore(path, "heart").close()
    with sqlite3.connect(path) as database:
        database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", with_checksum("layout", "3"))
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


def test_a_file_that_went_back_underneath_is_not_written_over(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "s", "heart")) as store:
        assert store.take_over(above=4) == 5
        store.commit(Commit(5, {"a": b"1"}))
        with closing(sqlite3.connect(tmp_path / "s")) as database, database:
            database.execute("REPLACE INTO meta VALUES (?, ?, ?)", with_checksum("epoch", "3"))
        with pytest.raises(StoreError, match="is not as this aggregator left it: it has gone back"):
            store.commit(Commit(5, {"b": b"2"}))
        assert store.cells() == {"a": b"1"}
        store.commit(Commit(store.take_over(), {"b": b"2"}))
        assert store.cells() == {"a": b"1", "b": b"2"}


def test_a_file_that_another_process_holds_is_told_with_what_to_do(tmp_path: Path) -> None:
    with closing(SQLiteStore(tmp_path / "s", "heart")) as store, closing(sqlite3.connect(tmp_path / "s")) as holder:
        store._database.execute("PRAGMA busy_timeout = 0")
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process holds it, and may be frozen: end that one") as caught:
            store.take_over()
        assert "free space" not in str(caught.value)
        holder.rollback()
        assert store.take_over() == 1


def test_somebody_elses_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE meta (something)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is no store of ours: use another file"):
        SQLiteStore(path, "heart")
    assert path.read_bytes() == before


def test_of_a_store_that_is_made_nothing_else_stays(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", "heart")
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_who_only_looks_makes_and_changes_nothing_and_sees_one_moment(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="unable to open"):
        SQLiteStore(tmp_path / "s", "heart", read_only=True)
    assert list(tmp_path.iterdir()) == []
    store = SQLiteStore(tmp_path / "s", "heart")
    store.commit(Commit(1, {"a": b"1"}))
    with closing(SQLiteStore(tmp_path / "s", "heart", read_only=True)) as looking:
        assert looking.cells() == {"a": b"1"}
        store.commit(Commit(1, {"a": b"2"}))
        assert looking.cells() == {"a": b"1"}
        with pytest.raises(StoreError, match="could not be written"):
            looking.take_over()
    with pytest.raises(StoreError, match="is not that of federation 'lungs'"):
        SQLiteStore(tmp_path / "s", "lungs", read_only=True)
    store.close()


# --- bounds ---------------------------------------------------------------------------------


def test_the_ledger_keeps_the_newest_and_what_still_waits_for_a_version(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", "heart", keep_ledger=5)
    store.commit(Commit(1, {}, records=(record(1), record(2, verdict="stale"))))
    for number in range(3, 30):
        store.commit(Commit(1, {}, records=(record(number, verdict="stale"),), version_hashes={number: "x"}))
    assert [entry.base_version for entry in store.ledger()] == [1, 25, 26, 27, 28, 29]
    assert list(store.versions()) == [25, 26, 27, 28, 29]
    store.commit(Commit(1, {}, includes=(Include("a:i1:1", 30, 1.0),)))
    store.commit(Commit(1, {}, records=(record(30),)))
    assert [entry.base_version for entry in store.ledger()] == [26, 27, 28, 29, 30]
    store.close()


def test_a_ledger_that_is_to_be_shorter_than_before_becomes_so_in_small_steps(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", "heart")
    store.commit(Commit(1, {}, records=tuple(record(number, verdict="stale") for number in range(100))))
    store.close()
    store = SQLiteStore(tmp_path / "s", "heart", keep_ledger=10)
    lengths = []
    for number in range(100, 140):
        store.commit(Commit(1, {}, records=(record(number, verdict="stale"),)))
        lengths.append(len(list(store.ledger())))
    assert lengths[:3] == [97, 94, 91]
    assert lengths[-1] == 10
    store.close()


def test_of_releases_that_were_confirmed_the_newest_stay(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s", "heart")
    for version in range(1, 21):
        store.commit(Commit(1, {}, releases=(ReleasedBody(version, 1, b"x"),)))
        if version != 20:
            store.confirm(version)
    assert [row[0] for row in store._read("SELECT version FROM releases ORDER BY version")] == [*range(4, 21)]
    assert [release.version for release in store.unconfirmed()] == [20]
    store.close()


# --- what is damaged ------------------------------------------------------------------------

BACKUP = r"damaged.*restore the newest backup of it, and start every participant again"


def full(path: Path) -> None:
    """Write a store that has rows in each of its tables."""
    with closing(SQLiteStore(path, "heart")) as store:
        store.take_over()
        cells = {"progress": b"progress", "weights": bytes(range(256)) * 600}
        releases = (ReleasedBody(1, 1, b"release"), ReleasedBody(2, 1, b"another"))
        hashes = {1: "one", 2: "two"}
        includes = (Include("a:i1:1", 1, 0.5),)
        records = (record(1), record(2))
        store.commit(Commit(1, cells, records, includes, hashes, releases))
        store.confirm(1)


def everything(path: Path) -> object:
    with closing(SQLiteStore(path, "heart")) as store:
        return (store.cells(), [astuple(entry) for entry in store.ledger()], store.versions(), store.unconfirmed())


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("cells", "body = CAST('progresS' AS BLOB) WHERE key = 'progress'"),
        ("cells", "key = 'progresS' WHERE key = 'progress'"),
        ("ledger", "verdict = 'stale' WHERE update_id = 'a:i1:2'"),
        ("ledger", "included_in = NULL"),
        ("ledger", "weight = 0.6 WHERE update_id = 'a:i1:1'"),
        ("versions", "hash = 'onE' WHERE version = 1"),
        ("versions", "version = 3 WHERE version = 2"),
        ("releases", "confirmed = 1 - confirmed WHERE version = 1"),
        ("releases", "body = CAST('releasE' AS BLOB) WHERE version = 1"),
        ("releases", "checksum = CAST('' AS BLOB)"),
        ("meta", "value = '0' WHERE key = 'epoch'"),
        ("meta", "value = 'hearT' WHERE key = 'federation'"),
        ("meta", "value = '3' WHERE key = 'layout'"),
        ("meta", "key = 'epocH' WHERE key = 'epoch'"),
    ],
)
def test_what_is_not_what_was_written_is_not_used(tmp_path: Path, table: str, change: str) -> None:
    path = tmp_path / "s"
    full(path)
    with closing(sqlite3.connect(path)) as database, database:
        assert database.execute(f"UPDATE {table} SET {change}").rowcount  # noqa: S608 - the change is ours
    with pytest.raises(StoreError, match=f"in table {table}, what stands at .* is not what was written; restore"):
        everything(path)


@pytest.mark.parametrize("n_bytes", [0, 100, 20_000, 40_000, 32768 * 5])
def test_a_file_that_was_cut_off_is_told_with_what_to_do(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "s"
    full(path)
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(StoreError, match=BACKUP):
        everything(path)


def test_a_bit_that_flips_anywhere_is_told_in_a_sentence_or_makes_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "s"
    full(path)
    kept, whole, rng = everything(path), path.read_bytes(), random.Random(5)
    used = [at for at, byte in enumerate(whole) if byte]
    n_found = 0
    for at in rng.sample(used, 200):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        try:
            assert everything(path) == kept, f"byte {at}"
        except StoreError:
            n_found += 1
    assert n_found > 150


def test_a_disk_that_is_full_is_told_and_with_room_it_goes_on(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit."""
    command = [sys.executable, "-c", _UNTIL_FULL, str(tmp_path / "s")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert "could not be written" in said[0]
    assert "check its folder, the free space" in said[0]
    assert said[1:] == ["1 [1]", "2 [1, 2]"]


_UNTIL_FULL = """
import resource, signal, sys
from aggregator.errors import StoreError
from aggregator.store import Commit
from aggregator.store.sqlite import SQLiteStore
from aggregator.testing import record
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = SQLiteStore(sys.argv[1], "heart")
store.commit(Commit(1, {"progress": b"1"}, records=(record(1),)))
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))
second = Commit(1, {"progress": b"2", "weights": bytes(2_000_000)}, records=(record(2),))
try:
    store.commit(second)
except StoreError as error:
    print(error)
print(store.cells()["progress"].decode(), [entry.base_version for entry in store.ledger()])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.commit(second)
store.close()
store = SQLiteStore(sys.argv[1], "heart")
print(store.cells()["progress"].decode(), [entry.base_version for entry in store.ledger()])
"""


# --- the layout before ----------------------------------------------------------------------

_FIRST_LAYOUT = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cells (key TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE ledger (
    update_id TEXT PRIMARY KEY,
    participant TEXT NOT NULL,
    kind TEXT NOT NULL,
    base_version INTEGER NOT NULL,
    version INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    digest TEXT NOT NULL,
    included_in INTEGER,
    weight REAL
);
CREATE TABLE versions (version INTEGER PRIMARY KEY, hash TEXT NOT NULL);
CREATE TABLE releases (
    version INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    body BLOB NOT NULL,
    confirmed INTEGER NOT NULL
);
INSERT INTO meta VALUES ('layout', '1'), ('federation', 'heart'), ('epoch', '7');
INSERT INTO cells VALUES ('progress', x'01'), ('weights', x'00ff');
INSERT INTO ledger VALUES ('b:i:9', 'b', 'weights', 3, 3, 'accepted', 'd', 4, 0.25);
INSERT INTO ledger VALUES ('a:i:1', 'a', 'moments', 0, 0, 'accepted', 'd', NULL, NULL);
INSERT INTO versions VALUES (0, 'zero'), (1, 'one');
INSERT INTO releases VALUES (1, 6, x'aa', 1), (2, 7, x'bb', 0);
"""


def of_the_first_layout(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(_FIRST_LAYOUT)


WHAT_IT_HAD = (
    {"progress": b"\x01", "weights": b"\x00\xff"},
    [
        ("b:i:9", "b", "weights", 3, 3, "accepted", "d", 4, 0.25),
        ("a:i:1", "a", "moments", 0, 0, "accepted", "d", None, None),
    ],
    {0: "zero", 1: "one"},
    [ReleasedBody(2, 7, b"\xbb")],
)


def test_a_store_of_the_first_layout_is_taken_over_with_all_that_it_has(tmp_path: Path) -> None:
    path = tmp_path / "s"
    of_the_first_layout(path)
    assert everything(path) == WHAT_IT_HAD
    assert everything(path) == WHAT_IT_HAD
    with closing(SQLiteStore(path, "heart")) as store:
        assert store.defects() == []
        assert store.take_over() == 8
        store.commit(Commit(8, {}, records=(record(5),)))
        assert [entry.update_id for entry in store.ledger()] == ["b:i:9", "a:i:1", "a:i1:5"]


def test_taking_over_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    of_the_first_layout(path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("aggregator.store.sqlite.with_checksum", interrupted)
        with pytest.raises(KeyboardInterrupt):
            SQLiteStore(path, "heart")
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT value FROM meta WHERE key = 'layout'").fetchone() == ("1",)
    assert everything(path) == WHAT_IT_HAD


def test_a_store_of_the_first_layout_of_another_federation_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "s"
    of_the_first_layout(path)
    with pytest.raises(StoreError, match="is not that of federation 'lungs'"):
        SQLiteStore(path, "lungs")
    with pytest.raises(StoreError, match="brings it up to date"):
        SQLiteStore(path, "heart", read_only=True)
    assert everything(path) == WHAT_IT_HAD
