"""Who is bound to what, and which names can be words of a routing key."""

from __future__ import annotations

import re
from itertools import chain

import pytest

from broker.topology import (
    DEAD,
    MAX_WAITING_BYTES,
    MODELS,
    RELEASED,
    UPDATES,
    Queue,
    Topology,
    aggregator_topology,
    is_name,
    models_queue,
    participant_topology,
    plans_queue,
    presence_queue,
    probe_key,
    released_key,
    released_queue,
    routing_key,
    updates_queue,
)

AGGREGATOR = aggregator_topology("heart")
PARTICIPANT = participant_topology("heart", "h-1")


def queue(topology: Topology, name: str) -> Queue:
    """Return the queue called ``name``."""
    [found] = [each for each in topology.queues if each.name == name]
    return found


def reached(exchange: str, key: str, *topologies: Topology) -> set[str]:
    """Return the queues that a message reaches; of the patterns, ``*`` and a lone ``#`` are used."""
    return {
        each.name
        for each in chain.from_iterable(topology.queues for topology in topologies)
        for binding in each.bindings
        if binding.exchange == exchange
        and re.fullmatch(binding.pattern.replace(".", r"\.").replace("*", "[^.]+").replace("#", ".*"), key)
    }


@pytest.mark.parametrize("name", ["h", "hospital-1", "A_b", "0", "x" * 63])
def test_letters_digits_dash_and_underscore_make_a_name(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="B29 empty"),
        pytest.param("a.b", id="B29 dot"),
        pytest.param("*", id="B29 star"),
        pytest.param("#", id="B29 hash"),
        pytest.param("a b", id="B29 space"),
        pytest.param("h1\n", id="B29 newline at the end"),
        pytest.param("\x00", id="B29 zero"),
        pytest.param("größe", id="B29 letters beyond ASCII"),
        pytest.param("\u0661", id="B29 digits beyond ASCII"),
        pytest.param("-a", id="B29 dash first"),
        pytest.param("_a", id="B29 underscore first"),
        pytest.param("x" * 64, id="B29 too long"),
        pytest.param("x" * 100_000, id="B29 far too long"),
        pytest.param("../../etc/passwd", id="B29 a path"),
    ],
)
def test_whatever_would_change_what_a_routing_key_means_is_no_name(name: str) -> None:
    assert not is_name(name)


def test_the_first_word_of_a_key_is_the_federation_and_the_last_one_the_participant() -> None:
    assert routing_key("heart", "update", "h-1").split(".") == ["heart", "update", "h-1"]
    assert released_key("heart").split(".") == ["heart", "released"]


@pytest.mark.parametrize("kind", ["hello", "update", "evaluation", "goodbye"])
def test_what_must_not_be_lost_goes_to_the_quorum_queue_of_updates(kind: str) -> None:
    assert reached(UPDATES, routing_key("heart", kind, "h-1"), AGGREGATOR) == {updates_queue("heart")}
    updates = queue(AGGREGATOR, updates_queue("heart"))
    assert (updates.kind, updates.overflow, updates.max_bytes) == ("quorum", "reject-publish", MAX_WAITING_BYTES)
    assert updates.dead_letter_exchange == DEAD


def test_heartbeats_go_to_a_short_queue_of_their_own() -> None:
    assert reached(UPDATES, routing_key("heart", "heartbeat", "h-1"), AGGREGATOR) == {presence_queue("heart")}
    presence = queue(AGGREGATOR, presence_queue("heart"))
    assert (presence.kind, presence.overflow, presence.max_length) == ("classic", "drop-head", 1000)


def test_one_aggregator_at_a_time_gets_what_participants_send() -> None:
    assert queue(AGGREGATOR, updates_queue("heart")).single_active_consumer
    assert queue(AGGREGATOR, presence_queue("heart")).single_active_consumer


@pytest.mark.parametrize("whom", ["all", "h-1"])
def test_models_and_plans_reach_a_participant_by_queues_of_their_own(whom: str) -> None:
    assert reached(MODELS, routing_key("heart", "model", whom), PARTICIPANT) == {models_queue("heart", "h-1")}
    assert reached(MODELS, routing_key("heart", "plan", whom), PARTICIPANT) == {plans_queue("heart", "h-1")}


def test_what_is_for_another_participant_or_federation_reaches_nobody_here() -> None:
    for key in (routing_key("heart", "model", "h-2"), routing_key("lung", "model", "all"), released_key("lung")):
        assert not reached(MODELS, key, PARTICIPANT, AGGREGATOR)
    assert not reached(UPDATES, routing_key("lung", "update", "h-1"), AGGREGATOR)


def test_only_the_newest_model_is_kept_and_every_plan() -> None:
    models, plans = queue(PARTICIPANT, models_queue("heart", "h-1")), queue(PARTICIPANT, plans_queue("heart", "h-1"))
    assert (models.max_length, models.overflow) == (1, "drop-head")
    assert (plans.max_length, plans.max_bytes) == (None, None)


def test_an_old_model_that_is_dropped_is_no_dead_letter() -> None:
    assert queue(PARTICIPANT, models_queue("heart", "h-1")).dead_letter_exchange is None


def test_releases_and_dead_letters_are_kept_within_bounds() -> None:
    assert reached(RELEASED, released_key("heart"), AGGREGATOR) == {released_queue("heart")}
    assert queue(AGGREGATOR, released_queue("heart")).max_length == 16
    assert queue(AGGREGATOR, DEAD).max_length == 10_000


def test_whatever_dies_is_kept_for_people_to_read_but_a_probe_that_nobody_has_heard() -> None:
    dying = {
        binding.pattern.replace("*", "h-1")
        for topology in (AGGREGATOR, PARTICIPANT)
        for each in topology.queues
        if each.dead_letter_exchange == DEAD
        for binding in each.bindings
    }
    assert {probe_key("heart").replace("aggregator", "h-1"), routing_key("heart", "update", "h-1")} < dying
    for key in dying:
        assert reached(DEAD, key, AGGREGATOR) == (set() if ".probe." in key else {DEAD})
    assert not reached(DEAD, probe_key("heart"), AGGREGATOR)


def test_every_exchange_that_is_bound_is_declared_and_only_the_aggregator_makes_them() -> None:
    for topology in (AGGREGATOR, PARTICIPANT):
        bound = {binding.exchange for each in topology.queues for binding in each.bindings}
        assert bound <= {exchange.name for exchange in topology.exchanges}
    assert not any(exchange.passive for exchange in AGGREGATOR.exchanges)
    assert all(exchange.passive for exchange in PARTICIPANT.exchanges)


def test_dead_letters_have_an_exchange_that_the_aggregator_declares() -> None:
    named = {each.dead_letter_exchange for topology in (AGGREGATOR, PARTICIPANT) for each in topology.queues} - {None}
    assert named <= {exchange.name for exchange in AGGREGATOR.exchanges}


def test_queues_of_a_participant_end_with_its_name_so_that_permissions_can_follow_it() -> None:
    assert all(each.name.endswith(".h-1") for each in PARTICIPANT.queues)


def test_queues_of_a_trial_are_removed_when_nobody_uses_them_and_others_never() -> None:
    trial = [
        *aggregator_topology("t", expires_seconds=60).queues,
        *participant_topology("t", "h", expires_seconds=60).queues,
    ]
    assert {each.expires_seconds for each in trial if each.name != DEAD} == {60}
    assert [each.expires_seconds for each in trial if each.name == DEAD] == [None]
    assert {each.expires_seconds for each in (*AGGREGATOR.queues, *PARTICIPANT.queues)} == {None}
