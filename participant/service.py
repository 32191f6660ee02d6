"""The participant as a service: plans and models in, contributions out, heartbeats all the while. It decides nothing.

Five things go on side by side: plans are taken, models are taken, one piece of work is done, what is in the outbox is
sent, and now and then `participant.own_rows` looks whether our rows are still the same. While there is work no model is
taken: its queue keeps just the newest, which is the one the next work starts from, and nothing is transferred that
would be skipped.

A model is acknowledged before the work on it begins and is not kept here: after a crash the answer to our
hello brings one that is at least as new. What we computed is kept, before it is sent.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeVar

from broker import codec
from broker.errors import ForgedMessage, MalformedMessage, NotDeclared, RemoteMessageError, TransportError
from broker.failpoints import Reached, nothing
from broker.messages import Evaluation, GlobalModel, Goodbye, Heartbeat, Hello, ModelUpdate, Plan
from broker.retry import RESEND, publish_until_confirmed, unless, when_connected
from broker.topology import UPDATES, models_queue, participant_topology, plans_queue, routing_key
from broker.transport import Consumer, Delivery, Outgoing, Transport
from participant.keeping import Keeping
from participant.outbox import Entry, Outbox
from participant.own_rows import InThread, OwnRows
from participant.released import ReleaseFolder
from participant.report import Reporter
from participant.sources.table import Table
from participant.watched import Watched
from participant.worker import Event, Finished, ModelArrived, PlanArrived, Settle, Work, WorkerState, step

T = TypeVar("T")
#: Heartbeats without a model that knows us as we are, and its plan, after which hello is said again.
UNANSWERED_BEATS = 3
#: Heartbeats after which a contribution that was confirmed and is not settled is sent again; twice as many each time.
UNSETTLED_BEATS = 4


@dataclass(slots=True)
class ParticipantService:
    """One site's participant.

    Attributes
    ----------
    transport : entered already.
    outbox : opened already; closed by whoever opened it.
    aggregator_user : the broker user that plans and models must come from.
    least_fit_seconds, slowdown : make a local fit take at least so long, times so much: for trials of stragglers.
    shutdown_grace_seconds : how long the work in hand and its sending may take once it is asked to stop.
    queue_expiry_seconds : for trials: our queues are removed when nobody has used them for so long.
    releases : the folder where each released model is kept, and models of our own; None keeps nothing.
    exit_when_released : end when the aggregator has released the model and it is kept, as a training command wants it.
    min_cell : training rows that have a level before the others are told of it.
    threads : how many go over our rows at a time.
    watched : where our rows come from, to notice when they change; None where they do not.
    reached : told of the places of `broker.failpoints` as they are come by.
    """

    federation: str
    name: str
    table: Table
    transport: Transport
    outbox: Outbox
    reporter: Reporter
    aggregator_user: str = "aggregator"
    heartbeat_seconds: float = 10.0
    least_fit_seconds: float = 0.0
    slowdown: float = 1.0
    shutdown_grace_seconds: float = 10.0
    queue_expiry_seconds: float | None = None
    releases: ReleaseFolder | None = None
    exit_when_released: bool = False
    min_cell: int = 5
    threads: int = 1
    watched: Watched | None = None
    rng: Random = field(default_factory=Random)
    in_thread: InThread = asyncio.to_thread
    reached: Reached = nothing
    _state: WorkerState = field(init=False)
    _rows: OwnRows = field(init=False)
    _models: Consumer = field(init=False)
    _work: asyncio.Queue[Work] = field(init=False, default_factory=asyncio.Queue)
    _unsent: asyncio.Queue[tuple[Entry, bool]] = field(init=False, default_factory=asyncio.Queue)
    _sending: bool = field(init=False, default=False)
    _settled: int = field(init=False, default=0)
    _confirmed: int = field(init=False, default=0)
    _greeting: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _told: str = field(init=False, default="")
    _keeping: Keeping = field(init=False)
    _stop: asyncio.Event = field(init=False, default_factory=asyncio.Event)

    @property
    def rows(self) -> Table:
        """The rows as they were read last, while it runs; ``table`` is what it began with."""
        return self._rows.table

    def stop(self) -> None:
        """Ask the service to end in order; `run` returns soon after."""
        self._stop.set()

    async def run(self) -> None:
        """Serve until stopped; raises `ParticipantError` or `TransportError` for what it cannot mend by itself."""
        entries = await self.in_thread(self.outbox.entries)
        self._rows = OwnRows(
            self.table,
            self.outbox.salt,
            self.reporter,
            plan_in_force=lambda: self._state.plan_hash,
            on_others=self._say_hello,
            watched=self.watched,
            threads=self.threads,
            in_thread=self.in_thread,
        )
        await self._rows.begin()
        self._state = WorkerState(
            participant=self.name,
            incarnation=self.outbox.incarnation,
            sequence=self.outbox.last_sequence,
            in_flight=entries[-1].sequence if entries else None,
        )
        self._keeping = Keeping(
            self.releases,
            self.federation,
            self._rows,
            self.reporter,
            on_kept=self._release_is_kept,
            in_thread=self.in_thread,
        )
        subscribed = await unless(self._stop, self._subscribed())
        if subscribed is None:
            return
        plans, self._models = subscribed
        schema = self.table.schema
        self.reporter.started(repr(self.table), self.federation, None if schema is None else codec.schema_hash(schema))
        self.reporter.stands(self._state)
        async with asyncio.TaskGroup() as tasks:
            takers = [
                tasks.create_task(self._introduce(), name="introduce"),
                tasks.create_task(self._take_plans(plans), name="plans"),
                tasks.create_task(self._take_models(), name="models"),
                tasks.create_task(self._beat(), name="heartbeat"),
                tasks.create_task(self._keeping.run(), name="releases"),
                tasks.create_task(self._rows.watch(), name="rows"),
            ]
            makers = [
                tasks.create_task(self._do_work(), name="work"),
                tasks.create_task(self._send_outbox(), name="outbox"),
            ]
            await self._stop.wait()
            for task in takers:
                task.cancel()
            await self._leave()
            for task in makers:
                task.cancel()
            await plans.close()
            await self._models.close()
        self.reporter.stopped()

    async def _subscribed(self) -> tuple[Consumer, Consumer]:
        """Return the consumers of our plans and models, as soon as the aggregator's exchanges are there."""
        attempt = 0
        while True:
            try:
                return await when_connected(self.transport, self._subscribe, rng=self.rng)
            except NotDeclared as error:
                attempt += 1
                seconds = RESEND.seconds(attempt, self.rng)
                self.reporter.waits_for_aggregator(error, seconds)
                await asyncio.sleep(seconds)

    async def _subscribe(self) -> tuple[Consumer, Consumer]:
        await self.transport.declare(
            participant_topology(self.federation, self.name, expires_seconds=self.queue_expiry_seconds)
        )
        plans = await self.transport.consume(plans_queue(self.federation, self.name), prefetch=1)
        try:
            return plans, await self.transport.consume(models_queue(self.federation, self.name), prefetch=1)
        except TransportError:
            await plans.close()
            raise

    async def _stop_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    async def _leave(self) -> None:
        """Finish the work in hand and its sending, within the grace; then say goodbye."""
        try:
            async with asyncio.timeout(self.shutdown_grace_seconds):
                await self._work.join()
                await self._unsent.join()
                await self.in_thread(self.outbox.settle, self._settled)
                await self.transport.publish(
                    self._outgoing("goodbye", Goodbye(self.federation, self.name, self._state.incarnation), "goodbye")
                )
        except (TimeoutError, TransportError) as error:
            # Nothing is lost: the outbox is sent at the next start, and who is silent is not waited for.
            self.reporter.left_without_goodbye(error)

    # --- what comes in -------------------------------------------------------------------------

    async def _introduce(self) -> None:
        """Say hello on each connection, and send again what no model has settled: the broker may have lost it."""
        async for _ in self.transport.connections():
            await self._say_hello()
            await self._send_again()

    async def _send_again(self) -> None:
        if self._sending or not self._unsent.empty():
            return  # it goes out on the connection that there is: on a bad line copies would only pile up
        for entry in await self.in_thread(self.outbox.entries):
            self._unsent.put_nowait((entry, True))

    async def _say_hello(self) -> None:
        async with self._greeting:  # one that waits for its confirmation must not follow one of newer rows
            message = self._outgoing("hello", self._hello(), f"hello:{self.rng.getrandbits(64):016x}")
            self._told = codec.hello_digest(message.body)
            await self._publish(message)

    def _hello(self) -> Hello:
        table = self._rows.table
        return Hello(
            federation=self.federation,
            participant=self.name,
            incarnation=self._state.incarnation,
            features=table.features,
            n_rows=table.n_train,
            n_test_rows=table.n_test,
            classes=table.classes,
            n_samples=table.weight,
            fingerprint=self._rows.fingerprint,
            feature_schema=table.schema,
            levels=table.told_levels(self.min_cell),
        )

    async def _take_plans(self, plans: Consumer) -> None:
        while True:
            delivery = await plans.take()
            message = await self._message(delivery, "plan", Plan)
            if message is not None:
                await self._advance(PlanArrived(message))
                await self._keeping.keep(self._state)  # the release may have been here before its plan
                await delivery.ack()
                self._keeping.proceed()

    async def _take_models(self) -> None:
        while True:
            delivery = await self._models.take()
            message = await self._message(delivery, "model", GlobalModel)
            if message is None:
                continue
            self.reporter.took_model(message.version)
            self.reached("model-taken")
            # Before the acknowledgement: it would let the next model come while we work.
            await self._advance(ModelArrived(message))
            await self._keeping.keep(self._state)
            await delivery.ack()
            self.reached("model-acknowledged")
            self._keeping.proceed()

    def _release_is_kept(self) -> None:
        if self.exit_when_released:
            self.stop()

    async def _message(self, delivery: Delivery, kind: str, expected: type[T]) -> T | None:
        """Return the message in ``delivery``, or None after it was rejected."""
        self.reporter.took(kind, len(delivery.body))
        try:
            return self._decoded(delivery, expected)
        except RemoteMessageError as error:
            self.reporter.refused(error.reason, str(error))
            await delivery.reject()
            return None

    def _decoded(self, delivery: Delivery, expected: type[T]) -> T:
        if delivery.user_id != self.aggregator_user:
            raise ForgedMessage("it does not bear the aggregator's broker user")
        message = codec.decode(delivery.body)  # lengths are held against the plan by the worker, once it has it
        if not isinstance(message, expected):
            raise MalformedMessage(f"a {type(message).__name__} came where a {expected.__name__} belongs")
        if getattr(message, "federation", None) != self.federation:
            raise MalformedMessage("it belongs to another federation")
        return message

    async def _advance(self, event: Event) -> None:
        self._state, actions = step(self._state, event)
        self.reporter.stands(self._state)
        for action in actions:
            self.reporter.decided(action)
            if isinstance(action, Work):
                await self._models.pause()
                self._work.put_nowait(action)
            elif isinstance(action, Settle):
                # Forgotten in the file with the next one that is put there, or in the end: a commit of its own
                # would cost as much as the contribution did, and one that is sent again is known.
                self._settled = action.sequence
                if action.refusal:  # nobody has what the next contribution would build on
                    self._rows.forget_last()
                self.reporter.outbox(0)

    # --- work ----------------------------------------------------------------------------------

    async def _do_work(self) -> None:
        while True:
            work = await self._work.get()
            entry = await self._result(work)
            self.reached("computed")
            await self.in_thread(self.outbox.put, entry)
            self.reached("stored")
            self._unsent.put_nowait((entry, False))
            self.reporter.outbox(1)
            await self._advance(Finished())
            if not self._state.working:
                await self._models.resume()
            self._work.task_done()

    async def _result(self, work: Work) -> Entry:
        """Compute in a thread, so that heartbeats go on."""
        began = self._now()
        message = await self._rows.compute(work)
        if isinstance(message, ModelUpdate):
            if work.task == "train":
                await self._dawdle(self._now() - began)
            seconds = self._now() - began
            message = replace(message, fit_seconds=seconds)
            if message.kind == "failed":
                if message.n_samples:
                    self.reporter.failed(work.task, work.model.version)
            else:
                self.reporter.worked(work.task, seconds)
        kind = "evaluation" if isinstance(message, Evaluation) else "update"
        return Entry(work.sequence, kind, codec.encode(replace(message, epoch=work.model.epoch)))

    async def _dawdle(self, seconds: float) -> None:
        """Be as slow as the trial wants it, or until asked to stop."""
        wanted = max(seconds, self.least_fit_seconds) * self.slowdown
        if wanted > seconds:
            await self._stop_within(wanted - seconds)

    # --- what goes out -------------------------------------------------------------------------

    async def _send_outbox(self) -> None:
        while True:
            entry, again = await self._unsent.get()
            self._sending = True
            # Settled while it waited: the aggregator has it, or never will want it.
            if not again or self._state.in_flight == entry.sequence:
                message_id = f"{self.name}:{self._state.incarnation}:{entry.sequence}"
                await self._publish(self._addressed(entry.kind, entry.body, message_id), again=again)
                self.reached("confirmed")
                self._confirmed = entry.sequence
            self._sending = False
            self._unsent.task_done()

    async def _beat(self) -> None:
        unanswered, unsettled, patience = 0, 0, UNSETTLED_BEATS
        while True:
            unanswered = 0 if self._state.is_known_by(self._told) else unanswered + 1
            if unanswered > UNANSWERED_BEATS:
                self.reporter.no_model_yet()
                await self._say_hello()
                unanswered = 0
            # The broker may have lost what it confirmed, and we are none the wiser: a queue can be deleted.
            if self._confirmed != self._state.in_flight:
                unsettled, patience = 0, UNSETTLED_BEATS
            elif unsettled == patience:
                await self._send_again()
                unsettled, patience = 0, 2 * patience
            else:
                unsettled += 1
            heartbeat = Heartbeat(
                self.federation,
                self.name,
                self._state.incarnation,
                self._state.activity,
                self._state.bulletin,
                epoch=self._state.epoch,
            )
            message = replace(
                self._outgoing("heartbeat", heartbeat, "heartbeat"),
                persistent=False,
                expiration_seconds=3 * self.heartbeat_seconds,
            )
            with suppress(TransportError):  # a missed one says just what it should
                await self.transport.publish(message)
            await asyncio.sleep(self.heartbeat_seconds)

    async def _publish(self, message: Outgoing, *, again: bool = False) -> None:
        await publish_until_confirmed(
            self.transport, message, rng=self.rng, on_wait=lambda error, _: self.reporter.sending_waits(error)
        )
        self.reporter.sent(message.routing_key.split(".")[1], len(message.body), again=again)

    def _outgoing(self, kind: str, message: Hello | Heartbeat | Goodbye, word: str) -> Outgoing:
        return self._addressed(kind, codec.encode(message), f"{self.name}:{self._state.incarnation}:{word}")

    def _addressed(self, kind: str, body: bytes, message_id: str) -> Outgoing:
        return Outgoing(UPDATES, routing_key(self.federation, kind, self.name), body, message_id)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
