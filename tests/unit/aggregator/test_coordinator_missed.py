"""Who comes back after an optimum was verified without it is asked again: its last word was about another model."""

from __future__ import annotations

import pytest

from aggregator import membership
from aggregator.settings import AggregatorSettings
from aggregator.state import Member, Progress, State


def missed(strategy: str, *, last_base_version: int, loss: float | None = 0.5, **progress: object) -> bool:
    rules = AggregatorSettings(participants=["a"], strategy=strategy).rules()
    given = {"phase": "verifying", "version": 5, "converged": True, **progress}
    member = Member("a", "i1", n_rows=10, n_test_rows=0, loss=loss, last_base_version=last_base_version)
    return membership._was_missed(State(rules=rules, progress=Progress(**given)), member)  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["verifying", "converged"])
def test_of_an_exact_strategy_everybody_has_contributed_at_just_the_verified_weights(phase: str) -> None:
    assert missed("newton", last_base_version=3, phase=phase)
    assert not missed("newton", last_base_version=4, phase=phase)


def test_of_an_approximate_one_or_where_no_optimum_was_verified_an_older_contribution_stands() -> None:
    assert not missed("fedavg", last_base_version=1)
    assert not missed("newton", last_base_version=1, converged=False)


def test_who_never_contributed_was_missed_but_not_while_training_goes_on() -> None:
    assert missed("fedavg", last_base_version=0, loss=None)
    assert not missed("newton", last_base_version=0, loss=None, phase="training")
