"""Solvers: ways from starting weights to the minimum of F, all driven by one loop.

========================  ==============================  ===========================================
name                      cost of a step                  good for
========================  ==============================  ===========================================
``newton``                n d^2 + d^3                     almost everything up to d of about 1500
``lbfgs``                 n d, a few times                wide data
``gradient-descent``      n d, or batch_size d            a few cheap local steps; comparison with papers
========================  ==============================  ===========================================
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from logistic.errors import UnknownSolverError
from logistic.solvers.driver import Solution, Solver, State, Status, solve
from logistic.solvers.gradient_descent import GradientDescent
from logistic.solvers.lbfgs import LBFGS
from logistic.solvers.newton import Newton

__all__ = [
    "LBFGS",
    "SOLVERS",
    "GradientDescent",
    "Newton",
    "Solution",
    "Solver",
    "State",
    "Status",
    "make_solver",
    "solve",
]

SOLVERS: Mapping[str, Callable[..., Solver[Any]]] = MappingProxyType(
    {"gradient-descent": GradientDescent, "newton": Newton, "lbfgs": LBFGS}
)


def make_solver(name: str, **options: Any) -> Solver[Any]:
    """Make the solver registered under ``name``, with its own options (``learning_rate``, ``memory``, ...).

    Raises
    ------
    UnknownSolverError
        If nothing is registered under ``name``.
    """
    if name not in SOLVERS:
        raise UnknownSolverError(f"no solver is called {name!r}; there are {', '.join(SOLVERS)}")
    return SOLVERS[name](**options)
