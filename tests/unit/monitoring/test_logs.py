from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import io
import json
import logging
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog

from monitoring import MonitoringError, configure_logging, logger, redact

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Color(enum.Enum):
    RED = "red"


class Phase(enum.StrEnum):
    TRAINING = "training"


@dataclasses.dataclass
class Model:
    weights: bytes


@pytest.fixture(autouse=True)
def logging_as_nobody_has_configured_it() -> Iterator[None]:
    """Whatever ran before in this process; and leave it as it was."""
    root, ours = logging.getLogger(), logging.getLogger("fedmq")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    root.setLevel(logging.WARNING)
    ours.setLevel(logging.NOTSET)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    configure_logging(stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logged(stream: io.StringIO, **fields: Any) -> dict[str, Any]:
    """Log these fields and return what was printed of them."""
    logger("test").info("event", **fields)
    return {name: value for name, value in lines(stream)[-1].items() if name in fields}


def test_an_event_is_one_json_object_with_its_fields(out: io.StringIO) -> None:
    logger("aggregator").info("update_admitted", participant="hospital-3", base_version=40, weight=0.71)
    (line,) = lines(out)
    assert list(line) == ["timestamp", "level", "logger", "event", "participant", "base_version", "weight"]
    assert dt.datetime.fromisoformat(line.pop("timestamp")).tzinfo is dt.UTC
    assert line == {
        "level": "info",
        "logger": "fedmq.aggregator",
        "event": "update_admitted",
        "participant": "hospital-3",
        "base_version": 40,
        "weight": 0.71,
    }


def test_a_terminal_gets_lines_for_people() -> None:
    out = Terminal()
    configure_logging(stream=out)
    logger("aggregator").info("update_admitted", participant="hospital-3")
    assert "update_admitted" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_lines_for_people_can_be_asked_for_and_have_no_colours_in_a_file() -> None:
    out = io.StringIO()
    configure_logging(json=False, stream=out)
    logger("aggregator").info("update_admitted", participant="hospital-3")
    assert "participant=hospital-3" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_stderr_is_the_default_stream(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json=True)
    logger("x").info("event")
    assert json.loads(capsys.readouterr().err)["event"] == "event"


def test_context_variables_are_fields(out: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(federation="heart"):
        logger("x").info("event")
    assert lines(out)[0]["federation"] == "heart"


def test_our_level_is_chosen_and_that_of_libraries_is_warning(out: io.StringIO) -> None:
    logger("x").debug("too_quiet")
    logging.getLogger("some.library").info("too quiet")
    logging.getLogger("some.library").warning("Connection to %s failed", "amqp://va:hunter2@broker")
    (line,) = lines(out)
    assert (line["logger"], line["level"]) == ("some.library", "warning")
    assert line["event"] == "Connection to amqp://va:***@broker failed"
    configure_logging(level="DEBUG", stream=out)
    logger("x").debug("loud_enough")
    assert lines(out)[-1]["event"] == "loud_enough"


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(MonitoringError, match="there is no log level 'loud'; choose one of debug, info"):
        configure_logging(level="loud")


def test_configuring_again_replaces_the_handler_and_leaves_those_of_others(out: io.StringIO) -> None:
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    again = io.StringIO()
    configure_logging(stream=again)
    logger("x").info("event")
    assert out.getvalue() == ""
    assert len(lines(again)) == 1
    assert foreign in logging.getLogger().handlers


def test_without_configuration_only_warnings_reach_a_host_application_and_without_passwords(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logger("unconfigured")
    log.info("too_quiet")
    log.warning("lost", url="amqp://va:hunter2@broker", rows=np.ones(3))
    (record,) = caplog.records
    assert "too_quiet" not in record.getMessage()
    assert "amqp://va:***@broker" in record.getMessage()
    assert "(ndarray: not logged)" in record.getMessage()


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("amqp://va:hunter2@broker:5672/fedmq", "amqp://va:***@broker:5672/fedmq"),
        ("amqps://va:p@ss/w:rd@broker", "amqps://va:***@broker"),
        ("to amqp://va:a@one and postgresql://x:b@two", "to amqp://va:***@one and postgresql://x:***@two"),
        ("redis://:hunter2@cache", "redis://:***@cache"),
        ("host=db password=hunter2 user=x", "host=db password=*** user=x"),
        ("host=db password='two words' user=x", "host=db password=*** user=x"),
        ("postgresql://db/x?user=a&password=hunter2&y=1", "postgresql://db/x?user=a&password=***&y=1"),
        ("amqp://broker:5672/fedmq", "amqp://broker:5672/fedmq"),
        ("write to va@hospital.org: 10:30", "write to va@hospital.org: 10:30"),
    ],
)
def test_passwords_are_cut_out_of_texts(text: str, safe: str) -> None:
    assert redact(text) == safe


def test_a_long_hostile_text_is_searched_in_linear_time() -> None:
    started = dt.datetime.now(dt.UTC)
    redact("a://b:" * 20_000)
    redact("a" * 200_000)
    assert dt.datetime.now(dt.UTC) - started < dt.timedelta(seconds=20)


def test_plain_values_pass(out: io.StringIO) -> None:
    fields = {"a": 1, "b": 0.5, "c": True, "d": None, "e": "text", "f": ["x", "y"], "g": {"live": 3}}
    assert logged(out, **fields) == fields


def test_what_says_the_same_as_a_plain_value_becomes_one(out: io.StringIO) -> None:
    day = dt.date(2026, 1, 2)
    assert logged(out, color=Color.RED, phase=Phase.TRAINING, day=day, path=PurePosixPath("a/b")) == {
        "color": "red",
        "phase": "training",
        "day": "2026-01-02",
        "path": "a/b",
    }
    assert logged(out, error=ValueError("no way to amqp://va:hunter2@broker")) == {
        "error": "ValueError: no way to amqp://va:***@broker"
    }


def test_numbers_that_json_does_not_know_become_texts(out: io.StringIO) -> None:
    assert logged(out, a=float("nan"), b=float("-inf")) == {"a": "nan", "b": "-inf"}


def test_numpy_scalars_are_numbers(out: io.StringIO) -> None:
    assert logged(out, a=np.float32(0.5), b=np.int64(3), c=np.float64(0.25), d=np.bool_(1)) == {
        "a": 0.5,
        "b": 3,
        "c": 0.25,
        "d": True,
    }


def test_rows_weights_and_labels_never_pass(out: io.StringIO) -> None:
    rows = np.full((2, 2), 8675309.0)
    everything = {
        "array": rows,
        "body": rows.tobytes(),
        "view": memoryview(rows.tobytes()),
        "listed": rows.tolist(),
        "vector": [8675309.0],
        "labels": (8675309, 8675309),
        "model": Model(b"8675309"),
        "nested": {"weights": rows, "deeper": {"row": [8675309]}},
        "dates": np.datetime64("2026-01-02"),
    }
    printed = logged(out, **everything)
    assert "8675309" not in out.getvalue()
    assert printed["array"] == "(ndarray: not logged)"
    assert printed["body"] == "(bytes: not logged)"
    assert printed["model"] == "(Model: not logged)"
    assert printed["nested"] == {"weights": "(ndarray: not logged)", "deeper": {"row": "(list: not logged)"}}


def test_fields_that_are_named_like_secrets_are_hidden_whatever_they_hold(out: io.StringIO) -> None:
    assert logged(out, password="hunter2", settings={"broker_secret": "hunter2", "user": "va"}) == {
        "password": "***",
        "settings": {"broker_secret": "***", "user": "va"},
    }


def test_a_text_from_outside_draws_no_line_of_its_own() -> None:
    out = io.StringIO()
    configure_logging(json=False, stream=out)
    logger("x").info("refused\nby the peer", why="bad\nall is well\x1b[2J")
    assert len(out.getvalue().splitlines()) == 1
    assert "all is well" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def fail(url: str) -> None:
    rows = np.full(2, 8675309.0)
    raise ConnectionError(f"no way to {url} with {len(rows)} rows")


@pytest.mark.parametrize("as_json", [True, False])
def test_tracebacks_have_lines_and_neither_passwords_nor_local_variables(as_json: bool) -> None:
    out = io.StringIO()
    configure_logging(json=as_json, stream=out)
    for log in (logger("x"), logging.getLogger("other.library")):
        try:
            fail("amqp://va:" + "hunter2@broker")
        except ConnectionError:
            log.exception("lost")
    printed = out.getvalue()
    assert printed.count("amqp://va:***@broker") == 2
    assert "array(" not in printed
    if as_json:
        assert all(line["exception"].startswith("Traceback") for line in lines(out))


def test_a_field_that_is_called_like_a_traceback_is_a_field(out: io.StringIO) -> None:
    assert logged(out, exception=3, stack=np.ones(2)) == {"exception": 3, "stack": "(ndarray: not logged)"}
