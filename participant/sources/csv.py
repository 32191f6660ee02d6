"""Rows from a CSV file: a header, comma-separated numbers, a label of 0 and 1."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from participant.errors import DataError
from participant.sources.table import Table

#: Values of a split column, and whether they mark a training row.
SPLITS = {"train": True, "test": False}

_LABELS = {"0", "1", "0.0", "1.0"}

#: What other files than comma-separated ones have between their cells.
_PARTS = re.compile(r"[;\t|]")

#: Sums of squares of larger numbers are beyond what the aggregator takes; no unit is so small.
LARGEST = 1e90


def read_csv(path: Path, *, label: str, split: str | None = None) -> Table:
    """Return the rows of the CSV file at ``path``.

    Parameters
    ----------
    label : name of the column of 0 and 1 to be predicted.
    split : name of the column that says ``train`` or ``test``; without it all rows are for training.
        Every other column is a feature.

    Raises
    ------
    DataError
        With file, line, column and the kind of defect, and what to do; never with the value.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            try:
                header = _header(path, next(reader, None), label, split)
                return _table(path, header, _numbered(path, reader, len(header)), label, split)
            except csv.Error as error:
                place = f"{path}, line {reader.line_num}"
                raise DataError(
                    f"{place}: not well-formed CSV ({error}); check the quotes in this line and above"
                ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8 CSV") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _header(path: Path, header: Sequence[str] | None, label: str, split: str | None) -> list[str]:
    if not header:
        raise DataError(f"{path} is empty: it needs a header line and rows")
    names = [name.strip() for name in header]
    # Without the label, numbers here are a row of a file that has no header: they are not shown.
    if label not in names and any(_parsed(part) is not None for name in names for part in _PARTS.split(name)):
        raise DataError(f"{path}, line 1: numbers stand where the column names belong; give the file a header line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{path}, line 1: the column name {twice[0]!r} stands twice; give each column its own name")
    if "" in names:
        raise DataError(f"{path}, line 1: column {names.index('') + 1} has no name; give it one, or remove it")
    for role, name in (("label", label), ("split", split)):
        if name is not None and name not in names:
            raise DataError(
                f"{path} has no column {name!r}, which was named as the {role}; its columns are {_some(names)}"
            )
    if not set(names) - {label, split}:
        raise DataError(f"{path} has no feature columns beside {label!r}")
    return names


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:12])
    return shown if len(names) <= 12 else f"{shown}, ... ({len(names)} in all)"  # noqa: PLR2004 - a line's worth


def _numbered(path: Path, reader: Iterator[list[str]], n_columns: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the number of its line; lines with nothing on them are passed over."""
    for row in reader:
        line: int = reader.line_num  # type: ignore[attr-defined]
        if not row:
            continue
        if len(row) != n_columns:
            raise DataError(f"{path}, line {line}: {len(row)} cells where the header has {n_columns} columns")
        yield line, row


def _table(
    path: Path, header: list[str], rows: Iterator[tuple[int, list[str]]], label: str, split: str | None
) -> Table:
    at_label = header.index(label)
    at_split = None if split is None else header.index(split)
    at_features = [index for index in range(len(header)) if index not in {at_label, at_split}]
    values: list[list[float]] = []
    labels: list[float] = []
    trains: list[bool] = []
    for line, row in rows:
        values.append([_number(row[index], path, line, header[index]) for index in at_features])
        labels.append(_label(row[at_label], path, line, label))
        trains.append(at_split is None or _split(row[at_split], path, line, header[at_split]))
    if not values:
        raise DataError(f"{path} has a header and no rows: it needs at least one training row")
    if not any(trains):
        raise DataError(f"{path}: no row is marked 'train' in column {split!r}; it needs at least one")
    return Table(
        features=tuple(header[index] for index in at_features),
        X=np.array(values, dtype=np.float64),
        y=np.array(labels, dtype=np.float64),
        is_train=np.array(trains, dtype=np.bool_),
    )


def _number(cell: str, path: Path, line: int, column: str) -> float:
    number = _parsed(cell)
    if number is None:
        if cell.strip() in SPLITS:
            raise DataError(f"{_place(path, line, column)} says train or test: name the column as the split")
        kind = "is not a number" if cell.strip() else "is empty"
        raise DataError(f"{_place(path, line, column)} {kind}; every feature needs a number in every row")
    if not math.isfinite(number):
        raise DataError(f"{_place(path, line, column)} is not a finite number (NaN or infinity)")
    if abs(number) > LARGEST:
        raise DataError(f"{_place(path, line, column)} is beyond {LARGEST:g}; give the column another unit")
    return number


def _parsed(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_0 as ten; in a table it is a code
    except ValueError:
        return None


def _label(cell: str, path: Path, line: int, column: str) -> float:
    if cell.strip() not in _LABELS:
        raise DataError(f"{_place(path, line, column)} is the label and neither 0 nor 1; code it as 0 and 1")
    return float(cell)


def _split(cell: str, path: Path, line: int, column: str) -> bool:
    if cell.strip() not in SPLITS:
        raise DataError(f"{_place(path, line, column)} is the split and neither 'train' nor 'test'")
    return SPLITS[cell.strip()]


def _place(path: Path, line: int, column: str) -> str:
    return f"{path}, line {line}, column {column!r}: the cell"
