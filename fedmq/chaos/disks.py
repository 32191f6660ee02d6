"""Stores and outboxes on disks that may be full, and what was seen of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import sha256

from aggregator.errors import FencedError, StoreError
from aggregator.store import Commit, LedgerEntry, ReleasedBody, Store
from broker import codec
from broker.messages import Evaluation, ModelUpdate, contribution_id
from fedmq.chaos.history import Attempted, Committed, Fenced, History, TookOver
from participant.errors import OutboxError
from participant.outbox import Entry, Outbox


class DiskFull(StoreError):
    """The disk of a store is made to be full."""


class OutboxFull(OutboxError):
    """The disk of an outbox is made to be full."""


class ChaosStore:
    """A store, by ``who`` of several; what became durable is noted."""

    def __init__(
        self, store: Store, who: str, history: History, *, now: Callable[[], float], is_full: Callable[[], bool]
    ) -> None:
        self._store = store
        self._who = who
        self._history = history
        self._now = now
        self._is_full = is_full
        #: Whether the last commit had a release.
        self.has_released = False

    def cells(self) -> dict[str, bytes]:
        """Return what was kept of the state."""
        return self._store.cells()

    def take_over(self, above: int = 0) -> int:
        """Raise the epoch and return it."""
        self._check()
        epoch = self._store.take_over(above)
        self._history.add(TookOver(self._now(), self._who, epoch))
        return epoch

    def commit(self, commit: Commit) -> None:
        """Make ``commit`` durable."""
        self._check()
        try:
            self._store.commit(commit)
        except FencedError:
            self._history.add(Fenced(self._now(), self._who, commit.epoch))
            raise
        self.has_released = bool(commit.releases)
        self._history.add(Committed(self._now(), self._who, commit))

    def unconfirmed(self) -> list[ReleasedBody]:
        """Return the releases that no broker has confirmed yet."""
        return self._store.unconfirmed()

    def confirm(self, version: int) -> None:
        """Note that the release of ``version`` was confirmed."""
        self._check()
        self._store.confirm(version)

    def ledger(self) -> Iterator[LedgerEntry]:
        """Iterate over the contributions judged."""
        return self._store.ledger()

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of each version."""
        return self._store.versions()

    def defects(self) -> list[str]:
        """Return what is wrong with it."""
        return self._store.defects()

    def close(self) -> None:
        """Let go of it."""
        self._store.close()

    def _check(self) -> None:
        if self._is_full():
            raise DiskFull("the store could not be written (the disk is full)")


class ChaosOutbox(Outbox):
    """An outbox in memory whose salt follows from its incarnation: what is said of rows is the same in each run."""

    def __init__(self, owner: str, incarnation: str, history: History, *, now: Callable[[], float]) -> None:
        super().__init__(":memory:", owner=owner, incarnation=incarnation)
        self._owner = owner
        self._history = history
        self._now = now
        self.is_full = False
        #: Which of its site's tables is being computed from.
        self.table = 0

    @property
    def salt(self) -> str:
        """Of the fingerprint of the rows."""
        return f"salt of {self.incarnation}"

    def put(self, entry: Entry) -> None:
        """Keep ``entry``."""
        if self.is_full:
            raise OutboxFull("the outbox could not be written (the disk is full)")
        super().put(entry)
        message = codec.decode(entry.body)
        assert isinstance(message, ModelUpdate | Evaluation), "an outbox holds contributions"
        kind = "evaluation" if isinstance(message, Evaluation) else message.kind
        base = message.version if isinstance(message, Evaluation) else message.base_version
        self._history.add(
            Attempted(self._now(), self._owner, contribution_id(message), kind, base, self.table, entry.body)
        )


def digest(body: bytes) -> str:
    """Return the SHA-256 of ``body``."""
    return sha256(body).hexdigest()
