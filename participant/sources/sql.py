"""Rows from a query of a database, through SQLAlchemy: PostgreSQL, SQLite, and whatever else it has a driver for.

Each pass over the rows is one transaction, which may only read where the database can be told so, and is never
committed. On PostgreSQL it is REPEATABLE READ: what others commit meanwhile is not seen before the next pass. Rows come
from a cursor of the server, a batch at a time.

A table that is read again in each pass needs its rows in the same order each time: without an ORDER BY a database
promises none. Whether rows have changed between two passes is for the watermark to say, a query of one row such as
``SELECT max(changed_at), count(*) FROM visits``.

What drivers say may quote cells, and the URL with its password: it is never passed on (`_BY_STATE`, `_BY_TEXT`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from participant.errors import DataError
from participant.sources.coding import Cells
from participant.sources.reading import Batch

#: Rows of a batch, and of what the server is asked for at a time.
BATCH_ROWS = 8192

#: Until a server must have answered. PostgreSQL's own default is two minutes.
CONNECT_SECONDS = 10

#: Whole numbers below this are float64 without loss.
_EXACT = 2**53

_PASSWORD = "the database refuses the user or the password"  # noqa: S105 - a sentence about one
_AWAY = "the database cannot be reached, or went away; check its host and port, and that it runs"
_NO_TABLE = "the query names a table that is not there, or that this user may not see"
_NO_COLUMN = "the query names a column that is not there"
_ONE_SELECT = "the query must be one SELECT"
_WRITES = f"the query would change the database; {_ONE_SELECT}"
_CELL = "a cell is not what the query casts or computes; correct it, or leave its row out"
_BUSY = "the database is too busy, or out of memory or space; try again later"

#: What PostgreSQL's states mean, by how they begin; the longest that fits counts.
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_BY_STATE = {
    "08": _AWAY,
    "22": _CELL,
    "25006": _WRITES,
    "28": _PASSWORD,
    "3D": "there is no such database",
    "3F": _NO_TABLE,
    "40": "other work on the database came in between; try again",
    "42": "the query is not SQL as the database knows it, or is no SELECT",
    "42501": "this user may not read that; let a user who may only read have SELECT on it",
    "42703": _NO_COLUMN,
    "42P01": _NO_TABLE,
    "53": _BUSY,
    "55": _BUSY,
    "57": _AWAY,
    "57014": "the query took longer than the server allows, or was cancelled",
}

#: Where there is no state: what the drivers' messages have in them, in small letters.
_BY_TEXT = {
    "password": _PASSWORD,
    "access denied": _PASSWORD,
    'role "': _PASSWORD,
    'database "': _BY_STATE["3D"],
    "no such table": _NO_TABLE,
    "no such column": _NO_COLUMN,
    "syntax error": _BY_STATE["42"],
    "incomplete input": _BY_STATE["42"],
    "one statement at a time": _ONE_SELECT,
    "readonly": _WRITES,
    "not a database": "the file is no SQLite database",
    "unable to open": "the file of the database cannot be opened",
    "locked": _BUSY,
    "connect": _AWAY,
    "timeout": _AWAY,
    "timed out": _AWAY,
    "server": _AWAY,
    "host": _AWAY,
}


@dataclass(frozen=True, slots=True)
class SQLSource:
    """A query of a database.

    Attributes
    ----------
    url : as SQLAlchemy writes it, ``postgresql://user:password@host/database``; it is never shown.
    query : one SELECT, with an ORDER BY where its rows are more than stay in memory.
    watermark : a query whose one row is another when the rows may have changed; None where nothing tells.
    """

    url: str = field(repr=False)
    query: str
    watermark: str | None = None

    @property
    def place(self) -> str:
        """The database without user, password and options; nothing of a URL that may have been misread."""
        try:
            url = _url(self.url)
        except DataError:
            return "the query"
        where = f"{url.host or ''}{'' if url.port is None else f':{url.port}'}/{url.database or ''}"
        # A password with an @ that should be written %40 would be read as part of the host.
        return "the query" if "@" in where else f"the query at {url.get_backend_name()}://{where}"

    @property
    def row_word(self) -> str:
        """Places are rows, from 1, in the order of the query."""
        return "row"

    @property
    def decimal(self) -> str:
        """Numbers that are text have a point."""
        return "."

    def signature(self) -> Any:
        """Return what the watermark tells, as a digest; None without one."""
        if self.watermark is None:
            return None
        with self._result(self.watermark) as result:
            rows = result.fetchmany(2)
        if len(rows) != 1:
            raise DataError(f"{self.place}: the watermark must be a query of one row, such as SELECT max(changed_at)")
        return sha256(repr(tuple(rows[0])).encode()).hexdigest()

    def names(self) -> Sequence[str]:
        """Return the names of what the query selects."""
        with self._result(self.query) as result:
            return list(result.keys())

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield the rows."""
        with self._result(self.query) as result:
            found = list(result.keys())
            at = [found.index(name) for name in names]
            n_seen = 0
            for rows in result.partitions(BATCH_ROWS):
                columns = list(zip(*rows, strict=True))
                cells = {name: _cells(columns[index]) for name, index in zip(names, at, strict=True)}
                yield Batch(cells, len(rows), range(n_seen + 1, n_seen + len(rows) + 1))
                n_seen += len(rows)

    @contextmanager
    def _result(self, query: str) -> Iterator[Any]:
        """Give the rows of ``query``, in a transaction of its own."""
        sqlalchemy = _sqlalchemy()
        url = _url(self.url)
        with self._in_our_words(sqlalchemy):
            engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=_arguments(url))
            with engine.connect() as connection:
                _only_read(connection, url.get_backend_name())
                # As it stands: % and : in it are the database's own.
                reading = connection.execution_options(
                    no_parameters=True, stream_results=True, max_row_buffer=BATCH_ROWS
                )
                with reading.exec_driver_sql(query) as result:
                    if not result.returns_rows:
                        raise DataError(f"{self.place}: {_WRITES}")
                    cursor = result.cursor
                    try:
                        yield result
                    finally:
                        with suppress(Exception):  # of a connection that is lost SQLAlchemy leaves it open
                            cursor.close()

    @contextmanager
    def _in_our_words(self, sqlalchemy: Any) -> Iterator[None]:
        """Say in a sentence of ours what a driver says: it quotes cells, and where it connected to."""
        try:
            yield
        except sqlalchemy.exc.DBAPIError as error:
            raise DataError(f"{self.place}: {_words(error.orig)}") from None
        except sqlalchemy.exc.SQLAlchemyError:
            raise DataError(f"{self.place}: SQLAlchemy cannot read it; check the URL of the database") from None
        except ImportError:
            raise DataError(
                f"{self.place}: the driver of this database is not installed; install it with pip"
            ) from None


def _cells(cells: Sequence[Any]) -> Cells:
    """Return a column as an array where all its cells are numbers or None, which becomes NaN, and none loses digits."""
    kinds = set(map(type, cells)) - {type(None)}
    if not kinds or not kinds <= {int, float, Decimal}:
        return cells
    numbers = np.array(cells, dtype=np.float64)
    return cells if kinds != {float} and (np.abs(numbers) >= _EXACT).any() else numbers


def _words(error: Any) -> str:
    """Return what we say of a driver's ``error``."""
    state = getattr(error, "sqlstate", None) or ""
    known = [start for start in _BY_STATE if state.startswith(start)]
    if known:
        return _BY_STATE[max(known, key=len)]
    text = str(error).lower()
    return next(
        (words for part, words in _BY_TEXT.items() if part in text),
        "the database cannot run the query; try it with the database's own program",
    )


def _only_read(connection: Any, backend: str) -> None:
    """Tell the database that nothing will be written, in the way that it knows."""
    if backend == "postgresql":
        connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    elif backend == "sqlite":
        connection.exec_driver_sql("PRAGMA query_only = ON")
    elif backend in {"mysql", "mariadb"}:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _arguments(url: Any) -> dict[str, Any]:
    """Return what a driver is told when it connects."""
    waits = url.get_backend_name() == "postgresql" and "connect_timeout" not in url.query
    return {"connect_timeout": CONNECT_SECONDS} if waits else {}


def _url(text: str) -> Any:
    sqlalchemy = _sqlalchemy()
    try:
        url = sqlalchemy.make_url(text)
        backend = url.get_backend_name()
    except (sqlalchemy.exc.ArgumentError, ValueError):
        raise DataError(
            "the URL of the database is none; write it as postgresql://user:password@host/database, with %40 for an @"
        ) from None
    if url.drivername in {"postgresql", "postgres"}:
        return url.set(drivername="postgresql+psycopg")
    # SQLite would make an empty file of that name, and say that a table is not in it.
    if backend == "sqlite" and url.database and url.database != ":memory:" and not Path(url.database).exists():
        raise DataError(f"{url.database} cannot be read: No such file or directory")
    return url


def _sqlalchemy() -> Any:
    try:
        import sqlalchemy  # noqa: PLC0415 - only who has a database needs it
    except ImportError:
        raise DataError("queries of a database need SQLAlchemy: pip install 'fedmq[sql]'") from None
    return sqlalchemy
