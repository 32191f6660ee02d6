"""What people are told of the connection to the broker."""

from __future__ import annotations

from typing import Any, cast

import pytest
import structlog

from monitoring.connection import report_connection
from monitoring.http import Health


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields.get("attempt")))

    warning = info


def told(log: Log, kind: str, attempt: int = 0) -> tuple[bool, dict[str, str], list[bool]]:
    health, connected = Health(("broker",)), []
    report_connection(
        health,
        connected.append,
        cast("structlog.stdlib.BoundLogger", log),
        kind=kind,
        detail="a sentence",
        attempt=attempt,
    )
    return (*health.readiness(), connected)


def test_a_connection_makes_it_ready() -> None:
    log = Log()
    assert told(log, "connected") == (True, {}, [True])
    assert log.lines == [("broker_connected", None)]


@pytest.mark.parametrize("kind", ["lost", "unreachable", "refused"])
def test_without_one_it_is_not_and_says_why(kind: str) -> None:
    log = Log()
    assert told(log, kind, 1) == (False, {"broker": "a sentence"}, [False])
    assert log.lines == [(f"broker_{kind}", 1)]


def test_a_broker_that_is_away_for_days_has_a_line_a_minute_and_not_one_for_each_attempt() -> None:
    log = Log()
    for attempt in range(1, 101):
        told(log, "unreachable", attempt)
    assert [attempt for _, attempt in log.lines] == [1, 2, 3, 4, 5, 20, 40, 60, 80, 100]


def test_what_befalls_a_consumer_is_told_and_leaves_it_ready() -> None:
    log = Log()
    assert told(log, "consumer-lost")[1:] == ({"broker": "It has not been reported yet."}, [])
    assert log.lines == [("broker_consumer_lost", 0)]
