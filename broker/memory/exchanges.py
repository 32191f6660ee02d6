"""Exchanges in memory: which queues there are, and which of them want a message, alive or dead."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from broker.errors import NotDeclared, PublishRefused, TopologyRefused, Unroutable
from broker.memory.queue import MemoryQueue, Message, now

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.topology import Queue, Topology
    from broker.transport import Outgoing


class Exchanges:
    """Topic exchanges, and the queues that are bound to them."""

    def __init__(self) -> None:
        self._bindings: dict[str, list[tuple[tuple[str, ...], MemoryQueue]]] = {}
        self._queues: dict[str, MemoryQueue] = {}
        self._routes: dict[tuple[str, str], tuple[MemoryQueue, ...]] = {}

    def declare(self, topology: Topology) -> None:
        """Declare exchanges, queues and bindings. Raises `NotDeclared` or `TopologyRefused`."""
        for exchange in topology.exchanges:
            if exchange.passive:
                self._look_for_exchange(exchange.name)
            else:
                self._bindings.setdefault(exchange.name, [])
        for declared in topology.queues:
            queue = self._declare_queue(declared)
            for binding in declared.bindings:
                self._look_for_exchange(binding.exchange)
                bound = (_words(binding.pattern), queue)
                if bound not in self._bindings[binding.exchange]:
                    self._bindings[binding.exchange].append(bound)
        self._routes.clear()

    def _declare_queue(self, declared: Queue) -> MemoryQueue:
        # Bindings are no argument of a queue: declaring again with others adds those.
        arguments = replace(declared, bindings=())
        queue = self._queues.setdefault(declared.name, MemoryQueue(arguments, self._bury))
        if queue.declared != arguments:
            raise TopologyRefused(
                f"the queue {declared.name} exists with other arguments; delete it, "
                f"or declare it as it was: {queue.declared}"
            )
        return queue

    def _look_for_exchange(self, name: str) -> None:
        if name not in self._bindings:
            raise NotDeclared(f"there is no exchange {name} yet; the aggregator declares it when it starts")

    def queue(self, name: str) -> MemoryQueue:
        """Return the queue called ``name``. Raises `NotDeclared`."""
        if name not in self._queues:
            raise NotDeclared(f"there is no queue {name}; declare it before consuming")
        return self._queues[name]

    @property
    def queues(self) -> Mapping[str, MemoryQueue]:
        """All queues by name."""
        return self._queues

    def delete(self, name: str) -> None:
        """Take the queue called ``name`` away with what is in it; its consumers have it no longer."""
        gone = self.queue(name)
        del self._queues[name]
        self._bindings = {
            exchange: [bound for bound in bindings if bound[1] is not gone]
            for exchange, bindings in self._bindings.items()
        }
        self._routes.clear()

    def _route(self, exchange: str, routing_key: str) -> tuple[MemoryQueue, ...]:
        """Queues that want the message, each once, in the order of their bindings."""
        route = self._routes.get((exchange, routing_key))
        if route is None:
            words = _words(routing_key)
            matching = [queue for pattern, queue in self._bindings[exchange] if _matches(pattern, words)]
            route = self._routes[exchange, routing_key] = tuple(dict.fromkeys(matching))
        return route

    def publish(self, outgoing: Outgoing, user: str) -> None:
        """Put a message of ``user`` into every queue that wants it. Raises `Unroutable` or `PublishRefused`."""
        self._look_for_exchange(outgoing.exchange)
        queues = self._route(outgoing.exchange, outgoing.routing_key)
        if not queues:
            raise Unroutable(
                f"no queue is bound to {outgoing.exchange} for {outgoing.routing_key}; "
                f"whoever should receive message {outgoing.message_id} has not declared its queue"
            )
        message = Message(
            outgoing.routing_key, outgoing.body, outgoing.message_id, user, persistent=outgoing.persistent
        )
        if outgoing.expiration_seconds is not None:
            message.expires_at = now() + outgoing.expiration_seconds
        # A list: every queue gets its copy, also behind one that is full.
        full = [queue.declared.name for queue in queues if not queue.offer(message)]
        if full:
            raise PublishRefused(
                f"{', '.join(full)} is full and would not take message {outgoing.message_id}; send it later"
            )

    def _bury(self, message: Message, queue: Queue, *, rejected: bool) -> None:
        """Send a dead message to where ``queue`` wants it, if anywhere."""
        exchange = queue.dead_letter_exchange
        if exchange is None or exchange not in self._bindings:
            return
        died_in = frozenset[str]() if rejected else message.died_in | {queue.name}
        dead = replace(message, expires_at=None, redelivered=False, died_in=died_in)
        for wanting in self._route(exchange, message.routing_key):
            if wanting.declared.name not in died_in:
                wanting.offer(dead)


def _words(key: str) -> tuple[str, ...]:
    return tuple(key.split(".")) if key else ()


def _matches(pattern: tuple[str, ...], words: tuple[str, ...]) -> bool:
    """Whether a topic pattern matches: ``*`` is one word, ``#`` any number of them."""
    if not pattern:
        return not words
    first, rest = pattern[0], pattern[1:]
    if first == "#":
        return any(_matches(rest, words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and first in ("*", words[0]) and _matches(rest, words[1:])
