"""Whether the sites agree on the coefficients: from each site's sums over its rows at the common weights."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from logistic.distributions import chi2_sf
from logistic.inference import FitSums, Inverse, check_sums, frame, rounding_floor
from logistic.problem import Matrix, Vector


@dataclass(frozen=True, slots=True, eq=False)
class SiteSums:
    """``FitSums``' H and g over one site's rows alone, at the common weights and scale.

    Parameters
    ----------
    H : (n_parameters, n_parameters)
    g : (n_parameters,)
    single_class : whether all its rows have the same label.
    """

    H: Matrix
    g: Vector
    single_class: bool


@dataclass(frozen=True, slots=True)
class SiteDeviation:
    """How far one site's coefficient is from the sites' common one.

    Parameters
    ----------
    site : its name.
    deviation : the site's one-step estimate less the sites' inverse-variance mean.
    std_error : of the deviation.
    single_class : the site's own coefficients are infinite: the deviation has the direction, not the size.
    """

    site: str
    deviation: float
    std_error: float
    single_class: bool


@dataclass(frozen=True, slots=True)
class Heterogeneity:
    """Whether the sites agree on one coefficient.

    Parameters
    ----------
    q : Cochran's Q, sum over sites of (estimate - mean)^2 / variance.
    df : sites that can estimate the coefficient, less 1.
    p_value : of q as chi-squared with df degrees of freedom.
    i2 : share of the sites' variation that is not chance, max(0, (q - df) / q).
    mean : inverse-variance mean of the sites' estimates.
    deviations : one of each site that can estimate the coefficient, in the order they came.

    With fewer than two such sites there is nothing to compare: df is 0, the rest None and no deviations.
    """

    q: float | None = None
    df: int = 0
    p_value: float | None = None
    i2: float | None = None
    mean: float | None = None
    deviations: tuple[SiteDeviation, ...] = ()


def heterogeneity(
    fit: FitSums, sites: Mapping[str, SiteSums], *, standardised: bool = False
) -> tuple[Heterogeneity, ...]:
    """Compare the coefficients of the sites, each by one Newton step on its own rows from the common weights.

    w_i = J (w - H_i^-1 g_i),   variance diag(J H_i^-1 J');   J = 1 if ``standardised``

    If the sites agree, w_i is its own fit's weights to first order, and w itself cancels: the estimates are
    independent, and Q is a score test (Le Cam's one-step estimator: van der Vaart, Asymptotic Statistics, 1998, 5.7).
    It needs no round of its own, and nothing diverges at a site whose own classes are separated. If they disagree by
    much, Q still tells so, while the deviations are rough: one step goes not all the way.

    A site of a single class takes part. Its own fit is at infinity, but how improbable its labels are under the
    common weights is a fact about the site like any other; its deviations carry ``single_class``.

    A site is left out of a coefficient that its rows do not determine: a column constant there, too few rows. A
    penalty of the common fit is not taken over: the step undoes the shrinkage as far as the site's rows can.

    Q of a slope is the same on either scale. The intercept's is about rows of zeros on the original scale, where age 0
    is far from everybody, and about the average row on the standardised one: the sites' base rates.

    Cochran, "The combination of estimates from different experiments", Biometrics 10, 1954: Q.
    Higgins & Thompson, "Quantifying heterogeneity in a meta-analysis", Statistics in Medicine 21, 2002: I2.

    Parameters
    ----------
    sites : by name.

    Returns
    -------
    One of each coefficient, intercept last.

    Raises
    ------
    ShapeError
        If a site's sums do not fit the weights.
    NonFiniteError
        If a site's sums hold NaN or infinity.
    IndefiniteError
        If a site's H is not positive semi-definite.
    """
    J = frame(fit, standardised=standardised)
    steps = {name: _one_step(fit, name, site, J) for name, site in sites.items()}
    return tuple(
        _compare({name: (float(w[j]), float(v[j])) for name, (w, v) in steps.items() if v[j] > 0}, sites)
        for j in range(fit.w.size)
    )


def _one_step(fit: FitSums, name: str, site: SiteSums, J: Matrix) -> tuple[Vector, Vector]:
    """Estimates J w_i and their variances; a variance is NaN where the site's rows do not determine it."""
    check_sums(f"g of {name}", site.g, fit.g.shape)
    check_sums(f"H of {name}", site.H, fit.H.shape)
    inverse = Inverse.of(site.H, rounding_floor(site.H, fit.standardisation))
    w = fit.w - inverse.root @ (inverse.root.T @ site.g)
    variances = ((J @ inverse.root) ** 2).sum(axis=1)
    return J @ w, np.where(inverse.is_flat(J), np.nan, variances)


def _compare(estimates: Mapping[str, tuple[float, float]], sites: Mapping[str, SiteSums]) -> Heterogeneity:
    """Cochran's Q of one coefficient; ``estimates`` holds value and variance by site."""
    df = len(estimates) - 1
    if df < 1:
        return Heterogeneity()
    values, variances = np.array(list(estimates.values())).T
    share = 1.0 / variances / (1.0 / variances).sum()
    mean = float(share @ values)
    deviations = values - mean
    q = float((deviations**2 / variances).sum())
    # The site is part of the mean that it is compared with: its variance less the mean's own.
    std_errors = np.sqrt(variances * (1.0 - share))
    return Heterogeneity(
        q=q,
        df=df,
        p_value=chi2_sf(q, df),
        i2=max(0.0, (q - df) / q) if q > 0 else 0.0,
        mean=mean,
        deviations=tuple(
            SiteDeviation(name, float(deviation), float(std_error), sites[name].single_class)
            for name, deviation, std_error in zip(estimates, deviations, std_errors, strict=True)
        ),
    )
