"""``fedmq aggregator --check-store``: a store after a training is right, and whatever is not as it was is named."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aggregator.settings import AggregatorSettings
from aggregator.store.sqlite import SQLiteStore
from aggregator.strategies import Contribution
from broker import codec
from broker.checksum import with_checksum
from fedmq import embedded
from fedmq.sites import find_sites
from participant.sources import Columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "heart_disease"
FILE = "aggregator.sqlite"


def check(folder: Path, *more: str, federation: str = "federation") -> subprocess.CompletedProcess[str]:
    given = ["--federation", federation, "--participants", "cleveland,hungarian,switzerland,va"]
    command = [sys.executable, "-m", "fedmq", "aggregator", "--check-store", *given, "--state-dir", str(folder), *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def trained_into(folder: Path, **options: Any) -> Path:
    """Train over the demo's sites, with the store in a file, and return its folder."""
    sites = find_sites([DATA], Columns("y", "split"))
    settings = AggregatorSettings(participants=[site.name for site in sites], exit_after_release=True, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "MemoryStore", lambda **_: SQLiteStore(folder / FILE, settings.federation))
        train = embedded.train_embedded(sites, settings, slow={}, least_fit_seconds=0.0, on_progress=lambda _: None)
        asyncio.run(asyncio.wait_for(train, 60))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_into(tmp_path_factory.mktemp("state"), strategy="fedavg", max_versions=12, tolerance=0.0)


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """Give a copy of a good store, to be spoilt."""
    shutil.copytree(trained, tmp_path / "state")
    return tmp_path / "state"


FEDAVG = ("--strategy", "fedavg")


def test_a_store_after_a_training_is_right_and_its_last_model_is_made_again(folder: Path) -> None:
    before = (folder / FILE).read_bytes()
    done = check(folder, *FEDAVG)
    assert done.returncode == 0, done.stderr
    assert "version 12 from 4 contributions: the same bytes" in done.stdout
    assert "all of it is right" in done.stdout
    report = json.loads(check(folder, *FEDAVG, "--json").stdout)
    assert (report["version"], report["versions"], report["included"], report["defects"]) == (12, 13, 48, [])
    assert (folder / FILE).read_bytes() == before


@pytest.mark.parametrize("strategy", ["incremental-newton", "scaffold", "fedbuff"])
def test_strategies_that_keep_something_of_their_own_make_their_last_model_again(tmp_path: Path, strategy: str) -> None:
    trained_into(tmp_path, strategy=strategy, max_versions=9)
    done = check(tmp_path, "--strategy", strategy)
    assert done.returncode == 0, done.stdout
    assert "the same bytes" in done.stdout


def spoilt(folder: Path, statement: str, values: Sequence[Any] = ()) -> None:
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        assert database.execute(statement, values).rowcount > 0


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("cells", "body = CAST(body || x'00' AS BLOB) WHERE key = 'weights'"),
        ("ledger", "weight = weight * 1.001 WHERE included_in = 3"),
        ("versions", "hash = 'another' WHERE version = 4"),
        ("releases", "epoch = 9"),
        ("meta", "value = '0' WHERE key = 'epoch'"),
    ],
)
def test_a_row_that_is_not_what_was_written_is_named(folder: Path, table: str, change: str) -> None:
    spoilt(folder, f"UPDATE {table} SET {change}")  # noqa: S608 - the change is ours
    done = check(folder, *FEDAVG)
    assert done.returncode == 1
    assert f"in table {table}, what stands at" in done.stdout + done.stderr
    assert "restore the newest backup" in done.stderr
    assert "Traceback" not in done.stderr


def rewritten(folder: Path, where: str, **changes: Any) -> None:
    """Change a row of the ledger and give it the checksum that it would have had."""
    with closing(sqlite3.connect(folder / FILE)) as database, database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute(f"SELECT * FROM ledger WHERE {where}").fetchone())  # noqa: S608 - ours
        position = row.pop("position")
        del row["checksum"]
        values = with_checksum(*(row | changes).values())
        database.execute("DELETE FROM ledger WHERE position = ?", (position,))
        database.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (position, *values))


@pytest.mark.parametrize(
    ("where", "changes", "words"),
    [
        ("included_in = 12", {"weight": 0.5}, "made of other contributions, or weights"),
        ("included_in = 12", {"included_in": 11}, "came at version 11 and is in version 11"),
        ("included_in = 5", {"verdict": "stale"}, "was not accepted for one"),
        ("included_in = 5", {"included_in": None, "weight": None}, "by its counter, in 11 by the ledger"),
        ("included_in = 5", {"included_in": 99}, "is in version 99"),
    ],
)
def test_a_ledger_that_does_not_agree_with_the_state_is_told(
    folder: Path, where: str, changes: dict[str, Any], words: str
) -> None:
    rewritten(folder, where, **changes)
    done = check(folder, *FEDAVG)
    assert done.returncode == 1
    assert words in done.stdout


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM versions WHERE version = 6", "version 6 is missing"),
        ("DELETE FROM versions WHERE version = 12", "the table of versions ends with 11"),
        ("DELETE FROM ledger WHERE included_in = 7", "by its counter, in 11 by the ledger"),
        ("DELETE FROM ledger", "and the ledger's is 0"),
        ("DELETE FROM cells WHERE key = 'recipe-weights'", "the cells of the state cannot be read"),
        ("DELETE FROM cells WHERE key LIKE 'member/va'", "in the ledger, va is no member"),
    ],
)
def test_what_is_missing_is_told(folder: Path, statement: str, words: str) -> None:
    spoilt(folder, statement)
    done = check(folder, *FEDAVG)
    assert done.returncode == 1
    assert words in done.stdout


def test_a_hash_that_is_not_that_of_the_weights_is_told(folder: Path) -> None:
    spoilt(folder, "INSERT OR REPLACE INTO versions VALUES (?, ?, ?)", with_checksum(12, "0" * 64))
    done = check(folder, *FEDAVG)
    assert done.returncode == 1
    assert "the weights are not those of version 12" in done.stdout


def test_a_model_that_comes_out_differently_is_told(folder: Path) -> None:
    with closing(sqlite3.connect(folder / FILE)) as database:
        (body,) = database.execute("SELECT body FROM cells WHERE key = 'recipe-held/va'").fetchone()
    held = codec.unpack(Contribution, body)
    other = codec.pack(replace(held, arrays={"weights": held.arrays["weights"] + 1e-4}))
    spoilt(folder, "INSERT OR REPLACE INTO cells VALUES (?, ?, ?)", with_checksum("recipe-held/va", other))
    done = check(folder, *FEDAVG)
    assert done.returncode == 1
    assert "version 12, made again, is another model" in done.stdout


@pytest.mark.parametrize(
    ("more", "federation", "code", "words"),
    [
        (("--strategy", "fedbuff"), "federation", 2, "trains with fedavg, the settings say fedbuff"),
        (FEDAVG, "lungs", 1, "is not that of federation 'lungs'"),
    ],
)
def test_other_settings_than_the_services_are_told(
    folder: Path, more: tuple[str, ...], federation: str, code: int, words: str
) -> None:
    done = check(folder, *more, federation=federation)
    assert (done.returncode, words in done.stderr) == (code, True), done.stderr


def test_a_store_that_nobody_has_joined_is_right(tmp_path: Path) -> None:
    SQLiteStore(tmp_path / FILE, "federation").close()
    done = check(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recomputed"] == "nothing: no version is made yet"


def test_where_there_is_no_store_nothing_is_made(tmp_path: Path) -> None:
    done = check(tmp_path / "nowhere")
    assert done.returncode == 1
    assert "there is no store" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.rabbitmq
def test_a_store_whose_aggregator_was_killed_is_right(vhost: VHost, tmp_path: Path) -> None:
    state = tmp_path / "state"
    given = ["--data", str(DATA), "--label", "y", "--split", "split", "--out", str(tmp_path / "model")]
    options = ["--state", str(state), "--fit-seconds", "0.05", *FEDAVG, "--max-versions", "30", "--tolerance", "0"]
    training = subprocess.Popen(
        [sys.executable, "-m", "fedmq", "train", *given, *options, "--patience", "1000"],
        cwd=ROOT,
        env={**os.environ, "FEDMQ_BROKER": vhost.amqp_url()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for_version(state, 8, training)
    os.kill(int((state / "aggregator.pid").read_text()), signal.SIGKILL)
    _, told = training.communicate(timeout=100)
    assert training.returncode == 0, told
    [(federation,)] = _asked(state, "SELECT value FROM meta WHERE key = 'federation'")
    done = check(state, *FEDAVG, federation=federation)
    assert done.returncode == 0, done.stdout
    assert "version 30 from 4 contributions: the same bytes" in done.stdout


def _wait_for_version(state: Path, wanted: int, training: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and training.poll() is None:
        found = _asked(state, "SELECT MAX(version) FROM versions")
        if found and found[0][0] is not None and found[0][0] >= wanted and (state / "aggregator.pid").exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"version {wanted} did not come")


def _asked(state: Path, query: str) -> list[Any]:
    if not (state / FILE).exists():
        return []
    with closing(sqlite3.connect(f"file:{state / FILE}?mode=ro", uri=True, timeout=5)) as database:
        return database.execute(query).fetchall()
