"""One verdict for each contribution, and in the order that the table gives."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from unit.aggregator.story import Story, rules, scores

from aggregator.admission import LARGEST, Verdict, examine
from broker.messages import Evaluation, Information, ModelUpdate, Scores
from logistic.quadratic import pack


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


@pytest.mark.fault("B20")
def test_nobody_is_known_before_its_hello_nor_when_its_columns_do_not_fit(story: Story) -> None:
    assert verdict(story, story.update("stranger")) == "unknown-participant"
    story.hello("b", features=("weight",))
    assert verdict(story, story.update("b")) == "unknown-participant"


@pytest.mark.fault("B22", "F32")
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
@pytest.mark.fault("B17", "B23", "B25")
def test_an_update_that_cannot_be_used_is_refused_for_the_first_reason(
    story: Story, other: dict[str, Any], expected: str
) -> None:
    assert verdict(story, story.update("a", **other)) == expected


def test_an_update_is_refused_while_the_one_before_is_in_no_model(story: Story) -> None:
    story.trains("a")
    assert verdict(story, story.update("a")) == "unasked"


@pytest.mark.fault("B16")
def test_the_norm_of_an_update_may_reach_the_bound_and_not_exceed_it(story: Story) -> None:
    at_the_bound = np.array([6.0, 8.0, 0.0])
    assert verdict(story, story.update("a", at_the_bound)) == "accepted"
    assert verdict(story, story.update("a", np.nextafter(at_the_bound, 99.0))) == "out-of-bounds"
    assert verdict(story, story.update("a", np.full(3, np.nan))) == "out-of-bounds"


@pytest.mark.fault("B14")
def test_arrays_of_another_length_than_the_plan_implies_are_refused_though_they_name_it(story: Story) -> None:
    assert verdict(story, story.update("a", np.ones(4))) == "malformed"
    of_moments = Story(rules("a", standardise=True)).hello("a")
    longer = of_moments.moments("a", arrays={"mean": np.ones(3), "m2": np.ones(3)})
    assert verdict(of_moments, longer) == "malformed"
    short = scores()
    short.positives.resize(7, refcheck=False)
    assert verdict(verifying(story), story.evaluation("a", train=short)) == "malformed"


@pytest.mark.parametrize("phase", ["verifying", "converged"])
@pytest.mark.fault("B24")
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


# --- more classes, weights, missing cells ------------------------------------------------------


def test_squared_errors_of_more_than_two_classes_may_be_two_in_a_row() -> None:
    two = verifying(Story(rules("a")).hello("a"))
    three = verifying(Story(rules("a")).hello("a", classes=(0, 1, 2)))
    for brier_sum, of_two, of_three in ((10.0, "accepted", "accepted"), (19.9, "out-of-bounds", "accepted")):
        bad = scores(brier_sum=brier_sum)
        assert verdict(two, two.evaluation("a", train=bad)) == of_two
        assert verdict(three, three.evaluation("a", train=bad)) == of_three
    assert verdict(three, three.evaluation("a", train=scores(brier_sum=20.1))) == "out-of-bounds"


def test_the_rows_behind_an_update_may_weigh_what_its_participant_said_times_the_heaviest_class() -> None:
    story = Story(rules("a", class_weights=(0.5, 3.0))).hello("a", n_samples=7.0)
    for n_samples, expected in ((21.0, "accepted"), (21.0 * (1 + 1e-12), "accepted"), (21.1, "out-of-bounds")):
        assert verdict(story, story.update("a", n_samples=n_samples)) == expected


@pytest.mark.parametrize(
    ("observed", "expected"),
    [((10.0, 3.0), "accepted"), ((10.5, 3.0), "out-of-bounds"), ((10.0, -1.0), "out-of-bounds")],
)
def test_moments_say_of_how_many_rows_there_is_a_value(observed: tuple[float, float], expected: str) -> None:
    story = Story(rules("a", missing="mean")).hello("a")
    update = story.moments("a")
    update.arrays["observed"] = np.array(observed)
    assert verdict(story, update) == expected


# --- quadratics -----------------------------------------------------------------------------


def asked_for_curvature(**given: Any) -> Story:
    return Story(rules("a", "b", strategy="incremental-newton", **given)).all_say_hello()


def quadratic(story: Story, **other: Any) -> ModelUpdate:
    """Return the quadratic of ten rows; None leaves an array out."""
    arrays = {
        "base": np.zeros(3),
        "gradient": np.array([1.0, -2.0, 3.0]),
        "hessian": pack(np.diag([2.0, 3.0, 2.5])),
        "theta": np.array([0.25]),
        "reach": np.array([3.0]),
        "drift": np.array([0.0]),
    }
    kept = {name: array for name, array in (arrays | other).items() if array is not None}
    return story.update("a", kind="curvature", arrays=kept)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({}, "accepted"),
        ({"reach": None, "drift": None}, "accepted"),
        ({"theta": np.array([1.0])}, "accepted"),
        ({"theta": np.array([1.01])}, "out-of-bounds"),
        ({"theta": np.array([-0.01])}, "out-of-bounds"),
        ({"reach": np.array([-1.0])}, "out-of-bounds"),
        ({"drift": np.array([-1.0])}, "out-of-bounds"),
        ({"hessian": pack(np.diag([1.0, -1e-3, 1.0]))}, "out-of-bounds"),
        ({"hessian": pack(np.array([[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))}, "out-of-bounds"),
        ({"hessian": pack(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))}, "accepted"),
        ({"hessian": pack(np.zeros((3, 3)))}, "accepted"),
        ({"base": np.full(3, 1e9)}, "out-of-bounds"),
    ],
)
def test_a_quadratic_is_one_that_rows_can_have(other: dict[str, Any], expected: str) -> None:
    story = asked_for_curvature()
    assert verdict(story, quadratic(story, **other)) == expected


def test_a_hessian_may_be_left_out_where_there_is_one_and_it_was_newtons() -> None:
    story = asked_for_curvature()
    newtons = {"theta": np.array([0.0]), "hessian": None}
    assert verdict(story, quadratic(story, **newtons)) == "incomplete"
    story.arrives(quadratic(story)).arrives(replace(quadratic(story), participant="b", sequence=1))
    assert story.verdicts == ["accepted"]
    assert verdict(story, quadratic(story, **newtons)) == "accepted"
    assert verdict(story, quadratic(story, hessian=None)) == "out-of-bounds", "a majoriser's is not kept"


def test_sums_over_rows_grow_with_the_rows_and_with_the_units_of_their_columns() -> None:
    """Incomes of 50,000 in 10,000 rows: what each row may add is bounded, and not the sum."""
    story = asked_for_curvature(max_norm=10.0)
    for n, norm in ((1.0, 10.0), (10.0, 100.0)):
        for name, largest in (("gradient", norm), ("hessian", 10.0 * norm)):
            at_most = {"gradient": np.array([largest, 0.0, 0.0]), "hessian": pack(np.diag([largest, 0.0, 0.0]))}[name]
            update = replace(quadratic(story, **{name: at_most}), n_samples=n)
            assert verdict(story, update) == "accepted"
            assert verdict(story, replace(quadratic(story, **{name: 1.01 * at_most}), n_samples=n)) == "out-of-bounds"


@pytest.mark.parametrize("array", ["hessian", "gradient"])
def test_firths_rounds_bring_a_hessian_or_a_score(array: str) -> None:
    story = Story(rules("a", strategy="firth", penalty="firth", l2=0.0)).hello("a")
    good = quadratic(story).arrays
    update = story.update("a", kind="firth", arrays={"base": good["base"], array: good[array]})
    assert verdict(story, update) == "accepted"
    if array == "hessian":
        update.arrays["hessian"] = pack(-np.eye(3))
        assert verdict(story, update) == "out-of-bounds"


def test_nothing_is_taken_of_a_site_before_its_moments_where_these_are_needed() -> None:
    story = Story(rules("a", "b", start_with=1, standardise=True)).hello("a").reports_moments("a").hello("b")
    assert verdict(story, story.update("b")) == "wrong-phase"
    assert verdict(story, story.update("a")) == "accepted"
    assert verdict(story, story.moments("a")) == "wrong-phase", "it has sent them"
    assert verdict(story, story.moments("b")) == "accepted"


# --- answers about the last model -------------------------------------------------------------


def asked_about(stage: Any, **question: Any) -> Story:
    story = verifying(Story(rules("a")).hello("a"))
    progress = replace(story.state.progress, stage=stage)
    arrays = {name: np.array(values) for name, values in question.items()}
    story.state = replace(story.state, progress=progress, question=arrays)
    return story


def answer(story: Story, kind: str, **arrays: Any) -> Verdict:
    given = {name: np.array(values, dtype=float) for name, values in arrays.items()}
    return verdict(story, story.update("a", kind=kind, arrays=given))


def test_counts_are_of_the_intervals_that_were_asked_about() -> None:
    story = asked_about("rank", train_edges=[0.0, 1.0])
    counts = {"train_positives": [1, 0, 4], "train_negatives": [0, 0, 5]}
    assert answer(story, "ranks", **counts) == "accepted"
    assert answer(story, "ranks", **{**counts, "train_positives": [1, 0]}) == "out-of-bounds"
    assert answer(story, "ranks", **{**counts, "train_positives": [1, -1, 4]}) == "out-of-bounds"
    assert answer(story, "ranks", **{**counts, "train_positives": [1, 1e101, 4]}) == "out-of-bounds"
    assert answer(story, "ranks", **counts, test_positives=[1, 0, 4]) == "out-of-bounds", "nobody asked"
    assert answer(story, "sides", wrong=[0], on=[0], right=[10]) == "wrong-phase"


def test_sides_are_of_the_directions_that_were_asked_about() -> None:
    """One of fewer made an index go beyond its end, and the aggregator with it."""
    story = asked_about("sides", directions=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert answer(story, "sides", wrong=[0, 1], on=[0, 0], right=[10, 9]) == "accepted"
    assert answer(story, "sides", wrong=[0], on=[0], right=[10]) == "out-of-bounds"
    assert answer(story, "sides", wrong=[0, 1], on=[0, 0], right=[10, -9]) == "out-of-bounds"
    assert answer(story, "ranks", train_positives=[10]) == "wrong-phase"


def test_sums_of_a_path_are_of_the_models_that_were_asked_about_and_can_be_of_rows() -> None:
    story = asked_about("path", path_weights=np.zeros(6))
    H = pack(np.eye(3))
    sums = {"losses": [1.0, 2.0], "gradients": np.ones(6), "hessians": np.concatenate([H, H])}
    assert answer(story, "path", **sums) == "accepted"
    assert answer(story, "path", **sums, test_losses=[1.0, 1.0]) == "accepted"
    for wrong in (
        {"losses": [1.0]},
        {"losses": [1.0, -2.0]},
        {"gradients": np.ones(3)},
        {"hessians": H},
        {"hessians": np.concatenate([H, -H])},
        {"test_losses": [1.0, 2.0, 3.0]},
    ):
        assert answer(story, "path", **(sums | wrong)) == "out-of-bounds"


@pytest.mark.parametrize("kind", ["ranks", "sides", "path"])
@pytest.mark.parametrize("phase", ["moments", "training", "converged"])
def test_no_answers_are_taken_where_nothing_is_asked(kind: str, phase: str) -> None:
    story = replace_phase(asked_about("rank", train_edges=[0.0]), phase)
    assert verdict(story, story.update("a", kind=kind, arrays={})) == "wrong-phase"


def test_scores_that_come_when_counts_are_asked_for_are_refused() -> None:
    story = asked_about("rank", train_edges=[0.0])
    assert verdict(story, story.evaluation("a")) == "wrong-phase"


# --- what standard errors are made of -----------------------------------------------------------


def information(**other: Any) -> Information:
    arrays: dict[str, Any] = {"gradient": np.ones(3), "hessian": pack(np.eye(3)), "meat": None, "has_offset": False}
    return Information(**(arrays | other))


@pytest.mark.parametrize(
    ("wanted", "found", "expected"),
    [
        ("none", None, "accepted"),
        ("none", information(), "accepted"),
        ("wald", None, "out-of-bounds"),
        ("wald", information(), "accepted"),
        ("wald", information(hessian=pack(-np.eye(3))), "out-of-bounds"),
        ("wald", information(hessian=pack(np.diag([1e30, 1.0, 1.0]))), "out-of-bounds"),
        ("wald", information(gradient=np.full(3, 1e30)), "out-of-bounds"),
        ("sandwich", information(), "out-of-bounds"),
        ("sandwich", information(meat=pack(np.eye(3))), "accepted"),
        ("sandwich", information(meat=pack(-np.eye(3))), "out-of-bounds"),
    ],
)
def test_an_evaluation_brings_what_standard_errors_need_and_rows_can_have_it(
    wanted: Any, found: Information | None, expected: str
) -> None:
    """A matrix that bent down ended the aggregator, by the factorisation that it has not."""
    story = verifying(Story(rules("a", inference=wanted)).hello("a"))
    assert verdict(story, story.evaluation("a", information=found)) == expected


# --- who has been gone for too long -------------------------------------------------------------


def test_an_evicted_site_is_asked_nothing_so_nothing_of_it_is_taken(story: Story) -> None:
    evicted = replace(story.state.members["a"], evicted=True)
    story.state = replace(story.state, members={**story.state.members, "a": evicted})
    assert verdict(story, story.update("a")) == "unasked"
    verifying(story)
    assert verdict(story, story.evaluation("a")) == "unasked"
    assert verdict(story, story.evaluation("b")) == "accepted"


def test_every_verdict_is_explained_in_the_table() -> None:
    assert examine.__doc__ is not None
    assert all(f"``{name}``" in examine.__doc__ for name in get_args(Verdict) if name != "accepted")
