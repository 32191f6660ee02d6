"""What a seed is: the sites and their rows, the strategy, and what goes wrong, when and how often.

Faults come in swarms (Groce et al., "Swarm Testing", ISSTA 2012): each seed has a random subset of them, for where all
are on at once some hide others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

import numpy as np

from aggregator.settings import AggregatorSettings
from broker import failpoints
from fedmq.simulation.randomness import generator
from logistic.loss import sigmoid
from participant.sources import Table

#: Strategies whose versions are means of local fits: each can be computed again from the updates.
MEANS = ("fedavg", "fedbuff", "fedasync")
#: Strategies that end at the fit of all rows at one place.
EXACT = ("incremental-newton", "newton")

FEDERATION = "chaos"
DOWNSTREAM = "downstream"

#: What befalls a single message, or a single commit, with some probability.
Chance = Literal[
    "lost", "unconfirmed", "duplicated", "unroutable", "refused", "commit-slow", "death-before-commit",
    "death-after-commit", "death-before-outbox", "death-after-outbox", "outbox-slow",
]  # fmt: skip
CHANCES: Mapping[Chance, float] = {
    "lost": 0.1,
    "unconfirmed": 0.1,
    "duplicated": 0.2,
    "unroutable": 0.05,
    "refused": 0.05,
    "commit-slow": 0.1,
    "death-before-commit": 0.02,
    "death-after-commit": 0.02,
    "death-before-outbox": 0.03,
    "death-after-outbox": 0.03,
    "outbox-slow": 0.1,
}

#: What befalls the whole, or one of the services, at a time.
Kind = Literal[
    "kill", "host-lost", "cut", "cut-all", "half-open", "consumer-cancelled", "queue-deleted", "broker-restarted",
    "broker-disk-lost", "publishers-blocked", "frozen", "store-full", "outbox-full", "outbox-lost", "leaves",
    "other-rows",
]  # fmt: skip
#: What is no fault: the federation has to be the same without anything going wrong.
MEMBERSHIP: tuple[Kind, ...] = ("leaves", "other-rows")
#: How much more often than others.
KINDS: Mapping[Kind, int] = {
    "kill": 4,
    "host-lost": 2,
    "cut": 3,
    "cut-all": 2,
    "half-open": 3,
    "consumer-cancelled": 2,
    "queue-deleted": 2,
    "broker-restarted": 2,
    "broker-disk-lost": 2,
    "publishers-blocked": 2,
    "frozen": 2,
    "store-full": 2,
    "outbox-full": 2,
    "outbox-lost": 2,
}


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A participant: its rows, and what they are later; how long a local fit takes, and when it joins, in seconds."""

    name: str
    tables: tuple[Table, ...]
    fit_seconds: float
    joins_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that happens at a time, to ``who``, and how many seconds it lasts."""

    at: float
    kind: Kind
    who: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong until ``until``.

    Attributes
    ----------
    chances : of each message or commit.
    points : of dying at each of `broker.failpoints`.
    latency, delay : mean seconds that a publication and a delivery take.
    """

    until: float = 0.0
    chances: Mapping[Chance, float] = field(default_factory=dict)
    points: Mapping[str, float] = field(default_factory=dict)
    latency: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A federation and what befalls it."""

    seed: int
    settings: AggregatorSettings
    sites: tuple[Site, ...]
    n_aggregators: int
    faults: Faults
    incidents: tuple[Incident, ...]
    #: Nobody is ever waited for in vain, nor does anybody come or leave: rounds are of everybody.
    is_steady: bool

    @property
    def strategy(self) -> str:
        """Its name."""
        return self.settings.strategy

    @property
    def aggregators(self) -> tuple[str, ...]:
        """Names of the aggregators."""
        return tuple(f"aggregator-{number}" for number in range(1, self.n_aggregators + 1))

    @property
    def has_twin(self) -> bool:
        """Whether the quiet run of the same world says something of this one."""
        return self.is_steady or self.strategy in EXACT

    @property
    def begun_at(self) -> float:
        """When the last thing that was drawn has begun."""
        return max([self.faults.until, *(site.joins_at for site in self.sites), *(i.at for i in self.incidents)])


def quiet(world: World) -> World:
    """Return ``world`` as it would be if nothing went wrong."""
    incidents = tuple(incident for incident in world.incidents if incident.kind in MEMBERSHIP)
    return replace(world, faults=Faults(), incidents=incidents, n_aggregators=1)


def draw(seed: int) -> World:
    """Return the world of ``seed``."""
    rng = Random(f"{seed}/world")  # noqa: S311 - chance, and no secret
    until = rng.uniform(4.0, 25.0)
    is_steady = rng.random() < 0.25  # noqa: PLR2004 - a quarter of them
    sites = _sites(rng, seed, until, is_steady=is_steady)
    strategy = rng.choice(["fedavg"] if is_steady else [*EXACT, *EXACT, *MEANS])
    n_aggregators = rng.choice([1, 1, 2, 2, 2, 3])
    names = [site.name for site in sites]
    aggregators = [f"aggregator-{number}" for number in range(1, n_aggregators + 1)]
    membership = [] if is_steady else _membership(rng, sites, until)
    incidents = [*membership, *_incidents(rng, names, aggregators, until, is_steady=is_steady)]
    return World(
        seed=seed,
        settings=_settings(rng, seed, names, strategy, is_steady=is_steady),
        sites=sites,
        n_aggregators=n_aggregators,
        faults=_faults(rng, until),
        incidents=tuple(sorted(incidents, key=lambda incident: incident.at)),
        is_steady=is_steady,
    )


def _settings(rng: Random, seed: int, names: Sequence[str], strategy: str, *, is_steady: bool) -> AggregatorSettings:
    versions = rng.randint(4, 10)
    # Of means: no rule in place of the mean, and as many versions as were drawn.
    given: dict[str, Any] = {"max_versions": versions, "patience": versions} if strategy in MEANS else {}
    if strategy == "fedavg":
        given |= {"deadline_seconds": 1e6 if is_steady else rng.uniform(3.0, 20.0), "clip": 0.0, "local_steps": 2}
    if strategy == "fedbuff":
        given |= {"buffer_size": 2, "deadline_seconds": rng.uniform(3.0, 20.0), "clip": 0.0}
    start_with = len(names) if is_steady or rng.random() < 0.5 else rng.randint(2, len(names))  # noqa: PLR2004 - a half
    return AggregatorSettings(
        federation=FEDERATION,
        participants=list(names),
        strategy=strategy,
        start_with=start_with,
        # In a steady federation nobody is silent for so long that a round goes without it.
        heartbeat_seconds=30.0 if is_steady else rng.choice([1.0, 2.0, 4.0]),
        sweep_seconds=1e5 if is_steady else rng.uniform(5.0, 30.0),
        inference="wald" if rng.random() < 0.1 else "none",  # noqa: PLR2004 - a tenth
        exact_auc=rng.random() < 0.1,  # noqa: PLR2004 - a tenth
        seed=seed,
        **given,
    )


def _sites(rng: Random, seed: int, until: float, *, is_steady: bool) -> tuple[Site, ...]:
    n_sites, n_columns = rng.randint(2, 5), rng.randint(1, 4)
    slope = [rng.gauss(0.0, 1.0) for _ in range(n_columns)]
    sites = []
    for number in range(1, n_sites + 1):
        name = f"site-{number}"
        n_tables = 1 if is_steady or rng.random() < 0.8 else 2  # noqa: PLR2004 - a fifth have others later
        tables = tuple(_table(seed, f"{name}/{which}", slope) for which in range(n_tables))
        slow = 10.0 if rng.random() < 0.2 else 1.0  # noqa: PLR2004 - a fifth is slow
        is_late = not is_steady and number > 2 and rng.random() < 0.2  # noqa: PLR2004 - some of all but two
        joins_at = rng.uniform(1.0, until) if is_late else 0.0
        sites.append(Site(name, tables, rng.uniform(0.02, 0.8) * slow, joins_at))
    return tuple(sites)


def _table(seed: int, name: str, slope: Sequence[float]) -> Table:
    rng = generator(seed, name)
    n_rows, n_columns = int(rng.integers(20, 61)), len(slope)
    X = rng.standard_normal((n_rows, n_columns)) + rng.normal(0.0, 0.5, n_columns)
    y = (rng.random(n_rows) < sigmoid(0.8 * X @ np.array(slope))).astype(np.float64)
    y[:2] = 0.0, 1.0  # both classes at each
    is_train = np.ones(n_rows, dtype=np.bool_)
    is_train[2:] = rng.random(n_rows - 2) >= rng.choice([0.0, 0.2])
    return Table(tuple(f"x{number}" for number in range(n_columns)), X, y, is_train)


def _membership(rng: Random, sites: Sequence[Site], until: float) -> list[Incident]:
    """Return who leaves and comes back, and whose rows change."""
    made = [Incident(rng.uniform(1.0, until), "other-rows", site.name, 0.0) for site in sites if len(site.tables) > 1]
    if rng.random() < 0.2:  # noqa: PLR2004 - a fifth
        made.append(Incident(rng.uniform(1.0, until), "leaves", rng.choice(sites).name, rng.uniform(0.5, 15.0)))
    return made


def _incidents(
    rng: Random, names: Sequence[str], aggregators: Sequence[str], until: float, *, is_steady: bool
) -> list[Incident]:
    # A new outbox is another fingerprint, and training begins again: no twin to compare with.
    kinds = [kind for kind in KINDS if not (is_steady and kind == "outbox-lost")]
    chosen = rng.sample(kinds, rng.randint(0, min(6, len(kinds))))
    if not chosen:
        return []
    weights = [KINDS[kind] for kind in chosen]
    made = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.choices(chosen, weights)[0]
        who = _struck(rng, kind, names, aggregators)
        made.append(Incident(rng.uniform(0.0, until), kind, who, rng.choice([0.1, 1.0, 5.0, 20.0]) * rng.random()))
    return made


def _struck(rng: Random, kind: Kind, names: Sequence[str], aggregators: Sequence[str]) -> str:
    match kind:
        case "cut-all" | "broker-restarted" | "broker-disk-lost" | "publishers-blocked":
            return "broker"
        case "store-full":
            return rng.choice(aggregators)
        case "outbox-full" | "outbox-lost":
            return rng.choice(names)
        case "consumer-cancelled" | "queue-deleted":
            own = [f"{kind}.{name}" for kind in ("models", "plans") for name in names]
            return rng.choice(["updates", "updates", "presence", rng.choice(own), rng.choice(own)])
        case _:
            return rng.choice([*aggregators, rng.choice(names)])


#: `committed`, of a commit with a release: nobody has heard of that.
RELEASE_COMMITTED = "release-committed"
#: Places that are come by once or twice in a run.
AT_RELEASE = {RELEASE_COMMITTED, "release-published"}


def _faults(rng: Random, until: float) -> Faults:
    chances = {chance: most * rng.random() for chance, most in CHANCES.items() if rng.random() < 0.3}  # noqa: PLR2004 - a swarm
    points = [*failpoints.PARTICIPANT, *failpoints.AGGREGATOR, RELEASE_COMMITTED]
    die_at = rng.sample(points, rng.choice([0, 0, 1, 2, 3]))
    return Faults(
        until=until,
        chances=chances,
        points={point: (1.0 if point in AT_RELEASE else 0.3) * rng.random() for point in die_at},
        latency=rng.choice([0.0, 0.001, 0.05, 0.5]),
        delay=rng.choice([0.0, 0.0, 0.01, 0.3, 2.0]),
    )
