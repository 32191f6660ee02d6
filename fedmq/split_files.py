"""The tables that can be cut, by format: read to know which rows belong together, and written as a file for each site.

Rows are copied as they stand, and the types of columns and arrays stay.
"""

from __future__ import annotations

import csv
import glob
import re
from array import array
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol
from zipfile import ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from fedmq.errors import CommandError
from participant.errors import DataError
from participant.sources.csv import CSVSource
from participant.sources.npz import Arrays, array_header, check_memory, undamaged
from participant.sources.table import shown

Indices = NDArray[np.intp]

#: Different values of a column that sites or labels are made of: a column with more of them is a measurement.
MOST_VALUES = 1000
#: Characters of a CSV file that wait in memory until they are written.
WAITING = 2**22

#: The parts of a CSR matrix.
_CSR = {"shape", "indptr", "indices", "data"}
_WHOLE = re.compile(r"([+-]?\d+)\.0*")


class Column(NamedTuple):
    """Which cells of a column are equal: ``values[codes]`` are the cells of all rows, ``codes`` (n_rows,)."""

    values: tuple[str, ...]
    codes: Indices


class Cut(NamedTuple):
    """Which row goes where: row i to the site ``names[site_of[i]]``, ``site_of`` (n_rows,)."""

    names: tuple[str, ...]
    site_of: Indices


class TableFile(Protocol):
    """A table in a file of one format."""

    def columns(self) -> Sequence[str]:
        """Return the names of the columns that a cut can be by."""
        ...

    def read(self, names: Sequence[str]) -> tuple[int, Mapping[str, Column]]:
        """Return how many rows there are, and the columns called ``names``, each of which is there."""
        ...

    def write(self, cut: Cut, folder: Path, without: str | None) -> None:
        """Write a file for each site of ``cut`` into ``folder``, without the column called so."""
        ...


def column_of(cells: Sequence[str], codes: NDArray[Any]) -> Column:
    """Return the column of ``cells[codes]``, in which spaces around a cell, or 1.0 for 1, make no difference."""
    plain = [cell.strip() for cell in cells]
    plain = [found[1] if (found := _WHOLE.fullmatch(cell)) else cell for cell in plain]
    values = sorted(set(plain))
    place = {value: code for code, value in enumerate(values)}
    return Column(tuple(values), np.array([place[cell] for cell in plain], dtype=np.intp)[codes])


# --- CSV ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Csv:
    """A CSV file: read twice, once to know which row goes where and once to copy it there, and never held."""

    source: CSVSource

    def columns(self) -> Sequence[str]:
        """Return the names in the header."""
        return self.source.names()

    def read(self, names: Sequence[str]) -> tuple[int, Mapping[str, Column]]:
        """Return the number of rows, and the columns called ``names``."""
        seen: dict[str, dict[Any, int]] = {name: {} for name in names}
        codes = {name: array("q") for name in names}
        n_rows = 0
        for batch in self.source.batches(names):
            n_rows += batch.n_rows
            for name, known in seen.items():
                codes[name].extend(known.setdefault(cell, len(known)) for cell in batch.cells[name])
        return n_rows, {name: column_of(list(seen[name]), np.array(codes[name], dtype=np.intp)) for name in names}

    def write(self, cut: Cut, folder: Path, without: str | None) -> None:
        """Copy each row to the file of its site; a byte order mark, line endings and quotes stay as they are."""
        path, names = self.source.path, list(self.source.names())
        if names == [without]:
            raise CommandError(f"{path} has no column beside {without!r}: with --keep it stays")
        dropped = None if without is None else names.index(without)
        files = _Texts([folder / f"site-{name}{path.suffix}" for name in cut.names], _encoding(path))
        texts = _without(dropped, self._texts(), self.source.dialect.delimiter)
        try:
            header = next(texts)
            for site in range(len(cut.names)):
                files.add(site, header)
            for site, text in zip(cut.site_of.tolist(), texts, strict=True):
                files.add(site, text)
        except (ValueError, csv.Error):  # it was well-formed, and had as many rows, when it was read before
            raise CommandError(f"{path} has changed while it was read: split it when nobody writes to it") from None
        files.flush()

    def _texts(self) -> Iterator[str]:
        """Yield the header and each row as they stand in the file; lines with nothing on them are passed over.

        The last row has a line ending as the header has it, wherever it goes.
        """
        lines: list[str] = []
        ending = ""
        with self.source.path.open(newline="", encoding="utf-8-sig") as file:
            for cells in csv.reader(_remembered(file, lines), delimiter=self.source.dialect.delimiter, strict=True):
                text = "".join(lines)
                lines.clear()
                if cells:
                    ending = ending or text[len(text.rstrip("\r\n")) :] or "\n"
                    yield text if text[-1] in "\r\n" else text + ending


def _remembered(file: IO[str], lines: list[str]) -> Iterator[str]:
    for line in file:
        lines.append(line)
        yield line


def _without(dropped: int | None, texts: Iterator[str], delimiter: str) -> Iterator[str]:
    """Yield the rows without the cell of this index; the others stay as they are, with their quotes."""
    if dropped is None:
        yield from texts
        return
    between = re.escape(delimiter)
    cell = re.compile(rf'("[^"]*(?:""[^"]*)*"|[^{between}\r\n]*)({between}|\r\n|\r|\n)')
    for text in texts:
        parts = cell.findall(text)
        kept = delimiter.join(found for index, (found, _) in enumerate(parts) if index != dropped)
        yield (kept or '""') + parts[-1][1]  # a line with nothing on it would be no row


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "utf-8-sig" if file.read(3) == BOM_UTF8 else "utf-8"


class _Texts:
    """Files that grow side by side; none is kept open, since there may be more than a process may have open."""

    def __init__(self, paths: Sequence[Path], encoding: str) -> None:
        self._paths = paths
        self._encoding = encoding
        self._waiting: dict[int, list[str]] = defaultdict(list)
        self._length = 0

    def add(self, index: int, text: str) -> None:
        """Let ``text`` be the next in the file of this index."""
        self._waiting[index].append(text)
        self._length += len(text)
        if self._length > WAITING:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        for index, texts in self._waiting.items():
            with self._paths[index].open("a", newline="", encoding=self._encoding) as file:
                file.writelines(texts)
        self._waiting.clear()
        self._length = 0


# --- NPZ ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Npz:
    """An NPZ file: arrays with an entry for each row are cut, and so are the parts of a CSR matrix."""

    path: Path

    def columns(self) -> Sequence[str]:
        """Return the names of the arrays with one number or text for each row."""
        with self._opened() as arrays:
            n_rows = _n_rows(arrays)
            return [name for name in _cut_by_row(arrays) if _claims(arrays, name)[0] == (n_rows,)]

    def read(self, names: Sequence[str]) -> tuple[int, Mapping[str, Column]]:
        """Return the number of rows, and the arrays called ``names``."""
        with self._opened() as arrays:
            columns = {}
            for name in names:
                cells, codes = np.unique(_whole(arrays, name), return_inverse=True)
                columns[name] = column_of([str(cell) for cell in cells], codes)
            return _n_rows(arrays), columns

    def write(self, cut: Cut, folder: Path, without: str | None) -> None:
        """Write the arrays of each site, compressed as they were."""
        with self._opened() as arrays:
            by_row = {name: _whole(arrays, name) for name in _cut_by_row(arrays) if name != without}
            csr = None if "X" in arrays.names else _csr(arrays)
            for site, name in enumerate(cut.names):
                rows = np.flatnonzero(cut.site_of == site)
                parts = {each: whole[rows] for each, whole in by_row.items()} | (_csr_rows(csr, rows) if csr else {})
                with ZipFile(folder / f"site-{name}{self.path.suffix}", "x") as archive:
                    for each in dict.fromkeys(arrays.names):
                        if each != without:
                            _put(archive, each, parts.get(each), arrays)

    @contextmanager
    def _opened(self) -> Iterator[Arrays]:
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from None
        with file:
            yield Arrays.of(self.path, file)


def _claims(arrays: Arrays, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and the type that an array's header says."""
    with undamaged(f"{arrays.path}, array {name!r} is damaged"), arrays.archive.open(f"{name}.npy") as file:
        return array_header(file)


def _whole(arrays: Arrays, name: str) -> NDArray[Any]:
    """Return an array of any type but Python objects, once it is known to fit."""
    place = f"{arrays.path}, array {name!r}"
    shape, dtype = _claims(arrays, name)
    if dtype.hasobject:
        raise DataError(f"{place} holds Python objects, which are never loaded: save it as an array of numbers or text")
    check_memory(place, int(np.prod(shape, dtype=object)), dtype.itemsize)
    with undamaged(f"{place} is damaged"), arrays.archive.open(f"{name}.npy") as file:
        return npy.read_array(file, allow_pickle=False)


def _n_rows(arrays: Arrays) -> int:
    if "X" not in arrays.names and "indptr" not in arrays.names:
        raise DataError(
            f"{arrays.path} has neither an array 'X' nor the CSR parts 'indices', 'indptr' and 'shape'; "
            f"its arrays are {shown(arrays.names)}"
        )
    of_rows = "X" if "X" in arrays.names else "indptr"
    shape, _ = _claims(arrays, of_rows)
    if not shape:
        raise DataError(f"{arrays.path}, array {of_rows!r} is a single number, and no rows")
    return shape[0] if of_rows == "X" else max(shape[0] - 1, 0)


def _cut_by_row(arrays: Arrays) -> list[str]:
    """Return the arrays with an entry for each row; names of columns are not, even where there are as many."""
    others = {"feature_names"} | (set() if "X" in arrays.names else _CSR)
    n_rows = _n_rows(arrays)
    return [name for name in arrays.names if name not in others and _claims(arrays, name)[0][:1] == (n_rows,)]


def _csr(arrays: Arrays) -> dict[str, NDArray[Any]]:
    """Return the parts of a CSR matrix, once they fit together."""
    parts = {"shape": arrays.read("shape", "whole numbers", 2)}
    parts["indptr"] = indptr = arrays.read("indptr", "whole numbers", int(parts["shape"][0]) + 1)
    parts["indices"] = arrays.read("indices", "whole numbers", "nnz")
    if "data" in arrays.names:
        parts["data"] = arrays.read("data", "numbers", len(parts["indices"]))
    if indptr[0] != 0 or indptr[-1] != len(parts["indices"]) or (indptr[1:] < indptr[:-1]).any():
        raise DataError(
            f"{arrays.path}, array 'indptr' must begin with 0, never fall, and end with the length of 'indices'"
        )
    return parts


def _csr_rows(parts: Mapping[str, NDArray[Any]], rows: Indices) -> dict[str, NDArray[Any]]:
    """Return the CSR parts of some rows."""
    indptr = parts["indptr"].astype(np.int64)
    lengths = np.diff(indptr)[rows]
    ends = np.cumsum(lengths)
    cells = np.repeat(indptr[:-1][rows] - ends + lengths, lengths) + np.arange(lengths.sum())
    taken = {name: parts[name][cells] for name in ("indices", "data") if name in parts}
    shape = np.array([len(rows), parts["shape"][1]], dtype=parts["shape"].dtype)
    return {**taken, "shape": shape, "indptr": np.append(0, ends).astype(parts["indptr"].dtype)}


def _put(archive: ZipFile, name: str, part: NDArray[Any] | None, arrays: Arrays) -> None:
    """Write an array as member ``name``: ``part``, or the one of the whole file, which is copied unread."""
    info = ZipInfo(f"{name}.npy")  # with no time of day: the same cut is the same file
    info.compress_type = arrays.archive.getinfo(info.filename).compress_type
    if part is None:
        with undamaged(f"{arrays.path}, array {name!r} is damaged"):
            whole = arrays.archive.read(info.filename)
        archive.writestr(info, whole)
    else:
        with archive.open(info, "w", force_zip64=True) as file:
            npy.write_array(file, part, allow_pickle=False)


# --- Parquet --------------------------------------------------------------------------------------


def duckdb_module() -> Any:
    """Return DuckDB, which is an extra; raises `CommandError` that says how to install it."""
    try:
        import duckdb
    except ImportError:
        raise CommandError("a .parquet file needs DuckDB, which is not installed: pip install 'fedmq[data]'") from None
    return duckdb


@dataclass(frozen=True, slots=True)
class Parquet:
    """A Parquet file, through the module ``duckdb``."""

    path: Path
    duckdb: Any

    def columns(self) -> Sequence[str]:
        """Return the names of the columns."""
        with self._opened() as rows:
            return [
                name for name, *_ in rows.execute("SELECT * EXCLUDE (file_row_number) FROM whole LIMIT 0").description
            ]

    def read(self, names: Sequence[str]) -> tuple[int, Mapping[str, Column]]:
        """Return the number of rows, and the columns called ``names``."""
        with self._opened() as rows:
            ((n_rows,),) = rows.execute("SELECT count(*) FROM whole").fetchall()
            return n_rows, {name: self._column(rows, name) for name in names}

    def _column(self, rows: Any, name: str) -> Column:
        cell = f"coalesce(CAST({_quoted(name)} AS VARCHAR), '') AS cell"
        rows.execute(f"CREATE OR REPLACE VIEW cells AS SELECT file_row_number, {cell} FROM whole")  # noqa: S608 - quoted
        cells = rows.execute("SELECT DISTINCT cell FROM cells ORDER BY cell").fetchall()
        ranks = rows.execute("SELECT dense_rank() OVER (ORDER BY cell) AS rank FROM cells ORDER BY file_row_number")
        return column_of([text for (text,) in cells], ranks.fetchnumpy()["rank"] - 1)

    def write(self, cut: Cut, folder: Path, without: str | None) -> None:
        """Write the rows of each site, in columns of the same types."""
        left_out = ", ".join(_quoted(name) for name in ("file_row_number", without) if name is not None)
        here = (
            f"SELECT * EXCLUDE ({left_out}) FROM whole SEMI JOIN here USING (file_row_number) ORDER BY file_row_number"  # noqa: S608 - quoted
        )
        with self._opened("see that there is room for the sites' files") as rows:
            for site, name in enumerate(cut.names):
                rows.register("here", {"file_row_number": np.flatnonzero(cut.site_of == site)})
                to = _quoted(str(folder / f"site-{name}{self.path.suffix}"), "'")
                rows.execute(f"COPY ({here}) TO {to} (FORMAT parquet)")

    @contextmanager
    def _opened(self, hint: str = "save it anew as Parquet") -> Iterator[Any]:
        """Give a connection with the file as ``whole``, in which ``file_row_number`` counts rows from 0.

        ``hint`` is what to do when it fails.
        """
        path = _quoted(glob.escape(str(self.path.resolve())), "'")
        options = "file_row_number = true, hive_partitioning = false"  # a folder called year=2020 is no column
        with self.duckdb.connect(config={"autoinstall_known_extensions": False}) as rows:
            try:
                rows.execute(f"CREATE VIEW whole AS SELECT * FROM read_parquet({path}, {options})")  # noqa: S608 - quoted
                yield rows
            except self.duckdb.Error as error:
                kind = type(error).__name__  # its message may hold cells
                raise DataError(f"{self.path} cannot be split by DuckDB ({kind}): {hint}") from None


def _quoted(name: str, quote: str = '"') -> str:
    return quote + name.replace(quote, 2 * quote) + quote
