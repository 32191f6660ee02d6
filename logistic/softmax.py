"""Softmax: the log-loss of more than two classes, chunk by chunk, stable at any margin.

Each class c has its own weights W_c, intercept last, and a margin z_c = x . W_c; none is a reference. The weights w
are the rows of W, one after another. With the probabilities p_c = exp(z_c) / sum_b exp(z_b) a row's terms are

    logloss    = log(1 + exp(L)),    L = log sum_{c != y} exp(z_c - z_y)
    residual_c = p_c,    and of the label itself    -sum_{c != y} p_c
    curvature  = diag(p) - p p' = sum_{a < b} kappa_ab (e_a - e_b)(e_a - e_b)',    kappa_ab = p_a p_b

As in `logistic.loss` no term subtracts two nearly equal numbers, so confident rows keep full relative precision. Each
pair of classes curves like a problem of two:

    sum_j s_j curvature_j (x) x_j x_j' = sum_{a < b} (e_a - e_b)(e_a - e_b)' (x) sum_j s_j kappa_ab,j x_j x_j'

The same for the bound that holds at every margin, (I - 11'/C) / 2 in place of the curvature: it has
kappa_ab = 1 / (2 C), at any p.

Boehning, "Multinomial logistic regression algorithm", Ann. Inst. Stat. Math. 44, 1992.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from logistic.errors import ShapeError
from logistic.problem import Chunk, Matrix, Vector
from logistic.rows import Features

Labels = NDArray[np.intp]


def class_margins(X: Features, w: Vector) -> Matrix:
    """Margins of every class; only their differences mean anything.

    z_c = X @ W[c, :-1] + W[c, -1],    W = w.reshape(n_classes, n_features + 1)

    Parameters
    ----------
    X : (n_rows, n_features), dense or sparse
    w : (n_classes (n_features + 1),) weights, class after class, each with its intercept last.

    Returns
    -------
    (n_rows, n_classes) in nats.

    Raises
    ------
    ShapeError
        If ``w`` does not have one weight per column and an intercept for some number of classes.
    """
    n_weights = X.shape[-1] + 1
    if X.shape[1:] != (n_weights - 1,) or w.ndim != 1 or w.size % n_weights:
        raise ShapeError(f"weights of shape {w.shape} do not fit rows of shape {X.shape} and an intercept per class")
    W = w.reshape(-1, n_weights)
    z: Matrix = X @ W[:, :-1].T + W[:, -1]
    return z


def class_probabilities(X: Features, w: Vector) -> Matrix:
    """Probability of every class, ``softmax(class_margins(X, w))``, shape (n_rows, n_classes)."""
    return softmax(class_margins(X, w))


def softmax(z: Matrix) -> Matrix:
    """exp(z_c) / sum_b exp(z_b) in each row, without overflow and with full relative precision near 0."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    p: Matrix = e / e.sum(axis=1, keepdims=True)
    return p


def labels_of(chunk: Chunk) -> Labels:
    """Labels as what they are, the indices of classes: (m,)."""
    return chunk.y.astype(np.intp)


def log_losses(z: Matrix, labels: Labels) -> Vector:
    """log(1 + sum_{c != y} exp(z_c - z_y)) in each row, (m,)."""
    label = np.arange(len(z)), labels
    excess = z - z[label][:, np.newaxis]
    excess[label] = -np.inf
    losses: Vector = np.logaddexp(0.0, np.logaddexp.reduce(excess, axis=1))
    return losses


def excesses(p: Matrix, labels: Labels) -> Matrix:
    """p_c, and p_y - 1 of the label itself, as minus the sum of the others: (m, n_classes)."""
    label = np.arange(len(p)), labels
    r = p.copy()
    r[label] = 0.0
    r[label] = -r.sum(axis=1)
    return r


def residuals(chunk: Chunk, w: Vector) -> Matrix:
    """How far the probabilities are from the labels, (m, n_classes)."""
    return excesses(class_probabilities(chunk.X, w), labels_of(chunk))


def log_loss(chunk: Chunk, w: Vector) -> float:
    """Sum over the chunk's rows of s_j logloss_j, in nats."""
    return float(chunk.weighted(log_losses(class_margins(chunk.X, w), labels_of(chunk))).sum())


def gradient(chunk: Chunk, w: Vector) -> Vector:
    """Sum over the chunk's rows of s_j residual_j (x) (x_j, 1), shape (n_parameters,)."""
    return _by_class(chunk.X, chunk.weighted(residuals(chunk, w)))


def loss_and_gradient(chunk: Chunk, w: Vector) -> tuple[float, Vector]:
    """Return ``log_loss`` and ``gradient`` from the same margins."""
    z, labels = class_margins(chunk.X, w), labels_of(chunk)
    log_loss = float(chunk.weighted(log_losses(z, labels)).sum())
    return log_loss, _by_class(chunk.X, chunk.weighted(excesses(softmax(z), labels)))


def hessian(chunk: Chunk, w: Vector, theta: float) -> Matrix:
    """Sum over the chunk's rows of s_j curvature_j (x) (x_j, 1)(x_j, 1)', shape (n_parameters, n_parameters).

    kappa_ab = (1 - theta) p_a p_b + theta / (2 C)

    One symmetric product for each pair of classes, see the module; C (C - 1) / 2 in all.
    """
    p = class_probabilities(chunk.X, w)
    n_classes = p.shape[1]
    rows = np.column_stack([chunk.dense(), np.ones(len(p))])
    n_weights = rows.shape[1]
    H = np.zeros((n_classes, n_weights, n_classes, n_weights))
    for a, b in combinations(range(n_classes), 2):
        kappa = (1.0 - theta) * p[:, a] * p[:, b] + theta / (2.0 * n_classes)
        A = rows * np.sqrt(chunk.weighted(kappa))[:, np.newaxis]
        block = A.T @ A
        H[a, :, a] += block
        H[b, :, b] += block
        H[a, :, b] -= block
        H[b, :, a] -= block
    return H.reshape(w.size, w.size)


def hessian_vector(chunk: Chunk, w: Vector, v: Vector) -> Vector:
    """``hessian(chunk, w, 0.0) @ v`` at the price of a gradient: the residuals' change along v is p_c (u_c - p . u)."""
    p, u = class_probabilities(chunk.X, w), class_margins(chunk.X, v)
    # Seen from the likeliest class the mean p . u is small where rows are confident: the difference keeps its digits.
    u -= np.take_along_axis(u, p.argmax(axis=1, keepdims=True), axis=1)
    change = p * (u - (p * u).sum(axis=1, keepdims=True))
    return _by_class(chunk.X, chunk.weighted(change))


def gauge(n_features: int, n_outputs: int, weight: float | Vector) -> Matrix:
    """What to add to a Hessian sum so that it says where the weights' sum over the classes is to be: at zero.

    G = 11'/C (x) diag(weight);    zeros for one output, where there is nothing to choose

    The loss does not change when one vector u is added to every class's weights. With S w = sum_c W_c that means
    S g = 0 and S H = 0 for any sums g and H over rows: H is singular in n_features + 1 directions, of which l2 > 0
    bends all but the intercepts'. With G none is left, and the optimum stays, since S G = diag(weight) S:

    - Newton: S applied to (H + n l2 D + G) d = -(g + n l2 D w) leaves (n l2 D_1 + diag(weight)) S d = -n l2 D_1 S w,
      where D_1 = diag(1 .. 1, 0). From S w = 0, as at zero, follows S d = 0: the sum stays zero, and G d = 0, so that
      d solves the equation without G as well.
    - The minimum of a sum of quadratics, (H + n l2 D + G) w = sum_i (H_i w_i - g_i): the right side has S = 0, so
      S w = 0 wherever the w_i were, and G w = 0.
    - With l2 > 0 the optimum itself has S w = 0 in its slopes: there g + n l2 D w = 0, and S of it is n l2 D_1 S w. Its
      intercepts' sum, and everything at l2 = 0, is free, and zero is as good as any.

    An l1 penalty has its optimum elsewhere: of three slopes 1, 0, 0 is cheaper than 2/3, -1/3, -1/3. There only the
    intercepts are free, and the slopes' weights in G have to be zero.

    Parameters
    ----------
    n_outputs : margins of a row, see `logistic.problem.Problem.n_outputs`.
    weight : positive, for all or (n_features + 1,) one per column and one for the intercept; zero leaves them alone.
        Any will do but for rounding, for which it had best be of the size of the Hessian sum's diagonal.

    Returns
    -------
    (n_parameters, n_parameters) positive semi-definite.
    """
    share = 1.0 / n_outputs if n_outputs > 1 else 0.0
    return np.kron(np.full((n_outputs, n_outputs), share), weight * np.eye(n_features + 1))


def centred(w: Vector, n_outputs: int) -> Vector:
    """Return the same model's weights with their sum over the classes at zero, (n_parameters,); of one output, w."""
    if n_outputs == 1:
        return w
    W = w.reshape(n_outputs, -1)
    moved: Vector = (W - W.mean(axis=0)).ravel()
    return moved


def _by_class(X: Features, values: Matrix) -> Vector:
    """Sum over rows of values (x) (x, 1), class after class."""
    return np.column_stack([values.T @ X, values.sum(axis=0)]).ravel()
