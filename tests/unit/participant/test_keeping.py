"""Beside everything else a participant keeps what is released and makes its own models, whatever is killed or fails."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from golden.examples import MODEL, PLAN

from broker.codec import plan_hash
from participant.keeping import Keeping
from participant.released import GLOBAL, LOCAL, ReleaseFolder
from participant.sources import Table
from participant.training import Prepared, prepare
from participant.worker import ModelArrived, PlanArrived, WorkerState, step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

RELEASED = replace(MODEL, phase="converged", plan_hash=plan_hash(PLAN))
NEWER = replace(RELEASED, version=42, bulletin=64)
LIMIT_SECONDS = 30.0


def table() -> Table:
    rng = np.random.default_rng(0)
    X = rng.normal([50.0, 0.5, 1.0], [10.0, 0.5, 2.0], size=(80, 3))
    return Table(PLAN.features, X, (rng.random(80) < 0.4).astype(np.float64), np.arange(80) < 40)


async def until(holds: Callable[[], bool]) -> None:
    """Return when ``holds``, looked at each time the loop has turned."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while True:
            if holds():
                return
            await asyncio.sleep(0)


class Told:
    """Stands for the reporter, and remembers."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def kept_release(self, version: int, folder: Path) -> None:
        self.lines.append(("kept", version))

    def made_own_models(self, version: int, verdict: str, folder: Path) -> None:
        self.lines.append(("made", version, verdict))

    def not_kept(self, error: Exception) -> None:
        self.lines.append(("failed", str(error)))


class Rows(NamedTuple):
    """Stands for the rows that the participant has now."""

    table: Table
    prepared: Callable[[str], Prepared | None]


class Site:
    """A participant without anything but its keeping."""

    def __init__(self, path: Path | None, **options: Any) -> None:
        self.told = Told()
        self.kept: list[bool] = []
        self.state = WorkerState("hospital-1", "i")
        folder = None if path is None else ReleaseFolder(path, "hospital-1", ("own_intercept", "fine_tuned"))
        rows = Rows(table(), options.pop("prepared", lambda _: None))
        self.path = path
        self.keeping = Keeping(
            folder,
            "heart",
            rows,  # type: ignore[arg-type]
            self.told,  # type: ignore[arg-type]
            on_kept=lambda: self.kept.append((path / LOCAL).exists() if path else True),
            **options,
        )

    async def take(self, event: Any) -> None:
        """Do as the service does with a message."""
        self.state, _ = step(self.state, event)
        await self.keeping.keep(self.state)
        self.keeping.proceed()

    async def until_kept(self, times: int = 1) -> None:
        await until(lambda: len(self.kept) >= times)

    def files(self) -> list[str]:
        assert self.path is not None
        return [entry.name for entry in self.path.iterdir()]

    def version(self, name: str = LOCAL) -> int:
        assert self.path is not None
        found: int = json.loads((self.path / name).read_text())["version"]
        return found


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[Site]:
    task = asyncio.create_task(site.keeping.run())
    try:
        yield site
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_release_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.state, _ = step(site.state, PlanArrived(PLAN))
    site.state, _ = step(site.state, ModelArrived(RELEASED))
    await site.keeping.keep(site.state)  # nothing runs yet that could go on with it
    assert site.version(GLOBAL) == 41
    assert site.told.lines == [("kept", 41)]


async def test_a_release_is_kept_once_its_own_models_are_made(tmp_path: Path) -> None:
    async with running(Site(tmp_path)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await site.until_kept()
        assert site.kept == [True]
        assert site.version() == 41
        assert [line[:2] for line in site.told.lines] == [("kept", 41), ("made", 41)]


@pytest.mark.parametrize("phase", ["training", "verifying"])
async def test_a_model_that_is_not_released_is_not_kept(tmp_path: Path, phase: Any) -> None:
    site = Site(tmp_path)
    await site.take(PlanArrived(PLAN))
    await site.take(ModelArrived(replace(RELEASED, phase=phase)))
    assert site.files() == []
    assert not site.keeping._announced


async def test_a_release_waits_for_its_plan(tmp_path: Path) -> None:
    """It comes by a queue of its own, and may come later; a former one is no plan of it."""
    async with running(Site(tmp_path)) as site:
        await site.take(ModelArrived(RELEASED))
        await site.take(PlanArrived(replace(PLAN, revision=1)))
        assert site.files() == []
        await site.take(PlanArrived(PLAN))
        await site.until_kept()
        assert site.version() == 41


async def test_weights_that_do_not_fit_the_plan_are_not_kept(tmp_path: Path) -> None:
    site = Site(tmp_path)
    await site.take(PlanArrived(PLAN))
    await site.take(ModelArrived(replace(RELEASED, weights=np.zeros(9))))
    assert site.files() == []


async def test_who_keeps_nothing_is_done_at_once() -> None:
    async with running(Site(None)) as site:
        await site.take(ModelArrived(RELEASED))
        await site.until_kept()
        assert site.told.lines == []


async def test_the_same_release_under_another_epoch_is_nothing_new(tmp_path: Path) -> None:
    async with running(Site(tmp_path)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await site.until_kept()
        await site.take(ModelArrived(replace(RELEASED, epoch=3, bulletin=1)))
        await site.until_kept(2)
        assert [line[0] for line in site.told.lines] == ["kept", "made"]


async def test_who_was_killed_before_its_own_models_were_made_makes_them_at_the_next_start(tmp_path: Path) -> None:
    """Also where the aggregator has gone meanwhile, and nothing is announced any more."""
    killed = Site(tmp_path)
    await killed.take(PlanArrived(PLAN))
    await killed.take(ModelArrived(RELEASED))
    async with running(Site(tmp_path)) as site:
        await until(lambda: bool(site.told.lines))
    assert site.told.lines[0][:2] == ("made", 41)
    assert site.kept == [], "it was not told of a release in this life"
    whole = Site(tmp_path / "other")
    async with running(whole):
        await whole.take(PlanArrived(PLAN))
        await whole.take(ModelArrived(RELEASED))
        await whole.until_kept()
    assert (tmp_path / LOCAL).read_text() == (tmp_path / "other" / LOCAL).read_text(), "to the last digit"


class Slow:
    """Threads in which the making of models waits to be let go."""

    def __init__(self) -> None:
        self.began, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def prepared(self, plan_hash: str) -> Any:
        self.began.set()
        assert self.go_on.wait(LIMIT_SECONDS)
        return None

    async def has_begun(self) -> None:
        await until(self.began.is_set)


async def test_a_newer_release_ends_the_work_on_an_older_one(tmp_path: Path) -> None:
    slow = Slow()
    async with running(Site(tmp_path, prepared=slow.prepared)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await slow.has_begun()
        await site.take(ModelArrived(NEWER))
        slow.go_on.set()
        await site.until_kept()
        assert [line[:2] for line in site.told.lines] == [("kept", 41), ("kept", 42), ("made", 42)]
        assert site.version() == 42


async def test_the_same_release_once_more_does_not_end_it(tmp_path: Path) -> None:
    slow = Slow()
    async with running(Site(tmp_path, prepared=slow.prepared)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await slow.has_begun()
        slow.began.clear()
        await site.take(ModelArrived(replace(RELEASED, bulletin=70)))
        slow.go_on.set()
        await site.until_kept()
        assert not slow.began.is_set(), "it did not begin again"


async def test_a_service_that_ends_does_not_wait_for_the_thread(tmp_path: Path) -> None:
    slow = Slow()
    async with running(Site(tmp_path, prepared=slow.prepared)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await slow.has_begun()
    slow.go_on.set()
    await asyncio.get_running_loop().shutdown_default_executor()  # all threads have ended
    assert site.files() == [GLOBAL]


async def test_what_fails_is_told_and_ends_nothing(tmp_path: Path) -> None:
    def broken(plan_hash: str) -> Any:
        raise MemoryError("no room for the rows")

    async with running(Site(tmp_path, prepared=broken)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await site.until_kept()
        # Twice, where what it looks for at its start is what was just kept.
        assert set(site.told.lines) == {("kept", 41), ("failed", "no room for the rows")}
        await site.take(ModelArrived(NEWER))
        await site.until_kept(2)
        assert site.version(GLOBAL) == 42, "it is there for the next one"


async def test_a_release_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with running(Site(tmp_path / "file" / "site")) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await site.until_kept()
        assert [line[0] for line in site.told.lines] == ["failed"]
        assert "global.json could not be written (" in site.told.lines[0][1]


async def test_rows_at_hand_are_used(tmp_path: Path) -> None:
    asked: list[str] = []

    def prepared(plan_hash: str) -> Any:
        asked.append(plan_hash)
        return prepare(table(), PLAN, plan_hash)

    async with running(Site(tmp_path, prepared=prepared)) as site:
        await site.take(PlanArrived(PLAN))
        await site.take(ModelArrived(RELEASED))
        await site.until_kept()
    assert set(asked) == {RELEASED.plan_hash}
