"""The store in one SQLite file, or in SQLite's memory."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, TypeVar

from aggregator.errors import StoreError
from aggregator.store import KEPT_ROWS
from aggregator.store.sql import SQLStore
from broker.checksum import with_checksum

T = TypeVar("T")

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

_IN_MEMORY = ":memory:"

_BACKUP = (
    "restore the newest backup of it, and start every participant again (docs/operations.md); without a backup the "
    "federation begins anew with an empty state folder"
)

#: What SQLite says of a file that is not what SQLite wrote.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class SQLiteStore(SQLStore):
    """A store in the file at ``path``; ``:memory:`` keeps it with the process.

    That the file has gone back underneath it is noticed where it goes back behind the last `take_over`.

    Parameters
    ----------
    keep_ledger : so many rows of the ledger stay, and hashes of versions.
    read_only : for who only looks: nothing is made, changed or brought up to date.

    Raises
    ------
    StoreError
        When the file cannot be opened, is damaged or no store of ours, or belongs to another federation.
    """

    _types = {"bytes": "BLOB", "position": "INTEGER PRIMARY KEY"}  # noqa: RUF012 - as the base class declares it
    _remedy = _BACKUP

    def __init__(
        self, path: Path | str, federation: str, *, keep_ledger: int = KEPT_ROWS, read_only: bool = False
    ) -> None:
        super().__init__(federation, keep_ledger=keep_ledger)
        self.place = str(path)
        # Commits come from a pool's threads, one at a time under this lock.
        self._lock = threading.Lock()
        if self.place != _IN_MEMORY and not read_only:
            self._make_file(Path(path))
        self._connect(read_only=read_only)
        try:
            self._prepare(read_only=read_only)
        except BaseException:
            self._database.close()
            raise

    def _connect(self, *, read_only: bool, place: str | None = None) -> None:
        place = place or self.place
        name = f"{Path(place).absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        try:
            self._database = sqlite3.connect(
                place if place == _IN_MEMORY else name,
                uri=place != _IN_MEMORY,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise self._error("cannot be opened", error) from error

    def _make_file(self, path: Path) -> None:
        """Make a new store under another name, and give it its own when it is whole: it is never there half."""
        if path.exists():
            if path.is_file() and path.stat().st_size == 0:
                raise StoreError(f"the store {path} is damaged: the file is empty; {_BACKUP}")
            return
        draft = f"{path}.{token_hex(8)}.new"
        try:
            with suppress(FileExistsError):  # another has made it meanwhile
                os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
                self._connect(read_only=False, place=draft)
                try:
                    self._in_transaction("cannot be opened", self._create, pragmas=_PRAGMAS)
                finally:
                    self._database.close()
                _name(draft, path)
                _to_disk(path.parent)
        except OSError as error:
            raise StoreError(f"the store {path} cannot be opened ({error.strerror}): {_CHECK}") from None
        finally:
            for name in (draft, f"{draft}-wal", f"{draft}-shm"):
                Path(name).unlink(missing_ok=True)

    def _create(self) -> None:
        self._create_tables()
        self._claim()

    def _prepare(self, *, read_only: bool) -> None:
        tables = {name for (name,) in self._read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if self.place != _IN_MEMORY and not {"meta", "cells", "ledger"} <= tables:
            raise StoreError(f"{self.place} is no store of ours: use another file")
        if self.place != _IN_MEMORY and (found := self._read("PRAGMA integrity_check(1)")[0][0]) != "ok":
            raise StoreError(f"the store {self.place} is damaged ({_first_line(found)}): {_BACKUP}")
        if read_only:
            with self._lock, self._told("cannot be opened"):
                self._database.execute("BEGIN")  # until it is closed: all that is read is of one moment
                if self._is_first_layout():
                    raise StoreError(
                        f"the store {self.place} was written by a former version of fedmq: the service brings it up to "
                        "date when it starts"
                    )
                self._check_claim()
        else:
            self._in_transaction("cannot be opened", self._make_current, pragmas=_PRAGMAS)

    def _make_current(self) -> None:
        if self.place == _IN_MEMORY:
            self._create()
        if self._is_first_layout():
            self._take_over_first_layout()
        self._check_claim()

    def _is_first_layout(self) -> bool:
        """Whether its rows have no checksums yet."""
        return [row[1] for row in self._execute("PRAGMA table_info(meta)").fetchall()] == ["key", "value"]

    def _take_over_first_layout(self) -> None:
        """Copy a store without checksums, as layout 1 was, into tables of ours: all of it or, when killed, nothing."""
        meta = dict(self._execute("SELECT key, value FROM meta").fetchall())
        if meta.get("layout") != "1" or meta.get("federation") != self._federation:
            raise StoreError(
                f"the store {self.place} is not that of federation {self._federation!r}, or was written by another "
                "version of fedmq: use another store"
            )
        names = ("meta", "cells", "ledger", "versions", "releases")
        for name in names:
            self._execute(f"ALTER TABLE {name} RENAME TO former_{name}")
        self._create_tables()
        for key, value in {**meta, "layout": "2"}.items():
            self._put_meta(key, value)
        columns = {
            "cells": "key, body",
            "ledger": (
                "rowid, update_id, participant, kind, base_version, version, verdict, digest, included_in, weight"
            ),
            "versions": "version, hash",
            "releases": "version, epoch, body, confirmed",
        }
        for name, which in columns.items():
            # A row at a time: the ledger may be long.
            reading = self._database.execute(f"SELECT {which} FROM former_{name} ORDER BY rowid")
            first = 1 if name == "ledger" else 0  # its position is not what was said, only when
            marks = ", ".join("?" * (len(which.split(", ")) + 1))
            self._database.executemany(
                f"INSERT INTO {name} VALUES ({marks})",
                ((*row[:first], *with_checksum(*row[first:])) for row in reading),
            )
        for name in names:
            self._execute(f"DROP TABLE former_{name}")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    # --- what a database does ------------------------------------------------------------------

    def _in_transaction(self, what: str, work: Callable[[], T], *, pragmas: Sequence[str] = ()) -> T:
        with self._lock, self._told(what):
            for pragma in pragmas:
                self._database.execute(pragma)
            self._database.execute("BEGIN IMMEDIATE")
            try:
                result = work()
                self._database.execute("COMMIT")
            except BaseException:
                self._database.rollback()  # nothing to do where SQLite has done it itself, on a full disk
                raise
            return result

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock, self._told("could not be read"):  # a statement alone needs no transaction
            return self._database.execute(query, values).fetchall()

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._database.execute(statement, values)

    def _execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._database.executemany(statement, rows)

    def _defects_of_database(self) -> Sequence[str]:
        found = [_first_line(row[0]) for row in self._read("PRAGMA integrity_check(20)")]
        return [f"the store {self.place} is damaged ({each}): {_BACKUP}" for each in found if each != "ok"]

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(what, error) from error

    def _error(self, what: str, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _DAMAGED:  # the rest of the code says more of it
            return StoreError(f"the store {self.place} {what} ({error}): it is damaged, or no store; {_BACKUP}")
        if code is not None and code & 0xFF == sqlite3.SQLITE_BUSY:
            return StoreError(
                f"the store {self.place} {what}: another process holds it, and may be frozen: end that one"
            )
        return StoreError(f"the store {self.place} {what} ({error}): {_CHECK}")


_CHECK = "check its folder, the free space and who may write"


def _first_line(found: str) -> str:
    return str(found).strip().splitlines()[0] if found else "nothing can be said of it"


def _name(draft: str, path: Path) -> None:
    """Give the file ``draft`` its name, unless there is one of that name."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, where two that begin at once cannot be kept apart
        Path(draft).rename(path)


def _to_disk(folder: Path) -> None:
    """Make the names in ``folder`` durable."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
