"""What holds of the solvers whatever the rows are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from logistic import Problem, Standardisation, Status, Vector, loss, make_solver, margins, solve

values = st.floats(-5, 5)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw up to 20 rows of two columns, penalised so that there is one finite optimum (both classes are there)."""
    n_rows = draw(st.integers(2, 20))
    X = draw(arrays(np.float64, (n_rows, 2), elements=values))
    y = draw(arrays(np.float64, n_rows, elements=st.sampled_from([0.0, 1.0])))
    y[:2] = [0.0, 1.0]
    return Problem(X, y, l2=draw(st.floats(0.01, 1)))


@settings(max_examples=50)
@given(problem=problems(), start=arrays(np.float64, 3, elements=values))
def test_newton_and_lbfgs_agree_wherever_they_start(problem: Problem, start: Vector) -> None:
    newton, lbfgs = (
        solve(make_solver(name), problem, start, max_steps=300, tolerance=1e-9) for name in ("newton", "lbfgs")
    )
    assert newton.status is lbfgs.status is Status.CONVERGED
    np.testing.assert_allclose(newton.w, lbfgs.w, atol=1e-6)


@pytest.mark.parametrize("name", ["newton", "lbfgs", "gradient-descent"])
@settings(max_examples=30)
@given(problem=problems(), start=arrays(np.float64, 3, elements=values))
def test_no_full_batch_step_raises_the_loss(name: str, problem: Problem, start: Vector) -> None:
    solver = make_solver(name)
    state = solver.init(problem, start, None)
    for _ in range(5):
        before = loss(problem, state.w)
        state = solver.step(problem, state)
        assert loss(problem, state.w) <= before * (1 + 1e-12)


@given(
    X=arrays(np.float64, (5, 2), elements=values),
    w=arrays(np.float64, 3, elements=values),
    mean=arrays(np.float64, 2, elements=values),
    scale=arrays(np.float64, 2, elements=st.floats(0.1, 10)),
)
def test_a_model_gives_the_same_margins_on_either_scale(X: Vector, w: Vector, mean: Vector, scale: Vector) -> None:
    scaling = Standardisation(mean, scale)
    np.testing.assert_allclose(margins(X, scaling.to_original(w)), margins(scaling.apply(X), w), atol=1e-9)
    np.testing.assert_allclose(scaling.to_standardised(scaling.to_original(w)), w, atol=1e-10)
