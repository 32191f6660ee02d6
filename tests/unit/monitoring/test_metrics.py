from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from monitoring import PHASES, UNLISTED, AggregatorMetrics, ParticipantMetrics

HEART = {"federation": "heart"}
VA = {"federation": "heart", "participant": "va"}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def aggregator(registry: CollectorRegistry) -> AggregatorMetrics:
    return AggregatorMetrics("heart", registry, clock=lambda: 1000.0)


@pytest.fixture
def participant(registry: CollectorRegistry) -> ParticipantMetrics:
    return ParticipantMetrics("heart", "va", registry)


def labels_in_use(registry: CollectorRegistry) -> set[str]:
    return {label for family in registry.collect() for sample in family.samples for label in sample.labels}


def test_what_is_not_known_is_absent(registry: CollectorRegistry, aggregator: AggregatorMetrics) -> None:
    for name in ("fedmq_loss_nats", "fedmq_model_version", "fedmq_last_version_timestamp_seconds"):
        assert registry.get_sample_value(name, HEART) is None


def test_a_published_version_is_counted_timed_and_dated(
    registry: CollectorRegistry, aggregator: AggregatorMetrics
) -> None:
    aggregator.version_published(7, 2.0)
    assert registry.get_sample_value("fedmq_model_version", HEART) == 7
    assert registry.get_sample_value("fedmq_last_version_timestamp_seconds", HEART) == 1000
    assert registry.get_sample_value("fedmq_round_seconds_sum", HEART) == 2
    assert registry.get_sample_value("fedmq_round_seconds_bucket", HEART | {"le": "1.0"}) == 0
    assert registry.get_sample_value("fedmq_round_seconds_bucket", HEART | {"le": "2.5"}) == 1


def test_a_version_known_again_after_a_restart_keeps_its_date_and_is_no_round(
    registry: CollectorRegistry, aggregator: AggregatorMetrics
) -> None:
    aggregator.version_published(7, at=500.0)
    assert registry.get_sample_value("fedmq_last_version_timestamp_seconds", HEART) == 500
    assert registry.get_sample_value("fedmq_round_seconds_count", HEART) is None


def test_one_phase_is_current(registry: CollectorRegistry, aggregator: AggregatorMetrics) -> None:
    aggregator.phase("enrolling")
    aggregator.phase("training")
    current = {phase: registry.get_sample_value("fedmq_phase", HEART | {"phase": phase}) for phase in PHASES}
    assert current == {"enrolling": 0, "moments": 0, "training": 1, "verifying": 0, "converged": 0}


def test_a_phase_that_does_not_exist_is_refused(aggregator: AggregatorMetrics) -> None:
    with pytest.raises(ValueError, match="there is no phase 'lunch'; the phases are enrolling, moments"):
        aggregator.phase("lunch")


def test_states_that_are_left_out_are_zero(registry: CollectorRegistry, aggregator: AggregatorMetrics) -> None:
    aggregator.participants({"live": 3, "silent": 1})
    aggregator.participants({"live": 4})
    counted = {
        state: registry.get_sample_value("fedmq_participants", HEART | {"state": state})
        for state in ("live", "silent", "left")
    }
    assert counted == {"live": 4, "silent": 0, "left": 0}


def test_a_state_that_does_not_exist_is_refused(aggregator: AggregatorMetrics) -> None:
    with pytest.raises(ValueError, match="there is no state 'asleep'; the states are live, silent, left"):
        aggregator.participants({"asleep": 1})


def test_updates_are_counted_by_outcome_and_their_staleness_where_it_is_known(
    registry: CollectorRegistry, aggregator: AggregatorMetrics
) -> None:
    aggregator.update("va", "accepted", staleness=4)
    aggregator.update("va", "accepted", staleness=0)
    aggregator.update(UNLISTED, "forged")
    updates = "fedmq_updates_total"
    assert registry.get_sample_value(updates, VA | {"outcome": "accepted"}) == 2
    assert registry.get_sample_value(updates, HEART | {"participant": UNLISTED, "outcome": "forged"}) == 1
    assert registry.get_sample_value("fedmq_staleness_versions_count", HEART) == 2
    assert registry.get_sample_value("fedmq_staleness_versions_bucket", HEART | {"le": "0.0"}) == 1
    assert registry.get_sample_value("fedmq_staleness_versions_bucket", HEART | {"le": "5.0"}) == 2


def test_an_enrolled_participant_counts_from_zero_so_that_its_first_update_is_an_increase(
    registry: CollectorRegistry,
) -> None:
    AggregatorMetrics("heart", registry, outcomes=("accepted", "stale")).enrolled("va")
    assert registry.get_sample_value("fedmq_updates_total", VA | {"outcome": "accepted"}) == 0
    assert registry.get_sample_value("fedmq_updates_total", VA | {"outcome": "stale"}) == 0


def test_what_the_aggregator_can_count_is_there_from_the_start(registry: CollectorRegistry) -> None:
    AggregatorMetrics(
        "heart", registry, received_kinds=["hello"], published_kinds=["model"], dead_letter_reasons=["malformed"]
    )
    assert registry.get_sample_value("fedmq_received_bytes_total", HEART | {"kind": "hello"}) == 0
    assert registry.get_sample_value("fedmq_published_bytes_total", HEART | {"kind": "model"}) == 0
    assert registry.get_sample_value("fedmq_dead_letters_total", HEART | {"reason": "malformed"}) == 0
    assert registry.get_sample_value("fedmq_released_total", HEART) == 0
    assert registry.get_sample_value("fedmq_broker_connected", HEART) == 0


def test_a_participant_that_was_never_heard_is_awaited_and_nothing_more(
    registry: CollectorRegistry, aggregator: AggregatorMetrics
) -> None:
    aggregator.participant("va", versions_behind=None, last_heard=None, awaited=True)
    assert registry.get_sample_value("fedmq_participant_awaited", VA) == 1
    assert registry.get_sample_value("fedmq_participant_versions_behind", VA) is None
    assert registry.get_sample_value("fedmq_participant_last_heard_timestamp_seconds", VA) is None


def test_where_a_participant_stands(registry: CollectorRegistry, aggregator: AggregatorMetrics) -> None:
    aggregator.participant("va", versions_behind=3, last_heard=900.0, awaited=False)
    assert registry.get_sample_value("fedmq_participant_awaited", VA) == 0
    assert registry.get_sample_value("fedmq_participant_versions_behind", VA) == 3
    assert registry.get_sample_value("fedmq_participant_last_heard_timestamp_seconds", VA) == 900


def test_the_rest_of_the_aggregator(registry: CollectorRegistry, aggregator: AggregatorMetrics) -> None:
    aggregator.loss(0.43)
    aggregator.commit(0.003)
    aggregator.outgoing(2)
    aggregator.released()
    aggregator.received("update", 100)
    aggregator.received("update", 50)
    aggregator.published("model", 300)
    aggregator.dead_letter("forged")
    aggregator.broker_connected(connected=True)
    assert registry.get_sample_value("fedmq_loss_nats", HEART) == 0.43
    assert registry.get_sample_value("fedmq_commit_seconds_sum", HEART) == 0.003
    assert registry.get_sample_value("fedmq_outgoing_waiting", HEART) == 2
    assert registry.get_sample_value("fedmq_released_total", HEART) == 1
    assert registry.get_sample_value("fedmq_received_bytes_total", HEART | {"kind": "update"}) == 150
    assert registry.get_sample_value("fedmq_published_bytes_total", HEART | {"kind": "model"}) == 300
    assert registry.get_sample_value("fedmq_dead_letters_total", HEART | {"reason": "forged"}) == 1
    assert registry.get_sample_value("fedmq_broker_connected", HEART) == 1


def test_what_a_participant_tells(registry: CollectorRegistry, participant: ParticipantMetrics) -> None:
    assert registry.get_sample_value("fedmq_participant_broker_connected", VA) == 0
    assert registry.get_sample_value("fedmq_participant_model_version", VA) is None
    participant.model_taken(12)
    participant.fitted(0.5)
    participant.contribution("confirmed")
    participant.outbox(1)
    participant.received("model", 300)
    participant.sent("update", 100)
    participant.refused_message("malformed")
    assert registry.get_sample_value("fedmq_participant_rows_refused", VA) == 0
    participant.rows_refused(are_refused=True)
    assert registry.get_sample_value("fedmq_participant_rows_refused", VA) == 1
    participant.broker_connected(connected=True)
    assert registry.get_sample_value("fedmq_participant_model_version", VA) == 12
    assert registry.get_sample_value("fedmq_participant_fit_seconds_sum", VA) == 0.5
    contributions = "fedmq_participant_contributions_total"
    assert registry.get_sample_value(contributions, VA | {"outcome": "confirmed"}) == 1
    assert registry.get_sample_value("fedmq_participant_outbox_waiting", VA) == 1
    assert registry.get_sample_value("fedmq_participant_received_bytes_total", VA | {"kind": "model"}) == 300
    assert registry.get_sample_value("fedmq_participant_sent_bytes_total", VA | {"kind": "update"}) == 100
    refused = "fedmq_participant_refused_messages_total"
    assert registry.get_sample_value(refused, VA | {"reason": "malformed"}) == 1
    assert registry.get_sample_value("fedmq_participant_broker_connected", VA) == 1


def test_what_a_participant_can_count_is_there_from_the_start(registry: CollectorRegistry) -> None:
    ParticipantMetrics(
        "heart",
        "va",
        registry,
        contribution_outcomes=["settled"],
        received_kinds=["model"],
        sent_kinds=["update"],
        refusal_reasons=["malformed"],
    )
    contributions = "fedmq_participant_contributions_total"
    assert registry.get_sample_value(contributions, VA | {"outcome": "settled"}) == 0
    assert registry.get_sample_value("fedmq_participant_received_bytes_total", VA | {"kind": "model"}) == 0
    assert registry.get_sample_value("fedmq_participant_sent_bytes_total", VA | {"kind": "update"}) == 0
    refused = "fedmq_participant_refused_messages_total"
    assert registry.get_sample_value(refused, VA | {"reason": "malformed"}) == 0


def test_an_aggregator_and_a_participant_share_a_registry(registry: CollectorRegistry) -> None:
    AggregatorMetrics("heart", registry)
    ParticipantMetrics("heart", "va", registry)


def test_labels_come_from_known_sets_and_no_label_is_a_private_value(
    registry: CollectorRegistry, aggregator: AggregatorMetrics, participant: ParticipantMetrics
) -> None:
    """A loss or a row count per site would leak; the label of a histogram's bucket is Prometheus' own."""
    aggregator.phase("training")
    aggregator.participants({"live": 1})
    aggregator.update("va", "accepted", staleness=1)
    aggregator.received("update", 1)
    aggregator.dead_letter("forged")
    aggregator.participant("va", versions_behind=0, last_heard=1.0, awaited=True)
    participant.contribution("settled")
    participant.fitted(1.0)
    allowed = {"federation", "participant", "outcome", "kind", "reason", "phase", "state", "le"}
    assert labels_in_use(registry) == allowed
    losses = [family for family in registry.collect() if "loss" in family.name]
    aggregator.loss(0.5)
    assert [family.name for family in losses] == ["fedmq_loss_nats"]
    assert registry.get_sample_value("fedmq_loss_nats", HEART) == 0.5
