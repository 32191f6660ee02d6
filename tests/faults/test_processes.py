"""Services are frozen, asked to end, or told another time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers.judging import assert_is_clean, assert_is_the_pooled_fit
from servers.processes import no_program
from servers.standing import AGGREGATOR, FEDERATION, SITES, Standing

from broker.topology import models_queue

if TYPE_CHECKING:
    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

SLOW = {"least_fit_seconds": 0.2}
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


@pytest.mark.fault("F29", "F30")
def test_nobody_waits_for_a_site_that_hangs_and_only_the_newest_model_waits_for_it(
    vhost: VHost, tmp_path: Path
) -> None:
    beats = {"heartbeat_seconds": 1}
    vhost.rabbitmq.api("PUT", "exchanges", vhost.name, "fedmq.released", body={"type": "topic", "durable": True})
    vhost.rabbitmq.api("PUT", "queues", vhost.name, "downstream", body={"durable": True})
    body = {"routing_key": f"{FEDERATION}.released"}
    vhost.rabbitmq.api("POST", "bindings", vhost.name, "e", "fedmq.released", "q", "downstream", body=body)
    with Standing(vhost, tmp_path, beats, {**SLOW, **beats}) as federation:
        federation.until_version(6)
        federation["north"].send(signal.SIGSTOP)
        federation.left.add("north")
        model = federation.until_released()
        assert [each["name"] for each in model["participants"]] == sorted(SITES)
        assert_is_clean(federation.verdict())
        assert vhost.depth(models_queue(FEDERATION, "north")) <= 1
        assert vhost.depth("downstream") == 1


@pytest.mark.fault("F40")
@pytest.mark.parametrize("who", [AGGREGATOR, "city"])
def test_a_service_that_is_asked_to_end_in_the_middle_does_and_goes_on_later(
    vhost: VHost, tmp_path: Path, who: str
) -> None:
    # So long that the others are not done before it is back.
    with Standing(vhost, tmp_path, participant={"least_fit_seconds": 0.8}) as federation:
        federation.until_version(4)
        federation.left.add(who)
        federation[who].send(signal.SIGTERM)
        federation.until(lambda: federation[who].code is not None, "it has ended", 10)
        assert federation[who].code == 0
        federation.left.remove(who)
        federation.start(who)
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())


@pytest.mark.fault("F31")
def test_clocks_that_are_a_day_off_and_jump_decide_nothing(vhost: VHost, tmp_path: Path) -> None:
    if not FAKETIME:
        no_program("libfaketime is not installed here: apt-get install faketime")
    federation = Standing(vhost, tmp_path, participant=SLOW)
    clocks = {}
    for name, said in zip((AGGREGATOR, *SITES), ("+1d", "-1d", "+1d", "-1d"), strict=True):
        clocks[name] = tmp_path / f"{name}.clock"
        clocks[name].write_text(f"{said}\n")
        federation[name].environment |= {
            "LD_PRELOAD": str(FAKETIME[0].with_name("libfaketimeMT.so.1")),
            "FAKETIME_TIMESTAMP_FILE": str(clocks[name]),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
    with federation:
        federation.until_version(4)
        for name, said in zip((AGGREGATOR, *SITES), ("-1d", "+1d", "+0", "x1000"), strict=True):
            clocks[name].write_text(f"{said}\n")
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())
        assert not federation.deaths
