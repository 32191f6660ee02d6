"""Whether the sites mean the same by a column: numbers that differ by a factor are most likely in another unit.

A unit multiplies mean and spread by one factor; sites that only have other rows do not differ so. Cholesterol in mmol/l
and in mg/dl differs by 39, creatinine in mg/dl and in umol/l by 88. Two sites disagree about a column where

    r = mean_a / mean_b  >=  5  or  <= 1/5,     and    1/2 <= (std_a / std_b) / r <= 2

A site is suspected of another unit where it disagrees with more than half of the others: most are right. What
is suspected is told, and stops nothing. Passed over are columns of 0 and 1, whose spread follows from their mean; those
that are mostly 0, of which sites have more or less; and those of few values. How many rows make a mean, n where
all are alike and 1 where one is not 0, says

    n mean^2 / (mean^2 + std^2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.messages import Array, Plan
from logistic.moments import Moments

Mask = NDArray[np.bool_]

#: A mean that is so many times another's is suspected.
FACTOR = 5.0
#: Times by which the spread may differ more, or less, than the mean. Where a site only has more rows that are not 0,
#: the spread grows by the root of what the mean does: this is below the root of FACTOR.
LIKENESS = 2.0
#: Rows that make a mean, and their share of all: of fewer, it says little.
FEWEST = 5.0
SMALLEST_SHARE = 0.1


class Disagreement(NamedTuple):
    """A site's mean of a column is ``ratio`` times that of most others."""

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


class _Site(NamedTuple):
    """What is compared of a site, each (n_features,): ``tells`` where its rows are enough to tell."""

    mean: Array
    std: Array
    tells: Mask
    is_binary: Mask


def disagreements(plan: Plan, moments: Mapping[str, Moments]) -> tuple[Disagreement, ...]:
    """Return what is suspected, by site and by column.

    Parameters
    ----------
    moments : of each site's columns as they came. Of two sites that disagree both are told, since nobody can say
        which is right.
    """
    sites = {name: _site(moments[name]) for name in sorted(moments)}
    found = []
    for name, site in sites.items():
        ratio, suspected = _compared(site, (other for who, other in sites.items() if who != name))
        found += [Disagreement(name, plan.features[at], float(ratio[at])) for at in np.flatnonzero(suspected)]
    return tuple(found)


def _compared(site: _Site, others: Iterable[_Site]) -> tuple[Array, Mask]:
    """Return the geometric mean of the ratios to those it disagrees with, and where these are most: (n_features,)."""
    logarithms, n_apart, n_compared = np.zeros((3, len(site.mean)))
    for other in others:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            ratio = site.mean / other.mean
            likeness = site.std / other.std / ratio
        far = (ratio >= FACTOR) | ((ratio > 0) & (ratio <= 1.0 / FACTOR))
        alike = (likeness >= 1.0 / LIKENESS) & (likeness <= LIKENESS)
        compared = site.tells & other.tells & ~(site.is_binary & other.is_binary)
        apart = compared & far & alike
        logarithms += np.log(np.where(apart, ratio, 1.0))
        n_apart += apart
        n_compared += compared
    return np.exp(logarithms / np.maximum(n_apart, 1.0)), 2.0 * n_apart > n_compared


def _site(moments: Moments) -> _Site:
    n, mean = moments.n_observed, moments.mean
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        variance = moments.m2 / n
        share = mean**2 / (mean**2 + variance)
        of_zeros_and_ones = n * mean * (1.0 - mean)
        is_binary = (mean >= 0) & (mean <= 1) & np.isclose(moments.m2, of_zeros_and_ones, rtol=1e-6, atol=1e-9)
    return _Site(mean, np.sqrt(variance), (share >= SMALLEST_SHARE) & (n * share >= FEWEST), is_binary)
