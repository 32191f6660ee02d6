"""A topology as the broker is told: exchanges first, then queues with the arguments of their promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aio_pika import ExchangeType

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel

    from broker.topology import Queue, Topology

#: RabbitMQ 4 drops a message of a quorum queue that came back 20 times. A pause or a crash sends messages
#: back that nothing is wrong with, and the receiver rejects what is, so the limit is put out of reach.
DELIVERY_LIMIT = 1_000_000


async def declare_topology(channel: AbstractChannel, topology: Topology) -> None:
    """Declare what is there already, or is not; a refusal closes ``channel``."""
    for exchange in topology.exchanges:
        if exchange.passive:
            await channel.get_exchange(exchange.name)
        else:
            await channel.declare_exchange(exchange.name, ExchangeType.TOPIC, durable=True)
    for declared in topology.queues:
        queue = await channel.declare_queue(declared.name, durable=True, arguments=queue_arguments(declared))
        for binding in declared.bindings:
            await queue.bind(binding.exchange, binding.pattern)


def queue_arguments(queue: Queue) -> dict[str, Any]:
    """Return the AMQP arguments for what ``queue`` promises."""
    arguments = {
        "x-queue-type": queue.kind,
        "x-delivery-limit": DELIVERY_LIMIT if queue.kind == "quorum" else None,
        "x-max-length": queue.max_length,
        "x-max-length-bytes": queue.max_bytes,
        "x-overflow": queue.overflow,
        "x-message-ttl": None if queue.ttl_seconds is None else round(queue.ttl_seconds * 1000),
        "x-expires": None if queue.expires_seconds is None else round(queue.expires_seconds * 1000),
        "x-single-active-consumer": queue.single_active_consumer or None,
        "x-dead-letter-exchange": queue.dead_letter_exchange,
    }
    return {name: value for name, value in arguments.items() if value is not None}
