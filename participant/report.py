"""What the participant tells people: metrics, logs, readiness; never a row, a weight or a label."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.errors import TransportError
from broker.transport import Happening
from monitoring.connection import report_connection
from monitoring.http import Health
from monitoring.logs import logger
from monitoring.metrics import ParticipantMetrics
from participant.errors import DataError
from participant.status import status
from participant.worker import Barred, Ignore, Settle, Work, WorkerState


class Reporter:
    """Turns what the service does into metrics and log lines."""

    def __init__(self, metrics: ParticipantMetrics, health: Health, participant: str) -> None:
        self._participant = participant
        self._federation = ""
        # Replaced as a whole: the thread that answers /status reads it.
        self._seen: tuple[WorkerState, float] | None = None
        self._metrics = metrics
        self._health = health
        self._log = logger("participant").bind(participant=participant)
        self._last_barred = ""
        self._last_refused = ""
        health.not_ready("service", "it is starting")

    def started(self, table: str, federation: str, schema: str | None) -> None:
        """The service takes messages; ``schema`` is the hash of the table's, to be compared with other sites'."""
        self._health.ready("service")
        self._federation = federation
        self._log.info("participant_started", federation=federation, table=table, schema=schema)

    def rows_changed(self, table: str) -> None:
        """Our rows are others; everybody is told."""
        self._last_barred = ""
        self._log.info("rows_changed", table=table, what_next="the federation trains again with them")

    def rows_refused(self, error: DataError) -> None:
        """Our rows have changed, and cannot be read as they are now; said once, however often somebody looks."""
        self._metrics.rows_refused(are_refused=True)
        if str(error) != self._last_refused:
            self._last_refused = str(error)
            self._log.error("rows_refused", why=str(error), what_next="the rows read before stand until this is mended")

    def rows_stand(self) -> None:
        """The rows that we have are those that there are."""
        self._metrics.rows_refused(are_refused=False)
        self._last_refused = ""

    def stopped(self) -> None:
        """The service has ended in order."""
        self._log.info("participant_stopped")

    def waits_for_aggregator(self, error: TransportError, seconds: float) -> None:
        """The exchanges are not there: no aggregator has served this broker yet."""
        self._health.not_ready("service", f"{error}; is the aggregator running?")
        self._log.warning("aggregator_not_there_yet", why=str(error), again_in_seconds=round(seconds, 1))

    def beat(self) -> None:
        """The event loop is alive."""
        self._health.beat()

    def took(self, kind: str, n_bytes: int) -> None:
        """A message came."""
        self._metrics.received(kind, n_bytes)

    def took_model(self, version: int) -> None:
        """The newest model is known."""
        self._metrics.model_taken(version)

    def refused(self, reason: str, why: str) -> None:
        """A message that came is no message of ours."""
        self._metrics.refused_message(reason)
        self._log.warning("message_refused", reason=reason, why=why)

    def stands(self, state: WorkerState) -> None:
        """The worker's state is another one."""
        former = self._seen
        goes_on = former is not None and (former[0].activity, former[0].sequence) == (state.activity, state.sequence)
        since = former[1] if former is not None and goes_on else time.monotonic()
        self._seen = state, since

    def standing(self) -> dict[str, Any]:
        """Return where the participant stands, as ``/status`` tells it; safe to call from any thread."""
        about = {"service": "participant", "name": self._participant, "federation": self._federation}
        seen = self._seen
        if seen is None:
            return about
        state, since = seen
        return {**about, **asdict(status(state, time.monotonic() - since))}

    def decided(self, action: Work | Settle | Ignore | Barred) -> None:
        """The worker decided something."""
        match action:
            case Work(task, model, sequence=sequence):
                self._log.debug("work_begun", task=task, version=model.version, sequence=sequence)
            case Settle(sequence, refusal):
                self._metrics.contribution("refused" if refusal else "settled")
                level = self._log.warning if refusal not in {"", "training-over"} else self._log.debug
                level("contribution_settled", sequence=sequence, refusal=refusal)
            case Ignore(reason):
                self._log.debug("message_ignored", reason=reason)
            case Barred(reason) if reason != self._last_barred:
                self._last_barred = reason
                self._log.error(
                    "participant_barred",
                    reason=reason,
                    what_next="correct it here; who does not look for new rows has to start again",
                )

    def failed(self, task: str, version: int) -> None:
        """The work has no usable result, and the aggregator will be told so."""
        self._metrics.contribution("failed")
        self._log.error(
            "work_failed",
            task=task,
            version=version,
            why="the local fit diverged",
            what_next="the plan needs a smaller learning rate or fewer local steps",
        )

    def worked(self, task: str, seconds: float) -> None:
        """The work is done and its result durable."""
        if task == "train":
            self._metrics.fitted(seconds)

    def kept_release(self, version: int, folder: Path) -> None:
        """The released model is on our disk."""
        self._log.info("release_kept", version=version, folder=folder)

    def made_own_models(self, version: int, verdict: str, folder: Path) -> None:
        """Models of our own are beside it; the verdict is a sentence on how they compare."""
        self._log.info("own_models_made", version=version, verdict=verdict, folder=folder)

    def not_kept(self, error: Exception) -> None:
        """The released model, or those of our own, could not be made or written."""
        what_next = "it is tried again at the next release or start"
        self._log.error("release_not_kept", why=str(error) or type(error).__name__, what_next=what_next)

    def no_model_yet(self) -> None:
        """No model has come since the hello."""
        self._log.warning(
            "no_model_yet",
            why="the aggregator waits for other sites, or does not know this one",
            what_next="look at the aggregator's log; hello is said again",
        )

    def left_without_goodbye(self, error: Exception) -> None:
        """The service ends although not everything could be sent."""
        self._log.warning(
            "left_without_goodbye",
            why=str(error) or "the grace was over",
            what_next="the rest is sent at the next start",
        )

    def outbox(self, n: int) -> None:
        """So many contributions are not settled."""
        self._metrics.outbox(n)

    def sent(self, kind: str, n_bytes: int, *, again: bool) -> None:
        """A message is confirmed."""
        self._metrics.sent(kind, n_bytes)
        if kind in {"update", "evaluation"}:
            self._metrics.contribution("resent" if again else "confirmed")

    def sending_waits(self, error: TransportError) -> None:
        """A message could not be sent yet."""
        self._log.warning("sending_waits", why=str(error))

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
