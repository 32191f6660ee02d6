"""What was seen of a federation from outside its services, in the order in which it happened.

Each record is a time in seconds, who it is about, and what was seen. Nothing here was asked of a service's own state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from aggregator.store import Commit, LedgerEntry


class Attempted(NamedTuple):
    """A contribution was put into an outbox; ``table`` says of which of its site's tables."""

    at: float
    who: str
    update_id: str
    kind: str
    base_version: int
    table: int
    body: bytes

    def __str__(self) -> str:
        return (
            f"puts {self.update_id} ({self.kind} from version {self.base_version}) into its outbox: {_short(self.body)}"
        )


class Sent(NamedTuple):
    """A contribution was given to the transport."""

    at: float
    who: str
    update_id: str
    digest: str

    def __str__(self) -> str:
        return f"sends {self.update_id}: {self.digest[:8]}"


class Confirmed(NamedTuple):
    """The broker has said that it has a contribution."""

    at: float
    who: str
    update_id: str

    def __str__(self) -> str:
        return f"has {self.update_id} confirmed"


class Lost(NamedTuple):
    """A broker that had a contribution has it no longer."""

    at: float
    who: str
    update_id: str

    def __str__(self) -> str:
        return f"loses {self.update_id}"


class TookOver(NamedTuple):
    """An aggregator has raised the epoch."""

    at: float
    who: str
    epoch: int

    def __str__(self) -> str:
        return f"takes over with epoch {self.epoch}"


class Committed(NamedTuple):
    """A commit is durable."""

    at: float
    who: str
    commit: Commit

    def __str__(self) -> str:
        return f"commits {_what(self.commit)}"


class Fenced(NamedTuple):
    """The store has refused a commit of an older epoch."""

    at: float
    who: str
    epoch: int

    def __str__(self) -> str:
        return f"is fenced with epoch {self.epoch}"


class Announced(NamedTuple):
    """A model came to the broker."""

    at: float
    who: str
    epoch: int
    version: int
    bulletin: int
    digest: str

    def __str__(self) -> str:
        return f"announces {_model(self)}"


class Offered(NamedTuple):
    """A released model came to the broker."""

    at: float
    who: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"publishes the release of version {self.version}: {self.digest[:8]}"


class Accepted(NamedTuple):
    """A participant goes by a model from now on; ``life`` counts its starts."""

    at: float
    who: str
    life: int
    epoch: int
    version: int
    bulletin: int
    digest: str

    def __str__(self) -> str:
        return f"goes by {_model(self)}"


class Released(NamedTuple):
    """A downstream system has received a released model."""

    at: float
    who: str
    version: int
    body: bytes

    def __str__(self) -> str:
        return f"receives the release of version {self.version}: {_short(self.body)}"


class Failed(NamedTuple):
    """Something was made to go wrong: what kind of thing, and the rest for people."""

    at: float
    who: str
    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"FAULT {self.kind} {self.detail}".rstrip()


class Came(NamedTuple):
    """A service, or what it needs, came up."""

    at: float
    who: str
    what: str

    def __str__(self) -> str:
        return self.what


class Ended(NamedTuple):
    """A service has ended with an error; ``is_ours`` where that was made to happen."""

    at: float
    who: str
    error: str
    is_ours: bool

    def __str__(self) -> str:
        return f"ends: {self.error}"


Record = (
    Attempted
    | Sent
    | Confirmed
    | Lost
    | TookOver
    | Committed
    | Fenced
    | Announced
    | Offered
    | Accepted
    | Released
    | Failed
    | Came
    | Ended
)
T = TypeVar("T", bound=tuple[object, ...])


@dataclass(frozen=True, slots=True, eq=False)
class Last:
    """What there is when all have stopped in order.

    Attributes
    ----------
    released : whether the model was released after the faults, in time.
    waiting : ids of the messages in each queue.
    dead : ids of the messages in the queue of the dead, with their routing keys.
    unsent : number of contributions in each outbox.
    tasks : names of the tasks that nobody ended.
    tables : which of its tables each site has.
    """

    at: float
    released: bool
    why: str
    ledger: tuple[LedgerEntry, ...]
    versions: Mapping[int, str]
    waiting: Mapping[str, tuple[str, ...]]
    unsent: Mapping[str, int]
    tasks: tuple[str, ...]
    tables: Mapping[str, int]
    incarnations: Mapping[str, str]


@dataclass(slots=True, eq=False)
class History:
    """The records, and in the end what is left."""

    records: list[Record] = field(default_factory=list)
    last: Last | None = None

    def add(self, record: Record) -> None:
        """Note what was seen."""
        self.records.append(record)

    def of(self, kind: type[T]) -> Iterator[T]:
        """Iterate over the records of a ``kind``."""
        return (record for record in self.records if isinstance(record, kind))

    def faults(self) -> Iterator[Failed]:
        """Iterate over what was made to go wrong."""
        return self.of(Failed)

    def recovered(self) -> int:
        """Return how many lives of services began after another one had ended."""
        return sum(record.what.startswith("starts (") and record.what != "starts (1)" for record in self.of(Came))

    def lines(self) -> Iterator[str]:
        """Yield the records for people."""
        for record in self.records:
            yield f"{record.at:10.4f}  {record.who:<14} {record}"

    def digest(self) -> str:
        """Return what differs between two runs if anything does."""
        found = sha256()
        for record in self.records:
            found.update(repr(_ordered(record)).encode())
        found.update(repr(self.last).encode())
        return found.hexdigest()


def _ordered(record: Record) -> Any:
    """Return ``record`` without an order that means nothing: that of the cells in a commit."""
    if not isinstance(record, Committed):
        return record
    commit = record.commit
    cells = sorted((key, body) for key, body in commit.cells.items())
    return record.at, record.who, cells, replace(commit, cells={})


def _model(record: Announced | Accepted) -> str:
    place = f"epoch {record.epoch}, bulletin {record.bulletin}"
    return f"version {record.version} ({place}): {record.digest[:8]}"


def _what(commit: Commit) -> str:
    parts = [f"{record.update_id} {record.verdict}" for record in commit.records]
    parts += [f"{include.update_id} in version {include.version}" for include in commit.includes]
    parts += [f"version {version}: {digest[:8]}" for version, digest in commit.version_hashes.items()]
    parts += [f"release of version {release.version}" for release in commit.releases]
    return f"in epoch {commit.epoch}: {', '.join(parts) or 'cells alone'}"


def _short(body: bytes) -> str:
    return sha256(body).hexdigest()[:8]
