"""What holds of the codec whatever is sent, and whatever comes."""

from __future__ import annotations

import types
import zlib
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
from golden.examples import EXAMPLES, HELLO, plain
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from broker import codec
from broker.codec import MAX_INT, decode, encode
from broker.errors import MalformedMessage
from broker.messages import OPEN_SIZES, SCHEMA, UPDATE_ARRAYS, Message, ModelUpdate, Sizes

SIZES = Sizes(3, bins=5)

BODIES = [encode(message) for message in EXAMPLES.values()]

numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    bool: st.booleans(),
    int: st.integers(0, MAX_INT),
    float: numbers,
}


def array(size: str) -> st.SearchStrategy[Any]:
    """Draw an array of the length called ``size``; of one that is open, of any that is not too long to draw."""
    length = st.integers(0, 6) if size in OPEN_SIZES else SIZES.of(size)
    return arrays(np.float64, length, elements=numbers)


def drawn(hint: Any, size: str) -> st.SearchStrategy[Any]:
    """Return what a field of type ``hint`` may hold."""
    arguments = get_args(hint)
    if hint in scalars:
        return scalars[hint]
    makers: dict[Any, Callable[[], st.SearchStrategy[Any]]] = {
        Literal: lambda: st.sampled_from(arguments),
        types.UnionType: lambda: st.none() | drawn(arguments[0], size),
        tuple: lambda: st.lists(drawn(arguments[0], size), max_size=3).map(tuple),
        dict: lambda: st.dictionaries(st.text(max_size=8), drawn(arguments[1], size), max_size=3),
        np.ndarray: lambda: array(size),
    }
    return makers.get(get_origin(hint), lambda: records(hint))()


@cache
def records(kind: Any) -> st.SearchStrategy[Any]:
    """Draw a record of ``kind`` with any content that its annotations allow."""
    hints = get_type_hints(kind)
    parts = {item.name: drawn(hints[item.name], item.metadata.get("size", "bins")) for item in fields(kind)}
    if kind is not ModelUpdate:
        return st.builds(kind, **parts)

    def of_kind(name: str) -> st.SearchStrategy[Any]:
        content = st.fixed_dictionaries(
            {key: array(part.size) for key, part in UPDATE_ARRAYS[name].items() if not part.optional},
            optional={key: array(part.size) for key, part in UPDATE_ARRAYS[name].items() if part.optional},
        )
        return st.builds(kind, **{**parts, "kind": st.just(name), "arrays": content})

    return st.sampled_from(sorted(UPDATE_ARRAYS)).flatmap(of_kind)


messages = st.one_of([records(kind) for kind in get_args(Message)])

plains = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=10)
    | st.binary(max_size=32),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def read(body: bytes) -> Message | None:
    """Decode ``body``: a message, or None for what is refused; anything else raised is a failure."""
    try:
        message = decode(body, sizes=SIZES)
    except MalformedMessage:
        return None
    assert isinstance(message, get_args(Message))
    return message


@given(message=messages)
def test_every_message_comes_back_as_it_was_and_gives_the_same_bytes(message: Message) -> None:
    body = encode(message)
    again = decode(body, sizes=SIZES)
    assert plain(again) == plain(message)
    assert encode(again) == body


@given(texts=st.lists(st.text(max_size=20), max_size=8), piece=st.integers(1, 9))
def test_texts_that_are_compressed_come_back_as_they_were(texts: list[str], piece: int) -> None:
    hello = replace(HELLO, features=tuple(texts))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(codec, "MANY_TEXTS", 0)
        patched.setattr(codec, "PIECE_BYTES", piece)
        assert decode(encode(hello)) == hello


@given(data=st.binary(max_size=40), whole=st.booleans())
def test_any_data_are_compressed_texts_or_malformed(data: bytes, whole: bool) -> None:
    features = {"dtype": "text", "data": zlib.compress(data) if whole else data}
    read(msgpack.packb({**msgpack.unpackb(encode(HELLO)), "features": features}))


@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(body: bytes) -> None:
    read(body)


@given(value=plains)
def test_any_msgpack_value_is_a_message_or_malformed(value: Any) -> None:
    read(msgpack.packb(value))


def places(value: Any) -> list[tuple[Any, ...]]:
    """Return the paths to everything inside ``value``."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(key, *rest) for key, each in inside for rest in [(), *places(each)]]


@given(data=st.data(), message=messages, stranger=plains)
def test_a_message_with_anything_put_anywhere_in_it_is_a_message_or_malformed(
    data: st.DataObject, message: Message, stranger: Any
) -> None:
    body = msgpack.unpackb(encode(message))
    *way, last = data.draw(st.sampled_from(places(body)))
    inner = body
    for key in way:
        inner = inner[key]
    inner[last] = stranger
    accepted = read(msgpack.packb(body))
    if accepted is not None and body["schema"] == SCHEMA:
        assert msgpack.unpackb(encode(accepted)) == body, "what is accepted is kept, all of it"


@given(data=st.data(), body=st.sampled_from(BODIES))
def test_flipped_bits_give_a_message_or_malformed(data: st.DataObject, body: bytes) -> None:
    flipped = bytearray(body)
    for _ in range(data.draw(st.integers(1, 8))):
        flipped[data.draw(st.integers(0, min(len(body), 400) - 1))] ^= data.draw(st.integers(1, 255))
    read(bytes(flipped))


@given(data=st.data(), body=st.sampled_from(BODIES))
def test_a_truncated_body_is_malformed(data: st.DataObject, body: bytes) -> None:
    assert read(body[: data.draw(st.integers(0, len(body) - 1))]) is None


@given(body=st.sampled_from(BODIES), more=st.binary(min_size=1, max_size=40))
def test_a_body_with_bytes_after_it_is_malformed(body: bytes, more: bytes) -> None:
    assert read(body + more) is None
