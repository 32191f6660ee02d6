"""Whether the sites mean the same by a column: numbers that differ by a factor are most likely in another unit.

A unit multiplies mean and spread by one factor; sites that only have other rows do not differ so. Cholesterol in mmol/l
and in mg/dl differs by 39, creatinine in mg/dl and in umol/l by 88. A column is suspected at a site where

    r = mean_site / mean_others  >=  5  or  <= 1/5,     and    1/3 <= (std_site / std_others) / r <= 3

Columns of 0 and 1 are passed over: their spread follows from their mean; and so are those of which only a few rows are
not 0 (n mean^2 / (mean^2 + std^2) counts them). What is suspected is told, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.messages import Array, Plan
from logistic.moments import Moments, merge_all

Mask = NDArray[np.bool_]

#: A mean that is so many times another's is suspected.
FACTOR = 5.0
#: Times by which the spread may differ more, or less, than the mean.
LIKENESS = 3.0
#: Rows that are not 0 below which a mean says little.
FEWEST = 5.0


class Disagreement(NamedTuple):
    """A site's mean of a column is ``ratio`` times that of all others."""

    participant: str
    column: str
    ratio: float

    @property
    def words(self) -> str:
        """Return a sentence for people."""
        times = f"{self.ratio:.3g} times" if self.ratio >= 1.0 else f"1/{1.0 / self.ratio:.3g} of"
        return (
            f"{self.column} at {self.participant} is {times} that of the other sites, mean and spread alike: "
            "is it in another unit?"
        )


def disagreements(plan: Plan, moments: Mapping[str, Moments]) -> tuple[Disagreement, ...]:
    """Return what is suspected, by site and by column.

    Parameters
    ----------
    moments : of each site's columns as they came; one whose values seem to be in another unit than everybody else's is
        told. Of two sites both are, since nobody can say which is right.
    """
    found = []
    for name in sorted(moments):
        others = [moments[other] for other in sorted(moments) if other != name]
        if others:
            ratios, suspected = _compared(moments[name], merge_all(others))
            found += [Disagreement(name, plan.features[at], float(ratios[at])) for at in np.flatnonzero(suspected)]
    return tuple(found)


def _compared(site: Moments, others: Moments) -> tuple[Array, Mask]:
    """Return the ratio of the means, and whether it is suspected, both (n_features,)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = site.mean / others.mean
        spread = np.sqrt((site.m2 / site.n_observed) / (others.m2 / others.n_observed))
        likeness = spread / ratio
        far = (ratio >= FACTOR) | ((ratio > 0) & (ratio <= 1.0 / FACTOR))
        alike = (likeness >= 1.0 / LIKENESS) & (likeness <= LIKENESS)
    enough = (_effective(site) >= FEWEST) & (_effective(others) >= FEWEST)
    return ratio, far & alike & enough & ~(_is_binary(site) & _is_binary(others))


def _effective(moments: Moments) -> Array:
    """Return how many rows make the mean, (n_features,): n where all are alike, 1 where one is not 0; NaN of none."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        n, square = moments.n_observed, moments.mean**2
        return n * square / (square + moments.m2 / n)


def _is_binary(moments: Moments) -> Mask:
    """Whether a column's spread is that of zeros and ones: n p (1 - p)."""
    n, p = moments.n_observed, moments.mean
    found: Mask = (p >= 0) & (p <= 1) & np.isclose(moments.m2, n * p * (1.0 - p), rtol=1e-6, atol=1e-9)
    return found
