"""The fit of all rows at one place, by Newton's method: written for the checker, from nothing that a strategy uses.

F(w) = 1/n sum_i log(1 + exp(-s_i x_i'w)) + l2 / 2 |w|^2 without the intercept,   on columns of mean 0 and variance 1
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from participant.sources import Table

Floats = NDArray[np.float64]

#: Newton's method is there long before; and where its step ends.
ITERATIONS, SETTLED = 100, 1e-13


def pooled_fit(tables: Sequence[Table]) -> Floats:
    """Return the coefficients on the columns' own scale, (n_features + 1,) with the intercept last."""
    X = np.concatenate([table.dense[table.is_train] for table in tables])
    y = np.concatenate([table.y[table.is_train] for table in tables])
    mean, scale = X.mean(axis=0), X.std(axis=0)
    Z = np.column_stack([(X - mean) / scale, np.ones(len(X))])
    penalty = np.append(np.full(X.shape[1], 1.0 / len(X)), 0.0)
    w = np.zeros(Z.shape[1])
    for _ in range(ITERATIONS):
        p = 0.5 * (1.0 + np.tanh(0.5 * (Z @ w)))
        gradient = Z.T @ (p - y) / len(y) + penalty * w
        hessian = (Z * (p * (1.0 - p))[:, None]).T @ Z / len(y) + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        # A step longer than the model is shortened: far from the optimum the quadratic is wrong.
        w = w - step * min(1.0, 2.0 / max(1e-300, float(np.abs(step).max())))
        if float(np.abs(step).max()) < SETTLED:
            break
    slopes = w[:-1] / scale
    return np.append(slopes, w[-1] - slopes @ mean)
