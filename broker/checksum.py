"""Checksums of what is kept: a row that is not what was written is found when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

Cell = bytes | str | float | None


def checksum(values: Sequence[Cell]) -> bytes:
    """Return eight bytes that are others for any other ``values``, but for one in 2^64."""
    digest = sha256()
    for value in values:
        body = value if isinstance(value, bytes) else repr(value).encode()
        # With its length: what ends one value must not begin the next.
        digest.update(len(body).to_bytes(8, "little"))
        digest.update(body)
    return digest.digest()[:8]


def with_checksum(*values: Cell) -> tuple[Any, ...]:
    """Return a row as it is written: ``values``, and their checksum."""
    return *values, checksum(values)


def is_whole(row: Sequence[Any]) -> bool:
    """Whether ``row`` ends with the checksum of what comes before."""
    return bool(checksum(row[:-1]) == row[-1])
