"""The broker is killed, loses its disk, is full, or loses what others take away; the services go on by themselves."""

from __future__ import annotations

import base64
import signal
from typing import TYPE_CHECKING

import pytest
from servers.judging import assert_is_clean, assert_is_the_pooled_fit
from servers.rabbitmq import PASSWORD
from servers.standing import AGGREGATOR, BROKER_USER, FEDERATION, SITES, Standing

from broker.topology import models_queue, plans_queue, presence_queue, routing_key, updates_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(150)]

SLOW = {"least_fit_seconds": 0.3}
BEATS = {"heartbeat_seconds": 1}


@pytest.fixture
def federation(vhost: VHost, tmp_path: Path) -> Iterator[Standing]:
    with Standing(vhost, tmp_path, participant=SLOW) as started:
        yield started


@pytest.mark.fault("F23")
def test_a_broker_that_is_killed_and_keeps_its_disk(federation: Standing) -> None:
    federation.until_version(3)
    federation.vhost.wait_until_registered()
    federation.vhost.rabbitmq.restart()
    assert_is_the_pooled_fit(federation.until_released())
    assert_is_clean(federation.verdict())
    assert not federation.deaths


@pytest.mark.fault("F24")
def test_a_broker_that_is_killed_and_loses_its_disk(vhost: VHost, tmp_path: Path) -> None:
    # A site that is away for 3.5 heartbeats is not waited for; here it may take long to be back.
    patient = {"heartbeat_seconds": 10}
    with Standing(vhost, tmp_path, patient, {**SLOW, **patient}, is_tapped=False) as federation:
        federation.until_version(3)
        vhost.rabbitmq.kill()
        vhost.rabbitmq.lose_disk()
        vhost.rabbitmq.start()
        # What deployment gives a new broker: a vhost and users. All else is the services' own.
        vhost.make()
        vhost.amqp_url(user=BROKER_USER)
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())
        assert not federation.deaths


@pytest.mark.fault("F27")
def test_a_broker_that_is_full_is_waited_for(federation: Standing) -> None:
    rabbitmq = federation.vhost.rabbitmq
    federation.until_version(3)
    # The command takes seconds, in which the training would end.
    federation[AGGREGATOR].send(signal.SIGSTOP)
    rabbitmq.control("set_vm_memory_high_watermark", "absolute", "1MB")
    federation[AGGREGATOR].send(signal.SIGCONT)
    try:
        blocked = [federation[name] for name in (AGGREGATOR, *SITES)]
        federation.until(lambda: any("broker_blocked" in each.output() for each in blocked), "somebody says so")
    finally:
        rabbitmq.control("set_vm_memory_high_watermark", "0.8")
    assert_is_the_pooled_fit(federation.until_released())
    assert_is_clean(federation.verdict())
    assert not federation.deaths


@pytest.mark.fault("F36")
def test_queues_that_are_deleted_underneath(federation: Standing) -> None:
    federation.until_version(3)
    queues = [updates_queue(FEDERATION), presence_queue(FEDERATION)]
    queues += [queue(FEDERATION, site) for queue in (models_queue, plans_queue) for site in SITES]
    for queue in queues:
        federation.vhost.delete_queue(queue)
    assert_is_the_pooled_fit(federation.until_released())
    assert_is_clean(federation.verdict())
    assert not federation.deaths


@pytest.mark.fault("F37")
def test_contributions_that_nobody_is_bound_to_are_sent_again(vhost: VHost, tmp_path: Path) -> None:
    with Standing(vhost, tmp_path, participant=SLOW, is_tapped=False) as federation:
        federation.until_version(3)
        federation.left.add(AGGREGATOR)
        federation[AGGREGATOR].send(signal.SIGKILL)
        federation.until(lambda: federation[AGGREGATOR].code is not None, "the aggregator is away")
        vhost.delete_queue(updates_queue(FEDERATION))
        sites = [federation[site] for site in SITES]
        federation.until(lambda: all("no queue is bound" in each.output() for each in sites), "all sites say so")
        federation.left.remove(AGGREGATOR)
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())


@pytest.mark.fault("F38")
def test_messages_that_are_no_messages_go_to_the_dead_letters_and_stop_nobody(federation: Standing) -> None:
    federation.until_version(2)
    rabbitmq, name = federation.vhost.rabbitmq, federation.vhost.name
    rabbitmq.api("PUT", "users", BROKER_USER, body={"password": PASSWORD, "tags": "management"})
    for kind in ("hello", "update", "heartbeat", "goodbye"):
        for body in (b"", b"\xff" * 1000):
            rabbitmq.api(
                "POST",
                "exchanges",
                name,
                "fedmq.updates",
                "publish",
                body={
                    "properties": {},
                    "routing_key": routing_key(FEDERATION, kind, "city"),
                    "payload": base64.b64encode(body).decode(),
                    "payload_encoding": "base64",
                },
            )
    model = federation.until_released()
    assert_is_the_pooled_fit(model)
    # Heartbeats are not worth keeping, so their queue has no dead letters.
    assert federation.vhost.depth("fedmq.dead") == 6
    assert "Traceback" not in federation[AGGREGATOR].output()


@pytest.mark.fault("F41")
def test_a_user_whose_password_is_taken_away_says_so_and_recovers_when_it_is_back(vhost: VHost, tmp_path: Path) -> None:
    with Standing(vhost, tmp_path, BEATS, {**SLOW, **BEATS}) as federation:
        federation.until_version(2)
        vhost.rabbitmq.add_user(BROKER_USER, "an0ther")
        vhost.rabbitmq.disconnect(BROKER_USER)
        for process in federation.services.values():
            federation.until(lambda each=process: "broker_refused" in each.output(), f"{process.name} says so")
            assert process.get("/readyz")[0] == 503
        vhost.rabbitmq.add_user(BROKER_USER)
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())
        for process in federation.services.values():
            assert "an0ther" not in process.output()
            assert PASSWORD not in process.output()
            assert "Traceback" not in process.output()
