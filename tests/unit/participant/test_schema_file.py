"""The file of a schema: what people write in it, and what is said where it is wrong."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest

from broker.schema import MISSING, OTHER, Feature, Label, Schema, Split
from participant.errors import DataError
from participant.schema_file import LONGEST_NAME, SchemaFile, parse_schema, read_schema, schema_defect

if TYPE_CHECKING:
    from pathlib import Path

WHOLE = """
format = 1
columns = ["age", "sex", "stage", "y", "patient", "w", "o"]
sample_weight = "w"
offset = "o"
missing_values = ["unknown", -8]

[label]
column = "y"
above = 0

[split]
key = "patient"
test_share = 0.25
seed = 7

[features.age]
unit = "years"
range = [0, inf]
missing = "value"
missing_values = [-9.0]
fill = 50
clip = [-inf, 90]
log1p = true
centre = 3
scale = 0.5

[features.sex]
kind = "binary"
levels = ["f", "m"]
missing = "indicator"

[features.stage]
kind = "categorical"
levels = [1, "2.0", 3.0, 4.5, true, " no "]
missing = "value"
fill = 3
"""

EVERYWHERE = ("unknown", "-8")
MEANT = Schema(
    features=(
        Feature(
            "age",
            unit="years",
            low=0.0,
            missing="value",
            missing_values=("-9", *EVERYWHERE),
            fill=50.0,
            clip_high=90.0,
            log1p=True,
            centre=3.0,
            scale=0.5,
        ),
        Feature("sex", kind="binary", levels=("f", "m"), missing="indicator", missing_values=EVERYWHERE),
        Feature(
            "stage",
            kind="categorical",
            levels=("1", "2", "3", "4.5", "true", "no"),
            missing="value",
            missing_values=EVERYWHERE,
            fill_level="3",
        ),
    ),
    label=Label("y", above=0.0),
    split=Split(key="patient", test_share=0.25, seed=7),
    sample_weight="w",
    offset="o",
)


def document(feature: dict[str, Any] | None = None, **parts: Any) -> dict[str, Any]:
    return {"format": 1, "label": {"column": "y"}, "features": {"x": feature or {}}, **parts}


def feature(**said: Any) -> Feature:
    (found,) = parse_schema(document(said)).schema.features
    return found


@pytest.mark.parametrize(
    "content",
    [WHOLE.encode(), b"\xef\xbb\xbf" + WHOLE.encode(), WHOLE.replace("\n", "\r\n").encode()],
    ids=["as it should be", "byte order mark", "CRLF"],
)
def test_every_key_is_read(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "schema.toml"
    file.write_bytes(content)
    assert read_schema(file) == SchemaFile(MEANT, ("age", "sex", "stage", "y", "patient", "w", "o"))


def test_little_need_be_said() -> None:
    assert parse_schema(document()) == SchemaFile(Schema((Feature("x"),), Label("y")), ())


def test_the_words_of_labels_are_read_as_cells_are() -> None:
    said = {"column": "y", "values": {"no": 0, "1.0": 1, " yes ": 1}}
    assert parse_schema(document(label=said)).schema.label.values == {"no": 0, "1": 1, "yes": 1}


@pytest.mark.parametrize(
    ("fill", "level"), [(3, "3"), (3.0, "3"), (3.5, "3.5"), ("3.0", "3"), ("none", "none"), (" a ", "a")]
)
def test_a_categorical_feature_is_filled_with_a_level_as_cells_are_read(fill: Any, level: str) -> None:
    assert feature(kind="categorical", missing="value", fill=fill).fill_level == level


def test_a_reference_is_read_as_cells_are() -> None:
    assert feature(kind="categorical", reference=1.0).reference == "1"


def test_a_level_that_means_no_value_may_be_filled_with_a_level() -> None:
    """Else a site could not say that its unknowns are a level of their own."""
    said = {"kind": "categorical", "levels": ["a", "unknown"], "missing_values": ["unknown"]}
    assert feature(**said, missing="value", fill="unknown").fill_level == "unknown"


def test_nobody_looks_for_names_that_stand_twice_where_there_are_too_many_to_list() -> None:
    many = Feature("x", kind="categorical", levels=tuple(map(str, range(10_002))))
    assert not schema_defect(Schema((many,), Label("y")))


BOTH = "missing = 'value' and fill belong together"
NUMERIC_ONLY = "only numeric features have a range, clip, log1p, centre or scale"
TWO_WORDS = "a binary feature has two levels, what stands for 0 and what for 1"
NO_VALUE = "levels: one of them means that there is no value"

FEATURES: list[tuple[dict[str, Any], str]] = [
    ({"kind": "binary", "range": [0, 1]}, NUMERIC_ONLY),
    ({"kind": "categorical", "clip": [0, 1]}, NUMERIC_ONLY),
    ({"kind": "categorical", "log1p": True}, NUMERIC_ONLY),
    ({"kind": "binary", "centre": 1}, NUMERIC_ONLY),
    ({"kind": "binary", "scale": 2}, NUMERIC_ONLY),
    ({"levels": ["a", "b"]}, "numeric features have no levels and no reference"),
    ({"reference": "a"}, "numeric features have no levels and no reference"),
    ({"kind": "binary", "levels": ["a"]}, TWO_WORDS),
    ({"kind": "binary", "levels": ["a", "b", "c"]}, TWO_WORDS),
    ({"kind": "categorical", "levels": ["a"]}, "levels: list two or more, or none at all to have them found"),
    ({"kind": "categorical", "levels": ["a", "b", "a"]}, "levels: one stands twice"),
    ({"kind": "categorical", "levels": ["3", 3.0]}, "levels: one stands twice"),
    ({"kind": "categorical", "levels": ["a", OTHER]}, "levels: (other) and (missing) mean something else"),
    ({"kind": "binary", "levels": [MISSING, "a"]}, "levels: (other) and (missing) mean something else"),
    ({"kind": "categorical", "levels": ["a", "NA"]}, NO_VALUE),
    ({"kind": "binary", "levels": ["0", "9"], "missing_values": [9]}, NO_VALUE),
    ({"kind": "categorical", "levels": ["a", "b"], "reference": "a"}, "reference: put it first among the levels"),
    ({"range": [2, 1]}, "range: the first number is the lower one"),
    ({"clip": [2, 2]}, "clip: the first number is the lower one"),
    ({"scale": 0}, "scale: it is above 0"),
    ({"scale": -1}, "scale: it is above 0"),
    ({"missing": "value"}, BOTH),
    ({"fill": 1}, BOTH),
    ({"kind": "categorical", "missing": "value"}, BOTH),
    ({"kind": "categorical", "missing": "mean", "fill": "a"}, BOTH),
    (
        {"kind": "categorical", "levels": ["a", "b"], "missing": "value", "fill": "c"},
        "fill: a categorical feature is filled with one of its levels",
    ),
    ({"kind": "binary", "missing": "value", "fill": 0.5}, "fill: a binary feature is filled with 0 or 1"),
    ({"missing": "value", "fill": -1, "log1p": True}, "fill: it has no log1p"),
    ({"clip": [-1, 5], "log1p": True}, "clip: log1p needs numbers above -1"),
]


@pytest.mark.parametrize(("said", "words"), FEATURES)
def test_what_does_not_fit_together_in_a_feature_is_told(said: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_schema(document(said), "schema.toml")
    assert str(raised.value) == f"schema.toml: features.x: {words}"


@pytest.mark.parametrize("name", ["", "n" * (LONGEST_NAME + 1)], ids=["empty", "too long"])
def test_a_name_is_neither_empty_nor_a_sentence(name: str) -> None:
    with pytest.raises(DataError, match="its name is empty, or too long"):
        parse_schema(document(features={name: {}}))


TOGETHER: list[tuple[dict[str, Any], str]] = [
    (
        {"label": {"column": "y", "values": {"a": 0, "b": 1}, "above": 1}},
        "label: give values or above, not both",
    ),
    (
        {"label": {"column": "y", "values": {"a": 1, "b": 1}}},
        "label.values: give two or more classes, whole numbers from 0",
    ),
    (
        {"label": {"column": "y", "values": {"a": -1, "b": 1}}},
        "label.values: give two or more classes, whole numbers from 0",
    ),
    ({"split": {"column": "s", "key": "k", "test_share": 0.5}}, "split: give column or key, not both"),
    ({"split": {"key": "k"}}, "split: key and test_share belong together"),
    ({"split": {"test_share": 0.5}}, "split: key and test_share belong together"),
    ({"label": {"column": "x"}}, "label.column: column 'x' is features.x already"),
    ({"split": {"column": "y"}}, "split.column: column 'y' is label.column already"),
    ({"sample_weight": "w", "offset": "w"}, "offset: column 'w' is sample_weight already"),
    (
        {"features": {"a": {"kind": "categorical", "levels": ["0", "b"]}, "a=b": {}}},
        "two columns of the model would be called 'a=b': rename a feature or a level",
    ),
]


@pytest.mark.parametrize(("parts", "words"), TOGETHER)
def test_what_does_not_fit_together_in_a_schema_is_told(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_schema(document(**parts))
    assert str(raised.value) == f"the schema: {words}"


WRITTEN: list[tuple[dict[str, Any], str]] = [
    ({"label": {}}, "the key label.column is missing"),
    ({"label": {"column": ""}}, "label.column: String should have at least 1 character"),
    ({"lable": {}}, "there is no key lable"),
    ({"features": {"x": {"colour": 1}}}, "there is no key features.x.colour"),
    ({"features": {}}, "features: Dictionary should have at least 1 item after validation, not 0"),
    ({"format": 2}, "format: Input should be less than or equal to 1"),
    ({"features": {"x": {"kind": "text"}}}, "features.x.kind: Input should be 'numeric', 'binary' or 'categorical'"),
    ({"features": {"x": {"scale": math.nan}}}, "features.x.scale: Input should be a finite number"),
    ({"features": {"x": {"kind": "categorical", "levels": [[], "a"]}}}, "features.x.levels.0: Input should be a valid"),
    ({"features": {"x": {"missing": "value", "fill": "many"}}}, "features.x.fill: it is a number of the feature's"),
    ({"features": {"x": {"missing": "value", "fill": "nan"}}}, "features.x.fill: it is a number of the feature's"),
    ({"split": {"key": "k", "test_share": 1.0}}, "split.test_share: Input should be less than 1"),
    ({"label": {"column": "y", "values": {"a": 0.0, "b": 1}}}, "label.values.a: Input should be a valid integer"),
]


@pytest.mark.parametrize(("parts", "sentence"), WRITTEN)
def test_a_key_that_is_wrong_is_named(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as raised:
        parse_schema(document(**parts), "schema.toml")
    assert str(raised.value).startswith(f"schema.toml: {sentence}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, " cannot be read: No such file or directory"),
        ("[features.größe]".encode("latin-1"), " is not UTF-8 text"),
        (b"format = \n", " is not TOML: "),
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "schema.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_schema(file)
    assert str(raised.value).startswith(f"{file}{words}")
