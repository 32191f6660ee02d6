"""When the updates that have come are aggregated."""

import pytest

from aggregator.errors import StrategyError
from aggregator.strategies import Pace


def due(pace: Pace, received: str, live: str, *, since: float = 0.0, now: float = 0.0) -> bool:
    return pace.due(set(received), set(live), since=since, now=now)


def test_nothing_received_is_never_due() -> None:
    assert not due(Pace(count=1), "", "ab", now=1e9)
    assert not due(Pace(count=None), "", "")


def test_a_count_is_due_when_it_is_reached() -> None:
    assert not due(Pace(count=2), "a", "abc")
    assert due(Pace(count=2), "ab", "abc")
    assert due(Pace(count=2), "abc", "abcd")


def test_a_round_is_due_when_every_live_participant_is_in() -> None:
    assert not due(Pace(count=None), "ab", "abc")
    assert due(Pace(count=None), "abc", "abc")
    assert due(Pace(count=None), "abx", "ab"), "one that is silent now may be in as well"


def test_fewer_live_participants_than_the_count_do_not_wait_for_ever() -> None:
    assert due(Pace(count=9), "ab", "ab")
    assert due(Pace(count=9), "a", "")


@pytest.mark.parametrize("count", [None, 5])
def test_from_the_deadline_on_a_quorum_is_enough(count: int | None) -> None:
    pace = Pace(count=count, quorum=2, deadline_seconds=0.7)
    assert not due(pace, "ab", "abc", since=0.1, now=0.79)
    assert due(pace, "ab", "abc", since=0.1, now=0.1 + 0.7)
    assert not due(pace, "a", "abc", since=0.1, now=99.0)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 1, "quorum": 0}, {"count": 1, "deadline_seconds": 0.0}])
def test_a_pace_at_which_nothing_would_ever_be_due_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(StrategyError, match="at least 1"):
        Pace(**wrong)
