"""Two models on the same test rows: which one is better here, and whether these rows can tell. Pure functions.

The difference of the two models' log-losses on each row has a mean, and the mean a standard error. That is a paired
comparison: what makes a row hard for both is not in it, so that it is far more certain than either log-loss is. It is
about these two models as they are, on rows like these; that other training rows would have given other models is not in
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10, sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from logistic.evaluation import Evaluation, RowMargins, row_margins
from logistic.problem import Chunk, Matrix, Problem, Vector
from logistic.ranking import count
from logistic.softmax import log_losses

Better = Literal["own", "global", "neither"]

#: Standard errors from which a difference is one: two-sided 5 % of the normal distribution.
TELLING = 1.96
#: Rows from which a standard error is worth printing: its own is 13 % of it then, 1 / sqrt(2 (n - 1)).
FEWEST_ROWS = 30
#: Digits after the point, at least and at most.
DIGITS = (2, 9)


@dataclass(frozen=True, slots=True)
class Scores:
    """How a model does on some rows: means per row, ``n`` being their weight.

    ``auc`` is exact; None of more than two classes, and where only one is there.
    """

    n: float
    log_loss: float
    brier: float
    accuracy: float
    auc: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model of a site's own against the global one on the same rows.

    Attributes
    ----------
    n_rows : rows that count, that is with a positive weight.
    own, other : log-loss of the own model and of the global one, in nats per row.
    difference : of the global model's log-loss and the own one's: above 0 the own one is better.
    std_error : of the difference; None where there are not `FEWEST_ROWS`.
    """

    n_rows: int
    own: float
    other: float
    difference: float
    std_error: float | None

    @property
    def better(self) -> Better | None:
        """Which of the two; ``neither`` where the difference may be chance, None with too few rows to tell."""
        if self.std_error is None:
            return None
        if abs(self.difference) <= TELLING * self.std_error:
            return "neither"
        return "own" if self.difference > 0 else "global"

    def sentence(self, own: str) -> str:
        """Return the verdict in words, with as many digits as the standard error has; ``own`` is the model's name."""
        rows = f"{self.n_rows} test rows"
        if self.std_error is None:
            return f"{rows} are too few to tell whether {own} is better here: {FEWEST_ROWS} are needed"
        digits = _digits(self.std_error)
        first, second = (self.other, self.own) if self.better == "global" else (self.own, self.other)
        losses = f"log-loss {first:.{digits}f} against {second:.{digits}f} on {rows}"
        sure = f"(difference {abs(self.difference):.{digits}f}, standard error {self.std_error:.{digits}f})"
        who = {
            "own": f"{own} is better here",
            "global": f"the global model is better here than {own}",
            "neither": f"no difference that these rows could tell between {own} and the global one",
        }
        return f"{who[self.better or 'neither']}: {losses} {sure}"


def scores(problem: Problem, weights: Vector) -> Scores:
    """Return how ``weights`` do on the rows of ``problem``."""
    found = Evaluation.of(problem, weights)
    return Scores(found.n, found.log_loss, found.brier, found.accuracy, _auc(problem, weights))


def compare(problem: Problem, weights: Vector, own: Vector) -> Comparison:
    """Return how much better ``own`` is than the global ``weights`` on the rows of ``problem``, and how sure that is.

    ::

        d = sum_j s_j d_j / sum_j s_j,    se^2 = sum_j s_j^2 (d_j - d)^2 / (sum_j s_j)^2  m / (m - 1)

    d_j is the global model's log-loss of row j less the own one's. m = (sum_j s_j)^2 / sum_j s_j^2 is the number of
    rows, or what remains of it where their weights differ (Kish, "Survey Sampling", 1965).

    Parameters
    ----------
    problem : rows of which one at least has weight.
    """
    rows = row_margins(problem, own)
    s, ours, theirs = rows.weights, _row_losses(rows), _row_losses(row_margins(problem, weights))
    total, d = float(s.sum()), theirs - ours
    mean, m = float(s @ d) / total, total**2 / float(s @ s)
    error = None
    if m >= FEWEST_ROWS:
        error = sqrt(float(s**2 @ (d - mean) ** 2) / total**2 * m / (m - 1.0))
    return Comparison(int(np.count_nonzero(s)), float(s @ ours) / total, float(s @ theirs) / total, mean, error)


def class_scores(problem: Problem, weights: Vector) -> Matrix:
    """Return the margin of each class, (n_rows, n_classes), offsets included; of two classes the first one's is 0."""
    return _of_each_class(row_margins(problem, weights).margins)


def labels_and_weights(problem: Problem) -> tuple[NDArray[np.intp], Vector]:
    """Return the labels and the sample weights, (n_rows,) both, ones where there are none."""
    parts = list(problem.over(_labels_and_weights))
    labels = np.concatenate([np.zeros(0), *(y for y, _ in parts)]).astype(np.intp)
    return labels, np.concatenate([np.zeros(0), *(s for _, s in parts)])


def row_weights(problem: Problem) -> Vector:
    """Return the sample weights, (n_rows,), ones where there are none."""
    return labels_and_weights(problem)[1]


def _labels_and_weights(chunk: Chunk) -> tuple[Vector, Vector]:
    return chunk.y, chunk.weighted(np.ones_like(chunk.y))


def _of_each_class(margins: Vector) -> Matrix:
    return margins if margins.ndim > 1 else np.column_stack([np.zeros_like(margins), margins])


def _row_losses(rows: RowMargins) -> Vector:
    return log_losses(_of_each_class(rows.margins), rows.y.astype(np.intp))


def _auc(problem: Problem, weights: Vector) -> float | None:
    if problem.n_outputs > 1:
        return None
    rows = row_margins(problem, weights)
    return count(np.unique(rows.margins), rows.y, rows.margins, rows.sample_weight).auc  # an interval for each margin


def _digits(error: float) -> int:
    """Return how many digits after the point show two of ``error``, within `DIGITS`."""
    least, most = DIGITS
    return least if error <= 0.0 else min(max(least, 1 - floor(log10(error))), most)
