"""What the sums say about the last model: scores, distance from the optimum, standard errors, separation.

All of it is made of the evaluations, and of the last quadratic of who takes part and is not there any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np

from aggregator.plan import penalty_scale, pooled_moments
from aggregator.state import State
from broker.messages import MAX_DIRECTIONS, Array, Plan, Scores
from logistic.evaluation import Evaluation
from logistic.inference import FitSums
from logistic.linear_system import solve_positive
from logistic.quadratic import unpack
from logistic.separation import FLAT, Degeneracy, Sides, is_escape, separation
from logistic.standardisation import Standardisation


class Sums(NamedTuple):
    """Sums over the rows of one participant at the last weights, unpenalised."""

    name: str
    n: float
    loss: float
    g: Array
    H: Array
    meat: Array | None


def plan_of(state: State) -> Plan:
    """Return the plan, without which there is no model."""
    assert state.plan is not None, "a model without a plan cannot have been trained"
    return state.plan


def weights_of(state: State) -> Array:
    """Return the weights of the last model."""
    assert state.weights is not None, "weights and plan come together"
    return state.weights


def merged_scores(state: State, which: str) -> Evaluation | None:
    """Return how the model does on everybody's ``train`` or ``test`` rows; None where there are none."""
    parts = [getattr(evaluation, which) for _, evaluation in sorted(state.scores.items())]
    present = [evaluation_of(scores) for scores in parts if scores is not None]
    return reduce(Evaluation.merge, present) if present else None


def evaluation_of(scores: Scores) -> Evaluation:
    """Return ``scores`` as what can be merged."""
    return Evaluation(
        scores.n, scores.log_loss_sum, scores.brier_sum, scores.correct, scores.positives, scores.negatives
    )


def scale_of(plan: Plan) -> Standardisation:
    """Return the standardisation that the weights are on while they are trained."""
    if plan.frame is None:
        return Standardisation.identity(len(plan.features))
    return Standardisation(plan.frame.centre, plan.frame.scale)


def current_scale(state: State, frozen: Standardisation) -> Standardisation:
    """Return the standardisation by all rows that there are now; ``frozen`` itself as long as these are the same."""
    if plan_of(state).frame is None:
        return frozen
    now = Standardisation.from_moments(pooled_moments(state))
    same = np.array_equal(now.mean, frozen.mean) and np.array_equal(now.scale, frozen.scale)
    return frozen if same else now


def absent(state: State) -> tuple[str, ...]:
    """Return who takes part, by what it contributed, and did not evaluate the last model."""
    held = state.strategy_state.held
    return tuple(
        name
        for name, member in sorted(state.members.items())
        if member.takes_part and name not in state.scores and "hessian" in getattr(held.get(name), "arrays", {})
    )


def sums(state: State) -> list[Sums] | None:
    """Return the sums of all whose rows the model is of, in the order of names; None where nobody was asked."""
    found = []
    for name, evaluation in sorted(state.scores.items()):
        information = evaluation.information
        if information is None:
            return None
        meat = None if information.meat is None else unpack(information.meat)
        H = unpack(information.hessian)
        found.append(Sums(name, evaluation.train.n, evaluation.train.log_loss_sum, information.gradient, H, meat))
    return sorted([*found, *_remembered(state)], key=lambda part: part.name)


def _remembered(state: State) -> Iterator[Sums]:
    """Yield what the last quadratics of those who are gone say about the last weights."""
    for name in absent(state):
        held = state.strategy_state.held[name]
        H, g, d = unpack(held.arrays["hessian"]), held.arrays["gradient"], weights_of(state) - held.arrays["base"]
        loss = held.n_samples * held.loss + float(g @ d) + float(d @ H @ d) / 2.0
        yield Sums(name, held.n_samples, loss, g + H @ d, H, None)


def total(arrays: Iterable[Array]) -> Array:
    """Return the sum of ``arrays``, of which there is at least one."""
    return reduce(np.add, arrays)


def fit_sums(state: State, parts: list[Sums]) -> FitSums:
    """Return the fit of everybody together; of two classes."""
    plan, train = plan_of(state), merged_scores(state, "train")
    n = sum(part.n for part in parts)
    meats = [part.meat for part in parts if part.meat is not None]
    positive = train.n_positive if train is not None else 0.0
    return FitSums(
        w=weights_of(state),
        H=total(part.H for part in parts),
        g=total(part.g for part in parts),
        n=n,
        n_positive=min(positive, n),
        log_loss_sum=sum(part.loss for part in parts),
        penalty=n * plan.l2 * penalty_scale(state),
        standardisation=scale_of(plan),
        meat=total(meats) if len(meats) == len(parts) else None,
    )


# --- separation -----------------------------------------------------------------------------------


def has_one_label(state: State) -> bool:
    """Whether all rows of everybody have the same label: then no penalty keeps the intercept; only Firth's does."""
    plan, train = plan_of(state), merged_scores(state, "train")
    if plan.sizes.n_outputs > 1 or plan.penalty == "firth" or train is None:
        return False
    return train.n_positive == 0.0 or train.n_negative == 0.0


def escape_directions(state: State) -> Array | None:
    """Return directions along which the optimum may be infinitely far away, (n, n_parameters); None if it is not.

    Only without a penalty can it be. The Newton step from the last weights leads there, or the weights themselves; and
    where a strategy took weights for the optimum that are so far out that no step leads on, the flattest curvature.
    """
    plan, parts = plan_of(state), sums(state)
    penalised = plan.l2 > 0.0 or plan.l1 > 0.0 or plan.penalty == "firth"
    if penalised or plan.sizes.n_outputs > 1 or parts is None:
        return None
    H, n = total(part.H for part in parts), sum(part.n for part in parts)
    step = -solve_positive(H, total(part.g for part in parts))
    flattest = _flattest(H / n) if plan.frame is not None else []
    if not flattest and not is_escape(H, step, n):
        return None
    return np.array([step, weights_of(state), *flattest])


def _flattest(H: Array) -> list[Array]:
    """Return the directions of hardly any curvature, on standardised columns, there and back."""
    curvature, vectors = np.linalg.eigh(H)
    flat = vectors[:, curvature < FLAT].T[: MAX_DIRECTIONS // 2 - 1]
    return [sign * direction for direction in flat for sign in (1.0, -1.0)]


def separated(state: State) -> Degeneracy | None:
    """Return what the answers prove about the directions that were asked about; None if a row of somebody's says no."""
    if any(name not in state.answers for name in state.scores):
        return None  # nothing is proved as long as somebody has not looked
    directions = state.question["directions"].reshape(-1, plan_of(state).sizes.parameters)
    answers = [answer.arrays for answer in state.answers.values()]
    tried = []
    for index, direction in enumerate(directions):
        counts = (Sides(*(int(each[side][index]) for side in ("right", "on", "wrong"))) for each in answers)
        tried.append((direction, sum(counts, Sides())))
    return separation(tried, plan_of(state).features)
