from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from monitoring import Health, MetricsServer, MonitoringError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(["broker", "store"], clock=clock)


@pytest.fixture
def server(health: Health) -> Iterator[MetricsServer]:
    registry = CollectorRegistry()
    Gauge("answer", "to everything", registry=registry).set(42)
    with MetricsServer(registry, health) as server:
        yield server


def get(server: MetricsServer, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def get_json(server: MetricsServer, path: str) -> tuple[int, Any]:
    status, body = get(server, path)
    return status, json.loads(body)


def test_metrics_are_served(server: MetricsServer) -> None:
    status, body = get(server, "/metrics")
    assert status == 200
    assert "answer 42.0" in body


def test_a_beating_loop_is_alive(server: MetricsServer, health: Health, clock: Clock) -> None:
    clock.now = 150.0
    health.beat(149.0)
    assert get_json(server, "/healthz") == (200, {"alive": True, "why": "The event loop beat 1.0 s ago."})


def test_a_beat_without_a_time_is_now(server: MetricsServer, health: Health, clock: Clock) -> None:
    clock.now = 150.0
    health.beat()
    assert health.liveness() == (True, "The event loop beat 0.0 s ago.")


def test_a_blocked_loop_is_reported_although_it_cannot_answer(server: MetricsServer, clock: Clock) -> None:
    clock.now = 110.0
    status, body = get_json(server, "/healthz")
    assert (status, body["alive"]) == (503, False)
    assert body["why"].startswith("The event loop has not beaten for 10.0 s (limit 10 s)")


def test_nothing_is_ready_until_told(server: MetricsServer) -> None:
    why = {"broker": "It has not been reported yet.", "store": "It has not been reported yet."}
    assert get_json(server, "/readyz") == (503, {"ready": False, "why": why})


def test_a_health_without_conditions_is_not_ready_until_one_is_reported() -> None:
    health = Health()
    assert health.readiness() == (False, {"start": "The service has not finished starting."})
    health.ready("broker")
    assert health.readiness() == (True, {})


def test_each_condition_that_does_not_hold_says_why_and_hides_passwords(server: MetricsServer, health: Health) -> None:
    health.ready("store")
    health.not_ready("broker", "There is no connection to amqp://va:hunter2@broker/fedmq.")
    why = {"broker": "There is no connection to amqp://va:***@broker/fedmq."}
    assert get_json(server, "/readyz") == (503, {"ready": False, "why": why})
    health.ready("broker")
    assert get_json(server, "/readyz") == (200, {"ready": True, "why": {}})


def test_other_paths_are_not_found(server: MetricsServer) -> None:
    assert get_json(server, "/secrets") == (404, {"why": "There are /metrics, /healthz, /readyz and /status here."})


def test_the_status_is_what_the_service_says_and_what_is_missing(health: Health, clock: Clock) -> None:
    health.ready("store")
    with MetricsServer(CollectorRegistry(), health, standing=lambda: {"phase": "training"}) as server:
        missing = {"broker": "It has not been reported yet."}
        assert get_json(server, "/status") == (200, {"phase": "training", "missing": missing})
        clock.now = 150.0
        assert "has not beaten for 50.0 s" in get_json(server, "/status")[1]["missing"]["loop"]


def test_requests_leave_no_line_on_stderr(server: MetricsServer, capfd: pytest.CaptureFixture[str]) -> None:
    get(server, "/healthz")
    get(server, "/nowhere")
    assert capfd.readouterr() == ("", "")


def test_a_peer_that_says_nothing_is_dropped_in_silence(
    server: MetricsServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server._server is not None
    monkeypatch.setattr(server._server.RequestHandlerClass, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as peer:
        assert peer.recv(1) == b""  # the server hung up
    assert get(server, "/metrics")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_slow_peer_does_not_hold_up_a_probe(server: MetricsServer, health: Health) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10):
        assert get(server, "/healthz")[0] == 200


def test_a_port_that_is_taken_is_named_in_a_sentence(server: MetricsServer, health: Health) -> None:
    with (
        pytest.raises(MonitoringError, match=rf"cannot be served on 127\.0\.0\.1:{server.port} .*in use.*set another"),
        MetricsServer(CollectorRegistry(), health, port=server.port),
    ):
        pytest.fail("two servers on one port")


def test_a_number_that_is_no_port_is_refused(health: Health) -> None:
    with pytest.raises(MonitoringError, match="set another host or port"):
        MetricsServer(CollectorRegistry(), health, port=70000).__enter__()


def test_leaving_frees_the_port_and_ends_the_thread(health: Health) -> None:
    before = set(threading.enumerate())
    with MetricsServer(CollectorRegistry(), health) as server:
        port = server.port
    with MetricsServer(CollectorRegistry(), health, port=port) as again:
        assert get(again, "/metrics")[0] == 200
    deadline = time.monotonic() + 10  # a request's own thread may take a moment longer
    while set(threading.enumerate()) - before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()


def test_a_server_that_never_started_can_be_left(health: Health) -> None:
    MetricsServer(CollectorRegistry(), health).__exit__(None, None, None)
