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

Arrays are float64. Their sizes follow from the plan's number of features d and of classes C and are named in the
field's metadata: ``features`` is d, ``parameters`` is d + 1 (intercept last) for two classes and C (d + 1) for more,
class by class; ``packed`` is the upper triangle of a matrix of these, ``bins`` that of the histograms.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.schema import Schema

#: Raised by one with each new message or field; a field says since when it is there.
SCHEMA = 4

#: Raised when old and new can no longer talk; named in the refusal.
PROTOCOL = 1

#: Bins of the probability histograms in `Scores`.
N_BINS = 1000

#: Bytes. RabbitMQ 4 refuses more than 16 MiB by default: below it, with room for a message's properties. Two arrays
#: of a million numbers fit, which are the moments of a million columns.
MAX_BODY_BYTES = 16 * 1024 * 1024 - 64 * 1024

#: Intervals of margins of which `Ranks` are asked at once: half a megabyte for the counts of two sets of rows.
MAX_INTERVALS = 16384

#: Directions that are examined for separation at once.
MAX_DIRECTIONS = 8

Array = NDArray[np.float64]
Phase = Literal["enrolling", "moments", "training", "verifying", "converged"]
Task = Literal["", "moments", "train", "evaluate", "rank", "sides", "path"]
Penalty = Literal["ridge", "firth"]
Missing = Literal["refuse", "mean"]
InferenceKind = Literal["none", "wald", "sandwich"]
WorkerState = Literal["idle", "working", "awaiting"]


class Part(NamedTuple):
    """An array of an update: what its length is called, and whether it may be left out."""

    size: str
    optional: bool = False


#: What each kind of update carries.
UPDATE_ARRAYS: dict[str, dict[str, Part]] = {
    # ``observed`` is there where cells are missing: the weight of the rows with a value, for each column.
    "moments": {"mean": Part("features"), "m2": Part("features"), "observed": Part("features", optional=True)},
    "weights": {"weights": Part("parameters")},
    # ``steps``: how many local steps it took, where that is not the same for everybody.
    "delta": {"delta": Part("parameters"), "steps": Part("one", optional=True)},
    # Of SCAFFOLD: the change of the weights, and the participant's new control variate.
    "control": {"delta": Part("parameters"), "control": Part("parameters")},
    # The fit ran away: there is nothing to send, and whoever waits for it has to know.
    "failed": {},
    # Sums over rows at the weights ``base``, which may be left out: those of the base version.
    "gradient": {"base": Part("parameters", optional=True), "gradient": Part("parameters")},
    # The same with the Hessian as its upper triangle, blended with the majoriser by theta; left out where it is as good
    # as the one sent last, ``drift`` being the largest change of a margin since then; ``reach`` is the largest norm
    # of a row.
    "curvature": {
        "base": Part("parameters"),
        "gradient": Part("parameters"),
        "hessian": Part("packed", optional=True),
        "theta": Part("one"),
        "reach": Part("one", optional=True),
        "drift": Part("one", optional=True),
    },
    # Firth's two rounds: the Hessian, then the score by hat values that follow from everybody's Hessians.
    "firth": {
        "base": Part("parameters"),
        "hessian": Part("packed", optional=True),
        "gradient": Part("parameters", optional=True),
    },
    # How many rows of each class have a margin in each of the intervals that were asked for.
    "ranks": {
        "train_positives": Part("intervals", optional=True),
        "train_negatives": Part("intervals", optional=True),
        "test_positives": Part("intervals", optional=True),
        "test_negatives": Part("intervals", optional=True),
    },
    # For each of several models that are asked about at once: sums over rows, flat, one model after another.
    "path": {
        "losses": Part("models"),
        "test_losses": Part("models", optional=True),
        "gradients": Part("models"),
        "hessians": Part("models"),
    },
    # For each direction: how many rows lie on the wrong side of it, on its boundary, and on the right side.
    "sides": {"wrong": Part("directions"), "on": Part("directions"), "right": Part("directions")},
}


@dataclass(frozen=True, slots=True)
class Hello:
    """A participant introduces itself, at its start and after every reconnection.

    ``n_samples`` is the sum of the weights of its training rows, None where each counts as one. ``fingerprint`` changes
    when its rows do. With a ``feature_schema`` the features are the schema's, and ``levels`` are those that enough of
    its rows have, of each feature whose levels are to be found.
    """

    federation: str
    participant: str
    incarnation: str
    features: tuple[str, ...]
    n_rows: int
    n_test_rows: int
    classes: tuple[int, ...] = field(default=(0, 1), metadata={"since": 2})
    n_samples: float | None = field(default=None, metadata={"since": 2})
    fingerprint: str = field(default="", metadata={"since": 2})
    feature_schema: Schema | None = field(default=None, metadata={"since": 3})
    levels: dict[str, tuple[str, ...]] = field(default_factory=dict, metadata={"since": 3})


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A participant is alive. ``bulletin`` is the newest it has seen: one that stays behind is sent again.

    Of term ``epoch``, 0 where it is not told: one that the aggregator never published shows that its store is an older
    one, from a backup.
    """

    federation: str
    participant: str
    incarnation: str
    state: WorkerState
    bulletin: int
    epoch: int = field(default=0, metadata={"since": 4})


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
    ``batch_size`` None takes all rows in each step. ``proximal`` is mu: how strongly the local
    objective holds on to the global weights.
    """

    solver: str
    steps: int
    learning_rate: float | None
    batch_size: int | None
    proximal: float = field(default=0.0, metadata={"since": 2})


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The frozen standardisation: z = (x - mean) / scale; without a mean nothing is subtracted.

    Subtracting it moves the intercept and no slope, since the intercept is not penalised. Of very many columns it is
    left out: the message is half as long.
    """

    mean: Array | None = field(metadata={"size": "features"})
    scale: Array = field(metadata={"size": "features"})

    @property
    def centre(self) -> Array:
        """What is subtracted, (n_features,): ``mean``, or zeros."""
        return np.zeros(len(self.scale)) if self.mean is None else self.mean


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What is computed: the columns by name and in their order, the objective, the local work.

    ``frame`` is None before the moments are merged, and where rows are taken as they are. ``fill`` is what stands for
    missing cells. ``class_weights`` multiply the rows of each class; empty, each counts as one. ``feature_schema`` has
    the levels of all sites; ``features`` are the columns that follow from it.
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
    classes: tuple[int, ...] = field(default=(0, 1), metadata={"since": 2})
    class_weights: tuple[float, ...] = field(default=(), metadata={"since": 2})
    penalty: Penalty = field(default="ridge", metadata={"since": 2})
    l1: float = field(default=0.0, metadata={"since": 2})
    inference: InferenceKind = field(default="none", metadata={"since": 2})
    missing: Missing = field(default="refuse", metadata={"since": 2})
    fill: Array | None = field(default=None, metadata={"since": 2, "size": "features"})
    feature_schema: Schema | None = field(default=None, metadata={"since": 3})

    @property
    def sizes(self) -> Sizes:
        """The lengths of arrays under this plan."""
        return Sizes(len(self.features), n_outputs=1 if len(self.classes) == 2 else len(self.classes))  # noqa: PLR2004 - two classes share one margin


@dataclass(frozen=True, slots=True)
class Standing:
    """What a participant must know of itself: ``settled`` is cumulative, ``asked`` is for now.

    ``refusal`` says why contribution number ``settled`` was not used; empty when it was. ``steps`` is how many local
    steps it should take; 0 is the plan's number. ``hello`` is `hello_digest` of the last one that was heard; empty
    where it is not told.
    """

    incarnation: str
    settled: int
    refusal: str
    asked: Task
    steps: int = field(default=0, metadata={"since": 2})
    hello: str = field(default="", metadata={"since": 4})


@dataclass(frozen=True, slots=True, eq=False)
class GlobalModel:
    """The newest weights, and where everybody stands. ``loss`` is in nats per row, where it is known.

    ``extra`` is what a task needs besides the weights: the control variate of all, margins to count between.
    """

    federation: str
    epoch: int
    version: int
    bulletin: int
    phase: Phase
    plan_hash: str
    loss: float | None
    roster: dict[str, Standing]
    weights: Array = field(metadata={"size": "parameters"})
    extra: dict[str, Array] = field(default_factory=dict, metadata={"since": 2})


@dataclass(frozen=True, slots=True, eq=False)
class ModelUpdate:
    """What a participant computed from the model of ``base_version``; `UPDATE_ARRAYS` says what ``kind`` carries.

    ``n_samples`` is the weight of the rows behind it, ``loss`` their mean log-loss at the base version. ``epoch`` is
    the term in which that was published, 0 where it is not told.
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
    epoch: int = field(default=0, metadata={"since": 4})


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """How a model does on some rows, in sums that merge exactly; ``auc`` does not merge and is these rows' own."""

    n: float
    log_loss_sum: float
    brier_sum: float
    correct: float
    positives: Array = field(metadata={"size": "bins"})
    negatives: Array = field(metadata={"size": "bins"})
    auc: float | None = field(default=None, metadata={"since": 2})


@dataclass(frozen=True, slots=True, eq=False)
class Information:
    """Sums over training rows at the evaluated weights, unpenalised: what standard errors are made of.

    ``meat`` is the sum of s^2 (y - p)^2 x x', packed as ``hessian`` is; only where the sandwich is wanted. Where rows
    have offsets the likelihood of the intercept alone does not follow from counts.
    """

    gradient: Array = field(metadata={"size": "parameters"})
    hessian: Array = field(metadata={"size": "packed"})
    meat: Array | None = field(metadata={"size": "packed"})
    has_offset: bool


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """The scores of model ``version`` on a participant's training rows and, if it has any, test rows.

    ``epoch`` is the term in which the model was published, 0 where it is not told.
    """

    federation: str
    participant: str
    incarnation: str
    sequence: int
    version: int
    plan_hash: str
    train: Scores
    test: Scores | None
    information: Information | None = field(default=None, metadata={"since": 2})
    epoch: int = field(default=0, metadata={"since": 4})


@dataclass(frozen=True, slots=True)
class Metrics:
    """Scores as people read them: means per row; ``auc`` is None where only one class is present.

    The exact area lies within ``auc_tie_bound`` of ``auc``; what is tied because rows are alike counts as tied.
    """

    n: int
    log_loss: float
    brier: float
    accuracy: float
    auc: float | None
    auc_tie_bound: float | None = field(default=None, metadata={"since": 2})


@dataclass(frozen=True, slots=True)
class MetricsTable:
    """The released model's scores: pooled, and for each site its own test rows."""

    train: Metrics
    test: Metrics | None
    test_by_site: dict[str, Metrics]


@dataclass(frozen=True, slots=True)
class Coefficient:
    """An estimate on the original scale of its column, and how sure one can be of it; None where that is undefined."""

    name: str
    estimate: float
    std_error: float | None = field(default=None, metadata={"since": 2})
    z: float | None = field(default=None, metadata={"since": 2})
    p_value: float | None = field(default=None, metadata={"since": 2})
    ci_low: float | None = field(default=None, metadata={"since": 2})
    ci_high: float | None = field(default=None, metadata={"since": 2})
    odds_ratio: float | None = field(default=None, metadata={"since": 2})


@dataclass(frozen=True, slots=True)
class Contributor:
    """What the model owes to a participant.

    ``present``: whether it has confirmed the last model; if not, its rows count with what it last sent.
    """

    name: str
    n_samples: int
    updates_included: int
    last_base_version: int
    present: bool = field(default=True, metadata={"since": 2})


@dataclass(frozen=True, slots=True)
class Objective:
    """F at the released weights; ``value`` is in nats per row, the penalty included."""

    l2: float
    value: float
    l1: float = field(default=0.0, metadata={"since": 2})
    penalty: Penalty = field(default="ridge", metadata={"since": 2})


@dataclass(frozen=True, slots=True)
class Convergence:
    """How far the released weights are from the optimum of F, measured by everybody at just these weights.

    Attributes
    ----------
    gradient_norm : largest component of the gradient of F.
    newton_step : largest component of what a step of Newton's method would still change, on the standardised scale.
    newton_decrement : half its square estimates F - F*, in nats per row.
    gap_bound : upper bound of F - F* that followed from the last quadratics alone, in nats per row.
    """

    gradient_norm: float | None
    newton_step: float | None
    newton_decrement: float | None
    gap_bound: float | None


@dataclass(frozen=True, slots=True)
class FitStatistics:
    """The fit as a whole, as R's glm and statsmodels call it; None where undefined."""

    log_likelihood: float
    deviance: float
    null_deviance: float | None
    df_model: float
    df_residual: float
    effective_df: float
    aic: float | None
    bic: float | None
    lr_statistic: float | None
    lr_p_value: float | None
    pseudo_r2: float | None


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far a site's coefficient is from what the sites have in common.

    ``single_class``: its rows have one label, so that it has the direction and not the size.
    """

    deviation: float
    std_error: float
    single_class: bool


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """Whether the sites agree on a coefficient: Cochran's Q, and I2, the share of variation that is not chance."""

    name: str
    q: float | None
    df: int
    p_value: float | None
    i2: float | None
    by_site: dict[str, Deviation]


@dataclass(frozen=True, slots=True)
class Inference:
    """Standard errors and what goes with them.

    ``kind`` is how they were made, ``none`` where there are none; ``why`` then says why. ``covariance`` is of the
    coefficients on the original scale, in the order of the features, the intercept last; empty where it is too large.
    """

    kind: InferenceKind
    why: str
    statistics: FitStatistics | None
    covariance: tuple[tuple[float | None, ...], ...]
    heterogeneity: tuple[Heterogeneity, ...]


@dataclass(frozen=True, slots=True)
class ClassModel:
    """One class of more than two: its margin is ``weights . z + intercept``; the largest is that of the likeliest.

    ``coefficients`` are on the original scale, and relative to the first class.
    """

    label: int
    weights: tuple[float, ...]
    intercept: float
    coefficients: tuple[Coefficient, ...]
    intercept_coefficient: Coefficient


@dataclass(frozen=True, slots=True)
class Scaling:
    """The standardisation as plain numbers."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PathPoint:
    """The fit for one penalty of a path; ``weights`` on the standardised scale, ``estimates`` on the original one.

    The intercept is last in both; losses are means in nats per row, ``objective`` is F with the penalties.
    """

    l1: float
    n_nonzero: int
    objective: float
    log_loss: float
    test_log_loss: float | None
    weights: tuple[float, ...]
    estimates: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ReleasedModel:
    """A trained model for whoever subscribes: plain numbers and names, to be read without our code.

    ``weights`` and ``intercept`` are on the standardised scale; ``coefficients`` and
    ``intercept_coefficient`` on the original one: p = 1 / (1 + exp(-(intercept + x . estimates))). Of more than two
    classes these are empty and 0, and ``by_class`` has them. ``notes`` are what readers should know. ``feature_schema``
    says how the features follow from a table, and ``fill`` what stands for their missing cells.

    Of very many features, what is longer than a message is left out: the standardisation is empty, the weights are on
    the original scale, and there are no coefficients.
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
    convergence: Convergence | None = field(default=None, metadata={"since": 2})
    inference: Inference | None = field(default=None, metadata={"since": 2})
    by_class: tuple[ClassModel, ...] = field(default=(), metadata={"since": 2})
    notes: tuple[str, ...] = field(default=(), metadata={"since": 2})
    path: tuple[PathPoint, ...] = field(default=(), metadata={"since": 2})
    feature_schema: Schema | None = field(default=None, metadata={"since": 3})
    fill: tuple[float, ...] = field(default=(), metadata={"since": 3})


Message = Hello | Heartbeat | Goodbye | Plan | GlobalModel | ModelUpdate | Evaluation | ReleasedModel


@dataclass(frozen=True, slots=True)
class Sizes:
    """The lengths that arrays must have, by the name in their field's metadata."""

    features: int
    n_outputs: int = 1
    bins: int = N_BINS

    @property
    def parameters(self) -> int:
        """Weights and intercept, of each output."""
        return self.n_outputs * (self.features + 1)

    @property
    def packed(self) -> int:
        """The upper triangle of a matrix of all parameters."""
        return self.parameters * (self.parameters + 1) // 2

    def of(self, size: str) -> int:
        """Return the length that is called ``size``; of `OPEN_SIZES`, the largest."""
        return {
            "features": self.features,
            "parameters": self.parameters,
            "packed": self.packed,
            "bins": self.bins,
            "one": 1,
            "intervals": MAX_INTERVALS,
            "directions": MAX_DIRECTIONS,
            "models": MAX_BODY_BYTES // 8,
        }[size]


#: Lengths that follow from what was asked, not from the plan.
OPEN_SIZES = frozenset({"intervals", "directions", "models"})


def contribution_id(message: ModelUpdate | Evaluation) -> str:
    """Return the id by which a resend of the same contribution is known, everywhere and for ever."""
    return f"{message.participant}:{message.incarnation}:{message.sequence}"
