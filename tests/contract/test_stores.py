"""The stores sit the examination that we ship for others; the one with a file is also killed at random moments."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from servers.postgresql import PostgreSQL

from aggregator.store import Store
from aggregator.store.memory import Memory, MemoryStore
from aggregator.store.postgresql import PostgreSQLStore
from aggregator.store.sqlite import SQLiteStore
from aggregator.testing import StoreContract


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    """Run PostgreSQL for this file."""
    with PostgreSQL() as server:
        yield server


class TestMemory(StoreContract):
    @pytest.fixture(autouse=True)
    def _memories(self) -> None:
        self.memories: dict[Path, Memory] = {}

    def open_store(self, folder: Path) -> Store:
        return MemoryStore(self.memories.setdefault(folder, Memory()))


@pytest.mark.postgresql
class TestPostgreSQL(StoreContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: PostgreSQL) -> None:
        self.server = server

    def open_store(self, folder: Path) -> Store:
        # A federation for each test: a folder's name in small letters and digits.
        return PostgreSQLStore(self.server.url(), f"f{sha256(str(folder).encode()).hexdigest()[:16]}")


class TestSQLiteFile(StoreContract):
    def open_store(self, folder: Path) -> Store:
        return SQLiteStore(folder / "federation.sqlite", "heart")


class TestSQLiteInMemory(StoreContract):
    durable = False

    def open_store(self, folder: Path) -> Store:
        return SQLiteStore(":memory:", "heart")


def test_the_contract_asks_for_a_store(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="open_store"):
        StoreContract().open_store(tmp_path)


#: Commits numbered versions for ever, each with everything that a commit can have, and says when one has returned.
COMMITS = """
import sys
from aggregator.events import Include, Record
from aggregator.store import Commit, ReleasedBody
from aggregator.store.sqlite import SQLiteStore

store = SQLiteStore(sys.argv[1], "heart")
number = int(store.cells().get("progress", b"0"))
while True:
    number += 1
    store.commit(Commit(
        epoch=1,
        cells={"progress": b"%d" % number, "weights": b"%d," % number * 20_000, f"held/{number}": b"x",
               f"held/{number - 1}": None},
        records=(Record(f"a:i:{number}", "a", "weights", 0, number, "accepted", "digest"),),
        includes=(Include(f"a:i:{number}", number, 1.0),),
        version_hashes={number: str(number)},
        releases=(ReleasedBody(number, 1, b"%d" % number),),
    ))
    print(number, flush=True)
"""


def committed_until_killed(path: Path, after_seconds: float) -> int:
    """Let a process commit, kill it in the midst of it, and return the last number whose commit had returned to it."""
    with subprocess.Popen([sys.executable, "-c", COMMITS, path], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        assert first, "the process commits"
        time.sleep(after_seconds)  # a random moment; nothing is waited for
        child.kill()
        said = [first, *child.stdout.read().splitlines(keepends=True)]
    # The last line may be cut off.
    return int([line for line in said if line.endswith(b"\n")][-1])


def test_after_a_kill_at_any_moment_the_file_holds_exactly_what_was_committed_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "federation.sqlite"
    rng = random.Random(4)
    for _ in range(8):
        said = committed_until_killed(path, rng.uniform(0.0, 0.1))
        store = SQLiteStore(path, "heart")
        cells = store.cells()
        last = int(cells["progress"])
        # The last commit may have been made and not been told of; an earlier one cannot.
        assert last in {said, said + 1}
        assert cells == {"progress": b"%d" % last, "weights": b"%d," % last * 20_000, f"held/{last}": b"x"}
        numbers = list(range(1, last + 1))
        ledger = list(store.ledger())
        assert [(entry.version, entry.included_in) for entry in ledger] == [(n, n) for n in numbers]
        assert store.versions() == {n: str(n) for n in numbers}
        assert [release.version for release in store.unconfirmed()] == numbers
        store.close()
