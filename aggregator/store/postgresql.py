"""The store in a PostgreSQL database, which aggregators on several machines share.

Each federation has a schema of its own there, ``fedmq_NAME``; one database serves many. The row of the epoch is locked
by whoever commits, so that commits are one after another and a fenced one is refused.

Nothing hangs silently: connecting, waiting for a lock, each statement and a whole transaction have limits. Whoever
holds the lock and is not heard of for `Limits.idle_seconds` is ended by the server; and one that it cannot end, frozen
in the middle of a statement, by the next who waits for it.

When the connection breaks the work is done again on a new one, for `Limits.patience_seconds`. Whether a commit
that was cut off is there already is looked up by its token, behind the same lock: it is never done twice, and never
called failed when it was done.

The tokens are a chain, which begins with `PostgreSQLStore.take_over`: a commit is made only on top of what this object
wrote last. So a database that went back, to a backup or to a replica that was behind, is noticed.

What the driver says may quote the URL with its password: it is never passed on.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from ipaddress import ip_address
from itertools import count
from secrets import token_hex
from time import monotonic
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from aggregator.errors import StoreError
from aggregator.store import KEPT_ROWS, Commit
from aggregator.store.sql import SQLStore

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds.

    Attributes
    ----------
    connect_seconds : one attempt to connect.
    idle_seconds : a transaction whose client says nothing; the server ends it then.
    lock_seconds : waiting for another's transaction, which is ended after that.
    statement_seconds : one statement.
    transaction_seconds : one transaction, also where the server is silent.
    patience_seconds : how long connecting is tried again after a connection broke.
    """

    connect_seconds: int = 5
    idle_seconds: int = 1
    lock_seconds: int = 2
    statement_seconds: int = 30
    transaction_seconds: int = 60
    patience_seconds: int = 30


#: Between two attempts to connect.
_AGAIN_SECONDS = 0.2

#: Epochs whose last commit is known by its token.
_KEPT_TOKENS = 100

_FORGET_TOKENS = """
    DELETE FROM meta
    WHERE CASE WHEN starts_with(key, 'commit/') THEN CAST(substr(key, 8) AS BIGINT) <= ? ELSE false END
"""

#: What a server says that is there, and not ready yet.
_STARTING = "starting up"

#: Bytes of a name in PostgreSQL.
_LONGEST_NAME = 63

_AWAY = "it cannot be reached, or went away; check its host and port, and that it runs"
_PASSWORD = "it refuses the user or the password"  # noqa: S105 - a sentence about one
_NO_DATABASE = "there is no such database; make it with CREATE DATABASE"
_FULL = "it is out of space or memory; make room"
_NO_CONNECTION = (
    "it has no connection left for this user or this database; end what else is connected, or raise max_connections or "
    "the CONNECTION LIMIT"
)
_NOT_ALLOWED = "this user may not connect to this database; GRANT CONNECT ON DATABASE to it"
_NOT_FROM_HERE = "its pg_hba.conf does not let this user into this database from this address; add a line for it"
#: What PostgreSQL's states mean, by how they begin; the longest that fits counts.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_STATE = {
    "08": _AWAY,
    "25006": "it may only be read now; give the URL of the server that may be written",
    "28": _PASSWORD,
    "3D": _NO_DATABASE,
    "42501": "this user may not write there; GRANT CREATE ON DATABASE to it, or let it own the schema",
    "53": _FULL,
    "53300": _NO_CONNECTION,
    "55": "another transaction holds the lock, and cannot be ended",
    "57": _AWAY,
    "57014": "a statement took longer than it may",
    "58": "the server cannot read or write its files; its log says more",
    "XX": "the server finds its files damaged; its log says more, restore a backup",
}
#: Where there is no state, as when connecting fails: what the server's messages have in them, in small letters and
#: without the names they quote. The first that is found counts.
_BY_TEXT = {
    "pg_hba.conf": _NOT_FROM_HERE,
    "too many clients": _NO_CONNECTION,
    "too many connections": _NO_CONNECTION,
    "connection slots are reserved": _NO_CONNECTION,
    "permission denied for database": _NOT_ALLOWED,
    "connect privilege": _NOT_ALLOWED,
    "password": _PASSWORD,
    'role ""': _PASSWORD,
    'database ""': _NO_DATABASE,
    "too many": _FULL,
}


class PostgreSQLStore(SQLStore):
    """A store at ``url``, as libpq reads it: ``postgresql://user:password@host/database``.

    Parameters
    ----------
    password : in place of one in the URL.
    keep_ledger : so many rows of the ledger stay, and hashes of versions.
    read_only : for who only looks.

    Raises
    ------
    StoreError
        When the database cannot be reached or used, or the schema belongs to something else.
    """

    _locking = " FOR UPDATE"
    _types = {"bytes": "BYTEA", "position": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"}  # noqa: RUF012 - as the base class declares it
    _remedy = (
        "restore the newest backup of the database, and start every participant again (docs/operations.md); without "
        "a backup the federation begins anew in another database"
    )

    def __init__(
        self,
        url: str,
        federation: str,
        *,
        password: str | None = None,
        keep_ledger: int = KEPT_ROWS,
        read_only: bool = False,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(federation, keep_ledger=keep_ledger)
        self._limits = limits or Limits()
        self._read_only = read_only
        # One that is longer than PostgreSQL's names may meet another of the same beginning: it is refused then.
        self._schema = f"fedmq_{federation}"[:_LONGEST_NAME]
        self._parameters = self._parsed(url, password)
        self.place = _where(self._parameters)
        # Commits come from a pool's threads, one at a time under this lock.
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._connection: psycopg.Connection[Any] | None = None
        self._was_open = False
        #: Since it took over: the epoch, and the token of what was written last under it.
        self._left: tuple[int, str] | None = None
        # Held for longer than a transaction: until it is noted what was written.
        self._chain = threading.Lock()
        try:
            self._in_transaction("cannot be opened", self._check_existing if read_only else self._prepare)
        except BaseException:
            self.close()
            raise
        self._was_open = True

    def _parsed(self, url: str, password: str | None) -> dict[str, Any]:
        try:
            given = conninfo_to_dict(url)
        except (psycopg.Error, UnicodeError):
            raise StoreError(f"store: this is no URL of a database; {_WRITE_IT}") from None
        if not _names_a_host(url, given):
            raise StoreError(f"store: there is no user@host in this URL; {_WRITE_IT}")
        if password is not None:
            given["password"] = password
        defaults = {
            "connect_timeout": self._limits.connect_seconds,
            # Milliseconds in which what we send must be acknowledged, and seconds: a host that vanished is noticed.
            "tcp_user_timeout": 1000 * self._limits.connect_seconds,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "target_session_attrs": "any" if self._read_only else "read-write",
        }
        # Who only reads is in nobody's way: it has a name that no aggregator has, to be left alone by them.
        name = f"reader of {self._schema}"[:_LONGEST_NAME] if self._read_only else self._schema
        fixed = {"application_name": name, "client_encoding": "utf8"}
        return {**defaults, **given, **fixed}

    def _connect(self) -> None:
        self._connection = psycopg.connect(**self._parameters, autocommit=True, prepare_threshold=None)
        try:
            self._configure()
        except BaseException:
            self._disconnect()
            raise

    def _configure(self) -> None:
        limits = self._limits
        settings = {
            "search_path": f'"{self._schema}"',
            "statement_timeout": f"{limits.statement_seconds}s",
            "lock_timeout": f"{limits.lock_seconds}s",
            # Who only reads holds nothing that others wait for.
            "idle_in_transaction_session_timeout": f"{0 if self._read_only else limits.idle_seconds}s",
            "client_min_messages": "warning",
            "tcp_keepalives_idle": "5",
            "tcp_keepalives_interval": "2",
            "tcp_keepalives_count": "3",
        }
        with self._watched():
            for name, value in settings.items():
                self._execute("SELECT set_config(?, ?, false)", (name, value))
            # A commit is on the disk when it returns; who wants more than that, replicas, keeps it.
            self._execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )

    # --- opening -------------------------------------------------------------------------------

    def _exists(self) -> bool:
        query = "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = ? AND tablename = 'meta'"
        return self._execute(query, (self._schema,)).fetchone() is not None

    def _prepare(self) -> None:
        # Of several that make it at once, one after another.
        number = int.from_bytes(blake2b(self._schema.encode(), digest_size=8).digest(), "big", signed=True)
        self._execute("SELECT pg_advisory_xact_lock(?)", (number,))
        if not self._exists():
            # Not IF NOT EXISTS, which wants the right to make one also where there is one.
            query = "SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = ?"
            if self._execute(query, (self._schema,)).fetchone() is None:
                self._execute(f'CREATE SCHEMA "{self._schema}"')
            self._create_tables()
            self._claim()
        self._check_claim()

    def _check_existing(self) -> None:
        if not self._exists():
            raise StoreError(
                f"{self.place} holds no federation {self._federation!r}: check the database and the federation's name"
            )
        self._check_claim()

    # --- commits -------------------------------------------------------------------------------

    def take_over(self, above: int = 0) -> int:
        """Raise the epoch, durably, and return it: whoever holds an older one can commit nothing more."""
        token = token_hex(16)
        with self._chain:
            epoch = self._in_transaction("could not be written", partial(self._next_epoch, above, token))
            self._epoch, self._left = epoch, (epoch, token)
            return epoch

    def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable, whole; raises `FencedError` or `StoreError`, and then nothing has changed."""
        token, attempts = token_hex(16), count()
        with self._chain:
            self._in_transaction("could not be written", partial(self._write_once, commit, token, attempts))
            self._epoch = commit.epoch
            if self._left is not None:
                self._left = commit.epoch, token

    def _write_once(self, commit: Commit, token: str, attempts: Iterator[int]) -> None:
        if next(attempts):
            self._kept_epoch()  # waits until whatever is left of the former attempt has ended, this way or that
            if self._token(commit.epoch) == token:
                return
        self._write(commit)
        self._put_token(commit.epoch, token)

    def _is_as_left(self, epoch: int, kept: int) -> bool:
        if not super()._is_as_left(epoch, kept):
            return False
        return self._left is None or self._left[0] != epoch or self._token(epoch) == self._left[1]

    def _token(self, epoch: int) -> str | None:
        return self._meta(f"commit/{epoch}")

    def _put_token(self, epoch: int, token: str) -> None:
        self._put_meta(f"commit/{epoch}", token)

    def _next_epoch(self, above: int, token: str = "") -> int:
        epoch = super()._next_epoch(above)
        # Of two histories that begin with the same epoch, each has a token of its own.
        self._put_token(epoch, token)
        self._execute(_FORGET_TOKENS, (epoch - _KEPT_TOKENS,))
        return epoch

    def close(self) -> None:
        """Let go of the connection; whoever waits for the server waits no longer."""
        self._closed.set()
        with self._lock:
            self._disconnect()

    # --- what a database does ------------------------------------------------------------------

    def _in_transaction(self, what: str, work: Callable[[], T]) -> T:
        with self._lock:
            until: float | None = None
            while True:
                if self._closed.is_set():
                    raise StoreError(f"the store {self.place} {what}: it is closed")
                try:
                    if self._connection is None:
                        self._connect()
                    return self._attempt(work)
                except psycopg.Error as error:
                    until = until or monotonic() + self._limits.patience_seconds
                    if not self._may_try_again(error) or monotonic() > until:
                        raise self._error(what, error) from None
                self._closed.wait(_AGAIN_SECONDS)

    def _attempt(self, work: Callable[[], T]) -> T:
        """Run ``work`` once; whatever is raised, no transaction is left open."""
        with self._watched():
            try:
                self._begin()
                result = work()
                if not self._read_only:
                    self._execute("COMMIT")
            except BaseException:
                with suppress(psycopg.Error):
                    self._execute("ROLLBACK")
                raise
        return result

    def _begin(self) -> None:
        if not self._read_only:
            self._execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        elif self._linked.info.transaction_status == TransactionStatus.IDLE:
            # Until it is closed: all that is read is of one moment.
            self._execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def _may_try_again(self, error: psycopg.Error) -> bool:
        """Whether the next attempt may go better: on a new connection, or without who holds the lock."""
        if self._connection is None:  # connecting itself failed
            words = _words(error)
            # At first that may be a wrong host, which waiting does not mend.
            return words == _NO_CONNECTION or (words == _AWAY and (self._was_open or _STARTING in str(error)))
        if self._connection.closed:
            self._disconnect()
            return not self._read_only
        if error.sqlstate == "55P03":  # lock_not_available
            with suppress(psycopg.Error):
                self._end_the_frozen()
            return True
        return False

    def _end_the_frozen(self) -> None:
        """End transactions of this federation's other aggregators that have lasted longer than we wait for them."""
        self._execute(
            "SELECT pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE application_name = ? "
            "AND datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() "
            "AND xact_start < now() - make_interval(secs => ?)",
            (self._schema, float(self._limits.idle_seconds)),
        )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Break the connection when what is done meanwhile takes too long, also where the server is silent."""
        # A number of its own: the driver may close its socket at any moment.
        link = socket.socket(fileno=os.dup(self._linked.fileno()))
        timer = threading.Timer(self._limits.transaction_seconds, link.shutdown, (socket.SHUT_RDWR,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            link.close()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    @property
    def _linked(self) -> psycopg.Connection[Any]:
        assert self._connection is not None, "work is done on a connection"
        return self._connection

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        return self._linked.cursor(binary=True).execute(_marked(statement), values or None)

    def _execute_many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        self._linked.cursor().executemany(_marked(statement), rows)

    def _error(self, what: str, error: psycopg.Error) -> StoreError:
        if self._connection is not None and self._connection.closed:
            self._disconnect()
        return StoreError(f"the store {self.place} {what}: {_words(error)}")


def _marked(statement: str) -> str:
    """Return ``statement`` with the driver's marks; values never stand in it."""
    return statement.replace("?", "%s")


def _words(error: psycopg.Error) -> str:
    """Return what we say of the driver's ``error``."""
    state = error.sqlstate or ""
    known = [start for start in _BY_STATE if state.startswith(start)]
    if known:
        return _BY_STATE[max(known, key=len)]
    text = re.sub('"[^"]*"', '""', str(error).lower())
    found = next((words for part, words in _BY_TEXT.items() if part in text), None)
    if found is not None:
        return found
    if isinstance(error, psycopg.OperationalError):
        return _AWAY
    return f"the database cannot do that (state {state or 'unknown'}); its log says more"


_WRITE_IT = (
    "write it as postgresql://user@host/database, in a password %40 for an @, %2F for a / and %3A for a :, or give the "
    "password in store_password_file"
)


def _names_a_host(url: str, given: dict[str, Any]) -> bool:
    """Whether what was read as host and port can be nothing else: without its @host, user:password looks like them."""
    hosts = str(given.get("host") or given.get("hostaddr") or "").split(",")
    if not all(_is_port(port) for port in str(given.get("port") or "").split(",")):
        return False
    if any(":" in host and not _is_address(host) for host in hosts):
        return False
    authority = url.partition("://")[2].partition("/")[0]
    if "@" in authority or ":" not in re.sub(r"\[[^]]*\]", "", authority.partition("?")[0]):
        return True
    return all(host == "localhost" or _is_address(host) for host in hosts)


def _is_port(text: str) -> bool:
    return text == "" or (re.fullmatch("[1-9][0-9]{0,4}", text) is not None and int(text) < 2**16)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _where(parameters: dict[str, Any]) -> str:
    """Return the database without user, password and options; nothing of a URL that may have been misread."""
    host = parameters.get("host") or parameters.get("hostaddr") or "localhost"
    port = parameters.get("port")
    where = f"{host}{'' if port is None else f':{port}'}/{parameters.get('dbname') or ''}"
    # A password with an @ that should be written %40 would be read as part of the host, and other signs likewise.
    return f"postgresql://{where}" if re.fullmatch(r"[\w.,:/+-]*", where) else "in PostgreSQL"
