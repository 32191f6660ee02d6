"""Rows from Parquet files, one or many, through DuckDB; also from a SQL query over them, or over large CSV or JSON.

``SELECT age, bmi, y FROM data WHERE year >= 2015``: the files are the view ``data``, and a query reaches nothing else.
DuckDB opens no other file, no network, no extension; and it runs one SELECT, which has nothing to write to.

The rows stream: DuckDB decodes some 100,000 at a time, and they are handed on in batches as arrays, without a Python
object for each number. One thread reads: more, or one that reads ahead, would take more memory.
Its own messages quote cells and are never passed on (`_WORDS`).

Cells of CSV files are text here, as in `participant.sources.csv`: no type is guessed from the first rows. A query casts
what it computes with, as in ``CAST(age AS DOUBLE) >= 18``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from participant.errors import DataError
from participant.sources.coding import Cells
from participant.sources.reading import Batch
from participant.sources.table import file_signature, names_defect, shown

#: Rows of a batch: long enough that what is done once for each column costs little, and small beside a core's cache.
BATCH_ROWS = 8192

#: What reads files whose names end so. Columns are matched by name, and their types are made one that suits all files.
_READERS = {
    ".parquet": "read_parquet({files}, union_by_name = true, hive_partitioning = false)",
    ".csv": "read_csv({files}, header = true, all_varchar = true, union_by_name = true, hive_partitioning = false)",
    ".json": "read_json({files}, union_by_name = true, hive_partitioning = false)",
}
_SUFFIXES = {".pq": ".parquet", ".tsv": ".csv", ".txt": ".csv", ".jsonl": ".json", ".ndjson": ".json"}

#: What a query that may be anything is shown as.
_EXAMPLE = "SELECT * FROM data"

_CONFIGURATION = {
    "threads": 1,
    "preserve_insertion_order": True,
    "python_enable_replacements": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "temp_directory": "",
}

#: Types whose numbers are all float64, and those that come as they are: a key of 64 bits keeps all its digits.
_NUMBERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "UTINYINT", "USMALLINT", "UINTEGER", "FLOAT", "DOUBLE"})
_AS_THEY_ARE = frozenset({"BOOLEAN", "BIGINT", "UBIGINT"})

#: Whole numbers up to here are float64 without loss.
_EXACT = 2**53

#: DuckDB's messages by how they begin, and what we say instead.
_WORDS = {
    "Permission": "the query reaches for something else than its files; only the view 'data' is there",
    "Parser": "the query is not SQL as DuckDB knows it; check it where the mistake can be seen, in the duckdb shell",
    "Binder": "the query names a table, a column or a function that is not there, or of another type; "
    "its only table is 'data'",
    "Catalog": "the query names a table or a function that is not there; its only table is 'data'",
    "Conversion": "a cell is not what the query casts it to; correct it, or use TRY_CAST",
    "Out of Range": "a number is too large for the type that the query gives it; cast it to DOUBLE",
    "Out of Memory": "it takes more memory than there is; sort or join the files beforehand, or write smaller ones",
    "Invalid Input": "a file is damaged, or is not what its name ends with; write it anew",
    "IO": "a file is damaged, or is not what its name ends with; write it anew",
}


@dataclass(frozen=True, slots=True)
class DuckDBSource:
    """Files, or a query over them.

    Attributes
    ----------
    data : paths of files, patterns such as ``visits/*.parquet``, and folders, of which all Parquet files are taken.
    query : one SELECT from the view ``data``; None for all rows of Parquet files. It must give the same rows in the
        same order each time: one that draws at random, or asks for the time, does not.
    """

    data: tuple[str, ...]
    query: str | None = None

    @property
    def place(self) -> str:
        """What was given; a query is not shown."""
        return shown(self.data) if self.query is None else f"the query over {shown(self.data)}"

    @property
    def row_word(self) -> str:
        """Places are rows, from 1, of the files one after the other."""
        return "row"

    @property
    def decimal(self) -> str:
        """Numbers that are text have a point."""
        return "."

    def signature(self) -> Any:
        """Return what changes when a file does, comes or goes."""
        files = self._files()
        return tuple(map(str, files)), file_signature(*files)

    def names(self) -> Sequence[str]:
        """Return the names of the columns of the files, or of what the query selects."""
        with self._opened(check=True) as connection:
            names, _ = self._select(connection)
            return names

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield the rows."""
        import nanoarrow  # noqa: PLC0415 - only who has such files needs it

        with self._opened() as connection:
            found, types = self._select(connection)
            at = [found.index(name) for name in names]
            typed = ", ".join(_cast(index, types[index]) for index in at)
            selected = connection.sql(f"SELECT {typed} FROM selected")  # noqa: S608 - of names that are ours
            n_seen = 0
            for rows in nanoarrow.c_array_stream(selected):
                columns = [_cells(rows.child(index)) for index in range(len(names))]
                for start in range(0, len(rows), BATCH_ROWS):
                    stop = min(start + BATCH_ROWS, len(rows))
                    cells = {name: column[start:stop] for name, column in zip(names, columns, strict=True)}
                    yield Batch(cells, stop - start, range(n_seen + start + 1, n_seen + stop + 1))
                n_seen += len(rows)

    def _files(self) -> tuple[Path, ...]:
        found: list[Path] = []
        for name in self.data:
            path = Path(name)
            if path.is_dir():
                found += (files := sorted(path.rglob("*.parquet")))
                if not files:
                    raise DataError(f"{name} is a folder without a file whose name ends with .parquet")
            elif set(name) & set("*?[") and not path.exists():
                found += (files := sorted(map(Path, glob(name, recursive=True))))  # noqa: PTH207 - may be absolute
                if not files:
                    raise DataError(f"{name} matches no file")
            else:
                found.append(path)
        return tuple(dict.fromkeys(found))

    @contextmanager
    def _opened(self, *, check: bool = False) -> Iterator[Any]:
        """Give a DuckDB of its own that has the view ``data``, and reaches nothing but its files."""
        files = self._files()
        kind = self._kind(files)
        duckdb = _duckdb()
        listed = _listed(files)
        with self._in_our_words(), duckdb.connect(config=dict(_CONFIGURATION)) as connection:
            # Prefetched, a group of rows would be in memory as it stands in the file besides: of some files, all rows.
            connection.execute("SET disable_parquet_prefetching = true")
            connection.execute(f"SET allowed_paths = {listed}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            if check:
                _check_columns(connection, kind, files)
            connection.execute(f"CREATE TEMP VIEW data AS FROM {_READERS[kind].format(files=listed)}")
            yield connection

    def _select(self, connection: Any) -> tuple[list[str], list[str]]:
        """Make the view ``selected`` of what is to be read; return its columns' names and types.

        Its columns are called ``c0``, ``c1``, ...: to DuckDB two names are one when only their capitals differ.
        """
        query = "FROM data" if self.query is None else self.query
        statements = connection.extract_statements(query)
        if [statement.type.name for statement in statements] != ["SELECT"]:
            raise DataError(f"{self.place}: the query must be one SELECT, such as {_EXAMPLE}")
        relation = connection.sql(query)
        names, types = list(relation.columns), list(map(str, relation.types))
        connection.execute(f"CREATE TEMP VIEW selected ({', '.join(f'c{at}' for at in range(len(names)))}) AS {query}")
        return names, types

    def _kind(self, files: Sequence[Path]) -> str:
        kinds = set()
        for file in files:
            try:
                with file.open("rb") as opened:
                    if not opened.read(1):
                        raise DataError(f"{file} is empty: it needs columns and rows")
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror}") from None
            if set(str(file.resolve())) & set("*?["):
                raise DataError(f"{file} has *, ? or [ in its name or its folder's, which means several: rename it")
            suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
            kinds.add(_SUFFIXES.get(suffix, suffix))
        if len(kinds) > 1:
            raise DataError(f"{self.place}: the files are of several kinds ({', '.join(sorted(kinds))}); give one kind")
        (kind,) = kinds
        if kind not in _READERS:
            raise DataError(f"{files[0]} is not a {', '.join(_READERS)} file")
        if kind != ".parquet" and self.query is None:
            raise DataError(f"{files[0]} is not a .parquet file: give a query to read it by, as {_EXAMPLE}")
        return kind

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Say in a sentence of ours what DuckDB says: its messages quote cells, and the query."""
        try:
            yield
        except DataError:
            raise
        # What streams is not raised as DuckDB's own error, but as one of the library that it streams through.
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in {"duckdb", "_duckdb", "nanoarrow"}:
                raise
            kind = str(error).partition(" Error:")[0].rpartition(": ")[2]
            words = _WORDS.get(kind, "DuckDB cannot read it; try the query, or SELECT * FROM the files, in its shell")
            raise DataError(f"{self.place}: {words}") from None


def _duckdb() -> Any:
    try:
        import duckdb  # noqa: PLC0415 - only who has such files needs it
        import nanoarrow  # noqa: F401, PLC0415 - same
    except ImportError:
        raise DataError("Parquet files and queries over files need DuckDB: pip install 'fedmq[data]'") from None
    return duckdb


def _listed(files: Sequence[Path]) -> str:
    """Return the list of ``files`` as SQL writes it."""
    return "[" + ", ".join("'" + str(file.resolve()).replace("'", "''") + "'" for file in files) + "]"


def _check_columns(connection: Any, kind: str, files: Sequence[Path]) -> None:
    """Raise `DataError` where DuckDB would silently rename a column, or fill one that some files lack."""
    if kind == ".json":  # each of its rows names its columns
        return
    first: list[str] = []
    for file in files:
        names = _names_in(connection, kind, file)
        if defect := names_defect(names):
            raise DataError(f"{file}: {defect}")
        if alike := [name for name in names if [other.lower() for other in names].count(name.lower()) > 1]:
            raise DataError(f"{file}: the column names {shown(alike)} differ in capitals only; rename one")
        first = first or names
        if other := [*(set(first) - set(names)), *(set(names) - set(first))]:
            have, lack = (files[0], file) if other[0] in first else (file, files[0])
            raise DataError(f"{lack} has no column {other[0]!r}, which {have} has; all files need the same columns")


def _names_in(connection: Any, kind: str, file: Path) -> list[str]:
    """Return the columns' names as they stand in ``file``."""
    if kind == ".csv":
        first = connection.execute(f"FROM read_csv({_listed([file])}, header = false, all_varchar = true) LIMIT 1")
        return [(name or "").strip() for row in first.fetchall() for name in row]
    tree = connection.execute(f"SELECT name, num_children FROM parquet_schema({_listed([file])})")  # noqa: S608 - a quoted path
    names, open_ = [], [0]  # branches come first; of each that is open, how many more there are in it
    for name, n_children in tree.fetchall():
        if len(open_) == len(("the file", "its columns")):
            names.append(str(name))
        open_[-1] -= 1
        open_.append(n_children or 0)
        while len(open_) > 1 and not open_[-1]:
            open_.pop()
    return names


def _cast(index: int, kind: str) -> str:
    """Return column ``index`` as one of the types that `_cells` knows, in SQL."""
    if kind in _AS_THEY_ARE:
        return f"c{index}"
    # Whole numbers of many digits are keys, or sums: as text they keep them all.
    is_number = kind in _NUMBERS or (kind.startswith("DECIMAL") and not kind.endswith(",0)"))
    return f"CAST(c{index} AS {'DOUBLE' if is_number else 'VARCHAR'})"


def _cells(column: Any) -> Cells:
    """Return the cells of an Arrow ``column``: an array where there is one number for each, else a list with None.

    Double, 64 bit and boolean columns are views into Arrow's memory, a bit for each cell saying whether it has a value.
    """
    import nanoarrow  # noqa: PLC0415 - only who has such files needs it

    view = column.view()
    kind, rows = view.storage_type, slice(view.offset, view.offset + view.length)
    if kind not in {"double", "int64", "uint64", "bool"}:
        texts: list[str | None] = nanoarrow.Array(column).to_pylist()
        return texts
    values = _bits(view, 1) if kind == "bool" else np.asarray(view.buffer(1))
    if not view.null_count:
        return values[rows]
    values, has_value = values[rows], _bits(view, 0)[rows]
    if kind != "bool" and (kind == "double" or not (np.abs(values) > _EXACT).any()):
        return np.where(has_value, values, math.nan)
    return [value if known else None for value, known in zip(values.tolist(), has_value.tolist(), strict=True)]


def _bits(view: Any, buffer: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.asarray(view.buffer(buffer)).view(np.uint8), bitorder="little").astype(np.bool_)
