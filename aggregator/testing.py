"""The examinations that every strategy and every store sit: subclass one, give it yours, and run pytest.

::

    class TestMyStrategy(StrategyContract):
        def make_strategy(self) -> Strategy:
            return MyStrategy()

        def full_weight(self, contribution: Contribution) -> float:
            return contribution.share

    class TestMyStore(StoreContract):
        def open_store(self, folder: Path) -> Store:
            return MyStore(folder / "store")

What is promised is in the tests' names; where something is promised only by some, an attribute says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.errors import FencedError, StoreError
from aggregator.events import Include, Record
from aggregator.state import Vector, pack_cell
from aggregator.store import Commit, LedgerEntry, ReleasedBody, Store
from aggregator.strategies import Contribution, Finished, Strategy, StrategyState
from broker import codec
from broker.messages import UPDATE_ARRAYS, Array, Sizes

#: Columns of the models in these tests.
N_FEATURES = 3
#: Norm of the largest arrays that admission lets through by default.
LARGE = 1e9
#: Arrays that are sums over rows, and so grow with them.
SUMS = frozenset({"gradient", "hessian"})


# --- strategies -----------------------------------------------------------------------------


class StrategyContract:
    """What `aggregator.strategies.base.Strategy` promises, as tests.

    Attributes
    ----------
    one_is_its_local_fit
        Whether a fresh update of a single participant becomes the model as it is. A strategy that mixes only goes
        towards it, and not past it: False. One whose server has a step length of its own promises neither: None.
    optional
        Arrays that may be left out of an update, and are in those that the strategy is examined with.
    n_rounds
        How many it takes until the model moves.
    """

    one_is_its_local_fit: bool | None = True
    optional: frozenset[str] = frozenset()
    n_rounds: int = 1

    def make_strategy(self) -> Strategy:
        """Return the strategy under examination."""
        raise NotImplementedError("give the contract your strategy: def make_strategy(self): return MyStrategy()")

    def full_weight(self, contribution: Contribution) -> float:
        """Return what ``contribution`` weighs when it is not late: the paper's weight without its staleness factor."""
        raise NotImplementedError("say what an update weighs that is not late: def full_weight(self, contribution)")

    # --- what comes of the same contributions is the same --------------------------------------

    def test_the_order_of_receipt_does_not_matter_bit_for_bit(self) -> None:
        came = self._contributions("abcde")
        results = {_finished_bytes(self._fold(order)) for order in permutations(came)}
        assert len(results) == 1, "who came first shows in the model"

    def test_a_redelivered_contribution_changes_nothing(self) -> None:
        came = self._contributions("abc")
        assert _finished_bytes(self._fold([*came, came[0], came[2]])) == _finished_bytes(self._fold(came))

    def test_scaling_the_rows_of_everybody_changes_nothing(self) -> None:
        came = self._contributions("abcd")
        for factor in (1024.0, 1e-3, 7.0):
            scaled = [_with_rows(each, factor) for each in came]
            np.testing.assert_allclose(self._fold(scaled).weights, self._fold(came).weights, rtol=1e-12)

    def test_the_state_survives_being_packed_between_receipt_and_the_next_version(self) -> None:
        for strategy, state, weights in self._walk():
            kept = _unpacked(_packed(state))
            assert _packed(kept) == _packed(state)
            assert strategy.pace_of(kept) == strategy.pace_of(state)
            assert _vectors(strategy.broadcast(kept)) == _vectors(strategy.broadcast(state))
            assert _finished_bytes(strategy.finish(kept, weights)) == _finished_bytes(strategy.finish(state, weights))

    def test_what_is_broadcast_with_a_version_does_not_change_while_updates_come(self) -> None:
        strategy, weights = self.make_strategy(), _start()
        state = strategy.init(weights)
        for version in range(3):
            extra = _vectors(strategy.broadcast(state))
            for contribution in self._contributions("cab", seed=version, base=weights):
                state = strategy.receive(state, contribution)
                assert _vectors(strategy.broadcast(state)) == extra, "who asks later is told something else"
            finished = strategy.finish(state, weights)
            state, weights = finished.state, finished.weights

    def test_an_old_state_can_be_finished_again_with_the_same_result(self) -> None:
        for strategy, state, weights in self._walk():
            first, again = (strategy.finish(state, weights) for _ in range(2))
            assert _finished_bytes(first) == _finished_bytes(again)

    def test_the_inputs_are_left_as_they_were(self) -> None:
        strategy, weights = self.make_strategy(), _start()
        came = self._contributions("abc")
        inputs = [weights, *(array for each in came for array in each.arrays.values())]
        copies = [array.copy() for array in inputs]
        state = strategy.init(weights)
        for contribution in came:
            before, packed = state, _packed(state)
            state = strategy.receive(state, contribution)
            assert _packed(before) == packed, "receive changed the state it was given"
        packed = _packed(state)
        strategy.finish(state, weights)
        assert _packed(state) == packed, "finish changed the state it was given"
        for array, copy in zip(inputs, copies, strict=True):
            np.testing.assert_array_equal(array, copy)

    # --- everybody counts, and as much as promised ----------------------------------------------

    def test_what_was_received_is_included_or_still_held(self) -> None:
        strategy, weights = self.make_strategy(), _start()
        state = strategy.init(weights)
        for round_number in range(4):
            names = "abcde"[: 2 + round_number]
            for contribution in self._contributions(names, seed=round_number):
                state = strategy.receive(state, contribution)
                assert contribution.participant in state.held, "it vanished on receipt"
            received = set(state.held)
            finished = strategy.finish(state, weights)
            state, weights, included = finished.state, finished.weights, finished.included
            assert len(set(included)) == len(included), "somebody is included twice"
            assert set(included) <= received, "somebody is included who sent nothing"
            assert received <= set(included) | set(state.held), "somebody vanished"

    def test_a_version_includes_somebody(self) -> None:
        for name in "az":
            assert self._fold(self._contributions(name)).included == (name,)

    def test_a_fresh_update_counts_in_full(self) -> None:
        strategy = self.make_strategy()
        for contribution in self._contributions("abcde"):
            fresh = replace(contribution, staleness=0, base_version=9)
            np.testing.assert_allclose(strategy.weigh(fresh), self.full_weight(fresh), rtol=1e-15)

    def test_an_older_update_never_counts_more_and_always_counts(self) -> None:
        strategy = self.make_strategy()
        for contribution in self._contributions("abc"):
            weights = [strategy.weigh(replace(contribution, staleness=age)) for age in range(200)]
            assert weights == sorted(weights, reverse=True), "an older update counts more"
            assert min(weights) > 0, "an update counts for nothing"

    def test_one_participant_alone_is_its_local_fit(self) -> None:
        before, fitted = _start(), np.array([0.5, -0.25, 3.0, 0.125])
        alone = replace(self._contribution("a", fitted, before), staleness=0, share=1.0)
        after = self._fold([alone], weights=before).weights
        if self.one_is_its_local_fit is None:
            assert np.all((after - before) * (fitted - before) > 0), "it goes away from the local fit"
        elif self.one_is_its_local_fit:
            np.testing.assert_allclose(after, fitted, rtol=1e-14, atol=1e-14)
        else:
            share = (after - before) / (fitted - before)
            np.testing.assert_allclose(share, share[0], rtol=1e-12)
            assert 0 < share[0] <= 1, "it goes past the local fit, or away from it"

    def test_the_weights_stay_finite_whatever_admission_lets_through(self) -> None:
        strategy, rng = self.make_strategy(), np.random.default_rng(11)
        weights = _start()
        state = strategy.init(weights)
        for size in [LARGE, 1e-300, 0.0] * 20:
            direction = rng.normal(size=N_FEATURES + 1)
            values = size * direction / np.linalg.norm(direction)
            for name, rows in (("a", 1.0), ("b", 2.0**53), ("c", 1e-9)):
                contribution = replace(self._contribution(name, values, weights), n_samples=rows)
                state = strategy.receive(state, contribution)
            finished = strategy.finish(state, weights)
            state, weights = finished.state, finished.weights
            assert np.isfinite(weights).all()
            assert all(np.isfinite(vector).all() for vector in state.shared.values()), "such a state cannot be kept"

    # --- what it says of itself -----------------------------------------------------------------

    def test_it_has_a_name_and_is_called_exact_or_approximate(self) -> None:
        strategy = self.make_strategy()
        assert strategy.name
        assert strategy.name == strategy.name.lower().strip()
        assert type(strategy.exact) is bool

    def test_it_asks_for_a_kind_of_update_that_there_is(self) -> None:
        assert self.make_strategy().kind in UPDATE_ARRAYS

    def test_one_that_calls_itself_exact_says_whether_it_has_converged(self) -> None:
        converged = self._fold(self._contributions("ab")).converged
        assert converged is not None or not self.make_strategy().exact, "the loss cannot tell an exact optimum"

    def test_what_it_says_of_a_version_can_be_kept(self) -> None:
        """Numpy's own booleans and numbers look like Python's, until they are to be written down."""
        for strategy, state, weights in self._walk():
            finished = strategy.finish(state, weights)
            assert type(finished.converged) in {bool, type(None)}
            assert type(finished.flat) is bool
            assert type(finished.gap_bound) in {float, type(None)}
            assert all(type(strategy.weigh(each)) is float for each in state.held.values())

    def test_it_starts_with_nothing_held(self) -> None:
        assert self.make_strategy().init(_start()).held == {}

    # --- parts ----------------------------------------------------------------------------------

    def _fold(self, contributions: Sequence[Contribution], *, weights: Array | None = None) -> Finished:
        start = _start() if weights is None else weights
        strategy = self.make_strategy()
        state = strategy.init(start)
        for _ in range(self.n_rounds):
            for contribution in contributions:
                state = strategy.receive(state, contribution)
            finished = strategy.finish(state, start)
            state = finished.state
        return finished

    def _walk(self) -> Iterator[tuple[Strategy, StrategyState, Array]]:
        """Yield the strategy, a state that holds something, and the weights it started from; over a few versions."""
        strategy, weights = self.make_strategy(), _start()
        state = strategy.init(weights)
        for version in range(3):
            for contribution in self._contributions("cab", seed=version, base=weights):
                state = strategy.receive(state, contribution)
                yield strategy, state, weights
            finished = strategy.finish(state, weights)
            state, weights = finished.state, finished.weights

    def _contributions(self, names: str, *, seed: int = 0, base: Array | None = None) -> list[Contribution]:
        """Return an update of each participant: unequal in rows, staleness and everything."""
        start = _start() if base is None else base
        rng = np.random.default_rng([seed, len(names)])
        rows = {name: float(rng.integers(1, 1000)) for name in names}
        mean = sum(rows.values()) / len(rows)
        return [
            replace(
                self._contribution(name, rng.normal(size=N_FEATURES + 1), start),
                staleness=age,
                base_version=9 - age,
                n_samples=rows[name],
                share=rows[name] / mean,
            )
            for age, name in enumerate(names)
        ]

    def _contribution(self, name: str, fitted: Array, base: Array) -> Contribution:
        """Return the update of a participant that got from ``base`` to ``fitted``, in the strategy's kind."""
        known = {"weights": fitted, "delta": fitted - base}
        parts = UPDATE_ARRAYS[self.make_strategy().kind]
        sent = [array for array, part in parts.items() if not part.optional or array in self.optional]
        arrays = {array: self.make_array(array, parts[array].size, known) for array in sent}
        return Contribution(name, f"{name}:i:1", 9, 0, 10.0, 1.0, arrays)

    def make_array(self, array: str, size: str, known: dict[str, Array]) -> Array:
        """Return one array of an update; for a kind of its own, a strategy's tests say here what is in it."""
        assert array in known, f"say what a participant sends as {array!r}: def make_array(self, array, size, known)"
        assert len(known[array]) == Sizes(N_FEATURES).of(size)
        return known[array]


def _start() -> Array:
    return np.array([1.0, -2.0, 0.25, 4.0])


def _with_rows(contribution: Contribution, factor: float) -> Contribution:
    """Return what it would be with so many times the rows, each of them like those there are."""
    arrays = {name: array * (factor if name in SUMS else 1.0) for name, array in contribution.arrays.items()}
    return replace(contribution, n_samples=factor * contribution.n_samples, arrays=arrays)


def _vectors(arrays: dict[str, Array]) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in sorted(arrays.items())}


def _packed(state: StrategyState) -> dict[str, bytes]:
    """Return the cells of ``state``, in the order of their keys: that in which they came is not kept."""
    found: dict[str, Any] = {f"held/{name}": each for name, each in state.held.items()}
    found |= {f"shared/{name}": vector for name, vector in state.shared.items()}
    return {key: pack_cell(found[key]) for key in sorted(found)}


def _unpacked(packed: dict[str, bytes]) -> StrategyState:
    held = {key[5:]: codec.unpack(Contribution, body) for key, body in packed.items() if key.startswith("held/")}
    shared = {key[7:]: codec.unpack(Vector, body).values for key, body in packed.items() if key.startswith("shared/")}
    return StrategyState(held, shared)


def _finished_bytes(finished: Finished) -> tuple[bytes, tuple[str, ...], tuple[tuple[str, bytes], ...]]:
    cells = tuple(_packed(finished.state).items())
    return finished.weights.tobytes(), tuple(sorted(finished.included)), cells


# --- stores ---------------------------------------------------------------------------------


def record(number: int, *, verdict: Any = "accepted", participant: str = "a") -> Record:
    """Return the ledger row of the participant's contribution ``number``."""
    return Record(f"{participant}:i1:{number}", participant, "weights", number, number, verdict, f"digest {number}")


class StoreContract:
    """What `aggregator.store` promises, as tests.

    Attributes
    ----------
    durable
        Whether a store opened again in the same folder has what was committed before. One that lives and dies with its
        process is not, and its tests of reopening are skipped.
    """

    durable: bool = True

    def open_store(self, folder: Path) -> Store:
        """Return a store whose files, if it has any, are in ``folder``: the same ones each time."""
        raise NotImplementedError("give the contract your store: def open_store(self, folder): return MyStore(folder)")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        """Give a new store."""
        store = self.open_store(tmp_path)
        yield store
        store.close()

    def reopened(self, store: Store, folder: Path) -> Store:
        """Close ``store`` and return what is found in its place."""
        if not self.durable:
            pytest.skip("this store lives with its process and promises nothing beyond")
        store.close()
        return self.open_store(folder)

    # --- cells ----------------------------------------------------------------------------------

    def test_a_new_store_is_empty(self, store: Store) -> None:
        assert _everything(store) == ({}, [], {}, [])

    def test_a_cell_keeps_its_last_bytes_and_none_removes_it(self, store: Store) -> None:
        store.commit(Commit(1, {"a": b"1", "b": b"\x00\xff", "empty": b""}))
        store.commit(Commit(1, {"a": b"2", "b": None, "never/there": None}))
        assert store.cells() == {"a": b"2", "empty": b""}

    def test_a_commit_of_nothing_changes_nothing(self, store: Store) -> None:
        store.commit(_full_commit())
        before = _everything(store)
        store.commit(Commit(1, {}))
        assert _everything(store) == before

    def test_a_cell_of_eight_megabytes_comes_back_byte_for_byte(self, store: Store) -> None:
        body = bytes(range(256)) * 2**15
        store.commit(Commit(1, {"weights": body}))
        assert store.cells() == {"weights": body}

    # --- ledger ---------------------------------------------------------------------------------

    def test_the_ledger_is_in_the_order_of_arrival(self, store: Store) -> None:
        numbers = [3, 1, 2]
        store.commit(Commit(1, {}, records=(record(3), record(1))))
        store.commit(Commit(1, {}, records=(record(2, verdict="stale"),)))
        entries = list(store.ledger())
        assert [entry.base_version for entry in entries] == numbers
        assert entries[2] == LedgerEntry("a:i1:2", "a", "weights", 2, 2, "stale", "digest 2", None, None)

    def test_an_update_stands_in_the_ledger_once_and_the_first_verdict_holds(self, store: Store) -> None:
        store.commit(Commit(1, {}, records=(record(1),)))
        store.commit(Commit(1, {}, records=(record(1, verdict="superseded"), record(1, verdict="stale"))))
        assert [entry.verdict for entry in store.ledger()] == ["accepted"]

    def test_the_ledger_says_which_version_includes_an_update_and_with_what_weight(self, store: Store) -> None:
        store.commit(Commit(1, {}, records=(record(1), record(2))))
        store.commit(Commit(1, {}, includes=(Include("a:i1:2", 7, 0.1),)))
        assert [(entry.included_in, entry.weight) for entry in store.ledger()] == [(None, None), (7, 0.1)]

    def test_an_update_may_be_recorded_and_included_by_one_commit(self, store: Store) -> None:
        store.commit(Commit(1, {}, records=(record(1),), includes=(Include("a:i1:1", 1, 1.0),)))
        assert [entry.included_in for entry in store.ledger()] == [1]

    def test_an_update_is_included_once(self, store: Store) -> None:
        store.commit(Commit(1, {}, records=(record(1),), includes=(Include("a:i1:1", 1, 1.0),)))
        for version in (1, 2):
            with pytest.raises(StoreError, match="once"):
                store.commit(Commit(1, {}, includes=(Include("a:i1:1", version, 1.0),)))
        assert [entry.included_in for entry in store.ledger()] == [1]

    def test_what_was_never_recorded_cannot_be_included(self, store: Store) -> None:
        with pytest.raises(StoreError, match="a:i1:1"):
            store.commit(Commit(1, {}, includes=(Include("a:i1:1", 1, 1.0),)))

    # --- versions -------------------------------------------------------------------------------

    def test_a_version_has_one_hash_for_ever(self, store: Store) -> None:
        store.commit(Commit(1, {}, version_hashes={1: "x", 2: "y"}))
        store.commit(Commit(1, {}, version_hashes={1: "x", 3: "z"}))
        with pytest.raises(StoreError, match="version 1"):
            store.commit(Commit(1, {}, version_hashes={1: "other"}))
        assert store.versions() == {1: "x", 2: "y", 3: "z"}

    # --- epochs ---------------------------------------------------------------------------------

    def test_an_epoch_below_the_highest_is_fenced(self, store: Store) -> None:
        store.commit(Commit(2, {"a": b"2"}))
        with pytest.raises(FencedError, match="taken over"):
            store.commit(Commit(1, {"a": b"1"}))
        store.commit(Commit(2, {"a": b"3"}))
        store.commit(Commit(10, {"a": b"10"}))
        with pytest.raises(FencedError):
            store.commit(Commit(9, {"a": b"9"}))
        assert store.cells() == {"a": b"10"}

    def test_of_two_aggregators_on_one_store_the_one_that_took_over_last_goes_on(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("this store cannot be opened twice")
        old, new = self.open_store(tmp_path), self.open_store(tmp_path)
        old.commit(Commit(1, {"by": b"old"}))
        new.commit(Commit(2, {"by": b"new"}))
        with pytest.raises(FencedError):
            old.commit(Commit(1, {"by": b"old again"}))
        assert old.cells() == new.cells() == {"by": b"new"}
        old.close()
        new.close()

    def test_who_takes_over_gets_the_next_epoch_and_the_one_before_commits_nothing_more(self, store: Store) -> None:
        assert store.take_over() == 1
        store.commit(Commit(1, {"a": b"1"}, releases=(ReleasedBody(1, 1, b"one"),)))
        assert store.take_over() == 2
        with pytest.raises(FencedError):
            store.commit(Commit(1, {"a": b"old"}))
        store.commit(Commit(2, {"a": b"2"}))
        assert store.cells() == {"a": b"2"}
        store.commit(Commit(7, {}))
        assert store.take_over() == 8

    def test_who_knows_of_a_higher_epoch_takes_over_above_it(self, store: Store) -> None:
        assert store.take_over() == 1
        assert store.take_over(above=9) == 10
        assert store.take_over(above=4) == 11
        with pytest.raises(FencedError):
            store.commit(Commit(10, {}))

    def test_an_epoch_taken_is_not_given_again_when_the_store_is_opened_again(
        self, store: Store, tmp_path: Path
    ) -> None:
        assert store.take_over() == 1
        again = self.reopened(store, tmp_path)
        assert again.take_over() == 2
        again.close()

    def test_of_several_that_take_over_at_once_each_gets_its_own_epoch(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("this store cannot be opened twice")
        stores = [self.open_store(tmp_path) for _ in range(4)]
        with ThreadPoolExecutor(len(stores)) as pool:
            takings = [pool.submit(store.take_over) for store in stores for _ in range(5)]
        assert sorted(each.result() for each in takings) == list(range(1, 21))
        for store in stores:
            store.close()

    def test_a_fenced_aggregator_confirms_nothing_and_nothing_happens_to_it(self, tmp_path: Path) -> None:
        if not self.durable:
            pytest.skip("this store cannot be opened twice")
        old, new = self.open_store(tmp_path), self.open_store(tmp_path)
        release = ReleasedBody(1, 1, b"one")
        old.commit(Commit(old.take_over(), {}, releases=(release,)))
        new.take_over()
        old.confirm(1)
        assert new.unconfirmed() == [release]
        new.confirm(1)
        assert new.unconfirmed() == []
        old.close()
        new.close()

    # --- releases -------------------------------------------------------------------------------

    def test_a_release_waits_until_it_is_confirmed_the_oldest_first(self, store: Store) -> None:
        later, earlier = ReleasedBody(9, 1, b"nine"), ReleasedBody(4, 1, b"four")
        store.commit(Commit(1, {}, releases=(later,)))
        store.commit(Commit(1, {}, releases=(earlier,)))
        assert store.unconfirmed() == [earlier, later]
        store.confirm(4)
        store.confirm(4)
        assert store.unconfirmed() == [later]

    def test_to_confirm_a_release_confirms_what_it_has_overtaken_and_nothing_newer(self, store: Store) -> None:
        first, second, third = (ReleasedBody(version, 1, b"%d" % version) for version in (2, 4, 9))
        for release in (first, second, third):
            store.commit(Commit(1, {}, releases=(release,)))
        store.confirm(4)
        assert store.unconfirmed() == [third]

    def test_to_confirm_what_was_never_released_changes_nothing(self, store: Store) -> None:
        store.confirm(1)
        assert store.unconfirmed() == []

    # --- all or nothing -------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "spoilt",
        [
            {"epoch": 0},
            {"includes": (Include("a:i1:2", 2, 1.0), Include("nobody:i1:1", 2, 1.0))},
            {"includes": (Include("a:i1:2", 2, 1.0), Include("a:i1:1", 2, 1.0))},
            {"version_hashes": {2: "new", 1: "other"}},
        ],
    )
    def test_a_commit_that_fails_leaves_nothing_behind(self, store: Store, spoilt: dict[str, Any]) -> None:
        store.commit(_full_commit())
        before = _everything(store)
        good = Commit(
            epoch=2,
            cells={"progress": b"2", "plan": None, "new": b"new"},
            records=(record(2), record(3)),
            version_hashes={2: "new"},
            releases=(ReleasedBody(2, 1, b"new"),),
        )
        with pytest.raises(StoreError):
            store.commit(replace(good, **spoilt))
        assert _everything(store) == before
        # Nor is its epoch: an aggregator with the old one goes on.
        store.commit(Commit(1, {"progress": b"3"}))

    def test_what_was_committed_is_there_when_the_store_is_opened_again(self, store: Store, tmp_path: Path) -> None:
        store.commit(_full_commit())
        before = _everything(store)
        again = self.reopened(store, tmp_path)
        assert _everything(again) == before
        again.confirm(1)
        third = self.reopened(again, tmp_path)
        assert third.unconfirmed() == []
        third.close()

    def test_what_was_refused_before_is_refused_when_the_store_is_opened_again(
        self, store: Store, tmp_path: Path
    ) -> None:
        store.commit(replace(_full_commit(), epoch=5))
        again = self.reopened(store, tmp_path)
        with pytest.raises(FencedError):
            again.commit(Commit(4, {}))
        with pytest.raises(StoreError):
            again.commit(Commit(5, {}, includes=(Include("a:i1:1", 2, 1.0),)))
        with pytest.raises(StoreError):
            again.commit(Commit(5, {}, version_hashes={1: "other"}))
        again.close()

    # --- the end --------------------------------------------------------------------------------

    def test_a_closed_store_says_so_and_may_be_closed_again(self, store: Store) -> None:
        store.close()
        store.close()
        with pytest.raises(StoreError):
            store.cells()
        with pytest.raises(StoreError):
            store.commit(Commit(1, {"a": b"1"}))
        with pytest.raises(StoreError):
            store.confirm(1)


def _full_commit() -> Commit:
    return Commit(
        epoch=1,
        cells={"progress": b"1", "plan": b"plan"},
        records=(record(1), record(0, verdict="stale", participant="b")),
        includes=(Include("a:i1:1", 1, 0.5),),
        version_hashes={1: "one"},
        releases=(ReleasedBody(1, 1, b"one"),),
    )


def _everything(store: Store) -> tuple[dict[str, bytes], list[LedgerEntry], dict[int, str], list[ReleasedBody]]:
    return store.cells(), list(store.ledger()), store.versions(), store.unconfirmed()
