"""From cells to numbers: what a schema makes of each kind of column, written as text or stored as numbers."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.schema import MISSING, OTHER, Feature, Label, Schema, Split
from participant.sources.coding import MOST_LEVELS, CellDefect, Coded, Coder, is_missing, word_of
from participant.sources.table import Columns

if TYPE_CHECKING:
    from participant.sources.coding import Cells

nan = math.nan
Y = Label("y")

#: Planted in cells: it may be in no sentence.
CANARY = "canary-7731"


def coded(feature: Feature, cells: Cells, **options: Any) -> list[float]:
    """Return the numbers of a column of one feature."""
    return column(Coder(Schema((feature,), Y), **options), cells)


def column(coder: Coder, cells: Cells) -> list[float]:
    numbers: list[float] = coder.code({"x": cells, "y": ["0"] * len(cells)}, len(cells)).X[:, 0].tolist()
    return numbers


def refused(feature: Feature, cells: Cells, **options: Any) -> tuple[int, str]:
    """Return which cell of the column is refused, and in what words."""
    with pytest.raises(CellDefect) as raised:
        coded(feature, cells, **options)
    assert raised.value.column == "x"
    assert "7731" not in str(raised.value)
    assert raised.value.__suppress_context__ or raised.value.__context__ is None, "nor by an error behind it"
    return raised.value.index, str(raised.value)


def rows(schema: Schema, columns: Columns | None = None, **cells: Cells) -> Coded:
    return Coder(schema, columns).code(cells, len(next(iter(cells.values()))))


# --- numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells",
    [
        ["1", " 2.50 ", "-3e1"],
        [1, 2.5, -30],
        [Decimal(1), Decimal("2.50"), Decimal(-30)],
        ["1", 2.5, Decimal(-30)],
        np.array([1.0, 2.5, -30.0]),
        np.array([1.0, 2.5, -30.0], dtype=np.float32),
    ],
    ids=["text", "Python's numbers", "decimals", "mixed", "floats", "single precision"],
)
@pytest.mark.parametrize("rule", ["refuse", "mean"])
def test_numbers_are_the_same_however_they_are_stored(cells: Cells, rule: Any) -> None:
    assert coded(Feature("x", missing=rule), cells) == [1.0, 2.5, -30.0]


@pytest.mark.parametrize("cells", [["1", "0"], [True, False], np.array([True, False]), np.array([1, 0], np.uint64)])
def test_truth_values_are_numbers(cells: Cells) -> None:
    assert coded(Feature("x"), cells) == [1.0, 0.0]


GAPS: dict[str, Cells] = {
    "text": ["1", "", "NA", " n/a ", "NaN", "null", "?", "-9", "unknown", "-9.0"],
    "mixed": [1, None, nan, Decimal("NaN"), None, np.float64(nan), None, -9, "unknown", Decimal("-9.0")],
    "floats": np.array([1.0, nan, nan, nan, nan, nan, nan, -9.0, -9.0, -9.0]),
}
BEYOND: dict[str, Any] = {"missing_values": ("-9", "unknown")}


@pytest.mark.parametrize("cells", GAPS.values(), ids=GAPS)
def test_a_missing_number_waits_for_the_mean(cells: Cells) -> None:
    for rule in ("mean", "indicator"):
        np.testing.assert_array_equal(coded(Feature("x", missing=rule, **BEYOND), cells), [1.0] + [nan] * 9)  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", GAPS.values(), ids=GAPS)
def test_a_missing_number_is_what_the_schema_fills_in(cells: Cells) -> None:
    assert coded(Feature("x", missing="value", fill=40.0, **BEYOND), cells) == [1.0] + [40.0] * 9


@pytest.mark.parametrize("cells", GAPS.values(), ids=GAPS)
def test_a_missing_number_is_refused_if_nothing_else_is_said(cells: Cells) -> None:
    words = "has no value, and the schema refuses missing ones; give one"
    assert refused(Feature("x", **BEYOND), cells) == (1, words)


def test_numbers_that_mean_no_value_are_missing_in_arrays_of_whole_numbers() -> None:
    feature = Feature("x", missing="mean", missing_values=("-9",), low=0.0)
    np.testing.assert_array_equal(coded(feature, np.array([5, -9, 7])), [5.0, nan, 7.0])


@pytest.mark.parametrize("cells", [["0", "120", "", "121"], np.array([0.0, 120.0, nan, 121.0])], ids=["text", "array"])
def test_a_number_outside_the_range_is_refused(cells: Cells) -> None:
    feature = Feature("x", low=0.0, high=120.0, missing="mean")
    assert refused(feature, cells) == (3, "is outside the range that the schema allows")
    np.testing.assert_array_equal(coded(feature, cells[:3]), [0.0, 120.0, nan])
    assert refused(feature, ["-0.5"])[0] == 0


def test_the_range_is_of_the_numbers_that_are_there_and_not_of_what_is_filled_in() -> None:
    assert coded(Feature("x", low=0.0, high=9.0, missing="value", fill=-1.0), ["", "3"]) == [-1.0, 3.0]


@pytest.mark.parametrize("cells", [["", "-5", "0", "500"], np.array([nan, -5.0, 0.0, 500.0])], ids=["text", "array"])
def test_after_filling_a_number_is_clipped_then_its_log_taken_then_centred_and_scaled(cells: Cells) -> None:
    feature = Feature("x", missing="value", fill=1.0, clip_low=0.0, clip_high=300.0, log1p=True, centre=1.0, scale=2.0)
    expected = [(math.log1p(x) - 1.0) / 2.0 for x in (1.0, 0.0, 0.0, 300.0)]
    np.testing.assert_allclose(coded(feature, cells), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"clip_low": 0.0}, [0.0, 5.0]),
        ({"clip_high": 3.0}, [-4.0, 3.0]),
        ({"centre": 1.0}, [-5.0, 4.0]),
        ({"scale": 2.0}, [-2.0, 2.5]),
    ],
)
def test_each_change_of_a_number_is_made_alone_where_it_alone_is_said(said: Any, expected: list[float]) -> None:
    assert coded(Feature("x", **said), ["-4", "5"]) == expected


def test_a_gap_is_not_clipped_and_has_no_log() -> None:
    feature = Feature("x", missing="mean", clip_low=0.0, log1p=True, scale=2.0)
    np.testing.assert_array_equal(coded(feature, ["", "0"]), [nan, 0.0])


@pytest.mark.parametrize("cells", [["0", "-1"], np.array([0, -1])], ids=["text", "array"])
def test_a_number_without_a_log_is_refused(cells: Cells) -> None:
    assert refused(Feature("x", log1p=True), cells) == (1, "has no log1p, which needs a number above -1")


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["1", CANARY], "is not a number"),
        (["1", "7_731"], "is not a number"),
        ([1, "7_731"], "is not a number"),
        (["1", "inf"], "is not a finite number (NaN or infinity)"),
        ([1, Decimal("-Infinity")], "is not a finite number (NaN or infinity)"),
        ([1, 10**400 + 7731], "is not a number"),
        ([1, ["7731"]], "is not a number"),
        (["1", "7.731e95"], "is beyond 1e+90; give the column another unit"),
        (["1", "train"], "says train or test: name the column as the split"),
        (np.array([1.0, math.inf]), "is not a finite number (NaN or infinity)"),
        (np.array([1.0, -7.731e95]), "is beyond 1e+90; give the column another unit"),
    ],
)
@pytest.mark.parametrize("rule", ["refuse", "mean"])
def test_what_is_no_number_is_refused_under_every_rule(cells: Cells, words: str, rule: Any) -> None:
    index, said = refused(Feature("x", missing=rule), cells)
    assert index == 1
    # An array is compared with the bounds at once, or asked cell by cell: either sentence is right.
    assert said.startswith(words)


def test_the_first_gap_and_the_first_large_number_of_an_array_are_asked_about_in_their_order() -> None:
    columns, feature = Columns("y"), Feature("x")
    assert refused(feature, np.array([1.0, nan, 1e95]), columns=columns)[0] == 1
    assert refused(feature, np.array([1.0, 1e95, nan]), columns=columns)[0] == 1
    assert refused(Feature("x", missing="mean"), np.array([1.0, nan, 1e95]), columns=columns)[0] == 2


def test_behind_a_decimal_comma_stand_decimals_and_a_point_is_refused() -> None:
    assert coded(Feature("x"), ["1,5", "-2", "1e3"], decimal=",") == [1.5, -2.0, 1000.0]
    assert refused(Feature("x"), ["1,5", "1.000"], decimal=",")[0] == 1
    assert refused(Feature("x"), ["1.5", "1,5"])[0] == 1


# --- two levels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells",
    [
        ["1", "0", "1.0", "TRUE", "False"],
        [1, 0, 1.0, True, False],
        [Decimal("1.0"), Decimal("0.00"), 1, 1, 0],
        np.array([1, 0, 1, 1, 0]),
        np.array([1.0, 0.0, 1.0, 1.0, 0.0]),
        np.array([True, False, True, True, False]),
    ],
)
def test_a_binary_feature_is_0_or_1_false_or_true(cells: Cells) -> None:
    assert coded(Feature("x", kind="binary"), cells) == [1.0, 0.0, 1.0, 1.0, 0.0]


def test_the_levels_of_a_binary_feature_are_what_the_schema_says_letter_by_letter() -> None:
    feature = Feature("x", kind="binary", levels=("f", "m"))
    assert coded(feature, ["m", " f "]) == [1.0, 0.0]
    assert refused(feature, ["f", "M"]) == (1, "is neither of the two levels of its feature")
    codes = Feature("x", kind="binary", levels=("1", "2"))
    for cells in (["2", "1.0"], np.array([2, 1]), np.array([2.0, 1.0]), [Decimal("2.00"), 1]):
        assert coded(codes, cells) == [1.0, 0.0]


@pytest.mark.parametrize("cells", [["1", "7731", "2"], np.array([1, 7731, 2]), np.array([1.0, 7731.0, 2.0])])
def test_what_is_neither_0_nor_1_is_refused_where_it_first_stands(cells: Cells) -> None:
    assert refused(Feature("x", kind="binary"), cells) == (
        1,
        "is neither 0 nor 1; its feature is binary: name its two levels in the schema",
    )


@pytest.mark.parametrize("cells", [["1", "", "9"], [1, None, 9], np.array([1.0, nan, 9.0])])
@pytest.mark.parametrize(
    ("rule", "fill", "expected"), [("mean", None, nan), ("indicator", None, nan), ("value", 0.0, 0.0)]
)
def test_a_missing_binary_cell_becomes_what_its_rule_says(
    cells: Cells, rule: Any, fill: float | None, expected: float
) -> None:
    feature = Feature("x", kind="binary", missing=rule, fill=fill, missing_values=("9",))
    np.testing.assert_array_equal(coded(feature, cells), [1.0, expected, expected])


def test_a_missing_binary_cell_is_refused_if_nothing_is_said() -> None:
    index, words = refused(Feature("x", kind="binary"), ["1", "?"])
    assert (index, words[:12]) == (1, "has no value")


# --- levels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cells",
    [
        ["3", "3.0", " 3.00 ", "-1", "3"],
        [3, 3.0, Decimal("3.00"), -1, "3"],
        np.array([3, 3, 3, -1, 3]),
        np.array([3.0, 3.0, 3.0, -1.0, 3.0]),
    ],
)
def test_3_and_3_0_are_the_same_level(cells: Cells) -> None:
    coder = Coder(Schema((Feature("x", kind="categorical"),), Y))
    found = column(coder, cells)
    assert [[*coder.levels["x"]][int(place)] for place in found] == ["3", "3", "3", "-1", "3"]


def test_levels_are_found_batch_by_batch_and_keep_their_places() -> None:
    coder = Coder(Schema((Feature("x", kind="categorical"),), Y))
    assert column(coder, ["b", "a", "03"]) == [0.0, 1.0, 2.0]
    assert column(coder, ["3", "a", "b"]) == [3.0, 1.0, 0.0]
    assert coder.levels == {"x": {"b": 0, "a": 1, "03": 2, "3": 3}}


def test_declared_levels_have_the_places_that_the_schema_gives_them_and_no_other_is_taken() -> None:
    feature = Feature("x", kind="categorical", levels=("I", "II", "III"))
    assert coded(feature, ["III", "I", "III"]) == [2.0, 0.0, 2.0]
    assert refused(feature, ["I", CANARY]) == (1, "is none of the levels that the schema lists")
    assert refused(feature, ["I", "i"])[0] == 1


def test_an_array_tells_which_is_the_first_that_is_no_level() -> None:
    feature = Feature("x", kind="categorical", levels=("1", "2", "3"))
    assert refused(feature, np.array([3, 2, 7731, 1, 0]))[0] == 2
    assert coded(feature, np.array([3.0, 2.0, 1.0])) == [2.0, 1.0, 0.0]


@pytest.mark.parametrize("cells", [["2", "", "-9"], [2, None, -9], np.array([2.0, nan, -9.0])])
@pytest.mark.parametrize("levels", [(), ("2", "none")])
def test_a_missing_level_becomes_what_its_rule_says(cells: Cells, levels: tuple[str, ...]) -> None:
    options: dict[str, Any] = {"kind": "categorical", "levels": levels, "missing_values": ("-9",)}
    for rule in ("mean", "indicator"):
        coder = Coder(Schema((Feature("x", missing=rule, **options),), Y))  # type: ignore[arg-type]
        np.testing.assert_array_equal(column(coder, cells), [0.0, nan, nan])
        assert coder.levels["x"] == {"2": 0, **({"none": 1} if levels else {})}
    coder = Coder(Schema((Feature("x", missing="value", fill_level="none", **options),), Y))
    found = column(coder, cells)
    assert [[*coder.levels["x"]][int(place)] for place in found] == ["2", "none", "none"]
    assert refused(Feature("x", **options), cells)[0] == 1


@pytest.mark.parametrize("word", [OTHER, MISSING])
def test_words_that_mean_something_else_are_no_levels(word: str) -> None:
    index, words = refused(Feature("x", kind="categorical"), ["a", word])
    assert (index, words) == (1, "is (other) or (missing), which mean something else; write it without brackets")


def test_a_column_of_too_many_levels_is_refused_unless_they_are_declared() -> None:
    cells = [f"{CANARY}-{n}" for n in range(MOST_LEVELS + 1)]
    assert coded(Feature("x", kind="categorical"), cells[:-1]) == [float(n) for n in range(MOST_LEVELS)]
    index, words = refused(Feature("x", kind="categorical"), cells)
    assert (index, words) == (1000, "is one more than 1000 different ones; its feature cannot be categorical")
    assert coded(Feature("x", kind="categorical", levels=tuple(cells)), cells)[-1] == 1000.0


def test_a_cell_that_is_a_list_is_refused() -> None:
    index, words = refused(Feature("x", kind="categorical"), ["a", [CANARY]])
    assert (index, words) == (1, "is a list or another structure; take the one value that is meant out of it")


# --- label, split, weights, offsets -----------------------------------------------------------------

X = Feature("x")


def labels(label: Label, cells: Cells, **options: Any) -> list[float]:
    found: list[float] = rows(Schema((X,), label), x=["1"] * len(cells), y=cells, **options).y.tolist()
    return found


@pytest.mark.parametrize("cells", [["1", "0", " 1.0 "], [1, False, Decimal(1)], np.array([1, 0, 1]), [True, 0, 1]])
def test_without_more_labels_are_0_and_1(cells: Cells) -> None:
    assert labels(Label("y"), cells) == [1.0, 0.0, 1.0]


def test_the_words_of_labels_have_classes() -> None:
    label = Label("y", {"none": 0, "mild": 1, "bad": 2, "3": 2})
    for cells in (["bad", "none", "mild", "3.0"], ["bad", "none", "mild", Decimal("3.0")]):
        assert labels(label, cells) == [2.0, 0.0, 1.0, 2.0]
    assert labels(Label("y", {"1": 0, "2": 1}), np.array([2.0, 1.0, 2.0])) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("cells", [["0", "0.5", "0.6", "4"], np.array([0.0, 0.5, 0.6, 4.0])])
def test_labels_may_be_numbers_above_another(cells: Cells) -> None:
    assert labels(Label("y", above=0.5), cells) == [0.0, 0.0, 1.0, 1.0]


BAD_LABELS: list[tuple[Label, Any, str]] = [
    (Label("y"), "7731", "is the label and neither 0 nor 1; say in the schema what its words mean"),
    (Label("y"), "", "is the label and neither 0 nor 1; say in the schema what its words mean"),
    (Label("y"), None, "is the label and neither 0 nor 1; say in the schema what its words mean"),
    (Label("y", {"1": 1, "0": 0}), CANARY, "is the label and none of the words that the schema gives a class"),
    (Label("y", {"1": 1, "0": 0}), None, "is the label and none of the words that the schema gives a class"),
    (Label("y", above=2.0), "", "is the label and not a number; every row needs one"),
    (Label("y", above=2.0), "nan", "is the label and not a number; every row needs one"),
    (Label("y", above=2.0), CANARY, "is the label and not a number; every row needs one"),
]


@pytest.mark.parametrize(("label", "cell", "words"), BAD_LABELS)
def test_a_label_that_means_nothing_is_refused(label: Label, cell: Any, words: str) -> None:
    with pytest.raises(CellDefect) as raised:
        labels(label, ["1", cell])
    assert (raised.value.index, raised.value.column, str(raised.value)) == (1, "y", words)


def test_without_a_schema_labels_are_the_classes_of_the_command() -> None:
    columns = Columns("y", classes=(1, 2, 5))
    assert labels(Label("y"), ["5", "1"], columns=columns) == [5.0, 1.0]
    with pytest.raises(CellDefect, match="is the label and none of the classes 1, 2, 5; code it as one of them"):
        labels(Label("y"), ["5", "7731"], columns=columns)


def test_a_column_says_which_rows_train() -> None:
    schema = Schema((X,), Y, Split("s"))
    assert rows(schema, x=["1", "2"], y=["0", "1"], s=[" train ", "test"]).is_train.tolist() == [True, False]
    with pytest.raises(CellDefect, match="is the split and neither 'train' nor 'test'") as raised:
        rows(schema, x=["1", "2"], y=["0", "1"], s=["test", CANARY])
    assert (raised.value.index, raised.value.column) == (1, "s")


def by_key(keys: Cells, share: float = 0.25, seed: int = 0) -> list[bool]:
    schema = Schema((X,), Y, Split(key="patient", test_share=share, seed=seed))
    trains: list[bool] = rows(schema, x=["1"] * len(keys), y=["0"] * len(keys), patient=keys).is_train.tolist()
    return trains


def test_all_rows_of_a_key_are_on_one_side_at_every_site() -> None:
    keys = [f"patient-{n}" for n in range(200)]
    side = dict(zip(keys, by_key(keys), strict=True))
    visits = np.random.default_rng(3).permutation(np.repeat(keys, 3)).tolist()
    assert by_key(visits) == [side[key] for key in visits]


def test_a_key_is_the_same_as_text_and_as_a_number() -> None:
    numbers = range(100)
    sides = by_key([str(n) for n in numbers])
    assert True in sides
    assert False in sides
    assert by_key(np.array(numbers)) == sides
    assert by_key([float(n) for n in numbers]) == sides
    assert by_key([Decimal(n) for n in numbers]) == sides


@pytest.mark.parametrize("share", [0.05, 0.25, 0.6])
def test_the_share_of_keys_that_are_for_testing_is_about_the_one_that_is_asked_for(share: float) -> None:
    n = 4000
    n_test = n - sum(by_key([f"p{i}" for i in range(n)], share))
    assert abs(n_test - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_another_seed_is_another_split() -> None:
    keys = [f"p{i}" for i in range(200)]
    one, two = by_key(keys, 0.5, seed=0), by_key(keys, 0.5, seed=1)
    assert 50 < sum(a != b for a, b in zip(one, two, strict=True)) < 150
    assert by_key(keys, 0.5, seed=1) == two


def test_a_larger_share_takes_more_keys_and_gives_none_back() -> None:
    keys = [f"p{i}" for i in range(300)]
    assert all(few or not many for few, many in zip(by_key(keys, 0.1), by_key(keys, 0.4), strict=True))


def test_a_row_without_a_key_is_refused() -> None:
    with pytest.raises(CellDefect, match="is the key that decides the split, and has no value; every row needs one"):
        by_key(["a", "?"])


WEIGHED = Schema((X,), Y, sample_weight="w", offset="o")


@pytest.mark.parametrize(
    ("weights", "offsets"),
    [
        (["2.5", "0"], ["-1", "1e3"]),
        ([Decimal("2.5"), 0], [-1, 1000.0]),
        (np.array([2.5, 0.0]), np.array([-1, 1000])),
    ],
)
def test_weights_and_offsets_are_the_same_however_they_are_stored(weights: Cells, offsets: Cells) -> None:
    found = rows(WEIGHED, x=["1", "2"], y=["0", "1"], w=weights, o=offsets)
    assert found.sample_weight is not None
    assert found.offset is not None
    assert (found.sample_weight.tolist(), found.offset.tolist()) == ([2.5, 0.0], [-1.0, 1000.0])


def test_where_none_are_named_there_are_no_weights_and_no_offsets_and_all_rows_train() -> None:
    found = rows(Schema((X,), Y), x=["1"], y=["0"])
    assert (found.sample_weight, found.offset, found.is_train.tolist()) == (None, None, [True])


@pytest.mark.parametrize(
    ("name", "cells", "words"),
    [
        ("w", ["1", ""], "is the sample weight and not a number; every row needs one"),
        ("w", ["1", "-7731"], "is a negative sample weight; give a row that shall not count the weight 0"),
        ("w", np.array([1.0, -7731.0]), "is a negative sample weight; give a row that shall not count the weight 0"),
        ("w", np.array([1.0, nan]), "is not a finite number (NaN or infinity)"),
        ("o", ["1", CANARY], "is the offset and not a number; every row needs one"),
        ("o", np.array([1.0, 7.731e95]), "is beyond 1e+90; give the column another unit"),
    ],
)
def test_a_weight_or_an_offset_that_is_none_is_refused(name: str, cells: Cells, words: str) -> None:
    both: dict[str, Cells] = {"w": ["1", "1"], "o": ["0", "0"], name: cells}
    with pytest.raises(CellDefect) as raised:
        rows(WEIGHED, x=["1", "2"], y=["0", "1"], **both)
    assert (raised.value.index, raised.value.column, str(raised.value)) == (1, name, words)


def test_of_several_defects_that_of_the_first_row_is_told() -> None:
    with pytest.raises(CellDefect) as raised:
        rows(WEIGHED, x=["1", "2", CANARY], y=["0", "2", "1"], w=["1", "1", ""], o=["0", "0", "0"])
    assert (raised.value.index, raised.value.column) == (1, "y")


# --- words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "word"),
    [
        (" a b ", "a b"),
        ("3.0", "3"),
        ("-3.000", "-3"),
        ("03", "03"),
        ("3.50", "3.50"),
        ("3.", "3."),
        (3, "3"),
        (3.0, "3"),
        (3.5, "3.5"),
        (1e20, "100000000000000000000"),
        (np.float64(3.0), "3"),
        (np.int64(3), "3"),
        (Decimal("3.00"), "3"),
        (Decimal("3.50"), "3.5"),
        (Decimal(12345678901234567890), "12345678901234567890"),
        (math.inf, "inf"),
        (True, "true"),
        (np.bool_(False), "false"),
        (None, "None"),
    ],
)
def test_a_cell_is_a_word(cell: Any, word: str) -> None:
    assert word_of(cell) == word


@pytest.mark.parametrize(
    "cell", [None, "", "  ", "NA", "n/a", "NaN", "NULL", "?", nan, np.float32(nan), Decimal("NaN")]
)
def test_what_always_means_no_value(cell: Any) -> None:
    assert is_missing(cell)
    assert is_missing(cell, ["-9"])


@pytest.mark.parametrize("cell", ["-9", " -9.0 ", -9, -9.0, Decimal("-9.0"), np.int64(-9)])
def test_what_means_no_value_because_somebody_says_so(cell: Any) -> None:
    assert is_missing(cell, ["-9"])
    assert not is_missing(cell)
    assert not is_missing(cell, ["9", "unknown"])
