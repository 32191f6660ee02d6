"""A site's rows as numbers, before any plan: columns by name, and which rows are for training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Table:
    """Rows in the columns' own units.

    Attributes
    ----------
    features : names of the columns of ``X``.
    X : (n_rows, n_features) finite.
    y : (n_rows,) 0.0 or 1.0.
    is_train : (n_rows,) booleans; the others are only evaluated.
    """

    features: tuple[str, ...]
    X: Floats
    y: Floats
    is_train: NDArray[np.bool_]

    @property
    def n_train(self) -> int:
        """Rows to train on."""
        return int(self.is_train.sum())

    @property
    def n_test(self) -> int:
        """Rows only to be evaluated."""
        return len(self.is_train) - self.n_train

    def columns(self, names: tuple[str, ...]) -> Floats:
        """Return ``X`` with its columns in the order of ``names``, which are matched by name."""
        place = {name: index for index, name in enumerate(self.features)}
        ordered: Floats = self.X[:, [place[name] for name in names]] if names != self.features else self.X
        return ordered

    def __repr__(self) -> str:
        """Return its shape: rows stay out of logs and tracebacks."""
        return f"Table({self.n_train} training rows, {self.n_test} test rows, {len(self.features)} features)"

    def __reduce__(self) -> Any:
        """Refuse to be pickled: rows do not leave this process."""
        raise TypeError("a Table is not pickled: rows stay where they are")
