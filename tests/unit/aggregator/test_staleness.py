"""How much less a late update counts."""

from typing import Any

import pytest

from aggregator.errors import StrategyError
from aggregator.strategies import staleness_function
from aggregator.strategies.staleness import NAMES, Hinge, Polynomial


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("a", [None, 0.0, 0.3, 7.0])
def test_a_fresh_update_counts_in_full_and_an_older_one_never_more(name: str, a: float | None) -> None:
    s = staleness_function(name, a=a)
    assert s(0) == 1.0
    factors = [s(t) for t in range(50)]
    assert factors == sorted(factors, reverse=True)
    assert all(0 < factor <= 1 for factor in factors)


def test_the_polynomial_is_one_over_the_root_of_one_plus_the_staleness() -> None:
    """Not 1 / (1 + sqrt(t)), with which a fresh update would be the only one that counts right."""
    s = staleness_function("polynomial")
    assert [s(t) for t in (0, 3, 8, 99)] == [1.0, 0.5, pytest.approx(1 / 3), 0.1]
    assert staleness_function("polynomial", a=2.0)(3) == 1 / 16


def test_the_hinge_is_flat_up_to_b_and_falls_from_there() -> None:
    s = staleness_function("hinge", a=0.5, b=2)
    assert [s(t) for t in range(6)] == [1.0, 1.0, 1.0, 1 / 1.5, 1 / 2.0, 1 / 2.5]
    assert staleness_function("hinge") == Hinge(10.0, 4), "the paper's own a and b"
    assert staleness_function("hinge", b=7) == Hinge(10.0, 7)


def test_a_constant_does_not_look_at_the_age() -> None:
    assert staleness_function("constant")(10**6) == 1.0


def test_what_is_not_given_is_the_papers_own() -> None:
    assert staleness_function("polynomial") == Polynomial(0.5)


@pytest.mark.parametrize("name", NAMES)
def test_however_steep_and_old_a_weight_stays_above_zero(name: str) -> None:
    assert staleness_function(name, a=20.0)(10**14) > 0


@pytest.mark.parametrize("wrong", [{"a": -0.1}, {"b": -1}, {"a": float("nan")}, {"a": 20.1}])
def test_no_parameter_lets_an_older_update_count_more_or_not_at_all(wrong: dict[str, Any]) -> None:
    with pytest.raises(StrategyError, match="not negative"):
        staleness_function("hinge", **wrong)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(StrategyError, match="'sqrt': choose one of constant, polynomial, hinge"):
        staleness_function("sqrt")
