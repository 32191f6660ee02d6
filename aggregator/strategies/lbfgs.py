"""L-BFGS on the pooled rows: the server searches along quasi-Newton directions, and each look at F is a round.

    w_(k+1) = w_k + t d_k,     d_k = -B_k g_k,     B_k from the last changes of w and of g

Participants send loss and gradient of their own rows at the model; the sums are F and g of the pooled ones
(`aggregator.strategies.pooled`). Each round answers whether t is good (`aggregator.strategies.line_search`); most
directions are good at t = 1, so a step costs little more than a round. Training is over when neither g nor the step
that it asks for is more than rounding: the strategy is exact. A gradient that vanishes while the step does not belongs
to a function that falls for ever, as on separable rows without a penalty.

Everybody who is live is in each round. What the search knows is in the state, as arrays: it survives a restart between
any two rounds. When somebody has come or gone, F is another function, and the search begins anew where it is,
without memory. Published weights are trials: the last before `max_versions` may be worse than those before it.

Nocedal & Wright, "Numerical Optimization", 2nd ed. 2006, algorithms 7.4 and 7.5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from aggregator.errors import StrategyError
from aggregator.strategies.base import (
    ALONE,
    Averaging,
    Contribution,
    Finished,
    Situation,
    StrategyState,
    received,
)
from aggregator.strategies.line_search import Search, look, search_from
from aggregator.strategies.pace import NEVER, Pace
from aggregator.strategies.pooled import pooled
from broker.messages import Array
from logistic.solvers.lbfgs import Pair, two_loop_direction
from logistic.solvers.search import Point

#: Length of the longest first trial; what is further off, on standardised columns, is reached in several steps.
LONGEST = 100.0
#: Steps remembered where nothing else is said: the most, the fewest, and the bytes that they may take between the two.
MOST, FEWEST, MEMORY_BYTES = 80, 5, 256 * 1024 * 1024
#: Cosine of the angle between a change of w and one of g, below which rounding has made it.
SQUARE = 1e-12

Memory = dict[str, Array]


@dataclass(frozen=True, slots=True)
class LBFGS(Averaging):
    """L-BFGS by rounds.

    Attributes
    ----------
    memory : steps remembered, of two vectors each. Rounds are dear and memory is not: breast cancer with l2 = 1e-6
        takes 202 rounds with 80, 422 with 40, and 1654 with the 10 that are common where F is at hand. None is 80,
        or as many as fit into 256 MiB, and 5 at least: of a million parameters 16.
    tolerance : on the largest component of the quasi-Newton step, in units of weight.
    gradient_tolerance : on that of g, in nats per row and unit of weight; relative to the first g where that has one
        above 1, as of columns that are not standardised.
    """

    memory: int | None = None
    tolerance: float = 1e-9
    gradient_tolerance: float = 1e-12
    pace: Pace = field(default_factory=lambda: Pace(count=None, deadline_seconds=NEVER))
    name: str = "lbfgs"
    kind: str = "gradient"
    exact: bool = True

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory < 1:
            raise StrategyError("lbfgs remembers 1 step or more")

    def steps_remembered(self, n_parameters: int) -> int:
        """Return of how many steps it remembers the change of w and of g."""
        if self.memory is not None:
            return self.memory
        return max(FEWEST, min(MOST, MEMORY_BYTES // (2 * 8 * n_parameters)))

    def weigh(self, contribution: Contribution) -> float:
        """Every row counts as one."""
        return contribution.n_samples

    def finish(self, state: StrategyState, weights: Array, situation: Situation = ALONE) -> Finished:
        """Return the next trial; ``weights`` themselves where they are the optimum, or where somebody was elsewhere."""
        included = tuple(sorted(received(state, situation)))
        here = pooled(state, weights, situation)
        if here is None:
            return Finished(state, weights, included, converged=False)
        point, shared = Point(here.w, here.loss, here.gradient), state.shared
        scale = float(shared["scope"][1]) if shared else max(1.0, _largest(point.gradient))
        if shared and shared["scope"][0] == here.n_samples:
            after = advance(shared, point, self.steps_remembered(weights.size))
        else:
            after = {**begin(point, {}), "scope": np.array([here.n_samples, scale])}
        vanishes = (
            np.array_equal(after["point"], weights) and _largest(point.gradient) <= self.gradient_tolerance * scale
        )
        if vanishes and _largest(after["direction"]) <= self.tolerance:
            return Finished(state, weights, included, converged=True)
        trial = after["point"] + Search(*after["search"].tolist()).step * after["direction"]
        flat = vanishes and situation.l2 == 0.0
        return Finished(StrategyState(state.held, after), trial, included, converged=False, flat=flat)


def begin(point: Point, pairs: Memory) -> Memory:
    """Return the state of a search from ``point``; without memory where that does not lead down."""
    with np.errstate(all="ignore"):  # pairs of absurd sizes overflow, and lead nowhere
        d = two_loop_direction(point.gradient, [Pair(*np.split(pairs[key], 2)) for key in sorted(pairs)])
        slope = float(point.gradient @ d)
    if pairs and not (np.isfinite(d).all() and slope < 0.0):
        return begin(point, {})
    shorter = LONGEST / max(LONGEST, float(np.linalg.norm(d)))
    search = search_from(point.loss, shorter * slope)
    return {"point": point.w, "gradient": point.gradient, "direction": shorter * d, "search": np.array(search), **pairs}


def advance(shared: Memory, trial: Point, memory: int) -> Memory:
    """Return the state of a search that has looked at its ``trial``: the same one further on, or the next one."""
    search = Search(*shared["search"].tolist())
    start = Point(shared["point"], search.loss, shared["gradient"])
    after = look(search, trial.loss, float(trial.gradient @ shared["direction"]))
    if after is None:
        pairs = _remember(shared, trial.w - start.w, trial.gradient - start.gradient, memory)
        return {**begin(trial, pairs), "scope": shared["scope"]}
    if after.is_lost and any(map(_is_pair, shared)):
        return {**begin(trial if trial.loss < start.loss else start, {}), "scope": shared["scope"]}
    return {**shared, "search": np.array(after)}


def _remember(shared: Memory, s: Array, y: Array, memory: int) -> Memory:
    """Return the remembered pairs and this one, the newest ``memory`` of them."""
    pairs = {key: pair for key, pair in shared.items() if _is_pair(key)}
    if s @ y > SQUARE * np.linalg.norm(s) * np.linalg.norm(y) and y @ y > 0.0:
        number = 1 + max((int(key.removeprefix("pair/")) for key in pairs), default=0)
        pairs[f"pair/{number:09d}"] = np.concatenate([s, y])
    return {key: pairs[key] for key in sorted(pairs)[-memory:]}


def _is_pair(key: str) -> bool:
    return key.startswith("pair/")


def _largest(values: Array) -> float:
    return float(np.abs(values).max())
