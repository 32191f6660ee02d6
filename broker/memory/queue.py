"""A queue in memory: messages in their order, who gets the next one, and which are too many or too old."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.topology import Queue


@dataclass(slots=True)
class Message:
    """A message as one queue holds it."""

    routing_key: str
    body: bytes
    message_id: str
    user_id: str
    expires_at: float | None = None
    persistent: bool = True
    position: int = 0
    redelivered: bool = False
    #: Queues that dropped it or let it grow old: it does not go round in circles.
    died_in: frozenset[str] = frozenset()


class Receiver(Protocol):
    """A consumer, as a queue knows it."""

    def has_room(self) -> bool:
        """Whether it can have another message."""

    def receive(self, message: Message) -> None:
        """Have ``message``; it has left the queue."""


class Bury(Protocol):
    """What a queue does with its dead."""

    def __call__(self, message: Message, queue: Queue, *, rejected: bool) -> None:
        """Send ``message`` to where ``queue`` wants it, if anywhere."""


class MemoryQueue:
    """Messages in order, and the consumers that are to have them.

    Parameters
    ----------
    declared
        What the queue promises.
    bury
        Given what died here: rejected, dropped or too old.
    """

    def __init__(self, declared: Queue, bury: Bury) -> None:
        self.declared = declared
        self._bury = bury
        self._ready: deque[Message] = deque()
        self._ready_bytes = 0
        self._consumers: deque[Receiver] = deque()
        self._positions = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def ready(self) -> tuple[Message, ...]:
        """What waits for a consumer, first things first."""
        return tuple(self._ready)

    def forget_transient(self) -> None:
        """Lose what is not on the disk, as a broker does that is started again."""
        self._ready = deque(message for message in self._ready if message.persistent)
        self._ready_bytes = sum(len(message.body) for message in self._ready)
        self._watch_age()

    def offer(self, message: Message) -> bool:
        """Take a copy of ``message``, unless this queue is full and refuses."""
        self._drop_expired()
        if self.declared.overflow == "reject-publish" and self._over(1, len(message.body)):
            return False
        self._positions += 1
        expires_at = message.expires_at
        if self.declared.ttl_seconds is not None:
            too_old_at = now() + self.declared.ttl_seconds
            expires_at = too_old_at if expires_at is None else min(expires_at, too_old_at)
        self._ready.append(replace(message, position=self._positions, expires_at=expires_at))
        self._ready_bytes += len(message.body)
        self.deliver()
        return True

    def take_back(self, messages: Iterable[Message]) -> None:
        """Put unsettled messages where they stood; that is before all that were never delivered."""
        returned = list(messages)
        if not returned:
            return
        for message in returned:
            message.redelivered = True
            self._ready_bytes += len(message.body)
        self._ready = deque(sorted([*returned, *self._ready], key=lambda message: message.position))
        self.deliver()

    def bury(self, message: Message) -> None:
        """Send a rejected message to the dead letters."""
        self._bury(message, self.declared, rejected=True)

    def attach(self, consumer: Receiver) -> None:
        """Let ``consumer`` have messages; behind those that are here already."""
        self._consumers.append(consumer)
        self.deliver()

    def detach(self, consumer: Receiver) -> None:
        """Give ``consumer`` no more messages. What it has it keeps."""
        self._consumers.remove(consumer)

    def deliver(self) -> None:
        """Hand out what there is to those who have room, then drop what is too much."""
        self._drop_expired()
        while self._ready and (consumer := self._next_consumer()) is not None:
            consumer.receive(self._pop_first())
            self._drop_expired()
        if self.declared.overflow == "drop-head":
            while self._ready and self._over(0, 0):
                self._bury(self._pop_first(), self.declared, rejected=False)
        self._watch_age()

    def _over(self, more: int, more_bytes: int) -> bool:
        limits = (
            (len(self._ready) + more, self.declared.max_length),
            (self._ready_bytes + more_bytes, self.declared.max_bytes),
        )
        return any(limit is not None and size > limit for size, limit in limits)

    def _next_consumer(self) -> Receiver | None:
        """Whose turn it is; with a single active consumer, only ever the first one's."""
        if self.declared.single_active_consumer:
            return next((first for first in list(self._consumers)[:1] if first.has_room()), None)
        for _ in range(len(self._consumers)):
            self._consumers.rotate(-1)
            if self._consumers[-1].has_room():
                return self._consumers[-1]
        return None

    def _pop_first(self) -> Message:
        message = self._ready.popleft()
        self._ready_bytes -= len(message.body)
        return message

    def _drop_expired(self) -> None:
        # As in RabbitMQ, only the first message is looked at: one behind it expires when its turn comes.
        while self._ready and (at := self._ready[0].expires_at) is not None and at <= now():
            self._bury(self._pop_first(), self.declared, rejected=False)

    def _watch_age(self) -> None:
        """See to it that the first message leaves in time, even if nothing else happens here."""
        at = self._ready[0].expires_at if self._ready else None
        if self._timer is not None and self._timer.when() != at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and at is not None:
            self._timer = asyncio.get_running_loop().call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        # Forgotten before it is looked at: loops may call a hair too early, and then it is set anew.
        self._timer = None
        self.deliver()


def now() -> float:
    """Return the time by which messages grow old: that of the loop."""
    return asyncio.get_running_loop().time()
