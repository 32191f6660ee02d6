"""The store in one SQLite file, or in memory for a federation that need not outlive its process."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aggregator.errors import FencedError, StoreError
from aggregator.store import Commit, LedgerEntry, ReleasedBody

#: Of the tables below; a file with another number was written by another version of fedmq.
LAYOUT = 1

# 32 KiB pages: with SQLite's 4 KiB an 8 MiB vector takes nearly twice as long to write.
_PRAGMAS = (
    "PRAGMA page_size = 32768",
    "PRAGMA journal_mode = WAL",
    # FULL: a commit is on the disk when it returns, also if the machine loses power.
    "PRAGMA synchronous = FULL",
    "PRAGMA busy_timeout = 5000",
    # In pages, so 64 MiB: a vector that is replaced every version is copied to the file once, not each time.
    "PRAGMA wal_autocheckpoint = 2000",
    # In KiB when negative: with less, SQLite writes the pages of a large vector twice, at three times the cost.
    "PRAGMA cache_size = -65536",
)

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS cells (key TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
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
CREATE TABLE IF NOT EXISTS versions (version INTEGER PRIMARY KEY, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS releases (
    version INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    body BLOB NOT NULL,
    confirmed INTEGER NOT NULL
);
"""


class SQLiteStore:
    """A store in the file at ``path``; ``:memory:`` keeps it with the process.

    Raises
    ------
    StoreError
        When the file cannot be opened, is no store of ours, or belongs to another federation.
    """

    def __init__(self, path: Path | str, federation: str) -> None:
        self._path = str(path)
        # Commits come from a pool's threads, one at a time under this lock.
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._error("cannot be opened", error) from error
        try:
            self._prepare(federation)
        except BaseException:
            self._database.close()
            raise

    def _prepare(self, federation: str) -> None:
        with self._transaction("cannot be opened", pragmas=_PRAGMAS):
            for table in _TABLES.split(";"):
                self._database.execute(table)
            self._claim(
                "layout", str(LAYOUT), "was written by another version of fedmq: use that version, or another file"
            )
            self._claim("federation", federation, f"is not that of federation {federation!r}: use another file")
            self._database.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', '0')")

    def _claim(self, key: str, value: str, otherwise: str) -> None:
        self._database.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, value))
        (found,) = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if found != value:
            raise StoreError(f"the store {self._path} {otherwise}")

    def cells(self) -> dict[str, bytes]:
        """Return what was kept of the state; empty for a new federation."""
        return dict(self._rows("SELECT key, body FROM cells"))

    def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable, whole; raises `FencedError` or `StoreError`, and then nothing has changed."""
        with self._transaction("could not be written"):
            self._fence(commit.epoch)
            self._write_cells(commit)
            self._write_ledger(commit)
            self._write_versions(commit)
            self._database.executemany(
                "INSERT OR REPLACE INTO releases VALUES (?, ?, ?, 0)",
                [(release.version, release.epoch, release.body) for release in commit.releases],
            )

    def _fence(self, epoch: int) -> None:
        changed = self._database.execute(
            "UPDATE meta SET value = ? WHERE key = 'epoch' AND CAST(value AS INTEGER) <= ?", (str(epoch), epoch)
        )
        if changed.rowcount != 1:
            raise FencedError(
                f"another aggregator has taken over the store {self._path}: this one commits nothing more and stops"
            )

    def _write_cells(self, commit: Commit) -> None:
        kept = [(key, body) for key, body in commit.cells.items() if body is not None]
        gone = [(key,) for key, body in commit.cells.items() if body is None]
        self._database.executemany("INSERT OR REPLACE INTO cells VALUES (?, ?)", kept)
        self._database.executemany("DELETE FROM cells WHERE key = ?", gone)

    def _write_ledger(self, commit: Commit) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            [
                (r.update_id, r.participant, r.kind, r.base_version, r.version, r.verdict, r.digest)
                for r in commit.records
            ],
        )
        for include in commit.includes:
            done = self._database.execute(
                "UPDATE ledger SET included_in = ?, weight = ? WHERE update_id = ? AND included_in IS NULL",
                (include.version, include.weight, include.update_id),
            )
            if done.rowcount != 1:
                raise StoreError(
                    f"update {include.update_id} is not waiting in the ledger of {self._path}: it may be counted "
                    "once only; keep the file and report this"
                )

    def _write_versions(self, commit: Commit) -> None:
        for version, digest in commit.version_hashes.items():
            self._database.execute("INSERT OR IGNORE INTO versions VALUES (?, ?)", (version, digest))
            (found,) = self._database.execute("SELECT hash FROM versions WHERE version = ?", (version,)).fetchone()
            if found != digest:
                raise StoreError(
                    f"version {version} stands in {self._path} with another hash: a version is published once; "
                    "keep the file and report this"
                )

    def unconfirmed(self) -> list[ReleasedBody]:
        """Return the releases that no broker has confirmed yet, oldest first."""
        rows = self._rows("SELECT version, epoch, body FROM releases WHERE confirmed = 0 ORDER BY version")
        return [ReleasedBody(*row) for row in rows]

    def confirm(self, version: int) -> None:
        """Note that the release of ``version`` was confirmed."""
        with self._transaction("could not be written"):
            self._database.execute("UPDATE releases SET confirmed = 1 WHERE version = ?", (version,))

    def ledger(self) -> Iterator[LedgerEntry]:
        """Iterate over every contribution ever judged, in the order of arrival."""
        yield from (LedgerEntry(*row) for row in self._rows("SELECT * FROM ledger ORDER BY rowid"))

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of every version."""
        return dict(self._rows("SELECT version, hash FROM versions ORDER BY version"))

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def _rows(self, query: str) -> list[Any]:
        with self._lock:
            try:
                return self._database.execute(query).fetchall()
            except sqlite3.Error as error:
                raise self._error("could not be read", error) from error

    @contextmanager
    def _transaction(self, what: str, pragmas: tuple[str, ...] = ()) -> Iterator[None]:
        with self._lock:
            try:
                for pragma in pragmas:
                    self._database.execute(pragma)
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._database.execute("COMMIT")
                except BaseException:
                    self._database.rollback()  # nothing to do where SQLite has done it itself, on a full disk
                    raise
            except sqlite3.Error as error:
                raise self._error(what, error) from error

    def _error(self, what: str, error: sqlite3.Error) -> StoreError:
        return StoreError(
            f"the store {self._path} {what} ({error}): check its folder, the free space and who may write"
        )
