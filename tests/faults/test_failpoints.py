"""Each service is killed at each place where it can be: the model is the one of a quiet training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.judging import assert_is_clean, assert_is_the_pooled_fit
from servers.standing import AGGREGATOR, SITES, Standing

from broker import failpoints

if TYPE_CHECKING:
    from pathlib import Path

    from servers.rabbitmq import VHost

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(200)]

#: Each site dies there, and at another time than the others.
PARTICIPANT = {
    "model-taken": ("F01", "F02"),
    "model-acknowledged": ("F03", "F04", "F05"),
    "computed": ("F06", "F07"),
    "stored": ("F08", "F09"),
    "confirmed": ("F11", "F12"),
}
#: And the coming by at which the aggregator does.
AGGREGATORS = {
    "taken-over": (1, "F13"),
    "taken": (5, "F14"),
    "decided": (6, "F15", "F19"),
    "committed": (7, "F16", "F17", "F20"),
    "acknowledged": (8, "F18", "F21"),
    "published": (4, "F22"),
    "release-published": (1, "F22"),
}


def test_there_is_a_test_for_each_place() -> None:
    assert tuple(PARTICIPANT) == failpoints.PARTICIPANT
    assert set(AGGREGATORS) == set(failpoints.AGGREGATOR)


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=pytest.mark.fault(*ids)) for place, ids in PARTICIPANT.items()]
)
def test_participants_that_are_killed_there_change_nothing(vhost: VHost, tmp_path: Path, place: str) -> None:
    federation = Standing(vhost, tmp_path, participant={"least_fit_seconds": 0.05})
    for number, site in enumerate(SITES):
        federation.arm(site, f"{place}:{number + 2}")
    with federation:
        model = federation.until_released()
        assert sorted(death.name for death in federation.deaths) == sorted(SITES)
        assert_is_the_pooled_fit(model)
        assert_is_clean(federation.verdict())


@pytest.mark.parametrize(
    ("place", "times"),
    [pytest.param(place, times, marks=pytest.mark.fault(*ids)) for place, (times, *ids) in AGGREGATORS.items()],
)
def test_an_aggregator_that_is_killed_there_changes_nothing(
    vhost: VHost, tmp_path: Path, place: str, times: int
) -> None:
    federation = Standing(vhost, tmp_path, participant={"least_fit_seconds": 0.05})
    federation.arm(AGGREGATOR, f"{place}:{times}")
    with federation:
        model = federation.until_released()
        assert [death.name for death in federation.deaths] == [AGGREGATOR]
        assert federation.epoch() == 2
        assert_is_the_pooled_fit(model)
        assert_is_clean(federation.verdict())
