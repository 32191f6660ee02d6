"""What the stores in databases have in common: the tables, the statements, and a checksum in each row.

A database says how it runs a piece of work as one transaction, and in which types it keeps bytes and positions.
Statements have ``?`` where a value belongs.

Every row bears a checksum over all that it says. A row whose checksum is another one is not what we wrote: it is never
used, and the error says what to do instead.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from aggregator.errors import StoreError
from aggregator.store import (
    KEPT_RELEASES,
    KEPT_ROWS,
    NEVER_INCLUDED,
    PRUNED_AT_ONCE,
    Commit,
    LedgerEntry,
    ReleasedBody,
    bad_include,
    bad_version,
    fenced,
    gone_back,
)
from broker.checksum import is_whole, with_checksum

T = TypeVar("T")

#: Of the tables below; a store with a higher number was written by a later version of fedmq.
LAYOUT = 2

#: Ledger rows read at a time.
PAGE_ROWS = 10_000

TABLES = (
    "CREATE TABLE {new} meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum {bytes} NOT NULL)",
    "CREATE TABLE {new} cells (key TEXT PRIMARY KEY, body {bytes} NOT NULL, checksum {bytes} NOT NULL)",
    """CREATE TABLE {new} ledger (
        position {position},
        update_id TEXT NOT NULL UNIQUE,
        participant TEXT NOT NULL,
        kind TEXT NOT NULL,
        base_version BIGINT NOT NULL,
        version BIGINT NOT NULL,
        verdict TEXT NOT NULL,
        digest TEXT NOT NULL,
        included_in BIGINT,
        weight DOUBLE PRECISION,
        checksum {bytes} NOT NULL
    )""",
    "CREATE TABLE {new} versions (version BIGINT PRIMARY KEY, hash TEXT NOT NULL, checksum {bytes} NOT NULL)",
    """CREATE TABLE {new} releases (
        version BIGINT PRIMARY KEY,
        epoch BIGINT NOT NULL,
        body {bytes} NOT NULL,
        confirmed INTEGER NOT NULL,
        checksum {bytes} NOT NULL
    )""",
)


class _Table(NamedTuple):
    """How the rows of a table are read: ``columns`` are what the checksum is over, ``key`` what names a row."""

    columns: str
    key: str
    order: str

    def query(self, name: str) -> str:
        """Return the statement that reads all of it, each row's checksum last."""
        return f"SELECT {self.columns}, checksum FROM {name} ORDER BY {self.order}"


_ENTRY = "update_id, participant, kind, base_version, version, verdict, digest, included_in, weight"
_READ = {
    "meta": _Table("key, value", "key", "key"),
    "cells": _Table("key, body", "key", "key"),
    "ledger": _Table(_ENTRY, "update_id", "position"),
    "versions": _Table("version, hash", "version", "version"),
    "releases": _Table("version, epoch, body, confirmed", "version", "version"),
}
_LEDGER_PAGE = f"SELECT position, {_ENTRY}, checksum FROM ledger WHERE position > ? ORDER BY position LIMIT {PAGE_ROWS}"
_PUT_META = (
    "INSERT INTO meta VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, checksum = excluded.checksum"
)
_PUT_CELL = (
    "INSERT INTO cells VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET body = excluded.body, checksum = excluded.checksum"
)
PUT_ENTRY = (
    f"INSERT INTO ledger ({_ENTRY}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (update_id) DO NOTHING"
)
_FIND_ENTRY = f"SELECT {_ENTRY}, checksum FROM ledger WHERE update_id = ?"
_INCLUDE = "UPDATE ledger SET included_in = ?, weight = ?, checksum = ? WHERE update_id = ?"
PUT_VERSION = "INSERT INTO versions VALUES (?, ?, ?) ON CONFLICT (version) DO NOTHING"
PUT_RELEASE = (
    "INSERT INTO releases VALUES (?, ?, ?, ?, ?) ON CONFLICT (version) DO UPDATE SET "
    "epoch = excluded.epoch, body = excluded.body, confirmed = excluded.confirmed, checksum = excluded.checksum"
)
#: What still waits for a version stays, however old it is.
_PRUNE_LEDGER = (
    "DELETE FROM ledger WHERE position IN (SELECT position FROM ledger "
    "WHERE position <= (SELECT MAX(position) FROM ledger) - ? AND "
    f"(included_in IS NOT NULL OR verdict <> 'accepted' OR kind IN ({', '.join(map(repr, NEVER_INCLUDED))})) "
    "ORDER BY position LIMIT ?)"
)
_PRUNE_VERSIONS = "DELETE FROM versions WHERE version <= (SELECT MAX(version) FROM versions) - ?"
_PRUNE_RELEASES = (
    "DELETE FROM releases WHERE confirmed = 1 AND version NOT IN "
    f"(SELECT version FROM releases WHERE confirmed = 1 ORDER BY version DESC LIMIT {KEPT_RELEASES})"
)


class SQLStore(ABC):
    """A store in a database; how that is reached, a subclass knows."""

    #: Of this database: text in statements that makes a row ours until the transaction ends, and how it keeps things.
    _locking = ""
    _types: dict[str, str]
    #: How the store is called in errors, and what helps where a row is not what was written.
    place: str
    _remedy: str

    def __init__(self, federation: str, *, keep_ledger: int = KEPT_ROWS) -> None:
        self._federation = federation
        self._keep = keep_ledger
        #: The highest epoch that was ours.
        self._epoch: int | None = None

    @abstractmethod
    def _in_transaction(self, what: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, run as one transaction; it may be run again where the outcome is unknown."""

    @abstractmethod
    def _execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run ``statement`` in the transaction that is on, and return its cursor."""

    @abstractmethod
    def _execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run ``statement`` for each of ``rows``."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the database."""

    # --- opening -------------------------------------------------------------------------------

    def _create_tables(self) -> None:
        for table in TABLES:
            self._execute(table.format(new="IF NOT EXISTS", **self._types))

    def _claim(self) -> None:
        """Make a new store this federation's."""
        for key, value in {"layout": str(LAYOUT), "federation": self._federation, "epoch": "0"}.items():
            self._put_meta(key, value)

    def _check_claim(self) -> None:
        """Raise `StoreError` where the store is not this federation's, in this layout."""
        for key in ("layout", "federation", "epoch"):
            if self._meta(key) is None:
                raise self._damaged("meta", key)
        if self._meta("layout") != str(LAYOUT):
            raise StoreError(
                f"the store {self.place} was written by another version of fedmq: use that version, or another store"
            )
        if self._meta("federation") != self._federation:
            raise StoreError(
                f"the store {self.place} is not that of federation {self._federation!r}: use another store"
            )

    def _meta(self, key: str) -> str | None:
        row = self._execute("SELECT key, value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(self._whole("meta", row)[1])

    def _put_meta(self, key: str, value: str) -> None:
        self._execute(_PUT_META, with_checksum(key, value))

    # --- epochs --------------------------------------------------------------------------------

    def take_over(self, above: int = 0) -> int:
        """Raise the epoch, durably, and return it: whoever holds an older one can commit nothing more."""
        self._epoch = self._in_transaction("could not be written", partial(self._next_epoch, above))
        return self._epoch

    def _next_epoch(self, above: int) -> int:
        epoch = max(self._kept_epoch(), above) + 1
        self._put_meta("epoch", str(epoch))
        return epoch

    def _kept_epoch(self) -> int:
        """Return the epoch, which nobody else raises until the transaction has ended."""
        query = f"SELECT key, value, checksum FROM meta WHERE key = 'epoch'{self._locking}"
        row = self._execute(query).fetchone()
        if row is None:
            raise self._damaged("meta", "epoch")
        return int(self._whole("meta", row)[1])

    # --- writing -------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable, whole; raises `FencedError` or `StoreError`, and then nothing has changed."""
        self._in_transaction("could not be written", partial(self._write, commit))
        self._epoch = commit.epoch

    def _write(self, commit: Commit) -> None:
        kept = self._kept_epoch()
        if commit.epoch < kept:
            raise fenced(self.place)
        if not self._is_as_left(commit.epoch, kept):
            raise gone_back(self.place)
        if commit.epoch > kept:
            self._put_meta("epoch", str(commit.epoch))
        self._write_cells(commit)
        self._write_ledger(commit)
        self._write_versions(commit)
        for release in commit.releases:
            self._execute(PUT_RELEASE, with_checksum(release.version, release.epoch, release.body, 0))

    def _is_as_left(self, epoch: int, kept: int) -> bool:  # noqa: ARG002 - for those that know more of an epoch
        """Whether nothing that was written by this object under ``epoch`` is gone; ``kept`` is the store's epoch."""
        return self._epoch is None or self._epoch <= kept

    def _write_cells(self, commit: Commit) -> None:
        kept = [with_checksum(key, body) for key, body in commit.cells.items() if body is not None]
        gone = [(key,) for key, body in commit.cells.items() if body is None]
        if kept:
            self._execute_many(_PUT_CELL, kept)
        if gone:
            self._execute_many("DELETE FROM cells WHERE key = ?", gone)

    def _write_ledger(self, commit: Commit) -> None:
        if commit.records:
            rows = [
                with_checksum(
                    r.update_id, r.participant, r.kind, r.base_version, r.version, r.verdict, r.digest, *_IN_NONE
                )
                for r in commit.records
            ]
            self._execute_many(PUT_ENTRY, rows)
        for include in commit.includes:
            row = self._execute(_FIND_ENTRY, (include.update_id,)).fetchone()
            entry = None if row is None else LedgerEntry(*self._whole("ledger", row))
            if entry is None or entry.included_in is not None:
                raise bad_include(include, self.place)
            included = with_checksum(*row[:7], include.version, include.weight)
            self._execute(_INCLUDE, (*included[7:], include.update_id))
        if commit.records:
            # A few more than have come: so they never are many more than are to be kept, nor is a step ever long.
            self._execute(_PRUNE_LEDGER, (self._keep, PRUNED_AT_ONCE * len(commit.records)))

    def _write_versions(self, commit: Commit) -> None:
        for version, digest in commit.version_hashes.items():
            self._execute(PUT_VERSION, with_checksum(version, digest))
            row = self._execute("SELECT version, hash, checksum FROM versions WHERE version = ?", (version,)).fetchone()
            if self._whole("versions", row)[1] != digest:
                raise bad_version(version, self.place)
        if commit.version_hashes:
            self._execute(_PRUNE_VERSIONS, (self._keep,))

    def confirm(self, version: int) -> None:
        """Note that the release of ``version`` was confirmed, and each older one; not from one that is fenced."""
        self._in_transaction("could not be written", partial(self._confirm, version))

    def _confirm(self, version: int) -> None:
        if self._epoch is not None and self._epoch < self._kept_epoch():
            return
        query = "SELECT version, epoch, body, confirmed, checksum FROM releases WHERE version <= ? AND confirmed = 0"
        for row in self._execute(query, (version,)).fetchall():
            each, epoch, body, _ = self._whole("releases", row)
            self._execute(PUT_RELEASE, with_checksum(each, epoch, body, 1))
        self._execute(_PRUNE_RELEASES)

    # --- reading -------------------------------------------------------------------------------

    def cells(self) -> dict[str, bytes]:
        """Return what was kept of the state; empty for a new federation."""
        return dict(self._rows("cells"))

    def unconfirmed(self) -> list[ReleasedBody]:
        """Return the releases that no broker has confirmed yet, oldest first."""
        return [ReleasedBody(*row[:3]) for row in self._rows("releases") if not row[3]]

    def ledger(self) -> Iterator[LedgerEntry]:
        """Iterate over the contributions judged, in the order of arrival."""
        for row in self._pages():
            yield LedgerEntry(*self._whole("ledger", row))

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of each version."""
        return dict(self._rows("versions"))

    def defects(self) -> list[str]:
        """Return a sentence for each row that is not what was written, and for whatever else the database finds."""
        found = list(self._defects_of_database())
        for name, table in _READ.items():
            rows = self._pages() if name == "ledger" else self._read(table.query(name))
            found += [str(self._damaged(name, row[0])) for row in rows if not is_whole(row)]
        return found

    def _defects_of_database(self) -> Sequence[str]:
        """Return what the database itself finds."""
        return ()

    def _rows(self, name: str) -> list[tuple[Any, ...]]:
        return [self._whole(name, row) for row in self._read(_READ[name].query(name))]

    def _pages(self) -> Iterator[Sequence[Any]]:
        """Yield the rows of the ledger without holding them all."""
        position = -1
        while page := self._read(_LEDGER_PAGE, (position,)):
            position = page[-1][0]
            yield from (row[1:] for row in page)

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        rows: list[Any] = self._in_transaction("could not be read", lambda: self._execute(query, values).fetchall())
        return rows

    def _whole(self, table: str, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return ``row`` without its checksum; raises `StoreError` where that is another one."""
        if not is_whole(row):
            raise self._damaged(table, row[0])
        return tuple(row[:-1])

    def _damaged(self, table: str, key: Any) -> StoreError:
        return StoreError(
            f"the store {self.place} is damaged: in table {table}, what stands at {_shown(key)} is not what was "
            f"written; {self._remedy}"
        )


#: Nothing is in a model when it is recorded.
_IN_NONE = (None, None)


def _shown(key: Any) -> str:
    """Return the name of a row; of one that is damaged it may be anything."""
    text = str(key)
    return text if text.isascii() and text.isprintable() and len(text) <= _LONGEST_NAME else "a row"


_LONGEST_NAME = 200
