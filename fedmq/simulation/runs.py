"""Runs of a scenario, each a strategy under a seed, and what is kept of one: a trace of every version."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from aggregator.events import Observe
from aggregator.state import State
from fedmq.errors import ProcessFailed
from fedmq.simulation.delays import LATE_BINDING, Labour
from fedmq.simulation.federation import Ending, World, live_through
from fedmq.simulation.network import Tally
from fedmq.simulation.objective import Objective
from fedmq.simulation.randomness import generator
from fedmq.simulation.scenario import Scenario, StrategyEntry
from monitoring.logs import configure_logging

#: `converged` is what the aggregator says of its release, `stopped` a release without; the others released nothing.
Ended = Literal["converged", "stopped", "diverged", "target", "horizon", "stalled"]

#: BLAS in one thread: the matrices are small, the processes many, and sums depend on how they are cut.
_ONE_THREAD = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Point(NamedTuple):
    """A version: when it was made, how far from the optimum it is, what had been delivered until then."""

    time: float
    version: int
    gap: float
    messages: int
    bytes: int


class Certificate(NamedTuple):
    """What the aggregator claimed of a version in nats per row, and what is true: F(w) - F* is at most ``bound``."""

    version: int
    bound: float
    excess: float


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one strategy under one seed."""

    strategy: str
    seed: int
    ended: Ended
    points: tuple[Point, ...]
    weights: tuple[float, ...]
    slow_loss_ratio: float | None
    certificates: tuple[Certificate, ...] = ()

    def first_within(self, target: float) -> Point | None:
        """Return the first version with a gap of at most ``target``."""
        return next((point for point in self.points if point.gap <= target), None)


class Work(NamedTuple):
    """One run to be made."""

    scenario: Scenario
    entry: StrategyEntry
    seed: int


OnRun = Callable[[Run, float], None]


def run(scenario: Scenario, entry: StrategyEntry, seed: int) -> Run:
    """Return one run; the same arguments give the same run, to the last bit."""
    tables = scenario.tables(seed)
    slow = scenario.delays.slow(list(tables), seed)
    settings = scenario.aggregator_settings(entry, list(tables), seed)
    objective = Objective(tables, slow, l2=settings.l2, standardise=settings.standardise)
    mean_rows = sum(table.n_train for table in tables.values()) / len(tables)
    labours = {
        name: Labour(
            scenario.delays,
            slowness=scenario.delays.slow_factor if name in slow else 1.0,
            share=table.n_train / mean_rows,
            early=LATE_BINDING[entry.late_binding],
            rng=generator(seed, "labour", name),
        )
        for name, table in tables.items()
    }
    recorder = _Recorder(objective, min(scenario.targets) if scenario.until == "targets" else None)
    ending = live_through(World(settings, tables, labours, scenario.faults, scenario.horizon, seed), recorder)
    return Run(
        strategy=entry.called,
        seed=seed,
        ended=recorder.word_for(ending),
        points=tuple(recorder.points),
        weights=tuple(recorder.weights),
        slow_loss_ratio=objective.slow_loss_ratio(recorder.weights),
        certificates=tuple(recorder.certificates),
    )


class _Recorder:
    """Watches a run and writes its trace."""

    def __init__(self, objective: Objective, target: float | None) -> None:
        self._objective = objective
        self._target = target
        self._began = 0.0
        self.points: list[Point] = []
        self.certificates: list[Certificate] = []
        self.weights = objective.optimum * 0.0
        self.converged = False

    def __call__(self, at: float, state: State, observed: Sequence[Observe], tally: Tally) -> bool:
        """Take note of a step; True when the target is reached."""
        for observation in observed:
            match observation.event:
                case "phase_entered" if observation.fields["phase"] == "training" and not self.points:
                    self._began = at
                    self._version(at, state, tally)
                case "version_made" if observation.fields["version"] == state.progress.version:
                    self._version(at, state, tally)
                case "model_released":
                    self.converged = observation.fields["converged"]
            # The aggregator's certificate, on whichever observation it comes: an upper bound of F(w) - F*.
            if (bound := observation.fields.get("gap_bound")) is not None:
                self.certificates.append(
                    Certificate(state.progress.version, bound, self._objective.excess(self.weights))
                )
        return self._target is not None and bool(self.points) and self.points[-1].gap <= self._target

    def word_for(self, ending: Ending) -> Ended:
        """Return how the run ended, in the word of a `Run`."""
        match ending:
            case "released":
                return "converged" if self.converged else "stopped"
            case "seen-enough":
                return "target"
            case _:
                return ending

    def _version(self, at: float, state: State, tally: Tally) -> None:
        assert state.weights is not None, "there are weights as soon as there is a plan"
        self.weights = state.weights
        gap = self._objective.gap(state.weights)
        self.points.append(Point(at - self._began, state.progress.version, gap, tally.messages, tally.bytes))


def run_all(scenario: Scenario, *, jobs: int | None = None, on_run: OnRun | None = None) -> list[Run]:
    """Return the runs of every strategy under every seed, in that order; see `run_each`."""
    work = [Work(scenario, entry, seed) for entry in scenario.strategies for seed in scenario.seeds]
    return list(run_each(work, jobs=jobs, on_run=on_run))


def run_each(work: Sequence[Work], *, jobs: int | None = None, on_run: OnRun | None = None) -> Iterator[Run]:
    """Yield the run of each piece of ``work``, in their order, several at a time in processes.

    Parameters
    ----------
    jobs : runs at a time; by default as many as there are cores.
    on_run : told of each run when it is there, and of the seconds it took by the clock on the wall.
    """
    workers = max(1, min(jobs or os.cpu_count() or 1, len(work)))
    others = set(multiprocessing.active_children())
    with (
        one_thread(),
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=die_quietly) as pool,
    ):
        try:
            for made, seconds in pool.map(_timed, work):
                if on_run is not None:
                    on_run(made, seconds)
                yield made
        except BaseException as error:
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ProcessFailed(
                    "a process of the simulation was killed: is there memory for fewer --jobs?"
                ) from None
            raise


def die_quietly() -> None:
    """Let an interrupted process end without a word: the one that started it has the last."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _timed(work: Work) -> tuple[Run, float]:
    configure_logging(level="error")
    began = time.perf_counter()
    return run(*work), time.perf_counter() - began


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the processes that are started meanwhile fit with one thread each."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
