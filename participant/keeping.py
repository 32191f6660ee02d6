"""What a participant does with a release, beside everything else: keep it, and make models of its own from it.

The released model is on the disk before it is acknowledged. The own models take longer, up to minutes: they are made
in a thread while heartbeats and all other work go on, from what is on the disk, so that who is killed meanwhile makes
them at its next start. A newer release ends the work on an older one. What fails here is told, and ends nothing else:
the federation needs the participant more than the participant needs its own model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from participant.errors import ReleaseError
from participant.own_rows import OwnRows
from participant.personal import Personal
from participant.released import Released, ReleaseFolder
from participant.report import Reporter
from participant.worker import WorkerState


class _NotWanted(Exception):
    """Nobody waits for what is being made: the service ends, or there is a newer release."""


@dataclass(slots=True)
class Keeping:
    """Keeps what is released.

    Attributes
    ----------
    folder : where; None keeps nothing.
    rows : what the participant has now, for models of its own.
    on_kept : called when a release that was announced is kept, with the own models that are wanted of it.
    """

    folder: ReleaseFolder | None
    federation: str
    rows: OwnRows
    reporter: Reporter
    on_kept: Callable[[], None]
    in_thread: Callable[..., Awaitable[Any]] = asyncio.to_thread
    _due: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _announced: bool = field(init=False, default=False)
    _newest: tuple[str, int, int] | None = field(init=False, default=None)
    _ending: bool = field(init=False, default=False)

    async def keep(self, state: WorkerState) -> None:
        """Keep the model of ``state`` if it is released and its plan known; to be awaited before it is acknowledged."""
        model, plan = state.model, state.plan
        if model is None or model.phase != "converged":
            return
        if self.folder is not None:
            if plan is None or model.plan_hash != state.plan_hash or len(model.weights) != plan.sizes.parameters:
                return  # the plan comes by a queue of its own, and may come later
            try:
                if await self.in_thread(self.folder.keep, plan, model):
                    self._newest = model.plan_hash, model.epoch, model.version
                    self.reporter.kept_release(model.version, self.folder.path)
            except ReleaseError as error:
                self.reporter.not_kept(error)
        self._announced = True

    def proceed(self) -> None:
        """Go on with what is announced, once it is acknowledged."""
        if self._announced:
            self._due.set()

    async def run(self) -> None:
        """Make the own models that are missing: of what was kept before this start, and of every release."""
        self._due.set()
        while True:
            await self._due.wait()
            self._due.clear()
            if self.folder is not None:
                await self._make(self.folder)
            if self._announced and not self._due.is_set():
                self.on_kept()

    async def _make(self, folder: ReleaseFolder) -> None:
        try:
            release = await self.in_thread(folder.unfinished, self.federation)
            if release is not None:
                found = await self.in_thread(self._personalise, folder, release)
                self.reporter.made_own_models(release.version, found.verdict, folder.path)
        except asyncio.CancelledError:
            self._ending = True  # a thread ends by itself or not at all
            raise
        except _NotWanted:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is: see the module
            self.reporter.not_kept(error)

    def _personalise(self, folder: ReleaseFolder, release: Released) -> Personal:
        prepared = self.rows.prepared(release.plan_hash)
        return folder.personalise(
            release, self.rows.table, prepared=prepared, interrupt=partial(self._look_up, release)
        )

    def _look_up(self, release: Released) -> None:
        # What was there at the start may be what is announced meanwhile.
        is_newest = self._newest in {None, (release.plan_hash, release.epoch, release.version)}
        if self._ending or not is_newest:
            raise _NotWanted
