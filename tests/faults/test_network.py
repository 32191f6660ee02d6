"""The network between a site and the broker fails: answers get lost, or all of it, with nobody told."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from servers.judging import assert_is_clean, assert_is_the_pooled_fit
from servers.proxy import Proxy, ProxyThread
from servers.standing import AGGREGATOR, Standing

if TYPE_CHECKING:
    from pathlib import Path

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(120)]

SITE = "city"
SLOW = {"least_fit_seconds": 0.2}


@pytest.mark.fault("F09", "F10", "F11")
def test_a_site_that_is_killed_before_it_hears_the_confirmation_sends_the_same_bytes_again(
    vhost: VHost, tmp_path: Path
) -> None:
    with (
        ProxyThread(vhost.rabbitmq.port) as proxy,
        Standing(vhost, tmp_path, participant=SLOW, ports={SITE: proxy.port}) as federation,
    ):
        federation.until(lambda: federation.judged().get(SITE, 0) >= 2, "the site has sent something")
        # An aggregator that answered would tell the site that it has what was sent.
        federation[AGGREGATOR].send(signal.SIGSTOP)
        proxy.tell(Proxy.hold_answers)
        federation.until(lambda: federation.verdict().in_flight == 3, "all sites have sent something")
        federation.kill(SITE)
        proxy.tell(Proxy.heal)
        federation.until(lambda: federation.verdict().resent >= 1, "it is sent again")
        federation[AGGREGATOR].send(signal.SIGCONT)
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())


@pytest.mark.fault("F25", "F35")
def test_a_connection_that_carries_nothing_any_more_is_given_up_and_made_anew(vhost: VHost, tmp_path: Path) -> None:
    beats = {"heartbeat_seconds": 1}
    with (
        ProxyThread(vhost.rabbitmq.port) as proxy,
        # So long that the others are not done before it is back.
        Standing(vhost, tmp_path, beats, {"least_fit_seconds": 1.0, **beats}, {SITE: proxy.port}) as federation,
    ):
        federation.until(lambda: federation.judged().get(SITE, 0) >= 1, "the site has sent something")
        proxy.tell(Proxy.freeze)
        federation.until(lambda: "broker_lost" in federation[SITE].output(), "the site has noticed", 10)
        assert_is_the_pooled_fit(federation.until_released())
        assert_is_clean(federation.verdict())
        assert not federation.deaths
