"""A cluster of three brokers loses one: the leader of the queue of updates, or where a queue without copies is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.judging import assert_is_clean, assert_is_the_pooled_fit
from servers.rabbitmq import VHost, cluster
from servers.standing import AGGREGATOR, FEDERATION, Standing

from broker.topology import presence_queue, updates_queue

if TYPE_CHECKING:
    from pathlib import Path

    from servers.rabbitmq import Programs

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(200)]


@pytest.mark.fault("F23")
def test_the_leader_of_the_updates_is_killed_under_load(rabbitmq_programs: Programs, tmp_path: Path) -> None:
    with cluster(rabbitmq_programs) as nodes:
        vhost = VHost(nodes[0], "cluster")
        vhost.make()
        slow = {"least_fit_seconds": 0.3}
        with Standing(vhost, tmp_path, participant=slow, nodes=nodes, is_tapped=False) as federation:
            federation.until_version(3)
            led_by = nodes[0].api("GET", "queues", vhost.name, updates_queue(FEDERATION))["leader"]
            [leader] = [node for node in nodes if node.name == led_by]
            leader.restart()
            assert_is_the_pooled_fit(federation.until_released())
            assert_is_clean(federation.verdict())
            assert not federation.deaths


@pytest.mark.fault("F23")
def test_a_node_that_the_heartbeats_are_at_is_waited_for_and_ends_nobody(
    rabbitmq_programs: Programs, tmp_path: Path
) -> None:
    with cluster(rabbitmq_programs) as nodes:
        vhost = VHost(nodes[0], "cluster")
        vhost.make()
        slow = {"least_fit_seconds": 0.3}
        with Standing(vhost, tmp_path, participant=slow, nodes=nodes, is_tapped=False) as federation:
            federation.until_version(3)
            home = nodes[0].api("GET", "queues", vhost.name, presence_queue(FEDERATION))["node"]
            [missed] = [node for node in nodes if node.name == home]
            missed.kill()
            federation.until(
                lambda: "home node" in federation[AGGREGATOR].output(), "the aggregator says what it misses"
            )
            missed.start()
            assert_is_the_pooled_fit(federation.until_released())
            assert_is_clean(federation.verdict())
            assert not federation.deaths
