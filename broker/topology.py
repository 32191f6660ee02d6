"""Which exchanges and queues there are, and who is bound to what: the whole picture of the traffic.

::

                       fedmq.updates (topic)
    participant ──► <federation>.<kind>.<participant> ──► fedmq.<federation>.updates    (quorum) ──► aggregator
                       <federation>.heartbeat.*       ──► fedmq.<federation>.presence   (classic, short) ──► aggregator
    aggregator  ──► <federation>.probe.aggregator     ──► fedmq.<federation>.updates    to the one that serves

                       fedmq.models (topic)
    aggregator  ──► <federation>.model.all | .<participant> ──► fedmq.<federation>.models.<participant>  (newest only)
                    <federation>.plan.all  | .<participant> ──► fedmq.<federation>.plans.<participant>   (all kept)

                       fedmq.released (topic)
    aggregator  ──► <federation>.released ──► fedmq.<federation>.released  (the last ones, for latecomers)
                                          ──► whatever downstream systems bind

                       fedmq.dead (topic)
    what was rejected ──► fedmq.dead  (bounded, for people to read; no probes, which expire where nobody serves)

Quorum queues hold what must not be lost. Models go to classic queues: these share one payload among
all participants where quorum queues would copy it for each. The first word of every routing key is
the federation, the last one the participant, so that a broker can hold each user to its own
(topic permissions), and queue names end with the participant for the same reason.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

UPDATES = "fedmq.updates"
MODELS = "fedmq.models"
RELEASED = "fedmq.released"
DEAD = "fedmq.dead"

#: Deliveries: dead letters are for people to read; the oldest go when nobody did.
MAX_DEAD_LETTERS = 10_000
#: Releases that a subscriber who comes late still finds.
MAX_RELEASES_KEPT = 16
#: Heartbeats that may wait for an aggregator that is away; older ones tell nothing.
MAX_HEARTBEATS_WAITING = 1_000
#: Bytes of updates that may wait for an aggregator that is away, before publishers are told to wait.
MAX_WAITING_BYTES = 2 * 1024**3

#: Kinds of message whose dead letters are worth reading. A probe that expires tells nothing.
READ_WHEN_DEAD = ("hello", "update", "evaluation", "goodbye", "heartbeat", "plan", "model")

#: Words that stand where participants' names do: everybody, and the other side.
RESERVED = {"all", "aggregator"}

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def is_name(text: str) -> bool:
    """Whether ``text`` can name a federation or participant: it becomes a word of a routing key.

    Letters, digits, ``_`` and ``-``; at most 63. A dot, ``*`` or ``#`` would change what a key means.
    """
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Exchange:
    """A topic exchange. A passive one is only looked for: its owner declares it."""

    name: str
    passive: bool = False


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages of ``exchange`` whose routing key matches ``pattern``."""

    exchange: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue and what it promises; see the transport contract for the words used.

    ``expires_seconds`` is for RabbitMQ; a broker in memory keeps its queues for as long as it lives itself.
    """

    name: str
    bindings: tuple[Binding, ...] = ()
    kind: Literal["quorum", "classic"] = "quorum"
    max_length: int | None = None
    max_bytes: int | None = None
    overflow: Literal["drop-head", "reject-publish"] = "drop-head"
    ttl_seconds: float | None = None
    expires_seconds: float | None = None
    single_active_consumer: bool = False
    dead_letter_exchange: str | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """What one service declares when it connects, exchanges first."""

    exchanges: tuple[Exchange, ...] = ()
    queues: tuple[Queue, ...] = ()


def updates_queue(federation: str) -> str:
    """Name of the queue of everything that participants send and that must not be lost."""
    return f"fedmq.{federation}.updates"


def presence_queue(federation: str) -> str:
    """Name of the queue of heartbeats."""
    return f"fedmq.{federation}.presence"


def models_queue(federation: str, participant: str) -> str:
    """Name of the queue that keeps a participant's newest model."""
    return f"fedmq.{federation}.models.{participant}"


def plans_queue(federation: str, participant: str) -> str:
    """Name of the queue of what a participant must not miss."""
    return f"fedmq.{federation}.plans.{participant}"


def released_queue(federation: str) -> str:
    """Name of the queue that keeps the last released models for whoever comes later."""
    return f"fedmq.{federation}.released"


def routing_key(federation: str, kind: str, whom: str) -> str:
    """Return the routing key of a message: federation, what it is, and from or to whom."""
    return f"{federation}.{kind}.{whom}"


def probe_key(federation: str) -> str:
    """Return the routing key by which an aggregator asks whether it is the one that serves."""
    return routing_key(federation, "probe", "aggregator")


def released_key(federation: str) -> str:
    """Return the routing key of released models."""
    return f"{federation}.released"


def aggregator_topology(federation: str, *, expires_seconds: float | None = None) -> Topology:
    """Exchanges of the broker, and the queues that belong to the aggregator of ``federation``.

    A federation that is a trial gives ``expires_seconds``: queues that nobody has used for so long are removed.
    """
    return Topology(
        exchanges=(Exchange(UPDATES), Exchange(MODELS), Exchange(RELEASED), Exchange(DEAD)),
        queues=(
            Queue(
                updates_queue(federation),
                bindings=tuple(
                    Binding(UPDATES, routing_key(federation, kind, "*"))
                    for kind in ("hello", "update", "evaluation", "goodbye", "probe")
                ),
                max_bytes=MAX_WAITING_BYTES,
                overflow="reject-publish",
                single_active_consumer=True,
                dead_letter_exchange=DEAD,
                expires_seconds=expires_seconds,
            ),
            Queue(
                presence_queue(federation),
                bindings=(Binding(UPDATES, routing_key(federation, "heartbeat", "*")),),
                kind="classic",
                max_length=MAX_HEARTBEATS_WAITING,
                single_active_consumer=True,
                expires_seconds=expires_seconds,
            ),
            Queue(
                released_queue(federation),
                bindings=(Binding(RELEASED, released_key(federation)),),
                max_length=MAX_RELEASES_KEPT,
                expires_seconds=expires_seconds,
            ),
            Queue(
                DEAD,
                bindings=tuple(Binding(DEAD, routing_key("*", kind, "*")) for kind in READ_WHEN_DEAD),
                max_length=MAX_DEAD_LETTERS,
            ),
        ),
    )


def participant_topology(federation: str, participant: str, *, expires_seconds: float | None = None) -> Topology:
    """Two queues of a participant; the exchanges are the aggregator's to declare."""
    return Topology(
        exchanges=(Exchange(UPDATES, passive=True), Exchange(MODELS, passive=True)),
        queues=(
            Queue(
                models_queue(federation, participant),
                bindings=tuple(
                    Binding(MODELS, routing_key(federation, "model", whom)) for whom in ("all", participant)
                ),
                kind="classic",
                max_length=1,
                expires_seconds=expires_seconds,
            ),
            Queue(
                plans_queue(federation, participant),
                bindings=tuple(Binding(MODELS, routing_key(federation, "plan", whom)) for whom in ("all", participant)),
                dead_letter_exchange=DEAD,
                expires_seconds=expires_seconds,
            ),
        ),
    )
