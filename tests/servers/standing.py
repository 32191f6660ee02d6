"""A federation of processes in which anybody may be killed at any moment, and what became of each contribution.

Whoever is killed is started again at once, with its state: what a service manager does. What became of things is read
from the aggregator's store, the participants' outboxes, and a queue that is bound to all that participants send.
"""

from __future__ import annotations

import base64
import json
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Self

from servers.federation import ROOT, ServiceProcess, service

from broker.failpoints import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from servers.rabbitmq import RabbitMQ, VHost

#: Three sites of real rows.
DATA = ROOT / "tests" / "data" / "breast_cancer"
SITES = ("city", "north", "west")
L2 = 0.01
AGGREGATOR = "aggregator"
FEDERATION = "cancer"
BROKER_USER = "tester"
AT_ANY_MOMENT = "any moment"

PATIENCE_SECONDS = 90.0
_LOOK_SECONDS = 0.02
_ENDING_SECONDS = 10.0
_TAP = "tap"
#: What is asked besides what the model is made of: it is in no version.
_ANSWERS = {"moments", "evaluation", "ranks", "sides", "path"}


@dataclass(frozen=True)
class Death:
    """Who was killed, at which place of `broker.failpoints`, and when."""

    name: str
    place: str
    at: float


@dataclass(frozen=True)
class Verdict:
    """What became of every contribution that was ever put into an outbox.

    ``attempted`` were put into an outbox; ``confirmed`` are those of them that the broker took, ``resent`` how often it
    was given one again; ``aggregated`` are in a version, ``answered`` were asked for besides; ``unused`` were accepted
    and came too late for the last version. ``in_flight`` are still in an outbox; ``altered`` came again in other bytes.
    """

    attempted: int
    confirmed: int
    resent: int
    aggregated: int
    answered: int
    unused: int
    refused: Counter[str]
    in_flight: int
    lost: int
    twice: int
    altered: int
    versions: int
    consecutive: bool

    @property
    def is_clean(self) -> bool:
        """Whether nothing is lost, nothing counted twice, nothing altered, and versions rise by one."""
        return self.lost == self.twice == self.altered == 0 and self.consecutive


@dataclass
class Standing:
    """Aggregator and participants over ``vhost``, with their state in ``folder``.

    ``aggregator`` and ``participant`` are settings beside those that all these federations have; ``ports`` are of
    proxies between the broker and single services, ``nodes`` those of a cluster.
    Without ``is_tapped`` nobody is bound to what participants send but the aggregator.
    """

    vhost: VHost
    folder: Path
    aggregator: Mapping[str, object] = field(default_factory=dict)
    participant: Mapping[str, object] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    nodes: Sequence[RabbitMQ] = ()
    is_tapped: bool = True
    deaths: list[Death] = field(default_factory=list)
    #: Told of each death; what it returns is the failpoint of the next life, where that is to end at one.
    on_death: Callable[[Death], str | None] | None = None
    #: Who is not to be started again when it ends, whatever its exit code.
    left: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        common: dict[str, object] = {
            "federation": FEDERATION,
            "heartbeat_seconds": 5,
            "shutdown_grace_seconds": 5,
            "log_level": "debug",
        }
        leading = {"participants": ",".join(SITES), "senders": "shared", "l2": L2, "out": self.folder / "model"}
        ending = {"exit_after_release": True}
        self.services = {
            AGGREGATOR: self._service(AGGREGATOR, AGGREGATOR, {**common, **leading, **ending, **self.aggregator})
        }
        for site in SITES:
            own = {"name": site, "data": DATA / f"site-{site}.csv", "label": "y", "split": "split"}
            more = {"aggregator_user": BROKER_USER, "exit_when_released": True, **self.participant}
            self.services[site] = self._service(site, "participant", {**common, **own, **more})
        self._armed: dict[str, str] = {}
        self._ended: set[str] = set()

    def _service(self, name: str, command: str, settings: Mapping[str, object]) -> ServiceProcess:
        url = self.vhost.amqp_url(user=BROKER_USER, port=self.ports.get(name))
        if self.nodes:
            url = ",".join(self.vhost.url(user=BROKER_USER, port=node.port) for node in self.nodes)
        return service(name, command, {"broker": url, **settings}, self.folder)

    def __getitem__(self, name: str) -> ServiceProcess:
        return self.services[name]

    def __enter__(self) -> Self:
        if self.is_tapped:
            self._tap()
        for name in self.services:
            self.start(name)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.services.values():
            process.__exit__()

    # --- lives -----------------------------------------------------------------------------------

    def arm(self, name: str, failpoint: str) -> None:
        """Let the next life of ``name`` end at ``failpoint``, such as ``stored:2``."""
        self._armed[name] = failpoint

    def start(self, name: str) -> None:
        """Start a service."""
        failpoint = self._armed.get(name)
        self.services[name].start(**({} if failpoint is None else {VARIABLE: failpoint}))

    def kill(self, name: str) -> None:
        """Kill -9 a service, wherever it is; it is started again at the next look."""
        self._armed.pop(name, None)
        self.services[name].send(signal.SIGKILL)

    def has_ended(self, name: str) -> bool:
        """Whether it ended by itself, in order."""
        return name in self._ended

    def look(self) -> None:
        """Start whoever was killed again; fail when somebody ended in any other way than in order."""
        for name, process in self.services.items():
            if name in self._ended or name in self.left or (code := process.code) is None:
                continue
            if code == 0:
                self._ended.add(name)
                continue
            assert code == -signal.SIGKILL, f"{name} ended with {code}:\n{process.log()}"
            death = Death(name, self._armed.pop(name, AT_ANY_MOMENT), time.monotonic())
            self.deaths.append(death)
            if self.on_death is not None and (failpoint := self.on_death(death)) is not None:
                self.arm(name, failpoint)
            self.start(name)

    def until(self, holds: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Look after everybody until ``holds``; fail with ``what`` and the logs."""
        deadline = time.monotonic() + seconds
        while not holds():
            self.look()
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}\n{self._logs()}"
            time.sleep(_LOOK_SECONDS)

    def until_released(self, seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait for the end of the training; return the model that is released."""
        self.until(lambda: AGGREGATOR in self._ended, "the model is released", seconds)
        return self.model()

    def model(self) -> dict[str, Any]:
        """Return the model that was released, when its receivers have ended too."""
        # Whoever was killed after it may wait for a plan that has gone with the aggregator.
        deadline = time.monotonic() + _ENDING_SECONDS
        while len(self._ended | self.left) < len(self.services) and time.monotonic() < deadline:
            self.look()
            time.sleep(_LOOK_SECONDS)
        model: dict[str, Any] = json.loads((self.folder / "model" / "model.json").read_text())
        return model

    def until_version(self, version: int) -> None:
        """Wait until the aggregator has committed ``version``."""
        self.until(lambda: self.version >= version, f"version {version} is made")

    def _logs(self) -> str:
        return "\n".join(f"--- {name}\n{process.log()}" for name, process in self.services.items())

    # --- what is written -----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The newest committed."""
        return max(self.versions(), default=0)

    def versions(self) -> dict[int, str]:
        """Return the hash of the weights of each version."""
        return dict(self._stored("SELECT version, hash FROM versions ORDER BY version"))

    def ledger(self) -> list[sqlite3.Row]:
        """Return every contribution judged, in the order of arrival."""
        return self._stored("SELECT rowid, * FROM ledger ORDER BY rowid")

    def judged(self) -> dict[str, int]:
        """Return how many contributions of each site are judged."""
        return dict(self._stored("SELECT participant, COUNT(*) FROM ledger GROUP BY participant"))

    def epoch(self) -> int:
        """Return how often the aggregator has started to serve."""
        [row] = self._stored("SELECT value FROM meta WHERE key = 'epoch'")
        return int(row[0])

    def _stored(self, query: str) -> list[Any]:
        return _rows(self.folder / f"{AGGREGATOR}-state" / "aggregator.sqlite", query)

    def _outbox(self, site: str, query: str) -> list[Any]:
        return _rows(self.folder / f"{site}-state" / f"{site}.sqlite", query)

    def verdict(self) -> Verdict:
        """Return what became of everything."""
        rows = self.ledger()
        judged = {row["update_id"]: row for row in rows}
        attempted, in_flight, lost = 0, 0, 0
        for site in SITES:
            meta = dict(self._outbox(site, "SELECT key, value FROM meta"))
            kept = {row[0] for row in self._outbox(site, "SELECT sequence FROM outbox")}
            last = int(meta.get("last", 0))
            attempted += last
            for number in range(1, last + 1):
                if f"{site}:{meta['incarnation']}:{number}" not in judged:
                    in_flight += number in kept
                    lost += number not in kept
        sent = self._tapped() if self.is_tapped else {}
        updates = [row for row in rows if row["kind"] not in _ANSWERS]
        included = [row for row in updates if row["included_in"] is not None]
        per_version = Counter((row["participant"], row["base_version"]) for row in included)
        accepted = [row for row in rows if row["verdict"] == "accepted"]
        versions = sorted(self.versions())
        return Verdict(
            attempted=attempted,
            confirmed=len(sent),
            resent=sum(bodies.total() - 1 for bodies in sent.values()),
            aggregated=len(included),
            answered=sum(row["kind"] in _ANSWERS for row in accepted),
            unused=sum(row["kind"] not in _ANSWERS and row["included_in"] is None for row in accepted),
            refused=Counter(row["verdict"] for row in rows if row["verdict"] != "accepted"),
            in_flight=in_flight,
            lost=lost,
            twice=sum(count - 1 for count in per_version.values()),
            altered=sum(
                len(bodies) - 1 or (update_id in judged and judged[update_id]["digest"] not in bodies)
                for update_id, bodies in sent.items()
            ),
            versions=len(versions),
            consecutive=versions == list(range(versions[0], versions[0] + len(versions))) if versions else True,
        )

    def _tap(self) -> None:
        rabbitmq, name = self.vhost.rabbitmq, self.vhost.name
        rabbitmq.api("PUT", "exchanges", name, "fedmq.updates", body={"type": "topic", "durable": True})
        rabbitmq.api("PUT", "queues", name, _TAP, body={"durable": True, "arguments": {"x-queue-type": "classic"}})
        for kind in ("update", "evaluation"):
            body = {"routing_key": f"{FEDERATION}.{kind}.*"}
            rabbitmq.api("POST", "bindings", name, "e", "fedmq.updates", "q", _TAP, body=body)

    def _tapped(self) -> dict[str, Counter[str]]:
        """Return, for each contribution that the broker took, the digests of its bodies."""
        asked = {"count": 1_000_000, "ackmode": "ack_requeue_true", "encoding": "base64"}
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for message in self.vhost.rabbitmq.api("POST", "queues", self.vhost.name, _TAP, "get", body=asked):
            body = base64.b64decode(message["payload"])
            found[message["properties"]["message_id"]][sha256(body).hexdigest()] += 1
        return found


def _rows(path: Path, query: str) -> list[Any]:
    if not path.exists():
        return []
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    database.row_factory = sqlite3.Row
    try:
        return [row if len(row.keys()) > 2 else tuple(row) for row in database.execute(query)]
    except sqlite3.OperationalError:  # its tables are being made
        return []
    finally:
        database.close()
