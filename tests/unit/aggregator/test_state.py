"""What is kept of the state, in cells that change one by one."""

from dataclasses import replace

import numpy as np
import pytest
from unit.aggregator.story import Story, rules

from aggregator.announcement import global_model
from aggregator.state import cells, changes, from_cells, pack_cell
from aggregator.strategies import StrategyState
from broker import codec
from broker.errors import MalformedMessage


def in_the_middle_of_everything() -> Story:
    """Return a story whose state has a cell of every kind."""
    story = Story(rules("a", "b", standardise=True, choose_learning_rate=True, max_versions=9)).all_say_hello()
    story.reports_moments("a", "b").trains("a", "b").trains("a")
    shared = {"momentum": np.array([0.1, 0.2, 0.3])}
    held = replace(story.state.strategy_state, shared=shared)
    told = {"b": story.evaluation("b")}
    story.state = replace(story.state, strategy_state=held, scores=told)
    return story


def test_every_cell_has_a_key_of_its_own() -> None:
    assert sorted(cells(in_the_middle_of_everything().state)) == [
        "held/a",
        "member/a",
        "member/b",
        "moments/a",
        "moments/b",
        "plan",
        "progress",
        "scores/b",
        "shared/momentum",
        "weights",
    ]


def test_what_is_restored_from_the_cells_has_the_same_cells() -> None:
    story = in_the_middle_of_everything()
    packed = {key: pack_cell(value) for key, value in cells(story.state).items()}
    again = from_cells(story.rules, packed)
    assert {key: pack_cell(value) for key, value in cells(again).items()} == packed
    assert again.plan_hash == story.state.plan_hash
    assert codec.encode(global_model(again)) == codec.encode(global_model(story.state))


def test_a_federation_that_nobody_has_joined_is_one_cell() -> None:
    story = Story(rules("a"))
    assert list(cells(story.state)) == ["progress"]
    again = from_cells(story.rules, {"progress": pack_cell(story.state.progress)})
    assert (again.plan, again.plan_hash, again.weights) == (None, "", None)


def test_what_the_first_commits_wrote_can_be_restored() -> None:
    """A hello that does not start the federation changes one cell, and it is the only one in the store."""
    story = Story(rules("a", "b"))
    before = story.state
    changed = changes(before, story.hello("a").state)
    assert changed.keys() == {"member/a"}
    again = from_cells(story.rules, {key: pack_cell(value) for key, value in changed.items()})
    assert (again.progress, list(again.members)) == (before.progress, ["a"])


def test_a_commit_writes_what_changed_and_nothing_else() -> None:
    story = in_the_middle_of_everything()
    before = story.state
    assert changes(before, story.heartbeat("a").state) == {}, "who is there is not kept"
    story.state = replace(before, scores={}, strategy_state=StrategyState())
    assert changes(before, story.state) == {"held/a": None, "shared/momentum": None, "scores/b": None}


def test_an_accepted_update_writes_its_own_two_cells() -> None:
    story = Story(rules("a", "b")).all_say_hello()
    before = story.state
    assert changes(before, story.trains("a").state).keys() == {"held/a", "member/a"}


def test_what_is_asked_of_the_silent_the_departed_and_the_barred_is_not_waited_for() -> None:
    story = Story(rules("a", "b", "c", "d", start_with=1)).hello("a").hello("b").hello("c")
    story.hello("d", features=("weight",)).goodbye("b")
    story.now = 20.0
    story.heartbeat("a").later(20.0)
    assert {name: presence.state for name, presence in story.state.presence.items()} == {
        "a": "live",
        "b": "left",
        "c": "silent",
        "d": "silent",
    }
    assert story.state.live == {"a"}


@pytest.mark.parametrize("key", ["progress", "plan", "weights", "member/a", "held/a"])
def test_a_cell_that_cannot_be_read_is_an_error_and_not_a_guess(key: str) -> None:
    story = in_the_middle_of_everything()
    packed = {name: pack_cell(value) for name, value in cells(story.state).items()}
    with pytest.raises(MalformedMessage):
        from_cells(story.rules, packed | {key: packed[key][:-1]})
