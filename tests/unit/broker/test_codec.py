"""The codec: what decodes is exactly what a dataclass says."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

import msgpack
import numpy as np
import pytest
from golden.examples import (
    CONTROL,
    CURVATURE,
    CURVATURE_WITHOUT_HESSIAN,
    DELTA,
    DELTA_OF_STEPS,
    EVALUATION,
    EVALUATION_FOR_THE_SANDWICH,
    EVALUATION_FOR_WALD,
    EXAMPLES,
    FEATURES,
    FIRTH_INFORMATION,
    FIRTH_SCORE,
    GOODBYE,
    GRADIENTS,
    HELLO,
    HELLO_OF_CLASSES,
    INFORMATION,
    MODEL,
    MODEL_WITH_QUESTIONS,
    MOMENTS,
    MOMENTS_WITH_MISSING,
    PATH,
    PLAN,
    PLAN_OF_CLASSES,
    PLAN_OF_FIRTH,
    RANKS,
    RELEASED,
    RELEASED_WITH_INFERENCE,
    SCORES,
    SIDES,
    WEIGHTS,
    golden_file,
    plain,
)

from broker import codec
from broker.codec import MANY_TEXTS, MARGIN_BYTES, decode, encode, pack, plan_hash, unpack
from broker.errors import MalformedMessage
from broker.messages import (
    MAX_BODY_BYTES,
    MAX_DIRECTIONS,
    MAX_INTERVALS,
    PROTOCOL,
    SCHEMA,
    UPDATE_ARRAYS,
    Coefficient,
    Evaluation,
    Frame,
    GlobalModel,
    Hello,
    LocalWork,
    Message,
    ModelUpdate,
    Plan,
    ReleasedModel,
    Sizes,
    Standing,
)
from broker.schema import Feature, Label, Schema

SIZES = Sizes(len(FEATURES))
UPDATES = {name: message for name, message in EXAMPLES.items() if isinstance(message, ModelUpdate)}


def fields_of(message: Message) -> dict[str, Any]:
    """Return what a body holds, as plain msgpack values."""
    fields: dict[str, Any] = msgpack.unpackb(encode(message))
    return fields


def body_of(message: Message, **changes: Any) -> bytes:
    """Return the body of ``message`` with some of its fields changed."""
    body: bytes = msgpack.packb({**fields_of(message), **changes})
    return body


@pytest.mark.parametrize("message", EXAMPLES.values(), ids=EXAMPLES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert plain(decode(encode(message), sizes=SIZES)) == plain(message)


@pytest.mark.parametrize("message", EXAMPLES.values(), ids=EXAMPLES)
def test_the_same_message_gives_the_same_bytes(message: Message) -> None:
    assert encode(decode(encode(message))) == encode(message)


def test_a_body_says_protocol_schema_and_type_first() -> None:
    assert list(fields_of(HELLO))[:3] == ["protocol", "schema", "type"]
    assert fields_of(HELLO)["protocol"] == PROTOCOL
    assert fields_of(HELLO)["schema"] == SCHEMA
    assert fields_of(HELLO)["type"] == "Hello"


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(np.array([0.5, -0.0, 5e-324, 1e300]), id="B15 minus zero, denormal; B16 huge"),
        pytest.param(np.array([1.0, 2.0, 3.0, 4.0], dtype=">f8"), id="big-endian in memory"),
        pytest.param(np.arange(8.0)[::2], id="every other number"),
        pytest.param(np.arange(4), id="whole numbers"),
    ],
)
def test_an_array_travels_as_little_endian_float64_to_the_bit(numbers: Any) -> None:
    message = decode(encode(replace(DELTA, arrays={"delta": numbers})), sizes=SIZES)
    assert isinstance(message, ModelUpdate)
    assert message.arrays["delta"].dtype == np.float64
    assert message.arrays["delta"].tobytes() == numbers.astype("<f8").tobytes()


def test_a_decoded_array_cannot_be_written_to() -> None:
    message = decode(encode(DELTA))
    assert isinstance(message, ModelUpdate)
    with pytest.raises(ValueError, match="read-only"):
        message.arrays["delta"][0] = 1.0


# --- what is stored, and names of plans -----------------------------------------------------


def test_a_stored_record_comes_back_as_it_was() -> None:
    assert PLAN.frame is not None
    assert plain(unpack(Frame, pack(PLAN.frame))) == plain(PLAN.frame)


def test_a_stored_record_that_is_something_else_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="Frame: 2 fields missing, 3 unknown"):
        unpack(Frame, msgpack.packb({"a": 1, "b": 2, "c": 3}))


def test_what_was_kept_before_it_had_all_of_its_fields_gets_their_defaults_and_no_message_does() -> None:
    kept = msgpack.packb({"solver": "newton", "steps": 1, "learning_rate": None, "batch_size": None})
    assert unpack(LocalWork, kept) == LocalWork("newton", 1, None, None, 0.0)
    with pytest.raises(MalformedMessage, match="1 fields missing"):
        unpack(LocalWork, msgpack.packb({"solver": "newton", "steps": 1, "learning_rate": None}))
    with pytest.raises(MalformedMessage, match="1 fields missing"):
        decode(msgpack.packb({name: value for name, value in fields_of(WEIGHTS).items() if name != "epoch"}))


def test_plans_that_differ_have_different_names() -> None:
    plans = [PLAN, replace(PLAN, seed=8), replace(PLAN, frame=None), replace(PLAN, features=FEATURES[::-1])]
    assert len({plan_hash(plan) for plan in plans}) == len(plans)
    assert plan_hash(replace(PLAN)) == plan_hash(PLAN)


def test_plans_that_differ_in_a_later_field_have_different_names() -> None:
    full = PLAN_OF_CLASSES
    assert full.fill is not None
    plans = [
        PLAN,
        full,
        replace(PLAN, fill=full.fill),
        replace(PLAN, fill=full.fill + 1.0),
        replace(PLAN, fill=np.zeros(3)),
        replace(PLAN, classes=(1, 2)),
        replace(PLAN, class_weights=(1.0, 1.0)),
        replace(PLAN, class_weights=(1.0, 2.0)),
        replace(PLAN, penalty="firth"),
        replace(PLAN, l1=0.5),
        replace(PLAN, inference="wald"),
        replace(PLAN, missing="mean"),
        replace(PLAN, work=replace(PLAN.work, proximal=0.5)),
    ]
    assert len({plan_hash(plan) for plan in plans}) == len(plans)


def test_a_side_that_does_not_know_later_fields_knows_a_plan_that_does_not_use_them_by_the_same_name() -> None:
    """Its plan is what schema 1 says of it, and its name for that is the hash of just these bytes."""
    as_it_was_sent = golden_file("plan", 1).read_bytes()
    assert plan_hash(PLAN) == sha256(as_it_was_sent).hexdigest()
    decoded = decode(as_it_was_sent)
    assert isinstance(decoded, Plan)
    assert plan_hash(decoded) == plan_hash(PLAN)


def test_a_plan_is_named_by_its_columns_and_not_by_how_they_are_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    many = replace(PLAN, features=tuple(f"x{i}" for i in range(MANY_TEXTS + 1)))
    older = {**fields_of(PLAN), "features": list(many.features), "schema": 1}
    later = [name for name in older if name not in msgpack.unpackb(golden_file("plan", 1).read_bytes())]
    assert "proximal" in older["work"]
    del older["work"]["proximal"]
    without = {name: value for name, value in older.items() if name not in later}
    assert plan_hash(many) == sha256(msgpack.packb(without)).hexdigest()
    levels = tuple(f"level {i}" for i in range(MANY_TEXTS + 1))
    of_levels = replace(PLAN, feature_schema=Schema((Feature("ward", "categorical", levels=levels),), Label("y")))
    name = plan_hash(of_levels)
    body, compress = encode(of_levels), zlib.compress
    monkeypatch.setattr(codec.zlib, "compress", lambda data: compress(data, 1))
    assert encode(of_levels) != body
    assert plan_hash(of_levels) == name


# --- how long a body may be -----------------------------------------------------------------


@pytest.mark.parametrize("kind", UPDATE_ARRAYS)
@pytest.mark.parametrize("sizes", [SIZES, Sizes(40, n_outputs=4)], ids=["two classes", "four"])
def test_a_contribution_with_the_longest_names_needs_its_numbers_and_the_margin_at_most(
    kind: str, sizes: Sizes
) -> None:
    arrays = {name: np.ones(min(sizes.of(part.size), 2**14)) for name, part in UPDATE_ARRAYS[kind].items()}
    longest = replace(DELTA, kind=kind, participant="p" * 63, federation="f" * 63, arrays=arrays)
    assert len(encode(longest)) <= sum(array.nbytes for array in arrays.values()) + MARGIN_BYTES
    decode(encode(longest), sizes=sizes)


@pytest.mark.parametrize("sizes", [SIZES, Sizes(40, n_outputs=4)], ids=["two classes", "four"])
def test_an_evaluation_for_a_sandwich_needs_no_more_than_its_numbers_and_the_margin(sizes: Sizes) -> None:
    information = replace(
        INFORMATION, gradient=np.ones(sizes.parameters), hessian=np.ones(sizes.packed), meat=np.ones(sizes.packed)
    )
    longest = replace(EVALUATION_FOR_WALD, participant="p" * 63, federation="f" * 63, information=information)
    numbers = 4 * sizes.bins + sizes.parameters + 2 * sizes.packed
    assert len(encode(longest)) <= 8 * numbers + MARGIN_BYTES
    decode(encode(longest), sizes=sizes)


@pytest.mark.parametrize("make_name", ["column {:07d}, in a unit of its own".format, "{:x}".format])
def test_the_names_of_a_million_columns_fit_into_a_body_beside_an_array_of_them(make_name: Any) -> None:
    names = tuple(map(make_name, range(1_000_000)))
    wide = replace(PLAN, features=names, frame=Frame(mean=None, scale=np.ones(len(names))))
    body = encode(wide)
    assert len(body) < MAX_BODY_BYTES
    again = decode(body, sizes=wide.sizes)
    assert isinstance(again, Plan)
    assert again.features == names


def test_a_model_of_twenty_thousand_columns_is_decoded() -> None:
    n = 20_000
    wide = replace(
        RELEASED,
        features=tuple(f"x{i}" for i in range(n)),
        weights=(0.5,) * n,
        coefficients=tuple(Coefficient(f"x{i}", 0.5) for i in range(n)),
    )
    assert plain(decode(encode(wide))) == plain(wide)


# --- growing --------------------------------------------------------------------------------


NEXT = SCHEMA + 1


@dataclass(frozen=True, slots=True)
class GrownGoodbye:
    """A `Goodbye` as the next schema might have it."""

    federation: str
    participant: str
    incarnation: str
    mood: str = field(default="good", metadata={"since": NEXT})
    words: dict[str, int] = field(default_factory=dict, metadata={"since": NEXT})


@pytest.fixture
def next_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this side speak the next schema, in which `Goodbye` has two fields more."""
    monkeypatch.setattr(codec, "SCHEMA", NEXT)
    monkeypatch.setitem(codec._TYPES, "Goodbye", GrownGoodbye)


@pytest.mark.usefixtures("next_schema")
@pytest.mark.parametrize("schema", range(1, NEXT))
def test_a_body_of_an_older_schema_gets_the_default_of_a_new_field(schema: int) -> None:
    message = decode(body_of(GOODBYE, schema=schema))
    assert isinstance(message, GrownGoodbye)
    assert (message.mood, message.words) == ("good", {})


@pytest.mark.usefixtures("next_schema")
def test_a_body_of_the_new_schema_has_the_new_field() -> None:
    message = decode(body_of(GOODBYE, schema=NEXT, mood="bad", words={"a": 1}))
    assert isinstance(message, GrownGoodbye)
    assert (message.mood, message.words) == ("bad", {"a": 1})


@pytest.mark.usefixtures("next_schema")
@pytest.mark.parametrize(
    ("schema", "extra", "sentence"),
    [
        pytest.param(SCHEMA, {"mood": "bad"}, "0 fields missing, 1 unknown", id="an older body with a new field"),
        pytest.param(NEXT, {"mood": "bad"}, "1 fields missing, 0 unknown", id="a new body without one"),
        pytest.param(NEXT, {"mood": "", "words": {}, "x": 1}, "0 fields missing, 1 unknown", id="with another"),
    ],
)
def test_a_body_holds_what_its_own_schema_says(schema: int, extra: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MalformedMessage, match=sentence):
        decode(body_of(GOODBYE, schema=schema, **extra))


@pytest.mark.parametrize(
    ("name", "field_name", "value"),
    [
        ("hello", "classes", [0, 1, 2]),
        ("hello", "n_samples", 117.5),
        ("hello", "fingerprint", "9f86d081884c7d65"),
        ("plan", "penalty", "firth"),
        ("plan", "fill", None),
        ("model", "extra", {}),
        ("evaluation", "information", None),
        ("released", "notes", []),
        ("plan", "feature_schema", None),
    ],
)
def test_a_body_of_schema_1_does_not_have_what_came_with_schema_2(name: str, field_name: str, value: Any) -> None:
    old = msgpack.unpackb(golden_file(name, 1).read_bytes())
    assert field_name not in old
    with pytest.raises(MalformedMessage, match="0 fields missing, 1 unknown"):
        decode(msgpack.packb({**old, field_name: value}))


def test_a_body_of_schema_2_says_everything_also_inside() -> None:
    for message, name in ((HELLO, "classes"), (PLAN, "fill"), (MODEL, "extra"), (RELEASED, "notes")):
        fields = fields_of(message)
        del fields[name]
        with pytest.raises(MalformedMessage, match="1 fields missing, 0 unknown"):
            decode(msgpack.packb(fields))
    roster = {"h": {"incarnation": "i", "settled": 1, "refusal": "", "asked": "", "hello": ""}}
    with pytest.raises(MalformedMessage, match=r"roster\[0\]: 1 fields missing, 0 unknown"):
        decode(body_of(MODEL, roster=roster))


def test_what_is_new_stays_as_it_was_said() -> None:
    hello, plan, model, evaluation, released = (
        decode(encode(message), sizes=SIZES)
        for message in (
            HELLO_OF_CLASSES,
            PLAN_OF_CLASSES,
            MODEL_WITH_QUESTIONS,
            EVALUATION_FOR_THE_SANDWICH,
            RELEASED_WITH_INFERENCE,
        )
    )
    assert isinstance(hello, Hello)
    assert (hello.classes, hello.n_samples, hello.fingerprint) == ((1, 2, 5), 117.5, "9f86d081884c7d65")
    assert isinstance(plan, Plan)
    assert (plan.classes, plan.class_weights, plan.work.proximal) == ((1, 2, 5), (1.0, 2.5, 0.3), 0.125)
    assert plan.fill is not None
    assert plan.fill.tolist() == [52.95, 0.757, -1e-300]
    assert isinstance(model, GlobalModel)
    assert model.roster["hospital-2"] == Standing("0badcafe0badcafe", 10, "incomplete", "sides", steps=7)
    assert {name: len(array) for name, array in model.extra.items()} == {
        "train_edges": 4,
        "directions": 8,
        "nothing": 0,
    }
    assert isinstance(evaluation, Evaluation)
    assert evaluation.information is not None
    assert evaluation.information.has_offset
    assert isinstance(released, ReleasedModel)
    assert released.inference is not None
    assert released.inference.covariance[1] == (None, None, None)


def test_b12_unknown_fields_of_a_newer_schema_are_passed_over_also_inside() -> None:
    roster = fields_of(MODEL)["roster"]
    roster["hospital-1"]["mood"] = "good"
    assert plain(decode(body_of(MODEL, schema=SCHEMA + 1, roster=roster, more={"a": [1]}))) == plain(MODEL)


@pytest.mark.parametrize("stranger", [msgpack.ExtType(5, b"x"), msgpack.Timestamp(1)], ids=["ext", "timestamp"])
def test_b08_a_newer_schema_has_no_ext_types_either(stranger: object) -> None:
    with pytest.raises(MalformedMessage, match="not one well-formed msgpack value"):
        decode(body_of(HELLO, schema=SCHEMA + 1, more=stranger))


def test_a_newer_schema_still_needs_every_field_that_we_know() -> None:
    fields = fields_of(HELLO)
    del fields["n_rows"]
    with pytest.raises(MalformedMessage, match="1 fields missing, 0 unknown"):
        decode(msgpack.packb({**fields, "schema": SCHEMA + 1}))


def test_b11_another_protocol_is_refused_with_both_versions() -> None:
    with pytest.raises(MalformedMessage, match=f"speaks protocol {PROTOCOL + 7}, this side {PROTOCOL}.*same protocol"):
        decode(body_of(HELLO, protocol=PROTOCOL + 7))


def test_another_protocol_may_have_any_fields_and_is_told_apart_by_its_version() -> None:
    with pytest.raises(MalformedMessage, match="speaks protocol 9"):
        decode(msgpack.packb({"protocol": 9, "who": "knows"}))


# --- lengths --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        PLAN,
        MODEL,
        MOMENTS,
        MOMENTS_WITH_MISSING,
        WEIGHTS,
        DELTA,
        CONTROL,
        GRADIENTS,
        CURVATURE,
        FIRTH_INFORMATION,
        FIRTH_SCORE,
        EVALUATION,
        EVALUATION_FOR_WALD,
    ],
    ids=lambda message: getattr(message, "kind", type(message).__name__),
)
def test_arrays_of_another_length_than_the_plans_are_refused(message: Message) -> None:
    with pytest.raises(MalformedMessage, match=r"\d+ numbers where \d+ belong"):
        decode(encode(message), sizes=Sizes(7, bins=2))


def test_of_more_than_two_classes_there_are_more_parameters() -> None:
    of_three = replace(WEIGHTS, arrays={"weights": np.arange(12.0)})
    assert plain(decode(encode(of_three), sizes=PLAN_OF_CLASSES.sizes)) == plain(of_three)
    with pytest.raises(MalformedMessage, match="12 numbers where 4 belong"):
        decode(encode(of_three), sizes=PLAN_OF_FIRTH.sizes)
    with pytest.raises(MalformedMessage, match="4 numbers where 12 belong"):
        decode(encode(WEIGHTS), sizes=PLAN_OF_CLASSES.sizes)


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (replace(PLAN, fill=np.ones(4)), "Plan.fill: 4 numbers where 3"),
        (
            replace(EVALUATION_FOR_WALD, information=replace(INFORMATION, gradient=np.ones(5))),
            "Evaluation.information.gradient: 5 numbers where 4",
        ),
        (
            replace(EVALUATION_FOR_WALD, information=replace(INFORMATION, hessian=np.ones(9))),
            "Evaluation.information.hessian: 9 numbers where 10",
        ),
        (
            replace(EVALUATION_FOR_WALD, information=replace(INFORMATION, meat=np.ones(11))),
            "Evaluation.information.meat: 11 numbers where 10",
        ),
        (replace(CURVATURE, arrays={**CURVATURE.arrays, "drift": np.ones(2)}), "drift: 2 numbers where 1"),
        (replace(CURVATURE, arrays={**CURVATURE.arrays, "hessian": np.ones(4)}), "hessian: 4 numbers where 10"),
        (replace(DELTA_OF_STEPS, arrays={**DELTA.arrays, "steps": np.ones(0)}), "steps: 0 numbers where 1"),
        (replace(MOMENTS, arrays={**MOMENTS.arrays, "observed": np.ones(2)}), "observed: 2 numbers where 3"),
    ],
)
def test_what_may_be_left_out_has_its_length_where_it_is_there(message: Message, place: str) -> None:
    with pytest.raises(MalformedMessage, match=f"{place} belong"):
        decode(encode(message), sizes=SIZES)


@pytest.mark.parametrize(
    ("message", "name", "most"),
    [(RANKS, name, MAX_INTERVALS) for name in RANKS.arrays] + [(SIDES, name, MAX_DIRECTIONS) for name in SIDES.arrays],
)
def test_what_was_asked_for_may_be_of_any_length_up_to_the_largest(message: ModelUpdate, name: str, most: int) -> None:
    for length in (0, 1, most):
        answer = replace(message, arrays={**message.arrays, name: np.ones(length)})
        assert plain(decode(encode(answer), sizes=SIZES)) == plain(answer)
    longer = replace(message, arrays={**message.arrays, name: np.ones(most + 1)})
    with pytest.raises(MalformedMessage, match=f"arrays.{name}: {most + 1} numbers where {most} belong"):
        decode(encode(longer), sizes=SIZES)


def test_sums_of_many_models_are_as_long_as_a_body_may_be() -> None:
    n_models = 1000
    sums = {"losses": n_models, "gradients": 4 * n_models, "hessians": 10 * n_models}
    many = replace(PATH, arrays={name: np.ones(length) for name, length in sums.items()})
    assert plain(decode(encode(many), sizes=SIZES)) == plain(many)
    too_many = replace(PATH, arrays={**PATH.arrays, "hessians": np.ones(MAX_BODY_BYTES // 8 + 1)})
    with pytest.raises(MalformedMessage, match="numbers where 2088960 belong"):
        decode(encode(too_many), sizes=SIZES, max_bytes=2 * MAX_BODY_BYTES)


# --- many texts -----------------------------------------------------------------------------


def test_more_than_a_few_thousand_names_are_compressed_and_fewer_are_a_list() -> None:
    few, many = (replace(HELLO, features=tuple(f"Größe {i}" for i in range(n))) for n in (MANY_TEXTS, MANY_TEXTS + 1))
    assert fields_of(few)["features"] == list(few.features)
    written = fields_of(many)["features"]
    assert written["dtype"] == "text"
    assert zlib.decompress(written["data"]).decode().split("\0") == list(many.features)
    assert (decode(encode(few)), decode(encode(many))) == (few, many)


def test_a_list_of_any_length_is_read_as_an_older_side_writes_it() -> None:
    names = [f"x{i}" for i in range(MANY_TEXTS + 1)]
    for schema in (1, 2, SCHEMA):
        body = {**msgpack.unpackb(golden_file("hello", schema).read_bytes()), "features": names}
        hello = decode(msgpack.packb(body))
        assert isinstance(hello, Hello)
        assert hello.features == tuple(names)


def test_many_names_one_of_which_has_a_zero_byte_in_it_are_not_compressed() -> None:
    """Read back, it would be two."""
    odd = replace(HELLO, features=(*(f"x{i}" for i in range(MANY_TEXTS)), "a\0b"))
    assert type(fields_of(odd)["features"]) is list
    assert decode(encode(odd)) == odd


def test_texts_that_are_longer_than_what_is_inflated_at_once_come_back_whole() -> None:
    long = replace(HELLO, features=tuple(f"{i:4096d}" for i in range(MANY_TEXTS + 1)))
    assert decode(encode(long)) == long
    stored = zlib.compress("\0".join(long.features).encode(), 0)
    assert decode(body_of(HELLO, features={"dtype": "text", "data": stored}), max_bytes=2 * MAX_BODY_BYTES) == long


def test_a_stored_record_has_its_many_texts_compressed_too() -> None:
    levels = Feature("ward", "categorical", levels=tuple(f"ward {i}" for i in range(MANY_TEXTS + 1)))
    assert len(pack(levels)) < MANY_TEXTS * 4
    assert unpack(Feature, pack(levels)) == levels


# --- what an update carries -----------------------------------------------------------------


@pytest.mark.parametrize("name", UPDATES)
def test_an_array_that_is_needed_may_not_be_left_out_and_another_may(name: str) -> None:
    update = UPDATES[name]
    for left_out in update.arrays:
        less = replace(update, arrays={each: array for each, array in update.arrays.items() if each != left_out})
        if UPDATE_ARRAYS[update.kind][left_out].optional:
            assert plain(decode(encode(less), sizes=SIZES)) == plain(less)
        else:
            with pytest.raises(MalformedMessage, match=r"ModelUpdate\.arrays: not what its kind carries"):
                decode(encode(less), sizes=SIZES)


def test_a_hessian_may_be_left_out_of_a_curvature_and_of_nothing_else_that_needs_it() -> None:
    assert "hessian" not in CURVATURE_WITHOUT_HESSIAN.arrays
    assert UPDATE_ARRAYS["curvature"].keys() - CURVATURE_WITHOUT_HESSIAN.arrays.keys() == {"hessian", "reach"}
    assert plain(decode(encode(CURVATURE_WITHOUT_HESSIAN), sizes=SIZES)) == plain(CURVATURE_WITHOUT_HESSIAN)


@pytest.mark.parametrize("name", UPDATES)
def test_an_array_more_than_its_kind_carries_is_refused(name: str) -> None:
    more = replace(UPDATES[name], arrays={**UPDATES[name].arrays, "more": np.ones(1)})
    with pytest.raises(MalformedMessage, match=r"ModelUpdate\.arrays: not what its kind carries"):
        decode(encode(more), sizes=SIZES)


@pytest.mark.parametrize("auc", [None, 0.0, 0.8765])
def test_scores_may_have_an_area_of_their_own(auc: float | None) -> None:
    message = decode(encode(replace(EVALUATION, train=replace(SCORES, auc=auc))), sizes=SIZES)
    assert isinstance(message, Evaluation)
    assert message.train.auc == auc


def test_without_a_plan_lengths_are_not_looked_at() -> None:
    short = replace(DELTA, arrays={"delta": np.array([1.0])})
    assert plain(decode(encode(short))) == plain(short)


def test_a_plan_without_a_frame_has_none() -> None:
    message = decode(encode(replace(PLAN, frame=None)))
    assert isinstance(message, Plan)
    assert message.frame is None


def test_column_names_may_be_in_any_script_but_not_longer_than_names_are() -> None:
    longest = replace(HELLO, features=("ü" * 2048, "年齢"))
    assert decode(encode(longest)) == longest
    with pytest.raises(MalformedMessage):
        decode(encode(replace(HELLO, features=("ü" * 2049,))))
