"""The codec: what decodes is exactly what a dataclass says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from golden.examples import DELTA, EVALUATION, EXAMPLES, FEATURES, HELLO, MODEL, MOMENTS, PLAN, RELEASED, WEIGHTS, plain

from broker import codec
from broker.codec import MARGIN_BYTES, body_cap, decode, encode, pack, plan_hash, unpack
from broker.errors import MalformedMessage
from broker.messages import (
    MAX_BODY_BYTES,
    PROTOCOL,
    SCHEMA,
    Coefficient,
    Frame,
    Message,
    ModelUpdate,
    Plan,
    Sizes,
)

SIZES = Sizes(len(FEATURES))


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


def test_plans_that_differ_have_different_names() -> None:
    plans = [PLAN, replace(PLAN, seed=8), replace(PLAN, frame=None), replace(PLAN, features=FEATURES[::-1])]
    assert len({plan_hash(plan) for plan in plans}) == len(plans)
    assert plan_hash(replace(PLAN)) == plan_hash(PLAN)


# --- how long a body may be -----------------------------------------------------------------


def test_the_cap_of_contributions_follows_from_the_plan() -> None:
    assert body_cap("update", SIZES, ("moments", "delta")) == 8 * 6 + MARGIN_BYTES  # means and squares
    assert body_cap("update", SIZES, ("moments", "curvature")) == 8 * (4 + 4 + 10 + 1) + MARGIN_BYTES
    assert body_cap("evaluation", SIZES) == 8 * 4 * 1000 + MARGIN_BYTES


@pytest.mark.parametrize("kind", ["hello", "heartbeat", "goodbye"])
def test_what_names_columns_is_not_capped_by_the_plan(kind: str) -> None:
    assert body_cap(kind, SIZES) == MAX_BODY_BYTES


def test_without_a_plan_and_for_a_huge_one_the_cap_is_that_of_the_broker() -> None:
    assert body_cap("update", None) == MAX_BODY_BYTES
    assert body_cap("update", Sizes(10**7)) == MAX_BODY_BYTES


@pytest.mark.parametrize("message", [MOMENTS, WEIGHTS, DELTA], ids=["moments", "weights", "delta"])
def test_a_contribution_with_names_as_long_as_names_get_fits_under_its_cap(message: ModelUpdate) -> None:
    longest = replace(message, participant="p" * 63, federation="f" * 63)
    assert len(encode(longest)) <= body_cap("update", SIZES)
    assert len(encode(EVALUATION)) <= body_cap("evaluation", SIZES)


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


@dataclass(frozen=True, slots=True)
class GrownHello:
    """A `Hello` as schema 2 might have it."""

    federation: str
    participant: str
    incarnation: str
    features: tuple[str, ...]
    n_rows: int
    n_test_rows: int
    language: str = field(default="en", metadata={"since": 2})


@pytest.fixture
def schema_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this side speak schema 2, in which `Hello` has a field more."""
    monkeypatch.setattr(codec, "SCHEMA", 2)
    monkeypatch.setitem(codec._TYPES, "Hello", GrownHello)


@pytest.mark.usefixtures("schema_2")
def test_a_body_of_an_older_schema_gets_the_default_of_a_new_field() -> None:
    message = decode(body_of(HELLO, schema=1))
    assert isinstance(message, GrownHello)
    assert message.language == "en"


@pytest.mark.usefixtures("schema_2")
def test_a_body_of_the_new_schema_has_the_new_field() -> None:
    message = decode(body_of(HELLO, schema=2, language="de"))
    assert isinstance(message, GrownHello)
    assert message.language == "de"


@pytest.mark.usefixtures("schema_2")
@pytest.mark.parametrize(
    ("schema", "extra", "sentence"),
    [
        pytest.param(1, {"language": "de"}, "0 fields missing, 1 unknown", id="an older body with the new field"),
        pytest.param(2, {}, "1 fields missing, 0 unknown", id="a new body without it"),
        pytest.param(2, {"language": "de", "more": 1}, "0 fields missing, 1 unknown", id="a new body with another"),
    ],
)
def test_a_body_holds_what_its_own_schema_says(schema: int, extra: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MalformedMessage, match=sentence):
        decode(body_of(HELLO, schema=schema, **extra))


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
    "message", [PLAN, MODEL, MOMENTS, WEIGHTS, DELTA, EVALUATION], ids=lambda message: type(message).__name__
)
def test_arrays_of_another_length_than_the_plans_are_refused(message: Message) -> None:
    with pytest.raises(MalformedMessage, match=r"\d+ numbers where \d+ belong"):
        decode(encode(message), sizes=Sizes(7, bins=2))


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
