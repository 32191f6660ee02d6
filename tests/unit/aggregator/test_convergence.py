"""When training is over."""

import numpy as np
import pytest
from unit.aggregator.story import rules

from aggregator.convergence import federated_loss, is_over, observe_loss
from aggregator.state import Member, Progress

W = np.array([3.0, 4.0, 100.0])


def member(loss: float | None, n_rows: int = 10) -> Member:
    return Member("a", "i", n_rows, 0, loss=loss)


def test_the_loss_is_the_mean_over_all_rows_plus_the_penalty_without_the_intercept() -> None:
    members = [member(0.2, n_rows=30), member(0.6, n_rows=10)]
    assert federated_loss(members, 0.0, W) == pytest.approx(0.3)
    assert federated_loss(members, 0.1, W) == pytest.approx(0.3 + 0.05 * 25.0)


def test_there_is_no_loss_before_all_have_reported() -> None:
    assert federated_loss([member(0.2), member(None)], 0.1, W) is None


def test_there_is_no_loss_without_rows() -> None:
    assert federated_loss([], 0.1, W) is None
    assert federated_loss([member(0.2, n_rows=0)], 0.1, W) is None


def observe(*losses: float | None, patience: int = 2, tolerance: float = 0.1) -> Progress:
    progress = Progress()
    for version, loss in enumerate(losses, start=1):
        versioned = Progress(
            version=version, best_loss=progress.best_loss, best_version=progress.best_version, loss=progress.loss
        )
        progress = observe_loss(versioned, loss, rules("a", patience=patience, tolerance=tolerance))
    return progress


def test_a_loss_that_falls_by_less_than_the_tolerance_is_no_progress() -> None:
    assert (observe(1.0, 0.95).best_loss, observe(1.0, 0.95).loss) == (1.0, 0.95)
    assert observe(1.0, 0.89).best_loss == 0.89


def test_it_is_time_to_stop_when_the_best_is_as_old_as_the_patience() -> None:
    assert not observe(1.0, 1.0).converged
    assert observe(1.0, 1.0, 1.0).converged
    assert not observe(1.0, 1.0, 0.5, 0.5).converged


def test_a_loss_that_flickers_is_held_against_the_best_and_not_against_the_last() -> None:
    assert observe(1.0, 2.0, 1.0).converged


def test_a_version_without_a_loss_says_nothing_about_convergence() -> None:
    progress = observe(1.0, None, None, None)
    assert (progress.loss, progress.best_loss, progress.converged) == (None, 1.0, False)


def test_training_ends_at_the_last_version_also_without_convergence() -> None:
    limit = rules("a", max_versions=5)
    assert not is_over(Progress(version=4), limit)
    assert is_over(Progress(version=5), limit)
    assert is_over(Progress(version=1, converged=True), limit)


def test_a_loss_that_ran_away_ends_the_training_and_has_not_converged() -> None:
    limits = rules("a", patience=2, max_versions=100)
    flickering, away = observe(1.0, 1.05, 1.02), observe(1.0, 1.05, 7.0)
    assert (is_over(flickering, limits), flickering.converged) == (True, True)
    assert (is_over(away, limits), away.converged) == (True, False)
