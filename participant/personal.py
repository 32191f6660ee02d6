"""A model of the site's own beside the released one, and which of them is better here. Pure functions of its rows.

The global weights w* are the best for everybody together; a site may differ. Its own model is of two kinds:

own intercept   The slopes of w* stay, the intercept is refitted: the b that minimises the log-loss of the training rows
                with the margins z* + b; of more than two classes one for each. It corrects how frequent the outcome is
                here, and makes the mean prediction on the training rows the observed share: "recalibration in the
                large" (Steyerberg et al. 2004).

fine-tuned      The minimum of f(w) + (mu/2) ||w - w*||^2, f being the mean log-loss of the site's training rows,
                without another penalty. mu = 0 is the model of the site alone, mu = infinity the global one, and mu is
                chosen between them by cross-validation inside the training rows. It is the personal objective of Ditto
                (Li et al. 2021), and the proximal map of pFedMe (Dinh et al. 2020), at the w* that is released.

The rows that are held out have had their share in w*: cross-validation flatters mu = infinity, the more so the larger
the site's part of everybody's rows is. It errs towards the global model.

Test rows choose nothing. They are looked at when everything is fitted, for the comparison: `participant.comparison`.

Steyerberg, Borsboom, van Houwelingen, Eijkemans & Habbema, "Validation and updating of predictive logistic regression
models", Statistics in Medicine 23, 2004; Li, Hu, Beirami & Smith, "Ditto: Fair and robust federated learning through
personalization", ICML 2021; Dinh, Tran & Nguyen, "Personalized federated learning with Moreau envelopes", NeurIPS 2020.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from logistic.loss import log_loss_sum
from logistic.problem import Matrix, Problem, Pull, Vector
from logistic.softmax import centred, excesses, log_losses, softmax
from logistic.solvers import make_solver, solve
from participant.comparison import Comparison, Scores, class_scores, compare, labels_and_weights, scores

Kind = Literal["own_intercept", "fine_tuned"]

#: What each kind is called in a sentence.
NAMES: dict[Kind, str] = {"own_intercept": "the model with its own intercept", "fine_tuned": "the local model"}

NOT_IN_MEMORY = (
    "fine-tuning holds out some of the training rows, which must be in memory for it; these are read anew each time, "
    "and the global model is kept"
)
NO_ROWS = "there are no training rows here, and the global model is kept"

#: What mu is chosen from besides infinity, in nats per row and squared unit of a standardised weight. Along such a
#: column the loss curves by .25 at most, and by .01 where the outcome is rare: at 10 next to nothing moves, at 1e-5
#: next to nothing is held back. Half a decade is finer than cross-validation can tell.
MUS = tuple(10.0 ** (exponent / 2) for exponent in range(2, -11, -1))

FOLDS = 5

#: Parameters up to which Newton's method is quicker than L-BFGS, which takes about fifteen times as many steps: 160
#: against 2,300 in a cross-validation on Bank Marketing, where it was three to seven times slower with 41 parameters.
NEWTON_UP_TO = 300
#: L-BFGS may want more for the smallest mu on collinear columns; what it then has is judged as it is.
MAX_STEPS = 500
#: Of the largest component of the gradient, in nats per row: five digits beyond what held-out rows can tell.
TOLERANCE = 1e-9

#: Steps for the intercepts; as a rule it takes four to seven.
MAX_INTERCEPT_STEPS = 100
#: After a step of Newton's method of this length, in nats, its square is left.
LAST_STEP = 1e-8
#: Relative: by so much the sum of the row losses may rise by rounding alone.
LOSS_ROUNDING = 1e-13


@dataclass(frozen=True, slots=True)
class Trial:
    """How fine-tuning with ``mu`` does on rows that are held out, in nats per row."""

    mu: float
    log_loss: float


@dataclass(frozen=True, slots=True, eq=False)
class OwnModel:
    """A model of the site's own.

    Attributes
    ----------
    weights : (n_parameters,) in the frame of the global ones; these very ones where there is nothing better.
    kept : why they are the global ones; empty where they are not.
    mu : of a fine-tuned one, how strongly it was held back: infinity where it is the global model.
    trials : what ``mu`` was chosen from.
    """

    weights: Vector
    kept: str = ""
    mu: float = inf
    trials: tuple[Trial, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An own model and how it does on the test rows; ``verdict`` says it in a sentence.

    ``scores`` is None without test rows, ``comparison`` also where the model is the global one.
    """

    model: OwnModel
    scores: Scores | None
    comparison: Comparison | None
    verdict: str


@dataclass(frozen=True, slots=True, eq=False)
class Personal:
    """The models of the site's own that were asked for, and the global one's scores on the same test rows."""

    n_train_rows: int
    n_test_rows: int
    global_scores: Scores | None
    own: dict[Kind, Judged]

    @property
    def verdict(self) -> str:
        """The sentence for the site: on the fine-tuned model, or else on the one with its own intercept.

        Not on whichever of the two does better on the test rows: that choice would not be in the standard error.
        """
        return self.own["fine_tuned" if "fine_tuned" in self.own else "own_intercept"].verdict


def never() -> None:
    """Let the work go on to its end."""


def generator(seed: int, participant: str) -> np.random.Generator:
    """Return the randomness of the folds: the same for the same site, wherever and whenever they are drawn."""
    return np.random.default_rng([seed, zlib.crc32(participant.encode())])


def personalise(
    train: Problem,
    test: Problem | None,
    weights: Vector,
    *,
    wanted: Sequence[Kind],
    classes: Sequence[int],
    rng: np.random.Generator,
    interrupt: Callable[[], None] = never,
) -> Personal:
    """Return the own models that are ``wanted``, and how they compare with the global one.

    Parameters
    ----------
    train, test : the site's rows in the frame of the plan; ``test`` None where there are none.
    weights : (n_parameters,) the released ones, w*.
    wanted : one kind at least.
    classes : their labels, for sentences.
    rng : of the folds.
    interrupt : called before each fit; what it raises ends the work.
    """
    made: dict[Kind, OwnModel] = {}
    if "own_intercept" in wanted:
        interrupt()
        made["own_intercept"] = own_intercept(train, weights, classes)
    if "fine_tuned" in wanted:
        made["fine_tuned"] = fine_tuned(train, weights, classes, rng, interrupt)
    return Personal(
        n_train_rows=train.n_rows,
        n_test_rows=0 if test is None else test.n_rows,
        global_scores=None if test is None else scores(test, weights),
        own={kind: _judged(kind, model, test, weights) for kind, model in made.items()},
    )


def _judged(kind: Kind, model: OwnModel, test: Problem | None, weights: Vector) -> Judged:
    if test is None:
        untold = "there are no test rows here to compare it with the global one on"
        return Judged(model, None, None, model.kept or f"{NAMES[kind]} is made; {untold}")
    if model.kept:
        return Judged(model, scores(test, model.weights), None, model.kept)
    comparison = compare(test, weights, model.weights)
    return Judged(model, scores(test, model.weights), comparison, comparison.sentence(NAMES[kind]))


# --- an intercept of its own ------------------------------------------------------------------


def own_intercept(train: Problem, weights: Vector, classes: Sequence[int]) -> OwnModel:
    """Return the global model with its intercept, or that of each class, refitted on ``train``.

    With the slopes given there is one finite estimate just if each class has a row: the intercept of one that has none
    would go to minus infinity. Then the global ones are kept.
    """
    shares = _shares(train)
    if not shares.any():
        return OwnModel(weights, NO_ROWS)
    if absent := [str(label) for label, share in zip(classes, shares, strict=True) if share == 0.0]:
        return OwnModel(
            weights,
            f"no training row here is of class {' or '.join(absent)}: an intercept of its own would be infinite, "
            "and the global one is kept",
        )
    change = refitted_intercepts(class_scores(train, weights), train)
    own = centred(weights, train.n_outputs).reshape(train.n_outputs, -1).copy()
    own[:, -1] += change[1] if train.n_outputs == 1 else change - change.mean()
    return OwnModel(own.ravel())


def refitted_intercepts(z: Matrix, train: Problem) -> Vector:
    """Return what to add to the margins of each class so that the log-loss is least: (n_classes,), the first 0.

    ::

        minimise over b   f(b) = sum_j s_j logloss(y_j, z_j + b)

    Newton's method, H = sum_j s_j (diag(p_j) - p_j p_j'), as long as it lowers f. Where it does not, from rows that are
    all confidently wrong, a step of iterative scaling: b_c += log(observed weight of c / expected weight of c). It
    lowers f from anywhere, for the classes are indicators that sum to one in each row (Darroch & Ratcliff, Annals of
    Mathematical Statistics 43, 1972).

    Parameters
    ----------
    z : (n_rows, n_classes) margins of the rows of ``train``, of which each class has some with weight.
    """
    labels, s = labels_and_weights(train)
    observed = np.log(_shares(train))
    b = np.zeros(z.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # a step too long is found out by its loss
        for _ in range(MAX_INTERCEPT_STEPS):
            step = _newton(z + b, labels, s)
            now, then = (float(s @ log_losses(z + at, labels)) for at in (b, b + step))
            if not then <= now * (1.0 + LOSS_ROUNDING):  # NaN included
                step = _scaling(z + b, s, observed)
            b = b + step
            if np.abs(step).max() <= LAST_STEP:
                break
    return b


def _scaling(z: Matrix, s: Vector, observed: Vector) -> Vector:
    """Return log(observed / expected), (n_classes,), the first 0; the logarithm of what may be below any float."""
    counted = s > 0
    log_p = z[counted] - np.logaddexp.reduce(z[counted], axis=1)[:, np.newaxis]
    step = observed - np.logaddexp.reduce(log_p + np.log(s[counted])[:, np.newaxis], axis=0)
    from_first: Vector = step - step[0]
    return from_first


def _newton(z: Matrix, labels: NDArray[np.intp], s: Vector) -> Vector:
    """Return the Newton step, (n_classes,), the first 0; NaN where the curvature has vanished."""
    p = softmax(z)
    g = s @ excesses(p, labels)
    H = np.diag(s @ p) - (p.T * s) @ p
    step = np.zeros(z.shape[1])
    try:
        step[1:] = np.linalg.solve(H[1:, 1:], -g[1:])
    except np.linalg.LinAlgError:
        step[1:] = np.nan
    return step


def _shares(problem: Problem) -> Vector:
    """Return the weight of the rows of each class, (n_classes,)."""
    return np.bincount(*labels_and_weights(problem), problem.n_classes).astype(np.float64)


# --- fine-tuned -------------------------------------------------------------------------------


def fine_tuned(
    train: Problem,
    weights: Vector,
    classes: Sequence[int],
    rng: np.random.Generator,
    interrupt: Callable[[], None] = never,
) -> OwnModel:
    """Return the minimum of f(w) + (mu/2) ||w - w*||^2 on ``train``, with the mu that does best on rows held out.

    Rows of one class alone teach only that there is no other, and those held out agree: the global model is kept. So it
    is where rows cannot be held out, because they are read anew each time.
    """
    if not train.in_memory:
        return OwnModel(weights, NOT_IN_MEMORY)
    present = np.flatnonzero(_shares(train))
    if present.size == 0:
        return OwnModel(weights, NO_ROWS)
    if present.size == 1:
        return OwnModel(
            weights,
            f"all training rows here are of class {classes[present[0]]}: fine-tuned on them a model would learn to say "
            "nothing else, and the global one is kept",
        )
    trials = cross_validated(train, weights, rng, interrupt)
    best = min(trials, key=lambda trial: trial.log_loss)  # of equals the first, which is nearest to the global model
    if best.mu == inf:
        kept = "nothing did better than the global model in cross-validation on the training rows here, and it is kept"
        return OwnModel(weights, kept, inf, trials)
    interrupt()
    return OwnModel(held_back(train, weights, best.mu, weights), "", best.mu, trials)


def cross_validated(
    train: Problem, weights: Vector, rng: np.random.Generator, interrupt: Callable[[], None] = never
) -> tuple[Trial, ...]:
    """Return the held-out log-loss of each mu, from infinity downwards."""
    n_folds = min(FOLDS, train.n_rows)
    fold = folds(labels_and_weights(train)[0], n_folds, rng)
    totals = np.zeros(1 + len(MUS))
    for number in range(n_folds):
        fitted, held_out = (train.take(np.flatnonzero(rows)) for rows in (fold != number, fold == number))
        totals[0] += log_loss_sum(held_out, weights)
        w = weights
        for place, mu in enumerate(MUS, start=1):
            interrupt()
            w = held_back(fitted, weights, mu, w)  # from its neighbour it is a step or two
            totals[place] += log_loss_sum(held_out, w)
    return tuple(Trial(mu, float(total) / train.n_samples) for mu, total in zip((inf, *MUS), totals, strict=True))


def folds(labels: NDArray[np.intp] | Vector, n_folds: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the fold of each row, (n_rows,), drawn so that each class is dealt out evenly."""
    shuffled = rng.permutation(len(labels))
    dealt = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), dtype=np.intp)
    fold[dealt] = np.arange(len(labels)) % n_folds
    return fold


def held_back(problem: Problem, weights: Vector, mu: float, start: Vector) -> Vector:
    """Return the minimum of f(w) + (mu/2) ||w - w*||^2, w* being ``weights``, found from ``start``."""
    anchor = centred(weights, problem.n_outputs)
    pulled = replace(problem, l2=0.0, pull=Pull(anchor, mu))
    solver = make_solver("newton" if problem.n_parameters <= NEWTON_UP_TO else "lbfgs")
    return solve(solver, pulled, centred(start, problem.n_outputs), max_steps=MAX_STEPS, tolerance=TOLERANCE).w
