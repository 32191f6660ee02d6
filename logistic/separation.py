"""When there is no finite maximum likelihood estimate, or not just one: which columns are to blame, from sums.

Rows are separated by a direction v in the space of the weights (intercept last, t_j = 1 for the label 1 and -1 for 0)
when

    t_j x_j'v >= 0 for every row, and > 0 for some

because F, without a penalty, then falls for ever along v. Separation is complete if all rows are > 0. Else it is
quasi-complete: the coefficients in v grow without bound while the others and the loss settle. Collinear columns are
another matter: x_j'v = 0 for every row, so that moving along v changes nothing at all.

Three sums tell:

1. The row Gram matrix G = sum x_j x_j', which is 4 H(0). Its null space are the collinear directions.
2. The information H(w) = sum kappa_j x_j x_j'. The mean of kappa along v, v'Hv / v'Gv, is 1/4 at w = 0. Newton steps on
   separated rows lower it by a factor e each, since they add about 1 to the margins that decide. Where there is an
   estimate it stays: at .006 on Adult (37 columns, 32,561 rows), .03 on Bank Marketing, .06 on Heart Disease. Below
   `FLAT` is a suspicion; a row 1000 times as long as the others can cause it, too.
3. How many rows are on the right side of v, on the boundary, and on the wrong side (`sides`). That is proof: none of
   anybody's rows on the wrong side, and one on the right side.

The v to prove it with is the Newton step at w, all sums being at this one w: the coefficients that settle have nearly
no share in it any more, less and less from step to step; or else w itself, where separation is complete. Both are tried
while the suspicion lasts. Of Newton's method from 0 (steps; columns standardised):

    Wisconsin breast cancer, 30 columns     complete          suspected at 9, proven at 10
    endometrial cancer, by NV               quasi-complete    11, 11
    sex2, by dia                            quasi-complete    11, 11
    840 separated of 1,230 random problems  either            7 to 11, at most 28; median 11

Of the other 390 none was proven, and 35 were suspected: nearly separated, or with one row far from the rest. After an
asynchronous run the first synchronous Newton step still carries what settles, and the second proves. From about step 33
rounding shifts the flat system (`logistic.linear_system`): the step ends and says nothing any more.

Albert & Anderson, "On the existence of maximum likelihood estimates in logistic regression models", Biometrika 71,
1984; Lesaffre & Albert, "Partial separation in logistic discrimination", J. R. Statist. Soc. B 51, 1989: watch the
information along the iterations. Konis, "Linear programming algorithms for detecting separated data in binary logistic
regression models", PhD thesis, Oxford 2007: the certificate, by a linear program over all rows, which nobody has here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import numpy as np

from logistic.errors import ShapeError
from logistic.loss import margins
from logistic.problem import Chunk, Matrix, Problem, Vector

# Of the mean curvature along a direction. Where there is an estimate, a group of rows would have to have a rate of 1 in
# 100,000 to be there. Who is suspected wrongly is cleared by the rows, for one more trip.
FLAT = 1e-5

# Of G scaled to a diagonal of ones: collinear columns leave up to 1e-15 (see `logistic.inference`, which draws the same
# line), and what is above has left the curvature along it a digit to be judged by.
SMALLEST_EIGENVALUE = 1e-12

# A row is on the boundary when |x'v| is this share of |x| |v| or less. Rounding makes 1e-13 of it. A Newton step that
# still carries what settles makes more; then rows count as wrong, and the next step is asked about.
BOUNDARY = 1e-8

# A column whose share in a direction is this little beside the largest is not named.
NEGLIGIBLE = 1e-4

# Sum over rows of the squared change of their margins. Along an escape each Newton step adds about 1 to the margins of
# the rows that decide, be it a single one in a million: then the weight of its column grows by 0.001 a step.
LONG_STEP = 1e-2

# Columns to name in a sentence.
N_NAMED = 5


class Kind(StrEnum):
    """What is wrong with the rows."""

    COMPLETE = "complete"  # separated, with no row on the boundary
    QUASI_COMPLETE = "quasi-complete"  # separated
    COLLINEAR = "collinear"  # columns that determine one another


@dataclass(frozen=True, slots=True)
class Degeneracy:
    """Why some coefficients have no maximum likelihood estimate.

    Parameters
    ----------
    kind : which of the three ways.
    columns : that take part, the one with the largest share first; none if it takes only the intercept.
    """

    kind: Kind
    columns: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What to tell the user, and what there is to do about it."""
        if self.kind is Kind.COLLINEAR:
            if len(self.columns) == 1:
                return f"the column {self.columns[0]} is constant, so its coefficient is arbitrary; leave it out"
            return f"{_listed(self.columns)} are collinear, so their coefficients are arbitrary; leave one of them out"
        if not self.columns:
            return "all rows have the same label, so the intercept has no finite estimate; there is nothing to fit"
        how = "completely" if self.kind is Kind.COMPLETE else "quasi-completely"
        return (
            f"{_listed(self.columns)} separate{'s' * (len(self.columns) == 1)} the labels {how}, so there is no finite "
            "estimate and no standard error; choose l2 above 0, or Firth's penalty"
        )


@dataclass(frozen=True, slots=True)
class Sides:
    """Counts of rows by the side of a direction that they are on.

    Parameters
    ----------
    right : t_j x_j'v > 0
    boundary : x_j'v = 0, to within rounding
    wrong : t_j x_j'v < 0
    """

    right: int = 0
    boundary: int = 0
    wrong: int = 0

    def __add__(self, other: "Sides") -> "Sides":
        """Count two sites' rows together."""
        return Sides(self.right + other.right, self.boundary + other.boundary, self.wrong + other.wrong)

    @property
    def kind(self) -> Kind | None:
        """What the direction proves when these are everybody's rows; None if it separates nothing."""
        if self.wrong or not self.right:
            return None
        return Kind.QUASI_COMPLETE if self.boundary else Kind.COMPLETE


@dataclass(frozen=True, slots=True, eq=False)
class FlatDirections:
    """Directions in the space of the weights, one in a row, intercept last.

    Parameters
    ----------
    collinear : (a, n_parameters) where every row's margin stands still: a basis, each with a column of its own.
    suspect : (b, n_parameters) where rows move, but have next to no curvature; flattest first.
    curvature : (b,) its mean along each suspect, v'Hv / v'Gv.
    """

    collinear: Matrix
    suspect: Matrix
    curvature: Vector


def flat_directions(H: Matrix, G: Matrix, *, flat: float = FLAT) -> FlatDirections:
    """Find the directions that H or G leave open: eigenvectors of G, and of (H, G) on the rest.

    Parameters
    ----------
    H : (n_parameters, n_parameters) information at some w: everybody's sum of s_j kappa_j x_j x_j', without l2.
    G : (n_parameters, n_parameters) sum of s_j x_j x_j' over the same rows: 4 H at w = 0. With offsets that is a
        weighted sum, which serves as well.
    flat : mean curvature under which a direction is suspected.

    Raises
    ------
    ShapeError
        If H and G are not square and of one shape.
    """
    if not H.shape == G.shape == (len(H), len(H)):
        raise ShapeError(f"H and G have shapes {H.shape} and {G.shape}; both must be (n_parameters, n_parameters)")
    diagonal = np.diag(G)
    roots = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    eigenvalues, vectors = np.linalg.eigh(G / np.outer(roots, roots))
    null = eigenvalues <= SMALLEST_EIGENVALUE
    whitened = vectors[:, ~null] / np.sqrt(eigenvalues[~null]) / roots[:, np.newaxis]  # whitened' G whitened = 1
    curvature, mixtures = np.linalg.eigh(whitened.T @ H @ whitened)
    suspect = curvature < flat
    return FlatDirections(
        _one_column_each(vectors[:, null].T) / roots,
        (whitened @ mixtures[:, suspect]).T,
        curvature[suspect],
    )


def is_escape(H: Matrix, step: Vector, n_samples: float) -> bool:
    """Whether a Newton step leads far, along a direction of nearly no curvature: a suspicion that it has no end.

    Parameters
    ----------
    H : (n_parameters, n_parameters) information where the step begins, sum over everybody's rows, without l2.
    step : (n_parameters,) on standardised columns, where the mean squared margin is about the squared length.
    n_samples : sum of everybody's sample weights.
    """
    moved = n_samples * float(step @ step)
    return moved > LONG_STEP and float(step @ H @ step) < FLAT * moved


def sides(problem: Problem, direction: Vector) -> Sides:
    """Count this site's rows by the side of a direction; rows of weight 0 do not count.

    Parameters
    ----------
    direction : (n_parameters,) v, of any length; a Newton step, or the weights themselves. An offset plays no part.

    Raises
    ------
    ShapeError
        If ``direction`` does not match the columns of ``problem``, or there are more than two classes.
    """
    if problem.n_outputs > 1:
        raise ShapeError(f"a direction has two sides; these rows have {problem.n_classes} classes")
    return sum(problem.over(partial(_sides, direction=direction)), Sides())


def separation(tried: Sequence[tuple[Vector, Sides]], names: Sequence[str]) -> Degeneracy | None:
    """Return what the best of some directions proves, or None if none of them separates everybody's rows.

    Parameters
    ----------
    tried : one direction or more, on the standardised scale, each with the sum over everybody of its ``sides``. Of
        those that separate, the one with most rows on the right side is believed.
    names : of the columns, without the intercept.
    """
    direction, counts = max(tried, key=lambda one: one[1].right if one[1].kind else -1)
    return None if counts.kind is None else Degeneracy(counts.kind, columns_of(direction, names))


def collinearities(flat: FlatDirections, names: Sequence[str]) -> tuple[Degeneracy, ...]:
    """One report for each column too many, from directions on the standardised scale."""
    found = (columns_of(direction, names) for direction in flat.collinear)
    return tuple(Degeneracy(Kind.COLLINEAR, columns) for columns in found if columns)


def columns_of(direction: Vector, names: Sequence[str], scale: Vector | None = None) -> tuple[str, ...]:
    """Return the columns that make up a direction, largest share first, without the negligible ones and the intercept.

    Parameters
    ----------
    direction : (n_parameters,) intercept last.
    names : of the columns.
    scale : (n_features,) the columns' standard deviations, to weigh them by; None for columns that have 1.
    """
    shares = np.abs(direction)
    largest = shares[:-1] if scale is None else shares[:-1] * scale
    least = NEGLIGIBLE * max(largest.max(initial=0.0), shares[-1])
    return tuple(names[j] for j in np.argsort(-largest, kind="stable") if largest[j] > least)


def _sides(chunk: Chunk, direction: Vector) -> Sides:
    toward = (2.0 * chunk.y - 1.0) * margins(chunk.X, direction)
    lengths = np.sqrt(chunk.squared_row_norms() + 1.0)
    least = BOUNDARY * lengths * np.linalg.norm(direction)
    counted = np.ones(len(toward)) if chunk.sample_weight is None else chunk.sample_weight
    right, wrong = (int((side & (counted > 0)).sum()) for side in (toward > least, toward < -least))
    return Sides(right, int((counted > 0).sum()) - right - wrong, wrong)


def _one_column_each(basis: Matrix) -> Matrix:
    """Gauss-Jordan elimination with complete pivoting: of k rows, k columns become those of the identity.

    Eigenvectors of one eigenvalue come in arbitrary mixtures; this names two pairs of equal columns one pair at a time.
    """
    rows = basis.copy()
    for k in range(len(rows)):
        pivot, column = divmod(int(np.argmax(np.abs(rows[k:]))), rows.shape[1])
        rows[[k, k + pivot]] = rows[[k + pivot, k]]
        rows[k] /= rows[k, column]
        others = np.arange(len(rows)) != k
        rows[others] -= np.outer(rows[others, column], rows[k])
    return rows


def _listed(columns: Sequence[str]) -> str:
    named = [*columns[:N_NAMED], *([f"{len(columns) - N_NAMED} more"] if len(columns) > N_NAMED else [])]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
