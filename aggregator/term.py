"""A term of an aggregator: deliveries in, commits, publications out, while the broker picks it. It decides nothing.

A term begins with `Store.take_over`, which raises the epoch: whoever served before can commit nothing from then on.
It reads the state, and announces the newest version to everybody under the new epoch: what was committed and not sent
before goes out with that, or is older.

One step is: take a delivery and whatever else is already there, decode, let the coordinator decide, commit
what changed, hand what is to be sent to the publisher, and only then acknowledge. Each crash point
is harmless: before the commit the messages come again; after it their ids are known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any, Literal, TypeVar

from aggregator import coordinator
from aggregator.errors import NoFinalModel, StoreError, TrainingFailed
from aggregator.events import (
    EVERYBODY,
    Action,
    ContributionArrived,
    Event,
    GiveUp,
    GoodbyeArrived,
    HeartbeatArrived,
    HelloArrived,
    Include,
    Made,
    Observe,
    Outrun,
    Record,
    Reject,
    Release,
    Send,
    Tick,
)
from aggregator.probe import probe
from aggregator.publisher import Publisher
from aggregator.report import Reporter
from aggregator.state import Rules, State, changes, from_cells, pack_cell, weights_hash
from aggregator.store import Commit, ReleasedBody, Store
from broker import codec
from broker.errors import ForgedMessage, MalformedMessage, NotDeclared, RemoteMessageError, TransportUnavailable
from broker.failpoints import Reached
from broker.messages import Evaluation, Goodbye, Heartbeat, Hello, ModelUpdate, Plan, ReleasedModel
from broker.retry import publish_until_confirmed
from broker.topology import MODELS, RELEASED, presence_queue, probe_key, released_key, routing_key
from broker.transport import Consumer, Delivery, Outgoing, Transport

#: Deliveries taken at most into one commit; with one update in flight each, participants bound it too.
PREFETCH = 32

#: Bytes from which decoding a body is worth a thread.
LARGE_BODY_BYTES = 256 * 1024

#: Heartbeats within which a probe must come back.
UNHEARD_BEATS = 3

T = TypeVar("T")
InThread = Callable[..., Awaitable[Any]]


class TermEnded(Exception):
    """Another term has to begin, here or at another aggregator; ``outrun`` is one that it has to be above."""

    def __init__(self, why: str, *, outrun: int = 0) -> None:
        super().__init__(why)
        self.outrun = outrun


@dataclass(slots=True)
class Term:
    """One federation's aggregator, while it is its turn.

    Attributes
    ----------
    updates : the subscription by which it learnt that it is.
    stop : set when the service is asked to end.
    outrun : a term that participants have heard of and the store has not; 0 where there is none.

    The others are those of `aggregator.service.AggregatorService`.
    """

    rules: Rules
    transport: Transport
    store: Store
    reporter: Reporter
    updates: Consumer
    stop: asyncio.Event
    outrun: int
    senders: Literal["participant", "shared"]
    exit_after_release: bool
    heartbeat_seconds: float
    shutdown_grace_seconds: float
    rng: Random
    in_thread: InThread
    reached: Reached
    _state: State = field(init=False)
    _publisher: Publisher = field(init=False)
    _tasks: asyncio.TaskGroup = field(init=False)
    _one_step: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _stepped: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _heard: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _in_hand: set[asyncio.Task[None]] = field(init=False, default_factory=set)
    _steps_on: bool = field(init=False, default=False)
    _hearing: asyncio.Task[None] = field(init=False)

    async def serve(self, first: Delivery) -> None:
        """Serve until stopped; ``first`` is the delivery that said that it is our turn.

        Raises
        ------
        FencedError, TermEnded
            Another aggregator serves now.
        AggregatorError, TransportError
            What a service cannot mend by itself.
        """
        epoch = await self.in_thread(self.store.take_over, self.outrun)
        self.reached("taken-over")
        self._state = await self._restore()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._publisher = Publisher(
                self.transport,
                tasks,
                rng=self.rng,
                on_published=self._published,
                on_trouble=self.reporter.publication_waits,
            )
            await self._begin(epoch)
            self._hearing = tasks.create_task(self._hear(), name="presence")
            workers = [
                tasks.create_task(self._take(first), name="updates"),
                tasks.create_task(self._tick(), name="ticks"),
                tasks.create_task(self._watch(), name="watch"),
            ]
            await self.stop.wait()
            for worker in (*workers, self._hearing):
                worker.cancel()
            await self._leave()

    async def _begin(self, epoch: int) -> None:
        """Raise the epoch of what we say, and say again what may not have been heard."""
        await self._perform([], [], epoch=epoch)
        unconfirmed = await self.in_thread(self.store.unconfirmed)
        await self._publish_release(*unconfirmed)
        if self.exit_after_release and self._state.progress.phase == "converged" and not unconfirmed:
            self.stop.set()  # the release was confirmed before this start
        self.reporter.started(self._state, self._now())

    async def _leave(self) -> None:
        """Finish the step in hand, and let publications be confirmed."""
        try:
            async with asyncio.timeout(self.shutdown_grace_seconds):
                await self._nothing_in_hand()
                await self._publisher.drained()
        except TimeoutError:
            self.reporter.gave_up_publishing(self._publisher.waiting)
            self._publisher.cancel()

    async def _nothing_in_hand(self) -> None:
        while self._in_hand:
            await asyncio.wait(set(self._in_hand))  # which, unlike gathering, cancels nothing when it is cancelled

    async def _watch(self) -> None:
        """See to it that deliveries reach us: nobody tells an aggregator that it is not the one they go to."""
        while True:
            self._heard.clear()
            # Until it is confirmed: a broker that blocks publishers does not deliver their probes to anybody else.
            await publish_until_confirmed(self.transport, probe(self.rules.federation), rng=self.rng)
            try:
                async with asyncio.timeout(UNHEARD_BEATS * self.heartbeat_seconds):
                    await self._heard.wait()
            except TimeoutError:
                if self._steps_on:
                    await self._stay_quiet()
                elif self.transport.connected:
                    raise TermEnded("the broker delivers to another one") from None
            await asyncio.sleep(self.heartbeat_seconds)

    async def _stay_quiet(self) -> None:
        """Leave the heartbeats to others while a step takes its time: another one may have taken over meanwhile."""
        self._hearing.cancel()
        await self._nothing_in_hand()
        self._hearing = self._tasks.create_task(self._hear(), name="presence")

    async def _restore(self) -> State:
        cells = await self.in_thread(self.store.cells)
        if not cells:
            return coordinator.first_state(self.rules)
        state = from_cells(self.rules, cells)
        if state.plan is not None and state.plan.strategy != state.strategy.name:
            raise StoreError(
                f"the store holds a federation that trains with {state.plan.strategy}, the configuration says "
                f"{state.strategy.name}: set the former, or give a new store"
            )
        return state

    # --- one step ------------------------------------------------------------------------------

    async def _take(self, first: Delivery) -> None:
        """Take contributions and hellos, and what else waits in the queue of updates."""
        deliveries = [first]
        while True:
            self._heard.set()
            self._steps_on = True
            await self._whole(self._handle([*deliveries, *self.updates.waiting()]))
            self._steps_on = False
            deliveries = [await self.updates.take()]

    async def _hear(self) -> None:
        """Take heartbeats."""
        try:
            presence = await self.transport.consume(presence_queue(self.rules.federation), prefetch=PREFETCH)
        except (NotDeclared, TransportUnavailable) as error:
            raise TermEnded(f"heartbeats cannot be listened to ({error})") from None
        try:
            while True:
                await self._whole(self._handle([await presence.take(), *presence.waiting()]))
        finally:
            await presence.close()

    async def _whole(self, step: Coroutine[Any, Any, None]) -> None:
        """Finish ``step`` also when the service is asked to stop meanwhile: what is committed is acknowledged."""
        # In the service's group: should the service itself be cancelled or fail, nothing of it outlives it.
        task = self._tasks.create_task(step)
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)
        await asyncio.shield(task)

    async def _handle(self, deliveries: Sequence[Delivery]) -> None:
        self.reached("taken")
        usable: list[Delivery] = []
        events: list[Event] = []
        for delivery in deliveries:
            if self._is_probe(delivery):
                await delivery.ack()
                continue
            try:
                events.append(await self._decoded(delivery))
                usable.append(delivery)
            except RemoteMessageError as error:
                await self._reject(delivery, error.reason, str(error))
        await self._perform(usable, events)

    async def _perform(
        self, deliveries: Sequence[Delivery], events: Sequence[Event], *, epoch: int | None = None
    ) -> None:
        """Decide, commit, send, acknowledge: in this order. With ``epoch``, take the federation up where it stands."""
        async with self._one_step:
            before = self._state
            after, actions = (before, []) if epoch is None else self._restored(before, epoch)
            rejected: list[tuple[Delivery, str]] = []
            for index, event in enumerate(events):
                after, more = coordinator.step(after, event)
                actions.extend(more)
                rejected.extend((deliveries[index], action.reason) for action in more if isinstance(action, Reject))
            self.reached("decided")
            await self._commit(before, after, actions)
            self.reached("committed")
            self._state = after
        self._stepped.set()
        self._send(actions)
        self.reporter.stepped(after, [action for action in actions if isinstance(action, Observe)], self._now())
        for delivery, reason in rejected:
            await self._reject(delivery, reason, "the sender is not a participant of this federation")
        refused = {id(delivery) for delivery, _ in rejected}
        for delivery in deliveries:
            if id(delivery) not in refused:
                await delivery.ack()
        self.reached("acknowledged")
        for given_up in _of_type(actions, GiveUp):
            raise (NoFinalModel if given_up.no_model else TrainingFailed)(given_up.reason)
        for outrun in _of_type(actions, Outrun):
            # The commit went through, so that nobody else has taken over: it is the store that is old.
            raise TermEnded(
                f"participants have heard of term {outrun.epoch}, the store has not: it is from a backup",
                outrun=outrun.epoch,
            )

    def _restored(self, before: State, epoch: int) -> tuple[State, list[Action]]:
        return coordinator.restored(before, self._now(), epoch, outrun=self.outrun)

    async def _commit(self, before: State, after: State, actions: Sequence[Action]) -> None:
        changed = changes(before, after)
        if not changed and not actions:
            return
        commit = Commit(
            epoch=after.progress.epoch,
            cells={key: None if value is None else pack_cell(value) for key, value in changed.items()},
            records=_of_type(actions, Record),
            includes=_of_type(actions, Include),
            version_hashes={made.version: weights_hash(made.weights) for made in _of_type(actions, Made)},
            releases=tuple(
                ReleasedBody(action.model.version, action.model.epoch, codec.encode(action.model))
                for action in _of_type(actions, Release)
            ),
        )
        began = self._now()
        await self.in_thread(self.store.commit, commit)
        self.reporter.committed(self._now() - began)
        for release in commit.releases:
            await self._publish_release(release)

    async def _tick(self) -> None:
        """Wake the coordinator when time alone changes something; otherwise sleep."""
        while True:
            self._stepped.clear()
            wake_at = coordinator.wake_at(self._state)
            try:
                async with asyncio.timeout(None if wake_at is None else max(0.0, wake_at - self._now())):
                    await self._stepped.wait()
            except TimeoutError:
                await self._whole(self._perform([], [Tick(self._now())]))

    # --- what comes in -------------------------------------------------------------------------

    async def _decoded(self, delivery: Delivery) -> Event:
        """Return the event that ``delivery`` brings; a large one is decoded while the next is already received."""
        if len(delivery.body) < LARGE_BODY_BYTES:
            return self._event(delivery, self._now())
        event: Event = await self.in_thread(self._event, delivery, self._now())
        return event

    def _event(self, delivery: Delivery, at: float) -> Event:
        """Return the event that ``delivery`` brings; raises `RemoteMessageError` where it cannot be believed."""
        kind, sender = self._address(delivery)
        self.reporter.received(kind, len(delivery.body))
        # Lengths are for admission: what is of an earlier plan has those of that, and has to be judged all the same.
        message = codec.decode(delivery.body)
        if not isinstance(message, _SENT_AS[kind]):
            raise MalformedMessage(f"a {type(message).__name__} came under a routing key for {kind}")
        if message.federation != self.rules.federation or message.participant != sender:
            raise ForgedMessage("payload and routing key name different senders")
        match message:
            case Hello():
                return HelloArrived(message, at, codec.hello_digest(delivery.body))
            case Heartbeat():
                return HeartbeatArrived(message, at)
            case Goodbye():
                return GoodbyeArrived(message, at)
            case _:
                return ContributionArrived(message, sha256(delivery.body).hexdigest(), at)

    def _address(self, delivery: Delivery) -> tuple[str, str]:
        words = delivery.routing_key.split(".")
        if len(words) != 3 or words[0] != self.rules.federation or words[1] not in _SENT_AS:  # noqa: PLR2004
            raise MalformedMessage("the routing key is none that participants use")
        expected = self.transport.user if self.senders == "shared" else words[2]
        if delivery.user_id != expected:
            # The broker validates the user only where it is set, so an absent one proves nothing.
            raise ForgedMessage("the message does not bear the broker user that its routing key belongs to")
        return words[1], words[2]

    def _is_probe(self, delivery: Delivery) -> bool:
        """Whether it is from an aggregator, to whichever of them serves; anybody else's is a message like any other."""
        return delivery.routing_key == probe_key(self.rules.federation) and delivery.user_id == self.transport.user

    async def _reject(self, delivery: Delivery, reason: str, why: str) -> None:
        self.reporter.rejected(reason, why, delivery.routing_key)
        await delivery.reject()

    # --- what goes out -------------------------------------------------------------------------

    def _send(self, actions: Sequence[Action]) -> None:
        """Offer only the newest message for each address: a step may have made several versions."""
        newest: dict[str, Send] = {}
        for action in _of_type(actions, Send):
            kind = "plan" if isinstance(action.message, Plan) else "model"
            if action.to == EVERYBODY:
                newest = {address: send for address, send in newest.items() if not address.startswith(f"{kind}.")}
            newest[f"{kind}.{action.to}"] = action
        for address, send in newest.items():
            self._offer(address, send)
        self.reporter.waiting(self._publisher.waiting)

    def _offer(self, address: str, send: Send) -> None:
        federation, message = self.rules.federation, send.message
        kind = address.partition(".")[0]
        number = message.revision if isinstance(message, Plan) else message.bulletin
        self._publisher.offer(
            address,
            Outgoing(
                exchange=MODELS,
                routing_key=routing_key(federation, kind, send.to),
                body=codec.encode(message),
                message_id=f"{federation}:{self._state.progress.epoch}:{kind}:{number}:{send.to}",
            ),
        )

    async def _publish_release(self, *releases: ReleasedBody) -> None:
        """Tell whoever writes them down, the oldest first, and then the world of the newest.

        Until that is confirmed, a start does both again.
        """
        federation = self.rules.federation
        for release in releases:
            model = codec.decode(release.body)
            assert isinstance(model, ReleasedModel), "the store keeps releases as they are sent"
            await self.in_thread(self.reporter.released, model)
        for newest in releases[-1:]:
            # The epoch it was made in: after a backup there may be another model of the same version.
            message_id = f"{federation}:{newest.epoch}:released:{newest.version}"
            self._publisher.offer(_DOWNSTREAM, Outgoing(RELEASED, released_key(federation), newest.body, message_id))

    async def _published(self, message: Outgoing) -> None:
        kind = "released" if message.exchange == RELEASED else message.routing_key.split(".")[1]
        self.reporter.published(kind, len(message.body))
        self.reporter.waiting(self._publisher.waiting)
        if message.exchange != RELEASED:
            self.reached("published")
            return
        self.reached("release-published")
        await self.in_thread(self.store.confirm, int(message.message_id.rpartition(":")[2]))
        if self.exit_after_release and not self._publisher.is_overtaken(_DOWNSTREAM):
            self.stop.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


#: The publisher's address of released models, one for all: the newest replaces what waits.
_DOWNSTREAM = "released"

_SENT_AS: dict[str, type[Any]] = {
    "hello": Hello,
    "update": ModelUpdate,
    "evaluation": Evaluation,
    "heartbeat": Heartbeat,
    "goodbye": Goodbye,
}


def _of_type(actions: Sequence[Action], kind: type[T]) -> tuple[T, ...]:
    return tuple(action for action in actions if isinstance(action, kind))
