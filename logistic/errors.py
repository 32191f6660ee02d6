"""What can go wrong in the mathematics.

LogisticError
 +-- ShapeError           arrays that do not fit together
 +-- NonFiniteError       a NaN or an infinity where a number is needed
 +-- LabelError           a label that is neither 0 nor 1
 +-- ParameterError       a number outside the range in which it has a meaning
 +-- NotInMemoryError     some rows are wanted of rows that come in chunks only
 +-- IndefiniteError      a matrix that should be a Hessian and has a direction of negative curvature
 +-- UnknownSolverError   a solver's name that nothing is registered under
"""


class LogisticError(Exception):
    """Root of every error that this package raises on purpose."""


class ShapeError(LogisticError):
    """The arrays do not fit together."""


class NonFiniteError(LogisticError):
    """A NaN or an infinity stands where a number is needed."""


class LabelError(LogisticError):
    """A label is none of the classes."""


class ParameterError(LogisticError):
    """A number lies outside the range in which it has a meaning."""


class NotInMemoryError(LogisticError):
    """Some of the rows are wanted, by their numbers, of rows that come in chunks only."""


class IndefiniteError(LogisticError):
    """A matrix that should be a Hessian is not positive semi-definite."""


class UnknownSolverError(LogisticError):
    """No solver is registered under that name."""
