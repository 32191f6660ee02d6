"""Private RabbitMQ nodes: on free ports of 127.0.0.1, in a folder of their own, gone after the tests.

The node is told everything by its environment, so the machine's own broker, its cookie and its epmd are
never met. The scripts of the package's ``lib`` folder are called since the ones on PATH change user and
folder and lose that environment. Users and vhosts are made over the HTTP API: milliseconds, where
rabbitmqctl takes seconds.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from servers.processes import Server, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Has everything in it that an URL needs quoted: what leaks it is found, what mangles it fails to log in.
PASSWORD = "pl@nted:s3cret/%?"

_ADMIN = "test-admin"
_START_SECONDS = 60.0  # 4 to 12 where measured; a busy machine may take a few times that
_POLL_SECONDS = 0.05
#: A cluster of three on two busy cores answers a new vhost in up to ten.
_API_SECONDS = 60.0


@dataclass(frozen=True)
class Programs:
    """Where a RabbitMQ is installed: on this machine, or in a folder that holds a system of its own."""

    server: str
    root: Path = Path("/")

    def command(self, *program: str) -> list[str]:
        """Return the command line that runs a program of the installation."""
        if self.root == Path("/"):
            return list(program)
        # Erlang wants /proc and /dev. In a mount namespace of its own they go when the program goes.
        mounts = 'mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" && exec chroot "$0" "$@"'
        return ["unshare", "--mount", "/bin/sh", "-c", mounts, str(self.root), *program]

    def inside(self, path: Path) -> str:
        """Return the name of ``path`` as the programs of the installation see it."""
        return f"/{path.relative_to(self.root)}"


def _programs_under(root: Path) -> Programs | None:
    found = sorted(root.glob("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin/rabbitmq-server"))
    return Programs(f"/{found[-1].relative_to(root)}", root) if found else None


def find_rabbitmq() -> Programs | None:
    """Return the RabbitMQ that is installed on this machine (Debian's package), if any."""
    return _programs_under(Path("/"))


def find_rabbitmq4() -> Programs | None:
    """Return the RabbitMQ 4.x in the folder that FEDMQ_RABBITMQ4_ROOT names; see get_rabbitmq4.sh."""
    folder = os.environ.get("FEDMQ_RABBITMQ4_ROOT")
    return _programs_under(Path(folder)) if folder else None


@dataclass
class RabbitMQ:
    """One node. Entering starts it; leaving kills it and removes its folder."""

    programs: Programs
    plugins: tuple[str, ...] = ("rabbitmq_management",)
    #: Further lines of rabbitmq.conf; ``{folder}`` is the node's folder as the node sees it.
    config: str = ""
    #: Files to put into the node's folder before it starts.
    files: dict[str, bytes] = field(default_factory=dict)
    #: Of a cluster's nodes: what they know each other by, and the port of the epmd that they share.
    cookie: str = field(default_factory=lambda: secrets.token_hex(16))
    epmd_port: int | None = None

    def __post_init__(self) -> None:
        self.port, self.management_port, self.tls_port = free_port(), free_port(), free_port()
        self._distribution_port = free_port()
        self._starts_epmd = self.epmd_port is None
        self._epmd_port = self.epmd_port or free_port()
        self._admin_password = f"admin-{self.cookie}"
        self.name = f"fedmq{self.port}@localhost"
        self._epmd: Server | None = None
        self._node: Server | None = None

    def __enter__(self) -> Self:
        temporary = self.programs.root / "tmp"
        self.folder = Path(tempfile.mkdtemp(prefix="fedmq-rabbitmq-", dir=temporary))
        self._seen_folder = self.programs.inside(self.folder)
        try:
            self._write_files()
            if self._starts_epmd:
                self._start_epmd()
            self._wait_for_epmd()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the node on what its folder holds, and return when it says that it is complete.

        It answers a little before. A vhost that is made in between, by way of another node of its cluster, never
        starts on it.
        """
        log = self.folder / "output.log"
        begins = log.stat().st_size if log.exists() else 0
        self._node = Server(self.programs.command(self.programs.server), environment=self._environment(), log=log)
        deadline = time.monotonic() + _START_SECONDS
        while b"Server startup complete" not in log.read_bytes()[begins:]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"RabbitMQ did not start in {_START_SECONDS:g} s:\n{self.output()}")
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End the node as ``kill -9`` and a power cut do; its folder stays."""
        if self._node is not None:
            self._node.kill()
            self._node = None

    def lose_disk(self) -> None:
        """Forget all that a killed node has kept: users, vhosts, queues, messages."""
        shutil.rmtree(self.folder / "data")

    def restart(self) -> None:
        """Kill the node and start it again on the same folder."""
        self.kill()
        self.start()

    @property
    def node(self) -> Server:
        """The running server process."""
        assert self._node is not None, "the node is not running"
        return self._node

    def output(self) -> str:
        """Return the last lines of what the node wrote."""
        return "\n".join((self.folder / "output.log").read_text(errors="replace").splitlines()[-40:])

    def api(self, method: str, *path: str, body: object = None) -> Any:
        """Call the management API; ``path`` is given in unquoted parts."""
        url = f"http://127.0.0.1:{self.management_port}/api/" + "/".join(quote(part, safe="") for part in path)
        token = base64.b64encode(f"{_ADMIN}:{self._admin_password}".encode()).decode()
        request = urllib.request.Request(
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=_API_SECONDS) as response:  # noqa: S310
            answer = response.read()
        return json.loads(answer) if answer else None

    def add_user(self, user: str, password: str = PASSWORD) -> None:
        """Make a user who may do nothing yet, or change the password of one."""
        self.api("PUT", "users", user, body={"password": password, "tags": ""})

    def permit(self, user: str, vhost: str, *, configure: str = ".*", write: str = ".*", read: str = ".*") -> None:
        """Let ``user`` into ``vhost``; the regular expressions name what it may touch."""
        body = {"configure": configure, "write": write, "read": read}
        self.api("PUT", "permissions", vhost, user, body=body)

    def disconnect(self, user: str) -> None:
        """Close the connections of a user, as an administrator does."""
        self.api("DELETE", "connections", "username", user)

    def control(self, *arguments: str) -> None:
        """Run rabbitmqctl: seconds, for the few things that the HTTP API cannot do."""
        program = str(Path(self.programs.server).with_name("rabbitmqctl"))
        subprocess.run(
            self.programs.command(program, *arguments), env=self._environment(), check=True, capture_output=True
        )

    def _write_files(self) -> None:
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(self.cookie)
        cookie.chmod(0o400)
        (self.folder / "enabled_plugins").write_text(f"[{','.join(self.plugins)}].\n")
        for name, content in self.files.items():
            (self.folder / name).write_bytes(content)
        lines = [
            f"listeners.tcp.local = 127.0.0.1:{self.port}",
            "management.tcp.ip = 127.0.0.1",
            f"management.tcp.port = {self.management_port}",
            f"default_user = {_ADMIN}",
            f"default_pass = {self._admin_password}",
            "log.console = true",
            "log.file = false",
            # Against the alarms of a small or full machine, which would block every publisher.
            "disk_free_limit.absolute = 50MB",
            "vm_memory_high_watermark.relative = 0.8",
        ]
        own = self.config.replace("{folder}", self._seen_folder).replace("{tls_port}", str(self.tls_port))
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, own, ""]))

    def _environment(self) -> dict[str, str]:
        folder = self._seen_folder
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": folder,
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_MNESIA_BASE": f"{folder}/data",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }

    def _start_epmd(self) -> None:
        # Ours, in the foreground. A node without one starts a daemon that outlives it.
        self._epmd = Server(
            self.programs.command("epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1"),
            environment=self._environment(),
            log=self.folder / "epmd.log",
        )

    def _wait_for_epmd(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(self._epmd_port):
            if time.monotonic() > deadline:
                raise TimeoutError(f"there is no epmd at {self._epmd_port}: {(self.folder / 'epmd.log').read_text()}")
            time.sleep(_POLL_SECONDS)


@contextmanager
def cluster(programs: Programs, size: int = 3) -> Iterator[list[RabbitMQ]]:
    """Give the nodes of a cluster, once they have found each other."""
    first = RabbitMQ(programs)
    nodes = [first]
    while len(nodes) < size:
        nodes.append(RabbitMQ(programs, cookie=first.cookie, epmd_port=first._epmd_port))
    peers = ["cluster_formation.peer_discovery_backend = classic_config"]
    peers += [f"cluster_formation.classic_config.nodes.{number} = {node.name}" for number, node in enumerate(nodes, 1)]
    for node in nodes:
        node.config = "\n".join([*peers, node.config])
    with ExitStack() as stack:
        with ThreadPoolExecutor() as pool:
            for started in [pool.submit(node.__enter__) for node in nodes]:
                stack.push(started.result().__exit__)
        deadline = time.monotonic() + _START_SECONDS
        # Asked of each: what one knows of the others comes late.
        while not all(_all_serve(node, size) for node in nodes):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the cluster did not form in {_START_SECONDS:g} s:\n{first.output()}")
            time.sleep(_POLL_SECONDS)
        yield nodes


def _all_serve(node: RabbitMQ, size: int) -> bool:
    running = sum(each["running"] for each in node.api("GET", "nodes"))
    states = node.api("GET", "vhosts", "/").get("cluster_state", {})
    return running == size == sum(state == "running" for state in states.values())


@dataclass(frozen=True)
class VHost:
    """A broker of one's own, as far as a test can see."""

    rabbitmq: RabbitMQ
    name: str

    def amqp_url(self, *, user: str = "tester", password: str = PASSWORD, port: int | None = None) -> str:
        """Return the URL for ``user``, who is made here, and may do everything in this vhost."""
        self.rabbitmq.add_user(user, password)
        self.rabbitmq.permit(user, self.name)
        return self.url(user=user, password=password, port=port)

    def url(self, *, user: str, password: str = PASSWORD, port: int | None = None) -> str:
        """Return the URL for a user as it is, known to the broker or not."""
        credentials = f"{quote(user, safe='')}:{quote(password, safe='')}"
        where = f"127.0.0.1:{port or self.rabbitmq.port}"
        return f"amqp://{credentials}@{where}/{quote(self.name, safe='')}"

    def wait_until_registered(self, *queues: str) -> None:
        """Wait until new quorum queues, all there are where none is named, would survive ``kill -9``.

        The node keeps the names of its quorum queues in a file that it writes seconds late. Killed
        before, it starts again with a queue that has no leader, confirmed messages or not.
        """
        names = next((self.rabbitmq.folder / "data").glob("*/quorum/*/names.dets"))
        deadline = time.monotonic() + _START_SECONDS
        wanted = queues or self.quorum_queues()
        while missing := [queue for queue in wanted if f"{self.name}_{queue}".encode() not in names.read_bytes()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the queue {missing[0]} was not registered in {_START_SECONDS:g} s")
            time.sleep(_POLL_SECONDS)

    def quorum_queues(self) -> list[str]:
        """Return the names of the quorum queues."""
        return [each["name"] for each in self.rabbitmq.api("GET", "queues", self.name) if each["type"] == "quorum"]

    def delete_queue(self, queue: str) -> None:
        """Delete a queue underneath its consumers."""
        self.rabbitmq.api("DELETE", "queues", self.name, queue)

    def make(self) -> None:
        """Make the vhost, with nothing in it."""
        self.rabbitmq.api("PUT", "vhosts", self.name, body={})

    def depth(self, queue: str) -> int:
        """Return how many messages are ready in a queue."""
        asked = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "base64"}
        return len(self.rabbitmq.api("POST", "queues", self.name, queue, "get", body=asked))


def fresh_vhost(rabbitmq: RabbitMQ) -> Iterator[VHost]:
    """Make a vhost for one test."""
    # The slash shows who forgets to quote.
    vhost = VHost(rabbitmq, f"test/{secrets.token_hex(4)}")
    vhost.make()
    yield vhost
    rabbitmq.api("DELETE", "vhosts", vhost.name)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
