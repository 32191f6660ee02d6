"""What the released model says of itself beyond its weights: how near the optimum it is, standard errors, and more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aggregator.fit import Sums, fit_sums, merged_scores, plan_of, scale_of, sums, total, weights_of
from aggregator.plan import penalty_scale
from aggregator.state import State
from broker.messages import (
    Array,
    Coefficient,
    Convergence,
    Deviation,
    FitStatistics,
    Heterogeneity,
    Inference,
)
from logistic import contrasts
from logistic import inference as linear
from logistic.errors import LogisticError
from logistic.heterogeneity import SiteSums, heterogeneity
from logistic.inference import FitSums
from logistic.proximal import l1_residual
from logistic.separation import collinearities, flat_directions

INTERCEPT = "(intercept)"

#: Parameters up to which the covariance is part of the model: 40,000 numbers.
LARGEST_COVARIANCE = 200
#: And up to which sites are compared: one eigenvalue decomposition for each of them.
LARGEST_COMPARISON = 400
#: Of the smallest standard error: a weight that is no further from the optimum has the optimum's standard errors.
AT_OPTIMUM = 1e-3


class Found(NamedTuple):
    """What there is to say: ``tables`` of coefficients, one, or one for each of more than two classes."""

    convergence: Convergence
    inference: Inference
    tables: Sequence[Sequence[Coefficient]] | None
    notes: tuple[str, ...] = ()


def examine(state: State) -> Found:
    """Return what the sums of the last evaluation say about the last weights."""
    parts, plan = sums(state), plan_of(state)
    gap = state.progress.gap_bound
    if parts is None:
        why = "it was not asked for" if plan.inference == state.rules.inference else "its matrices exceed a message"
        return Found(Convergence(None, None, None, gap), _none(why), None)
    convergence = _convergence(state, parts, gap)
    if state.rules.inference == "none":
        return Found(convergence, _none("it was not asked for"), None)
    if plan.l1 > 0.0:
        return Found(convergence, _none("estimates that l1 has chosen have no such standard errors"), None)
    if plan.inference == "sandwich" and any(part.meat is None for part in parts):
        return Found(convergence, _none("a site that has gone did not send what the sandwich needs"), None)
    try:
        found = (
            _two_classes(state, parts, convergence)
            if plan.sizes.n_outputs == 1
            else _classes(state, parts, convergence)
        )
    except LogisticError as error:
        return Found(convergence, _none(str(error)), None)
    return found


def _none(why: str) -> Inference:
    return Inference("none", why, None, (), ())


def _convergence(state: State, parts: list[Sums], gap: float | None) -> Convergence:
    plan, w = plan_of(state), weights_of(state)
    n, g, H = sum(part.n for part in parts), total(part.g for part in parts), total(part.H for part in parts)
    scale = penalty_scale(state)
    if plan.penalty == "firth":  # its score is not among the sums: the strategy's own verdict stands
        return Convergence(None, None, None, None)
    if plan.l1 > 0.0:
        smooth = g / n + plan.l2 * scale * w
        return Convergence(l1_residual(w, smooth, plan.l1 * np.sqrt(scale)), None, None, None)
    found = contrasts.certificate(w, g, H, n * plan.l2 * scale, n=n, n_outputs=plan.sizes.n_outputs)
    return Convergence(found.gradient_norm, found.newton_step, found.newton_decrement, gap)


def _is_at_optimum(state: State, convergence: Convergence, std_errors: Sequence[float | None]) -> bool:
    """Whether the weights are so near the optimum that its standard errors are theirs."""
    if convergence.newton_step is None:
        return state.progress.converged
    smallest = min((each for each in std_errors if each is not None), default=math.inf)
    return convergence.newton_step <= AT_OPTIMUM * smallest


_FAR = "the weights are not at the optimum, so standard errors would be of something else"


# --- two classes ----------------------------------------------------------------------------------


def _two_classes(state: State, parts: list[Sums], convergence: Convergence) -> Found:
    plan, fit = plan_of(state), fit_sums(state, parts)
    robust = plan.inference == "sandwich"
    standardised = linear.coefficients(fit, robust=robust, standardised=True)
    if not _is_at_optimum(state, convergence, [each.std_error for each in standardised]):
        return Found(convergence, _none(_FAR), None)
    names = [*plan.features, INTERCEPT]
    table = [_line(name, each) for name, each in zip(names, linear.coefficients(fit, robust=robust), strict=True)]
    inference = Inference(
        kind=plan.inference,
        why="",
        statistics=_statistics(state, fit),
        covariance=_covariance(linear.covariance(fit, robust=robust)) if fit.w.size <= LARGEST_COVARIANCE else (),
        heterogeneity=_heterogeneity(state, fit, parts, names),
    )
    notes = tuple(each.sentence for each in collinearities(flat_directions(fit.H, fit.H), plan.features))
    return Found(convergence, inference, [table], notes)


def _line(name: str, found: linear.Coefficient) -> Coefficient:
    return Coefficient(
        name,
        found.estimate,
        found.std_error,
        found.z,
        found.p_value,
        found.ci_low,
        found.ci_high,
        found.odds_ratio,
    )


def _statistics(state: State, fit: FitSums) -> FitStatistics:
    found = linear.fit_statistics(fit)
    scores = state.scores.values()
    # Whose rows have offsets, or who has gone: what the intercept alone would do is not known from counts.
    null_known = all(e.information is not None and not e.information.has_offset for e in scores)
    everybody = {name for name, member in state.members.items() if member.takes_part} <= state.scores.keys()
    is_likelihood = plan_of(state).penalty == "ridge"
    null = null_known and everybody and is_likelihood
    return FitStatistics(
        log_likelihood=found.log_likelihood,
        deviance=found.deviance,
        null_deviance=found.null_deviance if null else None,
        df_model=float(found.df_model),
        df_residual=float(found.df_residual),
        effective_df=found.effective_df,
        aic=found.aic if is_likelihood else None,
        bic=found.bic if is_likelihood else None,
        lr_statistic=found.lr_statistic if null else None,
        lr_p_value=found.lr_p_value if null else None,
        pseudo_r2=found.pseudo_r2 if null else None,
    )


def _covariance(C: Array) -> tuple[tuple[float | None, ...], ...]:
    return tuple(tuple(float(value) if np.isfinite(value) else None for value in row) for row in C)


def _heterogeneity(state: State, fit: FitSums, parts: list[Sums], names: Sequence[str]) -> tuple[Heterogeneity, ...]:
    if fit.w.size > LARGEST_COMPARISON or len(parts) == 1 or plan_of(state).penalty == "firth":
        return ()
    sites = {part.name: SiteSums(part.H, part.g, _has_one_class(state, part.name)) for part in parts}
    rows = []
    for name, found in zip(names, heterogeneity(fit, sites), strict=True):
        by_site = {each.site: Deviation(each.deviation, each.std_error, each.single_class) for each in found.deviations}
        rows.append(Heterogeneity(name, found.q, found.df, found.p_value, found.i2, by_site))
    return tuple(rows)


def _has_one_class(state: State, name: str) -> bool:
    evaluation = state.scores.get(name)
    return evaluation is not None and not (evaluation.train.positives.any() and evaluation.train.negatives.any())


# --- more classes ---------------------------------------------------------------------------------


def _classes(state: State, parts: list[Sums], convergence: Convergence) -> Found:
    plan = plan_of(state)
    n, H = sum(part.n for part in parts), total(part.H for part in parts)
    meat = total(part.meat for part in parts if part.meat is not None) if plan.inference == "sandwich" else None
    penalty = n * plan.l2 * penalty_scale(state)
    tables = contrasts.contrasts(weights_of(state), H, penalty, scale_of(plan), meat=meat)
    if not _is_at_optimum(state, convergence, [each.std_error for table in tables for each in table]):
        return Found(convergence, _none(_FAR), None)
    names = [*plan.features, INTERCEPT]
    lines = [[_line(name, each) for name, each in zip(names, table, strict=True)] for table in tables]
    inference = Inference(plan.inference, "", _class_statistics(state, parts), (), ())
    return Found(convergence, inference, lines)


def _class_statistics(state: State, parts: list[Sums]) -> FitStatistics | None:
    """Return what the likelihood says of a fit of more than two classes; nothing where somebody has gone."""
    train, plan = merged_scores(state, "train"), plan_of(state)
    if train is None or len(parts) != len(state.scores):
        return None
    n, loss = train.n, sum(part.loss for part in parts)
    free = (plan.sizes.n_outputs - 1) * (len(plan.features) + 1)
    return FitStatistics(
        log_likelihood=-loss,
        deviance=2.0 * loss,
        null_deviance=None,
        df_model=float(free - plan.sizes.n_outputs + 1),
        df_residual=n - free,
        effective_df=float(free),
        aic=2.0 * loss + 2.0 * free if plan.l2 == 0.0 else None,
        bic=2.0 * loss + math.log(n) * free if plan.l2 == 0.0 else None,
        lr_statistic=None,
        lr_p_value=None,
        pseudo_r2=None,
    )
