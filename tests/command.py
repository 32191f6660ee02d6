"""The command, run in the test's own process: what it printed, and how it ended."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from fedmq.cli import main

if TYPE_CHECKING:
    import pytest


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take settings out of the environment, as a fresh process has none."""
    for key in list(os.environ):
        if key.startswith("FEDMQ_"):
            monkeypatch.delenv(key)


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    """Return how ``fedmq`` ended with these ``arguments``."""
    monkeypatch.setattr(sys, "argv", ["fedmq", *map(str, arguments)])
    try:
        main()
    except SystemExit as ending:
        code = int(str(ending.code))
    else:
        code = 0
    said = capsys.readouterr()
    return Ended(code, said.out, said.err)
