"""Services of ours as processes: started, asked whether they are ready, told to end, and gone with the test."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from servers.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).parents[2]

READY_SECONDS = 60.0  # two or three where measured, with five of them on two cores
STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1


def wait_until(true: Callable[[], bool], what: str, seconds: float = READY_SECONDS) -> None:
    """Wait for a condition; fail with ``what`` and the time that was given it."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)


class ServiceProcess:
    """``fedmq aggregator`` or ``fedmq participant``, with what it writes in a file.

    Parameters
    ----------
    name : for the log, and for what a failure says.
    arguments : of ``fedmq``.
    environment : all there is, beside what Python needs.
    folder : for the log, and to run in.
    port : where it serves metrics and health.
    """

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, port: int
    ) -> None:
        self.name = name
        self.port = port
        self._arguments = list(arguments)
        # The sources by their path: the environment of the tests may have fedmq installed, or not.
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
        self._folder = folder
        self._log = folder / f"{name}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self, **more: str) -> None:
        """Start it, perhaps again, with ``more`` in its environment."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedmq", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**self.environment, **more},
                cwd=self._folder,
                # A test run that is killed cannot tell its children; the kernel does.
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
            )

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def code(self) -> int | None:
        """The exit code, minus the signal where one killed it; None while it runs."""
        return self._process.poll()

    def run(self, command: Sequence[str]) -> int:
        """Run another command where the service runs, as a healthcheck does; return its exit code."""
        return subprocess.run(
            command, env=self.environment, cwd=self._folder, check=False, capture_output=True, timeout=STOP_SECONDS
        ).returncode

    def get(self, path: str) -> tuple[int, str]:
        """Ask its HTTP server; status 0 is no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_until_ready(self) -> None:
        """Wait until ``/readyz`` says 200; fail at once when the process ends."""
        wait_until(self._is_ready, f"{self.name} is ready; it says {self.get('/readyz')}:\n{self.log()}")

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"{self.name} ended with {self._process.returncode}:\n{self.log()}"
        return self.get("/readyz")[0] == 200

    def send(self, number: signal.Signals) -> None:
        """Send a signal: SIGTERM asks it to end; SIGSTOP and SIGCONT play a site that hangs."""
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait until it has ended; return its exit code."""
        return self._process.wait(STOP_SECONDS)

    def log(self) -> str:
        """Return the last lines of what it wrote."""
        return "\n".join(self.output().splitlines()[-30:])

    def output(self) -> str:
        """Return all that it wrote, in all its lives."""
        return self._log.read_text(errors="replace")


class Federation:
    """Several services that start and end together."""

    def __init__(self, services: Sequence[ServiceProcess]) -> None:
        self.services = {service.name: service for service in services}
        self._stack = ExitStack()

    def __getitem__(self, name: str) -> ServiceProcess:
        return self.services[name]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for service in self.services.values():
                stack.enter_context(service)
            for service in self.services.values():
                service.wait_until_ready()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def service(name: str, command: str, settings: Mapping[str, object], folder: Path) -> ServiceProcess:
    """Return a service that takes all its settings from the environment, and a port of its own."""
    port = free_port()
    given = {**settings, "metrics_port": port, "state_dir": folder / f"{name}-state"}
    environment = {f"FEDMQ_{key.upper()}": str(value) for key, value in given.items()}
    return ServiceProcess(name, [command], environment, folder, port)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
