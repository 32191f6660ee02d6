"""The feature schema: the model's columns, everybody's levels, and in what two schemas differ."""

from dataclasses import fields, replace
from typing import Any

import pytest
from golden.examples import FROZEN_TABLE, TABLE
from hypothesis import given
from hypothesis import strategies as st

from broker.codec import schema_hash
from broker.schema import (
    OTHER,
    Feature,
    Label,
    Schema,
    Split,
    difference,
    feature_columns,
    model_columns,
    unknown_levels,
    with_levels,
    without_columns,
)

WARD = Feature("ward", "categorical")
SCHEMA = Schema((Feature("age", unit="years", low=18.0), WARD), Label("died"))


def merged(*sites: tuple[str, ...], **changes: Any) -> tuple[str, ...]:
    """Return the levels of a ward, changed so, of which each site tells some."""
    schema = with_levels(Schema((replace(WARD, **changes),), Label("died")), [{"ward": levels} for levels in sites])
    return schema.features[0].levels


# --- the model's columns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "columns"),
    [
        (Feature("age"), ("age",)),
        (Feature("age", log1p=True), ("log1p(age)",)),
        (Feature("age", missing="mean"), ("age",)),
        (Feature("age", missing="indicator"), ("age", "age=(missing)")),
        (Feature("sex", "binary", levels=("f", "m")), ("sex",)),
        (Feature("sex", "binary", missing="indicator"), ("sex", "sex=(missing)")),
        (replace(WARD, levels=("A", "B", "C")), ("ward=B", "ward=C")),
        (replace(WARD, levels=("A", "B"), missing="indicator"), ("ward=B", "ward=(missing)")),
        (replace(WARD, levels=("A",), found=True), ()),
        (WARD, ()),
    ],
)
def test_each_kind_of_feature_has_columns_of_its_own(feature: Feature, columns: tuple[str, ...]) -> None:
    assert feature_columns(feature) == columns


def test_the_columns_stand_in_the_order_of_the_features() -> None:
    assert model_columns(FROZEN_TABLE) == ("age", "stage=II", "stage=(other)")
    assert TABLE.names == ("age", "Größe", "lactate", "smoker", "stage", "ward")


def test_levels_are_to_be_found_where_none_are_declared() -> None:
    assert WARD.is_open
    assert replace(WARD, levels=("A", "B"), found=True).is_open, "more may come"
    assert not replace(WARD, levels=("A", "B")).is_open
    assert not Feature("sex", "binary").is_open


@pytest.mark.parametrize(
    ("feature", "waits"),
    [
        (Feature("age"), False),
        (Feature("age", missing="value", fill=1.0), False),
        (Feature("age", missing="mean"), True),
        (Feature("age", missing="indicator"), True),
        (Feature("sex", "binary", missing="indicator"), True),
        (replace(WARD, missing="mean"), True),
        (replace(WARD, missing="indicator"), False),
    ],
)
def test_some_missing_cells_wait_for_the_mean_of_all_sites(feature: Feature, waits: bool) -> None:
    assert feature.is_filled_with_mean == waits
    assert Schema((Feature("dose"), feature), Label("died")).fills_with_mean == waits


def test_the_classes_are_those_of_the_words_and_0_and_1_without_words() -> None:
    assert Label("died", {"ja": 3, "yes": 3, "nein": 1}).classes == (1, 3)
    assert Label("days", above=30.5).classes == Label("died").classes == (0, 1)


# --- levels that sites have ---------------------------------------------------------------------


def test_levels_that_anybody_has_are_merged_numbers_before_words_and_others_last() -> None:
    assert merged(("b", "10", OTHER), ("9", "a"), ()) == ("9", "10", "a", "b", OTHER)
    assert merged(("-1", "2.5", "1e1"), ("3",)) == ("-1", "2.5", "3", "1e1")


def test_a_reference_stands_first_whoever_has_it() -> None:
    assert merged(("a", "z"), ("m",), reference="m") == ("m", "a", "z")
    assert merged(("a", "z"), reference="m") == ("m", "a", "z")


def test_only_levels_that_are_to_be_found_are_merged() -> None:
    assert merged(("x", "y"), levels=("A", "B")) == ("A", "B")
    assert with_levels(SCHEMA, [{"age": ("1",), "ward": ("A",)}, {}]).features[0] == SCHEMA.features[0]


def test_what_is_not_a_number_has_a_place_among_the_words() -> None:
    """NaN is neither before nor behind any number: the order of the sites would have been that of the levels."""
    assert merged(("+nan", "2", "1")) == merged(("1",), ("+nan",), ("2",)) == ("1", "2", "+nan")
    assert merged(("-inf", "7", "1e999")) == ("7", "-inf", "1e999")


LEVELS = st.one_of(
    st.sampled_from(["0", "1", "1.0", "01", "1_0", "10", "-0", "+nan", "inf", "-inf", "m", OTHER]), st.text(min_size=1)
)
SITES = st.lists(st.lists(LEVELS, max_size=5, unique=True).map(tuple), max_size=5)


@given(sites=SITES, reference=st.sampled_from(["", "m", "1"]), order=st.randoms(use_true_random=False))
def test_what_is_merged_does_not_depend_on_the_order_of_the_sites(
    sites: list[tuple[str, ...]], reference: str, order: Any
) -> None:
    shuffled = [tuple(order.sample(levels, len(levels))) for levels in sites]
    order.shuffle(shuffled)
    found = merged(*sites, reference=reference)
    assert merged(*shuffled, reference=reference) == found
    assert merged(*sites, found, reference=reference) == found, "to merge what is merged changes nothing"
    assert len(set(found)) == len(found)
    assert set(found) == {level for levels in sites for level in levels} | ({reference} - {""})


def test_the_column_of_others_goes_where_it_is_empty() -> None:
    schema = with_levels(
        Schema((WARD, replace(WARD, name="town")), Label("died")),
        [{"ward": ("A", "B", OTHER), "town": ("C", "D", OTHER)}],
    )
    assert model_columns(schema) == ("ward=B", "ward=(other)", "town=D", "town=(other)")
    without = without_columns(schema, ["ward=(other)", "town=D"])
    assert model_columns(without) == ("ward=B", "town=D", "town=(other)"), "of a level that is told the column stays"
    assert without_columns(schema, []) == schema


# --- who fits -----------------------------------------------------------------------------------


FOUND = with_levels(SCHEMA, [{"ward": ("A", "B")}])


def test_levels_that_nobody_had_do_not_fit_and_are_not_named() -> None:
    assert unknown_levels(FOUND, {"ward": ("A", "canary")}) == (
        "its column ward has levels that no site had when they were merged; "
        "declare all levels in the schema, and begin anew"
    )


@pytest.mark.parametrize("levels", [(), ("A",), ("B", OTHER), (OTHER,)])
def test_levels_that_are_known_or_rare_fit(levels: tuple[str, ...]) -> None:
    assert unknown_levels(FOUND, {"ward": levels}) == unknown_levels(FOUND, {}) == ""


def test_where_there_is_a_column_of_others_every_level_fits() -> None:
    schema = with_levels(SCHEMA, [{"ward": ("A", "B", OTHER)}])
    assert unknown_levels(schema, {"ward": ("A", "C")}) == ""


def test_of_declared_levels_the_sites_tell_nothing() -> None:
    schema = Schema((replace(WARD, levels=("A", "B")),), Label("died"))
    assert unknown_levels(schema, {"ward": ("C",)}) == ""


# --- in what two schemas differ -----------------------------------------------------------------


def of_age(**changes: Any) -> Schema:
    return replace(SCHEMA, features=(replace(SCHEMA.features[0], **changes), WARD))


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (replace(SCHEMA, features=(WARD,)), "it has no feature age"),
        (
            replace(SCHEMA, features=(*SCHEMA.features, Feature("dose"))),
            "it has a feature dose, which the plan has not",
        ),
        (replace(SCHEMA, features=SCHEMA.features[::-1]), "its features stand in another order"),
        (of_age(unit="months"), "feature age: its unit is months, the plan's years"),
        (of_age(unit=""), "feature age: its unit is not given, the plan's years"),
        (of_age(low=None), "feature age: its low is not given, the plan's 18.0"),
        (of_age(high=90.0), "feature age: its high is 90.0, the plan's not given"),
        (of_age(centre=1.0), "feature age: its centre is 1.0, the plan's 0.0"),
        (of_age(log1p=True), "feature age: its log1p is True, the plan's False"),
        (of_age(missing_values=("-9", "?")), "feature age: its missing values is -9, ?, the plan's not given"),
        (of_age(unit="months", low=1.0), "feature age: its unit is months, the plan's years"),
        (replace(SCHEMA, label=Label("died", above=1.0)), "its label is another one"),
        (replace(SCHEMA, split=Split(column="part")), "its split is another one"),
        (replace(SCHEMA, sample_weight="w"), "its sample weight is another one"),
        (replace(SCHEMA, offset="o"), "its offset is another one"),
    ],
)
def test_the_first_difference_is_told_in_words(theirs: Schema, words: str) -> None:
    assert difference(SCHEMA, theirs) == words
    assert difference(theirs, SCHEMA)
    assert difference(theirs, theirs) == ""


def test_levels_that_were_found_are_no_difference_and_declared_ones_are() -> None:
    assert difference(FOUND, SCHEMA) == ""
    declared = replace(SCHEMA, features=(SCHEMA.features[0], replace(WARD, levels=("A", "B"))))
    assert difference(FOUND, declared) == "feature ward: its levels is A, B, the plan's not given"
    assert difference(declared, SCHEMA) == "feature ward: its levels is not given, the plan's A, B"


@st.composite
def features(draw: st.DrawFn, name: str) -> Feature:
    words = st.text(max_size=3)
    numbers = st.none() | st.floats(allow_nan=False)
    return Feature(
        name,
        draw(st.sampled_from(["numeric", "binary", "categorical"])),
        unit=draw(words),
        low=draw(numbers),
        levels=tuple(draw(st.lists(words, max_size=2))),
        reference=draw(words),
        missing=draw(st.sampled_from(["refuse", "mean", "value", "indicator"])),
        fill=draw(numbers),
        log1p=draw(st.booleans()),
        scale=draw(st.floats(0.1, 10.0)),
    )


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=3))
    label = Label("y", draw(st.dictionaries(st.text(max_size=2), st.integers(0, 2), max_size=2)))
    return Schema(tuple(draw(features(name)) for name in names), label, offset=draw(st.sampled_from(["", "o"])))


@given(ours=schemas(), theirs=schemas())
def test_two_schemas_differ_unless_they_are_one(ours: Schema, theirs: Schema) -> None:
    assert difference(ours, ours) == ""
    assert bool(difference(ours, theirs)) == (ours != theirs) == bool(difference(theirs, ours))


def test_every_part_of_a_feature_counts() -> None:
    """One that is added later has a difference to tell, too."""
    other: dict[type, Any] = {str: "indicator", tuple: ("x",), bool: True, float: 2.0, type(None): 7.0}
    for item in fields(Feature):
        if item.name not in {"name", "found"}:
            value = getattr(SCHEMA.features[0], item.name)
            theirs = of_age(**{item.name: 3.0 if value == 2.0 else other[type(value)]})
            assert difference(SCHEMA, theirs).startswith(f"feature age: its {item.name.replace('_', ' ')} is "), item


# --- its hash ----------------------------------------------------------------------------------------


def test_people_compare_schemas_by_a_hash_of_what_they_say() -> None:
    schema = Schema((Feature("age", unit="years"),), Label("y"))
    assert schema_hash(schema) == schema_hash(Schema((Feature("age", unit="years"),), Label("y")))
    others = [
        Schema((Feature("age", unit="months"),), Label("y")),
        Schema((Feature("age", unit="years"),), Label("y", above=0.0)),
        Schema((Feature("age", unit="years"),), Label("y"), sample_weight="w"),
    ]
    assert len({schema_hash(each) for each in (schema, *others)}) == 1 + len(others)
    assert len(schema_hash(schema)) == 12
