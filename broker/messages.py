"""What participants and aggregator say to each other: eight messages, frozen.

::

    participant                                      aggregator
        Hello        who I am, which columns, how many rows  ──►
                 ◄──  Plan         what is computed, and how
                 ◄──  GlobalModel  the newest weights; of whom what is asked
        ModelUpdate  what was asked, from my rows            ──►
        Evaluation   how a model does on my rows             ──►
        Heartbeat    alive; the newest model I have seen     ──►
        Goodbye      I leave in order                        ──►
                      ReleasedModel  for everybody downstream

A `GlobalModel` is published whenever somebody waits for news. ``version`` counts the weights, one up
for each new model; ``bulletin`` counts publications, so that the same weights may be sent
again with a newer roster. The queue that carries it keeps only the newest, hence all it says is cumulative: for each
participant the highest sequence that was settled (included, or refused and why), and what is asked of it now.

Contributions (`ModelUpdate`, `Evaluation`) are numbered by each participant, one up, one in flight. The number starts
again at 1 when a participant has lost its disk: ``incarnation``, drawn once for each new outbox, tells the two apart.

Arrays are float64. Their sizes follow from the plan's number of features d and are named in the
field's metadata: ``features`` is d, ``parameters`` is d + 1 (intercept last), ``packed`` the upper triangle of a
matrix of these, ``bins`` that of the histograms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

#: Raised by one with each new message or field; a field says since when it is there.
SCHEMA = 1

#: Raised when old and new can no longer talk; named in the refusal.
PROTOCOL = 1

#: Bins of the probability histograms in `Scores`.
N_BINS = 1000

#: Bytes. RabbitMQ 4 refuses more than 16 MiB by default, and 64 MiB costs a client half a GiB: well below both.
MAX_BODY_BYTES = 12 * 1024 * 1024

Array = NDArray[np.float64]
Phase = Literal["enrolling", "moments", "training", "verifying", "converged"]
Task = Literal["", "moments", "train", "evaluate"]
WorkerState = Literal["idle", "working", "awaiting"]

#: What each kind of update carries, and how long each array is.
UPDATE_ARRAYS: dict[str, dict[str, str]] = {
    "moments": {"mean": "features", "m2": "features"},
    "weights": {"weights": "parameters"},
    "delta": {"delta": "parameters"},
    # The fit ran away: there is nothing to send, and whoever waits for it has to know.
    "failed": {},
    # Sums over rows at the weights ``base``; the Hessian as its upper triangle, blended with the majoriser by theta.
    "curvature": {"base": "parameters", "gradient": "parameters", "hessian": "packed", "theta": "one"},
}


@dataclass(frozen=True, slots=True)
class Hello:
    """A participant introduces itself, at its start and after every reconnection."""

    federation: str
    participant: str
    incarnation: str
    features: tuple[str, ...]
    n_rows: int
    n_test_rows: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A participant is alive. ``bulletin`` is the newest it has seen: one that stays behind is sent again."""

    federation: str
    participant: str
    incarnation: str
    state: WorkerState
    bulletin: int


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A participant leaves in order: nobody needs to wait for it."""

    federation: str
    participant: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class LocalWork:
    """How a participant improves on its own rows.

    ``learning_rate`` None lets the solver choose (one over the largest curvature it can meet).
    ``batch_size`` None takes all rows in each step.
    """

    solver: str
    steps: int
    learning_rate: float | None
    batch_size: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The frozen standardisation: z = (x - mean) / scale."""

    mean: Array = field(metadata={"size": "features"})
    scale: Array = field(metadata={"size": "features"})


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is computed: the columns by name and in their order, the objective, the local work.

    ``frame`` is None before the moments are merged, and where rows are taken as they are.
    """

    federation: str
    revision: int
    features: tuple[str, ...]
    l2: float
    strategy: str
    kind: str
    work: LocalWork
    seed: int
    frame: Frame | None


@dataclass(frozen=True, slots=True)
class Standing:
    """What a participant must know of itself: ``settled`` is cumulative, ``asked`` is for now.

    ``refusal`` says why contribution number ``settled`` was not used; empty when it was.
    """

    incarnation: str
    settled: int
    refusal: str
    asked: Task


@dataclass(frozen=True, slots=True, eq=False)
class GlobalModel:
    """The newest weights, and where everybody stands. ``loss`` is in nats per row, where it is known."""

    federation: str
    epoch: int
    version: int
    bulletin: int
    phase: Phase
    plan_hash: str
    loss: float | None
    roster: dict[str, Standing]
    weights: Array = field(metadata={"size": "parameters"})


@dataclass(frozen=True, slots=True, eq=False)
class ModelUpdate:
    """What a participant computed from the model of ``base_version``; `UPDATE_ARRAYS` says what ``kind`` carries.

    ``n_samples`` is the weight of the rows behind it, ``loss`` their mean log-loss at the base version.
    """

    federation: str
    participant: str
    incarnation: str
    sequence: int
    kind: str
    base_version: int
    plan_hash: str
    n_samples: float
    loss: float
    fit_seconds: float
    arrays: dict[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How a model does on some rows, in sums that merge exactly."""

    n: float
    log_loss_sum: float
    brier_sum: float
    correct: float
    positives: Array = field(metadata={"size": "bins"})
    negatives: Array = field(metadata={"size": "bins"})


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The scores of model ``version`` on a participant's training rows and, if it has any, test rows."""

    federation: str
    participant: str
    incarnation: str
    sequence: int
    version: int
    plan_hash: str
    train: Scores
    test: Scores | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Scores as people read them: means per row; ``auc`` is None where only one class is present."""

    n: int
    log_loss: float
    brier: float
    accuracy: float
    auc: float | None


@dataclass(frozen=True, slots=True)
class MetricsTable:
    """The released model's scores: pooled, and for each site its own test rows."""

    train: Metrics
    test: Metrics | None
    test_by_site: dict[str, Metrics]


@dataclass(frozen=True, slots=True)
class Coefficient:
    """An estimate on the original scale of its column."""

    name: str
    estimate: float


@dataclass(frozen=True, slots=True)
class Contributor:
    """What the model owes to a participant."""

    name: str
    n_samples: int
    updates_included: int
    last_base_version: int


@dataclass(frozen=True, slots=True)
class Objective:
    """F at the released weights; ``value`` is in nats per row, the penalty included."""

    l2: float
    value: float


@dataclass(frozen=True, slots=True)
class Scaling:
    """The standardisation as plain numbers."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ReleasedModel:
    """A trained model for whoever subscribes: plain numbers and names, to be read without our code.

    ``weights`` and ``intercept`` are on the standardised scale; ``coefficients`` and
    ``intercept_coefficient`` on the original one: p = 1 / (1 + exp(-(intercept + x . estimates))).
    """

    federation: str
    epoch: int
    version: int
    strategy: str
    converged: bool
    n_samples: int
    features: tuple[str, ...]
    classes: tuple[int, ...]
    standardisation: Scaling
    weights: tuple[float, ...]
    intercept: float
    coefficients: tuple[Coefficient, ...]
    intercept_coefficient: Coefficient
    objective: Objective
    participants: tuple[Contributor, ...]
    metrics: MetricsTable


Message = Hello | Heartbeat | Goodbye | Plan | GlobalModel | ModelUpdate | Evaluation | ReleasedModel


@dataclass(frozen=True, slots=True)
class Sizes:
    """The lengths that arrays must have, by the name in their field's metadata."""

    features: int
    bins: int = N_BINS

    @property
    def parameters(self) -> int:
        """Weights and intercept."""
        return self.features + 1

    @property
    def packed(self) -> int:
        """The upper triangle of a matrix of all parameters."""
        return self.parameters * (self.parameters + 1) // 2

    def of(self, size: str) -> int:
        """Return the length that is called ``size``."""
        return {
            "features": self.features,
            "parameters": self.parameters,
            "packed": self.packed,
            "bins": self.bins,
            "one": 1,
        }[size]


def contribution_id(message: ModelUpdate | Evaluation) -> str:
    """Return the id by which a resend of the same contribution is known, everywhere and for ever."""
    return f"{message.participant}:{message.incarnation}:{message.sequence}"
