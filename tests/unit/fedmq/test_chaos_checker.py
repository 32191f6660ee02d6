"""The checker finds each kind of broken promise in a history that was tampered with, and none in one that was not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from broker.topology import DEAD, updates_queue
from fedmq.chaos import federation
from fedmq.chaos.checker import check
from fedmq.chaos.federation import live_through
from fedmq.chaos.history import (
    Accepted,
    Announced,
    Committed,
    Ended,
    History,
    Offered,
    Released,
    Sent,
    TookOver,
)
from fedmq.chaos.pooled import pooled_fit
from fedmq.chaos.world import FEDERATION, World, draw, quiet
from monitoring.logs import configure_logging

if TYPE_CHECKING:
    from collections.abc import Callable

configure_logging(level="error")


@cache
def lived(strategy: str) -> tuple[World, History]:
    world = next(quiet(draw(seed)) for seed in range(1000) if draw(seed).strategy == strategy)
    return world, live_through(world)


def changed(history: History, change: Callable[[Any], Any], **last: Any) -> History:
    """Return ``history`` with each record changed; None takes it away, a list stands for several."""
    records: list[Any] = []
    for record in history.records:
        made = change(record)
        records.extend(made if isinstance(made, list) else [] if made is None else [made])
    assert history.last is not None
    return History(records, replace(history.last, **last))


def promises(strategy: str, change: Callable[[Any], Any] = lambda record: record, **last: Any) -> set[str]:
    world, history = lived(strategy)
    return {violation.promise for violation in check(world, changed(history, change, **last), history)}


def in_commit(history_change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def change(record: Any) -> Any:
        return record._replace(commit=history_change(record.commit)) if isinstance(record, Committed) else record

    return change


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "fedasync", "newton", "incremental-newton"])
def test_a_history_without_faults_breaks_no_promise(strategy: str) -> None:
    assert promises(strategy) == set()


def test_an_update_in_two_versions_is_found() -> None:
    def twice(commit: Any) -> Any:
        return replace(commit, includes=(*commit.includes, *commit.includes))

    assert "I1" in promises("fedavg", in_commit(twice))


def test_an_update_that_was_confirmed_and_never_judged_is_found() -> None:
    _, history = lived("fedavg")
    assert history.last is not None
    assert "I2" in promises("fedavg", ledger=history.last.ledger[:-1])


def test_a_release_that_nobody_published_is_found() -> None:
    assert promises("fedavg", lambda record: None if isinstance(record, Offered) else record) == {"I2"}


def test_a_release_that_a_newer_one_has_overtaken_need_not_be_published() -> None:
    def with_an_older_one(commit: Any) -> Any:
        older = tuple(replace(release, version=release.version - 1) for release in commit.releases)
        return replace(commit, releases=(*older, *commit.releases))

    assert promises("fedavg", in_commit(with_an_older_one)) == set()


@pytest.mark.parametrize("kind", [Accepted, Announced])
def test_other_weights_under_the_same_version_are_found(kind: type[Any]) -> None:
    assert promises("fedavg", lambda r: r._replace(digest="0" * 64) if isinstance(r, kind) else r) == {"I3"}


def test_a_participant_that_goes_back_to_an_older_epoch_is_found() -> None:
    def older(record: Any) -> Any:
        return [record, record._replace(epoch=0)] if isinstance(record, Accepted) else record

    assert promises("fedavg", older) == {"I3"}


def test_a_version_that_is_left_out_is_found() -> None:
    def without_second(commit: Any) -> Any:
        return replace(commit, version_hashes={v: h for v, h in commit.version_hashes.items() if v != 2})

    assert "I3" in promises("newton", in_commit(without_second))


def test_a_resend_in_other_bytes_is_found() -> None:
    assert promises("fedavg", lambda r: [r, r._replace(digest="0" * 64)] if isinstance(r, Sent) else r) == {"I3"}


def test_another_release_downstream_is_found() -> None:
    assert promises("fedavg", lambda r: r._replace(body=b"") if isinstance(r, Released) else r) == {"I3"}


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "fedasync"])
def test_weights_that_do_not_follow_from_the_updates_are_found(strategy: str) -> None:
    def other_hash(commit: Any) -> Any:
        return replace(commit, version_hashes=dict.fromkeys(commit.version_hashes, "0" * 64))

    assert {"I3", "I4"} <= promises(strategy, in_commit(other_hash))


def test_a_release_of_fewer_rows_than_there_are_is_found() -> None:
    world, history = lived("newton")
    n = len(world.sites)
    more = replace(world, sites=(replace(world.sites[0], tables=world.sites[0].tables * 2), *world.sites[1:]))
    assert check(more, history) == []
    other = replace(world, sites=(*(replace(s, tables=draw(1).sites[0].tables) for s in world.sites[: n - 1]),))
    assert check(other, history) == []  # who is not in the release is said to be away


def test_what_is_left_is_found() -> None:
    assert promises("fedavg", waiting={updates_queue(FEDERATION): ("m1",)}) == {"I7"}
    assert promises("fedavg", unsent={"site-1": 2}) == {"I7"}
    assert promises("fedavg", tasks=("forgotten",)) == {"I7"}


def test_hangs_unexpected_ends_and_commits_after_a_takeover_are_found() -> None:
    assert promises("fedavg", released=False, why="not released") == {"I8"}

    def ends(record: Any) -> Any:
        return [record, Ended(record.at, record.who, "KeyError", False)] if isinstance(record, Released) else record

    assert promises("fedavg", ends) == {"I8"}
    assert "I8" in promises("fedavg", lambda r: [r, r._replace(epoch=9)] if isinstance(r, TookOver) else r)


def test_a_model_that_is_not_the_quiet_runs_is_found() -> None:
    world, history = lived("fedavg")
    longer = replace(world, is_steady=True)
    fewer = History([r for r in history.records if not isinstance(r, Committed)], history.last)
    assert "I9" in {violation.promise for violation in check(longer, history, fewer)}


def test_the_pooled_fit_is_where_the_gradient_is_zero() -> None:
    tables = [site.tables[0] for site in draw(3).sites]
    X = np.concatenate([table.dense[table.is_train] for table in tables])
    y = np.concatenate([table.y[table.is_train] for table in tables])
    w = pooled_fit(tables)
    residual = 1.0 / (1.0 + np.exp(-(X @ w[:-1] + w[-1]))) - y
    slopes = w[:-1] * X.std(axis=0)
    gradient = ((X - X.mean(axis=0)) / X.std(axis=0)).T @ residual / len(y) + slopes / len(y)
    assert abs(residual.mean()) < 1e-10
    assert float(np.abs(gradient).max()) < 1e-10


def test_what_goes_wrong_in_the_simulation_itself_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("an incident that cannot befall anybody")

    monkeypatch.setattr(federation, "befall", broken)
    world = next(draw(seed) for seed in range(1000) if draw(seed).incidents)
    found = [violation.what for violation in check(world, live_through(world)) if violation.promise == "I8"]
    assert any("nobody ended: RuntimeError: an incident" in what for what in found)


def test_a_dead_letter_is_found() -> None:
    assert "I7" in promises("fedavg", waiting={DEAD: ("site-1:site-1-1:1",)})
