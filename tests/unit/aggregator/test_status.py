"""Where a federation stands, in words: what it waits for, and who is silent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from unit.aggregator.story import Story, rules

from aggregator.status import SiteStatus, Status, status
from aggregator.strategies import StrategyOptions

SILENCE = 10.0


def story(*names: str, **given: Any) -> Story:
    return Story(rules(*names, silence_seconds=SILENCE, **given))


def of(told: Story, later: float = 0.0) -> Status:
    return status(told.state, told.now + later)


def site(told: Story, name: str, later: float = 0.0) -> SiteStatus:
    return next(each for each in of(told, later).sites if each.name == name)


def test_who_has_not_said_hello_is_waited_for_by_name() -> None:
    told = story("a", "b", "c").hello("b")
    assert of(told, 4.0).waits == "for the hello of a, c"
    assert site(told, "a") == SiteStatus("a", "expected", None, "", 0, None, "it has not said hello")
    assert site(told, "b", 4.0).heard_seconds_ago == 4.0


def test_of_more_than_are_needed_so_many_hellos_are_waited_for() -> None:
    assert of(story("a", "b", "c", start_with=2).hello("b")).waits == "for 1 more to say hello, of a, c"


def test_a_site_that_does_not_fit_is_told_apart_and_says_why() -> None:
    told = story("a", "b").hello("a").hello("b", features=("other",))
    assert of(told).waits == "for b to be mended"
    assert site(told, "b").note.startswith("barred: ")


def test_moments_are_waited_for_by_name() -> None:
    told = story("a", "b", standardise=True)
    told.all_say_hello()
    told.reports_moments("a")
    assert of(told).waits == "for the moments of b"
    assert [each.asked for each in of(told).sites] == ["", "moments"]


def test_a_round_waits_for_all_who_are_there_and_no_longer_than_its_deadline() -> None:
    told = story("a", "b", "c", options=StrategyOptions(deadline_seconds=30.0, quorum=1))
    told.all_say_hello()
    assert of(told).waits == "for updates of a, b, c"
    told.trains("a")
    assert of(told, 4.0).waits == "for updates of b, c, for 26 s more at most"
    assert of(told, 4.0).seconds == 4.0
    assert of(told, 90.0).waits.endswith(", for 0 s more at most")


def test_a_buffer_waits_for_so_many_of_any() -> None:
    told = story("a", "b", "c", strategy="fedbuff", options=StrategyOptions(buffer_size=2, deadline_seconds=30.0))
    told.all_say_hello()
    assert of(told).waits == "for 2 updates of any of a, b, c"
    told.trains("a")
    assert of(told).waits == "for an update of any of b, c, for 30 s more at most"


def test_before_its_first_version_the_default_waits_for_enough() -> None:
    told = story("a", "b", strategy="incremental-newton")
    told.all_say_hello()
    assert of(told).waits == "for updates of enough of a, b"


def test_the_last_questions_have_a_limit() -> None:
    told = story("a", "b", max_versions=1, sweep_seconds=60.0)
    told.all_say_hello()
    told.trains("a", "b").evaluates("a")
    assert of(told, 15.0).waits == "for what b find of the last model, for 45 s more at most"


def test_a_released_model_is_waited_for_no_more() -> None:
    told = story("a", max_versions=1)
    told.all_say_hello()
    told.trains("a").evaluates("a")
    found = of(told)
    assert (found.phase, found.waits) == ("converged", "for nothing: version 1 is released")
    assert (found.version, found.strategy, found.term, found.loss) == (1, "fedavg", 1, told.state.progress.loss)


def test_who_falls_silent_is_named_after_the_stated_time_and_not_before() -> None:
    told = story("a", "b")
    told.all_say_hello()
    told.later(SILENCE - 1.0).heartbeat("a").later(0.5)
    assert site(told, "b").state == "live"
    told.later(0.5)
    assert site(told, "b").state == "silent"
    assert site(told, "b").note == "silent for more than 10 s: nobody waits for it"
    assert of(told).waits == "for updates of a"
    told.heartbeat("b")
    assert (site(told, "b").state, site(told, "b").note) == ("live", "")


def test_nobody_there_is_said() -> None:
    told = story("a", "b")
    told.all_say_hello()
    told.goodbye("a").goodbye("b")
    assert of(told).waits == "for anybody: no participant is there"
    assert site(told, "a").state == "left"


def test_what_is_in_a_version_and_how_far_behind_it_is() -> None:
    told = story("a", "b")
    told.all_say_hello()
    told.trains("a", "b")
    assert [(each.included, each.versions_behind) for each in of(told).sites] == [(1, 1), (1, 1)]


def test_a_refusal_and_an_eviction_have_a_note() -> None:
    told = story("a", "b", evict_seconds=60.0)
    told.all_say_hello()
    told.trains("a", n_samples=0.0)
    assert site(told, "a").note == "its last contribution was refused: no-samples"
    for _ in range(16):
        told.later(4.0).heartbeat("a")
    assert site(told, "b").note == "gone for too long: its rows count no longer"


def test_when_nobody_is_asked_that_is_said() -> None:
    told = story("a")
    told.all_say_hello()
    member = replace(told.state.members["a"], failed_at=told.version)
    told.state = replace(told.state, members={"a": member})
    assert of(told).waits == "for updates of nobody"
