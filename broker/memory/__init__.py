"""A broker in this process: the transport contract without a network.

For embedded federations, simulations and tests. All of it happens on one event loop and nothing
happens by itself: publishing routes the message, fills the queues and hands deliveries to consumers
before it returns. The only clock is the loop's, and only messages that can grow too old look at it.
No threads, no random numbers, no sleeps: the same calls in the same order give the same deliveries,
so a loop with virtual time can run thousands of federations a minute.

What RabbitMQ does and no service here relies on is left out: persistence is the life of the object,
and there are no permissions. `MemoryBroker.disconnect` and `reconnect` play an outage. Each module
knows only those further down::

    broker      who is connected, and outages
    transport   a user's connection
    consumer    a subscription, and its deliveries
    exchanges   which queues want a message
    queue       messages in order, and who gets them
"""

from broker.memory.broker import MemoryBroker
from broker.memory.transport import MemoryTransport

__all__ = ["MemoryBroker", "MemoryTransport"]
