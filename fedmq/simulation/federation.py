"""One federation on a virtual clock: the services of production, from their first hello to the released model.

It differs from `fedmq.embedded` only in what is put into the services from outside: the loop's clock, blocking calls
that run in line, the transport. Only training takes time: the moments before it and the evaluation after it take none,
so that the clock of a trace is that of the training.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from aggregator.errors import NoFinalModel, TrainingFailed
from aggregator.events import Observe
from aggregator.settings import AggregatorSettings
from aggregator.state import State
from aggregator.store.memory import MemoryStore
from broker import codec
from broker.errors import RemoteMessageError
from broker.memory import MemoryBroker
from broker.messages import Evaluation, GlobalModel, ModelUpdate
from broker.topology import models_queue, presence_queue
from broker.transport import Delivery
from fedmq.errors import ours_in
from fedmq.services import aggregator_reporter, aggregator_service, participant_reporter, participant_service
from fedmq.simulation.clock import Stalled, VirtualLoop
from fedmq.simulation.delays import Labour, passes
from fedmq.simulation.faults import AGGREGATOR, Faults, Kill
from fedmq.simulation.network import Queueing, SimulatedTransport, Tally
from monitoring.http import Health
from participant.outbox import Outbox
from participant.service import ParticipantService
from participant.settings import ParticipantSettings
from participant.sources import Table
from participant.worker import ModelArrived, Work, step

#: How a run can end. `seen-enough` is the watcher's word, `horizon` that of the clock; `stalled` is a bug of ours.
Ending = Literal["released", "diverged", "seen-enough", "horizon", "stalled"]
#: Told of every step of the aggregator, at its time; True ends the run.
Watch = Callable[[float, State, Sequence[Observe], Tally], bool]
OnEnd = Callable[[BaseException | None], None]
InLine = Callable[..., Awaitable[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """Everything that a run depends on, besides what is watched of it."""

    settings: AggregatorSettings
    tables: Mapping[str, Table]
    labours: Mapping[str, Labour]
    faults: Faults
    horizon: float
    seed: int


def live_through(world: World, watch: Watch) -> Ending:
    """Run the federation of ``world`` to its end, on a clock of its own."""
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(_Federation(world, watch).run())
    except Stalled:
        return "stalled"


class _Life:
    """A service that can be killed at any moment, and is started again from what is durable."""

    def __init__(self, live: Callable[[], Coroutine[Any, Any, None]], ended: OnEnd) -> None:
        self._live = live
        self._ended = ended
        self._task: asyncio.Task[None] | None = None
        self._down: float | None = None
        self._again: asyncio.TimerHandle | None = None
        self.number = 0
        #: It dies with the next thing that it makes durable.
        self.doomed = False

    def start(self) -> None:
        """Begin another life."""
        self.number += 1
        self.doomed, self._down = False, None
        self._task = asyncio.get_running_loop().create_task(self._live())
        self._task.add_done_callback(self._done)

    def strike(self, kill: Kill) -> None:
        """Let it die as ``kill`` wants it."""
        self._down = kill.down
        if kill.when == "after-commit":
            self.doomed = True
        else:
            self.end()

    def end(self) -> None:
        """Die, at whatever point it is."""
        if self._task is not None:
            self._task.cancel()

    async def bury(self) -> None:
        """Let it die for good, and return when it is dead."""
        self._down = None
        if self._again is not None:
            self._again.cancel()
        self.end()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._ended(task.exception())
        elif self._down is not None:
            self._again = task.get_loop().call_later(self._down, self.start)


class _Federation:
    """The broker, what is durable, and the lives of the services."""

    def __init__(self, world: World, watch: Watch) -> None:
        self._world = world
        self._watch = watch
        self._tally = Tally()
        self._broker = MemoryBroker()
        self._lives: dict[str, _Life] = {}

    async def run(self) -> Ending:
        """Live until it is over, one way or another."""
        world, loop = self._world, asyncio.get_running_loop()
        self._over: asyncio.Future[Ending] = loop.create_future()
        with ExitStack() as stack:
            self._aggregator(stack)
            for name in world.tables:
                self._participant(name, stack)
            for kill in world.faults.kills:
                loop.call_at(kill.at, self._lives[kill.who].strike, kill)
            for outage in world.faults.outages:
                who = None if outage.who == "all" else outage.who
                loop.call_at(outage.at, self._broker.disconnect, who)
                loop.call_at(outage.at + outage.down, self._broker.reconnect, who)
            loop.call_at(world.horizon, self._end, "horizon")
            try:
                for life in self._lives.values():
                    life.start()
                return await self._over
            finally:
                for life in self._lives.values():
                    await life.bury()

    def _end(self, how: Ending) -> None:
        if not self._over.done():
            self._over.set_result(how)

    def _ended(self, error: BaseException | None) -> None:
        """Take note that a service has ended by itself: only the aggregator may, with its release."""
        if error is None:
            self._end("released")
        elif isinstance(ours_in(error), TrainingFailed | NoFinalModel):
            self._end("diverged")
        elif not self._over.done():
            self._over.set_exception(error)

    # --- the services --------------------------------------------------------------------------

    def _aggregator(self, stack: ExitStack) -> None:
        settings = self._world.settings
        store = stack.enter_context(closing(MemoryStore(keep_ledger=settings.keep_ledger)))
        reporter = aggregator_reporter(settings, CollectorRegistry(), Health(), on_step=self._stepped)

        async def live() -> None:
            async with self._transport(AGGREGATOR) as transport:
                service = aggregator_service(settings, transport, store, reporter)
                service.rng = Random(f"{self._world.seed}/{AGGREGATOR}")  # noqa: S311 - back-off is no secret
                service.in_thread = self._in_line(AGGREGATOR, durable=store.commit)
                await service.run()

        self._lives[AGGREGATOR] = _Life(live, self._ended)

    def _participant(self, name: str, stack: ExitStack) -> None:
        world = self._world
        settings = ParticipantSettings(
            federation=world.settings.federation,
            name=name,
            data=name,
            label="",
            aggregator_user=AGGREGATOR,
            heartbeat_seconds=world.settings.heartbeat_seconds,
        )
        outbox = stack.enter_context(closing(Outbox(":memory:", owner=name, incarnation=f"{name}-1")))
        reporter = participant_reporter(settings, CollectorRegistry(), Health())

        async def live() -> None:
            world.labours[name].forget()
            async with self._transport(name, lambda: service) as transport:
                service = participant_service(settings, world.tables[name], transport, outbox, reporter)
                service.rng = Random(f"{world.seed}/{name}")  # noqa: S311 - back-off is no secret
                service.in_thread = self._in_line(name, durable=outbox.put)
                await service.run()

        self._lives[name] = _Life(live, self._ended)

    def _in_line(self, name: str, durable: Callable[..., None]) -> InLine:
        """Return what runs blocking calls for a service; work takes its time, and a doomed life ends when durable."""
        life, labour = self._lives[name], self._world.labours.get(name)

        async def in_line(function: Callable[..., Any], *args: Any) -> Any:
            result = function(*args)
            if life.doomed and function == durable:
                life.end()
                await asyncio.Event().wait()  # it is dead: nothing returns to it
            if labour is not None and isinstance(result, ModelUpdate | Evaluation):
                n_passes = passes(args[0], result)
                if n_passes is not None:
                    await asyncio.sleep(labour.compute(n_passes))
            return result

        return in_line

    def _transport(self, user: str, service: Callable[[], ParticipantService] | None = None) -> SimulatedTransport:
        world, federation = self._world, self._world.settings.federation
        queueing = None
        if service is not None and world.labours[user].queues:
            queueing = Queueing(
                models_queue(federation, user), lambda delivery: _begins(service(), delivery), world.labours[user]
            )
        return SimulatedTransport(
            self._broker.transport(user),
            tally=self._tally,
            uncounted=presence_queue(federation),
            faults=world.faults,
            seed=f"{world.seed}/{user}/{self._lives[user].number}",
            queueing=queueing,
        )

    def _stepped(self, state: State, observed: Sequence[Observe]) -> None:
        if not self._over.done() and self._watch(asyncio.get_running_loop().time(), state, observed, self._tally):
            self._end("seen-enough")


def _begins(service: ParticipantService, delivery: Delivery) -> bool:
    """Whether the model in ``delivery`` would make ``service`` train; its state machine knows, and changes nothing."""
    try:
        message = codec.decode(delivery.body)
    except RemoteMessageError:
        return False
    if not isinstance(message, GlobalModel):
        return False
    _, actions = step(service._state, ModelArrived(message))  # noqa: SLF001 - a pure look ahead
    return any(isinstance(action, Work) and action.task == "train" for action in actions)
