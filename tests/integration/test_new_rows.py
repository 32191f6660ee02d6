"""A standing participant whose rows change: it notices, tells everybody, and the next model is that of the new rows."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from aggregator.settings import AggregatorSettings
from aggregator.store.sqlite import SQLiteStore
from broker.memory import MemoryBroker
from broker.messages import ReleasedModel
from fedmq.errors import ours_in
from fedmq.services import aggregator_reporter, aggregator_service, participant_reporter, participant_service
from fedmq.simulation.clock import VirtualLoop
from monitoring.http import Health
from participant.errors import DataError
from participant.outbox import Outbox
from participant.own_rows import MOST_READINGS
from participant.service import ParticipantService
from participant.settings import ParticipantSettings
from participant.sources import Columns, Reading, Source, Table
from participant.sources.reading import read
from participant.watched import Watched

FEATURES = ("age", "dose", "score")
LOOK_SECONDS = 60.0
HORIZON_SECONDS = 3000.0

Rows = np.ndarray[Any, np.dtype[np.float64]]
MTIMES = itertools.count(1)


def rows(seed: int, n: int = 120) -> Rows:
    """Return features and, in the last column, labels: (n, 4)."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, len(FEATURES))) * [10.0, 1.0, 0.1] + [50.0, 0.0, 1.0]
    y = rng.random(n) < 1 / (1 + np.exp(-(X - [50.0, 0.0, 1.0]) @ [0.05, 0.7, -3.0]))
    return np.column_stack([X, y])


def text(values: Rows, names: tuple[str, ...] = FEATURES) -> str:
    lines = [",".join([*map(repr, map(float, row[:-1])), str(int(row[-1]))]) for row in values]
    return "\n".join([",".join([*names, "y"]), *lines]) + "\n"


def write(path: Path, content: str) -> None:
    """Replace the file at ``path``, with a time of change of its own however fast the test is."""
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    os.utime(fresh, ns=(next(MTIMES) * 10**9,) * 2)
    fresh.replace(path)


def pooled(*parts: Rows) -> Rows:
    """Return the ridge fit of all rows, standardised, on the original scale: estimates, then the intercept."""
    X, y = np.vstack(parts)[:, :-1], np.vstack(parts)[:, -1]
    mean, scale, n = X.mean(axis=0), X.std(axis=0), len(y)
    Z = np.column_stack([(X - mean) / scale, np.ones(n)])
    penalty = np.array([1 / n] * X.shape[1] + [0.0])
    w = np.zeros(Z.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-Z @ w))
        w -= np.linalg.solve((Z.T * (p * (1 - p))) @ Z / n + np.diag(penalty), Z.T @ (p - y) / n + penalty * w)
    estimates = w[:-1] / scale
    return np.append(estimates, w[-1] - estimates @ mean)


def estimates(model: ReleasedModel) -> Rows:
    return np.array([*(each.estimate for each in model.coefficients), model.intercept_coefficient.estimate])


@dataclass(slots=True)
class StreamedReading:
    """Reads like a `Reading`, and keeps no features in memory."""

    source: Source
    n_readings: int = 0

    def signature(self) -> Any:
        return self.source.signature()

    def table(self) -> Table:
        self.n_readings += 1
        return read(self.source, Columns("y"), in_memory_bytes=0)


class Federation:
    """An aggregator and participants on a clock of their own, each participant with its file."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.broker = MemoryBroker()
        self.releases: list[ReleasedModel] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.services: dict[str, ParticipantService] = {}
        self.registries: dict[str, CollectorRegistry] = {}
        self.fit_seconds: dict[str, float] = {}
        self.before_work: dict[str, dict[int, Callable[[], None]]] = {}
        self.n_works: Counter[str] = Counter()
        self.held_back: dict[str, dict[int, float]] = {}
        self.stack = AsyncExitStack()
        self.settings = AggregatorSettings(federation="f", heartbeat_seconds=10.0, **settings)
        self.store = self.stack.enter_context(closing(SQLiteStore(":memory:", "f")))

    async def start_aggregator(self) -> None:
        reporter = aggregator_reporter(self.settings, CollectorRegistry(), Health(), on_release=self.releases.append)
        transport = await self.stack.enter_async_context(self.broker.transport("aggregator"))
        service = aggregator_service(self.settings, transport, self.store, reporter)
        service.in_thread = self._in_line("aggregator")
        self.tasks["aggregator"] = asyncio.create_task(service.run())

    async def start(self, name: str, reading: Any = None, *, look_seconds: float = LOOK_SECONDS, **own: Any) -> None:
        path = self.folder / f"{name}.csv"
        settings = ParticipantSettings(federation="f", name=name, data=str(path), heartbeat_seconds=10.0, **own)
        reading = reading or settings.rows()
        watched = Watched(reading, reading.signature(), look_seconds)
        registry = self.registries[name] = CollectorRegistry()
        service = self.services[name] = participant_service(
            settings,
            reading.table(),
            await self.stack.enter_async_context(self.broker.transport(name)),
            self.stack.enter_context(closing(Outbox(":memory:", owner=name, incarnation=f"{name}-1"))),
            participant_reporter(settings, registry, Health()),
            watched=watched,
        )
        service.in_thread = self._in_line(name)
        self.tasks[name] = asyncio.create_task(service.run())

    def _in_line(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def in_line(function: Callable[..., Any], *args: Any) -> Any:
            is_work = function.__name__ == "_compute"
            if function.__name__ == "put":
                await asyncio.sleep(self.held_back.get(name, {}).get(args[0].sequence, 0.0))
            if is_work:
                self.n_works[name] += 1
                self.before_work.get(name, {}).get(self.n_works[name], lambda: None)()
            result = function(*args)
            if is_work:
                await asyncio.sleep(self.fit_seconds.get(name, 0.0))
            return result

        return in_line

    async def until(self, holds: Callable[[], bool]) -> None:
        """Return when ``holds``; fail when a service does, or when it takes for ever."""
        async with asyncio.timeout(HORIZON_SECONDS):
            while not holds():
                await asyncio.sleep(0.1)
                for task in self.tasks.values():
                    if task.done():
                        task.result()

    async def release(self, number: int) -> Rows:
        """Return the estimates of the ``number``-th release, from 1."""
        await self.until(lambda: len(self.releases) >= number)
        model = self.releases[number - 1]
        assert model.converged
        return estimates(model)

    async def release_of(self, n_rows: int) -> Rows:
        """Return the estimates of the newest release, once it is of so many rows."""
        await self.until(lambda: bool(self.releases) and self.releases[-1].n_samples == n_rows)
        return estimates(self.releases[-1])

    def metric(self, name: str, participant: str = "a") -> float | None:
        return self.registries[participant].get_sample_value(name, {"federation": "f", "participant": participant})

    def verdicts(self, participant: str) -> list[str]:
        return [entry.verdict for entry in self.store.ledger() if entry.participant == participant]

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        await self.stack.aclose()


def live(folder: Path, story: Callable[[Federation], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Let ``story`` happen to a federation of ``a`` and ``b`` on a virtual clock."""

    async def lived() -> None:
        f = Federation(folder, **{"participants": ["a", "b"], **settings})
        try:
            await story(f)
        finally:
            await f.end()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(lived())


A, B, MORE = rows(1), rows(2, 90), rows(3, 40)
GROWN = np.vstack([A, MORE])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "a.csv", text(A))
    write(tmp_path / "b.csv", text(B))
    return tmp_path


async def both(f: Federation) -> None:
    await f.start_aggregator()
    for name in ("a", "b"):
        await f.start(name)


def close(found: Rows, *parts: Rows) -> bool:
    return bool(np.allclose(found, pooled(*parts), rtol=1e-8, atol=1e-8))


@pytest.mark.parametrize("strategy", ["auto", "lbfgs", "fedsgd"])
def test_rows_that_were_added_after_the_release_make_another_one_of_all_rows(folder: Path, strategy: str) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        assert close(await f.release(1), A, B)
        write(folder / "a.csv", text(GROWN))
        assert close(await f.release(2), GROWN, B)
        assert f.releases[1].n_samples == len(GROWN) + len(B)

    # A gradient descent ends within its tolerance; the others at the optimum.
    live(folder, story, strategy=strategy, max_versions=20_000, **({"tolerance": 1e-15} if strategy != "auto" else {}))


def test_rows_that_were_taken_away_leave_nothing_behind(folder: Path) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        await f.release(1)
        write(folder / "a.csv", text(MORE))
        assert close(await f.release(2), MORE, B)

    live(folder, story)


def test_the_same_rows_written_again_change_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        await f.release(1)
        write(folder / "a.csv", text(A))
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert len(f.releases) == 1

    live(folder, story)
    assert "rows_changed" not in caplog.text


@pytest.mark.parametrize(
    "broken",
    [text(GROWN).replace(",0\n", ",no\n", 1), text(GROWN)[:-20], "", "age,dose"],
    ids=["bad-cell", "half-written", "empty", "half a header"],
)
def test_a_broken_file_is_told_of_once_and_the_former_rows_stand_until_it_is_mended(
    folder: Path, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        await f.release(1)
        assert f.metric("fedmq_participant_rows_refused") == 0
        write(folder / "a.csv", broken)
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert caplog.text.count("rows_refused") == 1
        assert f.metric("fedmq_participant_rows_refused") == 1
        assert len(f.releases) == 1
        write(folder / "a.csv", text(GROWN))
        assert close(await f.release(2), GROWN, B)
        assert f.metric("fedmq_participant_rows_refused") == 0
        write(folder / "a.csv", broken)
        await asyncio.sleep(10 * LOOK_SECONDS)
        assert caplog.text.count("rows_refused") == 2

    live(folder, story)


def test_a_file_that_is_away_for_a_while_is_told_of_once_and_comes_back(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        await f.release(1)
        (folder / "a.csv").rename(folder / "elsewhere")
        await asyncio.sleep(5 * LOOK_SECONDS)
        assert f.metric("fedmq_participant_rows_refused") == 1
        (folder / "elsewhere").rename(folder / "a.csv")
        await asyncio.sleep(5 * LOOK_SECONDS)
        assert f.metric("fedmq_participant_rows_refused") == 0
        assert len(f.releases) == 1

    live(folder, story)
    assert caplog.text.count("rows_refused") == 1
    assert "rows_changed" not in caplog.text


def test_rows_that_could_not_be_read_for_another_reason_are_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        await f.release(1)
        write(folder / "a.csv", text(GROWN))

        def away(_: Reading) -> Table:
            raise DataError("the database cannot be reached")

        with monkeypatch.context() as patched:
            patched.setattr(Reading, "table", away)
            await asyncio.sleep(3 * LOOK_SECONDS)
        assert close(await f.release(2), GROWN, B)

    live(folder, story)


def test_who_brings_other_columns_is_barred_by_name_and_back_when_they_are_mended(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(f: Federation) -> None:
        await both(f)
        await f.release(1)
        write(folder / "a.csv", text(GROWN, ("years", "dose", "score")))
        assert close(await f.release(2), B), "the others go on without its rows"
        assert "its columns are not the plan's (missing: age; unknown: years)" in caplog.text
        write(folder / "a.csv", text(GROWN))
        assert close(await f.release(3), GROWN, B)

    live(folder, story)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_other_columns_amid_training_end_nothing_but_the_part_of_their_site(folder: Path, at: int) -> None:
    async def story(f: Federation) -> None:
        f.fit_seconds = {"a": 3.0, "b": 1.0}
        f.before_work["a"] = {at: lambda: write(folder / "a.csv", text(GROWN, ("years", "dose", "score")))}
        await f.start_aggregator()
        await f.start("a", look_seconds=1.0)
        await f.start("b")
        assert close(await f.release_of(len(B)), B)
        write(folder / "a.csv", text(GROWN))
        assert close(await f.release_of(len(GROWN) + len(B)), GROWN, B)

    live(folder, story)


@pytest.mark.parametrize("strategy", ["incremental-newton", "lbfgs"])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_new_rows_amid_training_wait_for_the_fit_in_hand_and_lead_to_their_model(
    folder: Path, strategy: str, at: int
) -> None:
    async def story(f: Federation) -> None:
        f.fit_seconds = {"a": 3.0, "b": 1.0}
        f.before_work["a"] = {at: lambda: write(folder / "a.csv", text(GROWN))}
        await f.start_aggregator()
        await f.start("a", look_seconds=1.0)
        await f.start("b")
        assert close(await f.release_of(len(GROWN) + len(B)), GROWN, B)
        assert "incomplete" not in f.verdicts("a")

    live(folder, story, strategy=strategy)


def test_a_contribution_of_former_rows_is_refused_by_its_plan_and_settled(folder: Path) -> None:
    async def story(f: Federation) -> None:
        f.fit_seconds = {"a": 3.0}
        f.before_work["a"] = {2: lambda: write(folder / "a.csv", text(GROWN))}
        f.held_back["a"] = {2: 30.0}
        await f.start_aggregator()
        await f.start("a", look_seconds=1.0)
        await f.start("b")
        assert close(await f.release_of(len(GROWN) + len(B)), GROWN, B)
        assert f.verdicts("a").count("wrong-plan") == 1
        assert f.metric("fedmq_participant_outbox_waiting") == 0

    live(folder, story)


# --- rows that are read anew in each pass ------------------------------------------------------


def streamed(folder: Path) -> StreamedReading:
    return StreamedReading(Reading(Columns("y"), str(folder / "a.csv")).source())


@pytest.mark.parametrize("at", range(1, 8))
def test_a_streamed_table_that_is_replaced_between_two_passes_is_read_anew(folder: Path, at: int) -> None:
    async def story(f: Federation) -> None:
        f.before_work["a"] = {at: lambda: write(folder / "a.csv", text(GROWN))}
        await f.start_aggregator()
        await f.start("a", streamed(folder), look_seconds=0.0)
        await f.start("b")
        assert close(await f.release_of(len(GROWN) + len(B)), GROWN, B)

    live(folder, story)


def test_a_streamed_table_that_is_written_again_as_it_was_is_read_anew_once(folder: Path) -> None:
    async def story(f: Federation) -> None:
        reading = streamed(folder)
        f.before_work["a"] = {2: lambda: write(folder / "a.csv", text(A))}
        await f.start_aggregator()
        await f.start("a", reading, look_seconds=0.0)
        await f.start("b")
        assert close(await f.release(1), A, B)
        assert reading.n_readings == 2

    live(folder, story)


@pytest.mark.parametrize("broken", [None, text(GROWN)[:-20]], ids=["away", "half-written"])
def test_a_streamed_table_that_cannot_be_used_for_a_while_is_waited_for(
    folder: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    async def story(f: Federation) -> None:
        loop, path = asyncio.get_running_loop(), folder / "a.csv"

        def spoil() -> None:
            if broken is None:
                path.unlink()
            else:
                write(path, broken)
            loop.call_later(1.5 * LOOK_SECONDS, write, path, text(GROWN))

        f.before_work["a"] = {2: spoil}
        await f.start_aggregator()
        await f.start("a", streamed(folder))
        await f.start("b")
        assert close(await f.release_of(len(GROWN) + len(B)), GROWN, B)

    live(folder, story)
    assert caplog.text.count("rows_refused") == 1


@dataclass(slots=True)
class Faltering:
    """A source that fails in the middle of one pass, as a database that goes away, or a file written in place."""

    inner: Any
    fails_in: int
    n_passes: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batches(self, names: Any) -> Any:
        self.n_passes += 1
        for batch in self.inner.batches(names):
            yield batch
            if self.n_passes == self.fails_in:
                raise DataError("the database cannot be reached, or went away")


@pytest.mark.parametrize("fails_in", [2, 3, 4, 5])
def test_a_pass_that_breaks_off_is_made_again(folder: Path, fails_in: int) -> None:
    async def story(f: Federation) -> None:
        reading = streamed(folder)
        reading.source = Faltering(reading.source, fails_in)
        await f.start_aggregator()
        await f.start("a", reading)
        await f.start("b")
        assert close(await f.release(1), A, B)
        assert reading.n_readings == 2
        assert set(f.verdicts("a")) == {"accepted"}, "they are the same rows, and count as such"

    live(folder, story)


@dataclass(slots=True)
class Shuffled:
    """A source that has its rows in another order each time, as a query without an ORDER BY may."""

    inner: Any
    rng: np.random.Generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def batches(self, names: Any) -> Any:
        for batch in self.inner.batches(names):
            order = self.rng.permutation(batch.n_rows)
            cells = {name: [column[i] for i in order] for name, column in batch.cells.items()}
            yield batch._replace(cells=cells)


def test_rows_that_never_come_in_one_order_end_the_participant_with_a_sentence(folder: Path) -> None:
    async def story(f: Federation) -> None:
        reading = streamed(folder)
        reading.source = Shuffled(reading.source, np.random.default_rng(0))
        await f.start_aggregator()
        await f.start("a", reading)
        await f.start("b")
        with pytest.raises(ExceptionGroup) as caught:
            await f.until(lambda: False)
        error = ours_in(caught.value)
        assert isinstance(error, DataError)
        assert str(error).startswith(f"{1 + MOST_READINGS} passes over the rows failed in a row: ")
        assert "ORDER BY" in str(error)
        assert reading.n_readings == 1 + MOST_READINGS

    live(folder, story)


# --- databases, and what is kept ---------------------------------------------------------------


def test_rows_that_were_inserted_into_a_database_are_noticed_by_its_watermark(folder: Path) -> None:
    pytest.importorskip("sqlalchemy")
    path = folder / "visits.db"

    def insert(values: Rows) -> None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS visits (id INTEGER PRIMARY KEY, age, dose, score, y)")
            database.executemany("INSERT INTO visits (age, dose, score, y) VALUES (?, ?, ?, ?)", values.tolist())

    async def story(f: Federation) -> None:
        insert(A)
        query = "SELECT age, dose, score, CAST(y AS INTEGER) AS y FROM visits ORDER BY id"
        watermark = "SELECT count(*) FROM visits"
        await f.start_aggregator()
        await f.start("a", Reading(Columns("y"), query=query, url=f"sqlite:///{path}", watermark=watermark))
        await f.start("b")
        assert close(await f.release(1), A, B)
        insert(MORE)
        assert close(await f.release(2), GROWN, B)

    live(folder, story)


def test_who_looks_every_0_seconds_never_looks(folder: Path) -> None:
    async def story(f: Federation) -> None:
        await f.start_aggregator()
        await f.start("a", look_seconds=0.0)
        await f.start("b")
        await f.release(1)
        write(folder / "a.csv", text(GROWN))
        await asyncio.sleep(100 * LOOK_SECONDS)
        assert len(f.releases) == 1

    live(folder, story)


def test_own_models_are_made_of_the_new_rows(folder: Path) -> None:
    out = folder / "kept"

    async def story(f: Federation) -> None:
        await f.start_aggregator()
        await f.start("a", out=out, site_intercepts=True)
        await f.start("b")

        def n_rows() -> int:
            local = out / "local.json"
            return int(json.loads(local.read_text())["n_train_rows"]) if local.exists() else 0

        await f.until(lambda: n_rows() == len(A))
        write(folder / "a.csv", text(GROWN))
        await f.until(lambda: n_rows() == len(GROWN))

    live(folder, story)
