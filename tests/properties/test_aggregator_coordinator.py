"""A federation in which everything goes wrong that may: whatever happens and in whatever order, the promises hold.

The participants are real: rows, `participant.worker`, `participant.training`, and outboxes; the coordinator commits
into a real store. Between them is a network that delays, reorders and duplicates contributions, and loses models.
Sites join late, bring other rows or other columns, lose their disks, go for too long and return.
"""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit.aggregator.federation import Contribution, Site, drawn, optimum, pooled, weights_of

from aggregator import coordinator
from aggregator.admission import ANSWERS, Verdict
from aggregator.events import (
    EVERYBODY,
    Action,
    ContributionArrived,
    Event,
    GiveUp,
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
from broker.messages import GlobalModel, Goodbye, Heartbeat, Hello, LocalWork, Plan, ReleasedModel, contribution_id
from logistic.evaluation import exact_auc
from participant.sources.table import Table
from participant.worker import WorkerState

NAMES = ("a", "b", "c")
FEATURES = ("age", "sex")
#: Steps of a federation that nothing disturbs any more: each moves every participant on by one answer.
QUIET_STEPS = 150
#: Updates that answer a question are settled on receipt, and are in no model.
SETTLED_AT_ONCE = {"moments", "evaluation", *ANSWERS}
EVICT = 40.0

names = st.sampled_from(NAMES)


def rows_of(name: str, edition: int, features: tuple[str, ...] = FEATURES) -> Table:
    """Return the rows that ``name`` has for the ``edition``-th time: not always as many."""
    place = NAMES.index(name)
    return replace(drawn(100 * place + edition, 10 + 3 * place + edition % 3, place - 1.0, d=2), features=features)


class Federation(RuleBasedStateMachine):
    """Rules are what may happen; after each, the invariants are looked at."""

    @initialize(
        strategy=st.sampled_from(["fedavg", "fedasync", "fedbuff", "incremental-newton", "incremental-newton"]),
        standardise=st.booleans(),
        start_with=st.integers(1, len(NAMES)),
        max_staleness=st.sampled_from([0, 1, 100]),
        patience=st.sampled_from([1, 25]),
        l2=st.sampled_from([None, 0.1]),
        evicts=st.booleans(),
    )
    def begin(
        self,
        strategy: str,
        start_with: int,
        max_staleness: int,
        patience: int,
        l2: float | None,
        *,
        standardise: bool,
        evicts: bool,
    ) -> None:
        self.is_exact = strategy == "incremental-newton"
        plain = strategy in {"fedasync", "incremental-newton"}
        options = StrategyOptions() if plain else StrategyOptions(quorum=2, deadline_seconds=12.0)
        self.rules_ = Rules(
            federation="heart",
            participants=NAMES,
            start_with=start_with,
            strategy=make_strategy(strategy, options),
            work=LocalWork("gradient-descent", 1, None, None),
            choose_learning_rate=standardise and not self.is_exact,
            standardise=standardise,
            l2=l2,
            max_versions=500 if self.is_exact else 6,
            max_staleness=100 if self.is_exact else max_staleness,
            patience=patience,
            silence_seconds=10.0,
            sweep_seconds=20.0,
            evict_seconds=EVICT if evicts else None,
        )
        self.now = 0.0
        self.state = coordinator.first_state(self.rules_)
        self.store = SQLiteStore(":memory:", "heart")
        assert self.store.take_over() == coordinator.first_state(self.rules_).progress.epoch
        self.editions = dict.fromkeys(NAMES, 0)
        self.sites = {
            name: Site(name, rows_of(name, 0), WorkerState(name, f"{name}0"), is_there=False) for name in NAMES
        }
        self.hellos: list[Hello] = []
        self.on_their_way: list[Contribution] = []
        self.ever_sent: list[Contribution] = []
        # What was seen of the coordinator, from its actions alone.
        self.ledger: dict[str, Record] = {}
        self.included: dict[str, int] = {}
        self.forgotten: set[str] = set()
        self.settled: dict[tuple[str, str], int] = {}
        self.bulletin = self.version = 0
        self.releases: list[ReleasedModel] = []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.let_it_finish()
            self.store.close()

    # --- what may happen ------------------------------------------------------------------------

    @rule(name=names)
    def hello(self, name: str) -> None:
        """Let somebody start, or connect again: it introduces itself and sends again what is not settled."""
        site = self.sites[name]
        site.is_there = True
        self.hellos.append(site.hello())
        self.happens(HelloArrived(site.hello(), self.now))
        if site.outbox is not None:
            self.on_their_way.append(site.outbox)

    @rule(name=names, data=st.data())
    def disk_lost(self, name: str, data: st.DataObject) -> None:
        lost = self.sites[name]
        number = int(lost.state.incarnation[1:]) + 1
        self.sites[name] = Site(name, lost.table, WorkerState(name, f"{name}{number}"), is_there=False)
        if data.draw(st.booleans(), "says hello at once"):
            self.hello(name)

    @rule(name=names)
    def other_columns(self, name: str) -> None:
        """Let somebody come back with a file that does not fit, or with the right one again."""
        features = ("age", "weight") if self.sites[name].table.features == FEATURES else FEATURES
        self.restarts(name, rows_of(name, self.editions[name], features))

    @rule(name=names)
    def other_rows(self, name: str) -> None:
        """Let somebody come back with other rows; what it computed from those before is on its way, or kept."""
        self.editions[name] += 1
        self.restarts(name, rows_of(name, self.editions[name], self.sites[name].table.features))

    @precondition(lambda self: self.hellos)
    @rule(data=st.data())
    def old_hellos_come_again(self, data: st.DataObject) -> None:
        """Let a queue bring them again: what was said after them, with all the others, in the order it was said."""
        index = data.draw(st.integers(0, len(self.hellos) - 1), "from which on")
        name = self.hellos[index].participant
        for hello in self.hellos[index:]:
            if hello.participant == name:
                self.happens(HelloArrived(hello, self.now))

    @rule(name=names)
    def take(self, name: str) -> None:
        if self.sites[name].is_there:
            self.sites[name].take()

    @rule(name=names)
    def finish(self, name: str) -> None:
        site = self.sites[name]
        # One whose columns are others now has to start again before it can compute anything.
        if site.is_there and site.work is not None and site.work.plan.features == site.table.features:
            self.send(site.compute())

    @rule(name=names)
    def answer(self, name: str) -> None:
        """Take, compute and send without delay, as a quick site does."""
        self.take(name)
        self.finish(name)
        self.deliver_all(name)

    @rule()
    def everybody_answers(self) -> None:
        for name in NAMES:
            self.answer(name)

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
        if site.is_there:
            beat = Heartbeat("heart", name, site.state.incarnation, site.state.activity, site.state.bulletin)
            self.happens(HeartbeatArrived(beat, self.now))

    @rule(name=names)
    def goodbye(self, name: str) -> None:
        site = self.sites[name]
        site.is_there = False
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
        epoch = self.store.take_over()
        after, actions = coordinator.restored(before, self.now, epoch)
        self.comes_of_it(before, after, actions)
        assert self.state.progress.epoch == epoch > before.progress.epoch

    # --- what comes of it -----------------------------------------------------------------------

    def restarts(self, name: str, rows: Table, *, said: bool = True) -> None:
        self.sites[name] = self.sites[name].restarted(rows)
        if said:
            self.hello(name)

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
        for name, member in before.members.items():
            if member.pending and not after.members[name].pending and member.pending not in self.included:
                self.is_forgotten(name, member, after.members[name])

    def is_forgotten(self, name: str, before: Any, after: Any) -> None:
        """What was accepted is in no model only where the rows that it is of are not there any more."""
        others = (before.n_rows, before.fingerprint) != (after.n_rows, after.fingerprint)
        assert after.barred or after.evicted or others, "an accepted update vanishes"
        self.forgotten.add(before.pending)

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
            case Release(model):
                assert not self.releases or model.version > self.releases[-1].version, "a version is released twice"
                self.releases.append(model)
            case GiveUp():
                raise AssertionError(f"it gives up: {action.reason}")
            case _:
                pass

    def addressed(self, to: str) -> list[Site]:
        return list(self.sites.values()) if to == EVERYBODY else [self.sites[to]]

    def includes(self, include: Include) -> None:
        assert include.update_id in self.ledger, "it is included and was never received"
        assert self.ledger[include.update_id].verdict == "accepted"
        assert include.update_id not in self.included, "it is included twice"
        assert include.update_id not in self.forgotten, "it is of rows that are gone"
        assert include.version in {self.version, self.version + 1}, "versions go up one by one"
        assert include.weight > 0
        self.version = include.version
        self.included[include.update_id] = include.version

    def announces(self, model: GlobalModel, to: str, bulletin_before: int) -> None:
        resent = to != EVERYBODY and model.bulletin == self.bulletin == bulletin_before
        assert resent or model.bulletin > self.bulletin, "a newer model does not say so"
        self.bulletin = max(self.bulletin, model.bulletin)
        # A version that includes nobody's update is made when all whom the strategy wanted have gone.
        assert model.version == self.version or (self.is_exact and model.version == self.version + 1)
        self.version = model.version
        for name, standing in model.roster.items():
            if self.state.members[name].pending:
                assert standing.asked == "", "it is asked while its update is in no model"
            key = (name, standing.incarnation)
            assert standing.settled >= self.settled.get(key, 0), "settled falls"
            self.settled[key] = standing.settled

    def waiting_of(self, name: str) -> set[str]:
        """Return the updates of ``name`` that were accepted, are in no model yet and have not been forgotten."""
        return {
            update_id
            for update_id, record in self.ledger.items()
            if record.participant == name
            and record.verdict == "accepted"
            and record.kind not in SETTLED_AT_ONCE
            and update_id not in self.included
            and update_id not in self.forgotten
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
                of_name = {held[name].update_id} if name in held else set()
                # An exact strategy keeps the last one of each, also when it is in a model already.
                assert pending <= of_name if self.is_exact else pending == of_name
                assert not of_name & self.forgotten

    @invariant()
    def the_store_has_what_the_coordinator_knows(self) -> None:
        if hasattr(self, "state"):
            assert {entry.update_id: entry.included_in for entry in self.store.ledger()} == {
                update_id: self.included.get(update_id) for update_id in self.ledger
            }

    @invariant()
    def whoever_counts_has_sent_its_moments(self) -> None:
        if hasattr(self, "state") and self.state.plan is not None and self.rules_.standardise:
            assert self.state.strategy_state.held.keys() <= self.state.moments.keys()

    # --- the end --------------------------------------------------------------------------------

    def let_it_finish(self) -> None:
        """Let everybody be there, with the right columns, and answer what it is asked: the federation converges."""
        features = FEATURES if self.state.plan is None else self.state.plan.features
        for name, site in list(self.sites.items()):
            if site.table.features != features:
                self.restarts(name, rows_of(name, self.editions[name], features), said=self.state.plan is not None)
        for name, site in self.sites.items():
            member, hello = self.state.members.get(name), site.hello()
            known = (
                member is not None
                and (member.incarnation, member.n_rows, member.fingerprint)
                == (hello.incarnation, hello.n_rows, hello.fingerprint)
                and not member.barred
            )
            # Whoever is there and known says hello no more: what was lost on the way to it, its heartbeats bring again.
            if self.state.plan is None or not (known and site.is_there):
                self.hello(name)
        self.is_quiet()
        # One has other rows again, so that whatever there was before, the last release is of all who are there now.
        self.editions["b"] += 1
        self.restarts("b", rows_of("b", self.editions["b"], self.sites["b"].table.features))
        released = len(self.releases)
        self.is_quiet()
        assert len(self.releases) == released + 1
        self.release_is_of_everybody()

    def is_quiet(self) -> None:
        for _ in range(QUIET_STEPS):
            self.everybody_answers()
            for name in NAMES:
                self.heartbeat(name)
            self.time_passes(1.0)
            if self.state.progress.phase == "converged":
                return
        raise AssertionError(f"it waits for ever in {self.state.progress.phase}")

    def release_is_of_everybody(self) -> None:
        model, tables = self.releases[-1], [self.sites[name].table for name in NAMES]
        assert [each.name for each in model.participants] == list(NAMES)
        assert model.n_samples == sum(each.n_train for each in tables)
        problem, scale = pooled(*tables, l2=self.rules_.l2, standardise=self.rules_.standardise)
        np.testing.assert_allclose(model.objective.l2, problem.l2, rtol=1e-12)
        np.testing.assert_allclose(model.standardisation.mean, scale.mean, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(model.standardisation.scale, scale.scale, rtol=1e-12)
        w = weights_of(model)
        assert model.metrics.train.n == problem.n_rows
        # A margin near another one may change places by rounding.
        exact = exact_auc(problem.y, np.round(problem.X @ w[:-1] + w[-1], 9))
        assert model.metrics.train.auc is not None
        assert exact is not None
        assert abs(model.metrics.train.auc - exact) < 1e-9
        assert model.metrics.train.auc_tie_bound == 0.0
        if self.is_exact:
            assert model.converged
            np.testing.assert_allclose(w, optimum(problem), rtol=0, atol=1e-8)
        else:
            assert self.state.strategy_state.held == {}


TestFederation = Federation.TestCase
TestFederation.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
