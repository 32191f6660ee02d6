"""What a store promises: the aggregator's memory, one commit at a time.

It keeps the cells of the state (`aggregator.state.cells`), the ledger (the contributions judged), the hash of each
version, and the releases with whether they were confirmed.

- A commit is all or nothing, and durable when it returns: after a kill -9 at any moment the store holds a state
  that was committed, whole.
- An update id stands in the ledger once. What was recorded is not recorded again.
- A version has one hash, for ever: committing another one for it is an error.
- It is bounded: of the ledger and of the hashes the newest ``keep_ledger`` stay, and what still waits for a version;
  of releases that were confirmed, the newest `KEPT_RELEASES`. What is gone is not needed: what members have sent is
  known by its numbers, which are in the cells.
- What is read is what was written, or `StoreError` says that it is not.
- The epoch fences: `take_over` raises it, and a commit with an epoch below the highest raises `FencedError` and
  changes nothing. So of several aggregators only the one that took over last can go on.
- What has gone back underneath an aggregator that runs, to a backup or to a replica that was behind, is not written
  over: where a store can notice, as far as its class says, `StoreError`.

Models and plans that were not yet sent are not kept as messages: they follow from the cells, and an aggregator that
starts publishes them anew. A release is kept as the bytes it is sent in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aggregator.errors import FencedError, StoreError
from aggregator.events import Include, Record

#: Rows of the ledger, and hashes of versions, that are kept by default.
KEPT_ROWS = 1_000_000
#: Releases kept when they are confirmed.
KEPT_RELEASES = 16
#: Rows of the ledger that go at most for each one that comes.
PRUNED_AT_ONCE = 4
#: Kinds of contribution that are in no version, ever: once judged, they are settled.
NEVER_INCLUDED = ("evaluation", "moments", "path", "ranks", "sides")


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

    def take_over(self, above: int = 0) -> int:
        """Raise the epoch, durably, and return it: whoever holds an older one can commit nothing more.

        It is 0 in a new store, and one up each time; or one more than ``above``, where that is higher. Of several that
        take over at once each gets an epoch of its own.
        """

    def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable, whole; raises `FencedError` or `StoreError`, and then nothing has changed."""

    def unconfirmed(self) -> list[ReleasedBody]:
        """Return the releases that no broker has confirmed yet, oldest first."""

    def confirm(self, version: int) -> None:
        """Note that the release of ``version`` was confirmed, and with it each older one, which it has overtaken.

        From an aggregator that is fenced nothing is noted.
        """

    def ledger(self) -> Iterator[LedgerEntry]:
        """Iterate over the contributions judged, in the order of arrival."""

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of each version."""

    def defects(self) -> list[str]:
        """Return a sentence for each thing that is not what was written; reading it would raise `StoreError`."""

    def close(self) -> None:
        """Let go of the files."""


def is_settled(entry: LedgerEntry) -> bool:
    """Whether nothing will ever be written of ``entry`` again."""
    return entry.included_in is not None or entry.verdict != "accepted" or entry.kind in NEVER_INCLUDED


def fenced(place: str) -> FencedError:
    """Return the error of a commit that comes too late."""
    return FencedError(
        f"another aggregator has taken over the store {place}: this one commits nothing more under its epoch"
    )


def gone_back(place: str) -> StoreError:
    """Return the error of a commit to a store that is not as the last one left it."""
    return StoreError(
        f"the store {place} is not as this aggregator left it: it has gone back, to a backup or to a replica that was "
        "behind; start the aggregator again, it takes up what is there"
    )


def bad_include(include: Include, place: str) -> StoreError:
    """Return the error of a contribution that cannot be put into a version."""
    return StoreError(
        f"update {include.update_id} is not waiting in the ledger of {place}: it may be counted once only; "
        "keep the store as it is and report this"
    )


def bad_version(version: int, place: str) -> StoreError:
    """Return the error of a version that was another one before."""
    return StoreError(
        f"version {version} stands in {place} with another hash: a version is published once; "
        "keep the store as it is and report this"
    )
