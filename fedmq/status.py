"""``fedmq status``: what a service says of where it stands, for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from rich.console import Console
from rich.table import Table as Grid

from fedmq.errors import CommandError
from fedmq.show import console, number

#: Columns of the table that are compared down the page.
_NUMBERS = {"heard", "in versions", "behind"}

#: The page is answered by a thread of its own: who says nothing for so long is no service of ours, or frozen.
TIMEOUT_SECONDS = 5.0

#: Of a longer answer nothing is ours.
MOST_BYTES = 16 * 1024 * 1024


def run_status(address: str, *, as_json: bool) -> None:
    """Print where the service at ``address`` stands."""
    document = ask(address)
    out = console()
    if as_json:
        out.out(json.dumps(document, indent=2))
    elif document["service"] == "aggregator":
        _print_aggregator(out, document)
    else:
        _print_participant(out, document)


def ask(address: str) -> Mapping[str, Any]:
    """Return the status document of the service at ``address``: HOST:PORT, or a URL.

    Raises
    ------
    CommandError
        When nobody answers there, or nobody of ours.
    """
    url = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port is not None
    except ValueError:
        is_whole = False
    if not is_whole:
        raise CommandError(f"{address!r} is no address: write HOST:PORT, such as 127.0.0.1:9464")
    where = f"{parts.scheme}://{parts.netloc}"
    # Directly: the services are on this host, or on one beside it.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{where}/status", timeout=TIMEOUT_SECONDS) as answer:
            document = json.loads(answer.read(MOST_BYTES))
    except (HTTPError, HTTPException, ValueError):
        document = None
    except OSError as error:
        why = getattr(error, "reason", error)
        raise CommandError(
            f"nobody answers at {where} ({why}): is the service running, and is that its metrics_port?"
        ) from None
    if not isinstance(document, dict) or document.get("service") not in {"aggregator", "participant"}:
        raise CommandError(f"what answers at {where} is no service of this version of fedmq: check the port")
    return document


def _print_aggregator(out: Console, document: Mapping[str, Any]) -> None:
    if not document["serving"]:
        is_there = not document["missing"]
        out.print("it waits for its turn: another aggregator serves" if is_there else "it does not serve yet")
        _print_missing(out, document)
        return
    loss = "" if document["loss"] is None else f", loss {number(document['loss'], 5)} nats per row"
    out.print(
        f"{document['federation']}: {document['phase']}, version {document['version']}{loss} "
        f"({document['strategy']}, term {document['term']})"
    )
    _print_waits(out, document)
    grid = Grid(box=None, pad_edge=False)
    for title in ("site", "state", "heard", "asked", "in versions", "behind"):
        grid.add_column(title, justify="right" if title in _NUMBERS else "left")
    grid.add_column("", overflow="fold")
    for site in document["sites"]:
        behind = site["versions_behind"]
        grid.add_row(
            site["name"],
            site["state"],
            _ago(site["heard_seconds_ago"]),
            site["asked"],
            str(site["included"]),
            "-" if behind is None else str(behind),
            site["note"],
        )
    out.print()
    out.print(grid)
    _print_missing(out, document)


def _print_participant(out: Console, document: Mapping[str, Any]) -> None:
    if "activity" not in document:
        out.print(f"{document['name']}: starting, or waiting for the aggregator's exchanges")
    else:
        version = "no model yet" if document["version"] is None else f"has version {document['version']}"
        term = f" of term {document['term']}" if document["term"] else ""
        out.print(f"{document['name']} in {document['federation']}: {document['activity']}, {version}{term}")
        _print_waits(out, document)
    _print_missing(out, document)


def _print_waits(out: Console, document: Mapping[str, Any]) -> None:
    out.print(f"waits {document['waits']} ({duration(document['seconds'])} so far)", soft_wrap=True)


def _print_missing(out: Console, document: Mapping[str, Any]) -> None:
    for name, why in document["missing"].items():
        out.print(f"not ready, {name}: {why}", soft_wrap=True)


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Return ``seconds`` in the largest unit that says enough of it."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
