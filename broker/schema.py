"""The feature schema: what the columns of everybody's tables mean, in one file that all sites share. Part of the plan.

A site's table has columns of its own; the model has others, which follow from the schema (`model_columns`):

=============  ==========================================  ======================================================
kind           its cells                                   columns of the model
=============  ==========================================  ======================================================
numeric        numbers, within ``low`` and ``high``        ``name``, or ``log1p(name)``
binary         two words, by default 0 and 1               ``name``
categorical    ``levels``, declared or found at the sites  ``name=level`` for each level but the first
=============  ==========================================  ======================================================

What a missing cell becomes, ``missing``:

=============  ===================================================================================================
refuse         the table is refused
mean           the mean of the observed training rows of all sites, in each of the feature's columns
value          ``fill``, or of a categorical feature ``fill_level``
indicator      1 in a column ``name=(missing)`` of its own; of a numeric or binary feature the mean besides
=============  ===================================================================================================

A number then is clipped, then its log1p is taken, then it is (x - centre) / scale, each where the schema says so.

Levels that nobody declared are told by the sites and merged. One that no site has in enough rows to tell
of is, in all its rows, ``name=(other)``. A site cannot know what others tell: that column is left out when it turns out
to be empty (`without_columns`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

Kind = Literal["numeric", "binary", "categorical"]
MissingRule = Literal["refuse", "mean", "value", "indicator"]

#: Levels that stand for others; no cell can say them, since a schema refuses them.
OTHER, MISSING = "(other)", "(missing)"

#: Words of a binary feature whose schema names none, in small letters: what stands for 0, and what for 1.
BINARY_WORDS = (("0", "false"), ("1", "true"))


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature: numbers in ``unit``, or levels.

    Attributes
    ----------
    low, high : the range of its numbers, both ends included; None for no bound.
    levels : of a binary feature, what stands for 0 and for 1; of a categorical one, all that there are, the
        first being the one that the others are compared with. Empty: 0 and 1; whatever the sites have.
    found : the levels were not declared, but told by the sites.
    reference : of a categorical feature whose levels are found, the first of them; empty for the least.
    missing : what becomes of a missing cell.
    missing_values : what also counts as a missing cell, besides the words that always do.
    fill, fill_level : what stands for a missing cell under the rule ``value``.
    clip_low, clip_high : numbers beyond are moved there; None for no bound.
    log1p : take log(1 + x), of numbers above -1.
    centre, scale : the number becomes (x - centre) / scale.
    """

    name: str
    kind: Kind = "numeric"
    unit: str = ""
    low: float | None = None
    high: float | None = None
    levels: tuple[str, ...] = ()
    found: bool = False
    reference: str = ""
    missing: MissingRule = "refuse"
    missing_values: tuple[str, ...] = ()
    fill: float | None = None
    fill_level: str = ""
    clip_low: float | None = None
    clip_high: float | None = None
    log1p: bool = False
    centre: float = 0.0
    scale: float = 1.0

    @property
    def is_open(self) -> bool:
        """Whether its levels are still to be found."""
        return self.kind == "categorical" and (self.found or not self.levels)

    @property
    def is_filled_with_mean(self) -> bool:
        """Whether its missing cells wait for the mean of all sites."""
        return self.missing == "mean" or (self.missing == "indicator" and self.kind != "categorical")


@dataclass(frozen=True, slots=True)
class Label:
    """The column to be predicted.

    ``values`` gives the class of each word; ``above`` makes it 1 for numbers above that, 0 for others. With neither the
    cells are 0 and 1.
    """

    column: str
    values: dict[str, int] = field(default_factory=dict)
    above: float | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that there may be, in order."""
        return tuple(sorted(set(self.values.values()))) or (0, 1)


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows are for training.

    ``column`` says train or test. Or the rows of one ``key`` are for testing all or none, a ``test_share`` of the keys
    being so, drawn by ``seed``: the same patient falls on the same side at every site. With neither all train.
    """

    column: str = ""
    key: str = ""
    test_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Schema:
    """What is what in everybody's tables; columns that are not named here are passed over."""

    features: tuple[Feature, ...]
    label: Label
    split: Split = Split()
    sample_weight: str = ""
    offset: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(feature.name for feature in self.features)

    @property
    def fills_with_mean(self) -> bool:
        """Whether some missing cells wait for the mean of all sites."""
        return any(feature.is_filled_with_mean for feature in self.features)


def model_columns(schema: Schema) -> tuple[str, ...]:
    """Return the names of the model's columns; the levels of all features must be there."""
    return tuple(column for feature in schema.features for column in feature_columns(feature))


def feature_columns(feature: Feature) -> tuple[str, ...]:
    """Return the names of the model's columns that come of ``feature``."""
    if feature.kind == "categorical":
        columns = [f"{feature.name}={level}" for level in feature.levels[1:]]
    else:
        columns = [f"log1p({feature.name})" if feature.log1p else feature.name]
    return (*columns, f"{feature.name}={MISSING}") if feature.missing == "indicator" else tuple(columns)


def with_levels(schema: Schema, found: Iterable[Mapping[str, tuple[str, ...]]]) -> Schema:
    """Return ``schema`` with the levels that were ``found`` anywhere, merged.

    Numbers are in their order before words in theirs, `OTHER` is last, and a reference stands before them all.
    """
    sites = list(found)

    def merged(feature: Feature) -> Feature:
        if not feature.is_open:
            return feature
        levels = {level for site in sites for level in site.get(feature.name, ())} - {OTHER, feature.reference}
        ordered = [feature.reference] if feature.reference else []
        ordered += sorted(levels, key=_in_order)
        if any(OTHER in site.get(feature.name, ()) for site in sites):
            ordered.append(OTHER)
        return replace(feature, levels=tuple(ordered), found=True)

    return replace(schema, features=tuple(map(merged, schema.features)))


def without_columns(schema: Schema, empty: Iterable[str]) -> Schema:
    """Return ``schema`` without `OTHER` where its column of the model is among the ``empty`` ones."""
    gone = set(empty)

    def kept(feature: Feature) -> Feature:
        if f"{feature.name}={OTHER}" not in gone:
            return feature
        return replace(feature, levels=tuple(level for level in feature.levels if level != OTHER))

    return replace(schema, features=tuple(map(kept, schema.features)))


def _in_order(level: str) -> tuple[bool, float, str]:
    try:
        number = float(level)
    except ValueError:
        number = math.nan
    return (False, number, level) if math.isfinite(number) else (True, 0.0, level)  # NaN would have no place


def unknown_levels(schema: Schema, found: Mapping[str, tuple[str, ...]]) -> str:
    """Return why a site with the levels ``found`` does not fit a plan of ``schema``, or nothing."""
    for feature in schema.features:
        told = set(found.get(feature.name, ())) - {OTHER}  # what these are only the site itself knows
        if feature.is_open and OTHER not in feature.levels and told - set(feature.levels):
            return (
                f"its column {feature.name} has levels that no site had when they were merged; "
                "declare all levels in the schema, and begin anew"
            )
    return ""


def difference(ours: Schema, theirs: Schema) -> str:
    """Return the first thing in which ``theirs`` is not ``ours``, as words about theirs; nothing if none.

    Levels that were found do not count: a schema does not say them.
    """
    known = {feature.name: feature for feature in ours.features}
    names = set(theirs.names)
    if missing := [name for name in ours.names if name not in names]:
        return f"it has no feature {missing[0]}"
    for feature in theirs.features:
        if feature.name not in known:
            return f"it has a feature {feature.name}, which the plan has not"
        if words := _feature_difference(known[feature.name], feature):
            return f"feature {feature.name}: {words}"
    for part in ("label", "split", "sample_weight", "offset"):
        if getattr(ours, part) != getattr(theirs, part):
            return f"its {part.replace('_', ' ')} is another one"
    return "" if ours.names == theirs.names else "its features stand in another order"


def _feature_difference(ours: Feature, theirs: Feature) -> str:
    declared = replace(ours, levels=(), found=False) if ours.found else ours
    for item in fields(Feature):
        mine, other = getattr(declared, item.name), getattr(theirs, item.name)
        if mine != other:
            return f"its {item.name.replace('_', ' ')} is {_shown(other)}, the plan's {_shown(mine)}"
    return ""


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "not given"
    return "not given" if value in {None, ""} else str(value)
