"""The transport contract over RabbitMQ: AMQP 0-9-1 with aio-pika, kept connected.

Four kinds of task keep things going:

===============  =================================  ==================================================
who              waits for                          then
===============  =================================  ==================================================
the supervisor   the link to be gone                next URL, with jittered back-off, until there is a
                                                    link again; declares; `connections` yields
each consumer    its channel to be gone             declares if only the channel went; a new channel
                 (error, queue deleted, link lost)  with its own prefetch; consumes again
its watch        a heartbeat                        asks whether the queue has a consumer; if not,
                                                    gives up the subscription
a publication    the broker's answer                returns or raises
===============  =================================  ==================================================

aio-pika's own robust connection is not used: it knows one URL, no jitter, and retries a wrong password
for ever without a word. Neither it nor its errors leave this package. Each module knows
only those further down::

    transport               the contract, as services see it
    consumer                one subscription after another
    supervisor              one link after another
    subscription            a channel that consumes, and its deliveries
    link                    two connections to one node
    publishing, declaring   what is done on their channels
    channels
    words, tasks            the client's errors in ours; work that goes on
"""

from broker.rabbitmq.transport import RabbitMQTransport

__all__ = ["RabbitMQTransport"]
