"""How good a model is on some rows, as sums that can be merged exactly.

Sums and counts over two sets of rows add up to those over their union, and every figure is computed from them, so the
pooled figures need nobody's rows. The area under the ROC curve needs the order of the rows across sets;
histograms of the probability keep the order of the bins and lose it inside one:

    auc = sum_b positives_b (negatives below b + negatives_b / 2) / (n_positive n_negative)

Each pair in one bin counts 1/2 where the truth is 0, 1/2 or 1, so the exact area lies within ``auc_tie_bound``, half
the share of such pairs.

More than two classes have no such order: their histograms stay empty, and ``auc`` is None.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial, reduce
from math import nan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logistic import softmax
from logistic.errors import ShapeError
from logistic.loss import check_weights, chunk_margins, sigmoid
from logistic.problem import Chunk, Problem, Vector

N_BINS = 1000  # of equal width over [0, 1]; 16 kB for the pair of histograms
THRESHOLD = 0.5  # probability from which a row is called positive


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Weighted sums over rows. With unit weights the counts are whole numbers, exact up to 2^53.

    Parameters
    ----------
    n : sum of the sample weights.
    log_loss_sum : sum of the log-losses, in nats; without the penalty.
    brier_sum : sum of (p - y)^2, at most 1 per row. Of more than two classes each one's is counted, at most 2 per row;
        Brier (Monthly Weather Review 78, 1950) does so of two as well, and has twice our number there.
    correct : weight of the rows where (p >= 0.5) agrees with the label; p = 0.5 itself is called positive. Of more than
        two classes, where the likeliest class is the label; of equals the first is.
    positives, negatives : (N_BINS,) weight of the rows of each class by p; bin b is [b, b + 1) / N_BINS and the last
        bin takes p = 1. Zeros of more than two classes.
    """

    n: float
    log_loss_sum: float
    brier_sum: float
    correct: float
    positives: Vector
    negatives: Vector

    def __post_init__(self) -> None:
        if self.positives.shape != (N_BINS,) or self.negatives.shape != (N_BINS,):
            raise ShapeError(
                f"histograms have shapes {self.positives.shape} and {self.negatives.shape}; both are ({N_BINS},)"
            )

    @classmethod
    def zero(cls) -> "Evaluation":
        """No rows: merging with it changes nothing."""
        return cls(0.0, 0.0, 0.0, 0.0, np.zeros(N_BINS), np.zeros(N_BINS))

    @classmethod
    def of(cls, problem: Problem, w: Vector) -> "Evaluation":
        """Evaluate weights on the rows of ``problem``; its l2 plays no part.

        Parameters
        ----------
        w : (n_parameters,) intercept last; of more than two classes, class after class.

        Raises
        ------
        ShapeError
            If ``w`` does not match the columns of ``problem``.
        """
        check_weights(problem, w)
        of = _of_two_classes if problem.n_outputs == 1 else _of_classes
        return merge_evaluations(problem.over(partial(of, w=w)))

    def merge(self, other: "Evaluation") -> "Evaluation":
        """Add the two: the evaluation of both sets of rows together."""
        return Evaluation(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Evaluation)))

    @property
    def log_loss(self) -> float:
        """Mean negative log-likelihood in nats per row; NaN without rows."""
        return self._mean(self.log_loss_sum)

    @property
    def brier(self) -> float:
        """Mean squared error of the probability; NaN without rows."""
        return self._mean(self.brier_sum)

    @property
    def accuracy(self) -> float:
        """Share of rows on the right side of p = 0.5; NaN without rows."""
        return self._mean(self.correct)

    @property
    def n_positive(self) -> float:
        """Weight of the rows with the label 1."""
        return float(self.positives.sum())

    @property
    def n_negative(self) -> float:
        """Weight of the rows with the label 0."""
        return float(self.negatives.sum())

    @property
    def auc(self) -> float | None:
        """Area under the ROC curve, ties inside a bin counting half; None unless both classes are there."""
        below = np.cumsum(self.negatives) - self.negatives
        return self._share_of_pairs(float(self.positives @ (below + self.negatives / 2)))

    @property
    def auc_tie_bound(self) -> float | None:
        """Largest possible distance of ``auc`` from the exact area; None unless both classes are there."""
        return self._share_of_pairs(float(self.positives @ self.negatives) / 2)

    def _mean(self, total: float) -> float:
        return total / self.n if self.n > 0 else nan

    def _share_of_pairs(self, pairs: float) -> float | None:
        n_pairs = self.n_positive * self.n_negative
        return pairs / n_pairs if n_pairs > 0 else None


def merge_evaluations(evaluations: Iterable[Evaluation]) -> Evaluation:
    """Add them all: the evaluation of everybody's rows together; ``Evaluation.zero()`` of nobody's."""
    return reduce(Evaluation.merge, evaluations, Evaluation.zero())


class RowMargins(NamedTuple):
    """What a model says of every row, and what the rows are.

    ``margins`` (n_rows,), of more than two classes (n_rows, n_classes); ``y`` (n_rows,); ``sample_weight`` (n_rows,),
    None for 1 everywhere.
    """

    margins: Vector
    y: Vector
    sample_weight: Vector | None

    @property
    def weights(self) -> Vector:
        """Sample weights, (n_rows,), ones where there are none."""
        return np.ones_like(self.y) if self.sample_weight is None else self.sample_weight


def row_margins(problem: Problem, w: Vector) -> RowMargins:
    """Gather the margins of all rows, offsets included, with labels and sample weights, in one pass over the rows.

    For what no sum over rows can tell, as their order. It takes the memory of a few columns.

    Raises
    ------
    ShapeError
        If ``w`` does not match the columns of ``problem``.
    """
    check_weights(problem, w)
    of = _chunk_margins if problem.n_outputs == 1 else _chunk_class_margins
    parts = list(problem.over(partial(of, w=w)))
    none = np.zeros(0 if problem.n_outputs == 1 else (0, problem.n_outputs))
    weights = [part.sample_weight for part in parts if part.sample_weight is not None]
    return RowMargins(
        np.concatenate([none, *(part.margins for part in parts)]),
        np.concatenate([np.zeros(0), *(part.y for part in parts)]),
        np.concatenate(weights) if weights else None,
    )


def exact_auc(y: Vector, scores: Vector) -> float | None:
    """Area under the ROC curve from the rows themselves, tied scores counting half.

    auc = (sum of the positives' mid-ranks - P (P + 1) / 2) / (P N)

    Hanley & McNeil, Radiology 143, 1982: the Mann-Whitney statistic.

    Parameters
    ----------
    y : (n_rows,) labels, 0.0 or 1.0.
    scores : (n_rows,) anything that increases with the probability.

    Returns
    -------
    Between 0 and 1; None unless both classes are there.

    Raises
    ------
    ShapeError
        If the two are not vectors of one length.
    """
    if y.ndim != 1 or y.shape != scores.shape:
        raise ShapeError(f"labels and scores have shapes {y.shape} and {scores.shape}; both are (n_rows,)")
    n_positive = float(y.sum())
    n_negative = y.size - n_positive
    if n_positive == 0 or n_negative == 0:
        return None
    _, value, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(counts) - (counts - 1) / 2  # of each distinct score
    excess = mid_ranks[value] @ y - n_positive * (n_positive + 1) / 2
    return float(excess / (n_positive * n_negative))


def _of_two_classes(chunk: Chunk, w: Vector) -> Evaluation:
    y, s = chunk.y, _sample_weight(chunk)
    z = chunk_margins(chunk, w)
    p = sigmoid(z)
    bins = np.minimum((p * N_BINS).astype(np.intp), N_BINS - 1)
    return Evaluation(
        n=float(s.sum()),
        log_loss_sum=float(s @ np.logaddexp(0.0, (1.0 - 2.0 * y) * z)),
        brier_sum=float(s @ (p - y) ** 2),
        correct=float(s @ ((p >= THRESHOLD) == (y == 1))),
        positives=_histogram(bins, s * y),
        negatives=_histogram(bins, s * (1.0 - y)),
    )


def _of_classes(chunk: Chunk, w: Vector) -> Evaluation:
    labels, s = softmax.labels_of(chunk), _sample_weight(chunk)
    z = softmax.class_margins(chunk.X, w)
    p = softmax.softmax(z)
    return Evaluation(
        n=float(s.sum()),
        log_loss_sum=float(s @ softmax.log_losses(z, labels)),
        brier_sum=float(s @ (softmax.excesses(p, labels) ** 2).sum(axis=1)),
        correct=float(s @ (p.argmax(axis=1) == labels)),
        positives=np.zeros(N_BINS),
        negatives=np.zeros(N_BINS),
    )


def _chunk_margins(chunk: Chunk, w: Vector) -> RowMargins:
    return RowMargins(chunk_margins(chunk, w), chunk.y, chunk.sample_weight)


def _chunk_class_margins(chunk: Chunk, w: Vector) -> RowMargins:
    return RowMargins(softmax.class_margins(chunk.X, w), chunk.y, chunk.sample_weight)


def _sample_weight(chunk: Chunk) -> Vector:
    return np.ones_like(chunk.y) if chunk.sample_weight is None else chunk.sample_weight


def _histogram(bins: NDArray[np.intp], weights: Vector) -> Vector:
    return np.bincount(bins, weights=weights, minlength=N_BINS).astype(np.float64)
