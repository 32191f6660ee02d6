"""``fedmq schema``: a first draft of a feature schema, and what would become of a table under one, without a network.

``infer`` writes what `fedmq.schema_draft` makes of a table. ``check`` finds all that a participant would refuse, says
what would become of the rest, and what others would be told. It prints no cell, but levels that enough rows have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from broker.codec import schema_hash
from broker.schema import Feature, Schema, model_columns, with_levels
from broker.settings import checked, read_secret
from fedmq.errors import WRONG_INPUT, CommandError
from fedmq.schema_draft import draft
from fedmq.show import console
from participant.errors import DataError
from participant.settings import TableSettings
from participant.sources import Dialect, Reading, Table
from participant.sources.survey import Examination, Examined, examine, survey
from participant.sources.table import shown

#: Of ``check --json``.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """Where the rows are: ``data`` as a participant has it, or the database that is among the settings ``given``."""

    data: str
    given: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def settings(self) -> TableSettings:
        """How tables are written; raises `SettingsError`."""
        return checked(
            TableSettings, {name: self.given[name] for name in self.given if name in TableSettings.model_fields}
        )

    def reading(self) -> Reading:
        """Return how to read the rows.

        Raises
        ------
        click.UsageError
            Unless it is said once where they are.
        DataError, SettingsError
            For a wrong schema or setting.
        """
        url, query = self.given.get("database", ""), self.given.get("query", "")
        if (file := self.given.get("database_file")) is not None:
            url = read_secret(Path(file), "the database's URL")
        context = click.get_current_context(silent=True)
        if bool(self.data) == bool(url):
            raise click.UsageError("give DATA, or --database and --query: one of the two", context)
        if url and not query:
            raise click.UsageError("--query: give the query that the database answers with the rows", context)
        return self.settings.reading(self.data, query=query, url=url)


# --- infer -----------------------------------------------------------------------------------------


def run_infer(request: SourceRequest, *, columns: str | None, out: Path | None) -> None:
    """Write the first draft of a schema to ``out``, or print it; ``columns`` are names, separated by commas."""
    reading, settings = request.reading(), request.settings
    header = () if columns is None else tuple(name.strip() for name in columns.split(","))
    dialect = Dialect(reading.dialect.delimiter, reading.dialect.decimal, header)
    source = Reading(reading.what, reading.data, dialect, reading.query, reading.url).source()
    text = draft(survey(source), label=settings.label, min_cell=settings.min_cell, header=header)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CommandError(f"{out} is there already: name another file for the draft") from None
    except OSError as error:
        raise CommandError(f"{out} could not be written: {error.strerror}") from None


# --- check -----------------------------------------------------------------------------------------


def run_check(request: SourceRequest, *, as_json: bool) -> None:
    """Print what would become of the rows under the schema; end with 2 where they would be refused."""
    if "feature_schema" not in request.given:
        raise click.UsageError("--schema: name the schema's file", click.get_current_context(silent=True))
    reading = request.reading()
    assert isinstance(reading.what, Schema), "the settings have a schema"
    report = check(reading, reading.what, min_cell=request.settings.min_cell)
    if as_json:
        click.echo(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        _print(console(), report)
    if not report["accepted"]:
        sys.exit(WRONG_INPUT)


def check(reading: Reading, schema: Schema, *, min_cell: int) -> dict[str, Any]:
    """Return the report as a document that JSON can say; raises `DataError` where no column can be told.

    A table is accepted if a participant would accept it: after all defects were looked for it is read as one reads it.
    """
    source = reading.source()
    found = examine(source, schema)
    table, refused = None, ""
    if found.is_sound:
        try:
            table = reading.table()
        except DataError as error:
            refused = str(error)
    features = {feature.name: feature for feature in schema.features}
    return {
        "format": FORMAT,
        "schema": schema_hash(schema),
        "accepted": table is not None,
        "place": source.place,
        "refused": refused or found.ended,
        "rows": {"train": found.n_train, "test": found.n_test},
        "label": {"column": schema.label.column, "classes": _classes(found, min_cell)},
        "features": [
            _feature(features[column.name], column, min_cell) for column in found.columns if column.part == "feature"
        ],
        "absent": list(found.absent),
        "unused": list(found.unused),
        "places": source.row_word,
        "defects": [
            {"column": column.name, "part": column.part, "defect": each.words, "n": each.n, "places": list(each.places)}
            for column in found.columns
            for each in column.defects
        ],
        "min_cell": min_cell,
        "told": None if table is None else _told(table, schema, min_cell),
    }


def _classes(found: Examination, min_cell: int) -> list[dict[str, Any]]:
    """Return how many rows each class has, or null: of none, where one of them has few, since the sum is known."""
    counts = list(found.classes.items())
    hidden = [any(n[at] < min_cell for _, n in counts) for at in (0, 1)]
    return [
        {
            "class": each,
            "train": None if hidden[0] else train,
            "test": None if hidden[1] else test,
            "few": {"train": train < min_cell, "test": test < min_cell},
        }
        for each, (train, test) in counts
    ]


def _feature(feature: Feature, column: Examined, min_cell: int) -> dict[str, Any]:
    common = [level for level, n in column.levels.items() if n >= min_cell]
    return {
        "name": feature.name,
        "kind": feature.kind,
        "unit": feature.unit,
        "missing": column.n_missing,
        "become": _become(feature),
        "levels": sorted(common),
        # Of levels that the schema lists some are not here at all; the others were met, if in test rows alone.
        "n_rare_levels": sum(n < min_cell and (n > 0 or feature.is_open) for n in column.levels.values()),
    }


def _become(feature: Feature) -> str:
    """Return what a missing cell becomes."""
    match feature.missing:
        case "refuse":
            return "refused"
        case "mean":
            return "the mean of all sites"
        case "value":
            return f"the schema's fill, {feature.fill_level or format(feature.fill, 'g')}"
        case "indicator":
            own = "1 in a column of its own"
            return own if feature.kind == "categorical" else f"{own}, and the mean of all sites"


def _told(table: Table, schema: Schema, min_cell: int) -> dict[str, Any]:
    """Return what the aggregator learns before any training: the hello, and the columns that moments are of."""
    levels = table.told_levels(min_cell)
    return {
        "hello": {
            "features": list(table.features),
            "classes": list(table.classes),
            "n_rows": table.n_train,
            "n_test_rows": table.n_test,
            "n_samples": table.weight,
            "levels": {name: list(each) for name, each in levels.items()},
        },
        "moments": list(model_columns(with_levels(schema, [levels]))),
    }


# --- the report for people -------------------------------------------------------------------------


def _print(out: Console, report: Mapping[str, Any]) -> None:
    rows = report["rows"]
    verdict = "would be accepted" if report["accepted"] else "would be refused"
    _say(out, f"{report['place']} {verdict}: {rows['train']} training rows, {rows['test']} test rows")
    _say(out, f"schema {report['schema']}: every site must have the same")
    if report["refused"]:
        _say(out, report["refused"])
    for name in report["absent"]:
        _say(out, f"there is no column {name!r}, which the schema names")
    out.print()
    if report["defects"]:
        out.print(_defects(report))
        out.print()
    out.print(_label(report))
    out.print()
    out.print(_features(report))
    out.print()
    if report["unused"]:
        _say(out, f"Not in the schema, and passed over: {shown(report['unused'])}")
    if unitless := [each["name"] for each in report["features"] if each["kind"] == "numeric" and not each["unit"]]:
        _say(out, f"Without a unit in the schema: {shown(unitless)}")
    if report["told"] is not None:
        _print_told(out, report["told"])


def _say(out: Console, sentence: str) -> None:
    out.print(Text(sentence), soft_wrap=True)


def _grid(*names: str, right: Sequence[str] = ()) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="")
    for name in names:
        grid.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return grid


def _defects(report: Mapping[str, Any]) -> Grid:
    place = f"first {report['places']}s"
    grid = _grid("refused", "cells", "each", place, right=("cells",))
    for each in report["defects"]:
        more = ", ..." if each["n"] > len(each["places"]) else ""
        places = ", ".join(map(str, each["places"])) + more
        grid.add_row(Text(each["column"]), str(each["n"]), Text(each["defect"]), places)
    return grid


def _label(report: Mapping[str, Any]) -> Grid:
    label, least = report["label"], report["min_cell"]
    has_test = report["rows"]["test"] > 0
    columns = ("training rows", "test rows") if has_test else ("training rows",)
    grid = _grid(f"label {label['column']}", *columns, right=columns)
    for each in label["classes"]:
        counts = [_count(each["train"], each["few"]["train"], least), _count(each["test"], each["few"]["test"], least)]
        grid.add_row(f"class {each['class']}", *counts[: len(columns)])
    return grid


def _count(n: int | None, few: bool, least: int) -> str:
    return f"fewer than {least}" if few else f"{least} or more" if n is None else str(n)


def _features(report: Mapping[str, Any]) -> Grid:
    grid = _grid("feature", "kind", "missing", "which become", "levels", right=("missing",))
    for each in report["features"]:
        levels = shown(each["levels"])
        if rare := each["n_rare_levels"]:
            levels += f"{' and ' if levels else ''}{rare} with few rows"
        missing, become = str(each["missing"] or "-"), each["become"] if each["missing"] else ""
        grid.add_row(Text(each["name"]), each["kind"], missing, Text(become), Text(levels))
    return grid


def _print_told(out: Console, told: Mapping[str, Any]) -> None:
    hello, columns = told["hello"], told["moments"]
    weight = "" if hello["n_samples"] is None else f", the sum of their weights ({hello['n_samples']:g})"
    levels = [f"{name}: {shown(each)}" for name, each in hello["levels"].items()]
    out.print()
    _say(out, "What the aggregator would be told before any training:")
    _say(
        out,
        f"  the hello: the schema; {hello['n_rows']} training rows{weight}, {hello['n_test_rows']} test rows; "
        "a salted fingerprint that changes when the rows do",
    )
    for each in levels:
        _say(out, f"    levels of {each}")
    _say(
        out,
        "  the moments: weight, mean and sum of squares about the mean of the training rows in each of "
        f"{len(columns)} columns of the model:",
    )
    _say(out, f"    {shown(columns)}")
