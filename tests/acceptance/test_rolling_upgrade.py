"""A federation is upgraded while it trains: processes of the former version and of this one, over a real broker."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from servers.federation import ServiceProcess, wait_until
from servers.processes import free_port

from broker.messages import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Sequence

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.acceptance, pytest.mark.rabbitmq, pytest.mark.fault("F43"), pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "heart_disease"
FORMER = ROOT / "tests" / "data" / "former" / "schema-3.tar.xz"
FIT = json.loads((ROOT / "tests" / "data" / "heart_disease" / "expected.json").read_text())["fits"]["lambda=0.01"]
SITES = ("cleveland", "hungarian", "switzerland", "va")
ROUNDS = {"strategy": "fedavg", "max_versions": 40, "tolerance": 0.0, "patience": 1000}


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the former version's packages."""
    folder = tmp_path_factory.mktemp("former")
    with tarfile.open(FORMER) as archive:
        archive.extractall(folder, filter="data")
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import broker.messages as m; print(m.SCHEMA, m.__file__)"],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert found.split() == ["3", str(folder / "broker" / "messages.py")]
    assert SCHEMA > 3
    return folder


class Federation:
    """The services of one federation, each of the version that it was started in last."""

    def __init__(self, vhost: VHost, folder: Path, former: Path, **rules: object) -> None:
        self.folder = folder
        self._url = vhost.amqp_url()
        self._versions = {"former": former, "ours": ROOT}
        self._rules = {"participants": ",".join(SITES), "senders": "shared", "l2": 0.01, **rules}
        self._stack = ExitStack()
        self._services: dict[str, ServiceProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> ServiceProcess:
        return self._services[name]

    def start_aggregator(self, version: str) -> None:
        self._start("aggregator", "aggregator", version, {**self._rules, "out": self.model, "exit_after_release": True})

    def start(self, version: str, sites: Sequence[str] = SITES, **settings: object) -> None:
        for name in sites:
            rows = {"name": name, "data": DATA / f"site-{name}.csv", "label": "y", "split": "split"}
            self._start("participant", name, version, {**rows, "aggregator_user": "tester", **settings})

    def _start(self, command: str, name: str, version: str, settings: dict[str, object]) -> None:
        port = free_port()
        common = {"broker": self._url, "state_dir": self.folder, "metrics_port": port}
        environment = {f"FEDMQ_{key.upper()}": str(value) for key, value in {**common, **settings}.items()}
        environment["PYTHONPATH"] = str(self._versions[version])
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        process = ServiceProcess(f"{name}-{version}", [command], environment, self.folder, port)
        self._services[name] = self._stack.enter_context(process)

    def kill(self, name: str) -> None:
        self[name].send(signal.SIGKILL)
        self[name].ended()

    def wait_for_version(self, wanted: int) -> None:
        wait_until(lambda: self.version >= wanted, f"version {wanted}; the aggregator says\n{self['aggregator'].log()}")

    @property
    def version(self) -> int:
        return max((row["version"] for row in self.stored("SELECT version FROM versions")), default=-1)

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def released(self) -> dict[str, Any]:
        """Return the model once the aggregator has ended with it."""
        assert self["aggregator"].ended() == 0, self["aggregator"].log()
        found: dict[str, Any] = json.loads((self.model / "model.json").read_text())
        return found

    def stored(self, query: str, name: str = "aggregator") -> list[sqlite3.Row]:
        """Return what a service's state file says; nothing before there is one."""
        path = self.folder / f"{name}.sqlite"
        if not path.exists():
            return []
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)) as database:
            database.row_factory = sqlite3.Row
            try:
                return database.execute(query).fetchall()
            except sqlite3.OperationalError:  # its tables are being made
                return []

    def layout(self, name: str) -> str:
        (row,) = self.stored("SELECT value FROM meta WHERE key = 'layout'", name)
        return str(row["value"])

    def nothing_is_lost_or_counted_twice(self) -> None:
        rows = self.stored("SELECT * FROM ledger")
        included = [(row["participant"], row["base_version"]) for row in rows if row["included_in"] is not None]
        assert len(included) == len(set(included)) > 0
        versions = [row["version"] for row in self.stored("SELECT version FROM versions ORDER BY version")]
        assert versions == list(range(len(versions)))
        for name in SITES:
            numbers = sorted(int(row["update_id"].rpartition(":")[2]) for row in rows if row["participant"] == name)
            assert numbers == list(range(1, len(numbers) + 1)), f"each number that {name} used has a verdict"


def is_the_pooled_fit(model: dict[str, Any]) -> None:
    assert model["converged"]
    assert np.abs(np.array(model["weights"]) - FIT["w"]).max() <= 1e-8
    assert abs(model["intercept"] - FIT["b"]) <= 1e-8


@pytest.mark.parametrize("aggregator", ["ours", "former"])
def test_participants_of_both_versions_train_with_either_aggregator_to_the_pooled_fit(
    vhost: VHost, tmp_path: Path, former: Path, aggregator: str
) -> None:
    with Federation(vhost, tmp_path, former) as federation:
        federation.start_aggregator(aggregator)
        federation.start("former", SITES[:2])
        federation.start("ours", SITES[2:])
        model = federation.released()
        federation.nothing_is_lost_or_counted_twice()
    is_the_pooled_fit(model)


def test_our_aggregator_takes_up_the_state_of_a_former_one_that_was_killed_in_the_middle_of_a_training(
    vhost: VHost, tmp_path: Path, former: Path
) -> None:
    with Federation(vhost, tmp_path, former) as federation:
        federation.start_aggregator("former")
        federation.start("former", least_fit_seconds=0.2)
        federation.wait_for_version(5)
        federation.kill("aggregator")
        before = {row["update_id"]: tuple(row) for row in federation.stored("SELECT * FROM ledger")}
        assert federation.layout("aggregator") == "1"
        hashes = [tuple(row) for row in federation.stored("SELECT version, hash FROM versions")]
        federation.start_aggregator("ours")
        model = federation.released()
        after = {row["update_id"]: tuple(row)[1:] for row in federation.stored("SELECT * FROM ledger")}
        federation.nothing_is_lost_or_counted_twice()
        kept = [tuple(row) for row in federation.stored("SELECT version, hash FROM versions")]
    is_the_pooled_fit(model)
    assert model["epoch"] == 2
    assert set(hashes) < set(kept)
    assert all(after[update_id][:7] == row[:7] for update_id, row in before.items())


def test_participants_are_upgraded_one_by_one_and_each_takes_up_its_outbox_and_the_model_is_the_quiet_runs(
    vhost: VHost, tmp_path: Path, former: Path
) -> None:
    quiet = tmp_path / "quiet"
    options = [word for name, value in ROUNDS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    rows = ["--data", str(DATA), "--label", "y", "--split", "split", "--l2", "0.01"]
    training = subprocess.Popen(
        [sys.executable, "-m", "fedmq", "train", *rows, *options, "--out", str(quiet), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Federation(vhost, tmp_path, former, **ROUNDS) as federation:
        federation.start_aggregator("ours")
        federation.start("former", least_fit_seconds=0.1)
        sent = {}
        for number, name in enumerate(SITES):
            federation.wait_for_version(5 * (number + 1))
            federation.kill(name)
            assert federation.layout(name) == "1"
            (entry,) = federation.stored("SELECT sequence, body FROM outbox", name)
            (incarnation,) = federation.stored("SELECT value FROM meta WHERE key = 'incarnation'", name)
            sent[f"{name}:{incarnation['value']}:{entry['sequence']}"] = sha256(entry["body"]).hexdigest()
            assert federation.version < ROUNDS["max_versions"]
            federation.start("ours", [name], least_fit_seconds=0.1)
        model = federation.released()
        ledger = federation.stored("SELECT * FROM ledger")
        assert {federation.layout(name) for name in SITES} == {"2"}
        federation.nothing_is_lost_or_counted_twice()
    printed, told = training.communicate(timeout=60)
    assert training.returncode == 0, told
    assert model["weights"] == json.loads(printed)["weights"]
    assert model["intercept"] == json.loads(printed)["intercept"]
    digests = {row["update_id"]: row["digest"] for row in ledger}
    assert {update_id: digests[update_id] for update_id in sent} == sent
    assert len({row["update_id"].rpartition(":")[0] for row in ledger}) == len(SITES), "no site counts as a new one"


def test_our_aggregator_that_is_started_beside_a_former_one_ends_it_and_goes_on_in_its_place(
    vhost: VHost, tmp_path: Path, former: Path
) -> None:
    with Federation(vhost, tmp_path, former) as federation:
        federation.start_aggregator("former")
        federation.start("former", least_fit_seconds=0.2)
        federation.wait_for_version(5)
        before = federation["aggregator"]  # the new one waits for its turn, and gives the file its own layout at once
        federation.start_aggregator("ours")
        assert before.ended() == 1
        assert "could not be written" in before.log().splitlines()[-1]
        model = federation.released()
        federation.nothing_is_lost_or_counted_twice()
    is_the_pooled_fit(model)
