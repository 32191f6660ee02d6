"""Rows from a CSV file: a header line, or names that a schema's file gives; cells between commas, or whatever is named.

What is between the cells, and what stands before decimals, is said by the site, not guessed: a guess that is wrong in
one file of twelve is worse than a sentence.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from participant.errors import DataError
from participant.sources.reading import Batch, read
from participant.sources.table import Columns, Missing, Table, file_signature, names_defect, shown

#: Rows of a batch.
BATCH_ROWS = 4096

#: What other files than comma-separated ones have between their cells.
_PARTS = re.compile(r"[;\t|]")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file is written.

    Attributes
    ----------
    delimiter : what is between two cells, one character.
    decimal : what stands before the decimals of a number.
    header : the names of the columns of files without a header line; empty where they have one.
    """

    delimiter: str = ","
    decimal: str = "."
    header: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise DataError("the delimiter of a CSV file is one character, such as ';'")
        if self.decimal not in {".", ","}:
            raise DataError("the decimals of a number stand behind '.' or ','")


@dataclass(frozen=True, slots=True)
class CSVSource:
    """A CSV file; ``label`` is the name that tells a header from a row of numbers."""

    path: Path
    dialect: Dialect = field(default_factory=Dialect)
    label: str = ""

    @property
    def place(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def row_word(self) -> str:
        """Places are lines."""
        return "line"

    @property
    def decimal(self) -> str:
        """What stands before decimals."""
        return self.dialect.decimal

    def signature(self) -> Any:
        """Return what changes when the file does."""
        return file_signature(self.path)

    def names(self) -> Sequence[str]:
        """Return the names in the header line, or those that are given."""
        with self._opened() as (_, reader):
            return self._header(reader)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        """Yield the rows."""
        with self._opened() as (_, reader):
            header = list(self._header(reader))
            at = [header.index(name) for name in names]
            rows = self._numbered(reader, len(header))
            while part := list(islice(rows, BATCH_ROWS)):
                cells = list(zip(*(row for _, row in part), strict=True))
                yield Batch(
                    {name: cells[index] for name, index in zip(names, at, strict=True)},
                    len(part),
                    [line for line, _ in part],
                )

    @contextmanager
    def _opened(self) -> Iterator[tuple[TextIO, Any]]:
        path = self.path
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file, strict=True, delimiter=self.dialect.delimiter)
                try:
                    yield file, reader
                except csv.Error as error:
                    place = f"{path}, line {reader.line_num}"
                    raise DataError(
                        f"{place}: not well-formed CSV ({error}); check the quotes in this line and above"
                    ) from None
        except UnicodeDecodeError:
            raise DataError(f"{path} is not UTF-8 text: save it as UTF-8 CSV") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    def _header(self, reader: Any) -> Sequence[str]:
        if self.dialect.header:
            return self.dialect.header
        path, header = self.path, next(reader, None)
        if not header:
            raise DataError(f"{path} is empty: it needs a header line and rows")
        names = [name.strip() for name in header]
        # Without the label, numbers here are a row of a file that has no header: they are not shown.
        if self.label not in names and any(_is_number(part) for name in names for part in _PARTS.split(name)):
            raise DataError(f"{path}, line 1: numbers stand where the column names belong; give the file a header line")
        if defect := names_defect(names):
            raise DataError(f"{path}, line 1: {defect}")
        if self.label not in names and len(names) == 1 and (found := _PARTS.search(names[0])):
            raise DataError(
                f"{path} has no column {self.label!r}; its only one is {shown(names)}: say what is between its cells, "
                f"as with --delimiter {'tab' if found[0] == chr(9) else repr(found[0])}"
            )
        return names

    def _numbered(self, reader: Any, n_columns: int) -> Iterator[tuple[int, list[str]]]:
        """Yield each row with the number of its line; lines with nothing on them are passed over."""
        for row in reader:
            if not row:
                continue
            if len(row) != n_columns:
                what = "names are given for" if self.dialect.header else "the header has"
                raise DataError(
                    f"{self.path}, line {reader.line_num}: {len(row)} cells where {what} {n_columns} columns"
                )
            yield reader.line_num, row


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def read_csv(
    path: Path,
    *,
    label: str,
    split: str | None = None,
    sample_weight: str | None = None,
    offset: str | None = None,
    classes: tuple[int, ...] = (0, 1),
    missing: Missing = "refuse",
    dialect: Dialect = Dialect(),
) -> Table:
    """Return the rows of the CSV file at ``path``, all of whose columns are numbers but the split's.

    Parameters
    ----------
    label : name of the column to be predicted.
    split : name of the column that says ``train`` or ``test``; without it all rows are for training.
    sample_weight : name of the column of the rows' weights.
    offset : name of the column that is added to the rows' margins.
        Every other column is a feature.
    classes : the labels that there may be.
    missing : ``mean`` takes features without a value as NaN; no other column may miss one.
    dialect : how the file is written.

    Raises
    ------
    DataError
        With file, line, column and the kind of defect, and what to do; never with the value.
    """
    columns = Columns(label, split, sample_weight, offset, classes, missing)
    return read(CSVSource(path, dialect, label), columns)
