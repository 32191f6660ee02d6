"""Whether anything grows that should not, in a federation that trains for long while its processes are killed.

Participants and two aggregators over one store, the second one waiting for its turn, all as processes of their own
over a private RabbitMQ node. Every few seconds one of them is killed with -9 and started again. One participant in
four is never killed, and of the aggregators none after the first fifth of the versions: it is these that show whether
a process grows. A life is judged when it has lasted for half of the run: what it holds in the last tenth of it, when
training ends, is compared with what it held after the first fifth, in medians of the samples.

The aggregator holds in memory what it has read of its store, up to 64 MiB (SQLite's page cache), and so grows for as
long as the ledger does. That would hide a leak of that size: the ledger is told to keep its newest rows only, which
are reached soon, and is read here as it is written. `--keep-ledger` with more than the versions shows how it grows.

At the end training stops by itself, a model is released, and for a quiet minute nothing is killed. Then queues must
be empty but for the release, and ledger and outboxes must agree: each contribution known once, each version there.

    python benchmarks/soak.py                                   # 20 participants, 20,000 versions
    python benchmarks/soak.py --keep-ledger 1000000             # nothing is forgotten: what the store grows by
    python benchmarks/soak.py --versions 2000 --quiet 10
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
from broker_for import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from servers.rabbitmq import RabbitMQ, VHost, find_rabbitmq, fresh_vhost

FEDERATION = "soak"
AGGREGATORS = ("aggregator-1", "aggregator-2")
#: Of the participants, one in so many is never killed; aggregators are killed in this share of the versions only.
SPARED, AGGREGATORS_DIE = 4, 0.2
#: Of a life that is judged: its share of the run at least, where its beginning ends, and how long the windows are.
LONG, WARM, WINDOW = 0.5, 0.2, 0.1
#: What may be added to the resident memory between the two windows.
MOST_GROWTH = 0.05
#: Seconds.
SAMPLE_EVERY, LOOK_EVERY, DOWN_AT_MOST, HEARTBEAT, NO_VERSION = 2.0, 0.1, 2.0, 2.0, 120.0
N_ROWS, N_FEATURES = 60, 8
#: Rows of the ledger that are read again: no contribution waits for so many others to be included.
READ_AGAIN = 500
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process held at one time; ``life`` counts its starts."""

    seconds: float
    version: int
    name: str
    life: int
    rss_bytes: int
    n_descriptors: int


@dataclass(frozen=True, slots=True)
class Stored:
    """How large what is kept was at one time: the aggregators' store, and the largest outbox."""

    seconds: float
    version: int
    store_bytes: int
    outbox_bytes: int
    n_waiting: int


@dataclass
class Member:
    """A process that is started, killed and started again."""

    name: str
    command: str
    environment: dict[str, str]
    log: Path
    lives: int = 0
    kills: int = 0
    due: float | None = 0.0
    process: subprocess.Popen[bytes] | None = None
    _log_begins: int = 0

    def start(self) -> None:
        """Begin a life."""
        with self.log.open("ab") as output:
            self._log_begins = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "fedmq", self.command],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call
            )
        self.lives += 1
        self.due = None

    def kill(self, again_at: float) -> None:
        """Kill -9; it is started again later."""
        self.end()
        self.kills += 1
        self.due = again_at

    def end(self) -> None:
        """Kill -9, for good."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def check(self) -> None:
        """End the run where it has ended by itself."""
        if self.process is not None and self.process.poll() is not None:
            last = self.log.read_text(errors="replace").splitlines()[-3:]
            sys.exit(f"{self.name} ended by itself, with {self.process.returncode}:\n" + "\n".join(last))

    def held(self) -> tuple[int, int] | None:
        """Return its resident bytes and open descriptors; None while it is not there."""
        if self.process is None:
            return None
        folder = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
        if "VmRSS" not in status:
            return None
        return int(status["VmRSS"].split()[0]) * 1024, len(list((folder / "fd").iterdir()))

    def metric(self, name: str) -> float | None:
        """Return what it says of itself; None where it does not answer."""
        url = f"http://127.0.0.1:{self._port()}/metrics"
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name}{{"):
                    return float(line.rpartition(" ")[2])
        return None

    def _port(self) -> int:
        """Return the free port that this life has found: one of ours might be taken when it begins again."""
        with self.log.open("rb") as lines:
            lines.seek(self._log_begins)
            served = [line for line in lines if b'"metrics_served"' in line and line.endswith(b"\n")]
        return int(json.loads(served[0])["port"]) if served else 0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class Soak:
    """One run."""

    vhost: VHost
    folder: Path
    n_participants: int
    n_versions: int
    rng: Random
    kill_every: float
    keep_ledger: int
    members: dict[str, Member] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    #: What was ever read of the ledger, and of the versions: contribution -> (participant, base version, included in).
    ledger: dict[str, tuple[str, int, int | None]] = field(default_factory=dict)
    versions: set[int] = field(default_factory=set)
    version: int = 0
    _read_to: int = 0
    began: float = field(default_factory=time.monotonic)

    def prepare(self) -> None:
        """Write the participants' rows and say what each process is."""
        names = [f"site-{number:02}" for number in range(self.n_participants)]
        common = {
            "broker": self.vhost.amqp_url(user="soak", password="soak"),  # noqa: S106 - a private node's own
            "federation": FEDERATION,
            "state_dir": self.folder,
            "heartbeat_seconds": HEARTBEAT,
        }
        rules = {
            "participants": ",".join(names),
            "senders": "shared",
            "strategy": "fedasync",
            "local_steps": 1,
            "max_versions": self.n_versions,
            "tolerance": 0,
            "patience": 10**9,
            "max_staleness": 10**6,
            "sweep_seconds": 30,
            "keep_ledger": self.keep_ledger,
        }
        for name in AGGREGATORS:
            self._add(name, "aggregator", {**common, **rules})
        for name in names:
            rows = self.folder / f"{name}.csv"
            _write_rows(rows, seed=self.rng.getrandbits(32))
            own = {"name": name, "data": rows, "label": "y", "aggregator_user": "soak"}
            self._add(name, "participant", {**common, **own})

    def _add(self, name: str, command: str, settings: dict[str, Any]) -> None:
        environment = {f"FEDMQ_{key.upper()}": str(value) for key, value in settings.items()}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.members[name] = Member(name, command, environment, self.folder / f"{name}.log")

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began

    # --- what happens --------------------------------------------------------------------------

    def train(self, limit_seconds: float) -> None:
        """Start everybody, kill one now and then, and return when all versions have been made."""
        next_kill, next_sample, last = 10.0, 0.0, (0, 0.0)
        while not self._is_released():
            self._start_who_is_due()
            if self.now >= next_kill and self.version < self.n_versions:
                self._kill_one()
                next_kill = self.now + self.rng.uniform(0.5, 1.5) * self.kill_every
            if self.now >= next_sample:
                self.sample()
                next_sample = self.now + SAMPLE_EVERY
                self._tell()
            if self.version > last[0]:
                last = self.version, self.now
            if self.now - last[1] > NO_VERSION or self.now > limit_seconds:
                sys.exit(f"version {self.version} after {self.now:.0f} s, and none for {self.now - last[1]:.0f} s")
            time.sleep(LOOK_EVERY)

    def _start_who_is_due(self) -> None:
        for member in self.members.values():
            member.check()
            if member.due is not None and self.now >= member.due:
                member.start()

    def _kill_one(self) -> None:
        names = sorted(set(self.members) - set(AGGREGATORS))
        victims = [name for number, name in enumerate(names) if number % SPARED]
        if self.version < AGGREGATORS_DIE * self.n_versions:
            victims += AGGREGATORS * 3  # there are few of them, and their deaths say most
        victim = self.members[self.rng.choice(victims)]
        if victim.process is not None:
            victim.kill(self.now + self.rng.uniform(0, DOWN_AT_MOST))

    def _is_released(self) -> bool:
        return self.version >= self.n_versions and any(
            row[0] for row in _rows(self.folder / "aggregator.sqlite", "SELECT confirmed FROM releases")
        )

    def quiet(self, seconds: float) -> None:
        """Let everybody be there, and nothing happen."""
        end = self.now + seconds
        while self.now < end or any(member.due is not None for member in self.members.values()):
            self._start_who_is_due()
            time.sleep(SAMPLE_EVERY)

    def _tell(self) -> None:
        rate = self.version / max(self.now, 1e-9)
        kills = sum(member.kills for member in self.members.values())
        text = f"\r{self.now:6.0f} s  version {self.version:>6}  {rate:6.1f} versions/s  {kills} kills "
        print(text, end="", file=sys.stderr, flush=True)

    # --- what is measured ----------------------------------------------------------------------

    def sample(self) -> None:
        """Note what each process holds, and how large what is kept is."""
        for name in AGGREGATORS:
            self.version = max(self.version, int(self.members[name].metric("fedmq_model_version") or 0))
        for member in self.members.values():
            if (held := member.held()) is not None:
                self.samples.append(Sample(self.now, self.version, member.name, member.lives, *held))
        self.read_ledger()
        outboxes = [_size(self.folder / f"{name}.sqlite") for name in self.members if name not in AGGREGATORS]
        waiting = sum(self.queues().values())
        self.stored.append(
            Stored(self.now, self.version, _size(self.folder / "aggregator.sqlite"), max(outboxes), waiting)
        )

    def read_ledger(self) -> None:
        """Read what has come since, and again the rows before: what was accepted is included later."""
        store = self.folder / "aggregator.sqlite"
        query = "SELECT position, update_id, participant, base_version, included_in FROM ledger WHERE position > ?"
        for position, update_id, *row in _rows(store, query, self._read_to - READ_AGAIN):
            self.ledger[update_id] = (row[0], row[1], row[2])
            self._read_to = max(self._read_to, position)
        query = "SELECT version FROM versions WHERE version > ?"
        self.versions.update(version for (version,) in _rows(store, query, max(self.versions, default=-1)))

    def queues(self) -> dict[str, int]:
        """Return how many messages each queue holds, delivered or not."""
        found = self.vhost.rabbitmq.api("GET", "queues", self.vhost.name)
        return {queue["name"]: int(queue.get("messages", 0)) for queue in found}


def _write_rows(path: Path, *, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N_ROWS, N_FEATURES))
    y = (X.sum(axis=1) + rng.logistic(size=N_ROWS) > 0).astype(int)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["y", *(f"x{index}" for index in range(N_FEATURES))])
        table.writerows([label, *row] for label, row in zip(y.tolist(), X.tolist(), strict=True))


def _size(path: Path) -> int:
    """Return the bytes of an SQLite file; its log beside it is at most 64 MiB and written over and over."""
    return path.stat().st_size if path.exists() else 0


def _rows(path: Path, query: str, *values: int) -> list[tuple[Any, ...]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as database:
        return database.execute(query, values).fetchall()


# --- what is made of it -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Growth:
    """A life that lasted: how long, and the medians after its beginning and at its end."""

    name: str
    life: int
    seconds: float
    rss: tuple[float, float]
    descriptors: tuple[float, float]

    @property
    def share(self) -> float:
        """What was added to the resident memory, of what there was."""
        return self.rss[1] / self.rss[0] - 1


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Return the growth in each life that lasted for half of the run."""
    lives: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        lives.setdefault((sample.name, sample.life), []).append(sample)
    total = samples[-1].seconds - samples[0].seconds
    found = []
    for (name, life), own in sorted(lives.items()):
        began, lasted = own[0].seconds, own[-1].seconds - own[0].seconds
        if lasted < LONG * total:
            continue
        early = [s for s in own if WARM <= (s.seconds - began) / lasted <= WARM + WINDOW]
        late = [s for s in own if (s.seconds - began) / lasted >= 1 - WINDOW]
        if not early or not late:
            continue
        found.append(
            Growth(
                name,
                life,
                lasted,
                (median(s.rss_bytes for s in early), median(s.rss_bytes for s in late)),
                (median(s.n_descriptors for s in early), median(s.n_descriptors for s in late)),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class Audit:
    """What ledger and outboxes say of every contribution that was ever put into an outbox."""

    contributions: int
    included: int
    lost: int
    counted_twice: int
    versions_missing: int
    defects: int


def audit(soak: Soak) -> Audit:
    """Return what became of every contribution."""
    folder, n_participants = soak.folder, soak.n_participants
    known = Counter(update_id.rpartition(":")[0] for update_id in soak.ledger)
    included = Counter((participant, base) for participant, base, into in soak.ledger.values() if into is not None)
    lost = 0
    for number in range(n_participants):
        name = f"site-{number:02}"
        meta = {key: value for key, value, *_ in _rows(folder / f"{name}.sqlite", "SELECT * FROM meta")}
        lost += int(meta["last"]) - known[f"{name}:{meta['incarnation']}"]
    check = subprocess.run(
        [sys.executable, "-m", "fedmq", "aggregator", "--check-store"],
        cwd=ROOT,
        env={
            **os.environ,
            "FEDMQ_FEDERATION": FEDERATION,
            "FEDMQ_STATE_DIR": str(folder),
            "FEDMQ_PARTICIPANTS": ",".join(f"site-{number:02}" for number in range(n_participants)),
            "FEDMQ_STRATEGY": "fedasync",
            "FEDMQ_KEEP_LEDGER": str(soak.keep_ledger),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    print(check.stdout or check.stderr, file=sys.stderr)
    return Audit(
        contributions=len(soak.ledger),
        included=included.total(),
        lost=lost,
        counted_twice=sum(count - 1 for count in included.values()),
        versions_missing=soak.version + 1 - len(soak.versions),
        defects=check.returncode,
    )


def per_thousand(stored: Sequence[Stored]) -> float:
    """Return the bytes that a thousand versions add to the store, after the beginning."""
    points = [s for s in stored if s.version >= 2 * WARM * stored[-1].version]  # the ledger is as long as it may be
    if len(points) < 2:
        return 0.0
    slope, _ = np.polyfit([s.version for s in points], [s.store_bytes for s in points], 1)
    return float(slope) * 1000


def report(soak: Soak, left: dict[str, int]) -> bool:
    """Print what was found; return whether all of it is as it should be."""
    found, training = growths(soak.samples), soak.samples[-1].seconds
    kills = sum(member.kills for member in soak.members.values())
    print(f"{soak.version} versions in {training:.0f} s, {soak.version / training:.1f} a second; {kills} kills")
    print(f"{'process':<14}{'life':>5}{'seconds':>9}{'RSS warm':>11}{'RSS at end':>12}{'growth':>8}{'descriptors':>14}")
    for g in found:
        print(
            f"{g.name:<14}{g.life:>5}{g.seconds:>9.0f}{g.rss[0] / 2**20:>8.1f} MB{g.rss[1] / 2**20:>9.1f} MB"
            f"{100 * g.share:>7.1f}%{g.descriptors[0]:>8.0f} ->{g.descriptors[1]:>3.0f}"
        )
    seen = audit(soak)
    waiting = {name: n for name, n in left.items() if n and not name.endswith(".released")}
    print(f"queues at the end: {waiting or 'empty'}; at most {max(s.n_waiting for s in soak.stored)} messages in all")
    print(
        f"store: {per_thousand(soak.stored) / 1024:.0f} KiB more for each 1,000 versions, "
        f"{soak.stored[-1].store_bytes / 2**20:.1f} MB at the end; outboxes: at most "
        f"{max(s.outbox_bytes for s in soak.stored) / 1024:.0f} KiB; besides, SQLite's log of 64 MiB for each file"
    )
    print(
        f"contributions: {seen.contributions}, of which included {seen.included}, lost {seen.lost}, counted twice "
        f"{seen.counted_twice}; versions missing {seen.versions_missing}; the store is "
        f"{'whole' if seen.defects == 0 else 'DAMAGED'}"
    )
    claims = {
        f"resident memory grows by less than {MOST_GROWTH:.0%}": all(g.share < MOST_GROWTH for g in found),
        "a serving aggregator lived long enough to be judged": any(g.name in AGGREGATORS for g in found),
        "descriptors are flat": all(g.descriptors[1] <= g.descriptors[0] for g in found),
        "queues are empty": not waiting,
        "nothing is lost": seen.lost == 0,
        "nothing is counted twice": seen.counted_twice == 0,
        "no version is missing, and the store is whole": seen.versions_missing == 0 and seen.defects == 0,
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO':<4}{claim}")
    return all(claims.values())


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["seconds", "version", "process", "life", "rss_bytes", "descriptors"])
        for s in samples:
            table.writerow([f"{s.seconds:.1f}", s.version, s.name, s.life, s.rss_bytes, s.n_descriptors])


@contextmanager
def a_vhost() -> Iterator[VHost]:
    programs = find_rabbitmq()
    if programs is None:
        sys.exit("no RabbitMQ is installed here: apt-get install rabbitmq-server")
    with RabbitMQ(programs) as node:
        yield from fresh_vhost(node)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--participants", type=int, default=20)
    parser.add_argument("--versions", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="give up after so long")
    parser.add_argument("--kill-every", type=float, default=4.0, help="seconds between two kills, on average")
    parser.add_argument(
        "--keep-ledger", type=int, help="rows that the ledger keeps; a fifth of the versions by default"
    )
    parser.add_argument("--quiet", type=float, default=60.0, help="seconds without kills at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=Path, help="write a CSV file of what each process held")
    parser.add_argument("--keep", type=Path, help="a new folder for logs and state files, which stays")
    given = parser.parse_args()
    with ExitStack() as stack:
        if given.keep:
            given.keep.mkdir(parents=True)
        folder = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-soak-")))
        vhost = stack.enter_context(a_vhost())
        rng, keep = Random(given.seed), given.keep_ledger or max(given.versions // 5, READ_AGAIN)
        soak = Soak(vhost, folder, given.participants, given.versions, rng, given.kill_every, keep)
        soak.prepare()
        for member in soak.members.values():
            stack.callback(member.end)
        try:
            soak.train(60 * given.minutes)
            print(file=sys.stderr)
            soak.quiet(given.quiet)
            left = soak.queues()
            soak.read_ledger()
            for member in soak.members.values():
                member.end()
        finally:
            if given.samples:
                write_samples(given.samples, soak.samples)
        sys.exit(0 if report(soak, left) else 1)


if __name__ == "__main__":
    main()
