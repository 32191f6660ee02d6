"""A broker that can be cut off, restarted and robbed of its disk.

The queues are those of `broker.memory`. The two ends of a connection may lose it at different times: a `Link` is the
broker's end, with what it has delivered and is not settled; `fedmq.chaos.transport` has the client's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random

from broker.memory.exchanges import Exchanges
from broker.memory.queue import MemoryQueue, Message
from broker.topology import Topology
from broker.transport import Outgoing
from fedmq.chaos.world import Chance


class Conditions:
    """What a connection is exposed to at present; nothing, until somebody says otherwise."""

    def __init__(self) -> None:
        self.chances: Mapping[Chance, float] = {}
        self.latency = 0.0
        self.delay = 0.0
        #: Told when something is made to go wrong.
        self.on_fault: Callable[[str, str, str], None] = lambda _who, _kind, _detail: None

    def strikes(self, chance: Chance, rng: Random, who: str, detail: str = "") -> bool:
        """Whether ``chance`` befalls ``who`` now."""
        probability = self.chances.get(chance, 0.0)
        struck = probability > 0.0 and rng.random() < probability
        if struck:
            self.on_fault(who, chance, detail)
        return struck


class ChaosBroker:
    """Queues, and who is connected to them.

    Parameters
    ----------
    on_arrival : told of each message that comes to an exchange, with the name of who sent it.
    on_loss : told the id of each message that is lost with a queue or a disk.
    """

    def __init__(
        self, *, on_arrival: Callable[[Outgoing, str], None], on_loss: Callable[[str], None], conditions: Conditions
    ) -> None:
        self.conditions = conditions
        self._exchanges = Exchanges()
        self._on_arrival = on_arrival
        self._on_loss = on_loss
        self._links: dict[Link, None] = {}
        self._down = 0
        self._cut: dict[str, int] = {}
        self._blocked = 0
        self._unblocked = asyncio.Event()
        self._unblocked.set()

    @property
    def queues(self) -> Mapping[str, MemoryQueue]:
        """All queues by name."""
        return self._exchanges.queues

    def reachable(self, who: str) -> bool:
        """Whether ``who`` can connect now."""
        return not self._down and not self._cut.get(who)

    @property
    def is_in_order(self) -> bool:
        """Whether a publication arrives at once."""
        return not (self._blocked or self.conditions.chances or self.conditions.latency)

    async def unblocked(self) -> None:
        """Return when publishers are listened to."""
        await self._unblocked.wait()

    def declare(self, topology: Topology) -> None:
        """Declare; raises `NotDeclared` or `TopologyRefused`."""
        self._exchanges.declare(topology)

    def queue(self, name: str) -> MemoryQueue:
        """Return the queue called ``name``; raises `NotDeclared`."""
        return self._exchanges.queue(name)

    def publish(self, message: Outgoing, user: str, who: str) -> None:
        """Put a message into every queue that wants it; raises `Unroutable`, `PublishRefused` or `NotDeclared`."""
        self._exchanges.publish(message, user)
        self._on_arrival(message, who)

    def join(self, link: Link) -> None:
        """Have ``link``."""
        self._links[link] = None

    def leave(self, link: Link) -> None:
        """Have it no longer: what it had goes back."""
        if self._links.pop(link, self) is None:
            link.give_back()

    # --- what goes wrong -----------------------------------------------------------------------

    def cut(self, who: str | None) -> None:
        """Break the connections of ``who``, or all, until `heal`."""
        if who is None:
            self._down += 1
        else:
            self._cut[who] = self._cut.get(who, 0) + 1
        for link in list(self._links):
            if who in {None, link.who}:
                self.drop(link)

    def heal(self, who: str | None) -> None:
        """Let ``who``, or all, connect again."""
        if who is None:
            self._down -= 1
        else:
            self._cut[who] -= 1

    def drop(self, link: Link) -> None:
        """Lose ``link`` at both ends."""
        self.leave(link)
        link.gone.set()

    def half_open(self, who: str, *, client_after: float, broker_after: float) -> None:
        """Let nothing through the connections of ``who``; each end notices in its own time."""
        loop = asyncio.get_running_loop()
        for link in list(self._links):
            if link.who == who and not link.frozen:
                link.frozen = True
                loop.call_later(client_after, link.gone.set)
                loop.call_later(broker_after, self.leave, link)

    def block(self) -> None:
        """Listen to no publisher until `unblock`."""
        self._blocked += 1
        self._unblocked.clear()

    def unblock(self) -> None:
        """Listen to publishers again."""
        self._blocked -= 1
        if not self._blocked:
            self._unblocked.set()

    def forget(self, *, disk: bool) -> None:
        """Lose what is in memory alone, as in a restart; with ``disk`` everything."""
        if not disk:
            for queue in self.queues.values():
                queue.forget_transient()
            return
        for queue in self.queues.values():
            self._lose(queue)
        self._exchanges = Exchanges()

    def delete(self, name: str) -> None:
        """Delete a queue with what is in it, if it is there."""
        queue = self.queues.get(name)
        if queue is None:
            return
        self._lose(queue)
        self._exchanges.delete(name)
        for link in list(self._links):
            link.cancel_consumers(name, is_deleted=True)

    def cancel(self, name: str) -> None:
        """Cancel the consumers of a queue."""
        for link in list(self._links):
            link.cancel_consumers(name, is_deleted=False)

    def _lose(self, queue: MemoryQueue) -> None:
        for message in queue.ready:
            self._on_loss(message.message_id)
        for link in self._links:
            for channel in link.channels:
                if channel.queue is queue:
                    for message in channel.unsettled.values():
                        self._on_loss(message.message_id)


class Link:
    """The broker's end of a connection; ``gone`` is set when the client knows that it is lost."""

    def __init__(self, who: str) -> None:
        self.who = who
        self.gone = asyncio.Event()
        self.frozen = False
        self.channels: dict[Channel, None] = {}

    def give_back(self) -> None:
        """Put everything that is unsettled back."""
        # First all stop, then all give back: or one would receive what another of them had.
        for channel in self.channels:
            channel.detach()
        for channel in self.channels:
            channel.give_back()
        self.channels.clear()

    def cancel_consumers(self, queue: str, *, is_deleted: bool) -> None:
        """End the subscriptions to ``queue``; those to a queue that is deleted have nothing to give back."""
        for channel in [each for each in self.channels if each.queue.declared.name == queue]:
            del self.channels[channel]
            channel.detach()
            if not is_deleted:
                channel.give_back()
            channel.unsettled.clear()
            if not self.frozen:
                channel.on_cancel()


class Channel:
    """The broker's end of a subscription: what it has delivered and is not settled."""

    def __init__(
        self,
        link: Link,
        queue: MemoryQueue,
        prefetch: int,
        *,
        deliver: Callable[[Channel, int, Message], None],
        on_cancel: Callable[[], None],
    ) -> None:
        self.link = link
        self.queue = queue
        self.on_cancel = on_cancel
        self.unsettled: dict[int, Message] = {}
        #: Whether the client still goes by it.
        self.open = True
        self._prefetch = prefetch
        self._deliver = deliver
        self._tags = 0
        self._attached = False
        link.channels[self] = None

    @property
    def usable(self) -> bool:
        """Whether anything of the client comes through."""
        return self.open and not self.link.frozen and not self.link.gone.is_set()

    def attach(self) -> None:
        """Have messages from now on."""
        if not self._attached:
            self._attached = True
            self.queue.attach(self)

    def detach(self) -> None:
        """Have no more messages; what it has it keeps."""
        if self._attached:
            self._attached = False
            self.queue.detach(self)

    def give_back(self, tags: tuple[int, ...] | None = None) -> None:
        """Put back what is unsettled, or only ``tags``."""
        chosen = [tag for tag in self.unsettled if tags is None or tag in tags]
        self.queue.take_back([self.unsettled.pop(tag) for tag in chosen])

    def has_room(self) -> bool:
        """Whether less is unsettled than may be."""
        return len(self.unsettled) < self._prefetch

    def receive(self, message: Message) -> None:
        """Send ``message`` to the client."""
        self._tags += 1
        self.unsettled[self._tags] = message
        self._deliver(self, self._tags, message)

    def settle(self, tag: int, *, multiple: bool, rejected: bool) -> None:
        """Settle a delivery, or all up to it."""
        if not self.usable or tag not in self.unsettled:
            return
        for settled in [each for each in self.unsettled if each == tag or (multiple and each < tag)]:
            message = self.unsettled.pop(settled)
            if rejected:
                self.queue.bury(message)
        self.queue.deliver()
