"""The model that everybody downstream gets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from unit.aggregator.story import Story, rules, scores

from aggregator import released
from aggregator.errors import TrainingFailed
from aggregator.released import release
from aggregator.state import State
from broker import codec
from broker.messages import MAX_BODY_BYTES, Frame, ReleasedModel
from broker.schema import Feature, Label, Schema
from logistic.moments import Moments


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
    moments = {name: Moments(n, frame.mean, n * frame.scale**2) for name, n in (("a", 30.0), ("b", 10.0))}
    story.state = replace(state, plan=replace(state.plan, frame=frame), scores=told, moments=moments)
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
    model = release(replace(story.state, scores=only))
    assert (model.metrics.test, model.metrics.test_by_site) == (None, {})
    assert [each.present for each in model.participants] == [False, True]
    assert model.notes == ("gone before the end, and not counted in scores and standard errors: a",)


def test_it_says_what_it_owes_to_whom_and_nothing_of_those_that_were_barred(story: Story) -> None:
    story.hello("c", features=("weight",), n_rows=1000)
    model = release(story.state)
    assert model.n_samples == 40
    assert [asdict(each) for each in model.participants] == [
        {"name": "a", "n_samples": 30, "updates_included": 1, "last_base_version": 0, "present": True},
        {"name": "b", "n_samples": 10, "updates_included": 1, "last_base_version": 0, "present": True},
    ]


def test_it_is_plain_numbers_and_names_and_the_same_state_gives_the_same_bytes(story: Story) -> None:
    model = release(story.state)
    assert json.loads(json.dumps(asdict(model)))["version"] == 1
    assert codec.encode(model) == codec.encode(release(story.state))
    assert codec.decode(codec.encode(model)) == model


def test_when_rows_have_come_both_scales_are_those_of_all_there_are(story: Story) -> None:
    """The weights were trained in the frame that was frozen first."""
    before = release(story.state)
    moments = {**story.state.moments, "b": Moments(10.0, np.array([14.0, 20.0]), np.array([360.0, 640.0]))}
    model = release(replace(story.state, moments=moments))
    np.testing.assert_allclose(model.standardisation.mean, [11.0, 20.0])
    sd = np.sqrt(np.array([120.0 + 360.0 + 16.0 * 7.5, 480.0 + 640.0]) / 40.0)
    np.testing.assert_allclose(model.standardisation.scale, sd)
    assert model.coefficients == before.coefficients, "it is the same model"
    np.testing.assert_allclose(model.weights, np.array([1.0, 1.0]) * sd)
    assert model.intercept == pytest.approx(-29.0 + 11.0 + 20.0)
    assert model.objective.value == pytest.approx(0.25 + 0.05 * float(sd @ sd))


def test_a_mean_that_has_moved_moves_the_intercept_also_where_no_spread_has_changed(story: Story) -> None:
    mean = np.array([12.0, 20.0])
    moments = {name: Moments(each.n, mean, each.m2) for name, each in story.state.moments.items()}
    model = release(replace(story.state, moments=moments))
    assert model.standardisation.mean == (12.0, 20.0)
    assert (model.weights, model.intercept) == ((2.0, 4.0), pytest.approx(1.0 * 12.0 + 20.0 - 29.0))


def test_a_site_knows_its_own_area_exactly(story: Story) -> None:
    told = dict(story.state.scores)
    test = scores(n=4.0, log_loss_sum=2.0, auc=0.75)
    told["a"] = replace(told["a"], test=test)
    metrics = release(replace(story.state, scores=told)).metrics
    assert (metrics.test_by_site["a"].auc, metrics.test_by_site["a"].auc_tie_bound) == (0.75, 0.0)
    assert metrics.test is not None
    assert metrics.test.auc == 1.0, "that of all is merged from what all have counted"


def test_the_area_of_all_is_what_was_found_about_the_order_of_their_rows(story: Story) -> None:
    found = {
        "train_edges": np.array([0.0, 1.0]),
        "train_positives": np.array([1.0, 2.0, 3.0]),
        "train_negatives": np.array([4.0, 2.0, 1.0]),
    }
    model = release(replace(story.state, found=found))
    assert model.metrics.train.auc == pytest.approx((1 * 2 + 2 * 5 + 3 * 6.5) / 42)
    assert model.metrics.train.auc_tie_bound == pytest.approx((1 * 4 + 2 * 2 + 3 * 1) / 2 / 42), "wider than rounding"
    narrow = {**found, "train_edges": np.array([0.0, 1e-12])}
    tied = release(replace(story.state, found=narrow)).metrics.train
    assert tied.auc == model.metrics.train.auc
    assert tied.auc_tie_bound == pytest.approx((4 + 3) / 2 / 42), "rows in between are alike"
    one_class = {**found, "train_positives": np.zeros(3)}
    assert release(replace(story.state, found=one_class)).metrics.train.auc_tie_bound is None


def test_what_the_operator_asked_for_is_in_the_objective(story: Story) -> None:
    assert story.state.plan is not None
    lasso = replace(story.state, plan=replace(story.state.plan, l1=0.5))
    objective = release(lasso).objective
    assert (objective.l1, objective.l2, objective.penalty) == (0.5, 0.1, "ridge")
    assert objective.value == pytest.approx(0.25 + 0.05 * 20.0 + 0.5 * 6.0)
    firth = replace(story.state, plan=replace(story.state.plan, l2=0.0, penalty="firth"))
    assert release(firth).objective.value == pytest.approx(0.25)


def test_without_matrices_there_are_estimates_only_and_the_reason(story: Story) -> None:
    model = release(story.state)
    assert model.inference is not None
    assert (model.inference.kind, model.inference.why) == ("none", "it was not asked for")
    assert all(line.std_error is None and line.odds_ratio is None for line in model.coefficients)
    assert model.path == ()


# --- very many columns --------------------------------------------------------------------------


def wide(state: State, monkeypatch: pytest.MonkeyPatch) -> ReleasedModel:
    """Return the model as it is released where a byte less than all of it fits into a message."""
    with monkeypatch.context() as patched:
        patched.setattr(released, "MAX_BODY_BYTES", len(codec.encode(release(state))) - 1)
        return release(state)


def of_three_classes(state: State) -> State:
    assert state.plan is not None
    plan = replace(state.plan, classes=(1, 2, 5))
    return replace(state, plan=plan, weights=np.arange(9.0) ** 2)


def test_a_model_that_fits_to_the_byte_has_everything(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    model = release(story.state)
    monkeypatch.setattr(released, "MAX_BODY_BYTES", len(codec.encode(model)))
    assert release(story.state) == model


def test_one_that_does_not_fit_has_its_weights_on_the_columns_own_scale_and_says_so(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, found = release(story.state), wide(story.state, monkeypatch)
    assert (found.standardisation.mean, found.standardisation.scale, found.coefficients) == ((), (), ())
    assert found.weights == tuple(line.estimate for line in whole.coefficients)
    assert found.intercept == found.intercept_coefficient.estimate == whole.intercept_coefficient.estimate
    assert found.notes == (*whole.notes, released.WIDE)
    left_out = {
        name: getattr(whole, name)
        for name in ("standardisation", "weights", "intercept", "coefficients", "intercept_coefficient", "notes")
    }
    assert replace(found, **left_out) == whole, "all else is there"


def test_of_more_classes_each_has_its_weights_on_the_columns_own_scale(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = of_three_classes(story.state)
    whole, found = release(state), wide(state, monkeypatch)
    assert (found.standardisation.mean, found.weights, found.coefficients) == ((), (), ())
    mean, scale = np.array(whole.standardisation.mean), np.array(whole.standardisation.scale)
    for before, after in zip(whole.by_class, found.by_class, strict=True):
        slopes = np.array(before.weights) / scale
        assert (before.label, after.coefficients) == (after.label, ())
        np.testing.assert_allclose(after.weights, slopes)
        assert after.intercept == pytest.approx(before.intercept - slopes @ mean)
        assert after.intercept_coefficient == before.intercept_coefficient


def test_where_it_cannot_fit_nothing_is_made_to_try(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = wide(story.state, monkeypatch)
    monkeypatch.setattr(released, "COLUMN_BYTES", MAX_BODY_BYTES)
    assert release(story.state) == expected


def test_a_column_takes_at_least_so_many_bytes_whatever_its_name(story: Story) -> None:
    assert story.state.plan is not None
    plan = replace(story.state.plan, frame=None)

    def n_bytes(d: int) -> int:
        names = tuple(map(chr, range(97, 97 + d)))
        state = replace(story.state, plan=replace(plan, features=names), weights=np.zeros(d + 1))
        return len(codec.encode(release(state)))

    assert n_bytes(12) - n_bytes(2) >= 10 * released.COLUMN_BYTES


def test_names_and_weights_that_are_larger_than_a_message_cannot_be_released(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = len(codec.encode(wide(story.state, monkeypatch))) - 1
    monkeypatch.setattr(released, "MAX_BODY_BYTES", small)
    with pytest.raises(TrainingFailed, match=rf"2 columns cannot be released: .*\({small} bytes\); train on"):
        release(story.state)


def test_a_model_of_a_million_columns_fits_into_a_message(story: Story) -> None:
    d = 1_000_000
    assert story.state.plan is not None
    frame = Frame(mean=None, scale=np.linspace(0.5, 2.0, d))
    plan = replace(story.state.plan, features=tuple(f"column {i}" for i in range(d)), frame=frame)
    weights = np.random.default_rng(0).normal(size=d + 1)
    moments = {"a": Moments(40.0, np.zeros(d), 40.0 * frame.scale**2)}
    model = release(replace(story.state, plan=plan, weights=weights, moments=moments))
    assert model.coefficients == ()
    np.testing.assert_allclose(model.weights, weights[:-1] / frame.scale, rtol=1e-15)
    assert len(codec.encode(model)) < MAX_BODY_BYTES


def test_it_says_how_the_columns_follow_from_a_table_and_what_stands_for_missing_cells(story: Story) -> None:
    assert release(story.state).feature_schema is None
    assert release(story.state).fill == ()
    schema = Schema((Feature("age", missing="mean"), Feature("sex", "binary")), Label("died"))
    assert story.state.plan is not None
    plan = replace(story.state.plan, feature_schema=schema, fill=np.array([47.5, 0.0]))
    model = release(replace(story.state, plan=plan))
    assert (model.feature_schema, model.fill) == (schema, (47.5, 0.0))


def with_other_units(state: State, features: tuple[str, ...]) -> State:
    """Return ``state`` of so many columns, of which site a has all but the last in a unit of ten times the numbers."""
    assert state.plan is not None
    d = len(features)
    by = np.append(np.full(d - 1, 10.0), 1.0)
    moments = {
        name: Moments(30.0, np.full(d, 20.0) * factor, 30.0 * np.full(d, 16.0) * factor**2)
        for name, factor in (("a", by), ("b", np.ones(d)), ("c", np.ones(d)))
    }
    members = {**state.members, "c": replace(state.members["b"], name="c")}
    plan = replace(state.plan, features=features, frame=None)
    return replace(state, plan=plan, moments=moments, members=members, weights=np.zeros(d + 1))


def test_it_says_of_which_columns_the_unit_is_doubted_and_where(story: Story) -> None:
    (note, absence) = release(with_other_units(story.state, ("chol", "age"))).notes[::-1]
    assert note == "chol at a is 10 times that of the other sites, mean and spread alike: is it in another unit?"
    assert absence == "gone before the end, and not counted in scores and standard errors: c"


@pytest.mark.parametrize(("doubted", "more"), [(5, []), (7, ["and 2 columns more"])])
def test_of_many_doubted_columns_the_first_five_are_noted(story: Story, doubted: int, more: list[str]) -> None:
    notes = release(with_other_units(story.state, tuple(f"x{j}" for j in range(doubted + 1)))).notes
    assert [note.split(" at a is ")[0] for note in notes[1:6]] == [f"x{j}" for j in range(5)]
    assert list(notes[6:]) == more
