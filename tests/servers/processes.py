"""Server programs that end with the tests, however the tests end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# The shell holds the other end of a pipe to us. When it closes, since we closed it or since we are gone
# (killed, even), the shell ends the whole process group, itself included: nothing is left behind.
_GUARD = '"$@" & read -r _; kill -KILL 0'

# Below those that systems give to outgoing connections: one of these takes a port before its server is up, now and
# then.
_PORTS = range(15_000, 32_000)
_CHANCE = random.SystemRandom()
_given: set[int] = set()


class Server:
    """A program in a process group of its own, with its output in a file."""

    def __init__(self, command: list[str], *, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End the program and all its children, as ``kill -9`` does."""
        with suppress(ProcessLookupError):
            os.killpg(self._guard.pid, signal.SIGKILL)
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the program and all its children: SIGSTOP and SIGCONT play a frozen server."""
        os.killpg(self._guard.pid, number)


def no_program(sentence: str) -> NoReturn:
    """Skip the test, visibly, where a program is missing; fail where it must not be, as in CI."""
    if os.environ.get("CI") or os.environ.get("FEDMQ_REQUIRE_SERVERS") == "1":
        pytest.fail(sentence, pytrace=False)
    pytest.skip(sentence)


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nobody listens at the moment, another one at each call."""
    while True:
        port = _CHANCE.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
