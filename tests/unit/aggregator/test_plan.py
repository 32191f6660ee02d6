"""How a plan is made of hellos and moments, and who fits it."""

from dataclasses import replace

import numpy as np
import pytest
from unit.aggregator.story import Story, rules

from aggregator.plan import enrol, first_plan, frozen_plan, learning_rate, mismatch
from aggregator.state import Member
from broker.messages import Hello, Plan
from logistic.moments import Moments


def member(name: str, *features: str, n_rows: int = 10) -> Member:
    return Member(name, "i1", n_rows, 0, features=features)


def hello(incarnation: str = "i1", *, n_rows: int = 10, features: tuple[str, ...] = ("age", "sex")) -> Hello:
    return Hello("heart", "a", incarnation, features, n_rows, 3)


def plan() -> Plan:
    made, _ = first_plan(rules("a", standardise=True, choose_learning_rate=True), [member("a", "age", "sex")])
    return made


# --- who fits -------------------------------------------------------------------------------


def test_columns_in_another_order_fit() -> None:
    assert mismatch(("b", "a"), ("a", "b")) == ""


def test_what_is_missing_and_what_is_unknown_is_named() -> None:
    assert mismatch(("a",), ("a", "b")) == "its columns are not the plan's (missing: b)"
    assert mismatch(("a", "c"), ("a",)) == "its columns are not the plan's (unknown: c)"


def test_of_many_columns_that_do_not_fit_the_first_five_are_named() -> None:
    assert mismatch(tuple("abcdefg"), ()) == "its columns are not the plan's (unknown: a, b, c, d, e)"


# --- enrolment ------------------------------------------------------------------------------


def test_a_newcomer_keeps_its_columns_until_there_is_a_plan() -> None:
    assert enrol(None, hello(), None) == Member("a", "i1", 10, 3, features=("age", "sex"))
    assert enrol(None, hello(), plan()) == Member("a", "i1", 10, 3)
    assert enrol(None, hello(features=("age",)), plan()).barred


def test_one_that_is_known_keeps_its_history_and_may_bring_new_rows() -> None:
    known = replace(enrol(None, hello(), plan()), received=4, settled=3, pending="a:i1:4", included=3, loss=0.5)
    assert enrol(known, hello(n_rows=12), plan()) == replace(known, n_rows=12)


def test_one_without_its_disk_counts_anew_and_its_waiting_update_stays_its_own() -> None:
    known = replace(enrol(None, hello(), plan()), received=4, settled=3, pending="a:i1:4", included=3, loss=0.5)
    again = enrol(known, hello("i2"), plan())
    assert (again.incarnation, again.received, again.settled) == ("i2", 0, 0)
    assert (again.pending, again.included, again.loss) == ("a:i1:4", 3, 0.5)
    assert again.former == {"i1": 4}
    assert enrol(again, hello("i3"), plan()).former == {"i1": 4}, "of one that sent nothing nothing is remembered"


def test_an_incarnation_that_returns_goes_on_where_it_was() -> None:
    known = replace(enrol(None, hello(), plan()), received=4, settled=3, pending="a:i1:4")
    other = replace(enrol(known, hello("i2"), plan()), received=2)
    back = enrol(other, hello("i1"), plan())
    assert (back.received, back.settled, back.former) == (4, 3, {"i2": 2})
    after_inclusion = enrol(replace(other, pending=""), hello("i1"), plan())
    assert (after_inclusion.received, after_inclusion.settled) == (4, 4)


# --- the first plan -------------------------------------------------------------------------


def test_the_first_participants_columns_lead_and_in_its_order() -> None:
    made, members = first_plan(rules("a", "b", "c"), [member("a", "z", "y"), member("b", "y", "z"), member("c", "y")])
    assert made.features == ("z", "y")
    assert [bool(each.barred) for each in members.values()] == [False, False, True]
    assert all(each.features == () for each in members.values())


def test_the_penalty_is_one_over_the_rows_of_those_that_fit_unless_it_is_given() -> None:
    enrolled = [member("a", "x", n_rows=30), member("b", "x", n_rows=10), member("c", "y", n_rows=500)]
    assert first_plan(rules("a", "b", "c", l2=None), enrolled)[0].l2 == 1 / 40
    assert first_plan(rules("a", "b", "c", l2=0.0), enrolled)[0].l2 == 0.0
    assert first_plan(rules("a", l2=None), [member("a", "x", n_rows=0)])[0].l2 == 1.0


# --- the frozen plan ------------------------------------------------------------------------


def test_the_frame_is_the_pooled_mean_and_standard_deviation() -> None:
    rng = np.random.default_rng(5)
    X = rng.normal(3.0, 2.0, size=(50, 2))
    parts = {"b": Moments.of(X[:20]), "a": Moments.of(X[20:])}
    frozen = frozen_plan(plan(), rules("a", standardise=True), parts)
    assert frozen.frame is not None
    np.testing.assert_allclose(frozen.frame.mean, X.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(frozen.frame.scale, X.std(axis=0), rtol=1e-14)
    assert (frozen.revision, frozen.work) == (2, plan().work), "no rate was to be chosen"


def test_the_frame_does_not_depend_on_who_reported_first_bit_for_bit() -> None:
    rng = np.random.default_rng(6)
    parts = {name: Moments.of(rng.normal(size=(7, 2))) for name in "abc"}
    other_order = {name: parts[name] for name in "cab"}
    first, second = (frozen_plan(plan(), rules("a", standardise=True), each).frame for each in (parts, other_order))
    assert first is not None
    assert second is not None
    assert (first.mean.tobytes(), first.scale.tobytes()) == (second.mean.tobytes(), second.scale.tobytes())


def test_columns_that_are_taken_as_they_are_have_no_frame() -> None:
    parts = {"a": Moments.of(np.array([[1.0, 2.0], [3.0, 2.0]]))}
    frozen = frozen_plan(plan(), rules("a", standardise=False, choose_learning_rate=True), parts)
    assert frozen.frame is None
    assert frozen.work.learning_rate == pytest.approx(1 / ((5.0 + 4.0 + 1.0) / 4)), "l2 is 0 here"


@pytest.mark.parametrize("standardised", [True, False])
def test_the_learning_rate_is_one_over_a_bound_on_the_pooled_curvature(*, standardised: bool) -> None:
    rng = np.random.default_rng(7)
    X = np.column_stack([rng.normal(5.0, 3.0, size=80), np.full(80, 2.0)])
    Z = (X - X.mean(axis=0)) / np.array([X[:, 0].std(), 1.0]) if standardised else X
    A = np.column_stack([Z, np.ones(80)])
    largest = float(np.linalg.eigvalsh(A.T @ A / 80).max() / 4) + 0.01
    rate = learning_rate(Moments.of(X), 0.01, standardised=standardised)
    assert rate <= 1 / largest
    assert rate == pytest.approx(1 / (np.trace(A.T @ A) / 80 / 4 + 0.01))


def test_a_column_that_is_constant_everywhere_is_centred_only() -> None:
    story = Story(rules("a", standardise=True)).hello("a")
    update = story.moments("a")
    update.arrays["m2"] = np.array([40.0, 0.0])
    frame = story.arrives(update).plans[0][1].frame
    assert frame is not None
    assert frame.scale.tolist() == [2.0, 1.0]
