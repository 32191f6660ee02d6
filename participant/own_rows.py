"""A participant's rows while it runs: what is computed of them, and how they are read anew when they change.

What is computed is of one table from beginning to end. Where rows are streamed, from a file that somebody writes anew
in the middle of a pass, a piece of work may fail: the rows are read again for it, a few times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from broker.messages import Evaluation, ModelUpdate
from participant.errors import DataError
from participant.report import Reporter
from participant.sources.table import Table
from participant.training import NOTHING, Memory, Prepared, perform, prepare
from participant.watched import Watched
from participant.worker import Work

#: How often rows that change under one piece of work are read anew for it.
MOST_READINGS = 3

InThread = Callable[..., Awaitable[Any]]


@dataclass(slots=True)
class OwnRows:
    """The rows that a participant has now.

    Attributes
    ----------
    table : as it was read last.
    salt : of the fingerprint, by which others know that rows are the same and nothing else of them.
    watched : where the rows come from, to notice when they change; None where they do not.
    threads : how many go over them at a time.
    plan_in_force : returns the hash of the plan that the participant works by.
    on_others : awaited when the rows are others than before.
    """

    table: Table
    salt: str
    reporter: Reporter
    plan_in_force: Callable[[], str]
    on_others: Callable[[], Awaitable[None]]
    watched: Watched | None = None
    threads: int = 1
    in_thread: InThread = asyncio.to_thread
    fingerprint: str = field(init=False, default="")
    _prepared: Prepared | None = field(init=False, default=None)
    _memory: Memory = field(init=False, default=NOTHING)
    _former_plan: str = field(init=False, default="")
    _in_use: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _reading: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    async def begin(self) -> None:
        """Take the fingerprint of the rows as they are."""
        self.fingerprint = await self._fingerprint_of(self.table)

    def prepared(self, plan_hash: str) -> Prepared | None:
        """Return them as they are under the plan of that hash, if they are at hand."""
        prepared = self._prepared
        return prepared if prepared is not None and prepared.plan_hash == plan_hash else None

    def forget_last(self) -> None:
        """Build upon nothing that was computed before: nobody else has it."""
        self._memory = NOTHING

    # --- when they change ----------------------------------------------------------------------

    async def watch(self) -> None:
        """Look now and then whether they have changed."""
        watched = self.watched
        if watched is None or watched.seconds == 0:
            return
        while True:
            await asyncio.sleep(watched.seconds)
            try:
                if await self.in_thread(watched.have_changed):
                    await self._read_anew(watched)
                else:
                    self.reporter.rows_stand()
            except DataError as error:
                # Whoever writes them may not be done; what we have read before is whole.
                self.reporter.rows_refused(error)

    async def _read_anew(self, watched: Watched) -> None:
        """Read them, and tell of them if they are others; raises `DataError`."""
        async with self._reading:  # what is read later is newer
            table = await self.in_thread(watched.read)
            fingerprint = await self._fingerprint_of(table)
            async with self._in_use:  # nothing is computed of both
                are_others = fingerprint != self.fingerprint
                # The same rows too: streamed ones are those of the file as it was when they were read.
                self.table, self.fingerprint = table, fingerprint
                self._prepared, self._memory = None, NOTHING
                self._former_plan = self.plan_in_force()
        self.reporter.rows_stand()
        if are_others:
            self.reporter.rows_changed(repr(table))
            await self.on_others()

    async def _fingerprint_of(self, table: Table) -> str:
        found: str = await self.in_thread(table.fingerprint, self.salt)
        return found

    # --- what is computed of them --------------------------------------------------------------

    async def compute(self, work: Work) -> ModelUpdate | Evaluation:
        """Return the answer to ``work``; raises `DataError` when there is none."""
        n_readings = 0
        while True:
            try:
                async with self._in_use:
                    message: ModelUpdate | Evaluation = await self.in_thread(self._compute, work)
                    return message
            except DataError as error:
                # Streamed rows that are being rewritten can be anything, or gone.
                if self.watched is None or self._prepared is None:
                    raise
                if n_readings == MOST_READINGS:
                    raise DataError(f"{1 + n_readings} passes over the rows failed in a row: {error}") from None
            # Where they are others, the plan will refuse this: that is how the aggregator learns that it is done.
            await self._mend(self.watched)
            n_readings += 1

    async def _mend(self, watched: Watched) -> None:
        """Read them anew; where they cannot be used, leave whoever writes them the time until the next look."""
        try:
            await self._read_anew(watched)
        except DataError as error:
            self.reporter.rows_refused(error)
            await asyncio.sleep(watched.seconds)

    def _compute(self, work: Work) -> ModelUpdate | Evaluation:
        if self._prepared is None or self._prepared.plan_hash != work.plan_hash:
            self._prepared, self._memory = None, NOTHING
            try:
                self._prepared = prepare(self.table, work.plan, work.plan_hash, threads=self.threads)
            except DataError:
                if work.plan_hash != self._former_plan:
                    raise
                # It is of the rows that we had: the aggregator has our hello, and bars us or makes another one.
                return _nothing(work)
        message, self._memory = perform(work, self._prepared, self._memory)
        return message


def _nothing(work: Work) -> ModelUpdate:
    """Return the answer to ``work`` of who has no rows for it."""
    return ModelUpdate(
        federation=work.plan.federation,
        participant=work.participant,
        incarnation=work.incarnation,
        sequence=work.sequence,
        kind="failed",
        base_version=work.model.version,
        plan_hash=work.plan_hash,
        n_samples=0.0,
        loss=0.0,
        fit_seconds=0.0,
        arrays={},
    )
