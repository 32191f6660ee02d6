"""Bodies that are no messages: each is refused in a sentence that shows nothing of it, and the next one is read."""

from __future__ import annotations

import gzip
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import msgpack
import pytest
from golden.examples import (
    CURVATURE,
    DELTA,
    EVALUATION,
    EVALUATION_FOR_WALD,
    FEATURES,
    GOODBYE,
    HEARTBEAT,
    HELLO,
    HELLO_OF_A_TABLE,
    HELLO_OF_CLASSES,
    MODEL,
    MODEL_WITH_QUESTIONS,
    PLAN_OF_CLASSES,
    RANKS,
    RELEASED,
    RELEASED_WITH_INFERENCE,
    plain,
)

from broker.codec import MAX_LIST, MAX_TEXT_BYTES, decode, encode
from broker.errors import MalformedMessage, RemoteMessageError
from broker.messages import MAX_BODY_BYTES, MAX_INTERVALS, Message, ModelUpdate, Sizes

SIZES = Sizes(len(FEATURES))

#: Planted where values stand: none of them may be in a sentence.
CANARY = "canary-7731"
CANARY_NUMBER = 773177317731.25
CANARY_INT = 77317731

NAN, INF = float("nan"), float("inf")


def changed(message: Message, **changes: Any) -> bytes:
    """Return the body of ``message`` with fields changed."""
    body: bytes = msgpack.packb({**msgpack.unpackb(encode(message)), **changes})
    return body


def without(message: Message, name: str) -> bytes:
    fields = msgpack.unpackb(encode(message))
    del fields[name]
    body: bytes = msgpack.packb(fields)
    return body


def spliced(message: Message, key: str, value: bytes) -> bytes:
    """Return the body of ``message`` with these bytes where the value of its last field ``key`` stood."""
    body = without(message, key)
    assert body[0] < 0x8F or body[0] == 0xDE, "a fixmap that can take one more"
    head = bytes([body[0] + 1]) if body[0] < 0x8F else struct.pack(">BH", 0xDE, int.from_bytes(body[1:3], "big") + 1)
    return head + body[len(head) :] + msgpack.packb(key) + value


def array(*numbers: float, dtype: Any = "<f8", layout: str = "<d", **more: Any) -> dict[str, Any]:
    """Return an array as it travels."""
    return {"dtype": dtype, "data": b"".join(struct.pack(layout, number) for number in numbers), **more}


def delta(value: Any) -> bytes:
    """Return an update whose only array is ``value``."""
    return changed(DELTA, arrays={"delta": value})


def carrying(message: ModelUpdate, name: str, value: Any) -> bytes:
    """Return ``message`` with ``value`` for one of its arrays."""
    return changed(message, arrays={**msgpack.unpackb(encode(message))["arrays"], name: value})


def texts(data: Any, **more: Any) -> bytes:
    """Return a hello whose columns are these ``data``, compressed or whatever they are."""
    return changed(HELLO, features={"dtype": "text", "data": data, **more})


def information(**changes: Any) -> bytes:
    """Return an evaluation with something in its information changed."""
    fields = msgpack.unpackb(encode(EVALUATION_FOR_WALD))
    return changed(EVALUATION_FOR_WALD, information={**fields["information"], **changes})


def with_feature(**changes: Any) -> bytes:
    """Return a hello with a schema, the first feature of which is changed."""
    schema = msgpack.unpackb(encode(HELLO_OF_A_TABLE))["feature_schema"]
    first, *others = schema["features"]
    return changed(HELLO_OF_A_TABLE, feature_schema={**schema, "features": [{**first, **changes}, *others]})


def _with_dictionary(data: bytes) -> bytes:
    compressor = zlib.compressobj(zdict=CANARY.encode())
    return compressor.compress(data) + compressor.flush()


DELTA_BODY = encode(DELTA)

BAD: dict[str, bytes] = {
    "B01 empty": b"",
    "B02 random bytes": random.Random(1).randbytes(200),
    "B02 one small number": b"\x07",
    "B02 nil": b"\xc0",
    "B02 a list": msgpack.packb([CANARY]),
    "B02 text": msgpack.packb(CANARY),
    "B02 JSON": b'{"protocol": 1, "type": "Hello", "federation": "canary-7731"}',
    "B02 reserved byte": b"\xc1",
    "B02 bad UTF-8": spliced(HELLO, "federation", b"\xa4\xff\xfe\xff\xfe"),
    "B03 one byte short": DELTA_BODY[:-1],
    "B03 half": DELTA_BODY[: len(DELTA_BODY) // 2],
    "B03 head only": DELTA_BODY[:1],
    "B04 one byte more": DELTA_BODY + b"\x00",
    "B04 twice": DELTA_BODY + DELTA_BODY,
    "B05 lists in lists": b"\x91" * 100_000,
    "B05 lists in lists, ended": b"\x91" * 100_000 + b"\xc0",
    "B05 maps in maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "B05 nesting that passes the library": spliced(HELLO, "features", b"\x91" * 400 + b"\xc0"),
    "B07 list of 2^32": b"\xdd\xff\xff\xff\xff",
    "B07 map of 2^32": b"\xdf\xff\xff\xff\xff",
    "B07 text of 2^32": b"\xdb\xff\xff\xff\xff",
    "B07 bytes of 2^32": b"\xc6\xff\xff\xff\xff",
    "B07 ext of 2^32": b"\xc9\xff\xff\xff\xff\x01",
    "B08 ext": spliced(HELLO, "federation", b"\xd4\x05\x00"),
    "B08 ext without bytes": spliced(HELLO, "federation", b"\xc7\x00\x05"),
    "B08 timestamp": spliced(HELLO, "federation", b"\xd6\xff\x00\x00\x00\x01"),
    "B08 timestamp without bytes": spliced(HELLO, "federation", b"\xc7\x00\xff"),
    "B09 key twice": b"\x82" + 2 * (msgpack.packb("protocol") + b"\x01"),
    "B09 key twice inside": spliced(MODEL, "roster", b"\x82" + 2 * (msgpack.packb(CANARY) + b"\xc0")),
    "B09 number for a key": b"\x81\x01\x01",
    "B09 bytes for a key of a roster": spliced(
        MODEL, "roster", b"\x81\xc4\x01h" + msgpack.packb(msgpack.unpackb(encode(MODEL))["roster"]["hospital-1"])
    ),
    "B10 unknown key": changed(HELLO, **{CANARY: CANARY}),
    "B10 missing key": without(HELLO, "n_rows"),
    "B10 no protocol": without(HELLO, "protocol"),
    "B10 no schema": without(HELLO, "schema"),
    "B10 no type": without(HELLO, "type"),
    "B10 unknown type": changed(HELLO, type=CANARY),
    "B10 type of no text": changed(HELLO, type=["Hello"]),
    "B10 type of ours that is no message": changed(HELLO, type="Standing"),
    "B10 unknown key inside": changed(MODEL, roster={"h": {"incarnation": "i", "settled": 1, CANARY: 1, "asked": ""}}),
    "B11 protocol of a newer version": changed(HELLO, protocol=2),
    "B11 protocol as text": changed(HELLO, protocol=CANARY),
    "B11 protocol true": changed(HELLO, protocol=True),
    "B11 protocol 1.0": changed(HELLO, protocol=1.0),
    "B12 schema 0": changed(HELLO, schema=0),
    "B12 schema true": changed(HELLO, schema=True),
    "B12 schema 2^60": changed(HELLO, schema=2**60),
    "B13 big-endian": delta(array(1, 2, 3, 4, dtype=">f8", layout=">d")),
    "B13 float32": delta(array(1, 2, 3, 4, dtype="<f4", layout="<f")),
    "B13 int64": delta(array(1, 2, 3, 4, dtype="<i8", layout="<q")),
    "B13 object": delta(array(1, 2, 3, 4, dtype="|O")),
    "B13 structured": delta(array(1, 2, 3, 4, dtype="f8,f8")),
    "B13 dtype as bytes": delta(array(1, 2, 3, 4, dtype=b"<f8")),
    "B13 dtype that is no word": delta(array(1, 2, 3, 4, dtype=[CANARY])),
    "B13 float32 under our dtype": delta(array(1, 2, 3, layout="<f")),
    "B14 too short": delta(array(1, 2, 3)),
    "B14 too long": delta(array(1, 2, 3, 4, 5)),
    "B14 no numbers": delta(array()),
    "B14 half a number": delta({"dtype": "<f8", "data": b"\x00" * 33}),
    "B14 with a shape": delta(array(1, 2, 3, 4, shape=[2**40, 2**40])),
    "B14 a single number": delta(CANARY_NUMBER),
    "B14 a list of numbers": delta([1.0, 2.0, 3.0, CANARY_NUMBER]),
    "B14 text for bytes": delta({"dtype": "<f8", "data": CANARY + "x" * 21}),
    "B14 nil": delta(None),
    "B15 nan": delta(array(1, 2, NAN, 4)),
    "B15 infinity": delta(array(1, 2, 3, INF)),
    "B15 minus infinity": delta(array(-INF, 2, 3, 4)),
    "B15 nan for a number": changed(DELTA, loss=NAN),
    "B15 infinity for a number": changed(DELTA, n_samples=INF),
    "B17 minus one": changed(HELLO, n_rows=-1),
    "B17 2^63": changed(HELLO, n_rows=2**63),
    "B17 over what a float holds": changed(HELLO, n_rows=2**53 + 1),
    "B17 true": changed(HELLO, n_rows=True),
    "B17 a float for an int": changed(HELLO, n_rows=CANARY_NUMBER),
    "B17 text for an int": changed(HELLO, n_rows=CANARY),
    "B17 an int for a float": changed(DELTA, n_samples=CANARY_INT),
    "B17 true for a float": changed(DELTA, n_samples=True),
    "an int for a boolean": changed(RELEASED, converged=1),
    "nil for a boolean": changed(RELEASED, converged=None),
    "nil for text": changed(HELLO, federation=None),
    "bytes for text": changed(HELLO, federation=CANARY.encode()),
    "text for a list": changed(HELLO, features=CANARY),
    "a number in a list of text": changed(HELLO, features=["age", CANARY_INT]),
    "a map for a list": changed(HELLO, features={CANARY: CANARY}),
    "a list for a map": changed(MODEL, roster=[CANARY]),
    "text for a record": changed(MODEL, roster={"h": CANARY}),
    "a word that may not stand there": changed(HEARTBEAT, state=CANARY),
    "no word at all": changed(HEARTBEAT, state=CANARY_INT),
    "a list for a word": changed(HEARTBEAT, state=[CANARY]),
    "an unknown kind of update": changed(DELTA, kind=CANARY),
    "arrays of another kind": changed(DELTA, kind="moments"),
    "an array more than its kind has": changed(DELTA, arrays={"delta": array(1, 2, 3, 4), CANARY: array(1)}),
    "no arrays": changed(DELTA, arrays={}),
    "a histogram of other bins": changed(
        EVALUATION, train={**msgpack.unpackb(encode(EVALUATION))["train"], "positives": array(1, 2)}
    ),
    "B29 text longer than names are": changed(GOODBYE, participant=CANARY * 1000),
    "a field of schema 2 in a body of schema 1": changed(HELLO, schema=1),
    "texts of another dtype": texts(zlib.compress(b"a"), dtype="<f8"),
    "texts whose dtype is no word": texts(zlib.compress(b"a"), dtype=[CANARY]),
    "texts with a shape": texts(zlib.compress(b"a"), shape=[1]),
    "texts for bytes": texts(CANARY),
    "texts that are not compressed": texts(CANARY.encode()),
    "texts that are no bytes at all": texts(b""),
    "texts cut short": texts(zlib.compress(CANARY.encode())[:-1]),
    "texts cut short in the middle": texts(zlib.compress(CANARY.encode() * 9)[:9]),
    "texts that are damaged": texts(zlib.compress(CANARY.encode())[:-1] + b"!"),
    "texts with bytes behind them": texts(zlib.compress(b"a") + CANARY.encode()),
    "texts twice": texts(2 * zlib.compress(CANARY.encode())),
    "texts compressed by gzip": texts(gzip.compress(CANARY.encode())),
    "texts that need a dictionary": texts(_with_dictionary(CANARY.encode())),
    "texts of bad UTF-8": texts(zlib.compress(b"a\0\xff\xfe")),
    "a text longer than names are, compressed": texts(zlib.compress(b"a\0" + b"b" * (MAX_TEXT_BYTES + 1))),
    "and one before others": texts(zlib.compress(b"b" * (MAX_TEXT_BYTES + 1) + b"\0a")),
    "texts more than any list has": texts(zlib.compress(bytes(MAX_LIST + 1))),
    "texts of more bytes than are read": texts(zlib.compress((b"b" * MAX_TEXT_BYTES + b"\0") * 2**14)),
    "texts for one text": changed(HELLO, federation={"dtype": "text", "data": zlib.compress(b"heart")}),
    "numbers that are texts": delta({"dtype": "text", "data": zlib.compress(b"1\0002")}),
    "a feature of a kind nobody knows": with_feature(kind=CANARY),
    "a feature that is a word": changed(HELLO_OF_A_TABLE, feature_schema=CANARY),
    "levels that are no map": changed(HELLO_OF_A_TABLE, levels=[CANARY]),
    "a level that is a number": changed(HELLO_OF_A_TABLE, levels={"stage": ["I", CANARY_INT]}),
    "a bound that is infinite": with_feature(low=INF),
    "a schema in a body of schema 2": changed(HELLO_OF_A_TABLE, schema=2),
    "a class that is no whole number": changed(HELLO_OF_CLASSES, classes=[0, CANARY_NUMBER]),
    "a class below 0": changed(HELLO_OF_CLASSES, classes=[-1, 1]),
    "a weight that is no floating-point number": changed(HELLO_OF_CLASSES, n_samples=CANARY_INT),
    "an infinite weight": changed(HELLO_OF_CLASSES, n_samples=INF),
    "nil for a fingerprint": changed(HELLO_OF_CLASSES, fingerprint=None),
    "a class weight that is nan": changed(PLAN_OF_CLASSES, class_weights=[1.0, NAN, 1.0]),
    "a penalty nobody knows": changed(PLAN_OF_CLASSES, penalty=CANARY),
    "an inference nobody knows": changed(PLAN_OF_CLASSES, inference=CANARY),
    "a filling that is not finite": changed(PLAN_OF_CLASSES, fill=array(1, NAN, 3)),
    "a filling of another length": changed(PLAN_OF_CLASSES, fill=array(1, 2)),
    "a list for a filling": changed(PLAN_OF_CLASSES, fill=[1.0, 2.0, CANARY_NUMBER]),
    "a list for what is asked about": changed(MODEL_WITH_QUESTIONS, extra=[CANARY]),
    "a number for what is asked about": changed(MODEL_WITH_QUESTIONS, extra={CANARY: CANARY_NUMBER}),
    "a question that is not finite": changed(MODEL_WITH_QUESTIONS, extra={CANARY: array(1, INF)}),
    "nil for what may be left out": carrying(CURVATURE, "hessian", None),
    "a Hessian left out that is nobody's": changed(CURVATURE, kind="gradient"),
    "a count more than intervals are asked for": carrying(
        RANKS, "train_positives", array(*[0.0] * (MAX_INTERVALS + 1))
    ),
    "a count that is nan": carrying(RANKS, "train_positives", array(NAN)),
    "information without a gradient": information(gradient=None),
    "information that is text": changed(EVALUATION_FOR_WALD, information=CANARY),
    "a meat of another length": information(meat=array(1, 2)),
    "an int for whether there are offsets": information(has_offset=1),
    "a covariance that is no table": changed(
        RELEASED_WITH_INFERENCE,
        inference={**msgpack.unpackb(encode(RELEASED_WITH_INFERENCE))["inference"], "covariance": [CANARY_NUMBER]},
    ),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_a_bad_body_is_a_malformed_message_and_the_next_one_is_read(body: bytes) -> None:
    with pytest.raises(MalformedMessage) as raised:
        decode(body, sizes=SIZES)
    sentence = str(raised.value)
    for planted in (CANARY, str(CANARY_NUMBER), str(CANARY_INT)):
        assert planted not in sentence
    assert len(sentence) < 200
    assert isinstance(raised.value, RemoteMessageError)
    assert raised.value.reason == "malformed"
    assert plain(decode(DELTA_BODY, sizes=SIZES)) == plain(DELTA)


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_the_error_carries_no_other_one_that_might_quote_the_bytes(body: bytes) -> None:
    with pytest.raises(MalformedMessage) as raised:
        decode(body, sizes=SIZES)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (changed(HELLO, n_rows=-1), r"Hello.n_rows: no whole number from 0 to 2\^53"),
        (changed(HELLO, features=["a", 1]), r"Hello.features\[1\]: not text"),
        (delta(array(1, 2, NAN, 4)), r"ModelUpdate.arrays\[0\]: a number in it is not finite"),
        (delta(array(1, 2, 3)), "ModelUpdate.arrays.delta: 3 numbers where 4 belong"),
        (changed(MODEL, roster={"h": 1}), r"GlobalModel.roster\[0\]: not a map"),
        (changed(MODEL, roster={"h": {}}), r"GlobalModel.roster\[0\]: 6 fields missing, 0 unknown"),
        (changed(HELLO, schema=1), "Hello: 0 fields missing, 5 unknown"),
        (changed(PLAN_OF_CLASSES, fill=array(1, 2)), "Plan.fill: 2 numbers where 3 belong"),
        (
            changed(MODEL_WITH_QUESTIONS, extra={"h": array(INF)}),
            r"GlobalModel.extra\[0\]: a number in it is not finite",
        ),
        (texts(zlib.compress(b"a")[:-1]), "Hello.features: its compressed texts are cut short"),
        (texts(zlib.compress(b"a") + b"b"), "Hello.features: there are bytes behind its compressed texts"),
        (texts(zlib.compress(bytes(MAX_LIST + 1))), "Hello.features: its compressed texts are more than are read"),
        (texts(zlib.compress(b"b" * 5000)), "Hello.features: a text is longer than 4096 bytes"),
        (texts(b"abc"), "Hello.features: its data are no compressed texts"),
        (texts("a"), "Hello.features: neither a list nor compressed texts"),
        (information(meat=array(1, 2)), "Evaluation.information.meat: 2 numbers where 10 belong"),
        (changed(RELEASED, metrics=[]), "ReleasedModel.metrics: not a map"),
        (changed(HEARTBEAT, state="asleep"), "Heartbeat.state: none of the words"),
    ],
)
def test_a_refusal_names_the_place(body: bytes, sentence: str) -> None:
    with pytest.raises(MalformedMessage, match=sentence):
        decode(body, sizes=SIZES)


@pytest.mark.fault("B18")
def test_b18_a_body_over_the_cap_is_refused_before_it_is_looked_at() -> None:
    cap = 4096
    with pytest.raises(MalformedMessage, match=f"{cap + 1} bytes; at most {cap} are read"):
        decode(b"\xc1" * (cap + 1), max_bytes=cap)
    with pytest.raises(MalformedMessage, match="at most 16711680"):
        decode(bytes(MAX_BODY_BYTES + 1))


def test_b29_names_with_dots_and_stars_are_only_text_here() -> None:
    """Who may be called so is the admission's to say: the codec keeps them as they are."""
    body = changed(HELLO, participant="a.*.#")
    assert getattr(decode(body), "participant", None) == "a.*.#"


_BOMBS = """
import resource, sys, time, zlib
import msgpack
from broker.codec import decode, encode
from broker.errors import MalformedMessage
from broker.messages import MAX_BODY_BYTES, Hello

def listed(n, item):
    return b"\\xdd" + n.to_bytes(4, "big") + item * n

def hello(**changes):
    plain = msgpack.unpackb(encode(Hello("f", "p", "i", (), 1, 1)))
    return msgpack.packb({**plain, **changes})

def inflating(text, times):
    stream = zlib.compressobj(1)
    data = b"".join(stream.compress(text) for _ in range(times)) + stream.flush()
    return {"dtype": "text", "data": data}

room = MAX_BODY_BYTES - 100
bombs = {
    "empty maps": listed(room, b"\\x80"),
    "empty lists": listed(room, b"\\x90"),
    "empty maps in lists that are just short enough": b"\\xdc\\x00\\x2f" + listed(2**18 - 1, b"\\x80") * 47,
    "empty lists in such lists": b"\\x95" + listed(2**21 - 1, b"\\x90") * 5,
    "a map of a million and a half keys": b"\\xdf" + (1_500_000).to_bytes(4, "big")
    + b"".join(b"\\xa6%06x\\xc0" % key for key in range(1_500_000)),
    "maps of one in such lists": b"\\xdc\\x00\\x0b" + listed(2**18 - 1, b"\\x81\\xa0\\xc0") * 11,
    "small maps, each key twice": b"\\xdf" + (room // 2).to_bytes(4, "big") + b"\\xa0\\x80" * (room // 2),
    "declared lists in lists": (b"\\xdd" + (2**18).to_bytes(4, "big")) * 1000,
    "declared lists of the body's length": (b"\\xdd" + room.to_bytes(4, "big")) * 1000 + b"\\xc0" * (room - 5000),
    "names that inflate to a GiB": hello(features=inflating(b"a column\\0" * 2**17, 900)),
    "zero bytes that inflate to a GiB": hello(features=inflating(bytes(2**20), 1024)),
    "one name that inflates to a GiB": hello(features=inflating(b"a" * 2**20, 1024)),
    "levels that inflate to a GiB together": hello(
        levels=dict.fromkeys(map(str, range(2000)), inflating(b"\\0a level of thirty-two bytes, say" * 2**14, 1))
    ),
    "declared maps in maps": (b"\\xde\\x40\\x00\\xa1a") * 1000,
}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, body in bombs.items():
    assert len(body) <= MAX_BODY_BYTES, name
    began = time.perf_counter()
    try:
        decode(body)
    except MalformedMessage:
        pass
    else:
        sys.exit(f"{name}: not refused")
    seconds = time.perf_counter() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if seconds > 3 or grown > 300:
        sys.exit(f"{name}: {seconds:.1f} s, {grown} MiB")
"""


@pytest.mark.fault("B06", "B07")
def test_b06_b07_bombs_cost_neither_much_time_nor_much_memory() -> None:
    """Without limits, 12 MiB of empty maps take 930 MB and five seconds, in which no heartbeat is sent."""
    ended = subprocess.run([sys.executable, "-c", _BOMBS], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
