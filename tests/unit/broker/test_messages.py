"""The messages themselves: frozen, and what follows from their sizes and numbers."""

from __future__ import annotations

from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from golden.examples import DELTA, EVALUATION, EXAMPLES, HELLO, PLAN, PLAN_OF_CLASSES, PLAN_OF_FIRTH

from broker import messages, schema
from broker.messages import (
    MAX_BODY_BYTES,
    MAX_DIRECTIONS,
    MAX_INTERVALS,
    N_BINS,
    OPEN_SIZES,
    SCHEMA,
    UPDATE_ARRAYS,
    Message,
    Sizes,
    contribution_id,
)
from logistic import Problem, evaluation
from logistic.quadratic import pack

RECORDS = [
    kind
    for module in (messages, schema)
    for kind in vars(module).values()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module.__name__
]
#: Records whose first fields may have defaults: what is not sent, and what people write.
WITH_DEFAULTS = {Sizes, schema.Feature, schema.Label, schema.Split, schema.Schema}


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_record_is_frozen_and_has_slots(kind: Any) -> None:
    assert kind.__dataclass_params__.frozen
    assert hasattr(kind, "__slots__")


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        HELLO.n_rows = 5  # type: ignore[misc]


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_array_says_how_long_it_is(kind: type) -> None:
    hints = get_type_hints(kind)
    for item in fields(kind):
        if hints[item.name] in {messages.Array, messages.Array | None}:
            assert Sizes(3).of(item.metadata["size"]) > 0


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_every_later_field_says_since_when_it_is_there_and_has_a_default(kind: type) -> None:
    """Without a default, a body of an older schema could not be read."""
    seen_later = False
    for item in fields(kind):
        later = "since" in item.metadata
        assert later or not seen_later, "later fields stand behind the first ones"
        seen_later = later
        if later:
            assert 1 < item.metadata["since"] <= SCHEMA
            assert item.default is not MISSING or item.default_factory is not MISSING
        elif kind not in WITH_DEFAULTS:
            assert item.default is MISSING


def test_the_kinds_of_messages_are_told_apart_by_name() -> None:
    names = [kind.__name__ for kind in get_args(Message)]
    assert len(set(names)) == len(names) == 8
    assert {type(example).__name__ for example in EXAMPLES.values()} == set(names)


def test_sizes_follow_from_the_number_of_features() -> None:
    sizes = Sizes(13)
    assert (sizes.of("features"), sizes.of("parameters"), sizes.of("bins")) == (13, 14, N_BINS)
    assert (sizes.of("packed"), sizes.of("one")) == (14 * 15 // 2, 1)


def test_sizes_follow_from_the_number_of_classes() -> None:
    sizes = Sizes(13, n_outputs=3)
    assert (sizes.of("features"), sizes.of("parameters"), sizes.of("packed")) == (13, 42, 42 * 43 // 2)
    assert (sizes.parameters, sizes.packed) == (42, 42 * 43 // 2)


@pytest.mark.parametrize(
    ("plan", "n_outputs"), [(PLAN, 1), (PLAN_OF_FIRTH, 1), (PLAN_OF_CLASSES, 3), (replace(PLAN, features=()), 1)]
)
def test_a_plans_sizes_are_those_of_a_problem_of_its_columns_and_classes(plan: messages.Plan, n_outputs: int) -> None:
    problem = Problem(np.zeros((0, len(plan.features))), np.zeros(0), n_classes=len(plan.classes))
    assert plan.sizes == Sizes(len(plan.features), n_outputs)
    assert plan.sizes.parameters == problem.n_parameters
    assert plan.sizes.packed == len(pack(np.eye(problem.n_parameters)))


def test_sizes_that_are_open_say_the_largest() -> None:
    assert {size: Sizes(2).of(size) for size in OPEN_SIZES} == {
        "intervals": MAX_INTERVALS,
        "directions": MAX_DIRECTIONS,
        "models": MAX_BODY_BYTES // 8,
    }
    assert 8 * 4 * MAX_INTERVALS < MAX_BODY_BYTES // 8


def test_a_size_nobody_has_named_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        Sizes(13).of("rows")


def test_the_arrays_of_every_kind_of_update_have_a_known_size() -> None:
    for parts in UPDATE_ARRAYS.values():
        for part in parts.values():
            assert part.size in OPEN_SIZES or Sizes(2).of(part.size) in {1, 2, 3, 6}


def test_both_sides_of_the_histograms_count_the_same_bins() -> None:
    assert evaluation.N_BINS == N_BINS


def test_a_contribution_is_known_by_participant_incarnation_and_number() -> None:
    assert contribution_id(DELTA) == "hospital-1:00c0ffee00c0ffee:13"
    assert contribution_id(EVALUATION) == "hospital-1:00c0ffee00c0ffee:14"


def test_a_resend_has_the_id_of_the_first_and_a_new_one_has_not() -> None:
    again = replace(DELTA, arrays={"delta": np.zeros(4)})
    assert contribution_id(again) == contribution_id(DELTA)
    others = [replace(DELTA, sequence=14), replace(DELTA, incarnation="x"), replace(DELTA, participant="y")]
    assert contribution_id(DELTA) not in {contribution_id(other) for other in others}
