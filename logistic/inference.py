"""What a fit says about its coefficients and about itself: from sums over rows, without a row.

Everything starts from sums at the fitted weights w, on the standardised scale (`FitSums`): the
information H, the gradient g, the penalty's diagonal P. With A = H + diag(P) and x including the intercept's 1,

    covariance, model-based   A^-1 H A^-1        which is H^-1 without a penalty
    covariance, sandwich      A^-1 M A^-1        M = sum (y - p)^2 x x', "HC0"
    effective df              trace(A^-1 H)      the number of parameters without a penalty

and w' = J w on the original scale has the covariance J C J'. Intervals and tests of a penalised fit describe the
spread of its estimator and leave out its bias towards 0: they are about the shrunken coefficient.

What the rows cannot tell is left open. A direction v with H v = 0, from collinear or constant columns, leaves a
coefficient undetermined when it changes along v; it has NaN in a covariance and None in a report, with a penalty too,
which then chose the value alone. A constant column takes the original scale's intercept with it, which is the
log-odds where that column is 0. Separated classes are another matter: weights on their way to infinity look like an
ordinary fit with very large standard errors, and it is `Certificate.newton_step` that stays far from 0 and tells.

le Cessie & van Houwelingen, "Ridge estimators in logistic regression", Applied Statistics 41, 1992: the variance.
White, "Maximum likelihood estimation of misspecified models", Econometrica 50, 1982: the sandwich.
Gray, "Flexible methods for analyzing survival data using splines", JASA 87, 1992: the effective df.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logistic.distributions import chi2_sf, normal_quantile, normal_sf2
from logistic.errors import IndefiniteError, NonFiniteError, ParameterError, ShapeError
from logistic.moments import CONSTANT_COLUMN_SHARE
from logistic.problem import Matrix, Vector
from logistic.standardisation import Standardisation

# Of H scaled to a diagonal of ones. Exact collinearity leaves up to 1e-15 there (10 to 400 columns, up to a million
# rows); at 1e-12 columns agree to 6 digits, and a variance has 3 digits left.
SMALLEST_EIGENVALUE = 1e-12

# Same scaling. Rounding never makes it as negative as that, not even when H was sent in float32.
LEAST_EIGENVALUE = -1e-6

# Half the width of a 95 % interval, in standard errors.
WIDTH = normal_quantile(0.975)

# Share of a coefficient, as a unit vector, that may lie in flat directions: rounding there, 1e-15 over the smallest
# eigenvalue that is not flat, stays below unless that is nearly flat itself.
LARGEST_FLAT_SHARE = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class FitSums:
    """A fit, and sums over all its rows at its weights: unregularised, on the standardised scale, intercept last.

    Parameters
    ----------
    w : (n_parameters,) weights.
    H : (n_parameters, n_parameters) information, sum of s_j kappa_j x_j x_j'; Newton's kappa = p (1 - p).
    g : (n_parameters,) gradient, sum of s_j (p_j - y_j) x_j.
    n : sum of the sample weights, read as counts of rows.
    n_positive : same, of the rows with the label 1.
    log_loss_sum : minus the log-likelihood, in nats.
    penalty : (n_parameters,) diagonal P = n l2 of a sum's penalty; 0 for the intercept, 0 throughout without one.
    standardisation : what made the rows that the sums are over.
    meat : (n_parameters, n_parameters) sum of s_j^2 (y_j - p_j)^2 x_j x_j', or None where nobody asked for a sandwich.
    null_log_loss_sum : of the intercept alone, or None: n and n_positive give it unless rows have offsets.

    Raises
    ------
    ShapeError
        If the arrays do not fit together.
    NonFiniteError
        If a number is NaN or infinite.
    ParameterError
        If ``n`` is not positive, ``n_positive`` does not lie between 0 and ``n``, or a penalty is negative.
    """

    w: Vector
    H: Matrix
    g: Vector
    n: float
    n_positive: float
    log_loss_sum: float
    penalty: Vector
    standardisation: Standardisation
    meat: Matrix | None = None
    null_log_loss_sum: float | None = None

    def __post_init__(self) -> None:
        d = self.standardisation.mean.size + 1
        for name, vector in (("w", self.w), ("g", self.g), ("penalty", self.penalty)):
            check_sums(name, vector, (d,))
        for name, matrix in (("H", self.H), ("meat", self.H if self.meat is None else self.meat)):
            check_sums(name, matrix, (d, d))
        if not (0 < self.n < math.inf and 0 <= self.n_positive <= self.n and math.isfinite(self.log_loss_sum)):
            raise ParameterError(
                f"n is {self.n}, n_positive {self.n_positive}, log_loss_sum {self.log_loss_sum}; "
                "a fit has rows, as many positive ones at most, and a finite loss"
            )
        if (self.penalty < 0).any():
            raise ParameterError("the penalty holds a negative number; 0 leaves a coefficient unpenalised")

    @property
    def is_penalised(self) -> bool:
        """Whether any coefficient is."""
        return bool(self.penalty.any())


@dataclass(frozen=True, slots=True)
class Coefficient:
    """One line of the table: a weight, and how sure one can be of it.

    All but ``estimate`` are None where the rows do not determine the coefficient; an odds ratio or one of its limits is
    None where it overflows, too.
    """

    estimate: float
    std_error: float | None = None
    z: float | None = None
    p_value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    odds_ratio: float | None = None
    odds_ratio_low: float | None = None
    odds_ratio_high: float | None = None


@dataclass(frozen=True, slots=True)
class FitStatistics:
    """How well the model fits the rows it was fitted to; the penalty is in none of it.

    deviance = -2 log L,   aic = deviance + 2 k,   bic = deviance + log(n) k,   k = effective_df

    Parameters
    ----------
    log_likelihood, deviance : of the fit; log 1 = 0 is a saturated model's.
    null_deviance : of the intercept alone.
    df_model : rank of the information, less the intercept: 1 a column unless columns are collinear or constant.
    df_residual : n less that rank.
    effective_df : trace(A^-1 H), intercept included; the rank without a penalty.
    aic, bic : by the effective df, as in Gray 1992 and Harrell, Regression Modeling Strategies, 2015, section 9.10.
    lr_statistic : null deviance less deviance.
    lr_p_value : of lr_statistic as chi-squared with df_model degrees of freedom; None of a penalised fit, where it has
        no such distribution, and of one without columns.
    pseudo_r2 : McFadden's, 1 - deviance / null_deviance; None of a single class.
    """

    log_likelihood: float
    deviance: float
    null_deviance: float
    df_model: int
    df_residual: float
    effective_df: float
    aic: float
    bic: float
    lr_statistic: float
    lr_p_value: float | None
    pseudo_r2: float | None


@dataclass(frozen=True, slots=True)
class Certificate:
    """How far w is from the optimum of F, with G = g + P w.

    Parameters
    ----------
    gradient_norm : largest component of G / n, nats per row and unit of weight.
    newton_step : largest component of A^-1 G, what Newton's method would still change; standardised scale.
    newton_decrement : sqrt(G' A^-1 G / n); half its square estimates F(w) - F*, in nats per row.
    """

    gradient_norm: float
    newton_step: float
    newton_decrement: float


def jacobian(standardisation: Standardisation) -> Matrix:
    """Return J with ``standardisation.to_original(w) == J @ w``, (n_parameters, n_parameters)."""
    J = np.diag(np.append(1.0 / standardisation.scale, 1.0))
    J[-1, :-1] = -standardisation.mean / standardisation.scale
    return J


def covariance(fit: FitSums, *, robust: bool = False, standardised: bool = False) -> Matrix:
    """Covariance of the estimated coefficients, intercept last.

    J A^-1 H A^-1 J',   or J A^-1 M A^-1 J' if ``robust``;   J = 1 if ``standardised``

    Returns
    -------
    (n_parameters, n_parameters) symmetric; NaN in the rows and columns of undetermined coefficients.

    Raises
    ------
    ParameterError
        If ``robust`` and the fit comes without its meat.
    IndefiniteError
        If H is not positive semi-definite.
    """
    M = fit.meat if robust else fit.H
    if M is None:
        raise ParameterError("robust standard errors need sum (y - p)^2 x x' from the last sweep; the fit has none")
    J = frame(fit, standardised=standardised)
    information, inverse = _inverses(fit)
    spread = J @ inverse.root
    C: Matrix = spread @ inverse.whiten(M) @ spread.T
    undetermined = information.is_flat(J)
    C[undetermined] = C[:, undetermined] = np.nan
    return (C + C.T) / 2.0


def coefficients(
    fit: FitSums, *, robust: bool = False, standardised: bool = False, level: float = 0.95
) -> tuple[Coefficient, ...]:
    """Wald's table: estimates with standard errors, tests and intervals of coverage ``level``; intercept last.

    Raises
    ------
    ParameterError
        As `covariance`, or if ``level`` does not lie between 0 and 1.
    IndefiniteError
        As `covariance`.
    """
    w = fit.w if standardised else fit.standardisation.to_original(fit.w)
    variances = np.diag(covariance(fit, robust=robust, standardised=standardised))
    width = normal_quantile((1.0 + level) / 2.0)
    return tuple(wald(float(w_j), float(v), width) for w_j, v in zip(w, variances, strict=True))


def fit_statistics(fit: FitSums) -> FitStatistics:
    """Deviances, information criteria and the likelihood-ratio test against the intercept alone.

    Raises
    ------
    IndefiniteError
        If H is not positive semi-definite.
    """
    information, inverse = _inverses(fit)
    rank = information.rank
    # Without a penalty the trace is the rank, to rounding.
    effective_df = float(np.trace(inverse.whiten(fit.H))) if fit.is_penalised else float(rank)
    deviance = 2.0 * fit.log_loss_sum
    null_deviance = 2.0 * _null_log_loss_sum(fit)
    lr_statistic = null_deviance - deviance
    return FitStatistics(
        log_likelihood=-fit.log_loss_sum,
        deviance=deviance,
        null_deviance=null_deviance,
        df_model=rank - 1,
        df_residual=fit.n - rank,
        effective_df=effective_df,
        aic=deviance + 2.0 * effective_df,
        bic=deviance + math.log(fit.n) * effective_df,
        lr_statistic=lr_statistic,
        lr_p_value=None if fit.is_penalised or rank <= 1 else chi2_sf(lr_statistic, rank - 1),
        pseudo_r2=lr_statistic / null_deviance if null_deviance > 0 else None,
    )


def certificate(fit: FitSums) -> Certificate:
    """Measure what is left of the gradient at w, in three ways.

    Raises
    ------
    IndefiniteError
        If H is not positive semi-definite.
    """
    G = fit.g + fit.penalty * fit.w
    _, inverse = _inverses(fit)
    whitened = inverse.root.T @ G
    return Certificate(
        gradient_norm=float(np.abs(G).max() / fit.n),
        newton_step=float(np.abs(inverse.root @ whitened).max()),
        newton_decrement=float(np.linalg.norm(whitened) / math.sqrt(fit.n)),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Inverse:
    """Pseudo-inverse of a Hessian, root @ root.T, and the directions it says nothing about.

    Jacobi's scaling to a diagonal of ones comes first: whatever the columns' units, it is within a factor
    n_parameters of the best conditioning that a diagonal can give (van der Sluis, Numer. Math. 14, 1969).
    """

    root: Matrix  # (n_parameters, rank)
    flat: Matrix  # (n_parameters, n_parameters - rank), orthonormal, of the scaled matrix
    scale: Vector

    @classmethod
    def of(cls, H: Matrix, floor: Vector) -> "Inverse":
        """Decompose H; columns whose diagonal is not above ``floor`` count as zero."""
        diagonal = np.diag(H)
        known = diagonal > floor
        scale = np.sqrt(np.where(known, diagonal, 1.0))
        R = np.where(np.outer(known, known), H / np.outer(scale, scale), 0.0)
        eigenvalues, V = np.linalg.eigh(R)
        if (diagonal < 0).any() or eigenvalues[0] < LEAST_EIGENVALUE:
            raise IndefiniteError("the information is not positive semi-definite; it is no sum of kappa x x'")
        curved = eigenvalues > SMALLEST_EIGENVALUE
        root = V[:, curved] / np.sqrt(eigenvalues[curved]) / scale[:, np.newaxis]
        return cls(root, V[:, ~curved], scale)

    @property
    def rank(self) -> int:
        """Directions that H says something about."""
        return int(self.root.shape[1])

    def whiten(self, M: Matrix) -> Matrix:
        """Return root' M root, (rank, rank)."""
        whitened: Matrix = self.root.T @ M @ self.root
        return whitened

    def is_flat(self, J: Matrix) -> NDArray[np.bool_]:
        """Tell which of the linear combinations J @ w change along a flat direction."""
        C = J / self.scale
        share = np.linalg.norm(C @ self.flat, axis=1) / np.linalg.norm(C, axis=1)
        return np.asarray(share > LARGEST_FLAT_SHARE)


def frame(fit: FitSums, *, standardised: bool) -> Matrix:
    """Return what takes the fit's weights to the scale that is asked for, (n_parameters, n_parameters)."""
    return np.eye(fit.w.size) if standardised else jacobian(fit.standardisation)


def _inverses(fit: FitSums) -> tuple[Inverse, Inverse]:
    """Of the information H, and of A = H + diag(P)."""
    floor = rounding_floor(fit.H, fit.standardisation)
    information = Inverse.of(fit.H, floor)
    if not fit.is_penalised:
        return information, information
    return information, Inverse.of(fit.H + np.diag(fit.penalty), floor)


def rounding_floor(H: Matrix, standardisation: Standardisation) -> Vector:
    """Return what a constant column leaves on the diagonal of H, (n_parameters,): 0 for the intercept."""
    # A constant column with scale 1 is not quite zero after centring but the rounding error of its mean. Scaled up to
    # a diagonal of 1 it would pass for a copy of the intercept.
    rounding = CONSTANT_COLUMN_SHARE * standardisation.mean / standardisation.scale
    return np.append(rounding**2 * max(H[-1, -1], 0.0), 0.0)


def wald(estimate: float, variance: float, width: float = WIDTH) -> Coefficient:
    """One line of the table, from an estimate and its variance; NaN or 0 is one that is undetermined.

    ``width`` is half the interval's, in standard errors.
    """
    if not 0 < variance < math.inf:  # NaN: undetermined
        return Coefficient(estimate)
    std_error = math.sqrt(variance)
    z = estimate / std_error
    low, high = estimate - width * std_error, estimate + width * std_error
    return Coefficient(estimate, std_error, z, normal_sf2(z), low, high, _exp(estimate), _exp(low), _exp(high))


def _exp(x: float) -> float | None:
    try:
        return math.exp(x)
    except OverflowError:
        return None


def _null_log_loss_sum(fit: FitSums) -> float:
    """Of the intercept alone, log(n_positive / n_negative), which gives every row its class's share."""
    if fit.null_log_loss_sum is not None:
        return fit.null_log_loss_sum
    classes = (float(fit.n_positive), float(fit.n - fit.n_positive))
    return sum(m * math.log(fit.n / m) for m in classes if m > 0)


def check_sums(name: str, array: Vector | Matrix, shape: tuple[int, ...]) -> None:
    """Raise `ShapeError` or `NonFiniteError` where ``array`` is no sum of this fit."""
    if array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}; this fit's is {shape}")
    if not np.isfinite(array).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; a fit that ran away has no statistics")
