import numpy as np
import pytest

from logistic import IndefiniteError, Matrix, ShapeError, Vector, solve_positive


def test_a_definite_system_is_solved_as_it_stands(rng: np.random.Generator) -> None:
    A = rng.normal(size=(6, 4))
    H, b = A.T @ A, rng.normal(size=4)
    np.testing.assert_array_equal(solve_positive(H, b), np.linalg.solve(H, b))


def test_columns_of_very_different_scale_need_no_shift() -> None:
    H, b = np.diag([1e-12, 1.0, 1e12]), np.ones(3)
    np.testing.assert_array_equal(solve_positive(H, b), [1e12, 1.0, 1e-12])


def test_a_singular_system_with_a_solution_is_solved_with_a_moderate_one() -> None:
    H = np.ones((2, 2))
    x = solve_positive(H, np.array([1.0, 1.0]))
    np.testing.assert_allclose(H @ x, [1.0, 1.0], rtol=1e-9)
    assert np.abs(x).max() < 1.0


def test_a_direction_without_curvature_is_not_moved_along_without_a_reason() -> None:
    x = solve_positive(np.diag([4.0, 0.0]), np.array([8.0, 0.0]))
    np.testing.assert_allclose(x, [2.0, 0.0], rtol=1e-9)


def test_a_matrix_of_zeros_moves_nothing_that_has_no_force_on_it() -> None:
    np.testing.assert_array_equal(solve_positive(np.zeros((2, 2)), np.zeros(2)), [0.0, 0.0])


@pytest.mark.parametrize(
    "H", [-np.eye(2), np.array([[1.0, 5.0], [5.0, 1.0]]), np.full((2, 2), np.nan)], ids=["negative", "mixed", "nan"]
)
def test_what_cannot_be_a_hessian_is_refused(H: Matrix) -> None:
    with pytest.raises(IndefiniteError, match="cannot be the Hessian"):
        solve_positive(H, np.ones(2))


@pytest.mark.parametrize(("H", "b"), [(np.eye(2), np.ones(3)), (np.ones((2, 3)), np.ones(2)), (np.eye(2), np.eye(2))])
def test_shapes_that_do_not_fit_are_refused(H: Matrix, b: Vector) -> None:
    with pytest.raises(ShapeError):
        solve_positive(H, b)
