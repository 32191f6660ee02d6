"""The sites of a training on one machine: which files there are, what they are called, whether they fit together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broker.topology import RESERVED, is_name
from fedmq.errors import CommandError
from participant.sources import SUFFIXES, TEXT_SUFFIXES, Columns, Dialect, Schema, Table, read_table


@dataclass(frozen=True, slots=True)
class Site:
    """A site: its name, its file, its rows."""

    name: str
    path: Path
    table: Table


def find_sites(paths: Sequence[Path], what: Columns | Schema, dialect: Dialect = Dialect()) -> list[Site]:  # noqa: B008 - frozen
    """Return the sites in ``paths``, each a file or a folder of files, sorted by name within a folder.

    Parameters
    ----------
    what : what is what in the files.
    dialect : how CSV files are written; those without a header line have many suffixes.

    Raises
    ------
    CommandError
        When there is no file, two sites have one name, or their columns differ.
    DataError
        When a table cannot be used.
    """
    suffixes = (*SUFFIXES, *TEXT_SUFFIXES) if dialect.header else SUFFIXES
    files = [file for path in paths for file in _files(path, suffixes)]
    names = [_site_name(file) for file in files]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise CommandError(f"two files are called site {twice!r}: give each site a file name of its own")
    sites = [Site(name, file, read_table(file, what, dialect)) for name, file in zip(names, files, strict=True)]
    for site in sites[1:]:
        _check_columns(sites[0], site)
    return sites


def _files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files that ``path`` means, in a folder those with one of ``suffixes``."""
    known = f"{', '.join(suffixes[:-1])} or {suffixes[-1]}"
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes and file.is_file())
        if not found:
            raise CommandError(f"the folder {path} has no {known} file: each site is one")
        return found
    if not path.exists():
        raise CommandError(f"there is no file or folder {path}")
    if path.suffix.lower() not in {*suffixes, *TEXT_SUFFIXES}:
        raise CommandError(f"{path} is not a {known} file")
    return [path]


def _site_name(file: Path) -> str:
    name = file.stem.removeprefix("site-").replace(".", "-")
    if not is_name(name):
        raise CommandError(
            f"the file {file} would be a site called {name!r}: use letters, digits, '-' and '_' in its name"
        )
    if name in RESERVED:
        raise CommandError(f"the file {file} would be a site called {name!r}, which means something else: rename it")
    return name


def _check_columns(first: Site, other: Site) -> None:
    expected, found = set(first.table.features), set(other.table.features)
    if missing := sorted(expected - found):
        raise CommandError(
            f"{other.path} has no column {missing[0]!r}, which {first.path} has: all sites need the same"
        )
    if unknown := sorted(found - expected):
        raise CommandError(
            f"{other.path} has a column {unknown[0]!r}, which {first.path} has not: all sites need the same"
        )
