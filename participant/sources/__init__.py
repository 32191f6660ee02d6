"""Where rows come from. A source returns a `Table`; what happens to it then does not depend on the source.

A source's errors say which file, line and column, and what kind of defect: never the value, since a log travels further
than the data may.

==========================  =======================================================  ===================
source                      holds                                                    module
==========================  =======================================================  ===================
a ``.csv`` file             text, read by the standard library                       `csv`
an ``.npz`` file            arrays of numbers, dense or sparse                       `npz`
``.parquet`` files, or SQL  whatever DuckDB reads, larger than memory                `duckdb` (extra)
over files
the same files, on a        read and kept by its workers                             `dask` (extra)
Dask cluster
a query of a database       whatever SQLAlchemy reaches                              `sql` (extra)
arrays and data frames      what a notebook has                                      `arrays`
==========================  =======================================================  ===================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.schema import Schema
from participant.errors import DataError
from participant.sources.csv import CSVSource, Dialect, read_csv
from participant.sources.dask import DaskFiles
from participant.sources.npz import read_npz
from participant.sources.reading import Source, read
from participant.sources.table import Columns, Missing, Table, file_signature

__all__ = [
    "SUFFIXES",
    "TEXT_SUFFIXES",
    "Columns",
    "Dialect",
    "Missing",
    "Reading",
    "Schema",
    "Source",
    "Table",
    "read_csv",
    "read_npz",
    "read_table",
]

#: What the names of files that can be read end with.
SUFFIXES = (".csv", ".npz", ".parquet")

#: What else text is called that is read as a CSV file, where it is named itself or has no header line.
TEXT_SUFFIXES = (".tsv", ".txt", ".data")

#: Those that DuckDB reads.
DUCKDB_SUFFIXES = {".parquet"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read, and what is what in it.

    Attributes
    ----------
    what : the schema; or where there is none, which columns are not features.
    data : a file, a folder of files, or a pattern of names; empty where rows come from a database.
    dialect : how CSV files are written.
    query : SQL, over the files as ``data``, or of the database at ``url``.
    watermark : a query of the database whose answer changes when the rows do.
    scheduler : the address of a Dask scheduler whose workers read ``data`` and go over the rows; empty for here.
    """

    what: Columns | Schema
    data: str = ""
    dialect: Dialect = field(default_factory=Dialect)
    query: str = ""
    url: str = field(default="", repr=False)
    watermark: str = ""
    scheduler: str = ""

    def table(self) -> Table:
        """Return the rows; raises `DataError`."""
        if self.scheduler:
            return self._on_cluster().table(self.what)
        source = self._source()
        if source is None:
            return _read_arrays(Path(self.data), self.what)
        return read(source, self.what)

    def signature(self) -> Any:
        """Return what is another when the rows may have changed, None where nothing tells; raises `DataError`."""
        if self.scheduler:
            return self._on_cluster().signature()
        source = self._source()
        return file_signature(Path(self.data)) if source is None else source.signature()

    def names(self) -> Sequence[str]:
        """Return the names of the columns; raises `DataError`."""
        return self.source().names()

    def source(self) -> Source:
        """Return what can be read batch by batch; raises `DataError`."""
        return self._source() or _npz(Path(self.data))

    def _on_cluster(self) -> DaskFiles:
        """Return the files as the workers see them."""
        if self.query or self.url:
            raise DataError("a Dask cluster goes over the rows of files as they are: leave the query and database out")
        return DaskFiles(self.scheduler, str(Path(self.data).absolute()))

    def _source(self) -> Source | None:
        """Return the source; None of arrays that are taken as they are."""
        if self.url:
            from participant.sources.sql import SQLSource  # noqa: PLC0415 - an extra, and slow to import

            return SQLSource(self.url, self.query, self.watermark or None)
        path = Path(self.data)
        suffix = path.suffix.lower()
        if self.query or suffix in DUCKDB_SUFFIXES or any(sign in self.data for sign in "*?[") or path.is_dir():
            from participant.sources.duckdb import DuckDBSource  # noqa: PLC0415 - an extra, and slow to import

            return DuckDBSource((self.data,), self.query or None)
        if suffix == ".npz":
            return None if isinstance(self.what, Columns) else _npz(path)
        if suffix not in {*SUFFIXES, *TEXT_SUFFIXES}:
            raise DataError(f"{path} is not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
        label = self.what.label if isinstance(self.what, Columns) else self.what.label.column
        return CSVSource(path, self.dialect, label)


def _npz(path: Path) -> Source:
    from participant.sources.npz import NPZSource  # noqa: PLC0415

    return NPZSource(path)


def _read_arrays(path: Path, what: Columns | Schema) -> Table:
    assert isinstance(what, Columns), "with a schema arrays are read as any source"
    return read_npz(
        path,
        label=what.label,
        sample_weight=what.sample_weight,
        offset=what.offset,
        classes=what.classes,
        missing=what.missing,
    )


def read_table(path: Path, what: Columns | Schema, dialect: Dialect = Dialect()) -> Table:  # noqa: B008 - frozen
    """Return the rows of the file at ``path``, which is read as its name's suffix says.

    Raises
    ------
    DataError
        When the suffix is none of `SUFFIXES`, or the file cannot be used.
    """
    return Reading(what, str(path), dialect).table()
