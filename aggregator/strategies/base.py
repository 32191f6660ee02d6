"""What a strategy is: pure functions that make the next model out of what participants sent.

``init`` makes the state, ``receive`` takes a contribution into it, ``finish`` makes the next weights
out of it. The coordinator knows no strategy by name: it asks the pace when to finish, and it
stores the state, which for every strategy is two maps: what is held of each participant, and
vectors of the server's own (momentum, control variates).

`aggregator.testing.StrategyContract` examines all of them, and any that is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from aggregator.strategies.pace import Pace
from broker.messages import Array


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """One accepted update, as a strategy sees it.

    Attributes
    ----------
    update_id : by which the ledger knows it.
    base_version, staleness : the version it was computed from, and how many versions that is behind.
    n_samples : rows behind it.
    share : its rows over the mean of all participants' rows; 1 for a participant of average size.
    arrays : what the strategy's kind carries; ``weights`` or ``delta``, (n_parameters,).
    """

    participant: str
    update_id: str
    base_version: int
    staleness: int
    n_samples: float
    share: float
    arrays: dict[str, Array]


@dataclass(frozen=True, slots=True, eq=False)
class StrategyState:
    """What a strategy keeps between versions.

    ``wanted`` are those of whom another contribution is asked, besides those of whom none is held; None is everybody.
    It is about now, and not kept: after a restart everybody is asked.
    """

    held: dict[str, Contribution] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)
    wanted: frozenset[str] | None = None

    def asks(self, name: str) -> bool:
        """Whether another contribution of ``name`` is wanted."""
        return self.wanted is None or name in self.wanted or name not in self.held


@dataclass(frozen=True, slots=True)
class Situation:
    """What a strategy may have to know besides its own state when it makes a version.

    ``received`` came since the version before; None is all that is held. ``live`` may still answer.
    """

    l2: float = 0.0
    received: frozenset[str] | None = None
    live: frozenset[str] = frozenset()


ALONE = Situation()


class Finished(NamedTuple):
    """The next weights, the state after them, and whose contributions are in them.

    ``converged`` says whether they are the optimum; None leaves it to the loss to tell.
    """

    state: StrategyState
    weights: Array
    included: tuple[str, ...]
    converged: bool | None = None


class Strategy(Protocol):
    """How updates become the next model."""

    @property
    def name(self) -> str:
        """As chosen by the user."""

    @property
    def kind(self) -> str:
        """What participants send: a key of `broker.messages.UPDATE_ARRAYS`."""

    @property
    def exact(self) -> bool:
        """Whether it ends at the pooled fit; if not, it is called approximate wherever it is named."""

    @property
    def pace(self) -> Pace:
        """When to finish, as a rule."""

    def pace_of(self, state: StrategyState) -> Pace:
        """When to finish in this state."""

    def weigh(self, contribution: Contribution) -> float:
        """Return the weight with which ``contribution`` counts; the ledger keeps it."""

    def init(self, weights: Array) -> StrategyState:
        """Return the state before anything was received, at the first ``weights``."""

    def receive(self, state: StrategyState, contribution: Contribution) -> StrategyState:
        """Return ``state`` with ``contribution`` in it."""

    def finish(self, state: StrategyState, weights: Array, situation: Situation = ALONE) -> Finished:
        """Return what comes after ``weights``, given what was received."""


class Averaging:
    """What all strategies that average have in common: one pace, whatever the state."""

    __slots__ = ()
    pace: Pace

    def pace_of(self, state: StrategyState) -> Pace:  # noqa: ARG002 - whatever the state
        """When to finish."""
        return self.pace


def hold(state: StrategyState, contribution: Contribution) -> StrategyState:
    """Return ``state`` that holds ``contribution`` until the next version."""
    return StrategyState(held={**state.held, contribution.participant: contribution}, shared=state.shared)


def in_order(state: StrategyState) -> list[Contribution]:
    """Return what is held in the order of names: sums must not depend on who came first, not even in the last bit."""
    return [state.held[name] for name in sorted(state.held)]


def mean_delta(contributions: Sequence[Contribution], weigh: Callable[[Contribution], float]) -> Array:
    """Return sum_k weigh_k delta_k / sum_k weigh_k, (n_parameters,): the pseudo-gradient of a round."""
    weights = [weigh(contribution) for contribution in contributions]
    total = sum(weights)
    mean = np.zeros_like(contributions[0].arrays["delta"])
    for weight, contribution in zip(weights, contributions, strict=True):
        mean += (weight / total) * contribution.arrays["delta"]
    return mean
