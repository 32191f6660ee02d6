"""``fedmq split``: cut one table into sites, for trials and teaching.

::

    --by COLUMN            a site for each value of a column
    --sites N              rows dealt at random, as many to each site as to the others, or one more
    --sites N --dirichlet A
                           each site draws its own shares of the labels from Dirichlet(A, ..., A), and the rows of a
                           label are dealt in proportion: small A, one label a site; large A, the same shares everywhere

The last is the division by which federated learning is usually tried on sites that differ: Hsu, Qi and Brown,
"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019.

A row goes to exactly one site and stands there in the table's order, as it was written. Cells are not interpreted;
only of the columns that the cut is by does it matter which cells are equal.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.table import Table as Grid
from rich.text import Text

from broker.topology import RESERVED, is_name
from fedmq.errors import CommandError
from fedmq.show import console, number
from fedmq.simulation.data import Rows
from fedmq.simulation.partition import Partition
from fedmq.split_files import MOST_VALUES, Column, Csv, Cut, Indices, Npz, Parquet, TableFile, duckdb_module
from participant.sources.csv import CSVSource, Dialect
from participant.sources.table import shown

#: Labels whose shares are printed.
MOST_SHOWN = 12
#: The label where none is named.
LABEL = "y"

_NO_LETTER = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True)
class SplitRequest:
    """What ``fedmq split`` was asked for; what is None was not said.

    ``keep`` leaves the column of ``by`` in the sites' files. ``delimiter`` is what stands between the cells of a CSV
    file, which is a comma unless it is said.
    """

    file: Path
    out: Path
    by: str | None = None
    keep: bool = False
    sites: int | None = None
    dirichlet: float | None = None
    label: str | None = None
    seed: int | None = None
    delimiter: str | None = None

    def __post_init__(self) -> None:
        """Raise `click.UsageError` for options that contradict one another."""
        is_csv = self.file.suffix.lower() == ".csv"
        for wrong, sentence in (
            ((self.by is None) == (self.sites is None), "give --by COLUMN or --sites N: one of the two"),
            (self.sites is None and self.dirichlet is not None, "--dirichlet needs --sites N: how many there shall be"),
            (self.by is None and self.keep, "--keep goes with --by: no column is dropped without it"),
            (self.by is not None and self.seed is not None, "--seed goes with --sites: nothing is random with --by"),
            (not is_csv and self.delimiter is not None, "--delimiter goes with a .csv file"),
            (not 0.0 < (1.0 if self.dirichlet is None else self.dirichlet) < np.inf, "--dirichlet is a number above 0"),
        ):
            if wrong:
                raise click.UsageError(sentence, click.get_current_context(silent=True))


def run_split(request: SplitRequest) -> None:
    """Cut the table, write the sites' files, and print how many rows each has, and the shares of the labels.

    Raises
    ------
    CommandError, DataError
        When the table cannot be cut as it was asked; then nothing is left behind.
    """
    table = _table(request)
    with _whole_or_not_at_all(request.out) as folder:
        label = _label(request, table.columns())
        n_rows, found = table.read([name for name in (request.by, label) if name is not None])
        if not n_rows:
            raise CommandError(f"{request.file} has no rows to be cut")
        cut = _cut(request, n_rows, found)
        table.write(cut, folder, None if request.keep else request.by)
    _print(cut, label, found)
    click.echo(f"\n{n_rows} rows, each at one of {len(cut.names)} sites, are in {request.out}")


def _table(request: SplitRequest) -> TableFile:
    if not request.file.is_file():
        raise CommandError(f"there is no file {request.file}")
    match request.file.suffix.lower():
        case ".csv":
            given = "," if request.delimiter is None else request.delimiter
            delimiter = "\t" if given in {"tab", "\\t"} else given  # which is not easily typed
            return Csv(CSVSource(request.file, Dialect(delimiter), request.by or request.label or LABEL))
        case ".npz":
            return Npz(request.file)
        case ".parquet":
            return Parquet(request.file, duckdb_module())
        case _:
            raise CommandError(f"{request.file} is not a .csv, .npz or .parquet file")


def _label(request: SplitRequest, columns: Sequence[str]) -> str | None:
    """Return which column is the label, None if there is none and nobody needs it."""
    label = request.label or LABEL
    needed = {"--by": request.by, "--label": label if request.label or request.dirichlet else None}
    for option, name in needed.items():
        if name is not None and name not in columns:
            hint = f"; {option} names one of them" if columns else ""
            raise CommandError(f"{request.file} has no column {name!r}; its columns are {shown(columns)}{hint}")
    return label if label in columns else None


# --- which row goes where -------------------------------------------------------------------------


def _cut(request: SplitRequest, n_rows: int, found: Mapping[str, Column]) -> Cut:
    if request.by is not None:
        return by_value(request.file, request.by, found[request.by])
    labels = None if request.dirichlet is None else request.label or LABEL
    if labels is not None:
        _check_few(request.file, labels, found[labels])
    return at_random(
        request.file,
        n_rows,
        sites=request.sites or 1,
        labels=None if labels is None else found[labels].codes,
        alpha=request.dirichlet,
        seed=request.seed or 0,
    )


def by_value(file: Path, name: str, column: Column) -> Cut:
    """Return a site for each value of ``column``, which is called ``name``."""
    _check_few(file, name, column)
    names = tuple(_NO_LETTER.sub("-", value).lstrip("-_") for value in column.values)
    for code, site in enumerate(names):
        if not is_name(site) or site in RESERVED:
            row = int((column.codes == code).argmax()) + 1
            raise CommandError(
                f"{file}, row {row}, column {name!r}: the cell cannot name a site: it needs a letter or digit, has at "
                f"most 63 characters, and is none of {', '.join(sorted(RESERVED))}"
            )
    if len({site.casefold() for site in names}) < len(names):  # some file systems tell no capitals
        raise CommandError(
            f"{file}, column {name!r}: two of its values give sites of one name, capitals aside: all but letters, "
            "digits, '-' and '_' become '-': rename one of them, or write both alike"
        )
    return Cut(names, column.codes)


def at_random(file: Path, n_rows: int, *, sites: int, labels: Indices | None, alpha: float | None, seed: int) -> Cut:
    """Return ``sites`` of equal size; or, with ``labels`` (n_rows,), with shares of them from Dirichlet(``alpha``)."""
    if n_rows < sites:
        raise CommandError(f"{file} has {n_rows} rows, not enough for {sites} sites: set fewer with --sites")
    drawn = Partition(
        by="iid" if alpha is None else "dirichlet", sites=sites, alpha=alpha or 1.0, size_sigma=0.0, min_rows=1
    )
    y = np.zeros(n_rows) if labels is None else labels.astype(np.float64)
    site_of = np.full(n_rows, -1)
    for site, rows in enumerate(drawn.parts(Rows((), np.empty((n_rows, 0)), y), seed)):
        site_of[rows] = site
    assert (site_of >= 0).all(), "every row goes to a site"
    return Cut(tuple(f"{site:0{len(str(sites))}}" for site in range(1, sites + 1)), site_of)


def _check_few(file: Path, name: str, column: Column) -> None:
    if len(column.values) > MOST_VALUES:
        raise CommandError(
            f"{file}, column {name!r} has {len(column.values)} different values, at most {MOST_VALUES} can be told "
            "apart: name a column that says which group a row is of"
        )


# --- the folder, and what is printed --------------------------------------------------------------


@contextmanager
def _whole_or_not_at_all(out: Path) -> Iterator[Path]:
    """Give a folder that takes the name ``out`` once all is in it, and else is gone."""
    place = out.resolve()  # a link stays, and what it points to is filled
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise CommandError(f"{out} is there already, and not an empty folder: name another one for the sites")
    if place == Path.cwd():
        raise CommandError(f"{out} is the folder that you are in: name one for the sites that can be made anew")
    parent = next(parent for parent in place.parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=parent) as around:
            fresh = Path(around) / place.name
            fresh.mkdir()
            yield fresh
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh.rename(place)
    except OSError as error:
        raise CommandError(f"{out} could not be written: {error.strerror}; nothing of it is left behind") from None


def _print(cut: Cut, label: str | None, found: Mapping[str, Column]) -> None:
    """Print the rows of each site, and the shares of the labels among them, if there are a few labels."""
    labels = found[label] if label is not None and len(found[label].values) <= MOST_SHOWN else None
    grid = Grid(box=None, pad_edge=False, header_style="")
    grid.add_column("site")
    grid.add_column("rows", justify="right")
    for value in () if labels is None else labels.values:
        grid.add_column(Text(f"{label} = {shown([value])}"), justify="right")
    for site, name in enumerate(cut.names):
        here = cut.site_of == site
        n_rows = int(here.sum())
        shares = () if labels is None else np.bincount(labels.codes[here], minlength=len(labels.values)) / n_rows
        grid.add_row(name, str(n_rows), *(number(float(share)) for share in shares))
    console().print(grid)
