"""The model that everybody downstream gets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from unit.aggregator.story import Story, rules, scores

from aggregator.released import release
from broker import codec
from broker.messages import Frame


@pytest.fixture
def story() -> Story:
    """Two sites have evaluated a model of weights 2, 4 and intercept 1; one of them has test rows."""
    story = Story(rules("b", "a", "c", l2=0.1, max_versions=1, start_with=2))
    story.hello("b", n_rows=10).hello("a", n_rows=30)
    story.arrives(story.update("a", np.array([2.0, 4.0, 1.0])))
    story.arrives(story.update("b", np.array([2.0, 4.0, 1.0])))
    state = story.state
    assert state.plan is not None
    frame = Frame(mean=np.array([10.0, 20.0]), scale=np.array([2.0, 4.0]))
    told = {
        "a": story.evaluation("a", train=scores(n=30.0, log_loss_sum=6.0), test=scores(n=4.0, log_loss_sum=2.0)),
        "b": story.evaluation("b", train=scores(n=10.0, log_loss_sum=4.0)),
    }
    story.state = replace(state, plan=replace(state.plan, frame=frame), scores=told)
    return story


def test_the_coefficients_are_on_the_original_scale_of_their_columns(story: Story) -> None:
    model = release(story.state)
    assert (model.weights, model.intercept) == ((2.0, 4.0), 1.0)
    assert [(c.name, c.estimate) for c in model.coefficients] == [("age", 1.0), ("sex", 1.0)]
    assert model.intercept_coefficient.estimate == pytest.approx(1.0 - 10.0 - 20.0)
    assert (model.standardisation.mean, model.standardisation.scale) == ((10.0, 20.0), (2.0, 4.0))


def test_both_scales_are_the_same_model(story: Story) -> None:
    model = release(story.state)
    x = np.array([3.0, -7.0])
    z = (x - np.array(model.standardisation.mean)) / np.array(model.standardisation.scale)
    standardised = z @ np.array(model.weights) + model.intercept
    original = sum(c.estimate * value for c, value in zip(model.coefficients, x, strict=True))
    assert original + model.intercept_coefficient.estimate == pytest.approx(standardised)


def test_without_a_frame_both_scales_are_one(story: Story) -> None:
    assert story.state.plan is not None
    model = release(replace(story.state, plan=replace(story.state.plan, frame=None)))
    assert (model.standardisation.mean, model.standardisation.scale) == ((0.0, 0.0), (1.0, 1.0))
    assert tuple(c.estimate for c in model.coefficients) == model.weights


def test_the_objective_is_the_pooled_loss_with_the_penalty_on_all_but_the_intercept(story: Story) -> None:
    objective = release(story.state).objective
    assert objective.l2 == 0.1
    assert objective.value == pytest.approx((6.0 + 4.0) / 40 + 0.05 * (4.0 + 16.0))


def test_scores_are_pooled_and_each_site_with_test_rows_is_shown_its_own(story: Story) -> None:
    metrics = release(story.state).metrics
    assert (metrics.train.n, metrics.train.accuracy, metrics.train.auc) == (40, 1.0, 1.0)
    assert metrics.test is not None
    assert (metrics.test.n, metrics.test.log_loss) == (4, 0.5)
    assert metrics.test_by_site == {"a": metrics.test}


def test_without_test_rows_there_are_no_test_scores(story: Story) -> None:
    only = {"b": story.state.scores["b"]}
    metrics = release(replace(story.state, scores=only)).metrics
    assert (metrics.test, metrics.test_by_site) == (None, {})


def test_it_says_what_it_owes_to_whom_and_nothing_of_those_that_were_barred(story: Story) -> None:
    story.hello("c", features=("weight",), n_rows=1000)
    model = release(story.state)
    assert model.n_samples == 40
    assert [asdict(each) for each in model.participants] == [
        {"name": "a", "n_samples": 30, "updates_included": 1, "last_base_version": 0},
        {"name": "b", "n_samples": 10, "updates_included": 1, "last_base_version": 0},
    ]


def test_it_is_plain_numbers_and_names_and_the_same_state_gives_the_same_bytes(story: Story) -> None:
    model = release(story.state)
    assert json.loads(json.dumps(asdict(model)))["version"] == 1
    assert codec.encode(model) == codec.encode(release(story.state))
    assert codec.decode(codec.encode(model)) == model
