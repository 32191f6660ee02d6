"""The store in memory, for a federation that need not outlive its process: the same promises, but for durability."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from aggregator.errors import StoreError
from aggregator.store import (
    KEPT_RELEASES,
    KEPT_ROWS,
    PRUNED_AT_ONCE,
    Commit,
    LedgerEntry,
    ReleasedBody,
    bad_include,
    bad_version,
    fenced,
    gone_back,
    is_settled,
)

_PLACE = "in memory"


@dataclass(slots=True, eq=False)
class Memory:
    """What stays when a store over it is closed: what a disk is to the others."""

    epoch: int = 0
    cells: dict[str, bytes] = field(default_factory=dict)
    ledger: dict[str, LedgerEntry] = field(default_factory=dict)
    versions: dict[int, str] = field(default_factory=dict)
    releases: dict[int, ReleasedBody] = field(default_factory=dict)
    confirmed: set[int] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore:
    """A store over ``memory``, which several may share; a new one where none is given."""

    def __init__(self, memory: Memory | None = None, *, keep_ledger: int = KEPT_ROWS) -> None:
        self._memory: Memory | None = memory or Memory()
        self._keep = keep_ledger
        #: The highest epoch that was ours.
        self._epoch: int | None = None

    def cells(self) -> dict[str, bytes]:
        """Return what was kept of the state; empty for a new federation."""
        return dict(self._open().cells)

    def take_over(self, above: int = 0) -> int:
        """Raise the epoch and return it: whoever holds an older one can commit nothing more."""
        memory = self._open()
        with memory.lock:
            memory.epoch = max(memory.epoch, above) + 1
            self._epoch = memory.epoch
            return memory.epoch

    def commit(self, commit: Commit) -> None:
        """Keep ``commit``, whole; raises `FencedError` or `StoreError`, and then nothing has changed."""
        memory = self._open()
        with memory.lock:
            if commit.epoch < memory.epoch:
                raise fenced(_PLACE)
            if self._epoch is not None and memory.epoch < self._epoch:
                raise gone_back(_PLACE)
            changed = _changed_entries(memory, commit)
            for version, digest in commit.version_hashes.items():
                if memory.versions.get(version, digest) != digest:
                    raise bad_version(version, _PLACE)
            # From here on nothing can fail.
            self._epoch = memory.epoch = commit.epoch
            for key, body in commit.cells.items():
                if body is None:
                    memory.cells.pop(key, None)
                else:
                    memory.cells[key] = body
            memory.ledger.update(changed)
            memory.versions.update(commit.version_hashes)
            for release in commit.releases:
                memory.releases[release.version] = release
                memory.confirmed.discard(release.version)
            self._prune(memory, len(commit.records))

    def _prune(self, memory: Memory, n_new: int) -> None:
        """Let go of the oldest; dictionaries are in the order of arrival."""
        n_over = min(len(memory.ledger) - self._keep, PRUNED_AT_ONCE * n_new)
        if n_over > 0:
            for entry in list(islice(filter(is_settled, memory.ledger.values()), n_over)):
                del memory.ledger[entry.update_id]
        while len(memory.versions) > self._keep:
            del memory.versions[next(iter(memory.versions))]

    def unconfirmed(self) -> list[ReleasedBody]:
        """Return the releases that no broker has confirmed yet, oldest first."""
        memory = self._open()
        return [memory.releases[version] for version in sorted(memory.releases.keys() - memory.confirmed)]

    def confirm(self, version: int) -> None:
        """Note that the release of ``version`` was confirmed, and each older one; not from one that is fenced."""
        memory = self._open()
        with memory.lock:
            if self._epoch is None or self._epoch >= memory.epoch:
                memory.confirmed.update(each for each in memory.releases if each <= version)
            for old in sorted(memory.confirmed)[:-KEPT_RELEASES]:
                del memory.releases[old]
                memory.confirmed.remove(old)

    def ledger(self) -> Iterator[LedgerEntry]:
        """Iterate over the contributions judged, in the order of arrival."""
        yield from list(self._open().ledger.values())

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of each version."""
        return dict(sorted(self._open().versions.items()))

    def defects(self) -> list[str]:
        """Return nothing: what is in memory is what was written."""
        self._open()
        return []

    def close(self) -> None:
        """Let go of the memory."""
        self._memory = None

    def _open(self) -> Memory:
        if self._memory is None:
            raise StoreError("the store in memory is closed: open another one")
        return self._memory


def _changed_entries(memory: Memory, commit: Commit) -> dict[str, LedgerEntry]:
    """Return the entries that ``commit`` adds or changes; raises `StoreError`."""
    changed: dict[str, LedgerEntry] = {}
    for r in commit.records:
        if r.update_id not in memory.ledger and r.update_id not in changed:
            changed[r.update_id] = LedgerEntry(
                r.update_id, r.participant, r.kind, r.base_version, r.version, r.verdict, r.digest, None, None
            )
    for include in commit.includes:
        entry = changed.get(include.update_id) or memory.ledger.get(include.update_id)
        if entry is None or entry.included_in is not None:
            raise bad_include(include, _PLACE)
        changed[include.update_id] = replace(entry, included_in=include.version, weight=include.weight)
    return changed
