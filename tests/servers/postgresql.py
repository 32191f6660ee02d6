"""A private PostgreSQL for tests: a free port of 127.0.0.1, a folder of its own, and it ends with the context.

PostgreSQL refuses to run as root, so that root starts it as the user that Debian's package makes for it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from servers.processes import free_port, no_program

#: Has everything in it that a URL needs quoted: what leaks it is found, what mangles it fails to log in.
PASSWORD = "pl@nted:s3cret/%?"
USER = "tester"

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05


def require_programs() -> Path:
    """Return the folder of the programs; skip the test, visibly, where there is none; in CI that is a failure."""
    on_path = shutil.which("initdb")
    # Debian keeps them out of PATH, one folder for each version.
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = [*debian, *([Path(on_path)] if on_path else [])]
    if not found:
        no_program("PostgreSQL is not installed here: apt-get install --no-install-recommends postgresql")
    return found[-1].resolve().parent


class PostgreSQL:
    """One server. Entering starts it; leaving ends it and removes its folder."""

    def __init__(self) -> None:
        self._programs = require_programs()
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="fedmq-postgresql-"))
        try:
            self._make()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, *, user: str = USER, password: str = PASSWORD, database: str = "postgres") -> str:
        """Return the URL for a user, known to the server or not."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server on what its folder holds, and return when it answers."""
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off"}
        told = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "output.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._folder / "data"), *told),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise AssertionError(f"PostgreSQL did not start:\n{(self._folder / 'output.log').read_text()}")
            time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End the server and its connections, as an administrator does; its folder stays."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _make(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        for path in (self._folder, password):
            self._give(path)
        subprocess.run(
            self._command(
                "initdb",
                *("--pgdata", str(self._folder / "data"), "--username", USER, "--pwfile", str(password)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
            ),
            check=True,
            capture_output=True,
        )

    def _command(self, program: str, *arguments: str) -> list[str]:
        command = [str(self._programs / program), *arguments]
        if os.geteuid():
            return command
        # It is told to end when we are gone, killed even: nothing is left behind.
        return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--pdeathsig=INT", *command]

    def _give(self, path: Path) -> None:
        if not os.geteuid():
            owner = pwd.getpwnam("postgres")
            os.chown(path, owner.pw_uid, owner.pw_gid)

    def _answers(self) -> bool:
        """Whether it takes connections: an SSLRequest is answered by one letter, before anybody logs in."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(bytes([0, 0, 0, 8, 4, 210, 22, 47]))
            return connection.recv(1) in {b"N", b"S"}
        return False
