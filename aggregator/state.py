"""What the aggregator knows, frozen: the coordinator turns one of these into the next.

What must outlive a crash is a set of cells, each one small thing that changes as a whole: a
commit writes the cells that changed, never the whole state. `Presence` and the two times are the exception:
they are about now, and start afresh after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aggregator.strategies import Contribution, Strategy, StrategyState
from broker import codec
from broker.messages import Array, Evaluation, LocalWork, Phase, Plan
from logistic.moments import Moments


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided: who may take part, what is computed, when it is good enough.

    Attributes
    ----------
    participants : who may take part; the first one's column order is the model's.
    start_with : how many of them must have said hello before training starts.
    l2 : penalty; None is one over the number of training rows.
    work : what participants do locally.
    choose_learning_rate : put one into ``work`` that suits the pooled moments.
    tolerance, patience : stop when the loss has not fallen by ``tolerance`` (relative) for ``patience`` versions.
    max_versions : stop there at the latest.
    max_staleness : versions; older updates are refused.
    max_norm : Euclidean norm of an update's arrays; larger ones are refused.
    silence_seconds : a participant not heard of for so long is not waited for.
    sweep_seconds : how long the last evaluation waits for everybody.
    """

    federation: str
    participants: tuple[str, ...]
    start_with: int
    strategy: Strategy
    work: LocalWork
    choose_learning_rate: bool = True
    l2: float | None = None
    standardise: bool = True
    seed: int = 0
    tolerance: float = 1e-4
    patience: int = 50
    max_versions: int = 500
    max_staleness: int = 100
    max_norm: float = 1e9
    silence_seconds: float = 35.0
    sweep_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the federation stands, in scalars."""

    epoch: int = 1
    phase: Phase = "enrolling"
    version: int = 0
    bulletin: int = 0
    loss: float | None = None
    best_loss: float | None = None
    best_version: int = 0
    converged: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A participant that has said hello, and what became of its contributions.

    ``received`` and ``settled`` are sequence numbers of the current ``incarnation``; ``pending`` is the id of the
    update that is accepted and not yet in a model. ``barred`` says why nothing is asked of it, where that is so.
    ``failed_at`` is the version from which it last found no usable result: it is asked again of the next one.
    ``features`` are kept only until the plan is made; ``former`` has the highest number received of
    each earlier incarnation that sent something.
    """

    name: str
    incarnation: str
    n_rows: int
    n_test_rows: int
    features: tuple[str, ...] = ()
    received: int = 0
    settled: int = 0
    refusal: str = ""
    pending: str = ""
    included: int = 0
    last_base_version: int = 0
    loss: float | None = None
    barred: str = ""
    failed_at: int | None = None
    former: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether somebody is there; about now, and not kept.

    ``addressed`` is the newest bulletin that was sent to it, ``bulletin_seen`` the newest it says it has.
    """

    state: Literal["live", "silent", "left"]
    last_heard: float
    bulletin_seen: int = -1
    addressed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All of it. Times are those of the events, in seconds on a clock that never goes back."""

    rules: Rules
    progress: Progress = field(default_factory=Progress)
    members: Mapping[str, Member] = field(default_factory=dict)
    plan: Plan | None = None
    plan_hash: str = ""
    weights: Array | None = None
    strategy_state: StrategyState = field(default_factory=StrategyState)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    scores: Mapping[str, Evaluation] = field(default_factory=dict)
    presence: Mapping[str, Presence] = field(default_factory=dict)
    version_since: float = 0.0
    sweep_since: float = 0.0

    @property
    def live(self) -> frozenset[str]:
        """Participants that may still answer and are asked to."""
        return frozenset(
            name
            for name, presence in self.presence.items()
            if presence.state == "live" and not self.members[name].barred
        )

    @property
    def received(self) -> frozenset[str]:
        """Whose update came since the newest version, and is in none yet."""
        return frozenset(name for name, member in self.members.items() if member.pending)

    @property
    def able(self) -> frozenset[str]:
        """Those of the live ones whose fit of the current version has not failed."""
        return frozenset(name for name in self.live if self.members[name].failed_at != self.progress.version)


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """A vector as a cell of its own."""

    values: Array


_MAPPINGS: dict[str, type[Any]] = {
    "member": Member,
    "moments": Moments,
    "scores": Evaluation,
    "held": Contribution,
    "shared": Vector,
}


def cells(state: State) -> dict[str, Any]:
    """Return what is kept of ``state``, by key: ``progress``, ``plan``, ``weights``, ``member/NAME``, ...

    A cell that did not change is the same object in both states: that is how a commit finds what to write.
    """
    single = {"progress": state.progress, "plan": state.plan, "weights": state.weights}
    found: dict[str, Any] = {key: value for key, value in single.items() if value is not None}
    many: dict[str, Mapping[str, Any]] = {
        "member": state.members,
        "moments": state.moments,
        "scores": state.scores,
        "held": state.strategy_state.held,
        "shared": state.strategy_state.shared,
    }
    for kind, values in many.items():
        found.update({f"{kind}/{name}": value for name, value in values.items()})
    return found


def changes(before: State, after: State) -> dict[str, Any]:
    """Return the cells that a commit must write; None stands for one that is gone."""
    old, new = cells(before), cells(after)
    gone: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    return gone | {key: value for key, value in new.items() if old.get(key) is not value}


def pack_cell(value: Any) -> bytes:
    """Return the bytes in which a cell is kept."""
    return codec.pack(value if hasattr(value, "__dataclass_fields__") else Vector(value))


def from_cells(rules: Rules, packed: Mapping[str, bytes]) -> State:
    """Return the state that was kept; raises `MalformedMessage` where a cell cannot be read."""
    many: dict[str, dict[str, Any]] = {kind: {} for kind in _MAPPINGS}
    for key, body in packed.items():
        kind, _, name = key.partition("/")
        if name:
            value = codec.unpack(_MAPPINGS[kind], body)
            many[kind][name] = value.values if isinstance(value, Vector) else value
    plan = codec.unpack(Plan, packed["plan"]) if "plan" in packed else None
    return State(
        rules=rules,
        # The first commits of a federation, while it enrols, do not change it: it is in none of them.
        progress=codec.unpack(Progress, packed["progress"]) if "progress" in packed else Progress(),
        members=many["member"],
        plan=plan,
        plan_hash="" if plan is None else codec.plan_hash(plan),
        weights=codec.unpack(Vector, packed["weights"]).values if "weights" in packed else None,
        strategy_state=StrategyState(many["held"], many["shared"]),
        moments=many["moments"],
        scores=many["scores"],
    )
