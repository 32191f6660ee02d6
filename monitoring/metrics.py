"""What the two services count and measure, by name, for Prometheus.

One class for each service. Its methods are named for what happened (`version_published`, `update`,
`commit`), so that a service says what it did and this module decides which series that moves.
Every family carries the label ``federation``; those of a participant carry ``participant`` as well.

Three rules hold for all of them.

*No private value.* Labels are names from sets known beforehand: participants, outcomes, kinds, states,
phases, reasons. No row, weight, label, row count or prevalence is a label or a value, and the only loss is
the federated one: the exact loss of one site tells about its rows. A participant's own families are
scraped at its site.

*Bounded series.* A label value that is seen once stays for the life of the process. Whoever calls bounds
them: participants by the federation's allow-list (a name outside it counts as `UNLISTED`, which no
participant can be called), outcomes, kinds and reasons by fixed sets.

*What is not known is absent.* A gauge appears when it is first told, since a zero would be a claim (loss 0,
version 0, heard in 1970). Counters whose labels are known appear at zero, so that the first event
is an increase and ``rate()`` sees it.

One registry holds one aggregator and at most one participant: services that share a process are given a
registry each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client import CollectorRegistry

#: What the aggregator is doing, in the order in which it gets there.
PHASES = ("enrolling", "moments", "training", "verifying", "converged")
#: Whether a participant is heard, should be heard, or said goodbye.
STATES = ("live", "silent", "left")
#: The participant label for senders that are not on the allow-list. No name may have a parenthesis.
UNLISTED = "(unlisted)"

# Seconds. A round lasts milliseconds inside one process and hours between hospitals, a commit the time of an
# fsync, a fit anything from a few rows to a few million: about three buckets in every factor of ten.
_ROUND_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400)
_COMMIT_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_FIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 3600)
# Versions. Beyond 20 an update is hardly worth mixing in; one more bucket shows by how much it was late.
_STALENESS_BUCKETS = (0, 1, 2, 3, 5, 8, 13, 20, 40)

_Family = TypeVar("_Family", bound=MetricWrapperBase)


class _Metrics:
    """Families in one registry that share their first labels."""

    def __init__(self, registry: CollectorRegistry, shared_labels: Mapping[str, str]) -> None:
        self._registry = registry
        self._shared_names = tuple(shared_labels)
        self._shared_values = tuple(shared_labels.values())

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, (*self._shared_names, *labels), registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*self._shared_names, *labels), registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, self._shared_names, registry=self._registry, buckets=buckets)

    def _of(self, family: _Family, *labels: str) -> _Family:
        """Return the series of ``family`` with these labels; it exists from now on."""
        return family.labels(*self._shared_values, *labels)

    def _zero(self, counter: Counter, values: Iterable[str]) -> None:
        for value in values:
            self._of(counter, value)


class AggregatorMetrics(_Metrics):
    """What an aggregator tells about one federation.

    Parameters
    ----------
    federation : the label of every series.
    registry : where the families are registered; nothing global is touched.
    outcomes : what may become of an update; counted from zero for each enrolled participant.
    received_kinds, published_kinds : kinds of messages; their bytes are counted from zero.
    dead_letter_reasons : why a message may be refused; counted from zero.
    clock : unix time in seconds.
    """

    def __init__(
        self,
        federation: str,
        registry: CollectorRegistry,
        *,
        outcomes: Iterable[str] = (),
        received_kinds: Iterable[str] = (),
        published_kinds: Iterable[str] = (),
        dead_letter_reasons: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(registry, {"federation": federation})
        self._clock = clock
        self._outcomes = tuple(outcomes)
        self._declare_learning()
        self._declare_participants()
        self._declare_traffic()
        self._zero(self._received_bytes, received_kinds)
        self._zero(self._published_bytes, published_kinds)
        self._zero(self._dead_letters, dead_letter_reasons)
        self._of(self._released)
        self.broker_connected(connected=False)

    def _declare_learning(self) -> None:
        self._serving = self._gauge(
            "fedmq_aggregator_serving", "1 while this aggregator serves the federation, 0 while it waits for its turn."
        )
        self._epoch = self._gauge("fedmq_aggregator_epoch", "Terms that aggregators have served so far, with this one.")
        self._phase = self._gauge("fedmq_phase", "1 for the current phase of the federation.", "phase")
        self._model_version = self._gauge("fedmq_model_version", "Newest published model version.")
        self._last_version = self._gauge(
            "fedmq_last_version_timestamp_seconds", "Unix time at which the newest model version was published."
        )
        self._loss = self._gauge("fedmq_loss_nats", "Federated regularised mean training loss, per row.")
        self._round = self._histogram("fedmq_round_seconds", "Interval between two model versions.", _ROUND_BUCKETS)
        self._staleness = self._histogram(
            "fedmq_staleness_versions",
            "Current version minus base version of an update when it came.",
            _STALENESS_BUCKETS,
        )
        self._commit = self._histogram(
            "fedmq_commit_seconds", "Time to make one step of the aggregator durable.", _COMMIT_BUCKETS
        )
        self._released = self._counter("fedmq_released_total", "Models released to downstream subscribers.")

    def _declare_participants(self) -> None:
        self._updates = self._counter(
            "fedmq_updates_total", "Updates that came, by what became of them.", "participant", "outcome"
        )
        self._participants = self._gauge("fedmq_participants", "Participants by state.", "state")
        self._versions_behind = self._gauge(
            "fedmq_participant_versions_behind",
            "Current model version minus the base version of the participant's last included update.",
            "participant",
        )
        self._last_heard = self._gauge(
            "fedmq_participant_last_heard_timestamp_seconds",
            "Unix time of the participant's last message of any kind.",
            "participant",
        )
        self._awaited = self._gauge(
            "fedmq_participant_awaited",
            "1 while a contribution is asked of the participant and none has come.",
            "participant",
        )

    def _declare_traffic(self) -> None:
        self._received_bytes = self._counter("fedmq_received_bytes_total", "Bytes of message bodies received.", "kind")
        self._published_bytes = self._counter(
            "fedmq_published_bytes_total", "Bytes of message bodies published.", "kind"
        )
        self._dead_letters = self._counter("fedmq_dead_letters_total", "Messages refused and dead-lettered.", "reason")
        self._outgoing = self._gauge(
            "fedmq_outgoing_waiting", "Publications committed and not yet confirmed by the broker."
        )
        self._connected = self._gauge("fedmq_broker_connected", "1 while there is a connection to the broker.")

    def enrolled(self, participant: str) -> None:
        """Count the outcomes of a participant's updates from zero: it is part of the federation."""
        for outcome in self._outcomes:
            self._of(self._updates, participant, outcome)

    def phase(self, name: str) -> None:
        """Show the phase that the federation entered, one of `PHASES`.

        Raises
        ------
        ValueError
            If there is no such phase.
        """
        if name not in PHASES:
            raise ValueError(f"there is no phase {name!r}; the phases are {', '.join(PHASES)}")
        for phase in PHASES:
            self._of(self._phase, phase).set(phase == name)

    def version_published(self, version: int, round_seconds: float | None = None, *, at: float | None = None) -> None:
        """Show the model version that was published, or is known again after a restart.

        Parameters
        ----------
        version : its number.
        round_seconds : since the version before it; None for the first one and after a restart.
        at : unix time of the publication, when it is not now.
        """
        self._of(self._model_version).set(version)
        self._of(self._last_version).set(self._clock() if at is None else at)
        if round_seconds is not None:
            self._of(self._round).observe(round_seconds)

    def loss(self, nats: float) -> None:
        """Show the federated loss: over all participants, never of one of them."""
        self._of(self._loss).set(nats)

    def update(self, participant: str, outcome: str, staleness: int | None = None) -> None:
        """Count an update that came and got its verdict.

        Parameters
        ----------
        participant : a name of the allow-list, or `UNLISTED`.
        outcome : one of a fixed set, such as accepted, duplicate, malformed, forged or stale.
        staleness : in versions, where the update's base version can be believed.
        """
        self._of(self._updates, participant, outcome).inc()
        if staleness is not None:
            self._of(self._staleness).observe(staleness)

    def participants(self, states: Mapping[str, int]) -> None:
        """Set how many participants are in each of the `STATES`; those left out are 0.

        Raises
        ------
        ValueError
            If there is no such state.
        """
        if unknown := sorted(states.keys() - set(STATES)):
            raise ValueError(f"there is no state {unknown[0]!r}; the states are {', '.join(STATES)}")
        for state in STATES:
            self._of(self._participants, state).set(states.get(state, 0))

    def participant(self, name: str, *, versions_behind: int | None, last_heard: float | None, awaited: bool) -> None:
        """Set where one participant of the allow-list stands.

        Parameters
        ----------
        name : the participant.
        versions_behind : current version minus base version of its last included update; None: none yet.
        last_heard : unix time of its last message; None: not heard yet.
        awaited : a contribution is asked of it and none has come.
        """
        self._of(self._awaited, name).set(awaited)
        if versions_behind is not None:
            self._of(self._versions_behind, name).set(versions_behind)
        if last_heard is not None:
            self._of(self._last_heard, name).set(last_heard)

    def commit(self, seconds: float) -> None:
        """Measure a step that was made durable in this time."""
        self._of(self._commit).observe(seconds)

    def outgoing(self, n: int) -> None:
        """Set how many publications are committed and not yet confirmed."""
        self._of(self._outgoing).set(n)

    def serving(self, *, epoch: int | None) -> None:
        """Set whether this aggregator serves, and in which term; one that does not tells of no state.

        Else two would tell of different ones, and an alert could not know which is true.
        """
        self._of(self._serving).set(epoch is not None)
        if epoch is None:
            for known in (self._phase, self._participants, self._awaited, self._versions_behind):
                known.clear()
        else:
            self._of(self._epoch).set(epoch)

    def released(self) -> None:
        """Count a model that went out to downstream subscribers."""
        self._of(self._released).inc()

    def received(self, kind: str, n_bytes: int) -> None:
        """Count the body of a message that came in."""
        self._of(self._received_bytes, kind).inc(n_bytes)

    def published(self, kind: str, n_bytes: int) -> None:
        """Count the body of a message that went out."""
        self._of(self._published_bytes, kind).inc(n_bytes)

    def dead_letter(self, reason: str) -> None:
        """Count a message that was refused for this reason, one of a fixed set."""
        self._of(self._dead_letters, reason).inc()

    def broker_connected(self, connected: bool) -> None:
        """Show that the connection to the broker came or went."""
        self._of(self._connected).set(connected)


class ParticipantMetrics(_Metrics):
    """What a participant tells, at its own site, about its part in one federation.

    Parameters
    ----------
    federation, participant : the labels of every series.
    registry : where the families are registered; nothing global is touched.
    contribution_outcomes : what may become of a contribution; counted from zero.
    received_kinds, sent_kinds : kinds of messages; their bytes are counted from zero.
    refusal_reasons : why a message may be refused; counted from zero.
    """

    def __init__(
        self,
        federation: str,
        participant: str,
        registry: CollectorRegistry,
        *,
        contribution_outcomes: Iterable[str] = (),
        received_kinds: Iterable[str] = (),
        sent_kinds: Iterable[str] = (),
        refusal_reasons: Iterable[str] = (),
    ) -> None:
        super().__init__(registry, {"federation": federation, "participant": participant})
        self._declare_work()
        self._declare_traffic()
        self._zero(self._contributions, contribution_outcomes)
        self._zero(self._received_bytes, received_kinds)
        self._zero(self._sent_bytes, sent_kinds)
        self._zero(self._refused, refusal_reasons)
        self.rows_refused(are_refused=False)
        self.broker_connected(connected=False)

    def _declare_work(self) -> None:
        self._fit = self._histogram("fedmq_participant_fit_seconds", "Time of one local fit.", _FIT_BUCKETS)
        self._model_version = self._gauge(
            "fedmq_participant_model_version", "Newest model version that the participant has taken."
        )
        self._contributions = self._counter(
            "fedmq_participant_contributions_total", "Contributions by what became of them.", "outcome"
        )
        self._outbox = self._gauge(
            "fedmq_participant_outbox_waiting", "Contributions stored and not yet confirmed by the broker."
        )
        self._rows_refused = self._gauge(
            "fedmq_participant_rows_refused", "1 while the rows have changed and cannot be read; the former ones stand."
        )

    def _declare_traffic(self) -> None:
        self._received_bytes = self._counter(
            "fedmq_participant_received_bytes_total", "Bytes of message bodies received.", "kind"
        )
        self._sent_bytes = self._counter("fedmq_participant_sent_bytes_total", "Bytes of message bodies sent.", "kind")
        self._refused = self._counter(
            "fedmq_participant_refused_messages_total", "Messages the participant refused.", "reason"
        )
        self._connected = self._gauge(
            "fedmq_participant_broker_connected", "1 while there is a connection to the broker."
        )

    def model_taken(self, version: int) -> None:
        """Show the model version that arrived and is the newest one known here."""
        self._of(self._model_version).set(version)

    def fitted(self, seconds: float) -> None:
        """Measure a local fit that ended after this time."""
        self._of(self._fit).observe(seconds)

    def contribution(self, outcome: str) -> None:
        """Count a contribution that was confirmed by the broker, settled by the aggregator, resent, ..."""
        self._of(self._contributions, outcome).inc()

    def outbox(self, n: int) -> None:
        """Set how many contributions are stored and not yet confirmed."""
        self._of(self._outbox).set(n)

    def rows_refused(self, are_refused: bool) -> None:
        """Show whether the rows as they are now cannot be used, so that former ones are."""
        self._of(self._rows_refused).set(are_refused)

    def received(self, kind: str, n_bytes: int) -> None:
        """Count the body of a message that came in."""
        self._of(self._received_bytes, kind).inc(n_bytes)

    def sent(self, kind: str, n_bytes: int) -> None:
        """Count the body of a message that went out."""
        self._of(self._sent_bytes, kind).inc(n_bytes)

    def refused_message(self, reason: str) -> None:
        """Count a message that was refused for this reason, one of a fixed set."""
        self._of(self._refused, reason).inc()

    def broker_connected(self, connected: bool) -> None:
        """Show that the connection to the broker came or went."""
        self._of(self._connected).set(connected)
