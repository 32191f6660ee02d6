"""A cluster of three brokers loses one: the leader of the queue of updates, or where a queue without copies is."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from servers.judging import assert_is_clean, assert_is_the_pooled_fit
from servers.rabbitmq import RabbitMQ, VHost, cluster
from servers.standing import AGGREGATOR, FEDERATION, Standing

from broker.topology import presence_queue, updates_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.rabbitmq import Programs

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(200)]


class Clustered(NamedTuple):
    """A federation that trains over a cluster."""

    federation: Standing
    nodes: list[RabbitMQ]
    vhost: VHost

    def node_of(self, queue: str) -> RabbitMQ:
        """Return the node that ``queue`` is at, or that leads it."""
        found = self.nodes[0].api("GET", "queues", self.vhost.name, queue)
        [node] = [each for each in self.nodes if each.name == (found.get("leader") or found["node"])]
        return node

    def assert_ends_well(self) -> None:
        """Wait for the model: nobody has died, and nothing was lost."""
        assert_is_the_pooled_fit(self.federation.until_released())
        assert_is_clean(self.federation.verdict())
        assert not self.federation.deaths


@pytest.fixture
def clustered(rabbitmq_programs: Programs, tmp_path: Path) -> Iterator[Clustered]:
    with cluster(rabbitmq_programs) as nodes:
        vhost = VHost(nodes[0], "cluster")
        vhost.make()
        slow = {"least_fit_seconds": 0.3}
        with Standing(vhost, tmp_path, participant=slow, nodes=nodes, is_tapped=False) as federation:
            federation.until_version(3)
            yield Clustered(federation, nodes, vhost)


@pytest.mark.fault("F23")
def test_the_leader_of_the_updates_is_killed_under_load(clustered: Clustered) -> None:
    clustered.node_of(updates_queue(FEDERATION)).restart()
    clustered.assert_ends_well()


@pytest.mark.fault("F23")
def test_a_node_that_the_heartbeats_are_at_is_waited_for_and_ends_nobody(clustered: Clustered) -> None:
    federation, home = clustered.federation, clustered.node_of(presence_queue(FEDERATION))
    home.kill()
    federation.until(lambda: "home node" in federation[AGGREGATOR].output(), "the aggregator says what it misses")
    home.start()
    clustered.assert_ends_well()
