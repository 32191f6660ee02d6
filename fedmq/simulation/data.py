"""The rows of a simulation: sets that are made from a seed, and tables that are read.

A set either is one table, to be divided among sites (`fedmq.simulation.partition`), or comes in sites already.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedmq.simulation.randomness import generator
from fedmq.sites import find_sites
from logistic.loss import sigmoid
from participant.sources import Columns, Table, read_table

Floats = NDArray[np.float64]

#: Levels of the 14 categorical columns of a9a (Adult, binarised): 123 indicators in all.
A9A_LEVELS = (5, 8, 5, 16, 5, 7, 14, 6, 5, 2, 2, 2, 5, 41)
#: The k-th level of a column has a share like k to this power: then a third of all are rarer than 0.5 %, as in a9a.
LEVEL_DECAY = -2.0
#: The columns say of a row in part the same (education and its years, marriage and family): 4 factors, one for each.
FACTORS, LOADING = 4, 0.9
#: Standard deviation of a level's log-odds.
LEVEL_EFFECT = 0.8
#: Rows of a site of Synthetic(alpha, beta), and the lognormal above the least, after FedProx's generator.
SYNTHETIC_ROWS, SYNTHETIC_SIZES = (50, 800), (4.0, 2.0)
#: Column j of Synthetic has the variance j to this power.
SYNTHETIC_DECAY = -1.2


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Rows:
    """A table as numbers: ``X`` (n_rows, n_features), ``y`` (n_rows,) of 0.0 and 1.0."""

    features: tuple[str, ...]
    X: Floats
    y: Floats

    def take(self, rows: NDArray[np.intp]) -> Table:
        """Return some rows as the table of a site."""
        return Table(self.features, self.X[rows], self.y[rows], np.ones(len(rows), dtype=np.bool_))


class _Set(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Gaussian(_Set):
    """Normal columns, rotated; the label depends on all directions alike.

    x = Q sqrt(L) u,  L from 1 down to 1 / condition,   logit P(y = 1) = signal * u . v,  |v| = 1
    """

    set: Literal["gaussian"]
    rows: int = Field(6000, ge=2)
    columns: int = Field(60, ge=1)
    condition: float = Field(1.0, ge=1, description="Of the covariance.")
    signal: float = Field(2.0, ge=0, description="Standard deviation of the log-odds.")

    def make(self, seed: int) -> Rows:
        """Return the rows of ``seed``."""
        rng = generator(seed, "gaussian")
        u = rng.standard_normal((self.rows, self.columns))
        v = rng.standard_normal(self.columns)
        rotation, _ = np.linalg.qr(rng.standard_normal((self.columns, self.columns)))
        scale = np.sqrt(np.geomspace(1.0, 1.0 / self.condition, self.columns))
        y = _labels(self.signal * u @ (v / np.linalg.norm(v)), rng)
        return Rows(_names(self.columns), (u * scale) @ rotation.T, y)


class OneHot(_Set):
    """Categorical columns as indicators, like a9a: its levels, many of them rare, in columns that are correlated.

    A column's level is where .9 z + .44 noise stands among its shares, with a factor z that it shares with other
    columns; each level has log-odds of its own.
    """

    set: Literal["one-hot"]
    rows: int = Field(6000, ge=2)
    base_rate: float = Field(0.22, gt=0, lt=1, description="Share of the label 1.")

    def make(self, seed: int) -> Rows:
        """Return the rows of ``seed``."""
        rng = generator(seed, "one-hot")
        factors = rng.standard_normal((FACTORS, self.rows))
        blocks, odds = [], np.zeros(self.rows)
        for column, n_levels in enumerate(A9A_LEVELS):
            shares = rng.permutation(np.arange(1, n_levels + 1) ** LEVEL_DECAY)
            latent = LOADING * factors[column % FACTORS] + np.sqrt(1.0 - LOADING**2) * rng.standard_normal(self.rows)
            rank = np.argsort(np.argsort(latent)) / self.rows
            level = np.searchsorted(np.cumsum(shares / shares.sum())[:-1], rank, side="right")
            blocks.append(np.eye(n_levels)[level])
            odds += rng.normal(0.0, LEVEL_EFFECT, n_levels)[level]
        y = _labels(odds + _intercept(odds, self.base_rate), rng)
        return Rows(_names(sum(A9A_LEVELS)), np.hstack(blocks), y)


class Synthetic(_Set):
    """Synthetic(alpha, beta) of FedProx, made binary: every site has its own true model and its own rows.

    w_k, c_k ~ N(a_k, 1), a_k ~ N(0, alpha);  x ~ N(m_k, diag(j^-1.2)), m_k ~ N(b_k, 1), b_k ~ N(0, beta);
    y = [w_k . x + c_k > 0]. Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020.
    """

    set: Literal["synthetic"]
    sites: int = Field(16, ge=1)
    columns: int = Field(60, ge=1)
    alpha: float = Field(1.0, ge=0)
    beta: float = Field(1.0, ge=0)

    def sites_of(self, seed: int) -> dict[str, Table]:
        """Return the tables of ``seed``."""
        rng = generator(seed, "synthetic")
        sd = np.sqrt(np.arange(1, self.columns + 1, dtype=float) ** SYNTHETIC_DECAY)
        tables = {}
        for name in site_names(self.sites):
            least, most = SYNTHETIC_ROWS
            n_rows = min(most, least + int(rng.lognormal(*SYNTHETIC_SIZES)))
            a, b = rng.normal(0.0, np.sqrt(self.alpha)), rng.normal(0.0, np.sqrt(self.beta))
            w, c, m = rng.normal(a, 1.0, self.columns), rng.normal(a, 1.0), rng.normal(b, 1.0, self.columns)
            X = m + sd * rng.standard_normal((n_rows, self.columns))
            y = (X @ w + c > 0).astype(float)
            tables[name] = Rows(_names(self.columns), X, y).take(np.arange(n_rows))
        return tables


class File(_Set):
    """One table: a .csv or .npz file."""

    set: Literal["file"]
    path: Path
    label: str = Field("y", description="The column of 0 and 1.")

    def make(self, seed: int) -> Rows:  # noqa: ARG002 - the rows are what they are
        """Return the rows of the file."""
        table = read_table(self.path, Columns(label=self.label))
        return Rows(table.features, table.dense, table.y)


class Sites(_Set):
    """Tables that are sites already: a folder of .csv or .npz files, as ``fedmq train`` takes it."""

    set: Literal["sites"]
    path: Path
    label: str = "y"
    split: str | None = Field(None, description="The column that says train or test.")

    def sites_of(self, seed: int) -> dict[str, Table]:  # noqa: ARG002 - the rows are what they are
        """Return the tables of the folder."""
        return {site.name: site.table for site in find_sites([self.path], Columns(label=self.label, split=self.split))}


class HeartDisease(_Set):
    """The four hospitals of ``fedmq demo``."""

    set: Literal["heart-disease"]

    def sites_of(self, seed: int) -> dict[str, Table]:
        """Return the tables of the hospitals."""
        from fedmq.demo import heart_disease

        return Sites(set="sites", path=heart_disease(), split="split").sites_of(seed)


Data = Annotated[Gaussian | OneHot | Synthetic | File | Sites | HeartDisease, Field(discriminator="set")]


def site_names(count: int) -> list[str]:
    """Return the names of sites that have none."""
    return [f"site-{number:02}" for number in range(1, count + 1)]


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"x{number}" for number in range(1, count + 1))


def _labels(log_odds: Floats, rng: np.random.Generator) -> Floats:
    return (rng.random(len(log_odds)) < sigmoid(log_odds)).astype(np.float64)


def _intercept(log_odds: Floats, rate: float) -> float:
    """Return what, added to ``log_odds``, makes their mean probability ``rate``."""
    low, high = -50.0, 50.0
    while high - low > 1e-12:  # noqa: PLR2004 - bisection, of an increasing function
        middle = (low + high) / 2.0
        low, high = (middle, high) if float(sigmoid(log_odds + middle).mean()) < rate else (low, middle)
    return low
