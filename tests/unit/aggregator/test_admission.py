"""One verdict for each contribution, and in the order that the table gives."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from unit.aggregator.story import Story, rules, scores

from aggregator.admission import LARGEST, Verdict, examine
from broker.messages import Evaluation, ModelUpdate, Scores


@pytest.fixture
def story() -> Story:
    """Two participants, one version made."""
    return Story(rules("a", "b", max_versions=9, max_staleness=0, max_norm=10.0)).all_say_hello().trains("a", "b")


def verdict(story: Story, contribution: ModelUpdate | Evaluation) -> Verdict:
    return examine(story.state, contribution)


def verifying(story: Story) -> Story:
    return replace_phase(story, "verifying")


def replace_phase(story: Story, phase: Any) -> Story:
    story.state = replace(story.state, progress=replace(story.state.progress, phase=phase))
    return story


def test_a_fresh_update_of_what_is_asked_is_accepted(story: Story) -> None:
    assert verdict(story, story.update("a")) == "accepted"


def test_nobody_is_known_before_its_hello_nor_when_its_columns_do_not_fit(story: Story) -> None:
    assert verdict(story, story.update("stranger")) == "unknown-participant"
    story.hello("b", features=("weight",))
    assert verdict(story, story.update("b")) == "unknown-participant"


def test_a_number_that_was_received_is_a_duplicate_whatever_else_may_be_wrong_with_it(story: Story) -> None:
    again = story.update("a", sequence=1, plan_hash="other", base_version=99, n_samples=-1.0)
    assert verdict(story, again) == "duplicate"


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"incarnation": "i0", "sequence": 1}, "superseded"),
        ({"plan_hash": "other", "base_version": 99}, "wrong-plan"),
        ({"base_version": 99, "kind": "moments"}, "future-version"),
        ({"kind": "moments"}, "wrong-phase"),
        ({"base_version": 0, "n_samples": 0.0}, "stale"),
        ({"n_samples": 0.0}, "no-samples"),
        ({"n_samples": -1.0}, "no-samples"),
        ({"n_samples": float("nan")}, "no-samples"),
        ({"n_samples": 10.5}, "out-of-bounds"),
        ({"loss": -0.1}, "out-of-bounds"),
        ({"loss": 2 * LARGEST}, "out-of-bounds"),
        ({"loss": float("nan")}, "out-of-bounds"),
    ],
)
def test_an_update_that_cannot_be_used_is_refused_for_the_first_reason(
    story: Story, other: dict[str, Any], expected: str
) -> None:
    assert verdict(story, story.update("a", **other)) == expected


def test_an_update_is_refused_while_the_one_before_is_in_no_model(story: Story) -> None:
    story.trains("a")
    assert verdict(story, story.update("a")) == "unasked"


def test_the_norm_of_an_update_may_reach_the_bound_and_not_exceed_it(story: Story) -> None:
    at_the_bound = np.array([6.0, 8.0, 0.0])
    assert verdict(story, story.update("a", at_the_bound)) == "accepted"
    assert verdict(story, story.update("a", np.nextafter(at_the_bound, 99.0))) == "out-of-bounds"
    assert verdict(story, story.update("a", np.full(3, np.nan))) == "out-of-bounds"


@pytest.mark.parametrize("phase", ["verifying", "converged"])
def test_no_step_is_taken_for_a_model_that_is_not_trained_any_further(story: Story, phase: str) -> None:
    assert verdict(replace_phase(story, phase), story.update("a", kind="moments")) == "training-over"


@pytest.mark.parametrize(
    ("array", "value", "expected"),
    [
        ("m2", 0.0, "accepted"),
        ("m2", -1e-300, "out-of-bounds"),
        ("m2", 1e201, "out-of-bounds"),
        ("mean", -1e99, "accepted"),
        ("mean", 1e101, "out-of-bounds"),
    ],
)
def test_moments_may_have_any_unit_but_their_squares_must_fit(array: str, value: float, expected: str) -> None:
    story = Story(rules("a", standardise=True)).hello("a")
    update = story.moments("a")
    update.arrays[array] = np.full(2, value)
    assert verdict(story, update) == expected


def test_moments_are_not_held_to_the_norm_of_weights() -> None:
    story = Story(rules("a", standardise=True, max_norm=0.1)).hello("a")
    assert verdict(story, story.moments("a")) == "accepted"


def test_moments_at_the_very_bound_make_a_plan_that_can_be_sent() -> None:
    story = Story(rules("a", "b", standardise=True, choose_learning_rate=True)).all_say_hello()
    for name, sign in (("a", 1.0), ("b", -1.0)):
        update = story.moments(name)
        update.arrays.update(mean=np.full(2, sign * LARGEST), m2=np.full(2, LARGEST**2))
        story.arrives(update)
    assert story.phase == "training"
    story.restart()


def test_an_evaluation_is_of_the_frozen_model_while_it_is_asked_for(story: Story) -> None:
    assert verdict(story, story.evaluation("a")) == "wrong-phase"
    verifying(story)
    assert verdict(story, story.evaluation("a")) == "accepted"
    assert verdict(story, story.evaluation("a", test=scores(n=3.0))) == "accepted"
    assert verdict(story, story.evaluation("a", version=0)) == "wrong-phase"
    assert verdict(story, story.evaluation("a", version=2)) == "future-version"
    assert verdict(replace_phase(story, "converged"), story.evaluation("a")) == "wrong-phase"


@pytest.mark.parametrize(
    "impossible",
    [
        scores(n=2 * LARGEST, brier_sum=0.0, correct=0.0),
        scores(log_loss_sum=-1.0),
        scores(log_loss_sum=2 * LARGEST),
        scores(brier_sum=-1.0),
        scores(brier_sum=10.1),
        scores(correct=-1.0),
        scores(correct=10.1),
        scores(positives=np.full(1000, -1.0)),
        scores(negatives=np.full(1000, 1e300)),
    ],
)
def test_scores_that_no_rows_can_have_are_refused_of_either_set(story: Story, impossible: Scores) -> None:
    verifying(story)
    assert verdict(story, story.evaluation("a", train=impossible)) == "out-of-bounds"
    assert verdict(story, story.evaluation("a", test=impossible)) == "out-of-bounds"


@pytest.mark.parametrize("which", ["train", "test"])
def test_an_evaluation_needs_rows(story: Story, which: str) -> None:
    verifying(story)
    assert verdict(story, story.evaluation("a", **{which: scores(n=0.0)})) == "no-samples"


def test_every_verdict_is_explained_in_the_table() -> None:
    assert examine.__doc__ is not None
    assert all(f"``{name}``" in examine.__doc__ for name in get_args(Verdict) if name != "accepted")
