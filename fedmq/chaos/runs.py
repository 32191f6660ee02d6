"""Seeds to results, several at a time in processes; the same seed gives the same result, wherever it runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, fields
from hashlib import sha256
from multiprocessing import get_context
from typing import Any

from fedmq.chaos.broken import broken
from fedmq.chaos.checker import NOTHING, Counts, Violation, check, count
from fedmq.chaos.federation import live_through
from fedmq.chaos.history import History
from fedmq.chaos.world import draw, quiet
from fedmq.errors import ProcessFailed
from fedmq.simulation.runs import die_quietly, one_thread
from monitoring.logs import configure_logging

#: Seeds that a process is given at a time.
CHUNK = 10


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a seed.

    Attributes
    ----------
    faults : how often each kind befell it.
    digest : of everything that was seen.
    virtual_seconds : how long it took on its own clock.
    """

    seed: int
    strategy: str
    violations: tuple[Violation, ...]
    counts: Counts
    faults: dict[str, int]
    digest: str
    virtual_seconds: float


@dataclass(slots=True)
class Totals:
    """What all runs came to together."""

    #: ``digest`` is of everything that was seen, in the order of the seeds.
    runs: int = 0
    numbers: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    strategies: Counter[str] = field(default_factory=Counter)
    broken_promises: Counter[str] = field(default_factory=Counter)
    failing: list[Result] = field(default_factory=list)
    digest: Any = field(default_factory=sha256)

    def add(self, result: Result) -> None:
        """Count ``result``."""
        self.runs += 1
        self.digest.update(result.digest.encode())
        self.strategies[result.strategy] += 1
        self.faults.update(result.faults)
        self.refused.update(result.counts.refused)
        for each in fields(result.counts):
            if each.name != "refused":
                self.numbers[each.name] += getattr(result.counts, each.name)
        self.numbers["hangs"] += any(violation.is_hang for violation in result.violations)
        self.numbers["unexpected"] += any(not violation.is_hang for violation in result.violations)
        self.broken_promises.update({violation.promise for violation in result.violations})
        if result.violations:
            self.failing.append(result)


def run_seed(seed: int, variant: str | None = None) -> tuple[Result, History]:
    """Return what comes of ``seed``, and what was seen; ``variant`` is one of `broken.VARIANTS`."""
    world = draw(seed)
    with broken(variant):
        history = live_through(world)
    twin = live_through(quiet(world)) if world.has_twin else None
    assert history.last is not None, "a history ends with what is left"
    result = Result(
        seed=seed,
        strategy=world.strategy,
        violations=tuple(check(world, history, twin)),
        counts=count(world, history),
        faults=dict(sorted(Counter(fault.kind for fault in history.faults()).items())),
        digest=history.digest(),
        virtual_seconds=history.last.at,
    )
    return result, history


def run_seeds(seeds: Sequence[int], *, variant: str | None = None, jobs: int | None = None) -> Iterator[Result]:
    """Yield the result of each of ``seeds``, in their order; ``jobs`` at a time, by default one on each core."""
    workers = max(1, min(jobs or os.cpu_count() or 1, len(seeds)))
    if workers == 1:
        yield from (_result(seed, variant) for seed in seeds)
        return
    with (
        one_thread(),
        ProcessPoolExecutor(workers, get_context("spawn"), initializer=die_quietly) as pool,
    ):
        try:
            yield from pool.map(_result, seeds, [variant] * len(seeds), chunksize=CHUNK)
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                raise ProcessFailed("a process of the runs was killed: is there memory for fewer --jobs?") from None
            raise


def _result(seed: int, variant: str | None) -> Result:
    configure_logging(level="error")
    try:
        return run_seed(seed, variant)[0]
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this seed, and the others go on
        ended = Violation("I8", f"it ended with {type(error).__name__}: {error}")
        return Result(seed, draw(seed).strategy, (ended,), NOTHING, {}, "", 0.0)
