"""Surveys: what the columns of a source look like, and all that is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.schema import Feature, Label, Schema, Split
from participant.errors import DataError
from participant.sources.reading import Batch
from participant.sources.survey import MOST_PLACES, MOST_WORDS, Column, Examined, Extremes, examine, survey

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


@dataclass
class Rows:
    """A source in memory, of which ``batch_rows`` come at a time; lines are counted as in a file with a header."""

    cells: Mapping[str, Sequence[Any]]
    decimal: str = "."
    batch_rows: int = 3
    ends_with: str = ""
    place: str = "rows.csv"
    row_word: str = "line"
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def names(self) -> Sequence[str]:
        return list(self.cells)

    def batches(self, names: Sequence[str]) -> Iterator[Batch]:
        self.asked.append(tuple(names))
        n_rows = len(next(iter(self.cells.values())))
        for start in range(0, n_rows, self.batch_rows):
            stop = min(start + self.batch_rows, n_rows)
            cells = {name: self.cells[name][start:stop] for name in names}
            yield Batch(cells, stop - start, range(start + 2, stop + 2))
        if self.ends_with:
            raise DataError(self.ends_with)

    def signature(self) -> Any:
        return None


def surveyed(cells: Sequence[Any], **options: Any) -> Column:
    (column,) = survey(Rows({"x": cells}, **options)).columns
    return column


# --- what a column looks like --------------------------------------------------------------------------


def test_words_are_counted_as_levels_are_compared() -> None:
    column = surveyed(["3", "3.0", " b ", "", "NA", "b", "?"])
    assert (column.words, column.n_missing, column.numbers) == ({"3": 2, "b": 2}, 3, None)
    assert column.is_mixed


def test_numbers_have_extremes_over_all_batches() -> None:
    column = surveyed(["4", "-1", "7", "", "2", "3", "5"])
    assert column.numbers == (-1.0, 7.0, True)
    assert column.n_missing == 1
    assert (column.all_differ, column.is_mixed) == (True, False)


def test_one_number_with_decimals_makes_a_column_not_whole() -> None:
    assert surveyed(["1", "2", "3", "4.5"]).numbers == (1.0, 4.5, False)


def test_numbers_are_read_with_the_decimals_of_the_source() -> None:
    assert surveyed(["1,5", "2,5"], decimal=",").numbers == (1.5, 2.5, False)
    assert surveyed(["1,5", "2,5"]).numbers is None


def test_arrays_are_surveyed_as_text_is() -> None:
    column = surveyed(np.array([1.0, np.nan, 0.0, 1.0]))
    assert (column.words, column.n_missing, column.numbers) == ({"1": 2, "0": 1}, 1, (0.0, 1.0, True))


@pytest.mark.parametrize("cells", [["", "", ""], [None, None], ["a", "b"], ["1", "inf"], ["1", "1e99"]])
def test_a_column_without_numbers_that_a_feature_may_have_has_no_extremes(cells: list[Any]) -> None:
    assert surveyed(cells).numbers is None


def test_words_are_not_counted_beyond_a_thousand_different_ones() -> None:
    cells = [f"w{index}" for index in range(MOST_WORDS)]
    assert len(surveyed(cells, batch_rows=500).words or ()) == MOST_WORDS
    more = surveyed([*cells, "one more", "", "w1"], batch_rows=500)
    assert (more.words, more.numbers) == (None, None)
    assert more.all_differ is False


def test_extremes_and_missing_cells_are_known_where_words_are_not_counted_any_more() -> None:
    column = surveyed([*map(str, range(MOST_WORDS + 1)), "", "7", "-5"], batch_rows=MOST_WORDS + 1)
    assert column == Column(
        "x", 1, None, all_differ=True, is_mixed=False, numbers=Extremes(-5.0, float(MOST_WORDS), whole=True)
    )


def test_of_a_thousand_different_texts_no_more_is_known() -> None:
    column = surveyed([*(f"w{index}" for index in range(MOST_WORDS + 1)), "", "1"], batch_rows=MOST_WORDS + 1)
    assert column == Column("x", 0, None, all_differ=True, is_mixed=False, numbers=None)


def test_rows_are_counted_once_whatever_the_columns() -> None:
    assert survey(Rows({"x": ["1"] * 7, "y": ["0"] * 7})).n_rows == 7


def test_names_that_are_none_are_refused() -> None:
    source = Rows({"": ["1"]})
    with pytest.raises(DataError, match=r"rows.csv: column 1 has no name"):
        survey(source)
    with pytest.raises(DataError, match=r"rows.csv: column 1 has no name"):
        examine(source, Schema((Feature("x"),), Label("y")))


def test_what_was_found_of_people_is_not_in_a_representation() -> None:
    assert "canary" not in repr(survey(Rows({"x": ["canary", "canary"]})))
    found = examine(Rows({"x": ["canary"], "y": ["1"]}), Schema((Feature("x", kind="categorical"),), Label("y")))
    assert "canary" not in repr(found)


# --- a table and its schema ----------------------------------------------------------------------------

AGE = Feature("age", low=0.0, high=120.0)
X = Feature("x")
Y = Label("y")


def column(cells: Sequence[Any], feature: Feature) -> Examined:
    found = examine(Rows({feature.name: cells, "y": ["0"] * len(cells)}), Schema((feature,), Y))
    return next(each for each in found.columns if each.name == feature.name)


def test_all_defects_of_a_column_are_found_each_with_its_first_lines() -> None:
    found = column(["50", "abc", "130", "", "131", "60", "x"], AGE)
    assert [(each.n, each.places) for each in found.defects] == [(2, (3, 8)), (2, (4, 6)), (1, (5,))]
    assert "is not a number" in found.defects[0].words
    assert "outside the range" in found.defects[1].words
    assert "has no value" in found.defects[2].words
    assert found.n_missing == 1


def test_of_many_defects_only_the_first_places_are_told() -> None:
    (defect,) = column(["x"] * 20, AGE).defects
    assert (defect.n, defect.places) == (20, tuple(range(2, 2 + MOST_PLACES)))


@pytest.mark.parametrize("rule", ["mean", "indicator", "value"])
@pytest.mark.parametrize("cells", [["", "0", "50"], ["", "0", "x", "50"], np.array([np.nan, 0.0, 50.0])])
def test_missing_cells_are_counted_under_every_rule(cells: Any, rule: Any) -> None:
    feature = Feature("age", missing=rule, missing_values=("0",), fill=1.0 if rule == "value" else None)
    assert column(cells, feature).n_missing == 2


def test_levels_are_counted_in_training_rows_alone() -> None:
    cells = {"x": ["a", "b", "a", "", "c"], "y": ["0"] * 5, "s": ["train", "train", "test", "train", "test"]}
    schema = Schema((Feature("x", kind="categorical", missing="mean"),), Y, Split("s"))
    found = examine(Rows(cells), schema)
    (feature,) = (each for each in found.columns if each.part == "feature")
    assert feature.levels == {"a": 1, "b": 1, "c": 0}
    assert (found.n_train, found.n_test) == (3, 2)
    assert found.classes == {0: (3, 2), 1: (0, 0)}


def test_a_split_that_is_wrong_is_told_and_its_rows_count_as_training_rows() -> None:
    found = examine(
        Rows({"x": ["1", "2"], "y": ["0", "1"], "s": ["test", "?"]}), Schema((Feature("x"),), Y, Split("s"))
    )
    assert (found.n_train, found.n_test) == (1, 1)
    assert [(each.part, len(each.defects)) for each in found.columns if each.defects] == [("split", 1)]


def test_a_split_by_key_divides_the_rows() -> None:
    cells = {"x": ["1"] * 200, "y": ["0"] * 200, "patient": [*map(str, range(199)), ""]}
    found = examine(Rows(cells), Schema((Feature("x"),), Y, Split(key="patient", test_share=0.5)))
    assert 50 < found.n_test < 150
    assert [each.part for each in found.columns if each.defects] == ["key of the split"]


def test_labels_weights_and_offsets_are_examined_too() -> None:
    cells = {"x": ["1", "2"], "y": ["2", "1"], "w": ["-1", "1"], "o": ["0.5", "much"]}
    found = examine(Rows(cells), Schema((Feature("x"),), Y, sample_weight="w", offset="o"))
    assert {each.part: [defect.places for defect in each.defects] for each in found.columns} == {
        "label": [(2,)],
        "feature": [],
        "sample weight": [(2,)],
        "offset": [(3,)],
    }
    assert not found.is_sound


def test_columns_that_one_has_and_the_other_has_not_are_told() -> None:
    source = Rows({"x": ["1"], "y": ["0"], "note": ["canary"]})
    found = examine(source, Schema((Feature("x"), Feature("bmi")), Y, sample_weight="w"))
    assert (found.absent, found.unused) == (("bmi", "w"), ("note",))
    assert source.asked == [("x", "y")]
    assert not found.is_sound


def test_what_ends_the_reading_is_told_beside_what_was_found_before() -> None:
    found = examine(Rows({"x": ["1", "x"], "y": ["0", "0"]}, ends_with="rows.csv, line 4: cut"), Schema((X,), Y))
    assert found.ended == "rows.csv, line 4: cut"
    assert found.columns[1].defects
    assert not found.is_sound


def test_a_table_as_its_schema_says_is_sound() -> None:
    assert examine(Rows({"x": ["1", "2"], "y": ["0", "1"]}), Schema((X,), Y)).is_sound
