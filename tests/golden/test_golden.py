"""Bytes that were once sent are understood for ever, and what is sent today is what the files say."""

from __future__ import annotations

import zlib
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from golden.examples import (
    EXAMPLES,
    EXAMPLES_SINCE,
    FOLDER,
    HELLO_OF_MANY_COLUMNS,
    PLAN,
    PLAN_OF_A_TABLE,
    PLAN_OF_CLASSES,
    PLAN_OF_FIRTH,
    golden_file,
    plain,
    sayable,
)

from broker import messages
from broker.codec import decode, encode, plan_hash
from broker.messages import SCHEMA, UPDATE_ARRAYS, Message, ModelUpdate

SCHEMAS = sorted(int(folder.name.removeprefix("schema-")) for folder in FOLDER.glob("schema-*"))

#: Of these the bytes are zlib's.
MANY = HELLO_OF_MANY_COLUMNS
COMPRESSED = {"hello-of-many-columns"}

FILES = [pytest.param(name, schema, id=f"{schema}-{name}") for schema in SCHEMAS for name in sayable(schema)]


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - COMPRESSED))
def test_a_message_is_encoded_to_its_golden_bytes(name: str) -> None:
    assert encode(EXAMPLES[name]) == golden_file(name).read_bytes()


def test_many_names_are_encoded_to_what_their_golden_bytes_say() -> None:
    """Another zlib may say it in other bytes, which the readers of all understand."""
    written = msgpack.unpackb(encode(MANY))
    golden = msgpack.unpackb(golden_file("hello-of-many-columns").read_bytes())
    names = [zlib.decompress(fields.pop("features")["data"]) for fields in (written, golden)]
    assert names[0] == names[1] == "\0".join(MANY.features).encode()
    assert written == golden


@pytest.mark.parametrize(("name", "schema"), FILES)
def test_golden_bytes_of_every_schema_are_decoded_to_their_message(name: str, schema: int) -> None:
    body = golden_file(name, schema).read_bytes()
    assert msgpack.unpackb(body)["schema"] == schema
    assert plain(decode(body)) == plain(EXAMPLES[name])


def test_every_schema_up_to_this_one_has_a_folder_and_examples_of_its_own() -> None:
    assert list(range(1, SCHEMA + 1)) == SCHEMAS == list(EXAMPLES_SINCE)
    assert sum(len(named) for named in EXAMPLES_SINCE.values()) == len(EXAMPLES), "every name is used once"


def test_every_kind_of_message_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES.values()} == set(get_args(Message))


def test_every_kind_of_update_has_an_example_with_all_that_it_may_carry() -> None:
    carried = {kind: set[str]() for kind in UPDATE_ARRAYS}
    for message in EXAMPLES.values():
        if isinstance(message, ModelUpdate):
            carried[message.kind] |= message.arrays.keys()
    assert carried == {kind: set(parts) for kind, parts in UPDATE_ARRAYS.items()}


def test_every_field_has_an_example_in_which_it_says_something() -> None:
    """A field that is at its default in every file could be lost on the way, and no file would tell."""
    silent = {
        (kind.__name__, item.name)
        for kind in vars(messages).values()
        if isinstance(kind, type) and is_dataclass(kind) and kind is not messages.Sizes
        for item in fields(kind)
        if "since" in item.metadata
    }
    for message in EXAMPLES.values():
        silent -= said(message)
    assert silent == set()


def said(value: Any) -> set[tuple[str, str]]:
    """Return record and name of the later fields that are not at their default, anywhere in ``value``."""
    found = set()
    inside = [*value.values()] if isinstance(value, dict) else [*value] if isinstance(value, tuple) else []
    if is_dataclass(value):
        for item in fields(value):
            each = getattr(value, item.name)
            inside.append(each)
            default = item.default if item.default_factory is MISSING else item.default_factory()
            if isinstance(each, np.ndarray) or each != default:
                found.add((type(value).__name__, item.name))
    return found.union(*map(said, inside))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_golden_file_has_an_example(schema: int) -> None:
    assert {path.stem for path in golden_file("", schema).parent.iterdir()} == set(sayable(schema))


def test_the_name_of_a_plan_never_changes() -> None:
    assert plan_hash(PLAN) == "63a276b3e955e069505aec95d09d964064ad5cd3b0722e087cf8f81f0c61cb17"
    assert plan_hash(PLAN_OF_CLASSES) == "231b947c38d8b672159e1a58dd45d75bbd7d5112a36b7e31fa83ae39665f6eba"
    assert plan_hash(PLAN_OF_FIRTH) == "70421301b84dafd77a2b5c44bd8dc9d6d6ae26d27773a6a92ebe55d9c1e57712"
    assert plan_hash(PLAN_OF_A_TABLE) == "ef5f738d56baf6d14f466af9cdc784924e4dee6df882cfaa321521a1054bba50"
