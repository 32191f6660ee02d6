"""What people are told of the connection to the broker, the same at both services."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from monitoring.http import Health

#: Attempts that each have a line in the log; later ones come every two seconds or so, for as long as it takes.
ATTEMPTS_LOGGED = 5
#: And then so many share one.
ATTEMPTS_A_LINE = 20


def report_connection(
    health: Health,
    set_connected: Callable[[bool], None],
    log: structlog.stdlib.BoundLogger,
    *,
    kind: str,
    detail: str,
    attempt: int,
) -> None:
    """Tell health, metrics and log what befell the connection; ``detail`` is a sentence without secrets."""
    if kind == "connected":
        health.ready("broker")
        set_connected(True)
        log.info("broker_connected", detail=detail)
        return
    if kind in {"lost", "unreachable", "refused"}:
        health.not_ready("broker", detail)
        set_connected(False)
    if attempt > ATTEMPTS_LOGGED and attempt % ATTEMPTS_A_LINE:
        return
    log.warning(f"broker_{kind.replace('-', '_')}", detail=detail, attempt=attempt)  # noqa: G004 - the event has its own name
