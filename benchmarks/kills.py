"""Real processes over a real RabbitMQ, killed -9 again and again, and what became of every contribution.

An aggregator and three sites train on real rows, once with each strategy undisturbed and then over and over. Everybody
who is killed is started again at once; as soon as it has got something done it is killed the next time: at
any moment, or at one of the places that broker/failpoints.py names. Now and then it is the broker.

    python benchmarks/kills.py --kills 200
    FEDMQ_RABBITMQ4_ROOT=/var/tmp/fedmq-rabbitmq4 python benchmarks/kills.py --kills 200 --broker 4

Ends with 1 when a contribution was lost, counted twice or altered, a version was left out, or a model is another one
than that of the undisturbed training: bit for bit, version by version, with fedavg; to 1e-8 with incremental-newton.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from servers.judging import FIT, TOLERANCE
from servers.rabbitmq import Programs, RabbitMQ, VHost, find_rabbitmq, find_rabbitmq4, fresh_vhost
from servers.standing import AGGREGATOR, AT_ANY_MOMENT, SITES, Death, Standing, Verdict

from broker import failpoints

BROKER = "broker"
#: Each with a training that lasts for some seconds.
STRATEGIES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "incremental-newton": ({}, {"least_fit_seconds": 0.4}),
    "fedavg": (
        {"max_versions": 40, "tolerance": 0.0, "patience": 1000, "heartbeat_seconds": 10},
        {"least_fit_seconds": 0.2, "heartbeat_seconds": 10},
    ),
}
#: Kills in one training at most, so that each of them can end.
KILLS_IN_A_TRAINING = 20
#: Trainings in which the broker is killed.
BROKER_SHARE = 0.8
#: Share of deaths at a named place; one that does not come by there in time dies where it is.
PLACE_SHARE = 0.7
GIVEN_UP_SECONDS = 8.0
#: Seconds from a start to a death at any moment: a start takes about one of them.
MOMENT_SECONDS = (0.5, 5.0)
PATIENCE_SECONDS = 240.0

Kill = tuple[str, str]


@dataclass
class Tally:
    """All kills so far, by victim and place: seconds to recover, None where the next kill came before."""

    wanted: int
    seconds: dict[Kill, list[float | None]] = field(default_factory=lambda: defaultdict(list))

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(map(len, self.seconds.values()))


class Killer:
    """Kills in one training; to be looked after while it goes on."""

    def __init__(self, federation: Standing, tally: Tally, rng: Random) -> None:
        self._federation = federation
        self._tally = tally
        self._rng = rng
        self._left = min(KILLS_IN_A_TRAINING, tally.wanted - tally.kills)
        #: When each of them dies where it is.
        self._dies_at: dict[str, float] = {}
        #: Who has died: where, when, and what it had got done.
        self._dead: dict[str, tuple[str, float, int]] = {}
        federation.on_death = self._died
        for name in federation.services:
            if (failpoint := self._plan(name)) is not None:
                federation.arm(name, failpoint)
        if rng.random() < BROKER_SHARE and self._may_plan():
            self._plan_moment(BROKER)

    def look(self) -> bool:
        """Kill whose time has come, and note who has recovered; True when the training is over."""
        for name, (_, _, before) in list(self._dead.items()):
            if self._done(name) > before:
                self._note(name, recovered=True)
        for name, at in list(self._dies_at.items()):
            if time.monotonic() > at:
                del self._dies_at[name]
                self._kill(name)
        return self._federation.has_ended(AGGREGATOR)

    def end(self) -> None:
        """Note that whoever was dead has recovered: the training is over."""
        for name in list(self._dead):
            self._note(name, recovered=True)

    def _kill(self, name: str) -> None:
        if name != BROKER:
            if not self._federation.has_ended(name):
                self._federation.kill(name)
            return
        if set(self._federation.judged()) < set(SITES):  # a queue that is being made just then has no leader for ever
            self._plan_moment(BROKER)
            return
        vhost = self._federation.vhost
        vhost.wait_until_registered()
        vhost.rabbitmq.restart()
        # From the moment that it answers again.
        self._dead[BROKER] = (AT_ANY_MOMENT, time.monotonic(), self._done(BROKER))

    def _died(self, death: Death) -> str | None:
        """Note a death, and say where the next life is to end."""
        if death.name in self._dead:
            self._note(death.name, recovered=False)
        self._dead[death.name] = (death.place.partition(":")[0], death.at, self._done(death.name))
        self._dies_at.pop(death.name, None)
        return self._plan(death.name)

    def _plan(self, name: str) -> str | None:
        """Choose where the next life of ``name`` ends; return the failpoint, if it is one."""
        if not self._may_plan():
            return None
        if self._rng.random() > PLACE_SHARE:
            self._plan_moment(name)
            return None
        self._dies_at[name] = time.monotonic() + GIVEN_UP_SECONDS
        places = failpoints.AGGREGATOR if name == AGGREGATOR else failpoints.PARTICIPANT
        return f"{self._rng.choice(places)}:{self._rng.randint(1, 3)}"

    def _plan_moment(self, name: str) -> None:
        self._dies_at[name] = time.monotonic() + self._rng.uniform(*MOMENT_SECONDS)

    def _may_plan(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def _note(self, name: str, *, recovered: bool) -> None:
        place, since, _ = self._dead.pop(name)
        kind = "participant" if name in SITES else name
        self._tally.seconds[kind, place].append(time.monotonic() - since if recovered else None)

    def _done(self, name: str) -> int:
        """How many contributions are judged: those of a site, or all."""
        judged = self._federation.judged()
        return judged.get(name, 0) if name in SITES else sum(judged.values())


@dataclass(frozen=True)
class Training:
    """How one training ended."""

    verdict: Verdict
    weights: list[float]
    versions: dict[int, str]
    converged: bool

    def differs(self, strategy: str, quiet: Training) -> str:
        """Return what is not as in the ``quiet`` training; empty where all is."""
        if strategy == "fedavg":
            if self.versions != quiet.versions or self.weights != quiet.weights:
                return "other bits than in the quiet training"
            return ""
        error = float(np.abs(np.array(self.weights) - [*FIT["w"], FIT["b"]]).max())
        return "" if self.converged and error <= TOLERANCE else f"{error:.1e} from the pooled fit"


def train(vhost: VHost, strategy: str, tally: Tally | None, rng: Random) -> Training:
    """Train once, undisturbed without a ``tally``."""
    aggregator, participant = STRATEGIES[strategy]
    with tempfile.TemporaryDirectory(prefix="fedmq-kills-") as folder:
        federation = Standing(vhost, Path(folder), {"strategy": strategy, **aggregator}, participant)
        killer = None if tally is None else Killer(federation, tally, rng)
        with federation:
            if killer is None:
                model = federation.until_released()
            else:
                federation.until(killer.look, "the training ends", PATIENCE_SECONDS)
                model = federation.model()
                killer.end()
        return Training(
            federation.verdict(), [*model["weights"], model["intercept"]], federation.versions(), model["converged"]
        )


def total(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the sums over all trainings."""
    sums: dict[str, Any] = {}
    for each in fields(Verdict):
        values = [getattr(verdict, each.name) for verdict in verdicts]
        sums[each.name] = sum(values, Counter[str]()) if each.name == "refused" else sum(values)
    return sums


def table(tally: Tally) -> Iterator[str]:
    """Yield the lines about kills."""
    yield f"{'killed':<12} {'at':<20} {'times':>5} {'median s':>9} {'longest s':>9}  to something done again"
    for (kind, place), all_seconds in sorted(tally.seconds.items()):
        known = [seconds for seconds in all_seconds if seconds is not None]
        again = len(all_seconds) - len(known)
        median, longest = (statistics.median(known), max(known)) if known else (float("nan"), float("nan"))
        more = f"; {again} killed again before" if again else ""
        yield f"{kind:<12} {place:<20} {len(all_seconds):>5} {median:>9.2f} {longest:>9.2f}{more}"


def programs(broker: str) -> Programs:
    """Return the RabbitMQ to start."""
    found = find_rabbitmq() if broker == "3.10" else find_rabbitmq4()
    if found is None:
        sys.exit(
            "no RabbitMQ is installed here: apt-get install rabbitmq-server"
            if broker == "3.10"
            else "there is no RabbitMQ 4: tests/servers/get_rabbitmq4.sh makes one; name it in FEDMQ_RABBITMQ4_ROOT"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--broker", choices=("3.10", "4"), default="3.10")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began, rng, tally = time.monotonic(), Random(given.seed), Tally(given.kills)
    trainings: list[Training] = []
    defects: list[str] = []
    with RabbitMQ(programs(given.broker)) as node:
        version = node.api("GET", "overview")["rabbitmq_version"]
        quiet = {strategy: train(vhost, strategy, None, rng) for strategy in STRATEGIES for vhost in fresh_vhost(node)}
        for number, strategy in enumerate(itertools.cycle(STRATEGIES), 1):
            if tally.kills >= given.kills:
                break
            for vhost in fresh_vhost(node):
                ended = train(vhost, strategy, tally, rng)
            trainings.append(ended)
            if differs := ended.differs(strategy, quiet[strategy]):
                defects.append(f"training {number}, {strategy}: {differs}")
            if not ended.verdict.is_clean:
                defects.append(f"training {number}, {strategy}: {ended.verdict}")
            print(f"{tally.kills} kills, {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(f"RabbitMQ {version}, {len(trainings)} trainings, {tally.kills} kills, {time.monotonic() - began:.0f} s")
    print(*table(tally), sep="\n")
    sums = total([each.verdict for each in trainings])
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(sums["refused"].items())) or "none"
    print(
        f"contributions: {sums['attempted']} attempted, {sums['confirmed']} confirmed ({sums['resent']} times again), "
        f"{sums['aggregated']} aggregated, {sums['answered']} answers, {sums['unused']} after the last version, "
        f"refused: {refused}; {sums['in_flight']} unsent at the end"
    )
    print(
        f"lost {sums['lost']}, counted twice {sums['twice']}, altered {sums['altered']}; "
        f"{sums['versions']} versions, without a gap in {sums['consecutive']} of {len(trainings)} trainings"
    )
    print(f"models as in the quiet training: {len(trainings) - len(defects)} of {len(trainings)}")
    print(*defects, sep="\n")
    sys.exit(1 if defects else 0)


if __name__ == "__main__":
    main()
