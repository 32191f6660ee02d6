"""Stories of federations, from the first hello to the released model, and what can go wrong on the way."""

from dataclasses import replace

import numpy as np
import pytest
from unit.aggregator.story import FEATURES, Story, rules, scores

from aggregator import coordinator
from aggregator.announcement import asked_of, global_model
from aggregator.coordinator import restored, step
from aggregator.events import EVERYBODY, GiveUp, HeartbeatArrived, Include, Outrun, Record, Reject, Release, Tick
from aggregator.membership import MOST_TERMS_LOST
from aggregator.state import cells, from_cells, pack_cell
from aggregator.strategies import StrategyOptions, make_strategy
from broker.messages import Heartbeat, LocalWork
from logistic.quadratic import pack

SILENCE = 35.0
DEADLINE = 30.0
SWEEP = 60.0


def training(*names: str, **given: object) -> Story:
    """Return a story in which everybody is asked to train for the first time."""
    return Story(rules(*names, **given)).all_say_hello()


def verifying(*names: str, **given: object) -> Story:
    """Return a story in which the model is frozen and everybody is asked to evaluate it."""
    story = training(*names, max_versions=1, **given).trains(*names)
    assert story.phase == "verifying"
    return story


# --- enrolling ------------------------------------------------------------------------------


@pytest.mark.fault("B20")
def test_whoever_is_not_on_the_list_is_turned_away_and_leaves_no_trace() -> None:
    story = Story(rules("a")).hello("stranger")
    assert story.actions == [Reject("unknown-participant")]
    assert story.state.members == {}


def test_nothing_is_published_before_enough_have_said_hello() -> None:
    story = Story(rules("a", "b")).hello("a")
    assert story.phase == "enrolling"
    assert (story.models, story.plans) == ([], [])
    assert len(story.observed("participant_said_hello")) == 1


def test_with_enough_hellos_everybody_gets_the_plan_and_is_asked_to_train() -> None:
    story = training("a", "b")
    (to, plan), (model_to, model) = story.plans[0], story.models[0]
    assert (to, model_to, story.phase) == (EVERYBODY, EVERYBODY, "training")
    assert plan.features == FEATURES
    assert {name: standing.asked for name, standing in model.roster.items()} == {"a": "train", "b": "train"}
    assert model.weights.tolist() == [0.0, 0.0, 0.0]
    assert (model.version, model.bulletin) == (0, 1)


@pytest.mark.fault("B28")
def test_a_participant_whose_columns_do_not_fit_is_barred_with_the_reason_and_not_asked() -> None:
    story = Story(rules("a", "b", start_with=1)).hello("a").hello("b", features=("age", "weight"))
    standing = story.model.roster["b"]
    assert standing.asked == ""
    assert standing.refusal == "its columns are not the plan's (missing: sex; unknown: weight)"
    story.trains("b")
    assert story.actions == [Reject("unknown-participant")]
    assert story.trains("a").version == 1, "nobody waits for the one that is barred"


def test_who_was_barred_with_a_contribution_on_its_way_does_not_wait_for_it_once_it_fits_again() -> None:
    story = Story(rules("a", "b")).all_say_hello()
    sent = story.update("b")
    story.hello("b", features=("weight",)).arrives(replace(sent, incarnation="i0"))
    assert story.actions == [Reject("unknown-participant")]
    story.arrives(sent).arrives(sent)
    assert story.actions == [Reject("unknown-participant")]
    story.hello("b")
    assert (story.model.roster["b"].settled, story.asked("b")) == (sent.sequence, "train")


def test_the_federation_does_not_start_with_too_few_that_fit() -> None:
    story = Story(rules("a", "b")).hello("a").hello("b", features=("weight",))
    assert story.phase == "enrolling"
    assert [seen["participant"] for seen in story.observed("participant_barred")] == ["b"]
    assert story.hello("b").phase == "training", "it came again with the right file"


def test_a_contribution_that_comes_before_there_is_a_plan_is_refused_and_answered_once_there_is_one() -> None:
    """An aggregator that lost its store finds old contributions in its queue."""
    story = Story(rules("a", "b")).hello("a").trains("a", plan_hash="of-an-earlier-life", sequence=7)
    assert story.verdicts == ["wrong-plan"]
    assert story.models == []
    story.hello("b")
    assert story.model.roster["a"].settled == 7
    assert story.asked("a") == "train"


def test_an_early_joiner_is_bound_by_the_plan_and_a_late_one_joins_the_training() -> None:
    story = Story(rules("a", "b", start_with=1)).hello("a").trains("a").hello("b")
    assert [to for to, _ in story.plans] == [EVERYBODY]
    assert story.asked("b") == "train"
    assert story.trains("a").version == 1, "the late joiner is live now, and waited for"
    assert story.trains("b").version == 2


# --- moments --------------------------------------------------------------------------------


def asked_for_moments() -> Story:
    return Story(rules("a", "b", standardise=True, choose_learning_rate=True)).all_say_hello()


def test_the_moments_of_all_are_merged_into_the_frame_and_the_learning_rate_of_the_plan() -> None:
    story = asked_for_moments()
    assert story.phase == "moments"
    assert story.asked("a") == "moments"
    story.reports_moments("a")
    assert story.phase == "moments"
    assert asked_of(story.state, story.state.members["a"]) == "", "it has reported"
    story.reports_moments("b")
    (to, plan), (_, model) = story.plans[0], story.models[0]
    assert (to, story.phase, plan.revision) == (EVERYBODY, "training", 2)
    assert plan.frame is not None
    assert (plan.frame.mean.tolist(), plan.frame.scale.tolist()) == ([1.0, 1.0], [2.0, 2.0])
    assert plan.work.learning_rate == pytest.approx(1 / 0.85), "1 / ((2 standardised columns + the intercept) / 4 + l2)"
    assert model.plan_hash == story.state.plan_hash
    assert (model.roster["a"].settled, model.roster["a"].asked) == (1, "train")


def test_moments_computed_under_the_first_plan_are_refused_once_the_frame_is_frozen() -> None:
    story = asked_for_moments()
    late = story.moments("b")
    story.reports_moments("a").goodbye("b")
    assert story.phase == "training", "nobody waits for the one that left"
    story.hello("b").arrives(late)
    assert story.verdicts == ["wrong-plan"]
    assert story.asked("b") == "moments", "its rows are not in the means yet: they come first"
    story.reports_moments("b")
    assert story.verdicts == ["accepted"]
    assert [(to, model.roster["b"].asked, model.roster["b"].settled) for to, model in story.models] == [
        ("b", "train", 2)
    ]


def test_a_participant_that_comes_back_with_other_columns_is_waited_for_no_longer() -> None:
    story = asked_for_moments().reports_moments("a")
    story.hello("b", features=("weight",))
    assert story.phase == "training"


def test_when_all_leave_before_any_moments_came_the_federation_waits() -> None:
    story = asked_for_moments().goodbye("a").goodbye("b")
    assert story.phase == "moments"
    assert story.hello("a").reports_moments("a").phase == "training"


# --- training -------------------------------------------------------------------------------


def test_a_round_ends_when_every_live_participant_is_in() -> None:
    story = training("a", "b")
    story.now = 4.0
    story.arrives(story.update("a", 1.0, n_samples=10.0))
    assert (story.version, story.models, story.verdicts) == (0, [], ["accepted"])
    story.arrives(story.update("b", 4.0, n_samples=5.0))
    assert story.version == 1
    assert story.weights == [2.0, 2.0, 2.0]
    assert story.last(Include) == [Include("a:i1:1", 1, 10.0), Include("b:i1:1", 1, 5.0)]
    assert (story.model.version, story.model.roster["a"].settled, story.asked("a")) == (1, 1, "train")
    (made,) = story.observed("version_made")
    penalty = 0.05 * (2.0**2 + 2.0**2)
    assert made == {
        "version": 1,
        "loss": 0.5 + penalty,
        "gap_bound": None,
        "round_seconds": 4.0,
        "staleness": {"a": 0, "b": 0},
        "late": [],
    }


def test_nobody_is_asked_while_its_update_is_in_no_model() -> None:
    story = training("a", "b").trains("a").hello("a")
    assert (story.asked("a"), story.model.roster["a"].settled) == ("", 0)
    assert story.asked("b") == "train"


@pytest.mark.fault("B22", "F32")
def test_a_redelivered_update_changes_nothing() -> None:
    story = training("a", "b")
    update = story.update("a")
    story.arrives(update)
    before = cells(story.state)
    story.arrives(update)
    assert story.verdicts == []
    assert [seen["verdict"] for seen in story.observed("contribution_examined")] == ["duplicate"]
    assert all(value is before[key] for key, value in cells(story.state).items())


def test_an_update_of_somebody_who_never_said_hello_is_turned_away() -> None:
    story = training("a").trains("b")
    assert story.actions == [Reject("unknown-participant")]


@pytest.mark.fault("F34")
def test_an_update_that_arrives_after_the_next_version_belongs_to_the_round_after_and_counts_less() -> None:
    story = training("a", "b", max_versions=9)
    late = story.update("b")
    story.now = 1.0
    story.trains("a").later(SILENCE - 1)
    assert story.version == 1, "the silent one was not waited for"
    story.arrives(late).trains("a")
    assert story.version == 2
    assert story.last(Include) == [Include("a:i1:2", 2, 10.0), Include("b:i1:1", 2, 10.0 * 2**-0.5)]
    assert story.state.members["b"].last_base_version == 0


def test_a_refused_update_is_settled_and_its_sender_alone_is_answered_with_the_reason() -> None:
    story = training("a", "b", max_staleness=0, max_versions=9)
    old = story.update("b")
    story.trains("a").later(SILENCE).arrives(old)
    assert story.verdicts == ["stale"]
    (record,) = story.last(Record)
    assert (record.update_id, record.base_version, record.version, record.digest) == ("b:i1:1", 0, 1, "digest")
    (to, model), *others = story.models
    assert (to, others) == ("b", [])
    standing = model.roster["b"]
    assert (standing.settled, standing.refusal, standing.asked) == (1, "stale", "train")
    story.trains("b")
    assert story.state.members["b"].refusal == "", "what was accepted later clears it"


def test_a_second_update_of_somebody_whose_first_is_in_no_model_yet_does_not_displace_it() -> None:
    story = training("a", "b").trains("a")
    story.arrives(story.update("a", 9.0))
    assert story.verdicts == ["unasked"]
    story.trains("b")
    assert story.included == ["a:i1:1", "b:i1:1"]
    assert story.weights == [1.0, 1.0, 1.0]
    assert story.model.roster["a"].settled == 2, "settled never falls, also when the earlier one is included"


@pytest.mark.fault("F30")
def test_after_the_deadline_a_quorum_is_enough() -> None:
    story = training("a", "b", "c", options=StrategyOptions(quorum=2, deadline_seconds=DEADLINE))
    story.trains("a").later(DEADLINE - 1)
    for name in "bc":
        story.heartbeat(name)
    assert story.later(2).version == 0, "one is no quorum"
    story.trains("b")
    assert story.version == 1
    (made,) = story.observed("version_made")
    assert made["late"] == ["c"]


def test_in_a_buffer_late_is_who_lets_more_versions_pass_than_there_are_participants() -> None:
    story = training("a", "b", strategy="fedbuff", options=StrategyOptions(buffer_size=1), max_versions=99)
    late = []
    for _ in range(4):
        story.heartbeat("b").trains("a")
        late.append(story.observed("version_made")[0]["late"])
    assert late == [[], [], [], ["b"]]


def test_a_silent_participant_is_not_waited_for_and_is_again_once_it_is_heard() -> None:
    story = training("a", "b", options=StrategyOptions(deadline_seconds=1e6), max_versions=9)
    story.now = SILENCE - 5
    story.trains("a")
    assert story.later(4).version == 0
    assert story.later(1).version == 1
    assert story.state.presence["b"].state == "silent"
    story.heartbeat("b").trains("a")
    assert story.version == 1, "it is waited for"
    assert story.trains("b").version == 2


def test_who_falls_silent_is_named_once_and_so_is_who_is_heard_again() -> None:
    story = training("a", "b", "c", max_versions=9)
    story.now = SILENCE - 5
    story.heartbeat("a").heartbeat("c").later(5)
    assert story.observed("participant_silent") == [{"participant": "b", "n_live": 2, "seconds": SILENCE}]
    story.later(1)
    assert story.observed("participant_silent") == []
    story.goodbye("c")
    assert story.observed("participant_silent") == []
    story.heartbeat("b")
    assert story.observed("participant_heard_again") == [{"participant": "b", "n_live": 2, "seconds": SILENCE + 1}]
    story.heartbeat("b")
    assert story.observed("participant_heard_again") == []


def test_whoever_says_goodbye_is_not_waited_for() -> None:
    story = training("a", "b").trains("a").goodbye("b")
    assert story.version == 1
    assert [seen["participant"] for seen in story.observed("participant_left")] == ["b"]


def test_a_goodbye_of_an_earlier_incarnation_or_a_stranger_means_nothing() -> None:
    story = training("a", "b").goodbye("b", incarnation="i0")
    assert (story.actions, story.state.presence["b"].state) == ([], "live")
    assert story.goodbye("stranger").actions == []


def test_an_update_that_was_on_its_way_at_the_goodbye_counts_and_nobody_waits_for_its_sender() -> None:
    """Updates and goodbyes travel by queues of their own."""
    story = training("a", "b", max_versions=9)
    update = story.update("b")
    story.goodbye("b").arrives(update)
    assert story.state.presence["b"].state == "left"
    assert story.trains("a").included == ["a:i1:1", "b:i1:1"]
    assert story.hello("b").state.presence["b"].state == "live"


def test_a_participant_without_its_disk_starts_again_at_one_and_what_it_had_sent_is_counted_once() -> None:
    story = training("a", "b", max_versions=9)
    earlier = story.update("a", 5.0)
    story.arrives(earlier).hello("a", incarnation="i2")
    assert (story.asked("a"), story.model.roster["a"].settled) == ("", 0), "its earlier update is in no model yet"
    story.arrives(earlier)
    assert story.verdicts == []
    story.trains("b")
    assert story.included == ["a:i1:1", "b:i1:1"]
    standing = story.model.roster["a"]
    assert (standing.incarnation, standing.settled, standing.asked) == ("i2", 0, "train")
    story.trains("a", "b")
    assert story.included[2:] == ["a:i2:1", "b:i1:2"]
    assert story.state.members["a"].included == 2


@pytest.mark.fault("B22")
def test_what_is_left_of_an_earlier_incarnation_is_refused_once_and_for_ever() -> None:
    story = training("a", "b", max_versions=9)
    unseen = story.update("a")
    story.hello("a", incarnation="i2").arrives(unseen)
    assert story.verdicts == ["superseded"]
    assert (story.model.roster["a"].settled, story.asked("a")) == (0, "train")
    assert story.arrives(unseen).verdicts == []
    story.hello("a", incarnation="i1").arrives(unseen)
    assert story.verdicts == [], "it was judged"
    assert story.state.members["a"].settled == 1


def test_a_hello_of_an_earlier_incarnation_does_not_let_its_updates_count_again() -> None:
    """Queues may bring hellos again after a crash, and an operator may restore an old disk."""
    story = training("a", "b", max_versions=9)
    earlier = story.update("a")
    story.arrives(earlier).trains("b").hello("a", incarnation="i2").trains("a").hello("a", incarnation="i1")
    assert story.model.roster["a"].settled == 1
    story.arrives(earlier)
    assert story.verdicts == []
    story.trains("b").hello("a", incarnation="i2")
    assert story.model.roster["a"].settled == 1
    assert story.included == ["a:i1:1", "b:i1:1", "a:i2:1", "b:i1:2"]


def test_an_incarnation_that_returns_while_its_update_waits_is_told_so_when_that_is_included() -> None:
    story = training("a", "b", max_versions=9).trains("a").hello("a", incarnation="i2").hello("a", incarnation="i1")
    assert (story.asked("a"), story.model.roster["a"].settled) == ("", 0)
    story.trains("b")
    assert (story.asked("a"), story.model.roster["a"].settled) == ("train", 1)


def test_an_incarnation_may_be_called_anything() -> None:
    story = Story(rules("a")).hello("a", incarnation="i:1").trains("a")
    assert story.included == ["a:i:1:1"]
    assert story.model.roster["a"].settled == 1


def test_numbers_at_the_edge_of_floating_point_leave_a_state_that_can_be_kept_and_sent() -> None:
    story = training("a", "b", max_versions=9)
    story.trains("a", loss=1e308)
    assert story.verdicts == ["out-of-bounds"]
    story.trains("a", n_samples=1e308)
    assert story.verdicts == ["out-of-bounds"]
    story.trains("a", "b").restart()
    assert story.version == 1


def test_a_finished_training_freezes_the_model_and_asks_everybody_to_evaluate_it() -> None:
    story = training("a", "b", max_versions=1).trains("a", "b")
    assert story.phase == "verifying"
    assert (story.asked("a"), story.asked("b")) == ("evaluate", "evaluate")
    assert story.observed("phase_entered") == [{"phase": "verifying", "version": 1}]
    assert len(story.models) == 1, "the version and the phase are one announcement"


# --- heartbeats -----------------------------------------------------------------------------


def test_a_heartbeat_that_stays_behind_the_newest_bulletin_gets_the_model_again() -> None:
    story = training("a", "b").heartbeat("a", bulletin=0)
    assert story.models == [], "once behind is late, not lost"
    story.heartbeat("a", bulletin=0)
    assert story.plans == [], "who lacks the plan says hello"
    assert [(to, model.bulletin) for to, model in story.models] == [("a", 1)]


def test_after_a_backup_who_has_the_model_of_a_lost_term_gets_that_of_this_one_again() -> None:
    story = training("a", "b", max_versions=50)
    backup = {key: pack_cell(value) for key, value in cells(story.state).items()}
    for _ in range(5):
        story.trains("a", "b")
    seen, epoch = story.state.progress.bulletin, story.state.progress.epoch
    story.state, _ = restored(from_cells(story.rules, backup), story.now, epoch + 1, outrun=epoch)
    assert story.state.progress.bulletin < seen
    story.heartbeat("b", seen, epoch=epoch).heartbeat("b", seen, epoch=epoch)
    assert [to for to, _ in story.models] == ["b"]
    story.heartbeat("b", epoch=epoch + 1).heartbeat("b", epoch=epoch + 1)
    assert story.models == []


def test_a_heartbeat_that_is_up_to_date_or_moves_on_gets_nothing() -> None:
    story = training("a").heartbeat("a").heartbeat("a")
    assert story.models == []
    story.trains("a").heartbeat("a", bulletin=0).heartbeat("a", bulletin=1)
    assert story.models == []


def test_a_participant_at_work_takes_no_model_so_it_is_sent_none() -> None:
    story = training("a").heartbeat("a", 0, "working").heartbeat("a", 0, "working")
    assert story.models == []
    assert len(story.heartbeat("a", 0, "idle").models) == 1


def test_what_was_only_told_to_another_leaves_nobody_behind() -> None:
    story = training("a", "b").heartbeat("a").hello("b").heartbeat("a", bulletin=1).heartbeat("a", bulletin=1)
    assert story.state.progress.bulletin == 2
    assert story.models == []


def test_a_heartbeat_before_its_hello_means_nothing_yet() -> None:
    assert training("a").heartbeat("b").actions == []


# --- verifying and release ------------------------------------------------------------------


def test_the_model_is_released_when_every_live_participant_has_evaluated_it() -> None:
    story = verifying("a", "b").evaluates("a")
    assert (story.phase, story.releases) == ("verifying", [])
    assert asked_of(story.state, story.state.members["a"]) == ""
    story.evaluates("b")
    assert story.phase == "converged"
    (release,) = story.last(Release)
    assert (release.model.version, release.model.metrics.train.n) == (1, 20)
    assert story.observed("model_released") == [{"version": 1, "converged": False}]
    assert (story.asked("a"), story.model.phase) == ("", "converged")


def test_the_last_evaluation_does_not_wait_for_the_silent_for_ever() -> None:
    story = verifying("a", "b").evaluates("a")
    story.now += SWEEP - 1
    for name in "ab":
        story.heartbeat(name)
    assert story.later(0).phase == "verifying"
    assert story.later(1).phase == "converged"
    assert story.releases[0].model.metrics.train.n == 10


def test_a_model_that_nobody_has_evaluated_is_not_released_however_late_it_is() -> None:
    story = verifying("a", "b").goodbye("b").later(2 * SWEEP)
    assert story.phase == "verifying"
    assert story.evaluates("a").phase == "converged"


def test_an_update_that_comes_when_training_is_over_is_settled_and_its_sender_evaluates_instead() -> None:
    story = training("a", "b", strategy="fedasync", max_versions=1)
    late = story.update("b")
    story.trains("a").arrives(late)
    assert story.verdicts == ["training-over"]
    assert (story.model.roster["b"].settled, story.asked("b")) == (1, "evaluate")


def test_evaluations_of_an_empty_set_of_rows_do_not_spoil_the_release() -> None:
    story = verifying("a", "b").evaluates("a", train=scores(n=0.0))
    assert story.verdicts == ["no-samples"]
    story.evaluates("a", test=scores(n=0.0))
    assert story.verdicts == ["no-samples"]
    assert story.evaluates("a", "b").phase == "converged"


def test_training_stops_when_the_loss_has_not_fallen_for_as_long_as_the_patience() -> None:
    story = training("a", patience=2, max_versions=99)
    for loss in (0.7, 0.5, 0.5, 0.5):
        story.trains("a", loss=loss)
    assert (story.version, story.phase) == (4, "verifying")
    assert story.evaluates("a").releases[0].model.converged


# --- time -----------------------------------------------------------------------------------


def test_it_wakes_for_the_first_silence_the_deadline_of_the_round_and_that_of_the_sweep() -> None:
    story = Story(rules("a", "b", options=StrategyOptions(deadline_seconds=10.0), max_versions=1))
    assert story.wakes_at is None
    story.now = 3.0
    assert story.all_say_hello().wakes_at == 3.0 + SILENCE, "with nothing held there is no deadline to keep"
    assert story.trains("a").wakes_at == 13.0
    story.heartbeat("b").later(10.0)
    assert story.phase == "verifying"
    story.now = 60.0
    for name in "ab":
        story.heartbeat(name)
    assert story.evaluates("a").wakes_at == 13.0 + SWEEP
    assert story.evaluates("b").wakes_at == 60.0 + SILENCE


def test_it_does_not_wake_for_a_sweep_that_nobody_has_answered() -> None:
    """It would wake again at once, for ever."""
    story = verifying("a").goodbye("a")
    assert story.wakes_at is None
    story.later(2 * SWEEP)
    assert story.wakes_at is None


@pytest.mark.parametrize("began", [0.1, 0.3, 1 / 3, 1e6 + 0.7])
def test_a_tick_at_the_time_it_asked_for_is_not_a_rounding_error_too_early(began: float) -> None:
    story = Story(rules("a", "b", options=StrategyOptions(deadline_seconds=0.7), silence_seconds=1.1))
    story.now = began
    story.all_say_hello().trains("a")
    for _ in range(5):
        wakes_at = story.wakes_at
        if wakes_at is None:
            break
        story.now = wakes_at
        story.happens(Tick(wakes_at))
        assert story.wakes_at is None or story.wakes_at > wakes_at
    assert story.version == 1


def test_a_tick_that_comes_too_early_changes_nothing() -> None:
    story = training("a", "b")
    before = cells(story.state)
    story.later(1.0)
    assert (story.actions, cells(story.state)) == ([], before)


def test_an_event_that_is_none_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError):
        step(Story(rules("a")).state, "an event")  # type: ignore[arg-type]


# --- restarts -------------------------------------------------------------------------------


def test_a_restart_continues_the_version_under_a_new_epoch_and_tells_everybody() -> None:
    story = training("a", "b", max_versions=9).trains("a", "b")
    bulletin = story.state.progress.bulletin
    story.restart()
    assert (story.version, story.state.progress.epoch, story.phase) == (1, 2, "training")
    assert [to for to, _ in story.plans] == [EVERYBODY]
    assert (story.model.bulletin, story.model.epoch, story.model.weights.tolist()) == (bulletin + 1, 2, [1.0] * 3)
    assert story.trains("a", "b").version == 2


def test_a_restart_counts_nothing_twice_and_forgets_nothing_that_was_accepted() -> None:
    story = training("a", "b", max_versions=9)
    update = story.update("a", 7.0)
    story.arrives(update).restart()
    assert story.asked("a") == ""
    story.arrives(update)
    assert story.verdicts == []
    story.arrives(story.update("b", 1.0))
    assert story.included == ["a:i1:1", "b:i1:1"]
    assert story.weights == [4.0, 4.0, 4.0]


def test_a_restart_makes_the_same_next_model_bit_for_bit() -> None:
    stories = [training("a", "b", strategy="fedbuff"), training("a", "b", strategy="fedbuff")]
    for story in stories:
        story.arrives(story.update("a", 0.1))
    stories[1].restart()
    first, second = (story.arrives(story.update("b", 1 / 3)).state.weights for story in stories)
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes()


def test_a_restart_while_moments_are_collected_asks_only_who_has_not_reported() -> None:
    story = asked_for_moments().reports_moments("a").restart()
    assert (story.asked("a"), story.asked("b")) == ("", "moments")
    assert story.reports_moments("b").phase == "training"


def test_a_restart_during_the_last_evaluation_keeps_the_scores_and_gives_the_others_their_time() -> None:
    story = verifying("a", "b").evaluates("a").later(SWEEP - 30).restart()
    assert (story.phase, story.asked("a"), story.asked("b")) == ("verifying", "", "evaluate")
    story.evaluates("b")
    assert story.releases[0].model.metrics.train.n == 20


def test_a_restart_before_there_is_a_plan_waits_for_the_rest_and_starts_if_fewer_are_needed_now() -> None:
    story = Story(rules("a", "b")).hello("a").restart()
    assert (story.phase, story.actions) == ("enrolling", [])
    state, _ = restored(Story(rules("a", "b", start_with=1)).hello("b").state, 0.0, 2)
    assert state.progress.phase == "training"
    story.rules = rules("a", "b", start_with=1)
    assert story.restart().phase == "training"


def test_whoever_does_not_come_back_after_a_restart_is_silent_in_time() -> None:
    story = training("a", "b", max_versions=9).trains("a").restart()
    assert story.wakes_at == DEADLINE, "what it holds still has its deadline"
    story.trains("b").trains("b")
    assert story.later(SILENCE).version == 2


def test_what_is_asked_of_somebody_follows_from_the_phase_alone_where_nothing_is_pending() -> None:
    story = Story(rules("a", "b")).hello("a")
    assert asked_of(story.state, story.state.members["a"]) == ""
    with pytest.raises(AssertionError):
        global_model(story.state)


def test_the_federated_model_of_one_does_not_depend_on_the_coordinators_clock() -> None:
    slow, quick = training("a"), training("a")
    slow.now = 1e9
    for story in (slow, quick):
        story.arrives(story.update("a", np.array([0.1, 0.2, 0.3])))
    assert slow.weights == quick.weights
    assert coordinator.wake_at(slow.state) != coordinator.wake_at(quick.state)


# --- fits that fail ----------------------------------------------------------------------------


def failed(story: Story, name: str) -> None:
    story.arrives(replace(story.update(name), kind="failed", arrays={}))


def test_a_site_whose_fit_failed_is_not_waited_for_and_is_asked_again_of_the_next_version() -> None:
    story = Story(rules("a", "b")).all_say_hello()
    failed(story, "b")
    assert story.verdicts == ["failed"]
    assert story.asked("b") == ""
    story.trains("a")
    assert story.version == 1
    assert story.asked("b") == "train"


def test_training_is_given_up_when_every_live_fit_of_a_version_has_failed() -> None:
    story = Story(rules("a", "b")).all_say_hello()
    failed(story, "a")
    assert story.last(GiveUp) == []
    failed(story, "b")
    (given_up,) = story.last(GiveUp)
    assert (
        "the local fit of every site diverged from version 0 on, or is out of all bounds: set a smaller"
        in given_up.reason
    )
    assert story.restart().last(GiveUp) == [given_up], "a restart does not mend it"


def test_the_loss_leaves_out_who_has_gone_before_reporting_one() -> None:
    story = Story(rules("a", "b")).all_say_hello().goodbye("b")
    story.trains("a")
    assert story.observed("version_made")[0]["loss"] is not None


def test_a_heartbeat_of_a_former_incarnation_is_passed_over() -> None:
    story = Story(rules("a")).all_say_hello()
    before = story.state
    story.happens(HeartbeatArrived(Heartbeat("heart", "a", "another", "idle", 0), 99.0))
    assert story.state is before


def test_a_fit_that_is_refused_for_its_size_is_not_asked_of_the_same_model_again() -> None:
    story = Story(rules("a", "b")).all_say_hello().trains("a", values=1e10)
    assert story.verdicts == ["out-of-bounds"]
    assert story.asked("a") == ""
    story.trains("b", values=1e10)
    assert len(story.last(GiveUp)) == 1


@pytest.mark.fault("F31")
def test_a_process_that_slept_takes_nobody_for_silent() -> None:
    story = Story(rules("a", "b", silence_seconds=10.0)).all_say_hello()
    story.happens(Tick(1e4))
    assert {p.state for p in story.state.presence.values()} == {"live"}
    assert story.wakes_at == 1e4 + 10.0


@pytest.mark.fault("F39")
def test_nothing_is_frozen_and_released_while_nobody_is_there() -> None:
    story = Story(rules("a", "b", standardise=True, silence_seconds=10.0)).all_say_hello()
    story.reports_moments("a")
    story.happens(Tick(story.wakes_at or 0.0))
    assert {p.state for p in story.state.presence.values()} == {"silent"}
    assert story.phase == "moments", "the mean of all rows is not that of one site"


# --- training that begins again -----------------------------------------------------------------


def converged(*names: str, **given: object) -> Story:
    """Return a story whose model is released."""
    story = training(*names, max_versions=1, **given).trains(*names).evaluates(*names)
    assert story.phase == "converged"
    return story


def reopened(story: Story) -> list[dict[str, object]]:
    return story.observed("training_reopened")


def test_a_site_that_joins_a_converged_federation_is_trained_with_and_a_second_model_is_released() -> None:
    story = Story(rules("a", "b", start_with=1, max_versions=1)).hello("a").trains("a").evaluates("a").hello("b")
    assert reopened(story) == [{"participant": "b", "version": 1}]
    assert (story.phase, story.asked("a"), story.asked("b"), story.model.version) == ("training", "train", "train", 1)
    assert story.state.progress.opened_at == 1
    story.trains("a", "b").evaluates("a", "b")
    assert [(release.model.version, release.model.n_samples) for release in story.releases] == [(1, 10), (2, 20)]
    assert story.included == ["a:i1:1", "a:i1:3", "b:i1:1"]


def test_a_site_that_joins_while_the_last_model_is_evaluated_is_trained_with_before_any_release() -> None:
    story = Story(rules("a", "b", start_with=1, max_versions=1)).hello("a").trains("a").hello("b")
    assert (story.phase, story.releases) == ("training", [])
    story.trains("a", "b").evaluates("a", "b")
    assert [release.model.version for release in story.releases] == [2]


def test_an_evaluation_that_was_on_its_way_when_training_began_again_is_refused() -> None:
    story = Story(rules("a", "b", start_with=1, max_versions=1)).hello("a").trains("a")
    late = story.evaluation("a")
    story.hello("b").arrives(late)
    assert story.verdicts == ["wrong-phase"]
    assert story.asked("a") == "train"


@pytest.mark.parametrize("change", [{"n_rows": 12}, {"n_samples": 9.0}, {"fingerprint": "f2"}])
def test_other_rows_are_known_by_their_number_their_weight_or_their_fingerprint(change: dict[str, object]) -> None:
    story = converged("a", "b")
    story.hello("b", **change)  # type: ignore[arg-type]
    assert reopened(story) == [{"participant": "b", "version": 1}]
    assert story.state.plan is not None
    assert story.state.plan.revision == 2, "what is on its way is of rows that are gone"
    assert [to for to, _ in story.plans] == [EVERYBODY]
    assert story.hello("b", **change).observed("training_reopened") == []  # type: ignore[arg-type]


@pytest.mark.parametrize("phase", ["training", "verifying", "converged"])
def test_a_hello_with_the_rows_that_are_known_is_answered_and_nothing_begins_again(phase: str) -> None:
    stories = {"training": training("a", "b"), "verifying": verifying("a", "b"), "converged": converged("a", "b")}
    story = stories[phase]
    before = story.state
    story.hello("a")
    assert (reopened(story), story.phase, story.state.plan is before.plan) == ([], phase, True)
    assert [to for to, _ in story.models] == ["a"]


def test_what_was_accepted_of_rows_that_are_gone_counts_no_longer_and_is_settled() -> None:
    story = training("a", "b", max_versions=9).trains("a")
    story.hello("a", fingerprint="f2")
    assert (story.model.roster["a"].settled, story.asked("a")) == (1, "train")
    assert story.state.strategy_state.held == {}
    assert story.state.members["a"].loss is None
    story.trains("a", "b")
    assert story.included == ["a:i1:2", "b:i1:1"]


def test_what_the_others_have_sent_stays_when_a_site_brings_other_rows() -> None:
    story = training("a", "b", max_versions=9).trains("b").hello("a", fingerprint="f2")
    assert story.state.strategy_state.held.keys() == {"b"}
    assert story.asked("b") == ""
    story.trains("a")
    assert story.included == ["a:i1:1", "b:i1:1"]


def test_what_the_server_itself_remembers_is_kept_by_a_strategy_that_averages() -> None:
    story = training("a", "b", strategy="fedavgm", max_versions=9).trains("a", "b")
    velocity = story.state.strategy_state.shared["velocity"]
    assert velocity.any()
    story.hello("a", fingerprint="f2")
    assert story.state.strategy_state.shared["velocity"] is velocity


def test_the_loss_waits_for_the_first_report_of_who_has_other_rows() -> None:
    story = training("a", "b", strategy="fedasync", max_versions=9).trains("a", "b")
    assert story.state.progress.loss is not None
    story.hello("a", fingerprint="f2").trains("b")
    assert story.state.progress.loss is None
    assert story.trains("a").state.progress.loss is not None


def test_moments_of_a_site_with_other_rows_are_asked_for_anew_also_before_training() -> None:
    story = asked_for_moments().reports_moments("a")
    story.hello("a", n_rows=12)
    assert (story.phase, story.asked("a"), story.asked("b")) == ("moments", "moments", "moments")
    assert [plan.revision for _, plan in story.plans] == [2]
    assert reopened(story) == [], "it had not begun"
    assert story.reports_moments("b", "a").phase == "training"


def test_who_comes_with_other_columns_takes_its_contributions_along() -> None:
    story = training("a", "b", max_versions=9).trains("b")
    story.hello("b", features=("weight",))
    assert story.state.strategy_state.held == {}
    assert story.model.roster["b"].asked == ""
    story.trains("a")
    assert story.included == ["a:i1:1"]
    story.hello("b")
    assert (story.asked("b"), story.model.roster["b"].settled) == ("train", 1)


def test_a_site_whose_fit_had_failed_is_asked_again_of_the_same_version_when_it_has_other_rows() -> None:
    story = training("a", "b")
    failed(story, "a")
    assert story.hello("a").asked("a") == "", "with the rows that it had it would fail again"
    assert story.hello("a", fingerprint="f2").asked("a") == "train"


def test_when_the_only_site_comes_with_other_columns_everything_waits() -> None:
    story = verifying("a").hello("a", features=("weight",))
    assert (story.phase, story.state.scores, story.releases) == ("verifying", {}, [])
    assert story.hello("a").phase == "training"


def test_a_site_whose_rows_count_no_longer_is_evicted_on_time_and_not_before() -> None:
    story = training("a", "b", max_versions=9, evict_seconds=50.0)
    story.now = 10.0
    story.heartbeat("b").goodbye("b")
    assert story.wakes_at == SILENCE
    story.now = 59.0
    story.heartbeat("a").later(0.9)
    assert (story.state.members["b"].evicted, story.wakes_at) == (False, 60.0)
    story.later(0.1)
    assert story.state.members["b"].evicted
    assert story.observed("participant_evicted") == [{"participant": "b"}]
    assert story.wakes_at == 59.0 + SILENCE, "it does not wake for who is evicted already"


def test_silence_is_what_absence_is_measured_from_and_a_restart_begins_it_anew() -> None:
    story = training("a", "b", max_versions=9, evict_seconds=50.0).heartbeat("a")
    story.now = 40.0
    story.heartbeat("a").later(0.0)
    assert story.state.presence["b"].state == "silent"
    story.restart()
    story.now = 36.0
    assert story.heartbeat("a").later(0.0).state.presence["b"].state == "silent"
    assert not story.later(13.0).state.members["b"].evicted
    assert story.later(1.0).state.members["b"].evicted


def test_nobody_is_evicted_before_there_is_anything_to_be_evicted_from() -> None:
    story = Story(rules("a", "b", evict_seconds=50.0)).hello("a").goodbye("a")
    assert story.wakes_at is None
    story.later(60.0)
    assert not story.state.members["a"].evicted
    assert story.hello("b").phase == "training", "it had said hello, and has left: it is not waited for"


def test_two_are_evicted_at_once() -> None:
    story = training("a", "b", "c", max_versions=9, evict_seconds=50.0).goodbye("b").goodbye("c")
    story.now = 49.0
    story.heartbeat("a").later(1.0)
    assert [story.state.members[name].evicted for name in "abc"] == [False, True, True]
    assert story.trains("a").version == 1


def test_an_evicted_site_returns_by_its_heartbeat_but_not_by_one_of_a_former_life() -> None:
    story = training("a", "b", max_versions=9, evict_seconds=50.0).goodbye("b")
    story.now = 49.0
    story.heartbeat("a").later(1.0)
    story.heartbeat("b", incarnation="i0")
    assert story.state.members["b"].evicted
    story.heartbeat("b")
    assert (story.state.members["b"].evicted, story.asked("b")) == (False, "train")
    assert reopened(story) == [{"participant": "b", "version": 0}]


# --- what cannot be trained ---------------------------------------------------------------------


def gives_up(story: Story) -> str:
    (given_up,) = story.last(GiveUp)
    assert (story.phase, story.models) == ("enrolling", [])
    return given_up.reason


def test_settings_that_do_not_suit_what_the_sites_have_end_the_training_before_it_begins() -> None:
    three = (0, 1, 2)
    weighted = Story(rules("a", class_weights=(1.0, 2.0))).hello("a", classes=three)
    assert gives_up(weighted) == "class_weights has 2 numbers, and the sites have 3 classes: give each"
    firth = Story(rules("a", strategy="firth", penalty="firth", l2=0.0)).hello("a", classes=three)
    assert gives_up(firth) == "penalty firth is for two classes, and the sites have 3: use l2"
    assert Story(rules("a", class_weights=(1.0, 2.0))).hello("a").phase == "training"
    assert Story(rules("a", strategy="firth", penalty="firth", l2=0.0)).hello("a").phase == "training"
    broad = tuple(f"x{j}" for j in range(2100))
    newton = Story(rules("a", strategy="newton")).hello("a", features=broad)
    assert gives_up(newton) == "strategy newton needs matrices that are too large with 2101 parameters: use lbfgs"
    lasso = rules("a", strategy="incremental-newton", wide_strategy=make_strategy("lbfgs"), l1=0.1)
    assert (
        gives_up(Story(lasso).hello("a", features=broad))
        == "l1 needs matrices that are too large with 2101 parameters: use l2, or fewer columns"
    )
    assert Story(lasso).hello("a").phase == "training"


def test_a_step_that_has_no_value_ends_the_training_with_the_reason() -> None:
    """Firth's penalty has none where columns are collinear: it ended in a traceback."""
    story = Story(rules("a", strategy="firth", penalty="firth", l2=0.0)).hello("a")
    collinear = {"base": np.zeros(3), "hessian": pack(np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]))}
    story.trains("a", arrays=collinear)
    (given_up,) = story.last(GiveUp)
    assert given_up.no_model
    assert given_up.reason == (
        "there is no final model: the information is singular, so Firth's penalty has no value; drop collinear columns"
    )
    assert story.restart().last(GiveUp) == [given_up], "a restart does not mend it"


# --- who is asked, and for how much -------------------------------------------------------------


def test_steps_follow_the_measured_speed_where_that_is_wanted() -> None:
    work = LocalWork("gradient-descent", 10, None, None)
    story = Story(replace(rules("a", "b", "c", adapt_steps=True, max_versions=9), work=work)).all_say_hello()
    assert {standing.steps for standing in story.model.roster.values()} == {0}, "nobody has been measured"
    for name, seconds in (("a", 1.0), ("b", 1.0), ("c", 10.0)):
        story.trains(name, fit_seconds=seconds)
    assert {name: standing.steps for name, standing in story.model.roster.items()} == {"a": 10, "b": 10, "c": 1}
    story.goodbye("c").trains("a", "b", fit_seconds=1.0)
    assert story.model.roster["c"].steps == 1, "who is not there keeps what it was given"
    plain = Story(replace(rules("a", "b", max_versions=9), work=work)).all_say_hello()
    plain.trains("a", fit_seconds=1.0).trains("b", fit_seconds=10.0)
    assert {standing.steps for standing in plain.model.roster.values()} == {0}


def test_where_more_are_asked_than_are_waited_for_one_who_goes_is_replaced_and_the_next_is_told() -> None:
    options = StrategyOptions(cohort=1, over_selection=0.0)
    story = training("a", "b", "c", options=options, max_versions=9)
    (first,) = [name for name in "abc" if story.asked(name)]
    story.goodbye(first)
    (second,) = [name for name in "abc" if story.asked(name)]
    assert second != first
    assert [to for to, _ in story.models] == [EVERYBODY]
    story.trains(second)
    assert story.version == 1


# --- a store that came from a backup --------------------------------------------------------------


def test_a_participant_that_has_heard_of_what_was_never_published_shows_that_the_store_is_an_older_one() -> None:
    story = training("a", "b", max_versions=9).trains("a", "b")
    epoch, bulletin = story.state.progress.epoch, story.state.progress.bulletin
    for heard in ((epoch, bulletin), (epoch - 1, bulletin + 5), (0, bulletin + 5)):
        story.heartbeat("a", heard[1], epoch=heard[0])
        assert not story.last(Outrun), heard
    for heard in ((epoch, bulletin + 1), (epoch + 1, 1)):
        story.heartbeat("a", heard[1], epoch=heard[0])
        assert story.last(Outrun) == [Outrun(heard[0])], heard


def test_who_claims_to_have_heard_of_millions_of_terms_uses_up_no_numbers() -> None:
    story = training("a", "b", max_versions=9)
    story.heartbeat("a", 1, epoch=story.state.progress.epoch + MOST_TERMS_LOST)
    assert not story.last(Outrun)


def test_what_was_made_of_versions_that_are_lost_is_refused_also_when_their_numbers_come_again() -> None:
    """The backup is of term 7 itself: that went on, and made versions of which the store knows nothing."""
    story = training("a", "b", max_versions=9).trains("a", "b")
    story.state, _ = restored(story.state, 0.0, 8)
    assert story.trains("a", epoch=7, base_version=1).verdicts == ["accepted"], "the backup has that one"
    story.trains("b", epoch=8, base_version=1)
    assert story.version == 2
    assert story.trains("a", epoch=7, base_version=2).verdicts == ["future-version"]
    assert story.model.roster["a"].refusal == "future-version"
    assert story.trains("a", epoch=8, base_version=2).verdicts == ["accepted"]
    assert story.trains("b", epoch=0, base_version=2).verdicts == ["accepted"], "who tells no term is believed"


def test_a_second_store_from_a_backup_makes_nothing_known_that_was_lost_with_the_first() -> None:
    story = training("a", "b", max_versions=9).trains("a", "b")
    story.state, _ = restored(story.state, 0.0, 8)
    for _ in range(3):
        story.trains("a", "b", epoch=8)
    story.state, _ = restored(story.state, 0.0, 12, outrun=11)
    assert story.trains("a", epoch=7, base_version=2).verdicts == ["future-version"]
    assert story.trains("a", epoch=13, base_version=2).verdicts == ["future-version"], "of a term that never was"
    assert story.trains("a", epoch=8, base_version=2).verdicts == ["accepted"]


def test_terms_are_remembered_as_long_as_anybody_may_build_on_their_versions() -> None:
    story = training("a", "b", max_versions=9, max_staleness=2).trains("a", "b").restart()
    for _ in range(4):
        story.trains("a", "b")
    assert story.restart().state.progress.terms == ((3, 5),)
    assert story.restart().state.progress.terms == ((3, 5), (4, 5))


def test_hundreds_of_terms_can_be_restored() -> None:
    story = training("a", "b", max_versions=9).trains("a", "b")
    for _ in range(300):
        story.restart()
    assert len(story.state.progress.terms) == 300


def test_who_claims_again_and_again_to_have_heard_of_later_terms_makes_none_shorter_than_a_silence() -> None:
    story = training("a", "b", max_versions=9)
    story.state, _ = restored(story.state, story.now, 8, outrun=7)
    for seconds, expected in ((0.0, []), (20.0, []), (20.0, [Outrun(900)])):
        story.later(seconds)
        story.heartbeat("a", 1, epoch=900)
        assert story.last(Outrun) == expected, seconds
