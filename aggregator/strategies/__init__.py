"""The strategies, one paper a module, and the one place where they are found by name.

============ ============ ===================== ===========
name         sends        aggregates            result
============ ============ ===================== ===========
`fedavg`     weights      in rounds             approximate
`fedavgm`    delta        in rounds             approximate
`fedadagrad` delta        in rounds             approximate
`fedadam`    delta        in rounds             approximate
`fedyogi`    delta        in rounds             approximate
`fedasync`   weights      at each arrival       approximate
`fedbuff`    delta        at K arrivals         approximate
`incremental-newton`, `newton`: curvature, at each arrival or in rounds: exact
============ ============ ===================== ===========
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aggregator.errors import StrategyError
from aggregator.strategies.base import Contribution, Finished, Situation, Strategy, StrategyState
from aggregator.strategies.fedasync import FedAsync
from aggregator.strategies.fedavg import FedAvg
from aggregator.strategies.fedavgm import FedAvgM
from aggregator.strategies.fedbuff import FedBuff
from aggregator.strategies.fedopt import FedOpt
from aggregator.strategies.incremental_newton import IncrementalNewton
from aggregator.strategies.pace import Pace
from aggregator.strategies.staleness import Staleness, staleness_function

__all__ = [
    "STRATEGIES",
    "Contribution",
    "Finished",
    "Pace",
    "Situation",
    "Strategy",
    "StrategyOptions",
    "StrategyState",
    "make_strategy",
    "staleness_function",
]


@dataclass(frozen=True, slots=True)
class StrategyOptions:
    """All that a user may set of a strategy; None takes the strategy's own default.

    An option that a strategy does not have is refused, not passed over.
    """

    buffer_size: int | None = None
    quorum: int | None = None
    deadline_seconds: float | None = None
    mixing_rate: float | None = None
    server_learning_rate: float | None = None
    momentum: float | None = None
    second_momentum: float | None = None
    adaptivity: float | None = None
    staleness: str | None = None
    staleness_a: float | None = None
    staleness_b: int | None = None


def _pace(options: StrategyOptions, *, count: int | None) -> Pace:
    pace = Pace(count=count)
    return Pace(
        count=count,
        quorum=pace.quorum if options.quorum is None else options.quorum,
        deadline_seconds=pace.deadline_seconds if options.deadline_seconds is None else options.deadline_seconds,
    )


def _staleness(options: StrategyOptions) -> Staleness:
    return staleness_function(options.staleness or "polynomial", a=options.staleness_a, b=options.staleness_b)


def _fedavg(options: StrategyOptions) -> Strategy:
    return FedAvg(pace=_pace(options, count=None), staleness=_staleness(options))


def _fedasync(options: StrategyOptions) -> Strategy:
    rate = FedAsync().mixing_rate if options.mixing_rate is None else options.mixing_rate
    return FedAsync(mixing_rate=rate, staleness=_staleness(options))


def _fedbuff(options: StrategyOptions) -> Strategy:
    default = FedBuff()
    rate = options.server_learning_rate
    return FedBuff(
        pace=_pace(options, count=default.pace.count if options.buffer_size is None else options.buffer_size),
        staleness=_staleness(options),
        server_learning_rate=default.server_learning_rate if rate is None else rate,
    )


def _given(options: StrategyOptions, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _fedavgm(options: StrategyOptions) -> Strategy:
    given = _given(options, "server_learning_rate", "momentum")
    return FedAvgM(pace=_pace(options, count=None), staleness=_staleness(options), **given)


def _fedopt(name: str, **default: float) -> Callable[[StrategyOptions], Strategy]:
    def make(options: StrategyOptions) -> Strategy:
        given = _given(options, "server_learning_rate", "momentum", "second_momentum", "adaptivity")
        return FedOpt(name, pace=_pace(options, count=None), staleness=_staleness(options), **{**default, **given})

    return make


_STALENESS = {"staleness", "staleness_a", "staleness_b"}
_ROUNDS = {"quorum", "deadline_seconds"}
_ADAPTIVE = {"server_learning_rate", "momentum", "second_momentum", "adaptivity"}

#: name -> (how it is made, the options it has). One line adds a strategy.
STRATEGIES: dict[str, tuple[Callable[[StrategyOptions], Strategy], set[str]]] = {
    "incremental-newton": (lambda _: IncrementalNewton(), set()),
    "newton": (lambda _: IncrementalNewton("newton", synchronous=True), set()),
    "fedavg": (_fedavg, _STALENESS | _ROUNDS),
    "fedavgm": (_fedavgm, _STALENESS | _ROUNDS | {"server_learning_rate", "momentum"}),
    "fedadagrad": (_fedopt("fedadagrad", server_learning_rate=0.1), _STALENESS | _ROUNDS | _ADAPTIVE),
    "fedadam": (_fedopt("fedadam"), _STALENESS | _ROUNDS | _ADAPTIVE),
    "fedyogi": (_fedopt("fedyogi"), _STALENESS | _ROUNDS | _ADAPTIVE),
    "fedasync": (_fedasync, _STALENESS | {"mixing_rate"}),
    "fedbuff": (_fedbuff, _STALENESS | _ROUNDS | {"buffer_size", "server_learning_rate"}),
}


def make_strategy(name: str, options: StrategyOptions | None = None) -> Strategy:
    """Return the strategy called ``name``.

    Raises
    ------
    StrategyError
        For a name that is not in `STRATEGIES`, an option the strategy does not have, or a value it cannot have.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"there is no strategy {name!r}: choose one of {', '.join(sorted(STRATEGIES))}")
    options = options or StrategyOptions()
    make, has = STRATEGIES[name]
    given = {key for key in options.__dataclass_fields__ if getattr(options, key) is not None}
    if foreign := sorted(given - has):
        raise StrategyError(f"{name} has no option {', '.join(foreign)}; it has {', '.join(sorted(has))}")
    return make(options)
