"""A federation in which everything goes wrong that may: whatever happens and in whatever order, the promises hold.

The participants are the real state machines of `participant.worker`, with their outboxes; the coordinator commits
into a real store. Between them is a network that delays, reorders and duplicates contributions, and loses models.
"""

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aggregator import coordinator
from aggregator.admission import Verdict
from aggregator.events import (
    EVERYBODY,
    Action,
    ContributionArrived,
    Event,
    GoodbyeArrived,
    HeartbeatArrived,
    HelloArrived,
    Include,
    Record,
    Release,
    Send,
    Tick,
)
from aggregator.state import Rules, changes, from_cells, pack_cell
from aggregator.store import Commit, ReleasedBody
from aggregator.store.sqlite import SQLiteStore
from aggregator.strategies import StrategyOptions, make_strategy
from broker import codec
from broker.messages import (
    N_BINS,
    Evaluation,
    GlobalModel,
    Goodbye,
    Heartbeat,
    Hello,
    LocalWork,
    ModelUpdate,
    Plan,
    Scores,
    contribution_id,
)
from participant import worker
from participant.worker import WorkerState

FEATURES = ("age", "sex")
NAMES = ("a", "b", "c")
#: Steps of a federation that nothing disturbs any more: each moves every participant on by one answer.
QUIET_STEPS = 60

Contribution = ModelUpdate | Evaluation
names = st.sampled_from(NAMES)


@dataclass
class Site:
    """A participant: its state machine, its outbox, and the queues that only it reads."""

    name: str
    state: WorkerState
    features: tuple[str, ...] = FEATURES
    present: bool = False
    work: worker.Work | None = None
    outbox: Contribution | None = None
    plans: list[Plan] = field(default_factory=list)
    #: The newest only.
    model: GlobalModel | None = None

    def hello(self) -> Hello:
        rows = 10 + NAMES.index(self.name)
        return Hello("heart", self.name, self.state.incarnation, self.features, rows, 0)

    def step(self, event: worker.Event) -> None:
        self.state, actions = worker.step(self.state, event)
        for action in actions:
            match action:
                case worker.Work():
                    self.work = action
                case worker.Settle():
                    self.outbox = None
                case _:
                    pass

    def take(self) -> None:
        """Read what the queues hold; a site at work leaves its model where it is."""
        for plan in self.plans:
            self.step(worker.PlanArrived(plan))
        self.plans.clear()
        if self.model is not None and not self.state.working:
            model, self.model = self.model, None
            self.step(worker.ModelArrived(model))

    def finish(self) -> Contribution:
        """Do the work in hand, and keep the result."""
        work = self.work
        assert work is not None
        self.work = None
        self.outbox = contribution(work, self.hello().n_rows)
        self.step(worker.Finished())
        return self.outbox


def contribution(work: worker.Work, n_rows: int) -> Contribution:
    """Return what a site answers: numbers that depend on who computes what from which model, and on nothing else."""
    named: dict[str, Any] = {
        "federation": "heart",
        "participant": work.participant,
        "incarnation": work.incarnation,
        "sequence": work.sequence,
        "plan_hash": work.plan_hash,
    }
    if work.task == "evaluate":
        half = np.zeros(N_BINS)
        half[0] = n_rows / 2
        scores = Scores(float(n_rows), 0.5 * n_rows, 0.1 * n_rows, float(n_rows), half, half)
        return Evaluation(**named, version=work.model.version, train=scores, test=None)
    rng = np.random.default_rng([*work.participant.encode(), work.sequence])
    d = len(work.plan.features)
    kind = "moments" if work.task == "moments" else work.plan.kind
    arrays = {"mean": rng.normal(size=d), "m2": rng.random(d)} if kind == "moments" else {kind: rng.normal(size=d + 1)}
    return ModelUpdate(
        **named,
        kind=kind,
        base_version=work.model.version,
        n_samples=float(n_rows),
        loss=1.0 / work.sequence,
        fit_seconds=0.0,
        arrays=arrays,
    )


class Federation(RuleBasedStateMachine):
    """Rules are what may happen; after each, the invariants are looked at."""

    @initialize(
        strategy=st.sampled_from(["fedavg", "fedasync", "fedbuff"]),
        standardise=st.booleans(),
        start_with=st.integers(1, len(NAMES)),
        max_staleness=st.sampled_from([0, 1, 100]),
        patience=st.sampled_from([1, 25]),
    )
    def begin(self, strategy: str, start_with: int, max_staleness: int, patience: int, *, standardise: bool) -> None:
        options = StrategyOptions() if strategy == "fedasync" else StrategyOptions(quorum=2, deadline_seconds=12.0)
        self.rules_ = Rules(
            federation="heart",
            participants=NAMES,
            start_with=start_with,
            strategy=make_strategy(strategy, options),
            work=LocalWork("gradient-descent", 1, None, None),
            choose_learning_rate=standardise,
            standardise=standardise,
            max_versions=6,
            max_staleness=max_staleness,
            patience=patience,
            silence_seconds=10.0,
            sweep_seconds=20.0,
        )
        self.now = 0.0
        self.state = coordinator.first_state(self.rules_)
        self.store = SQLiteStore(":memory:", "heart")
        self.sites = {name: Site(name, WorkerState(name, f"{name}0")) for name in NAMES}
        self.hellos: list[Hello] = []
        self.on_their_way: list[Contribution] = []
        self.ever_sent: list[Contribution] = []
        # What was seen of the coordinator, from its actions alone.
        self.ledger: dict[str, Record] = {}
        self.included: dict[str, int] = {}
        self.settled: dict[tuple[str, str], int] = {}
        self.bulletin = self.version = self.releases = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.let_it_finish()
            self.store.close()

    # --- what may happen ------------------------------------------------------------------------

    @rule(name=names)
    def hello(self, name: str) -> None:
        """Let somebody start, or connect again: it introduces itself and sends again what is not settled."""
        site = self.sites[name]
        site.present = True
        self.hellos.append(site.hello())
        self.happens(HelloArrived(site.hello(), self.now))
        if site.outbox is not None:
            self.on_their_way.append(site.outbox)

    @rule(name=names, data=st.data())
    def disk_lost(self, name: str, data: st.DataObject) -> None:
        lost = self.sites[name]
        number = int(lost.state.incarnation[1:]) + 1
        self.sites[name] = Site(name, WorkerState(name, f"{name}{number}"), lost.features)
        if data.draw(st.booleans(), "says hello at once"):
            self.hello(name)

    @rule(name=names)
    def other_columns(self, name: str) -> None:
        """Let somebody come back with a file that does not fit, or with the right one again."""
        site = self.sites[name]
        site.features = ("weight",) if site.features == FEATURES else FEATURES
        self.hello(name)

    @precondition(lambda self: self.hellos)
    @rule(data=st.data())
    def an_old_hello_comes_again(self, data: st.DataObject) -> None:
        self.happens(HelloArrived(data.draw(st.sampled_from(self.hellos)), self.now))

    @rule(name=names)
    def take(self, name: str) -> None:
        if self.sites[name].present:
            self.sites[name].take()

    @rule(name=names)
    def finish(self, name: str) -> None:
        site = self.sites[name]
        if site.present and site.work is not None:
            self.send(site.finish())

    @rule(name=names)
    def answer(self, name: str) -> None:
        """Take, compute and send without delay, as a quick site does."""
        self.take(name)
        self.finish(name)
        self.deliver_all(name)

    @precondition(lambda self: self.on_their_way)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Deliver any contribution that is on its way: the order is the network's."""
        index = data.draw(st.integers(0, len(self.on_their_way) - 1), "which")
        self.arrives(self.on_their_way.pop(index))

    @precondition(lambda self: self.ever_sent)
    @rule(data=st.data())
    def deliver_again(self, data: st.DataObject) -> None:
        """Deliver any contribution that was ever sent: a redelivery, however late."""
        self.arrives(data.draw(st.sampled_from(self.ever_sent)))

    @rule(name=names)
    def lose_models(self, name: str) -> None:
        self.sites[name].model = None

    @rule(name=names)
    def heartbeat(self, name: str) -> None:
        site = self.sites[name]
        if site.present:
            beat = Heartbeat("heart", name, site.state.incarnation, site.state.activity, site.state.bulletin)
            self.happens(HeartbeatArrived(beat, self.now))

    @rule(name=names)
    def goodbye(self, name: str) -> None:
        site = self.sites[name]
        site.present = False
        self.happens(GoodbyeArrived(Goodbye("heart", name, site.state.incarnation), self.now))

    @rule(seconds=st.sampled_from([0.1, 1 / 3, 5.0, 10.0, 25.0]))
    def time_passes(self, seconds: float) -> None:
        """Wake the coordinator whenever it wants to be woken on the way."""
        until = self.now + seconds
        while (wake_at := coordinator.wake_at(self.state)) is not None and wake_at <= until:
            self.now = max(self.now, wake_at)
            self.happens(Tick(self.now))
            again = coordinator.wake_at(self.state)
            assert again is None or again > self.now, "it would be woken again at once, for ever"
        self.now = until

    @rule()
    def crash(self) -> None:
        """Lose all but the store; the clock starts anew, as monotonic clocks do."""
        kept = self.store.cells()
        self.now = 0.0
        before = from_cells(self.rules_, kept) if kept else coordinator.first_state(self.rules_)
        assert before.progress == self.state.progress
        if kept:
            after, actions = coordinator.restored(before, self.now)
            self.comes_of_it(before, after, actions)
            assert self.state.progress.epoch == before.progress.epoch + 1

    # --- what comes of it -----------------------------------------------------------------------

    def send(self, sent: Contribution) -> None:
        self.on_their_way.append(sent)
        self.ever_sent.append(sent)

    def deliver_all(self, name: str) -> None:
        mine = [each for each in self.on_their_way if each.participant == name]
        self.on_their_way = [each for each in self.on_their_way if each.participant != name]
        for each in mine:
            self.arrives(each)

    def arrives(self, arrived: Contribution) -> None:
        member = self.state.members.get(arrived.participant)
        known = contribution_id(arrived) in self.ledger
        actions = self.happens(ContributionArrived(arrived, "digest", self.now))
        records = [action for action in actions if isinstance(action, Record)]
        if member is None or member.barred:
            assert records == [], "nobody can account for it"
        else:
            assert len(records) == (0 if known else 1), "each contribution gets one verdict, and a redelivery none"

    def happens(self, event: Event) -> list[Action]:
        after, actions = coordinator.step(self.state, event)
        self.comes_of_it(self.state, after, actions)
        return actions

    def comes_of_it(self, before: Any, after: Any, actions: list[Action]) -> None:
        self.store.commit(
            Commit(
                epoch=after.progress.epoch,
                cells={
                    key: None if value is None else pack_cell(value) for key, value in changes(before, after).items()
                },
                records=tuple(action for action in actions if isinstance(action, Record)),
                includes=tuple(action for action in actions if isinstance(action, Include)),
                version_hashes={after.progress.version: after.weights.tobytes().hex()} if after.plan else {},
                releases=tuple(
                    ReleasedBody(action.model.version, action.model.epoch, codec.encode(action.model))
                    for action in actions
                    if isinstance(action, Release)
                ),
            )
        )
        self.state = after
        for action in actions:
            self.perform(action, before.progress.bulletin)
        assert self.version == after.progress.version

    def perform(self, action: Action, bulletin_before: int) -> None:
        match action:
            case Record():
                assert action.verdict in get_args(Verdict)
                assert action.verdict != "duplicate", "a duplicate is not written down"
                assert action.update_id not in self.ledger
                self.ledger[action.update_id] = action
            case Include():
                self.includes(action)
            case Send(Plan() as plan, to):
                for site in self.addressed(to):
                    site.plans.append(codec.decode(codec.encode(plan)))  # type: ignore[arg-type]
            case Send(GlobalModel() as model, to):
                self.announces(model, to, bulletin_before)
                for site in self.addressed(to):
                    site.model = codec.decode(codec.encode(model))  # type: ignore[assignment]
            case Release():
                self.releases += 1
                assert self.releases == 1, "the model is released once"
            case _:
                pass

    def addressed(self, to: str) -> list[Site]:
        return list(self.sites.values()) if to == EVERYBODY else [self.sites[to]]

    def includes(self, include: Include) -> None:
        assert include.update_id in self.ledger, "it is included and was never received"
        assert self.ledger[include.update_id].verdict == "accepted"
        assert include.update_id not in self.included, "it is included twice"
        assert include.version in {self.version, self.version + 1}, "versions go up one by one"
        assert include.weight > 0
        self.version = include.version
        self.included[include.update_id] = include.version

    def announces(self, model: GlobalModel, to: str, bulletin_before: int) -> None:
        resent = to != EVERYBODY and model.bulletin == self.bulletin == bulletin_before
        assert resent or model.bulletin > self.bulletin, "a newer model does not say so"
        self.bulletin = max(self.bulletin, model.bulletin)
        assert model.version == self.version
        for name, standing in model.roster.items():
            if self.waiting_of(name):
                assert standing.asked == "", "it is asked while its update is in no model"
            key = (name, standing.incarnation)
            assert standing.settled >= self.settled.get(key, 0), "settled falls"
            self.settled[key] = standing.settled

    def waiting_of(self, name: str) -> set[str]:
        """Return the updates of ``name`` that were accepted and are in no model yet."""
        return {
            update_id
            for update_id, record in self.ledger.items()
            if record.participant == name
            and record.verdict == "accepted"
            and record.kind not in {"moments", "evaluation"}
            and update_id not in self.included
        }

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def nothing_that_was_accepted_vanishes(self) -> None:
        if hasattr(self, "state"):
            for name in NAMES:
                member = self.state.members.get(name)
                pending = {member.pending} - {""} if member else set()
                assert self.waiting_of(name) == pending
                held = self.state.strategy_state.held
                assert ({held[name].update_id} if name in held else set()) == pending

    @invariant()
    def the_store_has_what_the_coordinator_knows(self) -> None:
        if hasattr(self, "state"):
            assert {entry.update_id: entry.included_in for entry in self.store.ledger()} == {
                update_id: self.included.get(update_id) for update_id in self.ledger
            }

    # --- the end --------------------------------------------------------------------------------

    def let_it_finish(self) -> None:
        """Let everybody be there, with the right columns, and answer what it is asked: the federation converges."""
        plan = self.state.plan
        for name, site in self.sites.items():
            right = FEATURES if plan is None else plan.features
            member = self.state.members.get(name)
            known = member is not None and member.incarnation == site.state.incarnation and not member.barred
            # Whoever is there and known says hello no more: what was lost on the way to it, its heartbeats bring again.
            if plan is None or not (known and site.present and site.features == right):
                site.features = right
                self.hello(name)
        for _ in range(QUIET_STEPS):
            if self.state.progress.phase == "converged":
                break
            for name in NAMES:
                self.answer(name)
                self.heartbeat(name)
            self.time_passes(1.0)
        assert self.state.progress.phase == "converged", f"it waits for ever in {self.state.progress.phase}"
        assert self.releases == 1
        assert self.state.strategy_state.held == {}


TestFederation = Federation.TestCase
TestFederation.settings = settings(
    max_examples=250,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
