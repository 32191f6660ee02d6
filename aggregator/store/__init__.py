"""What a store promises: the aggregator's memory, one commit at a time.

It keeps the cells of the state (`aggregator.state.cells`), the ledger (every contribution ever
judged, for good), the hash of every version, and the releases with whether they were confirmed.

- A commit is all or nothing, and durable when it returns: after a kill -9 at any moment the store holds a state
  that was committed, whole.
- An update id stands in the ledger once. What was recorded is not recorded again.
- A version has one hash, for ever: committing another one for it is an error.
- The epoch fences: a commit with an epoch below the highest ever committed raises `FencedError` and
  changes nothing. So of two aggregators only the one that took over last can go on.

Models and plans that were not yet sent are not kept as messages: they follow from the cells, and an aggregator that
starts publishes them anew. A release is kept as the bytes it is sent in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aggregator.events import Include, Record


@dataclass(frozen=True, slots=True)
class ReleasedBody:
    """A release in the bytes that are published, until the broker has confirmed them."""

    version: int
    epoch: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """What one step changed; ``cells`` maps a key to its bytes, or to None where it is gone."""

    epoch: int
    cells: Mapping[str, bytes | None]
    records: tuple[Record, ...] = ()
    includes: tuple[Include, ...] = ()
    version_hashes: Mapping[int, str] = field(default_factory=dict)
    releases: tuple[ReleasedBody, ...] = ()


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A contribution, its verdict, and where it went: ``included_in`` None for what is in no model."""

    update_id: str
    participant: str
    kind: str
    base_version: int
    version: int
    verdict: str
    digest: str
    included_in: int | None
    weight: float | None


class Store(Protocol):
    """The contract above, as calls. They block: the service runs them in a thread."""

    def cells(self) -> dict[str, bytes]:
        """Return what was kept of the state; empty for a new federation."""

    def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable, whole; raises `FencedError` or `StoreError`, and then nothing has changed."""

    def unconfirmed(self) -> list[ReleasedBody]:
        """Return the releases that no broker has confirmed yet, oldest first."""

    def confirm(self, version: int) -> None:
        """Note that the release of ``version`` was confirmed."""

    def ledger(self) -> Iterator[LedgerEntry]:
        """Iterate over every contribution ever judged, in the order of arrival."""

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of every version."""

    def close(self) -> None:
        """Let go of the files."""
