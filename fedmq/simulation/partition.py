"""How one table is divided among sites: every row goes to exactly one.

Wherever sizes differ they are proportional to lognormal(0, ``size_sigma``).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedmq.errors import CommandError
from fedmq.simulation.data import Floats, Rows, site_names
from fedmq.simulation.randomness import generator
from participant.sources import Table

Indices = NDArray[np.intp]


class Partition(BaseModel):
    """Which rows belong together.

    ============  ==========================================================================================
    by            sites differ in
    ============  ==========================================================================================
    dirichlet     labels: each site's share of a label is Dirichlet(``alpha``); small alpha, one label a site
    quantity      sizes only
    feature       columns: rows are ordered along a random direction, blended with noise by 1 - ``strength``
    contiguous    whatever the table's order means
    iid           nothing
    ============  ==========================================================================================
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    by: Literal["dirichlet", "quantity", "feature", "contiguous", "iid"] = "dirichlet"
    sites: int = Field(16, ge=1)
    alpha: float = Field(0.3, gt=0)
    size_sigma: float = Field(0.5, ge=0)
    strength: float = Field(0.8, ge=0, le=1)
    min_rows: int = Field(5, ge=1, description="A site that would have fewer takes them from the largest.")

    def divide(self, rows: Rows, seed: int) -> dict[str, Table]:
        """Return the sites' tables."""
        parts = self.parts(rows, seed)
        return {name: rows.take(part) for name, part in zip(site_names(self.sites), parts, strict=True)}

    def parts(self, rows: Rows, seed: int) -> list[Indices]:
        """Return the rows of each site, in the table's order."""
        n_rows = len(rows.y)
        if n_rows < self.sites * self.min_rows:
            raise CommandError(
                f"{n_rows} rows are not enough for {self.sites} sites of at least {self.min_rows} rows: "
                "set fewer sites in [partition]"
            )
        rng = generator(seed, "partition")
        equal = np.full(self.sites, 1.0 / self.sites)
        sizes = rng.lognormal(0.0, self.size_sigma, self.sites)
        match self.by:
            case "dirichlet":
                parts = self._by_label(rows.y, sizes, rng)
            case "quantity":
                parts = _cut(rng.permutation(n_rows), sizes)
            case "feature":
                parts = _cut(self._along(rows.X, rng), sizes)
            case "contiguous":
                parts = _cut(np.arange(n_rows), equal)
            case _:
                parts = _cut(rng.permutation(n_rows), equal)
        return [np.sort(part) for part in _at_least(self.min_rows, parts)]

    def _by_label(self, y: Floats, sizes: Floats, rng: np.random.Generator) -> list[Indices]:
        labels = np.unique(y)
        mixes = rng.dirichlet(np.full(len(labels), self.alpha), self.sites)
        of_label = [
            _cut(rng.permutation(np.flatnonzero(y == label)), sizes * shares + np.finfo(float).tiny)
            for label, shares in zip(labels, mixes.T, strict=True)
        ]
        return [np.concatenate(parts) for parts in zip(*of_label, strict=True)]

    def _along(self, X: Floats, rng: np.random.Generator) -> Indices:
        direction = X @ rng.standard_normal(X.shape[1])
        spread = direction.std() or 1.0
        noise = rng.standard_normal(len(X))
        return np.argsort(
            self.strength * (direction - direction.mean()) / spread + (1.0 - self.strength) * noise, kind="stable"
        )


def _cut(order: Indices, shares: Floats) -> list[Indices]:
    """Return ``order`` in consecutive pieces, proportional to ``shares``."""
    ends = np.round(np.cumsum(shares) / shares.sum() * len(order)).astype(np.intp)
    return np.split(order, ends[:-1])


def _at_least(least: int, parts: list[Indices]) -> list[Indices]:
    for index in range(len(parts)):
        while (missing := least - len(parts[index])) > 0:
            largest = max(range(len(parts)), key=lambda each: len(parts[each]))
            given = min(missing, len(parts[largest]) - least)
            parts[index] = np.concatenate([parts[index], parts[largest][:given]])
            parts[largest] = parts[largest][given:]
    return parts
