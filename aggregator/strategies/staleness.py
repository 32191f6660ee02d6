"""How much less a late update counts, as a function of its staleness in versions.

s(0) = 1 for every function here: a fresh update always counts in full.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, section 5.2 (constant, polynomial,
hinge); Nguyen et al., AISTATS 2022, section 5 uses the polynomial with exponent 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from aggregator.errors import StrategyError


class Staleness(Protocol):
    """A discount in (0, 1]."""

    def __call__(self, staleness: int) -> float:
        """Return the factor for an update that is ``staleness`` versions old."""


@dataclass(frozen=True, slots=True)
class Constant:
    """s(t) = 1."""

    def __call__(self, staleness: int) -> float:  # noqa: ARG002 - constant in it
        """Return 1, however old."""
        return 1.0


@dataclass(frozen=True, slots=True)
class Polynomial:
    """s(t) = (1 + t)^-a."""

    a: float = 0.5

    def __call__(self, staleness: int) -> float:
        """Return (1 + t)^-a."""
        return float((1 + staleness) ** -self.a)


@dataclass(frozen=True, slots=True)
class Hinge:
    """s(t) = 1 up to b, then 1 / (a (t - b) + 1)."""

    a: float = 10.0
    b: int = 4

    def __call__(self, staleness: int) -> float:
        """Return 1 up to b, then 1 / (a (t - b) + 1)."""
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


NAMES = ("constant", "polynomial", "hinge")

#: Of ``a``: with it an update of 10^14 versions ago still weighs more than 0, so no sum of weights is ever 0.
STEEPEST = 20.0


def staleness_function(name: str, *, a: float | None = None, b: int | None = None) -> Staleness:
    """Return the function called ``name``; ``a`` and ``b`` where it has them and they are given.

    Raises
    ------
    StrategyError
        For a name that is none of constant, polynomial, hinge; for an ``a`` or ``b`` below zero, or a steeper ``a``
        than `STEEPEST`.
    """
    if (a is not None and not 0 <= a <= STEEPEST) or (b is not None and b < 0):
        raise StrategyError(
            "the parameters of a staleness function are not negative, since an older update never counts more, "
            f"and a is at most {STEEPEST:g}, since it always counts"
        )
    match name:
        case "constant":
            return Constant()
        case "polynomial":
            return Polynomial() if a is None else Polynomial(a)
        case "hinge":
            hinge = Hinge()
            return Hinge(hinge.a if a is None else a, hinge.b if b is None else b)
    raise StrategyError(f"there is no staleness function {name!r}: choose one of {', '.join(NAMES)}")
