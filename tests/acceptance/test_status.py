"""`fedmq status`: whether a service is stuck, or just slow."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING

import pytest
from command import Ended, run_command, without_settings
from servers.federation import service, wait_until
from servers.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from servers.rabbitmq import VHost

    Status = Callable[..., Ended]

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

DATA = Path(__file__).parents[2] / "examples" / "heart_disease"


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Status:
    without_settings(monkeypatch)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # of services beside us nobody else is asked
    return lambda *arguments: run_command(monkeypatch, capsys, "status", *arguments)


@contextmanager
def somebody_else(body: bytes, code: int = 200) -> Iterator[str]:
    """Yield the address of a server that is no service of ours."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.mark.rabbitmq
def test_a_site_that_dies_is_named_and_what_is_waited_for_is_said(vhost: VHost, tmp_path: Path, status: Status) -> None:
    common = {"broker": vhost.amqp_url(), "heartbeat_seconds": 1, "federation": "hearts", "max_versions": 1_000_000}
    site = {"label": "y", "split": "split", "aggregator_user": "tester", "least_fit_seconds": 0.1}
    names = ("cleveland", "va")
    aggregator = service(
        "aggregator",
        "aggregator",
        {**common, "participants": ",".join(names), "senders": "shared", "strategy": "fedavg", "patience": 1_000_000},
        tmp_path,
    )
    sites = {
        name: service(
            name, "participant", {**common, **site, "name": name, "data": DATA / f"site-{name}.csv"}, tmp_path
        )
        for name in names
    }
    at_aggregator = f"127.0.0.1:{aggregator.port}"
    with aggregator, sites["cleveland"]:
        aggregator.wait_until_ready()
        wait_until(lambda: "waits for the hello of va (" in status(at_aggregator).out, "cleveland is known")
        said = status(at_aggregator)
        assert said.code == 0
        assert said.out.startswith("hearts: enrolling, version 0 (fedavg, term 1)\n")
        assert "it has not said hello" in said.out
        with sites["va"]:
            wait_until(lambda: "hearts: training" in status(at_aggregator).out, "both train")
            at_site = f"127.0.0.1:{sites['va'].port}"
            assert status(at_site).out.startswith("va in hearts: ")
            assert json.loads(status(at_site, "--json").out)["service"] == "participant"
            sites["va"].send(SIGKILL)
            wait_until(lambda: "nobody waits for it" in status(at_aggregator).out, "va is silent")
        document = json.loads(status(at_aggregator, "--json").out)
    found = {each["name"]: each for each in document["sites"]}
    assert found["va"]["state"] == "silent"
    assert found["va"]["heard_seconds_ago"] >= 3.5
    assert found["cleveland"]["state"] == "live"
    assert document["missing"] == {}


@pytest.mark.rabbitmq
def test_an_aggregator_that_waits_for_its_turn_says_so(vhost: VHost, tmp_path: Path, status: Status) -> None:
    common = {"broker": vhost.amqp_url(), "participants": "va", "senders": "shared"}
    first, second = (service(name, "aggregator", common, tmp_path) for name in ("first", "second"))
    with first:
        first.wait_until_ready()
        wait_until(lambda: "enrolling" in status(f"127.0.0.1:{first.port}").out, "the first one serves")
        with second:
            second.wait_until_ready()
            said = status(f"127.0.0.1:{second.port}")
    assert said == Ended(0, "it waits for its turn: another aggregator serves\n", "")


def test_a_service_whose_broker_is_away_says_so(tmp_path: Path, status: Status) -> None:
    away = {"broker": f"amqp://guest:guest@127.0.0.1:{free_port()}/", "participants": "va", "senders": "shared"}
    with service("aggregator", "aggregator", away, tmp_path) as aggregator:
        wait_until(lambda: "not ready, broker: " in status(f"127.0.0.1:{aggregator.port}").out, "the broker is missed")


def test_where_nobody_answers_there_is_a_sentence(status: Status) -> None:
    said = status(f"127.0.0.1:{free_port()}")
    assert said.code == 2
    assert said.err.startswith("fedmq: nobody answers at http://127.0.0.1:")
    assert "metrics_port" in said.err


@pytest.mark.parametrize("address", ["9464", "http://", "ftp://127.0.0.1:1", "127.0.0.1:high", "127.0.0.1:99999999"])
def test_what_is_no_address_is_refused(status: Status, address: str) -> None:
    assert (status(address).code, "write HOST:PORT" in status(address).err) == (2, True)


@pytest.mark.parametrize(
    ("body", "code"), [(b"<html>", 200), (b"[]", 200), (b'{"service": "else"}', 200), (b"no", 404)]
)
def test_somebody_else_at_that_port_is_told_apart(status: Status, body: bytes, code: int) -> None:
    with somebody_else(body, code) as address:
        said = status(address)
    assert (said.code, said.out) == (2, "")
    assert "no service of this version of fedmq" in said.err
