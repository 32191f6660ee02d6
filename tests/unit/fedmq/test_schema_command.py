"""``fedmq schema``: drafts that their own table fits, reports of all that is wrong, and no cell in either."""

from __future__ import annotations

import csv
import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.schema import Schema
from broker.settings import SettingsError
from fedmq.errors import CommandError
from fedmq.schema import SourceRequest, check, run_check, run_infer
from fedmq.schema_draft import draft, round_range
from participant.errors import DataError
from participant.schema_file import _Document, _Feature, _Label, _Split, parse_schema
from participant.sources import Columns, Dialect, Reading
from participant.sources.survey import survey

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import BaseModel

#: Planted in cells that few rows have: no part of any output.
CANARY = "canary-7731"
CANARY_NUMBER = "7731.7731"

N = 24
Y = ["0", "1"] * (N // 2)


def write(path: Path, columns: Mapping[str, Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Name a table that is not there yet."""
    return tmp_path / "site-a.csv"


def drafted(file: Path, columns: Mapping[str, Sequence[str]], *, label: str = "y", min_cell: int = 5) -> str:
    """Return the draft for a table with these columns beside a label ``y``, and a feature ``age``."""
    write(file, {"age": [str(40.5 + index) for index in range(N)], "y": Y, **columns})
    return draft(survey(Reading(Columns(label), str(file)).source()), label=label, min_cell=min_cell)


def feature(text: str, name: str = "x") -> dict[str, Any] | None:
    found: dict[str, Any] | None = tomllib.loads(text)["features"].get(name)
    return found


def comments(text: str) -> str:
    return "\n".join(line.partition("#")[2] for line in text.splitlines())


# --- the draft: kinds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["0", "1", "1"], {"kind": "binary"}),
        (["true", "False", "true"], {"kind": "binary"}),
        (["no", "yes", "yes"], {"kind": "binary", "levels": ["no", "yes"]}),
        (["2", "1", "1.0"], {"kind": "binary", "levels": [1, 2]}),
        (["a", "c", "b"], {"kind": "categorical", "levels": ["a", "b", "c"]}),
        (["10", "9", "2"], {"kind": "categorical", "levels": [2, 9, 10]}),
        (["02", "9", "1"], {"kind": "categorical", "levels": ["1", "02", "9"]}),
        (["1", "2", "3+"], {"kind": "categorical", "levels": ["1", "2", "3+"]}),
        (["1.5", "2", "3"], {"unit": "", "range": [1, 5]}),
        (["7", "7", "7"], {"unit": "", "range": [5, 10]}),
    ],
)
def test_a_column_becomes_what_its_cells_look_like(file: Path, cells: list[str], expected: dict[str, Any]) -> None:
    assert feature(drafted(file, {"x": cells * 8})) == expected


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ([str(1000 + index) for index in range(N)], "all rows have different whole numbers"),
        ([f"{CANARY}{index}" for index in range(N)], "a word of its own in most rows, as keys, names and texts have"),
        ([*map(str, range(N - 1)), CANARY], "are some of its words no values? list them in missing_values"),
        (["2020-01-31", "2020-02-01"] * 12, "it has dates"),
        (["1.2.2020", "31.12.2021 10:30"] * 12, "it has dates"),
        ([""] * N, "it has no value in any row"),
        (["a"] * N, "all rows have the same word"),
        (["(other)", "a"] * 12, "(other) and (missing) mean something else"),
    ],
)
def test_a_column_that_is_no_feature_is_left_out_and_a_comment_says_why(file: Path, cells: list[str], why: str) -> None:
    text = drafted(file, {"x": cells})
    assert feature(text) is None
    assert f'"x": {why}' in comments(text) or why in comments(text)
    assert CANARY not in text


def test_of_many_words_the_draft_says_that_they_are_too_many(file: Path) -> None:
    rows = 1200
    write(file, {"x": [f"w{index}" for index in range(rows)], "n": ["1.5"] * rows, "y": ["0", "1"] * (rows // 2)})
    text = draft(survey(Reading(Columns("y"), str(file)).source()), label="y", min_cell=5)
    assert '"x": it has more than 1000 different words' in comments(text)


def test_a_name_too_long_for_a_feature_is_left_out(file: Path) -> None:
    assert "its name is too long" in comments(drafted(file, {"x" * 201: ["1.5"] * N}))


def test_whole_numbers_with_gaps_are_measurements_in_a_small_table(file: Path) -> None:
    assert feature(drafted(file, {"x": [str(7 * index) for index in range(N)]})) == {"unit": "", "range": [0, 200]}


def test_few_rows_of_whole_numbers_are_no_levels(file: Path) -> None:
    write(file, {"x": ["3", "5", "8"], "y": ["0", "1", "0"]})
    text = draft(survey(Reading(Columns("y"), str(file)).source()), label="y", min_cell=5)
    assert feature(text) == {"unit": "", "range": [2, 10]}


# --- the draft: what people must not read in it ---------------------------------------------------------


def test_levels_that_few_rows_have_are_counted_and_not_named(file: Path) -> None:
    text = drafted(file, {"x": ["a"] * 10 + ["b"] * 11 + [CANARY, CANARY + "2", CANARY + "2"]})
    assert feature(text) == {"kind": "categorical"}
    assert 'here: "a", "b" and 2 rarer' in comments(text)
    assert CANARY not in text


def test_of_two_words_of_which_one_is_rare_neither_is_declared(file: Path) -> None:
    text = drafted(file, {"x": ["a"] * 23 + [CANARY]})
    assert feature(text) == {"kind": "categorical"}
    assert CANARY not in text


def test_the_least_cell_can_be_smaller(file: Path) -> None:
    assert feature(drafted(file, {"x": ["a"] * 23 + ["b"]}, min_cell=1)) == {"kind": "binary", "levels": ["a", "b"]}


def test_many_levels_are_counted_and_not_listed(file: Path) -> None:
    rows = 150
    write(file, {"x": [f"l{index % 25}" for index in range(rows)], "y": ["0", "1"] * (rows // 2)})
    text = draft(survey(Reading(Columns("y"), str(file)).source()), label="y", min_cell=5)
    assert feature(text) == {"kind": "categorical"}
    assert "levels are found at the sites; here: 25\n" in text


@pytest.mark.parametrize(("n_missing", "share"), [(1, "4 %"), (6, "25 %"), (12, "50 %"), (23, "96 %")])
def test_missing_cells_are_told_in_whole_percents(file: Path, n_missing: int, share: str) -> None:
    text = drafted(file, {"x": [""] * n_missing + ["1.5"] * (N - n_missing)})
    assert (feature(text) or {})["missing"] == "mean"
    assert f"{share} of the cells have no value" in comments(text)


@pytest.mark.parametrize(("n_missing", "share"), [(1, "under 1 %"), (999, "over 99 %")])
def test_very_small_and_very_large_shares_are_not_0_and_100(file: Path, n_missing: int, share: str) -> None:
    write(file, {"x": [""] * n_missing + ["1.5"] * (1000 - n_missing), "y": ["0", "1"] * 500})
    text = draft(survey(Reading(Columns("y"), str(file)).source()), label="y", min_cell=5)
    assert f"{share} of the cells" in comments(text)


def test_missing_levels_get_a_column_of_their_own(file: Path) -> None:
    text = drafted(file, {"x": ["a", "b", ""] * 8, "b": ["0", "1", "NA"] * 8})
    assert [(feature(text, name) or {})["missing"] for name in "xb"] == ["indicator", "indicator"]


numbers = st.floats(-1e90, 1e90, allow_nan=False)


@given(st.lists(numbers, min_size=1, max_size=5))
def test_a_range_is_round_and_beyond_the_extremes(values: list[float]) -> None:
    low, high = round_range(min(values), max(values))
    assert low <= min(values)
    assert high >= max(values)
    assert low < high
    assert not {low, high} - {0.0} & set(values)
    for end in (low, high):
        digits = f"{abs(end):e}".partition("e")[0]
        assert end == 0.0 or abs(end) < 1e-300 or float(digits) in {1.0, 2.0, 5.0}


@pytest.mark.parametrize(
    ("extremes", "expected"),
    [
        ((0.0, 0.0), (0.0, 1.0)),
        ((0.0, 6.2), (0.0, 10.0)),
        ((0.1, 6.2), (0.0, 10.0)),
        ((18.0, 77.0), (10.0, 100.0)),
        ((100.0, 100.0), (50.0, 200.0)),
        ((-6.2, -0.1), (-10.0, 0.0)),
        ((-77.0, -18.0), (-100.0, -10.0)),
        ((-2.6, 4.2), (-5.0, 5.0)),
    ],
)
def test_ranges(extremes: tuple[float, float], expected: tuple[float, float]) -> None:
    assert round_range(*extremes) == expected


# --- the draft: label, split, header ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["0", "1", "0"], {}),
        (["0.0", "1.0", "0"], {}),
        (["no", "yes", "yes"], {"values": {"no": 0, "yes": 1}}),
        (["false", "true", "true"], {"values": {"false": 0, "true": 1}}),
        (["c", "b", "a b"], {"values": {"a b": 0, "b": 1, "c": 2}}),
        (["2", "1", "1"], {"values": {"1": 0, "2": 1}}),
        (["0", "1", "4"], {"above": 0}),
        (["0.5", "1", "4"], {"above": 0}),
    ],
)
def test_the_label_is_drafted_from_its_cells(file: Path, cells: list[str], expected: dict[str, Any]) -> None:
    text = drafted(file, {"out come": cells * 8}, label="out come")
    assert tomllib.loads(text)["label"] == {"column": "out come", **expected}


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (["yes"] * N, "does not have two different words"),
        ([""] * N, "does not have two different words"),
        (["yes"] * 23 + [CANARY], "has words in fewer than 5 rows, which are not told"),
    ],
)
def test_a_label_that_cannot_be_drafted_ends_in_a_sentence(file: Path, cells: list[str], sentence: str) -> None:
    with pytest.raises(CommandError, match=sentence) as caught:
        drafted(file, {"y": cells})
    assert CANARY not in str(caught.value)


def test_a_label_of_a_thousand_words_is_none(file: Path) -> None:
    write(file, {"x": ["1.5"] * 1001, "y": [f"w{index}" for index in range(1001)]})
    with pytest.raises(CommandError, match="more than 1000 different words: it is no label"):
        draft(survey(Reading(Columns("y"), str(file)).source()), label="y", min_cell=5)


def test_rows_without_a_label_are_told(file: Path) -> None:
    assert "50 % of the rows have no label" in comments(drafted(file, {"y": ["", "1", "0", ""] * 6}))


def test_a_column_of_train_and_test_is_the_split(file: Path) -> None:
    document = tomllib.loads(drafted(file, {"part": ["train", "test", "train"] * 8}))
    assert document["split"] == {"column": "part"}
    assert list(document["features"]) == ["age"]


def test_names_and_levels_are_written_as_toml_wants_them(file: Path) -> None:
    names = ['a "b" \\ c', "d.e", "\x7f", "\N{GRINNING FACE}"]
    text = drafted(file, {name: ['say "no"', "\N{GRINNING FACE}\\"] * 12 for name in names})
    assert [feature(text, name) for name in names] == [
        {"kind": "binary", "levels": ['say "no"', "\N{GRINNING FACE}\\"]}
    ] * 4


@pytest.mark.parametrize(
    ("columns", "label", "sentence"),
    [
        ({"x": ["1.5"] * N, "z": Y}, "y", "there is no column 'y': name the label with --label; there are x, z"),
        ({"x": ["a"] * N, "y": Y}, "y", "no column beside 'y' looks like a feature"),
        ({"x": [], "y": []}, "y", "there are no rows"),
    ],
)
def test_a_table_that_gives_no_draft_ends_in_a_sentence(
    file: Path, columns: dict[str, list[str]], label: str, sentence: str
) -> None:
    write(file, columns)
    with pytest.raises(CommandError, match=sentence):
        draft(survey(Reading(Columns(label), str(file)).source()), label=label, min_cell=5)


# --- what is drafted is accepted -----------------------------------------------------------------------

cells = st.one_of(
    st.lists(st.sampled_from(["0", "1", "1.0", "true", "FALSE"]), min_size=N, max_size=N),
    st.lists(st.sampled_from(["a", "b", " c", 'd"', "3", "3.0", "", "?"]), min_size=N, max_size=N),
    st.lists(st.sampled_from([*"123", "04", "-0", "1e1", "NA"]), min_size=N, max_size=N),
    st.lists(st.one_of(st.just(""), numbers.map(repr)), min_size=N, max_size=N),
    st.lists(st.integers(-50, 5000).map(str), min_size=N, max_size=N),
    st.lists(st.sampled_from(["train", "test"]), min_size=N, max_size=N),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=N, max_size=N),
)
labels = st.one_of(
    st.just(Y),
    st.just(["no", "yes"] * (N // 2)),
    st.lists(st.sampled_from([*"01234"]), min_size=N, max_size=N),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(cells, max_size=4), labels)
def test_a_table_is_accepted_under_its_own_draft(
    tmp_path_factory: pytest.TempPathFactory, columns: list[list[str]], y: list[str]
) -> None:
    file = tmp_path_factory.mktemp("tables") / "site-a.csv"
    named = {f"x{index}": [cell.replace("\0", "") for cell in each] for index, each in enumerate(columns)}
    text = drafted(file, {**named, "y": y})
    schema = parse_schema(tomllib.loads(text)).schema
    report = check(Reading(schema, str(file)), schema, min_cell=5)
    assert report["accepted"], report


# --- the report ----------------------------------------------------------------------------------------

SCHEMA = {
    "format": 1,
    "label": {"column": "y"},
    "features": {
        "age": {"unit": "years", "range": [0, 120]},
        "site": {"kind": "categorical", "missing": "indicator"},
        "smokes": {"kind": "binary", "missing": "value", "fill": 0},
        "bmi": {"missing": "mean"},
        "ward": {"kind": "categorical", "missing": "value", "fill": "north"},
        "sex": {"kind": "binary", "missing": "indicator"},
    },
}
TABLE = {
    "age": [str(40 + index) for index in range(N)],
    "site": ["a"] * 12 + ["b"] * 10 + [CANARY, ""],
    "smokes": ["0", "1", ""] * 8,
    "bmi": ["20.5", "", "30", "25"] * 6,
    "ward": ["north", "south", ""] * 8,
    "sex": ["0", "1"] * 11 + ["", ""],
    "note": [CANARY] * N,
    "y": Y,
}


def report_of(
    file: Path, columns: Mapping[str, Sequence[str]], said: Mapping[str, Any] | None = None, min_cell: int = 5
) -> dict[str, Any]:
    write(file, {**TABLE, **columns})
    schema = parse_schema({**SCHEMA, **(said or {})}).schema
    report = check(Reading(schema, str(file)), schema, min_cell=min_cell)
    assert CANARY not in json.dumps(report)
    assert CANARY_NUMBER not in json.dumps(report)
    return report


def test_a_sound_table_is_accepted_and_the_report_says_what_becomes_of_it(file: Path) -> None:
    report = report_of(file, {})
    assert report["accepted"]
    assert (report["defects"], report["absent"], report["unused"]) == ([], [], ["note"])
    assert report["rows"] == {"train": N, "test": 0}
    told = {each["name"]: (each["missing"], each["become"]) for each in report["features"]}
    assert told == {
        "age": (0, "refused"),
        "site": (1, "1 in a column of its own"),
        "smokes": (8, "the schema's fill, 0"),
        "bmi": (6, "the mean of all sites"),
        "ward": (8, "the schema's fill, north"),
        "sex": (2, "1 in a column of its own, and the mean of all sites"),
    }


def test_levels_of_few_rows_are_counted_in_the_report_and_not_named(file: Path) -> None:
    site = report_of(file, {})["features"][1]
    assert (site["levels"], site["n_rare_levels"]) == (["a", "b"], 1)


def test_the_report_says_what_the_aggregator_would_be_told(file: Path) -> None:
    told = report_of(file, {"w": ["2"] * N}, {"sample_weight": "w"})["told"]
    assert told["hello"] == {
        "features": list(SCHEMA["features"]),  # type: ignore[call-overload]
        "classes": [0, 1],
        "n_rows": N,
        "n_test_rows": 0,
        "n_samples": 48.0,
        "levels": {"site": ["a", "b", "(other)"], "ward": ["north", "south"]},
    }
    assert told["moments"] == [
        *("age", "site=b", "site=(other)", "site=(missing)", "smokes", "bmi", "ward=south", "sex", "sex=(missing)")
    ]


def test_all_defects_are_reported_with_their_lines(file: Path) -> None:
    bad = {"age": ["999", "x", *TABLE["age"][2:-1], "-1"], "smokes": [CANARY, *TABLE["smokes"][1:]], "y": ["", *Y[1:]]}
    report = report_of(file, bad)
    assert not report["accepted"]
    assert report["told"] is None
    assert [(each["column"], each["n"], each["places"]) for each in report["defects"]] == [
        ("y", 1, [2]),
        ("age", 2, [2, 25]),
        ("age", 1, [3]),
        ("smokes", 1, [2]),
    ]


def test_columns_that_are_not_there_are_all_named(file: Path) -> None:
    columns = {name: {} for name in ("age", "bmi", "height", "weight")}
    report = report_of(file, {}, {"features": columns})
    assert report["absent"] == ["height", "weight"]
    assert not report["accepted"]


def test_what_is_wrong_with_the_whole_table_is_reported_too(file: Path) -> None:
    report = report_of(file, {"w": ["0"] * N}, {"sample_weight": "w"})
    assert not report["accepted"]
    assert "the sample weights of all training rows are 0" in report["refused"]


def test_a_row_that_cannot_be_read_ends_the_report_and_is_in_it(file: Path) -> None:
    write(file, TABLE)
    with file.open("a", encoding="utf-8") as more:
        more.write(f"{CANARY},2\n")
    schema = parse_schema(SCHEMA).schema
    report = check(Reading(schema, str(file)), schema, min_cell=5)
    assert not report["accepted"]
    assert "line 26: 2 cells where the header has 8 columns" in report["refused"]


@pytest.mark.parametrize(
    ("n_of_class_1", "shown"), [(12, [12, 12]), (4, [None, None]), (0, [None, None]), (5, [19, 5])]
)
def test_a_class_of_few_rows_hides_the_numbers_of_all_classes(
    file: Path, n_of_class_1: int, shown: list[int | None]
) -> None:
    classes = report_of(file, {"y": ["1"] * n_of_class_1 + ["0"] * (N - n_of_class_1)})["label"]["classes"]
    assert [each["train"] for each in classes] == shown
    assert [each["few"]["train"] for each in classes] == [False, n_of_class_1 < 5]


def test_rows_for_testing_are_counted_apart(file: Path) -> None:
    report = report_of(file, {"part": ["train"] * 14 + ["test"] * 10}, {"split": {"column": "part"}})
    assert report["rows"] == {"train": 14, "test": 10}
    assert [(each["train"], each["test"]) for each in report["label"]["classes"]] == [(7, 5), (7, 5)]


# --- the commands ----------------------------------------------------------------------------------------


def schema_file(folder: Path) -> Path:
    path = folder / "schema.toml"
    path.write_text(
        'format = 1\n[label]\ncolumn = "y"\n[split]\ncolumn = "part"\n[features.age]\nrange = [0, 120]\n'
        '[features.site]\nkind = "categorical"\nmissing = "indicator"\n'
    )
    return path


def printed(file: Path, capsys: pytest.CaptureFixture[str], **columns: Sequence[str]) -> tuple[int, str]:
    """Return the exit code of `fedmq schema check`, and what it prints."""
    write(file, {**TABLE, "part": ["train"] * 18 + ["test"] * 6, **columns})
    request = SourceRequest(str(file), {"feature_schema": str(schema_file(file.parent))})
    try:
        run_check(request, as_json=False)
    except SystemExit as ending:
        code = int(str(ending.code))
    else:
        code = 0
    text = capsys.readouterr().out
    assert CANARY not in text
    return code, text


def test_the_report_is_printed_for_people(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(file, capsys)
    assert code == 0
    assert "would be accepted: 18 training rows, 6 test rows" in text
    for line in (
        r"class 0 +9 +fewer than 5",
        r"site +categorical +1 +1 in a column of its own +a, b and 1 with few rows",
        r"Not in the schema, and passed over: smokes, bmi, ward, sex, note",
        r"Without a unit in the schema: age",
        r"the hello: the schema; 18 training rows, 6 test rows",
        r"levels of site: a, b",
        r"in each of 4 columns of the model:\n +age, site=b, site=\(other\), site=\(missing\)",
    ):
        assert re.search(line, text), line


def test_defects_are_printed_and_end_with_2(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = printed(file, capsys, age=[CANARY_NUMBER] * N, y=[*Y[1:], CANARY])
    assert code == 2
    assert "would be refused" in text
    assert re.search(r"age +24  is outside the range that the schema allows +2, 3, 4, 5, 6, \.\.\.", text)
    assert re.search(r"y +1  is the label and neither 0 nor 1.* 25", text)
    assert CANARY_NUMBER not in text
    assert "told" not in text


def test_absent_columns_and_what_is_wrong_with_the_table_are_printed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, text = printed(file, capsys, part=["test"] * N)
    assert "no row is marked 'train' in column 'part'" in text
    write(file, {"y": Y, "part": ["train"] * N})
    with pytest.raises(SystemExit):
        run_check(SourceRequest(str(file), {"feature_schema": str(schema_file(file.parent))}), as_json=False)
    assert "there is no column 'age', which the schema names" in capsys.readouterr().out


def test_the_sum_of_the_weights_is_printed_where_rows_have_weights(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, {"x": ["1.5", "2.5"], "w": ["0.5", "2"], "y": ["0", "1"]})
    said = tmp_path / "schema.toml"
    said.write_text('format = 1\nsample_weight = "w"\n[label]\ncolumn = "y"\n[features.x]\n')
    run_check(SourceRequest(str(file), {"feature_schema": str(said)}), as_json=False)
    assert "2 training rows, the sum of their weights (2.5), 0 test rows" in capsys.readouterr().out


def test_the_report_is_a_document_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, {**TABLE, "part": ["train"] * N})
    run_check(SourceRequest(str(file), {"feature_schema": str(schema_file(file.parent))}), as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["accepted"]) == (1, True)


def test_a_draft_is_written_to_a_new_file(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(file, {"x": ["1.5", "2.5"], "y": ["0", "1"]})
    run_infer(SourceRequest(str(file)), columns=None, out=None)
    text = capsys.readouterr().out
    out = tmp_path / "draft.toml"
    run_infer(SourceRequest(str(file)), columns=None, out=out)
    assert out.read_text(encoding="utf-8") == text
    with pytest.raises(CommandError, match="is there already"):
        run_infer(SourceRequest(str(file)), columns=None, out=out)
    with pytest.raises(CommandError, match="could not be written: No such file"):
        run_infer(SourceRequest(str(file)), columns=None, out=tmp_path / "no" / "draft.toml")


def test_a_file_without_a_header_gets_its_names_from_the_command(tmp_path: Path) -> None:
    file, out = tmp_path / "rows.data", tmp_path / "draft.toml"
    file.write_text("1,5;0\n2,5;1\n")
    given_settings = {"delimiter": ";", "decimal": ",", "label": "ill"}
    run_infer(SourceRequest(str(file), given_settings), columns="bmi, ill", out=out)
    document = tomllib.loads(out.read_text())
    assert document["columns"] == ["bmi", "ill"]
    reading = Reading(parse_schema(document).schema, str(file), Dialect(";", ",", ("bmi", "ill")))
    assert isinstance(reading.what, Schema)
    assert check(reading, reading.what, min_cell=5)["accepted"]


@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        (SourceRequest(""), click.UsageError, "give DATA, or --database and --query"),
        (SourceRequest("a.csv", {"database": "sqlite://"}), click.UsageError, "one of the two"),
        (SourceRequest("", {"database": "sqlite://"}), click.UsageError, "--query: give the query"),
        (SourceRequest("", {"database_file": "no"}), SettingsError, "the database's URL cannot be read"),
        (SourceRequest("a.csv", {"delimiter": "::"}), SettingsError, "one character, or tab"),
        (SourceRequest("a.csv"), DataError, "a.csv cannot be read"),
        (SourceRequest("a.xlsx"), DataError, "is not a .csv, .npz or .parquet file"),
    ],
)
def test_what_is_asked_wrongly_ends_in_a_sentence(
    request_: SourceRequest, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        run_infer(request_, columns=None, out=None)


def test_a_check_needs_a_schema() -> None:
    with pytest.raises(click.UsageError, match="--schema: name the schema's file"):
        run_check(SourceRequest("a.csv"), as_json=False)


def test_a_password_is_not_in_the_representation_of_a_request() -> None:
    assert "secret" not in repr(SourceRequest("", {"database": "postgresql://me:secret@host/db"}))


# --- what the documents say --------------------------------------------------------------------------------

PAGE = Path(__file__).parents[3] / "docs" / "data.md"


def test_the_schema_in_the_documents_is_one() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (document,) = (tomllib.loads(block) for block in blocks if block.startswith("format = "))
    assert parse_schema(document).schema.names == ("age", "sex", "stage", "crp")


@pytest.mark.parametrize("part", [_Document, _Feature, _Label, _Split])
def test_every_key_of_a_schema_stands_in_the_documents(part: type[BaseModel]) -> None:
    prefix = {_Label: "label.", _Split: "split."}.get(part, "")
    page = PAGE.read_text(encoding="utf-8")
    missing = [name for name in part.model_fields if f"`{prefix}{name}`" not in page]
    assert missing == []
