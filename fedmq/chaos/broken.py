"""The product with a promise broken on purpose, each in one place: what the checker is worth shows in what it finds.

=====================  ============================================================================
no-dedup               admission takes what comes twice for new
ack-before-commit      deliveries are acknowledged before what they change is durable
no-epoch               the store lets everybody commit, and participants follow older epochs
resend-recomputes      what is sent again is computed again
release-not-stored     a release is published, and not in the store until then
settled-when-confirmed a contribution is forgotten when the broker has it
=====================  ============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from aggregator import admission
from aggregator.store import Commit
from aggregator.store.memory import MemoryStore
from aggregator.term import Term
from broker import codec
from broker.messages import ModelUpdate
from broker.transport import Delivery
from participant import worker
from participant.outbox import Entry, Outbox
from participant.service import ParticipantService

Change = tuple[Any, str, Any]


def _no_dedup() -> Sequence[Change]:
    examine = admission.examine

    def never_duplicate(state: Any, contribution: Any) -> Any:
        verdict = examine(state, contribution)
        if verdict != "duplicate":
            return verdict
        member = state.members[contribution.participant]
        known = {**state.members, member.name: replace(member, received=contribution.sequence - 1, pending="")}
        return examine(replace(state, members=known), replace(contribution, incarnation=member.incarnation))

    return [(admission, "examine", never_duplicate)]


def _ack_before_commit() -> Sequence[Change]:
    perform = Term._perform  # noqa: SLF001 - what is broken is inside

    async def acknowledged_first(self: Term, deliveries: Sequence[Delivery], events: Any, **more: Any) -> None:
        for delivery in deliveries:
            await delivery.ack()
        await perform(self, deliveries, events, **more)

    return [(Term, "_perform", acknowledged_first)]


def _no_epoch() -> Sequence[Change]:
    commit, model = MemoryStore.commit, worker._model  # noqa: SLF001 - what is broken is inside

    def unfenced(self: MemoryStore, given: Commit) -> None:
        memory = self._open()
        epoch, memory.epoch = memory.epoch, given.epoch
        commit(self, given)
        memory.epoch = max(epoch, given.epoch)

    def any_epoch(state: Any, arrived: Any) -> Any:
        known = state.model
        if known is not None and arrived.epoch < known.epoch:
            state = replace(state, model=None)
        return model(state, arrived)

    return [(MemoryStore, "commit", unfenced), (worker, "_model", any_epoch)]


def _resend_recomputes() -> Sequence[Change]:
    entries = Outbox.entries

    def another(entry: Entry) -> Entry:
        message = codec.decode(entry.body)
        if not isinstance(message, ModelUpdate):
            return entry
        arrays = {name: array * (1.0 + 1e-6) for name, array in message.arrays.items()}
        return replace(entry, body=codec.encode(replace(message, arrays=arrays)))

    return [(Outbox, "entries", lambda self: [another(entry) for entry in entries(self)])]


def _release_not_stored() -> Sequence[Change]:
    commit = MemoryStore.commit

    def without(self: MemoryStore, given: Commit) -> None:
        commit(self, replace(given, releases=()))

    return [(MemoryStore, "commit", without)]


def _settled_when_confirmed() -> Sequence[Change]:
    send_again = ParticipantService._send_again  # noqa: SLF001 - what is broken is inside

    async def only_unconfirmed(self: ParticipantService) -> None:
        if self._confirmed != self._state.in_flight:
            await send_again(self)

    return [(ParticipantService, "_send_again", only_unconfirmed)]


VARIANTS: Mapping[str, Callable[[], Sequence[Change]]] = {
    "no-dedup": _no_dedup,
    "ack-before-commit": _ack_before_commit,
    "no-epoch": _no_epoch,
    "resend-recomputes": _resend_recomputes,
    "release-not-stored": _release_not_stored,
    "settled-when-confirmed": _settled_when_confirmed,
}


@contextmanager
def broken(variant: str | None) -> Iterator[None]:
    """Let the product be broken as ``variant`` says, for a while; None leaves it whole."""
    changes = [] if variant is None else [patch.object(*change) for change in VARIANTS[variant]()]
    for change in changes:
        change.start()
    try:
        yield
    finally:
        for change in changes:
            change.stop()
