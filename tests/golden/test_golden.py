"""Bytes that were once sent are understood for ever, and what is sent today is what the files say."""

from __future__ import annotations

from typing import get_args

import pytest
from golden.examples import EXAMPLES, FOLDER, PLAN, golden_file, plain

from broker.codec import decode, encode, plan_hash
from broker.messages import SCHEMA, Message

SCHEMAS = sorted(int(folder.name.removeprefix("schema-")) for folder in FOLDER.glob("schema-*"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_message_is_encoded_to_its_golden_bytes(name: str) -> None:
    assert encode(EXAMPLES[name]) == golden_file(name).read_bytes()


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes_of_every_schema_are_decoded_to_their_message(name: str, schema: int) -> None:
    assert plain(decode(golden_file(name, schema).read_bytes())) == plain(EXAMPLES[name])


def test_every_schema_up_to_this_one_has_a_folder() -> None:
    assert list(range(1, SCHEMA + 1)) == SCHEMAS


def test_every_kind_of_message_has_an_example() -> None:
    assert {type(message) for message in EXAMPLES.values()} == set(get_args(Message))


def test_every_golden_file_has_an_example() -> None:
    assert {path.stem for path in golden_file("").parent.iterdir()} == set(EXAMPLES)


def test_the_name_of_a_plan_never_changes() -> None:
    assert plan_hash(PLAN) == "63a276b3e955e069505aec95d09d964064ad5cd3b0722e087cf8f81f0c61cb17"
