"""What can go wrong between two services, as a family of exceptions.

::

    BrokerError
    ├── TransportError               the way messages travel
    │   ├── TransportUnavailable     no connection now; the same call may succeed later
    │   ├── ConnectionTimeout        no connection within the time that was allowed
    │   ├── CredentialsRefused       the broker answered, and does not let this user in
    │   ├── NotDeclared              a queue or exchange that should exist does not (yet)
    │   ├── TopologyRefused          the broker does not let this user declare or use it
    │   ├── Unroutable               published, and no queue wanted it
    │   ├── PublishRefused           the broker took the message and would not keep it
    │   └── MessageTooLarge          over the cap; never sent
    └── RemoteMessageError           what came from outside and cannot be used
        ├── MalformedMessage         these bytes are no message of ours
        └── ForgedMessage            a message whose sender is not who it says
"""

from __future__ import annotations


class BrokerError(Exception):
    """Something between two services went wrong; the message says what, where and what to do."""


class TransportError(BrokerError):
    """Messages could not travel."""


class TransportUnavailable(TransportError):
    """There is no connection to the broker at the moment; whoever must deliver tries again."""


class ConnectionTimeout(TransportError):
    """The broker could not be reached within the time that was allowed for it."""


class CredentialsRefused(TransportError):
    """The broker was reached and refuses who we are, or cannot prove who it is; waiting mends neither."""


class NotDeclared(TransportError):
    """A queue or exchange is not there; its owner has not declared it yet."""


class TopologyRefused(TransportError):
    """The broker refuses a declaration: no permission, or it exists with other arguments."""


class Unroutable(TransportError):
    """The message reached the broker and no queue is bound for its routing key."""


class PublishRefused(TransportError):
    """The broker answered a publication with a nack: a queue is full, or has no leader at the moment."""


class MessageTooLarge(TransportError):
    """The body is larger than what the broker and the receivers accept."""


class RemoteMessageError(BrokerError):
    """A message that came from outside cannot be used; it is dead-lettered and counted.

    ``reason`` is one word of a fixed set, fit for a metric's label.
    """

    reason = "malformed"


class MalformedMessage(RemoteMessageError):
    """The bytes are not a message of ours: the sentence says where, never what value stood there."""


class ForgedMessage(RemoteMessageError):
    """The user, the routing key and the payload do not name the same sender."""

    reason = "forged"
