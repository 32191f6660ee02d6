"""What the aggregator knows, frozen: the coordinator turns one of these into the next.

What must outlive a crash is a set of cells, each one small thing that changes as a whole: a
commit writes the cells that changed, never the whole state. `Presence` and the two times are the exception:
they are about now, and start afresh after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from aggregator.strategies import Contribution, Situation, Strategy, StrategyState
from broker import codec
from broker.messages import Array, Evaluation, Hello, InferenceKind, LocalWork, Missing, Penalty, Phase, Plan, Task
from broker.schema import OTHER
from logistic.moments import Moments

#: Parameters up to which a packed float64 Hessian fits into a message.
WIDEST_HESSIAN = 1500


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided: who may take part, what is computed, when it is good enough.

    Attributes
    ----------
    participants : who may take part; the first one's column order is the model's.
    start_with : how many of them must have said hello before training starts.
    wide_strategy : used in its place where there are more than `WIDEST_HESSIAN` parameters; None never.
    l2, l1 : penalties; l2 None is one over the number of training rows.
    penalty : ``firth`` is Firth's, in place of l2.
    class_weights : of each class in turn; empty is 1 each.
    missing : whether sites may have missing cells, filled with the federation's means.
    inference : what kind of standard errors the released model has.
    exact_auc : ask for counts between margins until the area under the ROC curve is exact.
    path : how many penalties l1 there are fits of besides; None for no path.
    evict_seconds : a site that is gone for so long counts no longer; None keeps what it contributed.
    work : what participants do locally.
    adapt_steps : give slow participants fewer local steps, so that all take about as long.
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
    wide_strategy: Strategy | None = None
    adapt_steps: bool = False
    choose_learning_rate: bool = True
    l2: float | None = None
    l1: float = 0.0
    penalty: Penalty = "ridge"
    class_weights: tuple[float, ...] = ()
    missing: Missing = "refuse"
    inference: InferenceKind = "wald"
    exact_auc: bool = True
    path: int | None = None
    evict_seconds: float | None = None
    standardise: bool = True
    seed: int = 0
    tolerance: float = 1e-4
    patience: int = 50
    max_versions: int = 500
    max_staleness: int = 100
    max_norm: float = 1e9
    silence_seconds: float = 35.0
    sweep_seconds: float = 60.0

    def need_moments(self, plan: Plan) -> bool:
        """Whether something of ``plan`` follows from the moments of everybody's rows."""
        rare = plan.feature_schema is not None and any(OTHER in each.levels for each in plan.feature_schema.features)
        return self.standardise or self.choose_learning_rate or plan.missing == "mean" or rare


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the federation stands, in scalars.

    ``stage`` is what is asked while the last model is verified. ``opened_at`` is the version at which training began,
    or began again. ``gap_bound`` bounds how far F is above its minimum. ``flat`` says that the optimum seemed to be
    infinitely far away, and ``examined_at`` when that was last looked into and not proved.

    ``terms`` says at which version each of the last ones began, as (epoch, version). In a term that a later one took up
    from a backup, versions went further than where that began: what was made of these is of models that are lost,
    although their numbers come again.
    """

    epoch: int = 1
    phase: Phase = "enrolling"
    version: int = 0
    bulletin: int = 0
    loss: float | None = None
    best_loss: float | None = None
    best_version: int = 0
    converged: bool = False
    stage: Task = "evaluate"
    opened_at: int = 0
    gap_bound: float | None = None
    flat: bool = False
    examined_at: int | None = None
    terms: tuple[tuple[int, int], ...] = ()


#: Earlier incarnations of a participant that are remembered: it draws another whenever it has lost its disk.
MOST_FORMER = 1000


@dataclass(frozen=True, slots=True)
class Member:
    """A participant that has said hello, and what became of its contributions.

    ``received`` and ``settled`` are sequence numbers of the current ``incarnation``; ``pending`` is the id of the
    update that is accepted and not yet in a model. ``barred`` says why nothing is asked of it, where that is so.
    ``failed_at`` is the version from which it last found no usable result: it is asked again of the next one.
    ``hello`` is kept only until the plan is made; ``former`` has the highest number received of each earlier
    incarnation that sent something, of the newest `MOST_FORMER`. ``n_samples`` is the sum of its rows' weights where
    they are weighted.
    ``fit_seconds`` is how long its last local fit took, of ``fit_steps``; ``steps`` is what it is given now, where 0 is
    the plan's number.
    ``heard`` is the digest of its last hello.
    ``evicted``: it has been gone for so long that what it contributed counts no longer.
    """

    name: str
    incarnation: str
    n_rows: int
    n_test_rows: int
    hello: Hello | None = None
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
    classes: tuple[int, ...] = (0, 1)
    n_samples: float | None = None
    fingerprint: str = ""
    evicted: bool = False
    fit_seconds: float | None = None
    fit_steps: int = 0
    steps: int = 0
    heard: str = ""

    @property
    def takes_part(self) -> bool:
        """Whether its rows are among those that the model is of."""
        return not self.barred and not self.evicted

    def with_former(self, incarnation: str, received: int) -> dict[str, int]:
        """Return ``former`` with one more, whose highest number received this is."""
        others = {known: number for known, number in self.former.items() if known != incarnation}
        newest = [*others.items(), (incarnation, received)]
        return dict(newest[-MOST_FORMER:])

    @property
    def weight(self) -> float:
        """Of its training rows: their number, or the sum of their weights."""
        return float(self.n_rows) if self.n_samples is None else self.n_samples


@dataclass(frozen=True, slots=True)
class Presence:
    """Whether somebody is there; about now, and not kept.

    ``addressed`` is the newest bulletin that was sent to it, ``seen`` the term and bulletin of the newest that it says
    it has.
    """

    state: Literal["live", "silent", "left"]
    last_heard: float
    seen: tuple[int, int] | None = None
    addressed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a participant has answered in the stage that is on."""

    arrays: dict[str, Array]


#: Bytes of the arrays of a recipe that is kept; of a larger one every version would be written several times over.
LARGEST_RECIPE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Surroundings:
    """A `Situation` as it is kept, and whom the strategy wanted to hear; ``version`` is what was made then."""

    version: int
    l2: float
    l1: float
    n_outputs: int
    received: tuple[str, ...]
    live: tuple[str, ...]
    wanted: tuple[str, ...] | None
    penalty_scale: Array | None
    learning_rate: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What the newest version was made of: anybody can make it again, and compare."""

    surroundings: Surroundings
    weights: Array
    held: Mapping[str, Contribution]
    shared: Mapping[str, Array]

    @property
    def strategy_state(self) -> StrategyState:
        """The strategy's state as it was before it finished."""
        wanted = self.surroundings.wanted
        return StrategyState(dict(self.held), dict(self.shared), None if wanted is None else frozenset(wanted))

    @property
    def situation(self) -> Situation:
        """What the strategy was told besides."""
        s = self.surroundings
        return Situation(
            l2=s.l2,
            received=frozenset(s.received),
            live=frozenset(s.live),
            l1=s.l1,
            n_outputs=s.n_outputs,
            penalty_scale=s.penalty_scale,
            learning_rate=s.learning_rate,
        )


def recipe(version: int, strategy_state: StrategyState, weights: Array, situation: Situation) -> Recipe | None:
    """Return of what ``version`` is made; None where it is larger than `LARGEST_RECIPE`."""
    held, shared, wanted = strategy_state.held, strategy_state.shared, strategy_state.wanted
    arrays = [weights, *shared.values(), *(array for each in held.values() for array in each.arrays.values())]
    if sum(array.nbytes for array in arrays) > LARGEST_RECIPE:
        return None
    surroundings = Surroundings(
        version=version,
        l2=situation.l2,
        l1=situation.l1,
        n_outputs=situation.n_outputs,
        received=tuple(sorted(situation.received or ())),
        live=tuple(sorted(situation.live)),
        wanted=None if wanted is None else tuple(sorted(wanted)),
        penalty_scale=situation.penalty_scale,
        learning_rate=situation.learning_rate,
    )
    return Recipe(surroundings, weights, held, shared)


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All of it. Times are those of the events, in seconds on a clock that never goes back.

    ``outrun_at`` is when this term began, if participants had heard of others than the store.
    ``question`` is what the stage that is on asks about, ``answers`` what has come, ``found`` what is known from the
    stages before. ``recipe`` is what the newest version was made of, where that is kept.
    """

    rules: Rules
    progress: Progress = field(default_factory=Progress)
    members: Mapping[str, Member] = field(default_factory=dict)
    plan: Plan | None = None
    plan_hash: str = ""
    weights: Array | None = None
    strategy_state: StrategyState = field(default_factory=StrategyState)
    moments: Mapping[str, Moments] = field(default_factory=dict)
    scores: Mapping[str, Evaluation] = field(default_factory=dict)
    question: Mapping[str, Array] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    found: Mapping[str, Array] = field(default_factory=dict)
    recipe: Recipe | None = None
    presence: Mapping[str, Presence] = field(default_factory=dict)
    version_since: float = 0.0
    outrun_at: float | None = None
    quorum_since: float | None = None
    sweep_since: float = 0.0

    @property
    def strategy(self) -> Strategy:
        """How updates become the next model; a very wide one has a strategy of its own.

        Which, the plan says: it may lose columns later, and what sites send goes by what it was made for.
        """
        wide, planned = self.rules.wide_strategy, "" if self.plan is None else self.plan.strategy
        return wide if wide is not None and planned == wide.name else self.rules.strategy

    def needs_moments_of(self, name: str) -> bool:
        """Whether its moments are asked for now: of everybody at first, later of who joins, or whose rows change."""
        needed = self.plan is not None and self.rules.need_moments(self.plan)
        if name in self.moments or not needed or not self.members[name].takes_part:
            return False
        return self.progress.phase in {"moments", "training"}

    @property
    def live(self) -> frozenset[str]:
        """Participants that may still answer and are asked to."""
        return frozenset(
            name
            for name, presence in self.presence.items()
            if presence.state == "live" and self.members[name].takes_part
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
    "question": Vector,
    "answer": Answer,
    "found": Vector,
    "recipe-held": Contribution,
    "recipe-shared": Vector,
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
        "question": state.question,
        "answer": state.answers,
        "found": state.found,
    }
    if state.recipe is not None:
        found |= {"recipe": state.recipe.surroundings, "recipe-weights": state.recipe.weights}
        many |= {"recipe-held": state.recipe.held, "recipe-shared": state.recipe.shared}
    for kind, values in many.items():
        found.update({f"{kind}/{name}": value for name, value in values.items()})
    return found


def changes(before: State, after: State) -> dict[str, Any]:
    """Return the cells that a commit must write; None stands for one that is gone."""
    old, new = cells(before), cells(after)
    gone: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    return gone | {key: value for key, value in new.items() if old.get(key) is not value}


def weights_hash(weights: Array) -> str:
    """Return the hash by which a version is known."""
    return sha256(np.ascontiguousarray(weights).data).hexdigest()


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
    made_of = None
    if "recipe" in packed:
        surroundings = codec.unpack(Surroundings, packed["recipe"])
        weights = codec.unpack(Vector, packed["recipe-weights"]).values
        made_of = Recipe(surroundings, weights, many["recipe-held"], many["recipe-shared"])
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
        question=many["question"],
        answers=many["answer"],
        found=many["found"],
        recipe=made_of,
    )
