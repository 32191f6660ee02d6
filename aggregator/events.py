"""What reaches the coordinator, and what it wants done: events and actions, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aggregator.admission import Verdict
from broker.messages import Array, Evaluation, GlobalModel, Goodbye, Heartbeat, Hello, ModelUpdate, Plan, ReleasedModel

#: Addressee of what is meant for every participant.
EVERYBODY = "all"

# --- events ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HelloArrived:
    """A participant introduced itself; ``digest`` is `hello_digest` of the body."""

    hello: Hello
    at: float
    digest: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ContributionArrived:
    """An update or evaluation came; ``digest`` is the SHA-256 of its body."""

    contribution: ModelUpdate | Evaluation
    digest: str
    at: float


@dataclass(frozen=True, slots=True)
class HeartbeatArrived:
    """A participant is alive."""

    heartbeat: Heartbeat
    at: float


@dataclass(frozen=True, slots=True)
class GoodbyeArrived:
    """A participant leaves in order."""

    goodbye: Goodbye
    at: float


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `wake_at` was reached."""

    at: float


Event = HelloArrived | ContributionArrived | HeartbeatArrived | GoodbyeArrived | Tick


# --- actions --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Record:
    """Write a contribution and its verdict into the ledger, for good."""

    update_id: str
    participant: str
    kind: str
    base_version: int
    version: int
    verdict: Verdict
    digest: str


@dataclass(frozen=True, slots=True)
class Include:
    """Write into the ledger which version includes an update, and with what weight."""

    update_id: str
    version: int
    weight: float


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """Write down that there is a version, and its hash: also of one that a newer one follows in the same step."""

    version: int
    weights: Array


@dataclass(frozen=True, slots=True)
class Send:
    """Publish to one participant or to everybody; of models only the newest need arrive."""

    message: Plan | GlobalModel
    to: str


@dataclass(frozen=True, slots=True)
class Release:
    """Publish the trained model to whoever subscribes."""

    model: ReleasedModel


@dataclass(frozen=True, slots=True)
class Reject:
    """Dead-letter the message that brought this event: nobody here can account for it."""

    reason: Literal["unknown-participant"]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the service: nothing that could still come would let the training go on.

    ``no_model``: it has ended, and there is no model to be had from these rows as it was asked for.
    """

    reason: str
    no_model: bool = False


@dataclass(frozen=True, slots=True)
class Outrun:
    """Begin a term above ``epoch``: participants have heard of terms or models that our store knows nothing of."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Observe:
    """Something that people watch: for metrics, logs and the live table."""

    event: str
    fields: Mapping[str, Any]


Action = Record | Include | Made | Send | Release | Reject | GiveUp | Outrun | Observe
