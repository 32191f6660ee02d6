"""Messages to bytes and back, strictly: what decodes is exactly what a dataclass says, or is refused.

A body is one msgpack map: ``protocol``, ``schema``, ``type``, and the fields of the dataclass. Arrays
are a map of ``dtype`` (always ``<f8``, little-endian float64) and ``data`` (raw bytes); their
length is not believed but held against the plan. Never pickle.

More than `MANY_TEXTS` texts in a list, the names of very many columns, are a map of ``dtype`` (``text``) and ``data``:
the texts in UTF-8 with a zero byte between each two, compressed by zlib (RFC 1950). A list of any length is read, too.

Order of the checks, since each protects the next: the body's length before anything is decoded; msgpack with every
extension off, and no more maps and lists than a body of that length can need (16 MiB of empty maps would
become more than a GiB); no key twice; exact key sets; exact types (a bool is no int, an int no
float); finite numbers; lengths; of compressed texts no more, all together, than `MAX_INFLATED_BYTES` and `MAX_LIST`.
A refusal names the place, never the value.

Growing: a new field has a default and ``metadata={"since": N}``. A body of an older schema must not have it and
gets the default; a body of a newer schema may have keys that we do not know, which are passed over.
"""

from __future__ import annotations

import dataclasses
import math
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from hashlib import sha256
from itertools import chain
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgpack
import numpy as np

from broker.errors import MalformedMessage
from broker.messages import (
    MAX_BODY_BYTES,
    OPEN_SIZES,
    PROTOCOL,
    SCHEMA,
    UPDATE_ARRAYS,
    Evaluation,
    GlobalModel,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    ModelUpdate,
    Plan,
    ReleasedModel,
    Sizes,
)
from broker.schema import Schema

DTYPE = "<f8"
#: In place of a dtype: texts, compressed.
TEXT = "text"
#: Texts up to which a list is written as it is, to be read by anybody.
MANY_TEXTS = 4096
#: Bytes that the compressed texts of a body may become: two million names of 30.
MAX_INFLATED_BYTES = 64 * 1024 * 1024
#: Bytes that are inflated at once.
PIECE_BYTES = 1024 * 1024
#: The largest whole number that every language's numbers hold exactly.
MAX_INT = 2**53
#: Names of columns and participants, reasons: sentences, not documents.
MAX_TEXT_BYTES = 4096
#: Entries of one list: the names of more columns fit into no body.
MAX_LIST = 2**21
#: Entries of one map: far more participants than a roster can hold.
MAX_MAP = 2**14
#: Bytes behind each map or list of a body, about: a `Coefficient`, the smallest that comes in numbers, takes 25.
BYTES_PER_CONTAINER = 24
#: Maps and lists that a body may hold besides, however short it is.
SPARE_CONTAINERS = 64
#: What was kept here is no bomb: it may hold as many as a body of this length.
MAX_KEPT_BYTES = MAX_BODY_BYTES
#: Room for the names and scalars around the arrays of a contribution.
MARGIN_BYTES = 4096

_TYPES: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (Hello, Heartbeat, Goodbye, Plan, GlobalModel, ModelUpdate, Evaluation, ReleasedModel)
}

Plain = Any
"""What msgpack holds: maps, lists, text, bytes, numbers, booleans and nil."""
Reader = Callable[[Plain, str, "Context"], Any]
Writer = Callable[[Any], Plain]
Codec = tuple[Reader, Writer]
T = TypeVar("T")


class _Room:
    """How many texts, and bytes of them, compressed data of a body may still become."""

    def __init__(self) -> None:
        self._texts, self._bytes = MAX_LIST, MAX_INFLATED_BYTES

    def take(self, *, n_texts: int, n_bytes: int) -> bool:
        """Whether there was room for so many more."""
        self._texts -= n_texts
        self._bytes -= n_bytes
        return min(self._texts, self._bytes) >= 0


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What a decoder knows besides the bytes: the schema they claim, and its limits.

    ``is_kept``: they are no message, but were kept here, and claim no schema.
    """

    schema: int = SCHEMA
    is_kept: bool = False
    room: _Room = dataclasses.field(default_factory=_Room)


@dataclasses.dataclass(frozen=True, slots=True)
class _ManyTexts:
    """Texts that are compressed when they are packed to be sent or stored; a hash is of what they say."""

    texts: tuple[str, ...]


def encode(message: Message) -> bytes:
    """Return the body of ``message``: the same message gives the same bytes; compressed ones, with the same zlib."""
    head = {"protocol": PROTOCOL, "schema": SCHEMA, "type": type(message).__name__}
    _, write = _record(type(message))
    return _pack({**head, **write(message)})


def decode(body: bytes, *, sizes: Sizes | None = None, max_bytes: int = MAX_BODY_BYTES) -> Message:
    """Return the message in ``body``.

    Parameters
    ----------
    sizes : lengths that its arrays must have; without them `check_lengths` is for later.
    max_bytes : bodies above are refused before they are decoded.

    Raises
    ------
    MalformedMessage
        Whatever is wrong with it. Nothing else is raised, for any bytes.
    """
    fields = _unpack(body, max_bytes)
    protocol, schema, name = (fields.pop(key, None) for key in ("protocol", "schema", "type"))
    if type(protocol) is not int or protocol != PROTOCOL:
        raise MalformedMessage(
            f"the message speaks protocol {protocol if type(protocol) is int else 'unknown'}, this side {PROTOCOL}: "
            "run versions of fedmq with the same protocol on both sides"
        )
    if type(schema) is not int or not 1 <= schema <= MAX_INT:
        raise MalformedMessage("schema: no positive whole number")
    kind = _TYPES.get(name) if type(name) is str else None
    if kind is None:
        raise MalformedMessage("type: none of the messages that this version knows")
    message: Message = _record(kind)[0](fields, kind.__name__, Context(schema))
    if sizes is not None:
        check_lengths(message, sizes)
    return message


def pack(record: Any) -> bytes:
    """Return the bytes of one dataclass of ours that is stored, not sent."""
    return _pack(_record(type(record))[1](record))


def unpack(kind: type[T], body: bytes) -> T:
    """Return what `pack` made of a ``kind``, perhaps before it had all of its fields; raises `MalformedMessage`."""
    record: T = _record(kind)[0](_unpack(body, len(body), is_kept=True), kind.__name__, Context(is_kept=True))
    return record


def plan_hash(plan: Plan) -> str:
    """Return the hash by which a plan is named in models and contributions.

    Fields that came with a later schema count only where they say something: a side that does not know them
    knows a plan that does not use them by the same name. Names are hashed as they are: two zlibs may compress them to
    different bytes.
    """
    head = {"protocol": PROTOCOL, "schema": 1, "type": "Plan"}
    return sha256(_pack({**head, **_lean(plan)}, many=_listed)).hexdigest()


def hello_digest(body: bytes) -> str:
    """Return the digits by which a participant knows again which of its hellos was heard."""
    return sha256(body).hexdigest()[:16]


def schema_hash(schema: Schema) -> str:
    """Return the hash by which people compare the schemas of two sites: the first digits of that of its content."""
    return sha256(_pack(_lean(schema))).hexdigest()[:12]


def _lean(record: Any) -> dict[str, Plain]:
    """Return what `encode` writes of ``record``, without later fields that have their default."""
    plain: dict[str, Plain] = _record(type(record))[1](record)
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if item.metadata.get("since", 1) > 1 and not isinstance(value, np.ndarray) and value == item.default:
            del plain[item.name]
        elif dataclasses.is_dataclass(value):
            plain[item.name] = _lean(value)
        elif isinstance(value, tuple) and all(map(dataclasses.is_dataclass, value)):
            plain[item.name] = [_lean(each) for each in value]
    return plain


def check_lengths(message: Any, sizes: Sizes, place: str = "") -> None:
    """Hold the arrays of ``message`` against the lengths that a plan implies.

    It is a question of its own, after whether it is of that plan: an honest message of an earlier one has the lengths
    of that.

    Raises
    ------
    MalformedMessage
        Where an array is longer or shorter.
    """
    place = place or type(message).__name__
    if isinstance(message, ModelUpdate):
        for name, array in message.arrays.items():
            _check_length(array, UPDATE_ARRAYS[message.kind][name].size, f"{place}.arrays.{name}", sizes)
    for item in dataclasses.fields(message):
        value = getattr(message, item.name)
        if dataclasses.is_dataclass(value):
            check_lengths(value, sizes, f"{place}.{item.name}")
        elif "size" in item.metadata and value is not None:
            _check_length(value, item.metadata["size"], f"{place}.{item.name}", sizes)


def _check_length(array: np.ndarray[Any, Any], size: str, place: str, sizes: Sizes) -> None:
    most = sizes.of(size)
    if len(array) > most or (len(array) != most and size not in OPEN_SIZES):
        raise MalformedMessage(f"{place}: {len(array)} numbers where {most} belong")


def _pack(fields: Mapping[str, Plain], *, many: Callable[[_ManyTexts], Plain] | None = None) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True, default=many or _deflated)
    return packed


def _listed(many: _ManyTexts) -> Plain:
    return many.texts


def _deflated(many: _ManyTexts) -> Plain:
    return {"dtype": TEXT, "data": zlib.compress("\0".join(many.texts).encode())}


def _unpack(body: bytes, max_bytes: int, *, is_kept: bool = False) -> dict[str, Plain]:
    if len(body) > max_bytes:
        raise MalformedMessage(f"the body has {len(body)} bytes; at most {max_bytes} are read")
    allowance = _Allowance(MAX_KEPT_BYTES if is_kept else len(body))
    try:
        fields = msgpack.unpackb(
            body,
            raw=False,
            strict_map_key=True,
            max_ext_len=0,
            max_bin_len=max_bytes,
            max_str_len=MAX_TEXT_BYTES,
            max_array_len=MAX_LIST,
            max_map_len=MAX_MAP,
            object_pairs_hook=allowance.map,
            list_hook=allowance.list,
        )
    except MalformedMessage:
        raise
    except (ValueError, TypeError, RecursionError, MemoryError, msgpack.UnpackException):
        # The library's own sentence may quote the bytes: it is not passed on.
        raise MalformedMessage("the body is not one well-formed msgpack value") from None
    if type(fields) is not dict:
        raise MalformedMessage("the body is not a map")
    return fields


class _Allowance:
    """Counts the maps and lists of a body while they are made: a bomb ends while it is small."""

    def __init__(self, n_bytes: int) -> None:
        self._left = SPARE_CONTAINERS + n_bytes // BYTES_PER_CONTAINER

    def map(self, pairs: Iterable[tuple[str, Plain]]) -> dict[str, Plain]:
        """Return the map of ``pairs``, no key of which may stand twice."""
        self._take_one()
        listed = list(pairs)
        fields = dict(listed)
        if len(fields) != len(listed):
            raise MalformedMessage("a map has the same key twice")
        return fields

    def list(self, items: Plain) -> Plain:
        """Return ``items``."""
        self._take_one()
        return items

    def _take_one(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise MalformedMessage("the body has more maps and lists than a message of its length can need")


# --- a reader and a writer for every type that a field can have -----------------------------


def _make_record(kind: Any) -> Codec:
    """Return reader and writer of a dataclass, made once from its annotations."""
    hints = get_type_hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind)}
    codecs = {name: _codec(hints[name]) for name in fields}
    since = {name: item.metadata.get("since", 1) for name, item in fields.items()}
    required = {
        name
        for name, item in fields.items()
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }

    def read(plain: Plain, place: str, context: Context) -> Any:
        if type(plain) is not dict:
            raise MalformedMessage(f"{place}: not a map")
        known = {name for name in fields if since[name] <= context.schema}
        missing = (required if context.is_kept else known) - plain.keys()
        unknown = plain.keys() - known
        if missing or (unknown and context.schema <= SCHEMA):
            raise MalformedMessage(f"{place}: {len(missing)} fields missing, {len(unknown)} unknown")
        told = known & plain.keys()
        return kind(**{name: codecs[name][0](plain[name], f"{place}.{name}", context) for name in told})

    def write(record: Any) -> Plain:
        return {name: codec[1](getattr(record, name)) for name, codec in codecs.items()}

    return (_sized_by_kind(read) if kind is ModelUpdate else read), write


_record: Callable[[Any], Codec] = cache(_make_record)


def _sized_by_kind(read: Reader) -> Reader:
    """Return ``read`` with the check that an update carries just what its kind says."""

    def check(plain: Plain, place: str, context: Context) -> ModelUpdate:
        update: ModelUpdate = read(plain, place, context)
        parts = UPDATE_ARRAYS.get(update.kind)
        required = {name for name, part in (parts or {}).items() if not part.optional}
        if parts is None or not required <= update.arrays.keys() <= parts.keys():
            raise MalformedMessage(f"{place}.arrays: not what its kind carries")
        return update

    return check


def _codec(hint: Any) -> Codec:
    origin, arguments = get_origin(hint), get_args(hint)
    codec: Codec
    if hint in _SCALARS:
        codec = _SCALARS[hint], _same
    elif origin is Literal:
        codec = _choice(frozenset(arguments)), _same
    elif origin is types.UnionType:
        inner = next(argument for argument in arguments if argument is not types.NoneType)
        codec = _optional(_codec(inner))
    elif origin is tuple:
        codec = _texts() if arguments[0] is str else _sequence(_codec(arguments[0]))
    elif origin is dict:
        codec = _mapping(_codec(arguments[1]))
    elif origin is np.ndarray:
        codec = _read_array, _write_array
    else:
        codec = _record(hint)
    return codec


def _same(value: Any) -> Plain:
    return value


def _read_text(plain: Plain, place: str, _context: Context) -> str:
    if type(plain) is not str:
        raise MalformedMessage(f"{place}: not text")
    return plain


def _read_bool(plain: Plain, place: str, _context: Context) -> bool:
    if type(plain) is not bool:
        raise MalformedMessage(f"{place}: neither true nor false")
    return plain


def _read_int(plain: Plain, place: str, _context: Context) -> int:
    if type(plain) is not int or not 0 <= plain <= MAX_INT:
        raise MalformedMessage(f"{place}: no whole number from 0 to 2^53")
    return plain


def _read_float(plain: Plain, place: str, _context: Context) -> float:
    if type(plain) is not float or not math.isfinite(plain):
        raise MalformedMessage(f"{place}: no finite floating-point number")
    return plain


_SCALARS: dict[Any, Reader] = {str: _read_text, bool: _read_bool, int: _read_int, float: _read_float}


def _choice(words: frozenset[str]) -> Reader:
    def read(plain: Plain, place: str, _context: Context) -> str:
        if type(plain) is not str or plain not in words:
            raise MalformedMessage(f"{place}: none of the words that may stand here")
        return plain

    return read


def _optional(inner: Codec) -> Codec:
    def read(plain: Plain, place: str, context: Context) -> Any:
        return None if plain is None else inner[0](plain, place, context)

    def write(value: Any) -> Plain:
        return None if value is None else inner[1](value)

    return read, write


def _sequence(inner: Codec) -> Codec:
    def read(plain: Plain, place: str, context: Context) -> tuple[Any, ...]:
        if type(plain) is not list:
            raise MalformedMessage(f"{place}: not a list")
        return tuple(inner[0](item, f"{place}[{index}]", context) for index, item in enumerate(plain))

    def write(values: Any) -> Plain:
        return [inner[1](value) for value in values]

    return read, write


def _texts() -> Codec:
    """Return reader and writer of texts, which are compressed where they are many."""
    read_list, write_list = _sequence((_read_text, _same))

    def read(plain: Plain, place: str, context: Context) -> tuple[str, ...]:
        if type(plain) is not dict:
            texts: tuple[str, ...] = read_list(plain, place, context)
            return texts
        if plain.keys() != {"dtype", "data"} or plain["dtype"] != TEXT or type(plain["data"]) is not bytes:
            raise MalformedMessage(f"{place}: neither a list nor compressed texts")
        try:
            return tuple(chain.from_iterable(_inflated(plain["data"], place, context.room)))
        except (zlib.error, UnicodeDecodeError):
            raise MalformedMessage(f"{place}: its data are no compressed texts") from None

    def write(texts: tuple[str, ...]) -> Plain:
        many = len(texts) > MANY_TEXTS and "\0" not in "".join(texts)
        return _ManyTexts(texts) if many else write_list(texts)

    return read, write


def _inflated(data: bytes, place: str, room: _Room) -> Iterator[list[str]]:
    """Yield the texts in ``data``, a piece of it at a time: a bomb ends while it is small."""
    stream, begun = zlib.decompressobj(), b""
    while not stream.eof:
        piece = stream.decompress(data, PIECE_BYTES)
        data = stream.unconsumed_tail
        if not (piece or stream.eof):
            raise MalformedMessage(f"{place}: its compressed texts are cut short")
        *texts, begun = (begun + piece).split(b"\0")
        if not room.take(n_texts=len(texts), n_bytes=len(piece)):
            raise MalformedMessage(f"{place}: its compressed texts are more than are read")
        if max(map(len, (*texts, begun))) > MAX_TEXT_BYTES:
            raise MalformedMessage(f"{place}: a text is longer than {MAX_TEXT_BYTES} bytes")
        if texts:
            yield b"\0".join(texts).decode().split("\0")
    if stream.unused_data:
        raise MalformedMessage(f"{place}: there are bytes behind its compressed texts")
    yield [begun.decode()]


def _mapping(inner: Codec) -> Codec:
    def read(plain: Plain, place: str, context: Context) -> dict[str, Any]:
        if type(plain) is not dict:
            raise MalformedMessage(f"{place}: not a map")
        if any(type(key) is not str for key in plain):
            raise MalformedMessage(f"{place}: a key is not text")
        # Keys come from outside: they are counted, not quoted.
        return {key: inner[0](value, f"{place}[{index}]", context) for index, (key, value) in enumerate(plain.items())}

    def write(values: Any) -> Plain:
        return {key: inner[1](value) for key, value in values.items()}

    return read, write


def _read_array(plain: Plain, place: str, _context: Context) -> np.ndarray[Any, Any]:
    if type(plain) is not dict or plain.keys() != {"dtype", "data"} or type(plain["data"]) is not bytes:
        raise MalformedMessage(f"{place}: not an array")
    if plain["dtype"] != DTYPE:
        raise MalformedMessage(f"{place}: its dtype is not {DTYPE}")
    if len(plain["data"]) % 8:
        raise MalformedMessage(f"{place}: its bytes are no whole number of float64")
    array = np.frombuffer(plain["data"], dtype=DTYPE)
    if not np.isfinite(array).all():
        raise MalformedMessage(f"{place}: a number in it is not finite")
    return array


def _write_array(array: np.ndarray[Any, Any]) -> Plain:
    return {"dtype": DTYPE, "data": np.ascontiguousarray(array, dtype=DTYPE).data.cast("B")}
