"""The sites of a training in a notebook: rows in memory, data frames, files; with labels of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.topology import RESERVED, is_name
from fedmq.errors import CommandError
from fedmq.sites import Site
from participant.errors import DataError
from participant.sources import Columns, Table, read_table
from participant.sources.arrays import table_of
from participant.sources.coding import SPLITS

Labels = NDArray[Any]

#: The labels of a file when nobody says which there are.
FILE_CLASSES = (0, 1)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rows:
    """A site's rows as they were given; what each is, `table_of` says. ``y`` are labels of any kind."""

    X: Any
    y: Labels
    sample_weight: Any = None
    offset: Any = None
    is_train: Any = None
    features: Sequence[str] | None = None

    @property
    def has_names(self) -> bool:
        """Whether somebody named the columns."""
        return self.features is not None or hasattr(self.X, "columns")


Given = Rows | Path


def read_given(sites: Mapping[str, Any], columns: Columns) -> dict[str, Given]:
    """Return each site's rows, or the file that they are in.

    Parameters
    ----------
    sites : by name ``(X, y)``, ``(X, y, sample_weight)``, a data frame, or the path of a file.
    columns : what is what in frames and files.

    Raises
    ------
    CommandError
        When a site has no name for it, or is none of these.
    DataError
        When a frame has not the columns that were named.
    """
    if not sites:
        raise CommandError("there is no site: give a mapping of names to sites")
    for name in sites:
        if not isinstance(name, str) or not is_name(name):
            raise CommandError(f"{name!r} cannot be a site's name: use letters, digits, '-' and '_'")
        if name in RESERVED:
            raise CommandError(f"a site cannot be called {name!r}, which means something else: rename it")
    return {name: _of_site(name, given, columns) for name, given in sites.items()}


def _of_site(name: str, given: Any, columns: Columns) -> Given:
    match given:
        case str() | Path():
            return Path(given)
        case (X, y):
            return Rows(X, _labels(name, y))
        case (X, y, sample_weight):
            return Rows(X, _labels(name, y), sample_weight)
        case _ if hasattr(given, "columns"):
            return _of_frame(name, given, columns)
        case _:
            raise CommandError(
                f"site {name!r} is a {type(given).__name__}: give (X, y), (X, y, sample_weight), a data frame, "
                "or the path of a .csv or .npz file"
            )


def _labels(name: str, y: Any) -> Labels:
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise CommandError(f"site {name!r}: y has {labels.ndim} dimensions; give one label for each row")
    return labels


def _of_frame(name: str, frame: Any, columns: Columns) -> Rows:
    known = list(frame.columns)
    for role, column in columns.named.items():
        if column not in known:
            raise DataError(f"site {name!r} has no column {column!r}, which was named as the {role}")
    return Rows(
        X=frame,
        y=_labels(name, frame[columns.label]),
        sample_weight=None if columns.sample_weight is None else frame[columns.sample_weight],
        offset=None if columns.offset is None else frame[columns.offset],
        is_train=None if columns.split is None else _is_train(name, columns.split, frame[columns.split]),
        features=[column for column in known if column not in columns.named.values()],
    )


def _is_train(name: str, column: str, values: Any) -> NDArray[np.bool_]:
    words = np.asarray(values, dtype=np.object_)
    if unknown := [row for row, word in enumerate(words) if not isinstance(word, str) or word not in SPLITS]:
        raise DataError(
            f"site {name!r}, row {unknown[0]}, column {column!r}: the cell is the split and neither 'train' nor 'test'"
        )
    return np.array([SPLITS[word] for word in words], dtype=np.bool_)


def codes_of(classes: Labels) -> tuple[int, ...]:
    """Return the label that the federation has for each of ``classes``: itself if it is one, else its place."""
    if classes.dtype.kind in "biuf" and (classes >= 0).all() and (classes == np.floor(classes)).all():
        return tuple(int(label) for label in classes)
    return tuple(range(len(classes)))


def make_sites(given: Mapping[str, Given], columns: Columns, classes: Labels) -> list[Site]:
    """Return the sites, whose labels are the codes of ``classes`` (sorted), and whose columns are the same.

    Raises
    ------
    CommandError
        When their columns differ, or there is a file although the classes are no codes.
    DataError
        When a table cannot be used.
    """
    codes = codes_of(classes)
    coded = replace(columns, classes=codes)
    if [*codes] != [*classes] and (files := [each for each in given.values() if isinstance(each, Path)]):
        raise CommandError(f"{files[0]} has whole numbers from 0 as labels, other sites have not: use the same")
    sites = [_site(name, each, coded, classes) for name, each in given.items()]
    for site in sites[1:]:
        _check_columns(sites[0], site)
    return sites


def _site(name: str, given: Given, columns: Columns, classes: Labels) -> Site:
    if isinstance(given, Path):
        return Site(name, given, read_table(given, columns))
    return Site(name, Path(name), _named(name, lambda: _table(given, columns, classes)))


def _table(rows: Rows, columns: Columns, classes: Labels) -> Table:
    unknown = ~np.isin(rows.y, classes)
    if unknown.any():
        raise DataError(f"the label of row {unknown.argmax()} is none of the classes that were given")
    return table_of(
        rows.X,
        np.array(columns.classes)[np.searchsorted(classes, rows.y)],
        sample_weight=rows.sample_weight,
        offset=rows.offset,
        is_train=rows.is_train,
        features=rows.features,
        classes=columns.classes,
        missing=columns.missing,
    )


def _named(name: str, make: Callable[[], Table]) -> Table:
    try:
        return make()
    except DataError as error:
        raise DataError(f"site {name!r}: {error}") from None


def _check_columns(first: Site, other: Site) -> None:
    expected, found = set(first.table.features), set(other.table.features)
    for missing in sorted(expected - found):
        raise CommandError(f"site {other.name!r} has no column {missing!r}, which {first.name!r} has")
    for unknown in sorted(found - expected):
        raise CommandError(f"site {other.name!r} has a column {unknown!r}, which {first.name!r} has not")
