"""A federation told as a story: events go in one after the other, and what the coordinator wants done is looked at.

Nothing sleeps and nothing is sent; the clock is a number that the story turns.
"""

from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np

from aggregator import coordinator
from aggregator.coordinator import first_state, restored, step
from aggregator.events import (
    Action,
    ContributionArrived,
    Event,
    GoodbyeArrived,
    HeartbeatArrived,
    HelloArrived,
    Include,
    Observe,
    Record,
    Release,
    Send,
    Tick,
)
from aggregator.state import Rules, State, cells, from_cells, pack_cell
from aggregator.strategies import StrategyOptions, make_strategy
from broker.messages import (
    N_BINS,
    Array,
    Evaluation,
    GlobalModel,
    Goodbye,
    Heartbeat,
    Hello,
    LocalWork,
    ModelUpdate,
    Plan,
    Scores,
)
from broker.schema import Schema

FEATURES = ("age", "sex")
WORK = LocalWork("gradient-descent", 1, None, None)
A = TypeVar("A")


def rules(*participants: str, strategy: str = "fedavg", options: StrategyOptions | None = None, **given: Any) -> Rules:
    """Return rules under which training starts at once, and nothing but scores is asked for at its end."""
    defaults: dict[str, Any] = {
        "standardise": False,
        "choose_learning_rate": False,
        "l2": 0.1,
        "max_versions": 3,
        "inference": "none",
        "exact_auc": False,
    }
    return Rules(
        federation="heart",
        participants=participants,
        start_with=given.pop("start_with", len(participants)),
        strategy=make_strategy(strategy, options),
        work=WORK,
        **(defaults | given),
    )


def scores(*, n: float = 10.0, log_loss_sum: float = 5.0, **other: Any) -> Scores:
    """Return the scores of ``n`` rows, a half of each class, told apart well."""
    positives, negatives = np.zeros(N_BINS), np.zeros(N_BINS)
    positives[N_BINS - 1] = negatives[0] = n / 2
    sums: dict[str, Any] = {"brier_sum": n / 10, "correct": n, "positives": positives, "negatives": negatives}
    return Scores(n=n, log_loss_sum=log_loss_sum, **(sums | other))


@dataclass
class Story:
    """What has happened so far."""

    rules: Rules
    now: float = 0.0
    state: State = field(init=False)
    #: Of the last event.
    actions: list[Action] = field(default_factory=list)
    #: Of the whole story.
    all_actions: list[Action] = field(default_factory=list)
    all_updates: list[ModelUpdate] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = first_state(self.rules)

    # --- what happens -----------------------------------------------------------------------

    def happens(self, event: Event) -> Self:
        self.state, self.actions = step(self.state, event)
        self.all_actions.extend(self.actions)
        return self

    def hello(
        self,
        name: str,
        *,
        incarnation: str = "i1",
        features: tuple[str, ...] | None = None,
        n_rows: int = 10,
        n_test_rows: int = 0,
        feature_schema: Schema | None = None,
        **other: Any,
    ) -> Self:
        """Let ``name`` say hello; with a ``feature_schema`` its features are the schema's."""
        if features is None:
            features = FEATURES if feature_schema is None else feature_schema.names
        other["feature_schema"] = feature_schema
        hello = Hello("heart", name, incarnation, features, n_rows, n_test_rows, **other)
        return self.happens(HelloArrived(hello, self.now))

    def all_say_hello(self) -> Self:
        for name in self.rules.participants:
            self.hello(name)
        return self

    def arrives(self, contribution: ModelUpdate | Evaluation) -> Self:
        if isinstance(contribution, ModelUpdate):
            self.all_updates.append(contribution)
        return self.happens(ContributionArrived(contribution, "digest", self.now))

    def update(self, name: str, values: Array | float = 1.0, **other: Any) -> ModelUpdate:
        """Return the next update of ``name``, as the strategy wants it."""
        kind = self.rules.strategy.kind
        array = np.full(self.width + 1, values) if isinstance(values, float) else values
        return self._update(name, {"kind": kind, "arrays": {kind: array}, **other})

    def moments(self, name: str, **other: Any) -> ModelUpdate:
        """Return the moments of ``name``: its ten rows have mean 1 and variance 4 in every column."""
        d = self.width
        arrays = {"mean": np.ones(d), "m2": np.full(d, 40.0)}
        return self._update(name, {"kind": "moments", "arrays": arrays, **other})

    def _update(self, name: str, given: dict[str, Any]) -> ModelUpdate:
        member = self.state.members.get(name)
        fields: dict[str, Any] = {
            "federation": "heart",
            "participant": name,
            "incarnation": member.incarnation if member else "i1",
            "sequence": (member.received if member else 0) + 1,
            "base_version": self.state.progress.version,
            "plan_hash": self.state.plan_hash,
            "n_samples": 10.0,
            "loss": 0.5,
            "fit_seconds": 0.0,
        }
        return ModelUpdate(**(fields | given))

    def evaluation(self, name: str, **other: Any) -> Evaluation:
        """Return what ``name`` says of the model that is current now."""
        member = self.state.members[name]
        fields: dict[str, Any] = {
            "federation": "heart",
            "participant": name,
            "incarnation": member.incarnation,
            "sequence": member.received + 1,
            "version": self.state.progress.version,
            "plan_hash": self.state.plan_hash,
            "train": scores(),
            "test": None,
        }
        return Evaluation(**(fields | other))

    def trains(self, *names: str, **other: Any) -> Self:
        for name in names:
            self.arrives(self.update(name, **other))
        return self

    def reports_moments(self, *names: str, **arrays: Array) -> Self:
        """Let each of ``names`` send its moments, ``arrays`` in place of what all have."""
        for name in names:
            update = self.moments(name)
            update.arrays.update(arrays)
            self.arrives(update)
        return self

    def evaluates(self, *names: str, **other: Any) -> Self:
        for name in names:
            self.arrives(self.evaluation(name, **other))
        return self

    def heartbeat(
        self, name: str, bulletin: int | None = None, state: Any = "idle", *, incarnation: str = "i1", epoch: int = 0
    ) -> Self:
        """Let ``name`` say that it lives; without ``bulletin`` it has the newest."""
        seen = self.state.progress.bulletin if bulletin is None else bulletin
        return self.happens(HeartbeatArrived(Heartbeat("heart", name, incarnation, state, seen, epoch), self.now))

    def goodbye(self, name: str, *, incarnation: str = "i1") -> Self:
        return self.happens(GoodbyeArrived(Goodbye("heart", name, incarnation), self.now))

    def later(self, seconds: float) -> Self:
        """Let time pass, and the coordinator notice."""
        self.now += seconds
        return self.happens(Tick(self.now))

    def restart(self) -> Self:
        """Lose everything but the cells, and go on from them, under a clock that starts anew."""
        packed = {key: pack_cell(value) for key, value in cells(self.state).items()}
        self.now = 0.0
        self.state, self.actions = restored(from_cells(self.rules, packed), self.now, self.state.progress.epoch + 1)
        self.all_actions.extend(self.actions)
        return self

    # --- what came of it --------------------------------------------------------------------

    @property
    def phase(self) -> str:
        return self.state.progress.phase

    @property
    def version(self) -> int:
        return self.state.progress.version

    @property
    def width(self) -> int:
        """The number of the model's columns; before there is a plan, of those that sites have by default."""
        return len(FEATURES if self.state.plan is None else self.state.plan.features)

    @property
    def weights(self) -> list[float]:
        assert self.state.weights is not None
        return [float(weight) for weight in self.state.weights]

    @property
    def wakes_at(self) -> float | None:
        return coordinator.wake_at(self.state)

    def last(self, kind: type[A]) -> list[A]:
        """Return the actions of one kind that the last event brought."""
        return [action for action in self.actions if isinstance(action, kind)]

    @property
    def verdicts(self) -> list[str]:
        """Of the last event, as they go into the ledger."""
        return [record.verdict for record in self.last(Record)]

    @property
    def all_records(self) -> list[Record]:
        """The ledger of the whole story."""
        return [action for action in self.all_actions if isinstance(action, Record)]

    @property
    def included(self) -> list[str]:
        """Update ids that are in a model, in the whole story."""
        return [action.update_id for action in self.all_actions if isinstance(action, Include)]

    @property
    def models(self) -> list[tuple[str, GlobalModel]]:
        """Whom the last event sends which model."""
        return [(send.to, send.message) for send in self.last(Send) if isinstance(send.message, GlobalModel)]

    @property
    def plans(self) -> list[tuple[str, Plan]]:
        """Whom the last event sends which plan."""
        return [(send.to, send.message) for send in self.last(Send) if isinstance(send.message, Plan)]

    @property
    def model(self) -> GlobalModel:
        """The newest model that the last event sends."""
        return self.models[-1][1]

    def asked(self, name: str) -> str:
        """Return what the newest model of the last event asks of ``name``."""
        return self.model.roster[name].asked

    @property
    def releases(self) -> list[Release]:
        return [action for action in self.all_actions if isinstance(action, Release)]

    def observed(self, event: str) -> list[dict[str, Any]]:
        """Return what the last event lets people see under this name."""
        return [dict(seen.fields) for seen in self.last(Observe) if seen.event == event]
