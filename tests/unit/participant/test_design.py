"""How a plan's columns follow from a table's: by name, a column for each level but the first, gaps filled, scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden.examples import PLAN

from broker.messages import Frame, Plan
from broker.schema import OTHER, Feature, Label, Schema, model_columns
from logistic import LogisticError
from logistic.sparse import CSR
from participant.design import Design, design
from participant.errors import DataError
from participant.sources import Table

nan = np.nan

SCHEMA = Schema(
    (
        Feature("age", missing="mean"),
        Feature("stage", kind="categorical", levels=("1", "2", "10", OTHER), found=True),
        Feature("sex", kind="binary", missing="indicator"),
        Feature("site", kind="categorical", levels=("a", "b", "c"), missing="indicator"),
        Feature("pain", kind="categorical", levels=("no", "yes"), missing="mean"),
    ),
    Label("y"),
)
COLUMNS = (
    *("age", "stage=2", "stage=10", "stage=(other)", "sex", "sex=(missing)"),
    *("site=b", "site=c", "site=(missing)", "pain=yes"),
)
#: The places of this site's own levels, in the order in which it met them.
LEVELS = {"stage": ("10", "rare", "1", "2", "rarer"), "site": ("a", "b", "c"), "pain": ("no", "yes")}
X = np.array(
    [
        [63, 0, 1, 1, 1],
        [45, 1, nan, nan, 0],
        [nan, 2, 0, 2, nan],
        [50, 3, 1, 0, 0],
        [71, 4, 1, 0, 1],
    ]
)
EXPECTED = np.array(
    [
        [63, 0, 1, 0, 1, 0, 1, 0, 0, 1],
        [45, 0, 0, 1, nan, 1, 0, 0, 1, 0],
        [nan, 0, 0, 0, 0, 0, 0, 1, 0, nan],
        [50, 1, 0, 0, 1, 0, 0, 0, 0, 0],
        [71, 0, 0, 1, 1, 0, 0, 0, 0, 1],
    ]
)
MEANS = np.linspace(0.1, 1.0, len(COLUMNS))


def table(**changes: Any) -> Table:
    fields: dict[str, Any] = {
        "features": SCHEMA.names,
        "X": X,
        "y": np.array([1.0, 0, 1, 0, 1]),
        "is_train": np.ones(5, dtype=np.bool_),
        "schema": SCHEMA,
        "levels": LEVELS,
        "level_counts": {name: (1,) * len(levels) for name, levels in LEVELS.items()},
    }
    return Table(**{**fields, **changes})


def plan(schema: Schema | None = SCHEMA, **changes: Any) -> Plan:
    features = PLAN.features if schema is None else model_columns(schema)
    return replace(PLAN, frame=None, features=features, feature_schema=schema, **changes)


def made(of: Table | None = None, under: Plan | None = None) -> Design:
    return design(table() if of is None else of, plan() if under is None else under)


def one(feature: Feature, cells: list[float], met: tuple[str, ...] = (), counts: tuple[int, ...] | None = None) -> Any:
    """Return the plan's columns of a table of one column."""
    schema = Schema((feature,), Label("y"))
    rows = table(
        features=("x",),
        X=np.array(cells)[:, np.newaxis],
        levels={"x": met},
        level_counts={"x": counts or (1,) * len(met)},
        schema=schema,
    )
    return design(rows, plan(schema)).raw(rows.dense).T.tolist()


# --- columns ------------------------------------------------------------------------------------------


def test_each_level_but_the_first_has_a_column_and_gaps_what_their_rule_says() -> None:
    assert plan().features == COLUMNS
    np.testing.assert_array_equal(made().raw(X), EXPECTED)


def test_rows_may_come_a_few_at_a_time() -> None:
    parts = [made().raw(X[start : start + 2]) for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate(parts), EXPECTED)


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2, 0, 1, 4, 3]])
def test_columns_are_matched_by_name(order: list[int]) -> None:
    features = tuple(SCHEMA.names[index] for index in order)
    design_ = made(table(features=features, X=X[:, order]))
    assert design_.raw(X[:, order]).tobytes() == made().raw(X).tobytes()


def test_columns_that_the_plan_has_not_are_passed_over() -> None:
    wider = np.column_stack([np.full(5, 7731.0), X])
    np.testing.assert_array_equal(made(table(features=("note", *SCHEMA.names), X=wider)).raw(wider), EXPECTED)


def test_a_column_that_the_plan_has_and_the_table_has_not_is_named() -> None:
    with pytest.raises(DataError, match="the table has no column 'pain', which the federation's plan has"):
        made(table(features=SCHEMA.names[:-1], X=X[:, :-1]))
    with pytest.raises(DataError, match="no column 'Größe'"):
        made(under=plan(schema=None))


def test_what_is_a_number_already_is_taken_as_it_is() -> None:
    rows = table(features=PLAN.features, X=np.ascontiguousarray(X[:, :3]), schema=None, levels={}, level_counts={})
    design_ = made(rows, plan(schema=None))
    assert design_.raw(rows.dense) is rows.dense
    swapped = replace(rows, features=PLAN.features[::-1], X=rows.dense[:, ::-1])
    np.testing.assert_array_equal(made(swapped, plan(schema=None)).raw(swapped.dense), rows.dense)


@pytest.mark.parametrize(
    ("rule", "column"),
    [("mean", [[0.0, nan]]), ("indicator", [[0.0, nan], [0.0, 1.0]]), ("refuse", [[0.0, nan]]), ("value", [[0, nan]])],
)
@pytest.mark.parametrize("kind", ["numeric", "binary"])
def test_a_gap_of_a_number_stays_one_and_has_a_column_that_tells_of_it_where_asked(
    kind: Any, rule: Any, column: list[list[float]]
) -> None:
    np.testing.assert_array_equal(one(Feature("x", kind=kind, missing=rule), [0.0, nan]), column)


@pytest.mark.parametrize(
    ("rule", "columns"),
    [("mean", [[1, 0, nan], [0, 1, nan]]), ("indicator", [[1, 0, 0], [0, 1, 0], [0, 0, 1]])],
)
def test_a_gap_of_levels_is_in_all_their_columns_or_in_one_of_its_own(rule: Any, columns: list[list[float]]) -> None:
    feature = Feature("x", kind="categorical", levels=("a", "b", "c"), missing=rule)
    np.testing.assert_array_equal(one(feature, [1.0, 2.0, nan], ("a", "b", "c")), columns)


# --- levels -------------------------------------------------------------------------------------------

FOUND = Feature("x", kind="categorical", levels=("a", "b"), found=True)


def test_a_level_that_training_rows_have_and_the_plan_has_not_is_refused_without_its_name() -> None:
    with pytest.raises(DataError, match=r"^column 'x' has a level that the federation's plan has no place for") as told:
        one(FOUND, [0.0, 1.0], ("a", "canary"))
    assert "canary" not in str(told.value)


def test_a_level_that_only_test_rows_have_is_there_as_the_first_one_is() -> None:
    assert one(FOUND, [0.0, 1.0, 2.0], ("b", "a", "new"), (1, 1, 0)) == [[1.0, 0.0, 0.0]]


def test_levels_that_the_plan_has_not_are_the_others_where_it_has_these() -> None:
    others = replace(FOUND, levels=("a", "b", OTHER))
    assert one(others, [0.0, 1.0, 2.0], ("rare", "b", "new"), (1, 1, 0)) == [[0, 1, 0], [1, 0, 1]]


def test_where_the_others_are_the_first_level_they_have_no_column() -> None:
    alone = replace(FOUND, levels=(OTHER, "a"))
    assert one(alone, [0.0, 1.0], ("rare", "a")) == [[0.0, 1.0]]


def test_levels_that_this_site_has_not_have_columns_of_zeros() -> None:
    assert one(replace(FOUND, levels=("a", "b", "c")), [0.0], ("a",)) == [[0.0], [0.0]]


# --- filled and scaled --------------------------------------------------------------------------------


def test_gaps_are_filled_with_the_means_of_the_plan() -> None:
    np.testing.assert_array_equal(made(under=plan(fill=MEANS)).apply(X), np.where(np.isnan(EXPECTED), MEANS, EXPECTED))


def test_as_long_as_no_mean_is_known_gaps_are_zeros() -> None:
    np.testing.assert_array_equal(made().apply(X), np.nan_to_num(EXPECTED))


def test_where_no_cell_is_missing_nothing_is_filled() -> None:
    whole = np.nan_to_num(X)
    design_ = made(table(X=whole), plan(fill=MEANS))
    assert design_.fill is None
    np.testing.assert_array_equal(design_.apply(whole), design_.raw(whole))


def test_after_filling_columns_are_standardised_and_the_table_keeps_its_numbers() -> None:
    frame, before = Frame(mean=MEANS, scale=MEANS + 1.0), X.copy()
    found = made(under=replace(plan(fill=MEANS), frame=frame)).apply(X)
    np.testing.assert_array_equal(found, (np.where(np.isnan(EXPECTED), MEANS, EXPECTED) - MEANS) / (MEANS + 1.0))
    np.testing.assert_array_equal(X, before)
    plain = table(features=PLAN.features, X=np.nan_to_num(X[:, :3]), schema=None)
    made(plain, replace(PLAN, frame=Frame(mean=MEANS[:3], scale=MEANS[:3]))).apply(plain.dense)
    np.testing.assert_array_equal(plain.dense, np.nan_to_num(before[:, :3]))


def test_a_frame_of_another_width_is_refused() -> None:
    with pytest.raises(LogisticError, match="the plan scales 10 columns and has 3"):
        design(table(), replace(PLAN, frame=Frame(mean=MEANS, scale=MEANS)))


# --- sparse rows --------------------------------------------------------------------------------------

DENSE = np.array([[0.0, 2, 0], [1, 0, 0], [0, 0, -3]])
SPARSE = CSR(np.array([0, 1, 2, 3]), np.array([1, 0, 2]), np.array([2.0, 1.0, -3.0]), (3, 3))


def sparse(features: tuple[str, ...] = PLAN.features) -> Table:
    return table(features=features, X=SPARSE, y=np.zeros(3), is_train=np.ones(3, dtype=np.bool_), schema=None)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]])
@pytest.mark.parametrize("frame", [None, Frame(mean=np.array([1.0, 0.5, 0.0]), scale=np.array([2.0, 1.0, 4.0]))])
def test_sparse_rows_have_the_columns_of_the_plan_as_dense_ones(order: list[int], frame: Frame | None) -> None:
    features = tuple(PLAN.features[index] for index in order)
    under = replace(PLAN, frame=frame)
    rows = sparse(features)
    expected = made(replace(rows, X=DENSE), under).apply(DENSE)
    np.testing.assert_allclose(made(rows, under).apply_sparse(SPARSE).dense(), expected, rtol=1e-15)


def test_sparse_rows_in_the_order_of_the_plan_are_not_copied() -> None:
    assert made(sparse(), replace(PLAN, frame=None)).apply_sparse(SPARSE) is SPARSE
