"""One federation through its faults: the lives of its services, who starts them again, and what was seen of it all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any, cast

from aggregator.report import Reporter as AggregatorReporter
from aggregator.state import Progress
from aggregator.store.memory import Memory, MemoryStore
from broker import codec
from broker.errors import NotDeclared, TransportUnavailable
from broker.messages import Evaluation, GlobalModel, ModelUpdate, ReleasedModel
from broker.retry import RECONNECT
from broker.topology import (
    MODELS,
    RELEASED,
    UPDATES,
    Binding,
    Exchange,
    Queue,
    Topology,
    models_queue,
    plans_queue,
    presence_queue,
    released_key,
    released_queue,
    updates_queue,
)
from broker.transport import Outgoing
from fedmq.chaos.disks import ChaosOutbox, ChaosStore, DiskFull, OutboxFull, digest
from fedmq.chaos.history import (
    Accepted,
    Announced,
    Came,
    Confirmed,
    Ended,
    Failed,
    History,
    Last,
    Lost,
    Offered,
    Released,
    Sent,
)
from fedmq.chaos.network import ChaosBroker, ChaosTransport, Conditions
from fedmq.chaos.world import AT_RELEASE, DOWNSTREAM, FEDERATION, RELEASE_COMMITTED, Incident, Site, World
from fedmq.errors import ours_in
from fedmq.services import aggregator_service, participant_service
from fedmq.simulation.clock import Stalled, VirtualLoop
from fedmq.simulation.faults import AGGREGATOR
from participant.report import Reporter as ParticipantReporter
from participant.settings import ParticipantSettings
from participant.sources import Reading, Table
from participant.watched import Watched

#: Seconds, and heartbeats, after the last fault within which the model must be released.
RECOVERY_SECONDS, RECOVERY_BEATS = 300.0, 20
#: Seconds for which a released model must stay the last.
STABLE_SECONDS = 20.0
#: Seconds between two looks whether it is over; and for stopping in order.
LOOK_SECONDS, STOP_SECONDS = 1.0, 60.0
#: Seconds between two looks at rows that may have changed.
WATCH_SECONDS = 1.0

#: A contribution's word in its routing key.
CONTRIBUTIONS = ("update", "evaluation")


def live_through(world: World) -> History:
    """Return what was seen of the federation of ``world``, on a clock of its own."""
    history = History()
    federation = _Federation(world, history)
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(federation.run())
    except Stalled as error:
        history.last = federation.what_is_left(f"stalled: {error}")
    return history


class _Silent:
    """A reporter that tells nobody anything."""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return _say_nothing


def _say_nothing(*_: Any, **__: Any) -> None:
    """Say nothing."""


class _Rows:
    """Rows that change when somebody says so."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.which = 0

    def signature(self) -> int:
        """Return what changes when they do."""
        return self.which

    def watched(self) -> Watched:
        """Return what notices when they change."""
        return Watched(cast("Reading", self), self.which, WATCH_SECONDS if len(self._site.tables) > 1 else 0.0)

    def index(self, table: Table) -> int:
        """Return which of its tables ``table`` is."""
        return next(which for which, each in enumerate(self._site.tables) if each is table)

    def table(self) -> Table:
        """Return them."""
        return self._site.tables[self.which]


class _Life:
    """A service that can die at any moment and is started again; ``transport`` and ``service`` are of its last life."""

    def __init__(self, name: str, federation: _Federation, live: Callable[[_Life], Coroutine[Any, Any, None]]) -> None:
        self.name = name
        self.number = 0
        self.is_alive = False
        self.transport: ChaosTransport
        self.service: Any = None
        self.frozen_until = 0.0
        self._federation = federation
        self._live = live
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._comes_back_after: float | None = None
        self._is_over = False
        self.rng = Random(f"{federation.world.seed}/life/{name}")  # noqa: S311 - chance

    def start(self) -> None:
        """Begin another life, unless there is one."""
        self._again = None
        if self._is_over or (self._task is not None and not self._task.done()):
            return
        self.number += 1
        self.is_alive, self.service, self._comes_back_after = True, None, None
        self._federation.came(self.name, f"starts ({self.number})")
        self._task = asyncio.get_running_loop().create_task(self._live(self), name=self.name)
        self._task.add_done_callback(self._done)

    def die(self, what: str, *, down: float | None = None, noticed_after: float = 0.0) -> None:
        """End at this very point: nothing that it still does reaches anybody."""
        if not self.is_alive or self._task is None:
            return
        self._federation.fault(self.name, what)
        self.is_alive = False
        self._comes_back_after = self.rng.choice([0.01, 1.0, 10.0]) * self.rng.random() if down is None else down
        if self.transport_is_there:
            self.transport.die(noticed_after=noticed_after)
        self._task.cancel()

    @property
    def is_sound(self) -> bool:
        """Whether it is alive, and connected as it believes to be."""
        return self.is_alive and self.transport_is_there and self.transport.is_sound

    @property
    def transport_is_there(self) -> bool:
        """Whether it has come so far as to have a transport."""
        return hasattr(self, "transport")

    def leave(self, down: float) -> None:
        """End in order, and come back later."""
        if self.is_alive and self.service is not None:
            self._comes_back_after = down
            self._federation.fault(self.name, "leaves")
            self.service.stop()

    async def stop(self) -> None:
        """End in order, for good."""
        self._is_over = True
        if self._again is not None:
            self._again.cancel()
        if self._task is None:
            return
        if self.service is not None:
            self.service.stop()
        done, _ = await asyncio.wait([self._task], timeout=STOP_SECONDS)
        if not done:
            self._federation.ended(self.name, TimeoutError("it does not stop in time"))
            self._task.cancel()
            await asyncio.wait([self._task])

    def _done(self, task: asyncio.Task[None]) -> None:
        was_alive, self.is_alive = self.is_alive, False
        down = self._comes_back_after
        if not task.cancelled():
            error = task.exception()
            if error is not None and was_alive:
                self._federation.ended(self.name, error)
                down = self.rng.uniform(0.5, 3.0)
            elif down is None and not self._is_over:
                self._federation.ended(self.name, RuntimeError("it ended by itself"))
                down = 1.0
        elif down is None and not self._is_over:
            self._federation.ended(self.name, RuntimeError("it was cancelled by itself"))
            down = 1.0
        if not self._is_over and down is not None:
            self._again = task.get_loop().call_later(self._federation.not_after_faults(down), self.start)

    def reached(self, point: str) -> None:
        """Maybe die here."""
        if not self.is_alive:
            raise asyncio.CancelledError
        world = self._federation.world
        probability = world.faults.points.get(point, 0.0)
        # A release mostly comes after the faults: one death at it is among them all the same.
        struck = self._federation.struck
        is_exposed = self._federation.is_chaotic or (point in AT_RELEASE and point not in struck)
        if is_exposed and probability and self.rng.random() < probability:
            struck.add(point)
            self.die(f"kill at {point}", noticed_after=self.rng.choice([0.0, 0.0, 2.0]))
            raise asyncio.CancelledError

    async def thawed(self) -> None:
        """Return when it is not frozen; a frozen process does nothing."""
        now = asyncio.get_running_loop().time()
        if now < self.frozen_until:
            await asyncio.sleep(self.frozen_until - now)
        if not self.is_alive:
            raise asyncio.CancelledError


class _Federation:
    """The broker, what is durable, and the lives of the services."""

    def __init__(self, world: World, history: History) -> None:
        self.world = world
        self.history = history
        self.is_chaotic = False
        #: Places at which somebody has died.
        self.struck: set[str] = set()
        self._now: Callable[[], float] = lambda: 0.0
        self._memory = Memory()
        self._outboxes: dict[str, ChaosOutbox] = {}
        self._incarnations: dict[str, int] = {}
        self._rows = {site.name: _Rows(site) for site in world.sites}
        self._aggregators: dict[str, _Life] = {}
        self._participants: dict[str, _Life] = {}
        self._full: set[str] = set()
        self._phase = "enrolling"
        self._progress_of: bytes | None = None
        self._changed_at = 0.0

    # --- what is seen --------------------------------------------------------------------------

    def fault(self, who: str, kind: str, detail: str = "") -> None:
        """Note that something goes wrong."""
        self.history.add(Failed(self._now(), who, kind, detail))

    def came(self, who: str, what: str) -> None:
        """Note that something is there."""
        self.history.add(Came(self._now(), who, what))

    def ended(self, who: str, error: BaseException) -> None:
        """Note that a service has ended with ``error``."""
        said = ours_in(error) or error
        is_ours = isinstance(said, DiskFull | OutboxFull) or (
            isinstance(said, TransportUnavailable | NotDeclared) and self._is_starting_up(said)
        )
        text = f"{type(said).__name__}: {said}"
        self.history.add(Ended(self._now(), who, text, is_ours))

    def _is_starting_up(self, _: BaseException) -> bool:
        """A service that has no connection while it starts says so and ends; its supervisor starts it again."""
        return True

    def not_after_faults(self, seconds: float) -> float:
        """Return ``seconds``, or less where the faults are over before."""
        return min(seconds, max(0.0, self.world.faults.until - self._now()) + 1.0)

    def _arrived(self, message: Outgoing, who: str) -> None:
        if message.exchange == MODELS and message.routing_key.split(".")[1] == "model":
            model = codec.decode(message.body)
            assert isinstance(model, GlobalModel), "that is what the key is for"
            self.history.add(
                Announced(self._now(), who, model.epoch, model.version, model.bulletin, digest(model.weights.tobytes()))
            )

        elif message.exchange == RELEASED:
            version = int(message.message_id.rpartition(":")[2])
            self.history.add(Offered(self._now(), who, version, digest(message.body)))

    def _lost(self, message_id: str) -> None:
        self.history.add(Lost(self._now(), "broker", message_id))

    # --- the course of things ------------------------------------------------------------------

    async def run(self) -> None:
        """Live until it is over, one way or another."""
        world, loop = self.world, asyncio.get_running_loop()
        self._now = loop.time
        self._conditions = Conditions()
        self._conditions.on_fault = self.fault
        self.broker = ChaosBroker(on_arrival=self._arrived, on_loss=self._lost, conditions=self._conditions)
        for name in world.aggregators:
            self._aggregators[name] = _Life(name, self, self._aggregator)
        for site in world.sites:
            self._new_outbox(site.name)
            self._participants[site.name] = _Life(site.name, self, self._participant)
        self._begin_chaos()
        downstream = asyncio.create_task(self._downstream(), name=DOWNSTREAM)
        for life in self._aggregators.values():
            life.start()
        for site in world.sites:
            loop.call_later(site.joins_at, self._participants[site.name].start)
        for incident in world.incidents:
            loop.call_at(incident.at, self._happen, incident)
        await asyncio.sleep(world.faults.until)
        self._end_chaos()
        await asyncio.sleep(max(0.0, world.begun_at - loop.time()))
        why = await self._released_in_time()
        waiting = self._waiting()
        for life in self._participants.values():
            await life.stop()
        await asyncio.sleep(1.0)
        for life in self._aggregators.values():
            await life.stop()
        downstream.cancel()
        await asyncio.gather(downstream, return_exceptions=True)
        await asyncio.sleep(STOP_SECONDS)
        self.history.last = self.what_is_left(why, waiting)

    def _begin_chaos(self) -> None:
        faults = self.world.faults
        if faults.until:
            self.is_chaotic = True
            self._conditions.chances = faults.chances
            self._conditions.latency, self._conditions.delay = faults.latency, faults.delay

    def _end_chaos(self) -> None:
        self.is_chaotic = False
        self._conditions.chances = {}
        self._conditions.latency = self._conditions.delay = 0.0
        self._full.clear()
        for outbox in self._outboxes.values():
            outbox.is_full = False
        if self.world.faults.until:
            self.came("everything", "is in order again")

    async def _released_in_time(self) -> str:
        """Wait for the release, and for it to be the last; return why it did not come, or nothing."""
        beat = self.world.settings.heartbeat_seconds
        deadline = self._now() + RECOVERY_SECONDS + RECOVERY_BEATS * beat
        since: float | None = None
        while self._now() < deadline:
            if not self._is_released():
                since = None
            elif since is None:
                since = self._now()
            elif self._now() - since >= STABLE_SECONDS:
                return ""
            await asyncio.sleep(LOOK_SECONDS)
        self._say_what_is_waited_for()
        return f"not released {deadline - self.world.begun_at:g} s after the last fault: phase {self._phase}"

    def _say_what_is_waited_for(self) -> None:
        """Note where the participants stand: for people who read the trace of a hang."""
        for life in self._participants.values():
            state = None if life.service is None else life.service._state  # noqa: SLF001 - nothing depends on it
            if state is None or not life.is_alive:
                self.came(life.name, "is not there")
                continue
            standing = None if state.model is None else state.model.roster.get(life.name)
            has_plan = state.model is not None and state.plan_hash == state.model.plan_hash
            self.came(
                life.name,
                f"is {state.activity} (number {state.in_flight} in flight, the model's plan "
                f"{'known' if has_plan else 'unknown'}); as far as it knows: {standing}",
            )

    def _is_released(self) -> bool:
        packed = self._memory.cells.get("progress")
        if packed is not self._progress_of:
            self._progress_of = packed
            self._phase = "enrolling" if packed is None else codec.unpack(Progress, packed).phase
        unconfirmed = self._memory.releases.keys() - self._memory.confirmed
        there = all(life.is_sound for life in (*self._participants.values(), *self._aggregators.values()))
        idle = there and all(life.service._state.in_flight is None for life in self._participants.values())  # noqa: SLF001 - what was settled, only the site itself can say
        return self._phase == "converged" and not unconfirmed and idle

    def _waiting(self) -> dict[str, tuple[str, ...]]:
        return {name: tuple(m.message_id for m in queue.ready) for name, queue in sorted(self.broker.queues.items())}

    def what_is_left(self, why: str, waiting: dict[str, tuple[str, ...]] | None = None) -> Last:
        """Return what there is in the end."""
        try:
            tasks = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        except RuntimeError:  # the loop is gone
            tasks = []
        store = MemoryStore(self._memory)
        return Last(
            at=self._now(),
            released=not why,
            why=why,
            ledger=tuple(store.ledger()),
            versions=store.versions(),
            waiting=self._waiting() if waiting is None else waiting,
            unsent={name: len(outbox.entries()) for name, outbox in self._outboxes.items()},
            tasks=tuple(sorted(tasks)),
            tables={name: rows.which for name, rows in self._rows.items()},
            incarnations={name: outbox.incarnation for name, outbox in self._outboxes.items()},
        )

    # --- what goes wrong -----------------------------------------------------------------------

    def _happen(self, incident: Incident) -> None:
        who = incident.who
        if incident.kind not in {"kill", "host-lost", "leaves", "outbox-lost"}:
            self.fault(who, incident.kind, f"for {incident.seconds:.2f} s")
        now = self._now()
        ends_at = max(now, min(now + incident.seconds, self.world.faults.until))
        life = self._participants.get(who) or self._aggregators.get(who)
        self._befalls_broker(incident, ends_at)
        self._befalls_disk(incident, ends_at)
        if life is not None:
            self._befalls_service(incident, life, ends_at)

    def _befalls_broker(self, incident: Incident, ends_at: float) -> None:
        loop, broker = asyncio.get_running_loop(), self.broker
        match incident.kind:
            case "cut":
                broker.cut(incident.who)
                loop.call_at(ends_at, broker.heal, incident.who)
            case "cut-all" | "broker-restarted" | "broker-disk-lost":
                broker.cut(None)
                if incident.kind != "cut-all":
                    broker.forget(disk=incident.kind == "broker-disk-lost")
                loop.call_at(ends_at, broker.heal, None)
            case "publishers-blocked":
                broker.block()
                loop.call_at(ends_at, broker.unblock)
            case "queue-deleted":
                broker.delete(_queue(incident.who))
            case "consumer-cancelled":
                broker.cancel(_queue(incident.who))
            case _:
                pass

    def _befalls_disk(self, incident: Incident, ends_at: float) -> None:
        loop, who = asyncio.get_running_loop(), incident.who
        match incident.kind:
            case "other-rows":
                self._rows[who].which = 1
            case "store-full":
                self._full.add(who)
                loop.call_at(ends_at, self._full.discard, who)
            case "outbox-full":
                outbox = self._outboxes[who]
                outbox.is_full = True
                loop.call_at(ends_at, setattr, outbox, "is_full", False)
            case _:
                pass

    def _befalls_service(self, incident: Incident, life: _Life, ends_at: float) -> None:
        who, seconds, uniform = incident.who, incident.seconds, life.rng.uniform
        match incident.kind:
            case "kill":
                life.die("kill", down=seconds)
            case "host-lost":
                life.die("host-lost", down=seconds, noticed_after=uniform(0.0, 20.0))
            case "leaves":
                life.leave(seconds)
            case "half-open":
                self.broker.half_open(who, client_after=uniform(0.0, 30.0), broker_after=uniform(0.0, 30.0))
            case "frozen":
                life.frozen_until = ends_at
                self.broker.half_open(who, client_after=ends_at - self._now(), broker_after=uniform(0.0, seconds))
            case "outbox-lost":
                life.die("outbox-lost", down=seconds)
                self._new_outbox(who)
            case _:
                pass

    def _new_outbox(self, name: str) -> None:
        number = self._incarnations[name] = self._incarnations.get(name, 0) + 1
        self._outboxes[name] = ChaosOutbox(name, f"{name}-{number}", self.history, now=self._now)

    # --- the services --------------------------------------------------------------------------

    async def _aggregator(self, life: _Life) -> None:
        name = life.name
        store = ChaosStore(
            MemoryStore(self._memory), name, self.history, now=self._now, is_full=lambda: name in self._full
        )
        life.transport = transport = ChaosTransport(self.broker, AGGREGATOR, name, self._rng(life, "network"))
        async with transport:
            service = aggregator_service(
                self.world.settings, transport, cast("Any", store), cast("AggregatorReporter", _Silent())
            )
            service.rng = self._rng(life, "service")
            service.in_thread = self._in_line(life)
            service.reached = lambda point: life.reached(
                RELEASE_COMMITTED if point == "committed" and store.has_released else point
            )
            life.service = service
            await service.run()

    async def _participant(self, life: _Life) -> None:
        name, rows, outbox = life.name, self._rows[life.name], self._outboxes[life.name]
        settings = ParticipantSettings(
            federation=FEDERATION,
            name=name,
            data=name,
            label="",
            aggregator_user=AGGREGATOR,
            heartbeat_seconds=self.world.settings.heartbeat_seconds,
        )
        life.transport = transport = ChaosTransport(
            self.broker,
            name,
            name,
            self._rng(life, "network"),
            on_sent=lambda message: self._sent(name, message),
            on_confirmed=lambda message: self._confirmed(name, message),
        )
        accepted: list[tuple[int, int]] = []

        def reached(point: str) -> None:
            if point == "model-acknowledged":
                model = service._state.model  # noqa: SLF001 - what it goes by shows in what it computes later
                if model is not None and accepted[-1:] != [(model.epoch, model.bulletin)]:
                    accepted.append((model.epoch, model.bulletin))
                    seen = digest(model.weights.tobytes())
                    self.history.add(
                        Accepted(self._now(), name, life.number, model.epoch, model.version, model.bulletin, seen)
                    )
            life.reached(point)

        async with transport:
            service = participant_service(
                settings,
                rows.table(),
                transport,
                outbox,
                cast("ParticipantReporter", _Silent()),
                watched=rows.watched(),
                reached=reached,
            )
            service.rng = self._rng(life, "service")
            service.in_thread = self._in_line(life)
            life.service = service
            await service.run()

    def _rng(self, life: _Life, what: str) -> Random:
        return Random(f"{self.world.seed}/{what}/{life.name}/{life.number}")  # noqa: S311 - chance

    def _in_line(self, life: _Life) -> Callable[..., Awaitable[Any]]:
        """Return what runs blocking calls for a life: with the time they take, and maybe the last that it does."""
        conditions, rng, name = self._conditions, self._rng(life, "disk"), life.name
        fit_seconds = next((site.fit_seconds for site in self.world.sites if site.name == name), 0.0)
        outbox = self._outboxes.get(name)
        deaths = {"commit": "commit", "put": "outbox"}

        async def in_line(function: Callable[..., Any], *args: Any) -> Any:
            await life.thawed()
            disk = deaths.get(function.__name__, "")
            slow = conditions.strikes(f"{disk}-slow", rng, name) if disk else False  # type: ignore[arg-type]
            if slow and rng.random() < 0.5:  # noqa: PLR2004 - before or after
                slow = False
                await self._take_long(rng)
            await life.thawed()
            self._die_at(life, f"death-before-{disk}", rng)
            if outbox is not None and function.__name__ == "_compute":
                outbox.table = self._rows[name].index(life.service.table)
            result = function(*args)
            self._die_at(life, f"death-after-{disk}", rng)
            if slow:
                await self._take_long(rng)
            if isinstance(result, ModelUpdate | Evaluation) and fit_seconds:
                await asyncio.sleep(fit_seconds * rng.uniform(0.5, 1.5))
            await life.thawed()
            return result

        return in_line

    async def _take_long(self, rng: Random) -> None:
        """Be a disk that takes milliseconds to a minute, though not beyond the faults."""
        await asyncio.sleep(self.not_after_faults(rng.choice([0.1, 5.0, 60.0]) * rng.random()))

    def _die_at(self, life: _Life, chance: Any, rng: Random) -> None:
        probability = self._conditions.chances.get(chance, 0.0)
        if probability and rng.random() < probability:
            life.die(chance)
            raise asyncio.CancelledError

    def _sent(self, who: str, message: Outgoing) -> None:
        if message.exchange == UPDATES and message.routing_key.split(".")[1] in CONTRIBUTIONS:
            self.history.add(Sent(self._now(), who, message.message_id, digest(message.body)))

    def _confirmed(self, who: str, message: Outgoing) -> None:
        if message.exchange == UPDATES and message.routing_key.split(".")[1] in CONTRIBUTIONS:
            self.history.add(Confirmed(self._now(), who, message.message_id))

    async def _downstream(self) -> None:
        """Receive releases as a downstream system does: by a queue of its own."""
        rng = Random(f"{self.world.seed}/{DOWNSTREAM}")  # noqa: S311 - chance
        queue = Queue("downstream", bindings=(Binding(RELEASED, released_key(FEDERATION)),))
        topology = Topology(exchanges=(Exchange(RELEASED, passive=True),), queues=(queue,))
        async with ChaosTransport(self.broker, DOWNSTREAM, DOWNSTREAM, rng) as transport:
            attempt = 0
            while True:
                try:
                    await transport.declare(topology)
                    consumer = await transport.consume(queue.name, prefetch=10)
                    break
                except (NotDeclared, TransportUnavailable):
                    attempt += 1
                    await asyncio.sleep(RECONNECT.seconds(attempt, rng))
            while True:
                delivery = await consumer.take()
                model = codec.decode(delivery.body)
                assert isinstance(model, ReleasedModel), "that is what the exchange is for"
                self.history.add(Released(self._now(), DOWNSTREAM, model.version, delivery.body))
                await delivery.ack()


def _queue(who: str) -> str:
    kind, _, name = who.partition(".")
    names = {
        "updates": updates_queue(FEDERATION),
        "presence": presence_queue(FEDERATION),
        "released": released_queue(FEDERATION),
        "models": models_queue(FEDERATION, name),
        "plans": plans_queue(FEDERATION, name),
    }
    return names[kind]
