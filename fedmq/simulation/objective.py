"""What a simulation knows and no federation does: the pooled rows, and so how far a model is from their optimum.

gap(w) = (F(w) - F*) / (F(0) - F*)        F as in `logistic.problem`, over the training rows of all sites
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from fedmq.errors import CommandError
from logistic import Moments, Problem, Standardisation, Vector, log_loss_sum, loss, make_solver, merge_all, solve
from participant.sources import Table

#: The excess of a model that has run away, where F is no number any more.
BEYOND = 1e300

#: Newton's method ends at rounding long before.
MAX_STEPS = 200
#: Of the largest component of the gradient at the optimum; F is then within its square of F*.
TOLERANCE, ENOUGH = 1e-13, 1e-9


class Objective:
    """The pooled problem of some sites, its optimum, and the rows of those that are slow.

    Parameters
    ----------
    l2 : None is one over the number of rows, as in the aggregator.
    """

    def __init__(
        self, tables: Mapping[str, Table], slow: Collection[str], *, l2: float | None, standardise: bool
    ) -> None:
        rows = {name: (table.dense[table.is_train], table.y[table.is_train]) for name, table in tables.items()}
        moments = merge_all(Moments.of(rows[name][0]) for name in sorted(rows))
        scale = Standardisation.from_moments(moments)
        if not standardise:
            scale = Standardisation.identity(len(scale.mean))
        penalty = 1.0 / moments.n if l2 is None else l2
        self.pooled = _problem(rows.values(), scale, penalty)
        self._slow = _problem([rows[name] for name in rows if name in slow], scale, 0.0) if slow else None
        self.optimum = self._solve()
        self.best = loss(self.pooled, self.optimum)
        self.first = loss(self.pooled, np.zeros(self.pooled.n_parameters))

    def excess(self, w: Vector) -> float:
        """Return F(w) - F*, in nats per row."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = loss(self.pooled, w) - self.best
        return found if np.isfinite(found) else BEYOND

    def gap(self, w: Vector) -> float:
        """Return how far ``w`` is from the optimum: 1 at zero weights."""
        return self.excess(w) / (self.first - self.best)

    def slow_loss_ratio(self, w: Vector) -> float | None:
        """Return the mean loss of ``w`` on the slow sites' rows over that of the optimum; None where nobody is slow."""
        if self._slow is None:
            return None
        return log_loss_sum(self._slow, w) / log_loss_sum(self._slow, self.optimum)

    def _solve(self) -> Vector:
        start = np.zeros(self.pooled.n_parameters)
        found = solve(make_solver("newton"), self.pooled, start, max_steps=MAX_STEPS, tolerance=TOLERANCE)
        if not found.gradient_norm <= ENOUGH:
            raise CommandError("the pooled rows have no optimum that could be found: set l2 in [settings]")
        return found.w


def _problem(rows: Collection[tuple[Vector, Vector]], scale: Standardisation, l2: float) -> Problem:
    X, y = zip(*rows, strict=True)
    return Problem(scale.apply(np.vstack(X)), np.concatenate(y), l2=l2)
