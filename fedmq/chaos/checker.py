"""The checker: a history, and the world it is of, to the promises that were broken. It knows nothing of the services.

====  ==================================================================================================
I1    an update is in one version at most, and of a mean no base version of a participant counts twice
I2    whatever a broker confirmed was judged: it is in a version, or the ledger says why it is in none
I3    versions go up by one and have one hash each, for the store, for participants, and downstream
I4    each version of a mean can be computed again from the updates, to the bit; exact strategies end at the pooled fit
I7    nothing is left: no message, no task; and at most one contribution in an outbox
I8    nothing hangs, nothing ends by itself, and nothing is committed by who was fenced
I9    the model is that of the same federation to which nothing happened
====  ==================================================================================================
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aggregator.store import LedgerEntry
from broker import codec
from broker.messages import ModelUpdate, ReleasedModel
from broker.topology import released_queue
from fedmq.chaos.disks import digest
from fedmq.chaos.history import (
    Accepted,
    Announced,
    Attempted,
    Committed,
    Confirmed,
    Ended,
    Fenced,
    History,
    Last,
    Lost,
    Offered,
    Released,
    Sent,
    TookOver,
)
from fedmq.chaos.pooled import pooled_fit
from fedmq.chaos.world import EXACT, FEDERATION, MEANS, World

Floats = NDArray[np.float64]

#: Of coefficients on the columns' own scale, relative to 1 and to their size.
EXACTLY = 1e-8
#: Updates that a version is made of.
TRAINING_KINDS = {"weights", "delta", "curvature"}


class Violation(NamedTuple):
    """A broken promise: which, and a sentence."""

    promise: str
    what: str
    is_hang: bool = False

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a run came to; `runs.Totals` sums them.

    What was attempted is aggregated, answered, refused, void or unheard: each in one of these.
    """

    attempted: int
    confirmed: int
    aggregated: int
    answered: int
    refused: Mapping[str, int]
    void: int
    unheard: int
    resent: int
    duplicated: int
    lost: int
    twice: int
    recovered: int
    takeovers: int
    fenced: int
    versions: int
    releases: int
    compared: int


#: Of a run that has not come to its end.
NOTHING = Counts(0, 0, 0, 0, {}, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def check(world: World, history: History, twin: History | None = None) -> list[Violation]:
    """Return every promise that ``history`` breaks; ``twin`` is that of the same world without faults."""
    last = history.last
    assert last is not None, "a history ends with what is left"
    found = [
        *_once(world, history, last),
        *_nothing_lost(history, last),
        *_versions(history, last),
        *_same_bytes(history),
        *_nothing_left(last),
        *_alive(history, last),
    ]
    if world.strategy in MEANS:
        found += _computed_again(world, history)
    if world.strategy in EXACT:
        found += _pooled(world, history, last)
    if twin is not None:
        found += _like(world, history, twin)
    return found


# --- I1, I2 ---------------------------------------------------------------------------------


def _once(world: World, history: History, last: Last) -> Iterator[Violation]:
    included = Counter(include.update_id for c in history.of(Committed) for include in c.commit.includes)
    for update_id, times in included.items():
        if times > 1:
            yield Violation("I1", f"{update_id} is included {times} times")
    by_id = {entry.update_id: entry for entry in last.ledger}
    for update_id in included:
        if update_id not in by_id or by_id[update_id].included_in is None:
            yield Violation("I1", f"{update_id} was included, and the ledger does not say so")
    if world.strategy in MEANS:
        bases = Counter(
            (update_id.rpartition(":")[0], by_id[update_id].base_version)
            for update_id in included
            if update_id in by_id
        )
        for (who, base), times in bases.items():
            if times > 1:
                yield Violation("I1", f"{times} updates of {who} from version {base} are included")


def _nothing_lost(history: History, last: Last) -> Iterator[Violation]:
    attempted = {record.update_id: record for record in history.of(Attempted)}
    judged = {entry.update_id: entry for entry in last.ledger}
    robbed = {record.update_id for record in history.of(Lost)}
    for update_id in sorted({record.update_id for record in history.of(Confirmed)}):
        tried = attempted.get(update_id)
        if tried is None:
            continue  # what was sent and never in an outbox is told of with its bytes
        entry = judged.get(update_id)
        if entry is None:
            # What two disks have lost, the broker's and then the participant's, nobody can bring.
            is_former = update_id.rpartition(":")[0] != f"{tried.who}:{last.incarnations[tried.who]}"
            if not (is_former and update_id in robbed):
                yield Violation("I2", f"{update_id} was confirmed, and nobody has judged it")
        elif _vanished(entry, tried, last) and not _asked_anew(entry, last):
            yield Violation("I2", f"{update_id} was accepted, and is in no version")


def _vanished(entry: LedgerEntry, tried: Attempted, last: Last) -> bool:
    """Whether an update that was accepted is in no version, and its rows still count."""
    if entry.verdict != "accepted" or entry.kind not in TRAINING_KINDS or entry.included_in is not None:
        return False
    is_former = entry.update_id.rpartition(":")[0] != f"{tried.who}:{last.incarnations[tried.who]}"
    return not is_former and tried.table == last.tables[tried.who]


def _asked_anew(entry: LedgerEntry, last: Last) -> bool:
    """Whether its participant was asked for its moments later: then all that it had sent was forgotten."""
    incarnation, _, number = entry.update_id.rpartition(":")
    later = (each.update_id.rpartition(":") for each in last.ledger if each.kind == "moments")
    return any(whose == incarnation and int(which) > int(number) for whose, _, which in later)


# --- I3 -------------------------------------------------------------------------------------


def _versions(history: History, last: Last) -> Iterator[Violation]:
    hashes: dict[int, str] = {}
    newest = -1
    for record in history.of(Committed):
        for version, seen in record.commit.version_hashes.items():
            if version != newest + 1:
                yield Violation("I3", f"version {version} was committed after version {newest}")
            newest = version
            if hashes.setdefault(version, seen) != seen:
                yield Violation("I3", f"version {version} was committed with two hashes")
    if dict(last.versions) != hashes:
        yield Violation("I3", "the versions in the store are not those that were committed")
    for announced in history.of(Announced):
        if hashes.get(announced.version) != announced.digest:
            yield Violation("I3", f"{announced.who} announced other weights than those of version {announced.version}")
    yield from _accepted(history, hashes)
    yield from _downstream(history)


def _accepted(history: History, hashes: Mapping[int, str]) -> Iterator[Violation]:
    at: dict[tuple[str, int], tuple[int, int, int]] = {}
    for record in history.of(Accepted):
        if hashes.get(record.version) != record.digest:
            yield Violation("I3", f"{record.who} goes by other weights than those of version {record.version}")
        place = record.epoch, record.version, record.bulletin
        before = at.get((record.who, record.life), (0, 0, 0))
        if place < before:
            yield Violation("I3", f"{record.who} went back from epoch, version, bulletin {before} to {place}")
        at[record.who, record.life] = place


def _downstream(history: History) -> Iterator[Violation]:
    bodies: dict[int, str] = {}
    for record in history.of(Committed):
        for release in record.commit.releases:
            seen = digest(release.body)
            if bodies.setdefault(release.version, seen) != seen:
                yield Violation("I3", f"version {release.version} was released with two contents")
    offered = {record.version for record in history.of(Offered)}
    # One that a newer one has overtaken before any broker could be given it need not be published.
    for version in sorted(v for v in bodies.keys() - offered if v > max(offered, default=-1)):
        yield Violation("I2", f"the release of version {version} was committed, and no broker was given it")
    for received in history.of(Released):
        if bodies.get(received.version) != digest(received.body):
            yield Violation("I3", f"downstream received a version {received.version} that was never released")


def _same_bytes(history: History) -> Iterator[Violation]:
    bodies = {record.update_id: digest(record.body) for record in history.of(Attempted)}
    for record in history.of(Sent):
        if bodies.get(record.update_id) != record.digest:
            yield Violation("I3", f"{record.update_id} was sent in other bytes than it was kept in")


# --- I4 -------------------------------------------------------------------------------------


def _computed_again(world: World, history: History) -> Iterator[Violation]:
    """Make each version of what the ledger says is in it, and compare its hash."""
    updates = {record.update_id: record for record in history.of(Attempted)}
    records = {r.update_id: r for c in history.of(Committed) for r in c.commit.records}
    made: dict[int, dict[str, float]] = defaultdict(dict)
    hashes: dict[int, str] = {}
    for committed in history.of(Committed):
        hashes.update(committed.commit.version_hashes)
        for include in committed.commit.includes:
            made[include.version][include.update_id] = include.weight
    weights: Floats | None = None
    for version in sorted(hashes):
        if version == 0:
            continue
        parts = []
        for update_id, weight in sorted(made[version].items()):
            message = codec.decode(updates[update_id].body)
            assert isinstance(message, ModelUpdate), "a version is made of updates"
            if records[update_id].digest != digest(updates[update_id].body):
                yield Violation("I4", f"the ledger has another digest of {update_id}")
            staleness = records[update_id].version - message.base_version
            if world.strategy == "fedavg" and weight != message.n_samples * float((1 + staleness) ** -0.5):
                yield Violation("I4", f"{update_id} weighs {weight} in version {version}")
            [vector] = [message.arrays[name] for name in ("weights", "delta") if name in message.arrays]
            parts.append((weight, float((1 + staleness) ** -0.5), vector))
        if not parts:
            yield Violation("I4", f"version {version} is made of nothing")
            return
        weights = _next(world.strategy, np.zeros(len(parts[0][2])) if weights is None else weights, parts)
        if digest(weights.tobytes()) != hashes[version]:
            yield Violation("I4", f"version {version} is not what its {len(parts)} updates make")
            return


def _next(strategy: str, weights: Floats, parts: list[tuple[float, float, Floats]]) -> Floats:
    """Return what ``parts`` make of ``weights``: the weight, the discount for staleness, and the vector of each."""
    if strategy == "fedasync":
        for weight, _, vector in parts:
            weights = (1.0 - weight) * weights + weight * vector
        return weights
    total = sum(weight for weight, _, _ in parts)
    mean = np.zeros_like(weights)
    for weight, _, vector in parts:
        mean += (weight / total) * vector
    return mean if strategy == "fedavg" else weights + 1.0 * (total / len(parts)) * mean


def _pooled(world: World, history: History, last: Last) -> Iterator[Violation]:
    model = _last_release(history)
    if model is None or not _is_of_everybody(world, model):
        return
    tables = [site.tables[last.tables[site.name]] for site in world.sites]
    n_rows = sum(table.n_train for table in tables)
    if model.n_samples != n_rows:
        yield Violation("I4", f"the released model is of {model.n_samples} rows, and the sites have {n_rows}")
    far = _distance(_coefficients(model), pooled_fit(tables))
    if far > EXACTLY:
        yield Violation("I4", f"the released model is {far:.1e} from the pooled fit")


def _last_release(history: History) -> ReleasedModel | None:
    released = [release.body for record in history.of(Committed) for release in record.commit.releases]
    if not released:
        return None
    model = codec.decode(released[-1])
    assert isinstance(model, ReleasedModel), "the store keeps releases as they are sent"
    return model


def _is_of_everybody(world: World, model: ReleasedModel) -> bool:
    """Whether all sites have confirmed the last model; of who was away what it sent last counts, and that is said."""
    present = {each.name for each in model.participants if each.present}
    return model.converged and present == {site.name for site in world.sites}


def _coefficients(model: ReleasedModel) -> Floats:
    return np.array([*(each.estimate for each in model.coefficients), model.intercept_coefficient.estimate])


def _distance(a: Floats, b: Floats) -> float:
    return float((np.abs(a - b) / np.maximum(1.0, np.abs(b))).max())


# --- I7, I8 ---------------------------------------------------------------------------------


def _nothing_left(last: Last) -> Iterator[Violation]:
    for name, waiting in last.waiting.items():
        # Nobody sends anything that is to be rejected: the queue of dead letters has to be empty too.
        keeps = {released_queue(FEDERATION): 16}.get(name, 0)
        if len(waiting) > keeps:
            yield Violation("I7", f"{len(waiting)} messages are left in {name}: {', '.join(waiting[:3])}")
    for name, n in last.unsent.items():
        if n > 1:
            yield Violation("I7", f"{n} contributions are in the outbox of {name}")
    if last.tasks:
        yield Violation("I7", f"tasks go on: {', '.join(last.tasks)}")


def _alive(history: History, last: Last) -> Iterator[Violation]:
    if not last.released:
        yield Violation("I8", last.why, is_hang=True)
    for record in history.of(Ended):
        if not record.is_ours:
            yield Violation("I8", f"{record.who} ended: {record.error}")
    epoch = 0
    for committed in history.records:
        match committed:
            case TookOver(_, who, raised):
                if raised <= epoch:
                    yield Violation("I8", f"{who} took over with epoch {raised} after epoch {epoch}")
                epoch = max(epoch, raised)
            case Committed(_, who, commit) if commit.epoch < epoch:
                yield Violation("I8", f"{who} committed in epoch {commit.epoch} after epoch {epoch} had begun")
            case _:
                pass


# --- I9 -------------------------------------------------------------------------------------


def _like(world: World, history: History, twin: History) -> Iterator[Violation]:
    if world.strategy in EXACT:
        models = [_last_release(each) for each in (history, twin)]
        if all(model is not None and _is_of_everybody(world, model) for model in models):
            far = _distance(*(_coefficients(model) for model in models if model is not None))
            if far > EXACTLY:
                yield Violation("I9", f"the released model is {far:.1e} from that of the quiet run")
        return
    ours, theirs = _made_of(history), _made_of(twin)
    if world.is_steady and len(ours) != len(theirs):
        yield Violation("I9", f"{len(ours)} versions were made, and {len(theirs)} in the quiet run")
    for version, (parts, seen) in ours.items():
        if version not in theirs or theirs[version][0] != parts:
            if world.is_steady:
                yield Violation("I9", f"version {version} is made of others than in the quiet run")
            return
        if theirs[version][1] != seen:
            yield Violation("I9", f"version {version} is made of the same as in the quiet run, and is not the same")
            return


class Part(NamedTuple):
    """An update in a version: whose, under which plan, from which base, judged at which version, with what weight."""

    participant: str
    plan_hash: str
    base_version: int
    version: int
    weight: float


def _made_of(history: History) -> dict[int, tuple[list[Part], str]]:
    """Return what each version is made of, and its hash."""
    records = {r.update_id: r for c in history.of(Committed) for r in c.commit.records}
    updates = {record.update_id: record for record in history.of(Attempted)}
    made: dict[int, list[Part]] = defaultdict(list)
    hashes: dict[int, str] = {}
    for committed in history.of(Committed):
        hashes.update(committed.commit.version_hashes)
        for include in committed.commit.includes:
            record, message = records[include.update_id], codec.decode(updates[include.update_id].body)
            assert isinstance(message, ModelUpdate), "a version is made of updates"
            part = Part(record.participant, message.plan_hash, record.base_version, record.version, include.weight)
            made[include.version].append(part)
    return {version: (sorted(made[version]), hashes[version]) for version in sorted(hashes)}


# --- counts ---------------------------------------------------------------------------------


def count(world: World, history: History) -> Counts:
    """Return what the run came to."""
    last = history.last
    assert last is not None, "a history ends with what is left"
    attempted = {record.update_id for record in history.of(Attempted)}
    confirmed = {record.update_id for record in history.of(Confirmed)}
    included = Counter(include.update_id for c in history.of(Committed) for include in c.commit.includes)
    accepted = [entry for entry in last.ledger if entry.verdict == "accepted"]
    sent = Counter(record.update_id for record in history.of(Sent))
    model = _last_release(history)
    return Counts(
        attempted=len(attempted),
        confirmed=len(confirmed),
        aggregated=len(included),
        answered=sum(e.kind not in TRAINING_KINDS for e in accepted),
        refused=dict(sorted(Counter(e.verdict for e in last.ledger if e.verdict != "accepted").items())),
        void=sum(e.kind in TRAINING_KINDS and e.included_in is None for e in accepted),
        unheard=len(attempted - {e.update_id for e in last.ledger}),
        resent=sum(times - 1 for times in sent.values()),
        duplicated=sum(fault.kind == "duplicated" for fault in history.faults()),
        lost=sum(1 for _ in _nothing_lost(history, last)),
        twice=sum(times > 1 for times in included.values()),
        recovered=history.recovered(),
        takeovers=sum(1 for _ in history.of(TookOver)),
        fenced=sum(1 for _ in history.of(Fenced)),
        versions=len(last.versions),
        releases=sum(len(c.commit.releases) for c in history.of(Committed)),
        compared=int(world.strategy in MEANS or (model is not None and _is_of_everybody(world, model))),
    )
