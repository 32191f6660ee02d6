"""``fedmq aggregator --check-store``: whether what is kept is whole, agrees with itself, and can be made again.

It only reads; the service may run meanwhile, and what it commits in between is not held against it. Checked are

- every row's checksum, and the database's own structure;
- versions: one after another, one hash each, the newest that of the weights;
- the ledger: the numbers of each participant grow, what is included was accepted, and the members' counters agree;
- the newest version: made again from what it was made of, it has the same bytes, and includes what the ledger says.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import click
import numpy as np

from aggregator.errors import StoreError
from aggregator.settings import AggregatorSettings
from aggregator.state import LARGEST_RECIPE, Member, State, from_cells, weights_hash
from aggregator.store import NEVER_INCLUDED, LedgerEntry, Store
from aggregator.store.opening import open_store
from broker import codec
from broker.errors import MalformedMessage
from broker.messages import Array, ReleasedModel
from broker.settings import SettingsError

#: Between bytes made on two machines: their libraries may sum in another order.
SAME_TO = 1e-9

NO_VERSION = "nothing: no version is made yet"


@dataclass(slots=True)
class Report:
    """What was found; ``defects`` are sentences, and none of them is good news."""

    federation: str
    phase: str = "enrolling"
    version: int = 0
    members: int = 0
    versions: int = 0
    ledger: dict[str, int] = field(default_factory=dict)
    included: int = 0
    waiting: int = 0
    recomputed: str = NO_VERSION
    defects: list[str] = field(default_factory=list)


def run_check(settings: AggregatorSettings, *, as_json: bool = False) -> None:
    """Print what is found in the store that ``settings`` mean; raises `StoreError` where something is wrong."""
    store = open_store(settings, read_only=True)
    try:
        report = check(store, settings)
    finally:
        store.close()
    click.echo(json.dumps(asdict(report), indent=2) if as_json else _text(report))
    if report.defects:
        raise StoreError(f"the store has {len(report.defects)} defects: restore the newest backup (docs/operations.md)")


def check(store: Store, settings: AggregatorSettings) -> Report:
    """Return what is found in ``store``."""
    report = Report(settings.federation)
    report.defects += store.defects()
    if report.defects:
        return report  # what is damaged cannot be compared with anything
    try:
        state = from_cells(settings.rules(), store.cells())
    except (MalformedMessage, KeyError):
        report.defects.append("the cells of the state cannot be read, although they are what was written")
        return report
    if state.plan is not None and state.plan.strategy != state.strategy.name:
        raise SettingsError(
            f"the store holds a federation that trains with {state.plan.strategy}, the settings say "
            f"{state.strategy.name}: give those of the service"
        )
    report.phase, report.version, report.members = state.progress.phase, state.progress.version, len(state.members)
    versions = store.versions()
    report.versions = len(versions)
    report.defects += _version_defects(state, versions)
    ledger = _Ledger(state)
    for entry in store.ledger():
        report.defects += ledger.take(entry)
    is_whole = ledger.n_rows < settings.keep_ledger  # else the oldest may be gone, and counts say less
    report.defects += [defect for member in state.members.values() for defect in ledger.defects(member, whole=is_whole)]
    report.ledger, report.included = dict(sorted(ledger.verdicts.items())), ledger.included.total()
    report.waiting = sum(member.pending != "" for member in state.members.values())
    report.defects += _release_defects(store, state)
    report.recomputed, different = _made_again(state, versions, ledger.newest)
    report.defects += different
    return report


def _version_defects(state: State, versions: dict[int, str]) -> Iterator[str]:
    newest = state.progress.version
    if state.weights is None:
        if versions:
            yield "there are hashes of versions, and no weights"
        return
    if not versions or max(versions) != newest:
        yield f"the newest version is {newest}, and the table of versions ends with {max(versions, default='none')}"
    elif max(versions) - min(versions) + 1 != len(versions):
        gap = next(number for number in range(min(versions), newest) if number not in versions)
        yield f"version {gap} is missing in the table of versions"
    # Version 0 is zeros, fewer of them once columns that nobody has are left out.
    if newest and versions.get(newest) != weights_hash(state.weights):
        yield f"the weights are not those of version {newest}: their hash is another one"


class _Ledger:
    """What is known of the ledger while it is read."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._highest: dict[str, int] = {}
        self._pending = {member.pending for member in state.members.values()} - {""}
        self.n_rows = 0
        self.verdicts: Counter[str] = Counter()
        self.included: Counter[str] = Counter()
        #: What the newest version includes, with what weight.
        self.newest: dict[str, float | None] = {}

    def take(self, entry: LedgerEntry) -> Iterator[str]:
        """Take note of ``entry``, and yield what is wrong with it."""
        self.n_rows += 1
        self.verdicts[entry.verdict] += 1
        sender, _, number = entry.update_id.rpartition(":")
        # Only what has a higher number than all before is ever judged: so each stands there once.
        if int(number) <= self._highest.get(sender, 0):
            yield f"update {entry.update_id} stands in the ledger after a later one of its participant"
        self._highest[sender] = int(number)
        if entry.included_in is None:
            return
        self.included[entry.participant] += 1
        if entry.participant not in self._state.members:
            yield f"in the ledger, {entry.participant} is no member"
        newest = self._state.progress.version
        if entry.included_in == newest:
            self.newest[entry.update_id] = entry.weight
        if entry.verdict != "accepted" or entry.kind in NEVER_INCLUDED:
            yield f"update {entry.update_id} is in version {entry.included_in}, and was not accepted for one"
        if entry.update_id in self._pending:
            yield f"update {entry.update_id} is in version {entry.included_in}, and waits for one"
        if not entry.version < entry.included_in <= newest:
            yield f"update {entry.update_id} came at version {entry.version} and is in version {entry.included_in}"

    def defects(self, member: Member, *, whole: bool) -> Iterator[str]:
        """Yield how the counters of ``member`` differ from what was read."""
        name = member.name
        for incarnation, said in {**member.former, member.incarnation: member.received}.items():
            found = self._highest.get(f"{name}:{incarnation}", 0)
            if found > said or (whole and found != said):
                yield f"the last number received of {name} is {said}, and the ledger's is {found}"
        found = self.included[name]
        if found > member.included or (whole and found != member.included):
            yield f"{name} is in {member.included} versions by its counter, in {found} by the ledger"


def _release_defects(store: Store, state: State) -> Iterator[str]:
    for release in store.unconfirmed():
        try:
            model = codec.decode(release.body)
        except MalformedMessage:
            model = None
        if not isinstance(model, ReleasedModel) or model.version != release.version > state.progress.version:
            yield f"the release of version {release.version} that is to be published is none"


def _made_again(state: State, versions: dict[int, str], included: dict[str, float | None]) -> tuple[str, list[str]]:
    """Return what could be made again, in words, and what came out differently."""
    version, recipe = state.progress.version, state.recipe
    if not version:
        return NO_VERSION, []
    if recipe is None:
        return f"by hashes only: version {version} is made of more than {LARGEST_RECIPE // 1024**2} MiB", []
    if recipe.surroundings.version != version or state.weights is None:
        return "nothing", [f"what version {version} is made of is kept of another one"]
    finished = state.strategy.finish(recipe.strategy_state, recipe.weights, recipe.situation)
    made_of = {recipe.held[name].update_id: state.strategy.weigh(recipe.held[name]) for name in finished.included}
    defects = []
    if made_of != included:
        defects.append(f"version {version} is made of other contributions, or weights, than the ledger says")
    words = "the same bytes"
    if weights_hash(finished.weights) != versions.get(version):
        words = "the same but for the last digits, as on another machine"
        if not _are_close(finished.weights, state.weights):
            words = "another model"
            defects.append(f"version {version}, made again, is another model")
    return f"version {version} from {len(recipe.held)} contributions: {words}", defects


def _are_close(first: Array, second: Array) -> bool:
    return first.shape == second.shape and np.allclose(first, second, rtol=SAME_TO, atol=SAME_TO)


def _text(report: Report) -> str:
    verdicts = ", ".join(f"{n} {verdict}" for verdict, n in report.ledger.items())
    lines = [
        f"federation   {report.federation}: {report.phase}, version {report.version}, {report.members} participants",
        f"versions     {report.versions}, one hash each",
        f"ledger       {sum(report.ledger.values())} contributions{f': {verdicts}' if verdicts else ''}",
        f"included     {report.included}, each once; {report.waiting} wait for the next version",
        f"recomputed   {report.recomputed}",
    ]
    if not report.defects:
        return "\n".join([*lines, "all of it is right"])
    return "\n".join(
        [*lines[: 1 if not report.versions else None], *(f"wrong        {each}" for each in report.defects)]
    )
