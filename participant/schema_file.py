"""The file of a feature schema: TOML that people write, read into `broker.schema.Schema`.

    format = 1
    columns = ["age", "sex", ...]      # of CSV files without a header line

    [label]
    column = "num"
    above = 0                          # or: values = { no = 0, yes = 1 }

    [split]
    column = "split"                   # or: key = "patient", test_share = 0.25, seed = 0

    [features.age]
    kind = "numeric"
    unit = "years"
    range = [0, 120]
    missing = "mean"

docs/data.md says what each key means.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from broker.schema import MISSING, OTHER, Feature, Kind, Label, MissingRule, Schema, Split, model_columns
from participant.errors import DataError
from participant.sources.coding import is_missing, word_of

#: Of a name: more is a sentence. Names travel, are logged and printed.
LONGEST_NAME = 200


class SchemaFile(NamedTuple):
    """What a file says: the schema that all share, and the columns of files that have no header line."""

    schema: Schema
    header: tuple[str, ...]


def read_schema(path: Path) -> SchemaFile:
    """Return what the file at ``path`` says.

    Raises
    ------
    DataError
        With the key and what is wrong with it.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path} is not TOML: {error}") from None
    return parse_schema(document, str(path))


def parse_schema(document: Mapping[str, Any], place: str = "the schema") -> SchemaFile:
    """Return what a ``document`` says, which `tomllib` has read; raises `DataError`."""
    try:
        written = _Document.model_validate(document)
        features = tuple(_feature(name, each, written.missing_values) for name, each in written.features.items())
    except ValidationError as error:
        raise DataError(f"{place}: {_first_defect(error)}") from None
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    schema = Schema(
        features=features,
        label=Label(written.label.column, dict(written.label.values), written.label.above),
        split=Split(written.split.column, written.split.key, written.split.test_share, written.split.seed),
        sample_weight=written.sample_weight,
        offset=written.offset,
    )
    if defect := schema_defect(schema):
        raise DataError(f"{place}: {defect}")
    return SchemaFile(schema, tuple(written.columns))


def schema_defect(schema: Schema) -> str:
    """Return what is wrong with ``schema``, in words behind its place; nothing if all is well."""
    for feature in schema.features:
        if defect := _feature_defect(feature):
            return f"features.{feature.name}: {defect}"
    label, split = schema.label, schema.split
    if label.values and label.above is not None:
        return "label: give values or above, not both"
    if label.values and (len(label.classes) < len(("no", "yes")) or label.classes[0] < 0):
        return "label.values: give two or more classes, whole numbers from 0"
    if split.column and split.key:
        return "split: give column or key, not both"
    if bool(split.key) != (split.test_share > 0.0):
        return "split: key and test_share belong together"
    return _doubled(schema)


def _doubled(schema: Schema) -> str:
    others = {
        "label.column": schema.label.column,
        "split.column": schema.split.column,
        "sample_weight": schema.sample_weight,
        "offset": schema.offset,
    }
    taken = {name: f"features.{name}" for name in schema.names}
    for role, name in others.items():
        if name and name in taken:
            return f"{role}: column {name!r} is {taken[name]} already"
        taken[name] = role
    columns = model_columns(schema)
    twice = next((column for column in columns if columns.count(column) > 1), None) if len(columns) < 10_000 else None  # noqa: PLR2004 - of more no level is listed by hand
    return f"two columns of the model would be called {twice!r}: rename a feature or a level" if twice else ""


def _feature_defect(feature: Feature) -> str:
    numeric, categorical = feature.kind == "numeric", feature.kind == "categorical"
    fills = feature.missing == "value"
    rules = {
        "its name is empty, or too long": not 0 < len(feature.name) <= LONGEST_NAME,
        "only numeric features have a range, clip, log1p, centre or scale": not numeric and _has_numbers(feature),
        "numeric features have no levels and no reference": numeric and bool(feature.levels or feature.reference),
        "a binary feature has two levels, what stands for 0 and what for 1": feature.kind == "binary"
        and len(feature.levels) not in {0, 2},
        "levels: list two or more, or none at all to have them found": categorical and len(feature.levels) == 1,
        "levels: one stands twice": len(set(feature.levels)) != len(feature.levels),
        f"levels: {OTHER} and {MISSING} mean something else": bool({OTHER, MISSING} & set(feature.levels)),
        "levels: one of them means that there is no value": not fills
        and any(is_missing(level, feature.missing_values) for level in feature.levels),
        "reference: put it first among the levels": bool(feature.reference and feature.levels),
        "range: the first number is the lower one": _is_reversed(feature.low, feature.high),
        "clip: the first number is the lower one": _is_reversed(feature.clip_low, feature.clip_high),
        "scale: it is above 0": not feature.scale > 0.0,
        "missing = 'value' and fill belong together": fills != _has_fill(feature),
        "fill: a categorical feature is filled with one of its levels": categorical
        and fills
        and bool(feature.levels)
        and feature.fill_level not in feature.levels,
        "fill: a binary feature is filled with 0 or 1": feature.kind == "binary"
        and fills
        and feature.fill not in {0.0, 1.0},
        "fill: it has no log1p": feature.log1p and feature.fill is not None and feature.fill <= -1.0,
        "clip: log1p needs numbers above -1": feature.log1p
        and feature.clip_low is not None
        and feature.clip_low <= -1.0,
    }
    return next((words for words, holds in rules.items() if holds), "")


def _has_numbers(feature: Feature) -> bool:
    plain = Feature(feature.name)
    numbers = ("low", "high", "clip_low", "clip_high", "log1p", "centre", "scale")
    return any(getattr(feature, name) != getattr(plain, name) for name in numbers)


def _has_fill(feature: Feature) -> bool:
    return bool(feature.fill_level) if feature.kind == "categorical" else feature.fill is not None


def _is_reversed(low: float | None, high: float | None) -> bool:
    return low is not None and high is not None and not low < high


def _first_defect(error: ValidationError) -> str:
    defect = error.errors(include_input=False, include_url=False)[0]
    key = ".".join(str(part) for part in defect["loc"])
    if defect["type"] == "missing":
        return f"the key {key} is missing"
    if defect["type"] == "extra_forbidden":
        return f"there is no key {key}"
    return f"{key}: {defect['msg'].removeprefix('Value error, ')}"


# --- what people write --------------------------------------------------------------------------


def _word(value: Any) -> Any:
    """Return a level as cells are read: people write 3 as well as "3" and 3.0."""
    return word_of(value) if isinstance(value, str | int | float) else value


def _bound(value: Any) -> Any:
    """Return a bound; an infinite one, which TOML writes inf, is none."""
    return None if isinstance(value, float) and math.isinf(value) else value


Word = Annotated[str, BeforeValidator(_word)]
Bound = Annotated[float | None, BeforeValidator(_bound)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class _Feature(_Part):
    kind: Kind = "numeric"
    unit: str = ""
    range: tuple[Bound, Bound] = (None, None)
    levels: list[Word] = []
    reference: Word = ""
    missing: MissingRule = "refuse"
    missing_values: list[Word] = []
    fill: float | str | None = None
    clip: tuple[Bound, Bound] = (None, None)
    log1p: bool = False
    centre: float = 0.0
    scale: float = 1.0


class _Label(_Part):
    column: str = Field(min_length=1)
    values: dict[Word, Annotated[int, Field(strict=True)]] = {}
    above: float | None = None


class _Split(_Part):
    column: str = ""
    key: str = ""
    test_share: float = Field(0.0, ge=0.0, lt=1.0)
    seed: int = Field(0, ge=0, le=2**53)


class _Document(_Part):
    format: Annotated[int, Field(ge=1, le=1)]
    columns: list[str] = []
    label: _Label
    split: _Split = _Split()
    sample_weight: str = ""
    offset: str = ""
    missing_values: list[Word] = []
    features: dict[str, _Feature] = Field(min_length=1)


def _feature(name: str, written: _Feature, missing_everywhere: list[str]) -> Feature:
    categorical = written.kind == "categorical"
    try:
        fill = None if categorical or written.fill is None else float(written.fill)
    except ValueError:
        fill = math.nan
    if fill is not None and not math.isfinite(fill):
        raise DataError(f"features.{name}.fill: it is a number of the feature's unit")
    return Feature(
        name=name,
        kind=written.kind,
        unit=written.unit,
        low=written.range[0],
        high=written.range[1],
        levels=tuple(written.levels),
        reference=written.reference,
        missing=written.missing,
        missing_values=(*written.missing_values, *missing_everywhere),
        fill=fill,
        fill_level=word_of(written.fill) if categorical and written.fill is not None else "",
        clip_low=written.clip[0],
        clip_high=written.clip[1],
        log1p=written.log1p,
        centre=written.centre,
        scale=written.scale,
    )
