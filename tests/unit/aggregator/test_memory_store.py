"""What is particular to the store in memory: it is shared, and bounded."""

import pytest

from aggregator.errors import FencedError, StoreError
from aggregator.events import Include
from aggregator.store import Commit, ReleasedBody
from aggregator.store.memory import Memory, MemoryStore
from aggregator.testing import record


def test_several_share_a_memory_and_it_outlives_them() -> None:
    memory = Memory()
    old, new = MemoryStore(memory), MemoryStore(memory)
    old.commit(Commit(old.take_over(), {"a": b"1"}))
    assert new.take_over() == 2
    with pytest.raises(FencedError):
        old.commit(Commit(1, {"a": b"2"}))
    for store in (old, new):
        store.close()
    assert MemoryStore(memory).cells() == {"a": b"1"}
    assert MemoryStore().cells() == {}


def test_a_memory_that_went_back_underneath_is_not_written_over() -> None:
    memory = Memory()
    store = MemoryStore(memory)
    assert store.take_over(above=4) == 5
    store.commit(Commit(5, {"a": b"1"}))
    memory.epoch, memory.cells = 3, {"a": b"0"}
    with pytest.raises(StoreError, match="the store in memory is not as this aggregator left it: it has gone back"):
        store.commit(Commit(5, {"b": b"2"}))
    assert (memory.epoch, memory.cells) == (3, {"a": b"0"})
    store.commit(Commit(store.take_over(), {"b": b"2"}))
    assert (memory.epoch, memory.cells) == (4, {"a": b"0", "b": b"2"})


def test_what_is_given_out_is_not_what_is_kept() -> None:
    store = MemoryStore()
    store.commit(Commit(1, {"a": b"1"}, version_hashes={1: "x"}))
    store.cells().clear()
    store.versions().clear()
    assert (store.cells(), store.versions(), store.defects()) == ({"a": b"1"}, {1: "x"}, [])


def test_the_ledger_keeps_the_newest_and_what_still_waits_for_a_version() -> None:
    store = MemoryStore(keep_ledger=5)
    store.commit(Commit(1, {}, records=tuple(record(number) for number in (1, 2, 3, 4, 5, 6))))
    for number in range(7, 30):
        store.commit(Commit(1, {}, records=(record(number, verdict="stale"),), version_hashes={number: "x"}))
    waiting = [1, 2, 3, 4, 5, 6]
    assert [entry.base_version for entry in store.ledger()][:6] == waiting
    assert len(list(store.ledger())) == 6, "and nothing besides, where these are as many as may stay"
    assert list(store.versions()) == [25, 26, 27, 28, 29]
    store.commit(Commit(1, {}, includes=tuple(Include(f"a:i1:{number}", 30, 1.0) for number in waiting)))
    store.commit(Commit(1, {}, records=(record(30),)))
    assert [entry.base_version for entry in store.ledger()] == [3, 4, 5, 6, 30]


def test_of_releases_that_were_confirmed_the_newest_stay() -> None:
    memory = Memory()
    store = MemoryStore(memory)
    for version in range(1, 21):
        store.commit(Commit(1, {}, releases=(ReleasedBody(version, 1, b"x"),)))
        if version != 20:
            store.confirm(version)
    assert sorted(memory.releases) == [*range(4, 21)]
    assert [release.version for release in store.unconfirmed()] == [20]


def test_a_closed_store_is_told_in_a_sentence() -> None:
    store = MemoryStore()
    store.close()
    for use in (store.take_over, store.versions, store.defects, store.unconfirmed):
        with pytest.raises(StoreError, match="is closed"):
            use()
