"""The services as processes: what they do when the broker is away or refuses them, and when they are asked to end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "heart_disease"
LIMIT_SECONDS = 40.0
PASSWORD = "pl@nted-s3cret"


class Process:
    """A service whose log lines are read while it runs."""

    def __init__(self, command: str, folder: Path, **settings: str) -> None:
        environment = {f"FEDMQ_{name.upper()}": value for name, value in settings.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fedmq", command],
            cwd=ROOT,
            env={**os.environ, "FEDMQ_STATE_DIR": str(folder), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._grown:
                self.lines.append(line)
                self._grown.notify_all()

    def event(self, name: str) -> dict[str, Any]:
        """Return the first log line of an event, waiting for it."""
        deadline = time.monotonic() + LIMIT_SECONDS
        with self._grown:
            while True:
                for line in self.lines:
                    if line.startswith("{") and json.loads(line)["event"] == name:
                        return json.loads(line)
                assert self._grown.wait(deadline - time.monotonic()), f"no {name} in:\n{''.join(self.lines)}"

    def get(self, path: str) -> tuple[int, str]:
        port = self.event("metrics_served")["port"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(LIMIT_SECONDS)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextmanager
def process(command: str, folder: Path, **settings: str) -> Iterator[Process]:
    running = Process(command, folder, **settings)
    try:
        yield running
    finally:
        running.process.kill()
        running.wait()


@contextmanager
def a_port_that_nobody_listens_on() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


AGGREGATOR = {"participants": "cleveland", "senders": "shared"}
CLEVELAND = {"name": "cleveland", "data": str(DATA / "site-cleveland.csv"), "label": "y", "split": "split"}
SERVICES = [pytest.param("aggregator", AGGREGATOR, id="aggregator"), pytest.param("participant", CLEVELAND, id="site")]


@pytest.mark.parametrize(("command", "settings"), SERVICES)
def test_a_service_keeps_trying_when_the_broker_is_away_and_says_so_and_is_not_ready(
    tmp_path: Path, command: str, settings: dict[str, str]
) -> None:
    with a_port_that_nobody_listens_on() as port:
        url = f"amqp://site:{PASSWORD.replace('@', '%40')}@127.0.0.1:{port}/"
        with process(command, tmp_path, broker=url, **settings) as service:
            assert str(port) in service.event("broker_unreachable")["detail"]
            code, body = service.get("/readyz")
            assert code == 503
            assert str(port) in body
            assert service.get("/healthz")[0] == 200
            assert service.end() == 0
            output = "".join(service.lines)
    assert "pl@nted" not in output
    assert "pl%40nted" not in output


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("command", "settings"), SERVICES)
def test_refused_credentials_end_a_service_at_its_first_start_with_one_sentence(
    vhost: VHost, tmp_path: Path, command: str, settings: dict[str, str]
) -> None:
    vhost.amqp_url(user="site")
    url = vhost.url(user="site", password="wr0ng-s3cret")
    with process(command, tmp_path, broker=url, **settings) as service:
        assert service.wait() == 2
        *_, last = service.lines
    assert last.startswith("fedmq: ")
    assert "site" in last
    assert "wr0ng" not in "".join(service.lines)
    assert "Traceback" not in "".join(service.lines)


@pytest.mark.rabbitmq
@pytest.mark.fault("F40")
def test_services_are_ready_when_they_serve_and_end_in_order_when_told_to(vhost: VHost, tmp_path: Path) -> None:
    url = vhost.amqp_url()
    site = {**CLEVELAND, "aggregator_user": "tester", "least_fit_seconds": "0.2"}
    with (
        process("aggregator", tmp_path, broker=url, **AGGREGATOR) as aggregator,
        process("participant", tmp_path, broker=url, **site) as participant,
    ):
        aggregator.event("participant_said_hello")
        participant.event("participant_started")
        assert aggregator.get("/readyz")[0] == 200
        assert participant.get("/readyz")[0] == 200
        assert "fedmq_model_version" in aggregator.get("/metrics")[1]
        assert participant.end() == 0
        assert aggregator.event("participant_left")["participant"] == "cleveland"
        assert aggregator.end() == 0


@pytest.mark.rabbitmq
def test_an_aggregator_writes_each_released_model_to_its_folder(vhost: VHost, tmp_path: Path) -> None:
    url = vhost.amqp_url()
    settings = {**AGGREGATOR, "out": str(tmp_path / "model"), "max_versions": "5"}
    site = {**CLEVELAND, "aggregator_user": "tester"}
    with (
        process("aggregator", tmp_path, broker=url, **settings) as aggregator,
        process("participant", tmp_path, broker=url, **site),
    ):
        assert aggregator.event("model_released")["version"] == 5
    model = json.loads((tmp_path / "model" / "model.json").read_text())
    assert model["version"] == 5
    assert model["participants"][0]["updates_included"] == 5
