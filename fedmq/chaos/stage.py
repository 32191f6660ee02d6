"""What the services of a federation share and what outlives them: the broker, the disks and the rows."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import cast

from aggregator.store.memory import Memory
from broker import codec
from broker.messages import GlobalModel
from broker.topology import MODELS, RELEASED, UPDATES
from broker.transport import Outgoing
from fedmq.chaos.broker import ChaosBroker, Conditions
from fedmq.chaos.disks import ChaosOutbox, DiskFull, OutboxFull, digest
from fedmq.chaos.history import Announced, Came, Confirmed, Ended, Failed, History, Lost, Offered, Sent
from fedmq.chaos.transport import ChaosTransport
from fedmq.chaos.world import Site, World
from fedmq.errors import ours_in
from participant.sources import Reading, Table
from participant.watched import Watched

#: Seconds between two looks at rows that may have changed.
WATCH_SECONDS = 1.0

#: A contribution's word in its routing key.
CONTRIBUTIONS = ("update", "evaluation")


class Rows:
    """Rows of ``site`` that change when somebody says so: ``which`` of its tables they are."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.which = 0

    def signature(self) -> int:
        """Return what changes when they do."""
        return self.which

    def watched(self) -> Watched:
        """Return what notices when they change."""
        return Watched(cast("Reading", self), self.which, WATCH_SECONDS if len(self._site.tables) > 1 else 0.0)

    def index(self, table: Table) -> int:
        """Return which of its tables ``table`` is."""
        return next(which for which, each in enumerate(self._site.tables) if each is table)

    def table(self) -> Table:
        """Return them."""
        return self._site.tables[self.which]


class Stage:
    """The stage of ``world``, on the clock ``now``; what happens on it is added to ``history``.

    Attributes
    ----------
    conditions : what messages and commits are exposed to at present.
    is_chaotic : whether the faults are not over yet.
    struck : points at which somebody has died.
    full : services whose store can write nothing at present.
    """

    def __init__(self, world: World, history: History, *, now: Callable[[], float]) -> None:
        self.world = world
        self.history = history
        self.now = now
        self.conditions = Conditions()
        self.conditions.on_fault = self.fault
        self.broker = ChaosBroker(on_arrival=self._arrived, on_loss=self._lost, conditions=self.conditions)
        self.memory = Memory()
        self.rows = {site.name: Rows(site) for site in world.sites}
        self.outboxes: dict[str, ChaosOutbox] = {}
        self.is_chaotic = False
        self.struck: set[str] = set()
        self.full: set[str] = set()
        self._incarnations = dict.fromkeys(self.rows, 0)
        for name in self.rows:
            self.new_outbox(name)

    def begin_chaos(self) -> None:
        """Let everything that this world exposes to chance be exposed."""
        faults = self.world.faults
        if faults.until:
            self.is_chaotic = True
            self.conditions.chances = faults.chances
            self.conditions.latency, self.conditions.delay = faults.latency, faults.delay

    def end_chaos(self) -> None:
        """Have everything in order again."""
        self.is_chaotic = False
        self.conditions.chances = {}
        self.conditions.latency = self.conditions.delay = 0.0
        self.full.clear()
        for outbox in self.outboxes.values():
            outbox.is_full = False
        if self.world.faults.until:
            self.came("everything", "is in order again")

    def not_after_faults(self, seconds: float) -> float:
        """Return ``seconds``, or less where the faults are over before."""
        return min(seconds, max(0.0, self.world.faults.until - self.now()) + 1.0)

    def new_outbox(self, name: str) -> None:
        """Give the participant ``name`` an empty outbox."""
        self._incarnations[name] += 1
        incarnation = f"{name}-{self._incarnations[name]}"
        self.outboxes[name] = ChaosOutbox(name, incarnation, self.history, now=self.now)

    def participants_transport(self, name: str, rng: Random) -> ChaosTransport:
        """Return a connection of the participant ``name``; what it sends is noted."""

        def sent(message: Outgoing) -> None:
            if _is_contribution(message):
                self.history.add(Sent(self.now(), name, message.message_id, digest(message.body)))

        def confirmed(message: Outgoing) -> None:
            if _is_contribution(message):
                self.history.add(Confirmed(self.now(), name, message.message_id))

        return ChaosTransport(self.broker, name, name, rng, on_sent=sent, on_confirmed=confirmed)

    def fault(self, who: str, kind: str, detail: str = "") -> None:
        """Note that something goes wrong."""
        self.history.add(Failed(self.now(), who, kind, detail))

    def came(self, who: str, what: str) -> None:
        """Note that something is there."""
        self.history.add(Came(self.now(), who, what))

    def ended(self, who: str, error: BaseException) -> None:
        """Note that a service has ended with ``error``."""
        said = ours_in(error) or error
        is_ours = isinstance(said, DiskFull | OutboxFull)
        self.history.add(Ended(self.now(), who, f"{type(said).__name__}: {said}", is_ours))

    def _arrived(self, message: Outgoing, who: str) -> None:
        if message.exchange == MODELS and message.routing_key.split(".")[1] == "model":
            model = codec.decode(message.body)
            assert isinstance(model, GlobalModel), "that is what the key is for"
            self.history.add(
                Announced(self.now(), who, model.epoch, model.version, model.bulletin, digest(model.weights.tobytes()))
            )
        elif message.exchange == RELEASED:
            version = int(message.message_id.rpartition(":")[2])
            self.history.add(Offered(self.now(), who, version, digest(message.body)))

    def _lost(self, message_id: str) -> None:
        self.history.add(Lost(self.now(), "broker", message_id))


def _is_contribution(message: Outgoing) -> bool:
    return message.exchange == UPDATES and message.routing_key.split(".")[1] in CONTRIBUTIONS
