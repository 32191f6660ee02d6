"""One federation through its faults: from the first service that starts to what is left in the end."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from aggregator.state import Progress
from aggregator.store.memory import MemoryStore
from broker import codec
from fedmq.chaos.history import History, Last
from fedmq.chaos.incidents import befall
from fedmq.chaos.life import STOP_SECONDS, Life
from fedmq.chaos.services import aggregator, downstream, participant
from fedmq.chaos.stage import Stage
from fedmq.chaos.world import DOWNSTREAM, Incident, World
from fedmq.simulation.clock import Stalled, VirtualLoop

#: Seconds, and heartbeats, after the last fault within which the model must be released.
RECOVERY_SECONDS, RECOVERY_BEATS = 300.0, 20
#: Seconds for which a released model must stay the last.
STABLE_SECONDS = 20.0
#: Seconds between two looks whether it is over.
LOOK_SECONDS = 1.0


def live_through(world: World) -> History:
    """Return what was seen of the federation of ``world``, on a clock of its own."""
    history = History()
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        federation = _Federation(Stage(world, history, now=runner.get_loop().time))
        try:
            runner.run(federation.run())
        except Stalled as error:
            history.last = federation.what_is_left(f"stalled: {error}")
    return history


class _Federation:
    """The lives of the services on a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._world = stage.world
        self._aggregators = {name: Life(name, stage, aggregator) for name in stage.world.aggregators}
        self._participants = {site.name: Life(site.name, stage, participant) for site in stage.world.sites}
        self._phase = "enrolling"
        self._progress_of: bytes | None = None

    async def run(self) -> None:
        """Live until it is over, one way or another."""
        stage, world, loop = self._stage, self._world, asyncio.get_running_loop()
        loop.set_exception_handler(self._went_wrong)
        stage.begin_chaos()
        subscriber = asyncio.create_task(downstream(stage), name=DOWNSTREAM)
        for life in self._aggregators.values():
            life.start()
        for site in world.sites:
            loop.call_later(site.joins_at, self._participants[site.name].start)
        for incident in world.incidents:
            loop.call_at(incident.at, self._befall, incident)
        await asyncio.sleep(world.faults.until)
        stage.end_chaos()
        await asyncio.sleep(max(0.0, world.begun_at - loop.time()))
        why = await self._released_in_time()
        waiting = self._waiting()
        for life in self._participants.values():
            await life.stop()
        await asyncio.sleep(1.0)
        for life in self._aggregators.values():
            await life.stop()
        subscriber.cancel()
        with suppress(asyncio.CancelledError):
            await subscriber
        await asyncio.sleep(STOP_SECONDS)
        stage.history.last = self.what_is_left(why, waiting)

    def what_is_left(self, why: str, waiting: dict[str, tuple[str, ...]] | None = None) -> Last:
        """Return what there is in the end."""
        try:
            tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        except RuntimeError:  # the loop does not run any more
            tasks = []
        stage, store = self._stage, MemoryStore(self._stage.memory)
        return Last(
            at=stage.now(),
            released=not why,
            why=why,
            ledger=tuple(store.ledger()),
            versions=store.versions(),
            waiting=self._waiting() if waiting is None else waiting,
            unsent={name: len(outbox.entries()) for name, outbox in stage.outboxes.items()},
            tasks=tuple(sorted(tasks)),
            tables={name: rows.which for name, rows in stage.rows.items()},
            incarnations={name: outbox.incarnation for name, outbox in stage.outboxes.items()},
        )

    def _went_wrong(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Note what nobody caught, of the services or of this simulation: such a run proves nothing."""
        self._stage.ended("nobody", context.get("exception") or RuntimeError(context["message"]))

    def _befall(self, incident: Incident) -> None:
        befall(self._stage, incident, self._participants.get(incident.who) or self._aggregators.get(incident.who))

    async def _released_in_time(self) -> str:
        """Wait for the release, and for it to be the last; return why it did not come, or nothing."""
        now = self._stage.now
        deadline = now() + RECOVERY_SECONDS + RECOVERY_BEATS * self._world.settings.heartbeat_seconds
        since: float | None = None
        while now() < deadline:
            if not self._is_released():
                since = None
            elif since is None:
                since = now()
            elif now() - since >= STABLE_SECONDS:
                return ""
            await asyncio.sleep(LOOK_SECONDS)
        self._say_what_is_waited_for()
        return f"not released {deadline - self._world.begun_at:g} s after the last fault: phase {self._phase}"

    def _is_released(self) -> bool:
        memory = self._stage.memory
        packed = memory.cells.get("progress")
        if packed is not self._progress_of:
            self._progress_of = packed
            self._phase = "enrolling" if packed is None else codec.unpack(Progress, packed).phase
        unconfirmed = memory.releases.keys() - memory.confirmed
        there = all(life.is_sound for life in (*self._participants.values(), *self._aggregators.values()))
        idle = there and all(life.service._state.in_flight is None for life in self._participants.values())  # noqa: SLF001 - what was settled, only the site itself can say
        return self._phase == "converged" and not unconfirmed and idle

    def _say_what_is_waited_for(self) -> None:
        """Note where the participants stand: for people who read the trace of a hang."""
        for life in self._participants.values():
            state = None if life.service is None else life.service._state  # noqa: SLF001 - nothing depends on it
            if state is None or not life.is_alive:
                self._stage.came(life.name, "is not there")
                continue
            standing = None if state.model is None else state.model.roster.get(life.name)
            has_plan = state.model is not None and state.plan_hash == state.model.plan_hash
            self._stage.came(
                life.name,
                f"is {state.activity} (number {state.in_flight} in flight, the model's plan "
                f"{'known' if has_plan else 'unknown'}); as far as it knows: {standing}",
            )

    def _waiting(self) -> dict[str, tuple[str, ...]]:
        queues = sorted(self._stage.broker.queues.items())
        return {name: tuple(message.message_id for message in queue.ready) for name, queue in queues}
