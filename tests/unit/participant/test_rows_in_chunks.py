"""Rows that only come in chunks: a participant computes what it computes of arrays, in few passes over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from logistic.problem import Chunk, Problem, Vector
from logistic.testing import Chunked, chunked
from participant import training
from participant.comparison import class_scores, compare, labels_and_weights, row_weights, scores
from participant.curvature import largest_margin, quadratic
from participant.personal import NO_ROWS, NOT_IN_MEMORY, fine_tuned, generator, own_intercept, personalise

RNG = np.random.default_rng(12)
N = 60
X = RNG.normal(size=(N, 3))
PLAIN = Problem(X, (RNG.random(N) < 0.4).astype(float), l2=0.1)
WEIGHTED = replace(PLAIN, sample_weight=RNG.integers(0, 3, N).astype(float), offset=RNG.normal(size=N))
OF_CLASSES = Problem(X, RNG.integers(3, size=N).astype(float), l2=0.1, n_classes=3)
PROBLEMS = {"plain": PLAIN, "weights and offsets": WEIGHTED, "three classes": OF_CLASSES}
each_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)


def weights(problem: Problem, seed: int = 1) -> Vector:
    w: Vector = np.random.default_rng(seed).normal(size=problem.n_parameters)
    return w


@dataclass
class Counted:
    """Rows that count how often they are gone over."""

    rows: Any
    passes: list[None] = field(default_factory=list)
    n_rows: int = N
    n_features: int = 3
    n_samples: float = float(N)

    def over(self, function: Callable[[Chunk], Any]) -> Iterator[Any]:
        self.passes.append(None)
        yield from self.rows.over(function)


# --- the quadratic ----------------------------------------------------------------------------


@each_problem
def test_the_quadratic_of_chunks_is_that_of_the_array(problem: Problem) -> None:
    w, rows, last, of_rows = weights(problem), chunked(problem, 7), None, None
    for there in (w, w * 1.5, w * 1.5 + 1e-3, w, w + 1e-5):
        arrays, last = quadratic(problem, there, last)
        found, of_rows = quadratic(rows, there, of_rows)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-11, atol=1e-12)
        assert of_rows.loss == pytest.approx(last.loss, rel=1e-13)
    change = weights(problem, 2)
    assert largest_margin(rows, change) == pytest.approx(largest_margin(problem, change), rel=1e-14)


def test_rows_are_gone_over_twice_at_most_and_once_where_the_hessian_need_not_be_sent() -> None:
    counted = Counted(Chunked(PLAIN, 7))
    problem, last = Problem(counted, l2=0.1), None
    passes = []
    w = weights(PLAIN)
    for there in (w, w, w + 1e-6, w + 1.0):
        before = len(counted.passes)
        arrays, last = quadratic(problem, there, last)
        passes.append((len(counted.passes) - before, "hessian" in arrays))
    assert passes == [(2, True), (2, True), (1, False), (2, True)]


# --- evaluation and ranks ---------------------------------------------------------------------


@each_problem
def test_scores_of_chunks_are_those_of_the_array(problem: Problem) -> None:
    w = weights(problem)
    found, expected = (training._scores(each, w) for each in (chunked(problem, 7), problem))
    assert (found.n, found.correct, found.auc) == (expected.n, expected.correct, expected.auc)
    assert found.log_loss_sum == pytest.approx(expected.log_loss_sum, rel=1e-13)
    assert (found.auc is None) == (problem is not PLAIN)


@pytest.mark.parametrize("problem", [PLAIN, WEIGHTED], ids=["plain", "weights and offsets"])
def test_ranks_of_chunks_are_those_of_the_array(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_update", lambda work, prepared, kind, arrays: arrays)
    edges = {"train_edges": np.array([-1.0, 0.0, 1.0]), "test_edges": np.array([0.5])}
    work = SimpleNamespace(model=SimpleNamespace(extra=edges, weights=weights(problem)))
    found, expected = (
        training._ranks(work, SimpleNamespace(train=each, test=each)) for each in (chunked(problem, 7), problem)
    )
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert found["train_positives"].sum() > 0


# --- own models -------------------------------------------------------------------------------


@each_problem
def test_comparisons_over_chunks_are_those_over_the_array(problem: Problem) -> None:
    rows, one, other = chunked(problem, 7), weights(problem), weights(problem, 2)
    found, expected = compare(rows, one, other), compare(problem, one, other)
    assert (found.n_rows, found.better) == (expected.n_rows, expected.better)
    assert found.difference == pytest.approx(expected.difference, rel=1e-11)
    assert found.std_error == pytest.approx(expected.std_error, rel=1e-11)
    assert scores(rows, one).auc == scores(problem, one).auc
    np.testing.assert_allclose(class_scores(rows, one), class_scores(problem, one), rtol=1e-13)
    np.testing.assert_array_equal(row_weights(rows), row_weights(problem))
    np.testing.assert_array_equal(labels_and_weights(rows)[0], problem.y)


@each_problem
def test_the_own_intercept_over_chunks_is_that_over_the_array(problem: Problem) -> None:
    w, classes = weights(problem), range(problem.n_classes)
    found, expected = (own_intercept(each, w, classes) for each in (chunked(problem, 7), problem))
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-9)
    assert found.kept == ""
    nothing = chunked(problem.take(np.arange(0)), 7)
    assert own_intercept(nothing, w, classes).kept == NO_ROWS


def test_fine_tuning_needs_rows_in_memory_and_says_so() -> None:
    w = weights(PLAIN)
    kept = fine_tuned(chunked(PLAIN, 7), w, (0, 1), generator(0, "site"))
    assert kept.kept == NOT_IN_MEMORY
    assert kept.weights is w
    found = personalise(
        chunked(PLAIN, 7),
        chunked(PLAIN, 7),
        w,
        wanted=("own_intercept", "fine_tuned"),
        classes=(0, 1),
        rng=generator(0, "site"),
    )
    assert found.verdict == NOT_IN_MEMORY
    assert found.own["own_intercept"].comparison is not None
