"""What the aggregator tells people: metrics, logs, readiness, and whoever watches from the same process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from aggregator.admission import ANSWERS
from aggregator.announcement import asked_of
from aggregator.events import Observe
from aggregator.state import State
from aggregator.status import status
from broker.errors import TransportError
from broker.messages import ReleasedModel
from broker.transport import Happening, Outgoing
from monitoring.connection import report_connection
from monitoring.http import Health
from monitoring.logs import logger
from monitoring.metrics import STATES, AggregatorMetrics

#: Told of every step: what happened, and the state after it.
OnStep = Callable[[State, Sequence[Observe]], None]
#: Told of every model that is released.
OnRelease = Callable[[ReleasedModel], Any]


class _Seen(NamedTuple):
    """The state after a step, and when that was: on the clock of events, and on this process's."""

    state: State
    now: float
    at: float


class Reporter:
    """Turns what the service does into metrics and log lines; never a row, a weight or a label."""

    def __init__(
        self,
        metrics: AggregatorMetrics,
        health: Health,
        *,
        on_step: OnStep | None = None,
        on_release: OnRelease | None = None,
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._on_step = on_step
        self._on_release = on_release
        self._log = logger("aggregator")
        self._enrolled: set[str] = set()
        # Replaced as a whole: the thread that answers /status reads it.
        self._seen: _Seen | None = None
        health.not_ready("service", "it is starting")

    # --- the service ---------------------------------------------------------------------------

    def started(self, state: State, now: float) -> None:
        """The service takes messages."""
        self._health.ready("service")
        self._metrics.phase(state.progress.phase)
        self._metrics.serving(epoch=state.progress.epoch)
        self._log.info(
            "aggregator_started",
            federation=state.rules.federation,
            strategy=state.rules.strategy.name,
            phase=state.progress.phase,
            version=state.progress.version,
            epoch=state.progress.epoch,
            waits_for=sorted(set(state.rules.participants) - set(state.members)),
        )
        self.stepped(state, [], now)

    def waits_for_its_turn(self) -> None:
        """The service is there, and another aggregator serves as far as anybody knows."""
        self._seen = None
        self._health.ready("service")
        self._metrics.serving(epoch=None)
        self._log.debug("aggregator_waits_for_its_turn")

    def stood_down(self, why: str) -> None:
        """Another aggregator serves now."""
        self._log.warning("aggregator_stood_down", why=why, what_next="it waits for its turn")

    def stopped(self) -> None:
        """The service has ended in order."""
        self._metrics.serving(epoch=None)
        self._log.info("aggregator_stopped")

    def stepped(self, state: State, observed: Sequence[Observe], now: float) -> None:
        """A step was committed."""
        for observation in observed:
            self._observe(observation)
        self._seen = _Seen(state, now, time.monotonic())
        self._participants(state, now)
        if self._on_step is not None:
            self._on_step(state, observed)

    def _observe(self, observation: Observe) -> None:
        fields = observation.fields
        match observation.event:
            case "contribution_examined":
                accepted = fields["verdict"] == "accepted" and fields["kind"] not in {"moments", "evaluation", *ANSWERS}
                self._metrics.update(
                    fields["participant"], fields["verdict"], fields["staleness"] if accepted else None
                )
                level = self._log.debug if fields["verdict"] in {"accepted", "training-over"} else self._log.warning
                level("contribution_examined", **fields)
            case "version_made":
                self._metrics.version_published(fields["version"], fields["round_seconds"])
                if fields["loss"] is not None:
                    self._metrics.loss(fields["loss"])
                self._log.debug("version_made", **fields)
            case "units_disagree" | "participant_barred" | "participant_silent":
                self._log.warning(observation.event, **fields)
            case "phase_entered":
                self._metrics.phase(fields["phase"])
                self._log.info("phase_entered", **fields)
            case event:
                self._log.info(event, **fields)

    def _participants(self, state: State, now: float) -> None:
        wall = time.time()
        counts = dict.fromkeys(STATES, 0)
        for name, presence in state.presence.items():
            member = state.members[name]
            counts[presence.state] += 1
            if name not in self._enrolled:
                self._enrolled.add(name)
                self._metrics.enrolled(name)
            self._metrics.participant(
                name,
                versions_behind=state.progress.version - member.last_base_version if member.included else None,
                last_heard=wall - (now - presence.last_heard),
                # Who left in order is asked again when it is back; nobody needs to be told that it is not there.
                awaited=presence.state != "left" and asked_of(state, member) != "",
            )
        self._metrics.participants(counts)

    def standing(self) -> dict[str, Any]:
        """Return where the federation stands, as ``/status`` tells it; safe to call from any thread."""
        seen = self._seen
        if seen is None:
            return {"service": "aggregator", "serving": False}
        now = seen.now + time.monotonic() - seen.at
        federation = seen.state.rules.federation
        return {"service": "aggregator", "serving": True, "federation": federation, **asdict(status(seen.state, now))}

    def released(self, model: ReleasedModel) -> None:
        """A model is released, and committed as such."""
        if self._on_release is not None:
            self._on_release(model)

    def committed(self, seconds: float) -> None:
        """A step is durable."""
        self._metrics.commit(seconds)

    # --- messages ------------------------------------------------------------------------------

    def received(self, kind: str, n_bytes: int) -> None:
        """A message came."""
        self._metrics.received(kind, n_bytes)

    def rejected(self, reason: str, why: str, routing_key: str) -> None:
        """A message is dead-lettered."""
        self._metrics.dead_letter(reason)
        self._log.warning("message_rejected", reason=reason, why=why, routing_key=routing_key)

    def published(self, kind: str, n_bytes: int) -> None:
        """A message is confirmed."""
        self._metrics.published(kind, n_bytes)
        if kind == "released":
            self._metrics.released()

    def waiting(self, n: int) -> None:
        """So many publications are not confirmed."""
        self._metrics.outgoing(n)

    def publication_waits(self, message: Outgoing, error: TransportError) -> None:
        """A publication could not be made yet."""
        self._log.warning("publication_waits", routing_key=message.routing_key, why=str(error))

    def gave_up_publishing(self, n: int) -> None:
        """The service stops although not everything is confirmed."""
        self._log.warning("publications_left", waiting=n, what_next="they are sent again at the next start")

    # --- the connection ------------------------------------------------------------------------

    def happened(self, happening: Happening) -> None:
        """Something befell the connection to the broker."""
        report_connection(
            self._health,
            self._metrics.broker_connected,
            self._log,
            kind=happening.kind,
            detail=happening.detail,
            attempt=happening.attempt,
        )
