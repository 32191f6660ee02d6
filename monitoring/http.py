"""Metrics, health and status over HTTP, answered even when the event loop does not.

::

    /metrics   what Prometheus scrapes
    /healthz   200 while the event loop beats, 503 with a sentence when it has stopped: restart me
    /readyz    200 when every named condition holds, 503 with a sentence for each that does not: wait for me
    /status    both, and what the service says of where it stands: read me

A thread of its own serves them. A loop that is blocked cannot answer for itself; this thread can, and says
since when. Liveness is the age of the loop's last beat and nothing else: a broker that is away makes a service
unready, and restarting it would not bring the broker back.

It listens on loopback unless told otherwise: nothing here is protected by a password.
"""

from __future__ import annotations

import json
import socketserver
import threading
import time
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

from monitoring.errors import MonitoringError
from monitoring.logs import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

    #: Says where a service stands, as a document; asked by a thread that is not the service's.
    Standing = Callable[[], Mapping[str, Any]]

_REQUEST_TIMEOUT_SECONDS = 10  # for each read: a peer that connects and stays silent frees its thread
_STOP_POLL_SECONDS = 0.1  # how long leaving the context may take


class Health:
    """Whether the service is alive and ready; safe to use from any thread.

    Parameters
    ----------
    conditions : names that must be reported ready, such as ``broker`` and ``store``. None of them is at first.
    limit_seconds : the age of the last beat from which the service counts as hanging. Construction is a beat.
    clock : seconds, monotonic.
    """

    def __init__(
        self,
        conditions: Iterable[str] = (),
        *,
        limit_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._limit_seconds = limit_seconds
        self._last_beat = clock()
        self._conditions: dict[str, str | None] = dict.fromkeys(conditions, "It has not been reported yet.")

    def beat(self, now: float | None = None) -> None:
        """Note that the event loop runs; ``now`` is by the same clock."""
        with self._lock:
            self._last_beat = self._clock() if now is None else now

    def ready(self, name: str) -> None:
        """Note that the condition ``name`` holds."""
        with self._lock:
            self._conditions[name] = None

    def not_ready(self, name: str, why: str) -> None:
        """Note that the condition ``name`` does not hold; ``why`` is a sentence for people."""
        with self._lock:
            self._conditions[name] = redact(why)

    def liveness(self) -> tuple[bool, str]:
        """Return whether the loop beats, and a sentence."""
        with self._lock:
            age = self._clock() - self._last_beat
        if age < self._limit_seconds:
            return True, f"The event loop beat {age:.1f} s ago."
        return False, (
            f"The event loop has not beaten for {age:.1f} s (limit {self._limit_seconds:g} s): something blocks it. "
            "If this lasts, restart the service; nothing that was acknowledged is lost."
        )

    def readiness(self) -> tuple[bool, dict[str, str]]:
        """Return whether the service is ready, and for each condition that does not hold the sentence."""
        with self._lock:
            if not self._conditions:
                return False, {"start": "The service has not finished starting."}
            missing = {name: why for name, why in self._conditions.items() if why is not None}
        return not missing, missing


class MetricsServer:
    """Serves `/metrics`, `/healthz`, `/readyz` and `/status` while its context is open.

    Parameters
    ----------
    registry : what ``/metrics`` shows.
    health : what the others show.
    standing : what ``/status`` shows besides.
    host : the address to listen on; loopback by default.
    port : 0 takes a free one; `port` tells which.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        standing: Standing = dict,
    ) -> None:
        self._app = _application(registry, health, standing)
        self._address = (host, port)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._address[1]

    def __enter__(self) -> Self:
        host, port = self._address
        try:
            self._server = _Server((host, port), _QuietHandler)
        except (OSError, OverflowError) as error:
            raise MonitoringError(
                f"metrics cannot be served on {host}:{port} ({error}); "
                "set another host or port for metrics, or end what listens there"
            ) from error
        self._server.set_app(self._app)
        self._address = (host, self._server.server_port)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_STOP_POLL_SECONDS,), name="metrics", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = self._thread = None


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    """A thread for each request: one slow reader does not hold up a probe."""

    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer.server_bind asks the resolver for this machine's full name; in a network without a
        # name server that takes seconds, for a name that nobody reads.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet: a peer that hangs up or says nothing is no event of ours."""


class _QuietHandler(WSGIRequestHandler):
    timeout = _REQUEST_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        """Log no line for each scrape."""


def _application(registry: CollectorRegistry, health: Health, standing: Standing) -> WSGIApplication:
    metrics = make_wsgi_app(registry)

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                answer: Iterable[bytes] = metrics(environ, start_response)
                return answer
            case "/healthz":
                alive, sentence = health.liveness()
                status, body = _status(alive), {"alive": alive, "why": sentence}
            case "/readyz":
                is_ready, missing = health.readiness()
                status, body = _status(is_ready), {"ready": is_ready, "why": missing}
            case "/status":
                status, body = "200 OK", _where_it_stands(health, standing)
            case _:
                status, body = "404 Not Found", {"why": "There are /metrics, /healthz, /readyz and /status here."}
        content = json.dumps(body).encode() + b"\n"
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
        return [content]

    return application


def _where_it_stands(health: Health, standing: Standing) -> dict[str, Any]:
    alive, why = health.liveness()
    _, missing = health.readiness()
    return {**standing(), "missing": missing if alive else {"loop": why, **missing}}


def _status(good: bool) -> str:
    return "200 OK" if good else "503 Service Unavailable"
