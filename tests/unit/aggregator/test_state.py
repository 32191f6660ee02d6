"""What is kept of the state, in cells that change one by one."""

from dataclasses import replace

import numpy as np
import pytest
from unit.aggregator.story import Story, rules

from aggregator.announcement import global_model
from aggregator.state import (
    LARGEST_RECIPE,
    WIDEST_HESSIAN,
    Answer,
    State,
    cells,
    changes,
    from_cells,
    pack_cell,
    recipe,
    weights_hash,
)
from aggregator.strategies import StrategyState, make_strategy
from aggregator.strategies.base import ALONE
from broker import codec
from broker.errors import MalformedMessage
from broker.messages import Information
from broker.schema import Feature, Label, Schema

INFORMATION = Information(np.ones(3), np.arange(6.0), None, has_offset=True)


def in_the_middle_of_everything() -> Story:
    """Return a story whose state has a cell of every kind."""
    story = Story(rules("a", "b", standardise=True, choose_learning_rate=True, max_versions=9)).all_say_hello()
    story.reports_moments("a", "b").trains("a", "b").trains("a")
    shared = {"momentum": np.array([0.1, 0.2, 0.3])}
    held = replace(story.state.strategy_state, shared=shared)
    story.state = replace(
        story.state,
        strategy_state=held,
        scores={"b": story.evaluation("b", information=INFORMATION)},
        question={"train_edges": np.array([0.5])},
        answers={"b": Answer({"train_positives": np.array([1.0, 2.0])})},
        found={"train_edges": np.array([0.25])},
    )
    return story


def test_every_cell_has_a_key_of_its_own() -> None:
    assert sorted(cells(in_the_middle_of_everything().state)) == [
        "answer/b",
        "found/train_edges",
        "held/a",
        "member/a",
        "member/b",
        "moments/a",
        "moments/b",
        "plan",
        "progress",
        "question/train_edges",
        "recipe",
        "recipe-held/a",
        "recipe-held/b",
        "recipe-weights",
        "scores/b",
        "shared/momentum",
        "weights",
    ]


def test_the_recipe_of_a_version_makes_the_same_version_again_also_from_its_cells() -> None:
    story = in_the_middle_of_everything()
    again = from_cells(story.rules, {key: pack_cell(value) for key, value in cells(story.state).items()})
    for kept in (story.state.recipe, again.recipe):
        assert kept is not None
        assert kept.surroundings.version == story.state.progress.version == 1
        finished = story.state.strategy.finish(kept.strategy_state, kept.weights, kept.situation)
        assert story.state.weights is not None
        assert finished.weights.tobytes() == story.state.weights.tobytes()
        assert sorted(finished.included) == ["a", "b"]


def test_what_a_recipe_shares_with_the_one_before_is_not_written_again() -> None:
    """Of `wanted`, too, it keeps what was; and of what is large, nothing."""
    weights, other = np.zeros(3), np.ones(3)
    nobody = State(rules("a"))
    state = StrategyState(shared={"momentum": weights, "mean": other}, wanted=frozenset({"b", "a"}))
    first, second = (replace(nobody, recipe=recipe(n, state, weights, ALONE)) for n in (1, 2))
    assert changes(first, second).keys() == {"recipe"}
    assert second.recipe is not None
    assert second.recipe.strategy_state.wanted == {"a", "b"}
    large = np.zeros(LARGEST_RECIPE // 8)
    assert recipe(1, StrategyState(), large, ALONE) is not None
    assert recipe(1, state, large, ALONE) is None
    assert changes(second, nobody) == dict.fromkeys(
        ["recipe", "recipe-weights", "recipe-shared/momentum", "recipe-shared/mean"]
    )


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
    story.state = replace(before, scores={}, strategy_state=StrategyState(), answers={}, question={}, found={})
    assert changes(before, story.state) == {
        "held/a": None,
        "shared/momentum": None,
        "scores/b": None,
        "answer/b": None,
        "question/train_edges": None,
        "found/train_edges": None,
    }


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


def test_who_is_evicted_is_not_waited_for_however_live() -> None:
    story = Story(rules("a", "b")).all_say_hello()
    story.state = replace(
        story.state, members={**story.state.members, "b": replace(story.state.members["b"], evicted=True)}
    )
    assert story.state.live == story.state.able == {"a"}
    assert not story.state.members["b"].takes_part


def test_moments_are_asked_of_who_has_sent_none_and_takes_part_while_they_can_still_count() -> None:
    story = Story(rules("a", "b", start_with=1, standardise=True)).hello("a")
    assert story.state.needs_moments_of("a")
    story.reports_moments("a")
    assert not story.state.needs_moments_of("a")
    story.hello("b")
    assert story.state.needs_moments_of("b"), "in training, too"
    for phase in ("verifying", "converged"):
        state = replace(story.state, progress=replace(story.state.progress, phase=phase))
        assert not state.needs_moments_of("b")
    evicted = replace(story.state.members["b"], evicted=True)
    assert not replace(story.state, members={**story.state.members, "b": evicted}).needs_moments_of("b")
    assert not Story(rules("a")).hello("a").state.needs_moments_of("a"), "where nothing follows from them"


def test_moments_are_asked_for_where_a_column_of_rare_levels_may_be_empty() -> None:
    schema = Schema((Feature("age"), Feature("ward", "categorical")), Label("died"))
    rare = Story(rules("a", "b", start_with=1)).hello("a", feature_schema=schema, levels={"ward": ("A", "(other)")})
    assert rare.state.needs_moments_of("a")
    common = Story(rules("a")).hello("a", feature_schema=schema, levels={"ward": ("A", "B")})
    assert not common.state.needs_moments_of("a")
    zeros = np.zeros(2)
    rare.reports_moments("a", mean=zeros, m2=zeros).hello("b", feature_schema=schema, levels={"ward": ("A",)})
    assert not rare.state.needs_moments_of("b"), "once it is left out nothing follows from them"


def test_the_strategy_is_the_one_for_the_width_that_the_plan_has() -> None:
    given = rules("a", wide_strategy=make_strategy("lbfgs"))
    assert Story(given).state.strategy.name == "fedavg", "before there is a plan"
    assert Story(given).hello("a").state.strategy.name == "fedavg"
    wide = Story(given).hello("a", features=tuple(f"x{j}" for j in range(WIDEST_HESSIAN)))
    assert wide.state.strategy.name == "lbfgs"
    assert wide.state.plan is not None
    assert (wide.state.plan.strategy, wide.state.plan.kind) == ("lbfgs", "gradient")


KEYS = ["progress", "plan", "weights", "member/a", "held/a", "answer/b", "found/train_edges", "question/train_edges"]


@pytest.mark.parametrize("key", KEYS)
def test_a_cell_that_cannot_be_read_is_an_error_and_not_a_guess(key: str) -> None:
    story = in_the_middle_of_everything()
    packed = {name: pack_cell(value) for name, value in cells(story.state).items()}
    with pytest.raises(MalformedMessage):
        from_cells(story.rules, packed | {key: packed[key][:-1]})


def test_a_version_is_known_by_its_numbers_and_not_by_where_they_lie() -> None:
    weights = np.arange(6.0)
    assert weights_hash(weights) == weights_hash(np.arange(12.0).reshape(6, 2)[:, 0] / 2)
    assert weights_hash(weights) != weights_hash(weights + 1e-15)
