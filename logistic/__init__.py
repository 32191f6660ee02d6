"""The mathematics of logistic regression over rows that may lie in several places.

Start with `logistic.problem`, which states the objective and the letters; then `logistic.loss`. Everything here is a
pure function or a frozen value over numpy arrays: no clock, no network, no log, and randomness only as a
`numpy.random.Generator` that is handed in. Rows may be arrays, sparse (`logistic.sparse`), or anything that hands out
chunks of them (`logistic.rows`).

>>> import numpy as np
>>> problem = Problem(X=np.array([[0.0], [1.0], [2.0], [3.0]]), y=np.array([0.0, 1.0, 0.0, 1.0]), l2=0.25)
>>> solution = solve(make_solver("newton"), problem, np.zeros(2), max_steps=50, tolerance=1e-9)
>>> solution.status.value
'converged'
"""

from logistic.errors import (
    IndefiniteError,
    LabelError,
    LogisticError,
    NonFiniteError,
    NotInMemoryError,
    ParameterError,
    ShapeError,
    UnknownSolverError,
)
from logistic.evaluation import N_BINS, Evaluation, RowMargins, exact_auc, merge_evaluations, row_margins
from logistic.linear_system import solve_positive
from logistic.loss import (
    Sums,
    gradient,
    gradient_and_hessian_sum,
    gradient_sum,
    gram_vector_sum,
    hessian,
    hessian_sum,
    hessian_vector,
    hessian_vector_sum,
    log_loss_sum,
    loss,
    loss_and_gradient,
    loss_and_gradient_sum,
    margins,
    max_row_norm,
    penalty,
    probabilities,
)
from logistic.moments import Moments, merge, merge_all, moments_of_blocks, moments_of_rows
from logistic.problem import Matrix, Problem, Pull, Vector, penalised
from logistic.rows import Chunk, Rows, over_chunks
from logistic.softmax import centred, class_margins, class_probabilities, gauge
from logistic.solvers import (
    LBFGS,
    SOLVERS,
    GradientDescent,
    Newton,
    Solution,
    Solver,
    State,
    Status,
    make_solver,
    solve,
)
from logistic.sparse import CSR
from logistic.standardisation import Standardisation

__all__ = [
    "CSR",
    "LBFGS",
    "N_BINS",
    "SOLVERS",
    "Chunk",
    "Evaluation",
    "GradientDescent",
    "IndefiniteError",
    "LabelError",
    "LogisticError",
    "Matrix",
    "Moments",
    "Newton",
    "NonFiniteError",
    "NotInMemoryError",
    "ParameterError",
    "Problem",
    "Pull",
    "RowMargins",
    "Rows",
    "ShapeError",
    "Solution",
    "Solver",
    "Standardisation",
    "State",
    "Status",
    "Sums",
    "UnknownSolverError",
    "Vector",
    "centred",
    "class_margins",
    "class_probabilities",
    "exact_auc",
    "gauge",
    "gradient",
    "gradient_and_hessian_sum",
    "gradient_sum",
    "gram_vector_sum",
    "hessian",
    "hessian_sum",
    "hessian_vector",
    "hessian_vector_sum",
    "log_loss_sum",
    "loss",
    "loss_and_gradient",
    "loss_and_gradient_sum",
    "make_solver",
    "margins",
    "max_row_norm",
    "merge",
    "merge_all",
    "merge_evaluations",
    "moments_of_blocks",
    "moments_of_rows",
    "over_chunks",
    "penalised",
    "penalty",
    "probabilities",
    "row_margins",
    "solve",
    "solve_positive",
]
