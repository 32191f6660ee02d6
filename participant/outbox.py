"""What a participant has computed and the aggregator may not have yet, durable before it is sent.

A contribution is put here in the bytes in which it is sent: a resend is the same bytes, whatever was killed in between.
It stays until a model's roster says that it is settled: a broker that confirmed it may still lose its disk.

Each row bears a checksum: an entry that is not what was put here is never sent.

The incarnation is drawn when the file is made. A participant that has lost its disk counts its contributions from 1
again, under another incarnation, and is not mistaken for its former self.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from broker.checksum import is_whole, with_checksum
from participant.errors import OutboxError

#: Of the tables below; a file with a higher number was written by a later version of fedmq.
LAYOUT = 2

# As in the aggregator's store: pages and cache for large vectors, and on the disk when a call returns.
_PRAGMAS = (
    "PRAGMA page_size = 32768",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA wal_autocheckpoint = 2000",
    "PRAGMA cache_size = -65536",
)

_TABLES = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum BLOB NOT NULL)",
    """CREATE TABLE outbox (
        sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body BLOB NOT NULL, checksum BLOB NOT NULL
    )""",
)

#: What SQLite says of a file that is not what SQLite wrote.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_REMEDY = (
    "start this participant with a new state folder; it counts as a new one then: what it had sent is still counted "
    "once, and what it had not sent is computed again"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A contribution that is not settled yet; ``kind`` is the word in its routing key."""

    sequence: int
    kind: str
    body: bytes


class Outbox:
    """The outbox of one participant, in the file at ``path``; ``:memory:`` keeps it with the process.

    Parameters
    ----------
    incarnation : used if the file is new.

    Raises
    ------
    OutboxError
        When the file cannot be opened, is damaged or no outbox of ours, or belongs to another participant.
    """

    def __init__(self, path: Path | str, *, owner: str, incarnation: str) -> None:
        self._path = str(path)
        self._lock = threading.Lock()  # calls come from a pool's threads, one at a time
        try:
            self._database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._error("cannot be opened", error) from error
        try:
            self._prepare(owner, incarnation)
        except BaseException:
            self._database.close()
            raise

    def _prepare(self, owner: str, incarnation: str) -> None:
        is_new = self._is_new()
        made = {"layout": str(LAYOUT), "owner": owner, "incarnation": incarnation, "last": "0", "salt": token_hex(16)}
        with self._transaction("cannot be opened", _PRAGMAS):
            if is_new:
                self._create(made, [])
            elif [row[1] for row in self._database.execute("PRAGMA table_info(meta)")] == ["key", "value"]:
                self._take_over_first_layout(made["salt"])
        if self._meta("layout") != str(LAYOUT):
            raise OutboxError(f"the outbox {self._path} was written by another version of fedmq: use that version")
        if self._meta("owner") != owner:
            raise OutboxError(f"the outbox {self._path} belongs to another participant: give each its own state folder")

    def _is_new(self) -> bool:
        """Whether there is nothing in the file yet; raises `OutboxError` where it is damaged, or none of ours."""
        with self._transaction("cannot be opened", begin="BEGIN"):
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            (found,) = self._database.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise OutboxError(f"the outbox {self._path} is damaged ({str(found).splitlines()[0]}): {_REMEDY}")
        if tables and tables != {"meta", "outbox"}:
            raise OutboxError(f"{self._path} is no outbox of ours: give this participant a state folder of its own")
        return not tables

    def _create(self, meta: Mapping[str, str], entries: Sequence[Sequence[Any]]) -> None:
        for table in _TABLES:
            self._database.execute(table)
        rows = [with_checksum(key, value) for key, value in meta.items()]
        self._database.executemany("INSERT INTO meta VALUES (?, ?, ?)", rows)
        self._database.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?)", [with_checksum(*row) for row in entries])

    def _take_over_first_layout(self, salt: str) -> None:
        """Give the rows of a file without checksums, as layout 1 was, what they lack; the oldest lack the salt too."""
        meta = {"salt": salt, **dict(self._database.execute("SELECT key, value FROM meta").fetchall())}
        if meta.get("layout") != "1":
            raise OutboxError(f"the outbox {self._path} was written by another version of fedmq: use that version")
        entries = self._database.execute("SELECT sequence, kind, body FROM outbox").fetchall()
        self._database.execute("DROP TABLE meta")
        self._database.execute("DROP TABLE outbox")
        self._create({**meta, "layout": str(LAYOUT)}, entries)

    @property
    def incarnation(self) -> str:
        """Drawn when the file was made."""
        return self._meta("incarnation")

    @property
    def salt(self) -> str:
        """Drawn when the file was made, and never sent: with it, nobody can try which rows a fingerprint is of."""
        return self._meta("salt")

    @property
    def last_sequence(self) -> int:
        """The highest number ever put here."""
        return int(self._meta("last"))

    def put(self, entry: Entry) -> None:
        """Keep ``entry``, durably, before it is sent; with one in flight, what came before it is settled."""
        with self._transaction("could not be written"):
            self._database.execute("DELETE FROM outbox WHERE sequence < ?", (entry.sequence,))
            row = with_checksum(entry.sequence, entry.kind, entry.body)
            self._database.execute("INSERT INTO outbox VALUES (?, ?, ?, ?)", row)
            last = with_checksum("last", str(entry.sequence))
            self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", last)

    def settle(self, sequence: int) -> None:
        """Forget what has a number up to ``sequence``."""
        with self._transaction("could not be written"):
            self._database.execute("DELETE FROM outbox WHERE sequence <= ?", (sequence,))

    def entries(self) -> list[Entry]:
        """Return what is not settled, oldest first."""
        with self._transaction("could not be read"):
            query = "SELECT sequence, kind, body, checksum FROM outbox ORDER BY sequence"
            rows = self._database.execute(query).fetchall()
        return [Entry(*self._whole(row)) for row in rows]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def _meta(self, key: str) -> str:
        with self._transaction("could not be read"):
            row = self._database.execute("SELECT key, value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
        return str(self._whole(row)[1])

    def _whole(self, row: Sequence[Any] | None) -> Sequence[Any]:
        """Return ``row`` without its checksum; raises `OutboxError` where it is not what was written."""
        if row is None or not is_whole(row):
            raise OutboxError(f"the outbox {self._path} is damaged: a row is not what was written; {_REMEDY}")
        return row[:-1]

    @contextmanager
    def _transaction(self, what: str, pragmas: tuple[str, ...] = (), begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        with self._lock:
            try:
                for pragma in pragmas:
                    self._database.execute(pragma)
                self._database.execute(begin)
                yield
                self._database.execute("COMMIT")
            except BaseException as error:
                with suppress(sqlite3.ProgrammingError):  # a closed database has nothing to roll back
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise self._error(what, error) from error
                raise

    def _error(self, what: str, error: sqlite3.Error) -> OutboxError:
        code = getattr(error, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in _DAMAGED:  # the rest of the code says more of it
            return OutboxError(f"the outbox {self._path} {what} ({error}): it is damaged, or no outbox; {_REMEDY}")
        return OutboxError(
            f"the outbox {self._path} {what} ({error}): check its folder, the free space and who may write"
        )
