"""Logs: one event name and its fields, as JSON for machines or as a line for people.

::

    update_admitted participant=hospital-3 base_version=40 staleness=1 weight=0.71

Only plain values pass. Numbers, names and sentences do; an array, bytes or any other object is replaced
by the name of its type, and so is a sequence of anything but texts, since a list of numbers may be a row.
Passwords are cut out of URLs and connection strings wherever they stand, tracebacks included. The rules are
applied before a record reaches any handler, so they hold in a host application with handlers of its own.

Our loggers live below the standard library's ``fedmq``. Until `configure_logging` is called nothing is set up,
and warnings alone reach stderr, as with any library. After it, what aio-pika and aiormq have to say comes through the
same format, from warnings upwards.
"""

from __future__ import annotations

import enum
import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO, cast

import structlog

from monitoring.errors import MonitoringError

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

_ROOT = "fedmq"
_LEVELS = ("debug", "info", "warning", "error", "critical")

# Up to the last @ of the word, since people forget to encode the @ and / of a password. Every part is bounded:
# the time taken stays linear in texts that somebody else wrote.
_URL_PASSWORD = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s:/@]{0,100}:)\S{0,1024}(?=@)")
_NAMED_PASSWORD = re.compile(r"(?i)\b(passw(?:or)?d|pwd|secret|token)(\s?=\s?)('[^']*'|\"[^\"]*\"|[^\s&;,]+)")
_SECRET_FIELD = re.compile(r"(?i)passw(or)?d|pwd|secret|token|private_key")
_HIDDEN = "***"

# A line break or an escape sequence in a text from outside could draw a line that nobody logged.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_TRACEBACKS = ("exception", "stack")  # these two are ours, and have lines

_FIRST = ("timestamp", "level", "logger", "event")


def redact(text: str) -> str:
    """Return ``text`` without the passwords of the URLs and connection strings in it.

    ``amqp://site:hunter2@broker`` becomes ``amqp://site:***@broker``, ``password=hunter2`` ``password=***``.
    """
    return _NAMED_PASSWORD.sub(rf"\1\2{_HIDDEN}", _URL_PASSWORD.sub(rf"\1{_HIDDEN}", text))


def _plain(value: Any) -> Any:
    """Return ``value`` if it is plain, a plain one that says the same, or the name of its type."""
    plain: Any
    match value:
        case enum.Enum():  # before str and int: some enums are these too
            plain = _plain(value.value)
        case str():
            plain = redact(value).translate(_CONTROL)
        case float():
            # JSON knows neither NaN nor infinity.
            plain = float(value) if math.isfinite(value) else str(float(value))
        case None | bool() | int():
            plain = value
        case BaseException():
            plain = _plain(f"{type(value).__name__}: {value}")
        case date() | PurePath():
            plain = _plain(str(value))
        case Mapping():
            plain = {_plain(str(key)): _field(str(key), item) for key, item in value.items()}
        case Sequence() | AbstractSet() if all(isinstance(item, str) for item in value):
            plain = [_plain(item) for item in value]
        case _:
            plain = _scalar(value)
    return plain


def _scalar(value: Any) -> Any:
    """Return the number in a numpy scalar, and for everything else the name of its type."""
    if getattr(value, "ndim", None) == 0 and isinstance(number := value.item(), bool | int | float):
        return _plain(number)
    return f"({type(value).__name__}: not logged)"


def _field(name: str, value: Any) -> Any:
    if _SECRET_FIELD.search(name):
        return _HIDDEN
    if name in _TRACEBACKS and isinstance(value, str):
        return redact(value)
    return _plain(value)


def _only_plain(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Make every field plain and put the ones that all lines share first."""
    names = [name for name in _FIRST if name in event] + [name for name in event if name not in _FIRST]
    # The names with an underscore are the formatter's own and never printed.
    return {name: event[name] if name.startswith("_") else _field(name, event[name]) for name in names}


# Tracebacks are plain text: the richer formats of structlog print local variables, that is, rows.
_SHARED: tuple[Processor, ...] = (
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
    _only_plain,
)


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose events carry ``fedmq.<name>``.

    It has its processors with it, so an application's own structlog configuration is neither used nor changed.
    """
    wrapped = structlog.wrap_logger(
        logging.getLogger(f"{_ROOT}.{name}"),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    return cast("structlog.stdlib.BoundLogger", wrapped)


def configure_logging(*, json: bool | None = None, level: str = "info", stream: TextIO | None = None) -> None:
    """Send our logs, and the warnings of the libraries below, to ``stream``. May be called again.

    Parameters
    ----------
    json : one JSON object a line, or lines for people; by default JSON unless ``stream`` is a terminal.
    level : debug, info, warning, error or critical; for our own loggers.
    stream : stderr by default, so that a command's output stays clean.

    Raises
    ------
    MonitoringError
        If there is no such level.
    """
    if level.lower() not in _LEVELS:
        raise MonitoringError(f"there is no log level {level!r}; choose one of {', '.join(_LEVELS)}")
    out = sys.stderr if stream is None else stream
    as_json = not out.isatty() if json is None else json
    handler = logging.StreamHandler(out)
    handler.set_name(_ROOT)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer() if as_json else _console(colors=out.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _ROOT]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_ROOT).setLevel(level.upper())


def _console(*, colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=colors, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )
