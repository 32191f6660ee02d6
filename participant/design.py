"""How a plan's columns follow from those of a site's table: matched by name, levels told apart, gaps filled, scaled.

A design is made once for a table under a plan, and applied to any of its rows: to all at once where they are in
memory, or to a few at a time where they are read anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker.messages import Array, Plan
from broker.schema import MISSING, OTHER, Feature, feature_columns
from logistic.errors import ShapeError
from logistic.sparse import CSR
from participant.errors import DataError
from participant.sources.table import Table


@dataclass(frozen=True, slots=True, eq=False)
class Coding:
    """The columns that come of one column of a table: a row of ``codes`` for each of its levels, the last for none."""

    column: int
    codes: Array


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """What makes a plan's columns.

    Attributes
    ----------
    picks : the table's column for each of the plan's, where they are one another's; -1 where not.
    codings : for features with levels, the plan's first column and what to put there.
    indicators : plan's column, and the table's whose gaps it tells of.
    fill : (n_columns,) what stands for gaps, zeros as long as it is not known; None where there are none.
    mean, scale : (n_columns,) the standardisation, or None.
    """

    picks: NDArray[np.intp]
    codings: Mapping[int, Coding]
    indicators: Mapping[int, int]
    fill: Array | None
    mean: Array | None
    scale: Array | None

    def raw(self, X: Array) -> Array:
        """Return the plan's columns of some rows ``X`` of the table, as they came, with NaN in the gaps."""
        if not self.codings and not self.indicators:
            return X if np.array_equal(self.picks, np.arange(X.shape[1])) else np.take(X, self.picks, axis=1)
        rows = np.empty((len(X), len(self.picks)), order="F")
        plain = self.picks >= 0
        rows[:, plain] = X[:, self.picks[plain]]
        for first, coding in self.codings.items():
            cells = X[:, coding.column]
            codes = np.where(np.isnan(cells), len(coding.codes) - 1, cells).astype(np.intp)
            rows[:, first : first + coding.codes.shape[1]] = coding.codes[codes]
        for column, of in self.indicators.items():
            rows[:, column] = np.isnan(X[:, of])
        return rows

    def apply(self, X: Array) -> Array:
        """Return the plan's columns of some rows ``X``, filled and standardised: what a model is fitted to."""
        rows = self.raw(X)
        if self.fill is not None:
            rows = np.where(np.isnan(rows), self.fill, rows)
        if self.scale is not None and self.mean is not None:
            rows = rows - self.mean
            rows /= self.scale
        return rows

    def raw_sparse(self, X: CSR) -> CSR:
        """Return the plan's columns of sparse rows ``X``, as they came; none of them has a gap."""
        back = np.empty(len(self.picks), dtype=X.indices.dtype)
        back[self.picks] = np.arange(len(self.picks))
        return X if np.array_equal(back, np.arange(len(back))) else CSR(X.indptr, back[X.indices], X.data, X.shape)

    def apply_sparse(self, X: CSR) -> CSR:
        """Return the plan's columns of sparse rows ``X``, standardised."""
        rows = self.raw_sparse(X)
        return rows if self.scale is None or self.mean is None else rows.framed(self.mean, self.scale)


def design(table: Table, plan: Plan) -> Design:
    """Return how ``plan``'s columns follow from those of ``table``.

    Raises
    ------
    DataError
        If a column is not there, or a level that the plan has no place for is.
    """
    frame = plan.frame
    scaled: tuple[Array | None, Array | None] = (None, None)
    if frame is not None:
        scaled = frame.centre, frame.scale
        if len(frame.scale) != len(plan.features):
            raise ShapeError(f"the plan scales {len(frame.scale)} columns and has {len(plan.features)}")
    # Nothing is fitted before the moments are merged and say what to fill in.
    fill = (np.zeros(len(plan.features)) if plan.fill is None else plan.fill) if table.has_missing else None
    place = {name: index for index, name in enumerate(table.features)}
    codings: dict[int, Coding] = {}
    indicators: dict[int, int] = {}
    picks: list[int] = []
    schema = plan.feature_schema
    names = plan.features if schema is None else schema.names
    if unknown := next((name for name in names if name not in place), None):
        raise DataError(f"the table has no column {unknown!r}, which the federation's plan has")
    if schema is None:
        picks = [place[name] for name in names]
    for feature in () if schema is None else schema.features:
        column = place[feature.name]
        if feature.kind == "categorical":
            codings[len(picks)] = Coding(
                column, _codes(feature, table.levels[feature.name], table.level_counts[feature.name])
            )
            picks += [-1] * len(feature_columns(feature))
        else:
            picks.append(column)
            if feature.missing == "indicator":
                indicators[len(picks)] = column
                picks.append(-1)
    return Design(np.array(picks, dtype=np.intp), codings, indicators, fill, *scaled)


def _codes(feature: Feature, met: tuple[str, ...], counts: tuple[int, ...]) -> Array:
    """Return what each level that a site has ``met`` is in the plan's columns, and in the last row what none is.

    One that no training row has anywhere is in test rows as the first level is: nothing was learnt of it.
    """
    columns = feature_columns(feature)
    codes = np.zeros((len(met) + 1, len(columns)))
    for index, (level, n_train) in enumerate(zip(met, counts, strict=True)):
        known = level if level in feature.levels else OTHER
        if known in feature.levels[1:]:
            codes[index, feature.levels.index(known) - 1] = 1.0
        elif known not in feature.levels and n_train:
            raise DataError(
                f"column {feature.name!r} has a level that the federation's plan has no place for: declare all levels "
                "in the schema, and begin anew"
            )
    if feature.missing == "mean":
        codes[-1] = np.nan
    elif feature.missing == "indicator":
        codes[-1, columns.index(f"{feature.name}={MISSING}")] = 1.0
    return codes
