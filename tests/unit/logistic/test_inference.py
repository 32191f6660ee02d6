"""What a fit says about itself, against statsmodels, against the four hospitals' verified fit, and against refits."""

from collections.abc import Mapping
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from statsmodels.stats.meta_analysis import combine_effects

from logistic import (
    IndefiniteError,
    Matrix,
    Moments,
    NonFiniteError,
    ParameterError,
    Problem,
    ShapeError,
    Standardisation,
    Vector,
    gradient_sum,
    hessian_sum,
    log_loss_sum,
    loss,
    make_solver,
    probabilities,
    solve,
)
from logistic.heterogeneity import Heterogeneity, SiteSums, heterogeneity
from logistic.inference import (
    Coefficient,
    FitSums,
    certificate,
    coefficients,
    covariance,
    fit_statistics,
    jacobian,
)


def with_intercept(X: Matrix) -> Matrix:
    return np.column_stack([X, np.ones(len(X))])


def weights_of(problem: Problem) -> Vector:
    start = np.zeros(problem.n_parameters)
    return solve(make_solver("newton"), problem, start, max_steps=50, tolerance=1e-13).w


def sums(problem: Problem, scaling: Standardisation | None = None, w: Vector | None = None) -> FitSums:
    """Fit rows as they came, on the standardised scale, and add up what the participants would have sent."""
    scaling = scaling or Standardisation.from_moments(Moments.of(problem.X, problem.sample_weight))
    Z = replace(problem, X=scaling.apply(problem.X))
    w = weights_of(Z) if w is None else w
    s = np.ones(Z.n_rows) if Z.sample_weight is None else Z.sample_weight
    scores = with_intercept(Z.X) * (np.sqrt(s) * (probabilities(Z.X, w) - Z.y))[:, np.newaxis]
    return FitSums(
        w=w,
        H=hessian_sum(Z, w),
        g=gradient_sum(Z, w),
        n=Z.n_samples,
        n_positive=float(s @ Z.y),
        log_loss_sum=log_loss_sum(Z, w),
        penalty=Z.n_samples * Z.l2 * np.append(np.ones(Z.n_features), 0.0),
        standardisation=scaling,
        meat=scores.T @ scores,
    )


def site_sums(sites: Mapping[str, Problem], fit: FitSums) -> dict[str, SiteSums]:
    parts = {name: replace(site, X=fit.standardisation.apply(site.X)) for name, site in sites.items()}
    return {
        name: SiteSums(hessian_sum(Z, fit.w), gradient_sum(Z, fit.w), single_class=len(set(Z.y)) == 1)
        for name, Z in parts.items()
    }


def pool(sites: Mapping[str, Problem]) -> Problem:
    return Problem(np.concatenate([s.X for s in sites.values()]), np.concatenate([s.y for s in sites.values()]))


def rows(rng: np.random.Generator, n_rows: int, w: Vector, **more: Any) -> Problem:
    X = rng.normal(size=(n_rows, w.size - 1))
    return Problem(X, (rng.random(n_rows) < probabilities(X, w)).astype(float), **more)


def column(table: tuple[Coefficient, ...], name: str) -> list[float | None]:
    return [getattr(coefficient, name) for coefficient in table]


def which_are_none(table: tuple[Coefficient, ...]) -> list[bool]:
    return [coefficient.std_error is None for coefficient in table]


@pytest.fixture
def units(rng: np.random.Generator) -> Problem:
    """200 rows whose columns come in very different units, far from 0."""
    problem = rows(rng, 200, np.array([0.8, -0.5, 0.3, 0.4]))
    return Problem(problem.X * np.array([1e-6, 1.0, 1e5]) + np.array([1e-4, -20.0, 3e6]), problem.y)


@pytest.fixture(scope="module")
def hospitals(train: dict[str, Problem]) -> FitSums:
    return sums(pool(train))


# --- coefficients ------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", [False, True], ids=["model-based", "sandwich"])
def test_the_table_is_statsmodels_table(hospitals: FitSums, train: dict[str, Problem], robust: bool) -> None:
    everybody = pool(train)
    model = sm.Logit(everybody.y, with_intercept(everybody.X))
    oracle = model.fit(disp=0, tol=1e-12, cov_type="HC0" if robust else "nonrobust")
    table = coefficients(hospitals, robust=robust)
    np.testing.assert_allclose(column(table, "estimate"), oracle.params, rtol=1e-9)
    np.testing.assert_allclose(column(table, "std_error"), oracle.bse, rtol=1e-9)
    np.testing.assert_allclose(column(table, "z"), oracle.tvalues, rtol=1e-9)
    np.testing.assert_allclose(column(table, "p_value"), oracle.pvalues, rtol=1e-8)
    limits = np.column_stack([column(table, "ci_low"), column(table, "ci_high")]).astype(float)
    np.testing.assert_allclose(limits, oracle.conf_int(), rtol=1e-8)
    np.testing.assert_allclose(covariance(hospitals, robust=robust), oracle.cov_params(), rtol=1e-7)


def test_the_hospitals_standard_errors_are_the_verified_ones(hospitals: FitSums, expected: dict[str, Any]) -> None:
    verified = expected["fits"]["lambda=0"]
    standardised, original = coefficients(hospitals, standardised=True), coefficients(hospitals)
    np.testing.assert_allclose(column(standardised, "estimate"), [*verified["w"], verified["b"]], rtol=1e-11)
    np.testing.assert_allclose(column(standardised, "std_error"), [*verified["se_z"], verified["se_b"]], rtol=1e-9)
    np.testing.assert_allclose(column(original[:-1], "std_error"), verified["se_raw"], rtol=1e-9)
    np.testing.assert_allclose(column(original[:-1], "odds_ratio"), verified["odds_ratio_raw"], rtol=1e-10)


def test_an_odds_ratio_has_the_interval_of_its_logarithm(hospitals: FitSums) -> None:
    sex = coefficients(hospitals, level=0.99)[1]
    assert sex.ci_low is not None
    assert sex.ci_high is not None
    assert (sex.odds_ratio_low, sex.odds_ratio_high) == (np.exp(sex.ci_low), np.exp(sex.ci_high))
    assert sex.ci_high - sex.ci_low > 2 * 2.575 * (sex.std_error or 0)


def test_sample_weights_count_rows(problem: Problem) -> None:
    counts = np.arange(50) % 4.0
    repeated = np.repeat(np.arange(50), counts.astype(int))
    weighted = sums(Problem(problem.X, problem.y, counts))
    plain = sums(Problem(problem.X[repeated], problem.y[repeated]))
    for robust in (False, True):
        np.testing.assert_allclose(covariance(weighted, robust=robust), covariance(plain, robust=robust), rtol=1e-9)
    np.testing.assert_allclose(astuple(fit_statistics(weighted)), astuple(fit_statistics(plain)), rtol=1e-11)


def test_units_of_columns_change_nothing_but_units(units: Problem) -> None:
    """Standardised or not, 1e-6 beside 1e5 or not: one covariance, that of a QR factor of the rows themselves."""
    fit = sums(units)
    A = with_intercept(units.X)
    p = probabilities(fit.standardisation.apply(units.X), fit.w)
    scale = np.abs(A).max(axis=0)
    R = np.linalg.qr(A / scale * np.sqrt(p * (1 - p))[:, np.newaxis])[1]
    root = np.linalg.inv(R) / scale[:, np.newaxis]
    np.testing.assert_allclose(covariance(fit), root @ root.T, rtol=1e-6)

    raw = sums(units, Standardisation.identity(3), fit.standardisation.to_original(fit.w))
    np.testing.assert_allclose(covariance(raw), covariance(fit), rtol=1e-5)


def test_the_jacobian_is_the_way_back_of_the_weights(units: Problem, rng: np.random.Generator) -> None:
    scaling, w = Standardisation.from_moments(Moments.of(units.X)), rng.normal(size=4)
    np.testing.assert_allclose(jacobian(scaling) @ w, scaling.to_original(w), rtol=1e-13)


def test_the_variance_of_a_penalised_fit_is_that_of_its_weights_as_the_labels_vary(rng: np.random.Generator) -> None:
    """Var(w) = sum_j p_j (1 - p_j) (dw / dy_j)^2, each derivative from two refits with a label moved by 1e-4."""
    problem = rows(rng, 40, np.array([1.0, -0.5, 0.2]), l2=0.05)
    fit = sums(problem, Standardisation.identity(2))

    def refit(row: int, change: float) -> Vector:
        # A label y + change is the row as a mixture of both labels; its weights may not be negative, so one more row.
        X, y = np.vstack([problem.X, problem.X[row]]), np.append(problem.y, 1 - problem.y[row])
        moved = abs(change)
        s = np.append(np.ones(40), moved)
        s[row] -= moved
        return weights_of(Problem(X, y, s, l2=problem.l2))

    # Moving a label of 0 up or a label of 1 down; the derivative is taken one-sided, and its error by Richardson.
    h = 1e-4
    slopes = [(4 * refit(row, h / 2) - refit(row, h) - 3 * fit.w) / h for row in range(40)]
    p = probabilities(problem.X, fit.w)
    C = np.einsum("j,ja,jb->ab", p * (1 - p), slopes, slopes)
    np.testing.assert_allclose(covariance(fit), C, rtol=1e-5)


def test_the_sandwich_of_a_penalised_fit_keeps_the_penalty_out_of_its_meat(problem: Problem) -> None:
    fit = sums(problem)
    assert fit.meat is not None
    bread = np.linalg.inv(fit.H + np.diag(fit.penalty))
    np.testing.assert_allclose(covariance(fit, robust=True, standardised=True), bread @ fit.meat @ bread, rtol=1e-10)


def test_the_sandwich_needs_its_meat(problem: Problem) -> None:
    with pytest.raises(ParameterError, match="last sweep"):
        covariance(replace(sums(problem), meat=None), robust=True)


def test_an_odds_ratio_that_overflows_is_left_out() -> None:
    fit = FitSums(
        np.array([1e4]), np.eye(1), np.zeros(1), 9.0, 4.0, 1.0, np.zeros(1), Standardisation(np.zeros(0), np.zeros(0))
    )
    only = coefficients(fit)[0]
    assert (only.estimate, only.std_error, only.p_value, only.odds_ratio) == (1e4, 1.0, 0.0, None)


# --- what the rows do not determine ------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.0, 0.01])
def test_collinear_columns_are_undetermined_and_the_others_are_as_without_them(problem: Problem, l2: float) -> None:
    a, b, c, _ = problem.X.T
    table = coefficients(sums(Problem(np.column_stack([a, b, 2 * a - 3 * b, c]), problem.y, l2=l2)))
    assert which_are_none(table) == [True, True, True, False, False]
    assert table[0] == Coefficient(table[0].estimate)
    if l2 == 0:
        without = coefficients(sums(Problem(np.column_stack([a, b, c]), problem.y)))
        np.testing.assert_allclose(astuple(table[3]), astuple(without[2]), rtol=1e-8)
        np.testing.assert_allclose(astuple(table[4]), astuple(without[3]), rtol=1e-8)


@pytest.mark.parametrize("value", [1.0, 0.1, -7e8])
def test_a_constant_column_takes_the_intercept_of_the_original_scale_with_it(problem: Problem, value: float) -> None:
    """Also where its mean was merged to a digit less, so that the centred column is a tiny copy of the intercept."""
    constant = Problem(np.column_stack([np.full(50, value), problem.X]), problem.y)
    exact = Standardisation.from_moments(Moments.of(constant.X))
    merged = replace(exact, mean=np.append(np.nextafter(value, np.inf), exact.mean[1:]))
    for fit in (sums(constant, exact), sums(constant, merged)):
        assert which_are_none(coefficients(fit)) == [True, False, False, False, False, True]
        assert which_are_none(coefficients(fit, standardised=True)) == [True, False, False, False, False, False]
        C = covariance(fit)
        assert np.isnan(C[0]).all()
        assert np.isnan(C[:, -1]).all()
        without = covariance(sums(Problem(problem.X, problem.y)))
        np.testing.assert_allclose(C[1:-1, 1:-1], without[:-1, :-1], rtol=1e-8)


def test_a_column_of_zeros_leaves_the_intercept_alone(problem: Problem) -> None:
    fit = sums(Problem(np.column_stack([np.zeros(50), problem.X]), problem.y))
    assert which_are_none(coefficients(fit)) == [True, False, False, False, False, False]


def test_fewer_rows_than_parameters_determine_next_to_nothing(rng: np.random.Generator) -> None:
    fit = sums(Problem(rng.normal(size=(3, 5)), np.array([0.0, 1.0, 1.0]), l2=0.1))
    assert all(which_are_none(coefficients(fit)))
    assert fit_statistics(fit).df_model == 2


def test_rows_without_weight_determine_nothing_and_have_no_statistics() -> None:
    with pytest.raises(ParameterError, match="a fit has rows"):
        sums(Problem(np.zeros((0, 2)), np.zeros(0), l2=0.1))


def test_what_cannot_be_an_information_is_refused(problem: Problem) -> None:
    fit = sums(problem)
    for H in (-fit.H, np.ones_like(fit.H) + np.diag([0, 0, 0, 0, -0.5])):
        with pytest.raises(IndefiniteError, match="positive semi-definite"):
            covariance(replace(fit, H=H))


# --- the fit -----------------------------------------------------------------------------------


def test_the_fit_statistics_are_statsmodels(hospitals: FitSums, train: dict[str, Problem]) -> None:
    everybody = pool(train)
    logit = sm.Logit(everybody.y, with_intercept(everybody.X)).fit(disp=0, tol=1e-12)
    glm = sm.GLM(everybody.y, with_intercept(everybody.X), family=sm.families.Binomial()).fit(tol=1e-12)
    statistics = fit_statistics(hospitals)
    assert statistics.log_likelihood == pytest.approx(logit.llf, rel=1e-12)
    assert statistics.deviance == pytest.approx(glm.deviance, rel=1e-12)
    assert statistics.null_deviance == pytest.approx(glm.null_deviance, rel=1e-12)
    assert (statistics.df_model, statistics.df_residual) == (logit.df_model, logit.df_resid)
    assert statistics.effective_df == 14
    assert statistics.aic == pytest.approx(logit.aic, rel=1e-12)
    assert statistics.bic == pytest.approx(logit.bic, rel=1e-12)
    # statsmodels finds its null model by iteration, to 9 digits.
    assert statistics.lr_statistic == pytest.approx(logit.llr, rel=1e-8)
    assert statistics.lr_p_value == pytest.approx(logit.llr_pvalue, rel=1e-6)
    assert statistics.pseudo_r2 == pytest.approx(logit.prsquared, rel=1e-8)


def test_a_penalty_takes_degrees_of_freedom_and_the_likelihood_ratio_test(train: dict[str, Problem]) -> None:
    everybody = pool(train)
    free, *shrunk = (fit_statistics(sums(replace(everybody, l2=l2))).effective_df for l2 in (1e-12, 0.01, 1.0, 1e6))
    assert free == pytest.approx(14, rel=1e-9)
    assert free > shrunk[0] > shrunk[1] > shrunk[2]
    assert shrunk[2] == pytest.approx(1, rel=1e-4)  # the intercept is left

    fit = sums(replace(everybody, l2=0.01))
    statistics = fit_statistics(fit)
    trace = np.trace(np.linalg.solve(fit.H + np.diag(fit.penalty), fit.H))
    assert statistics.effective_df == pytest.approx(trace, rel=1e-11)
    assert statistics.aic == pytest.approx(2 * fit.log_loss_sum + 2 * trace, rel=1e-12)
    assert statistics.bic == pytest.approx(2 * fit.log_loss_sum + np.log(486) * trace, rel=1e-12)
    assert statistics.df_model == 13
    assert statistics.lr_p_value is None


def test_collinear_columns_are_counted_once(problem: Problem) -> None:
    statistics = fit_statistics(sums(Problem(np.column_stack([problem.X, problem.X[:, 0]]), problem.y)))
    assert (statistics.df_model, statistics.df_residual, statistics.effective_df) == (4, 45.0, 5.0)


def test_an_intercept_alone_explains_nothing(problem: Problem) -> None:
    statistics = fit_statistics(sums(Problem(problem.X[:, :0], problem.y)))
    assert statistics.deviance == pytest.approx(statistics.null_deviance, rel=1e-13)
    assert (statistics.df_model, statistics.lr_p_value) == (0, None)


def test_a_single_class_leaves_nothing_to_explain(problem: Problem) -> None:
    statistics = fit_statistics(sums(Problem(problem.X, np.ones(50)), w=np.array([0.0, 0.0, 0.0, 0.0, 5.0])))
    assert (statistics.null_deviance, statistics.pseudo_r2) == (0.0, None)


def test_with_offsets_the_null_model_comes_with_the_fit(problem: Problem) -> None:
    statistics = fit_statistics(replace(sums(problem), null_log_loss_sum=40.0))
    assert statistics.null_deviance == 80.0


# --- the certificate ---------------------------------------------------------------------------


def test_at_the_optimum_there_is_nothing_left_to_do(hospitals: FitSums) -> None:
    assert max(astuple(certificate(hospitals))) < 1e-12


def test_near_the_optimum_the_certificate_tells_the_way_and_the_gap(problem: Problem) -> None:
    best = sums(problem)
    away = np.array([1e-4, 0.0, -3e-4, 0.0, 2e-4])
    near = certificate(sums(problem, w=best.w + away))
    Z = replace(problem, X=best.standardisation.apply(problem.X))
    gap = loss(Z, best.w + away) - loss(Z, best.w)
    assert near.newton_step == pytest.approx(3e-4, rel=1e-3)
    assert near.newton_decrement**2 / 2 == pytest.approx(gap, rel=1e-3)
    assert near.gradient_norm == pytest.approx(np.abs(near_gradient(problem, best, away)).max(), rel=1e-9)


def near_gradient(problem: Problem, best: FitSums, away: Vector) -> Vector:
    Z = replace(problem, X=best.standardisation.apply(problem.X))
    w = best.w + away
    return gradient_sum(Z, w) / Z.n_samples + Z.l2 * np.append(w[:-1], 0.0)


def test_separated_classes_are_told_by_a_newton_step_that_stays() -> None:
    """The gradient is as good as 0 at a margin of 20, the standard error finite; the weights are on their way."""
    X = np.array([[-1.0], [-1.0], [1.0], [1.0]])
    fit = sums(Problem(X, (X[:, 0] > 0).astype(float)), w=np.array([20.0, 0.0]))
    assert certificate(fit).gradient_norm < 1e-8
    assert certificate(fit).newton_step == pytest.approx(1.0, rel=1e-6)
    assert coefficients(fit)[0].p_value == pytest.approx(1.0, abs=1e-2)


# --- the sites ---------------------------------------------------------------------------------


def test_q_is_the_meta_analysis_of_the_one_step_estimates(hospitals: FitSums, train: dict[str, Problem]) -> None:
    sites = site_sums({name: train[name] for name in ("cleveland", "hungarian")}, hospitals)
    J = jacobian(hospitals.standardisation)
    steps = np.array([J @ (hospitals.w - np.linalg.solve(s.H, s.g)) for s in sites.values()])
    variances = np.array([np.diag(J @ np.linalg.inv(s.H) @ J.T) for s in sites.values()])
    for j, report in enumerate(heterogeneity(hospitals, sites)):
        with np.errstate(invalid="ignore"):  # its random effects, which nobody asks for here
            oracle = combine_effects(steps[:, j], variances[:, j], method_re="dl")
        assert report.q == pytest.approx(oracle.q, rel=1e-6, abs=1e-9)
        assert report.i2 == pytest.approx(max(oracle.i2, 0.0), rel=1e-6, abs=1e-9)
        assert report.mean == pytest.approx(oracle.mean_effect_fe, rel=1e-7)
        assert (report.df, [d.site for d in report.deviations]) == (1, ["cleveland", "hungarian"])


def test_a_site_takes_part_wherever_its_rows_determine_a_coefficient(
    hospitals: FitSums, train: dict[str, Problem], expected: dict[str, Any]
) -> None:
    """Switzerland: one class, no cholesterol, nobody with cp 1, so that cp 2, 3 and 4 add up to the intercept's 1."""
    reports = heterogeneity(hospitals, site_sums(train, hospitals))
    taking_part = {
        name: {d.site for d in report.deviations}
        for name, report in zip([*expected["features"], "intercept"], reports, strict=True)
    }
    varying = {
        name: {site for site, problem in train.items() if np.ptp(problem.X[:, j]) > 0}
        for j, name in enumerate(expected["features"])
    }
    for name in ("cp_2", "cp_3", "cp_4"):
        varying[name] -= {"switzerland"}
    assert taking_part == varying | {"intercept": {"cleveland", "hungarian", "va"}}
    assert "switzerland" not in taking_part["chol"]
    assert heterogeneity(hospitals, {}) == (Heterogeneity(),) * 14
    assert {d.site for report in reports for d in report.deviations if d.single_class} == {"switzerland"}
    assert all(0 <= (report.p_value or 0) <= 1 and 0 <= (report.i2 or 0) < 1 for report in reports)


def test_q_of_a_slope_knows_no_scale_and_that_of_the_intercept_does(
    hospitals: FitSums, train: dict[str, Problem]
) -> None:
    sites = site_sums({name: train[name] for name in ("cleveland", "hungarian", "va")}, hospitals)
    original, standardised = heterogeneity(hospitals, sites), heterogeneity(hospitals, sites, standardised=True)
    np.testing.assert_allclose([r.q for r in original[:-1]], [r.q for r in standardised[:-1]], rtol=1e-6)
    at_zero, at_average = original[-1].deviations[-1], standardised[-1].deviations[-1]
    assert at_average.std_error < at_zero.std_error / 5  # nobody is 0 years old with a heart rate of 0


def test_one_step_is_the_sites_own_fit_where_the_sites_agree(rng: np.random.Generator) -> None:
    sites = {name: rows(rng, 20_000, np.array([0.5, -0.3, 0.2])) for name in ("a", "b")}
    fit = sums(pool(sites))
    own = {name: sums(site, fit.standardisation) for name, site in sites.items()}
    for j, report in enumerate(heterogeneity(fit, site_sums(sites, fit))):
        for d in report.deviations:
            line = coefficients(own[d.site])[j]
            assert line.std_error is not None
            assert report.mean is not None
            # Half a per cent of a standard error: the second order.
            assert report.mean + d.deviation == pytest.approx(line.estimate, abs=0.005 * line.std_error)


def test_q_of_sites_that_agree_is_chi_squared_also_with_sites_of_a_single_class(rng: np.random.Generator) -> None:
    """300 federations of 4 sites, the smallest often of one class; Q has mean 3 and a standard error of 0.15."""
    truth = np.array([0.7, -0.4, 2.0])
    q, n_single = np.zeros(3), 0
    for _ in range(300):
        sites = {str(n): rows(rng, n, truth) for n in (200, 150, 60, 15)}
        fit = sums(pool(sites))
        parts = site_sums(sites, fit)
        q += [report.q for report in heterogeneity(fit, parts)]
        n_single += parts["15"].single_class
    assert n_single > 10
    np.testing.assert_allclose(q / 300, 3.0, atol=0.6)


def test_sites_that_differ_are_found_and_told_by_how_much(rng: np.random.Generator) -> None:
    truth = np.array([0.5, -0.3, 0.2])
    sites = {name: rows(rng, 3000, truth) for name in ("a", "b", "c")}
    sites["d"] = rows(rng, 3000, truth + np.array([0.4, 0.0, 0.0]))
    fit = sums(pool(sites))
    first, second, _ = heterogeneity(fit, site_sums(sites, fit))
    assert first.p_value is not None
    assert first.p_value < 1e-9
    assert (first.i2 or 0) > 0.9
    assert (second.p_value or 0) > 1e-3
    odd = first.deviations[-1]
    assert odd.deviation == pytest.approx(0.3, abs=0.1)  # 3/4 of the difference: the mean moves with it
    assert odd.deviation / odd.std_error > 5


def test_a_deviation_s_standard_error_knows_that_the_site_is_part_of_the_mean() -> None:
    """Two equal sites: each is half the difference from the mean, and so is its standard error."""
    fit = FitSums(np.zeros(1), 8 * np.eye(1), np.zeros(1), 9.0, 4.0, 1.0, np.zeros(1), Standardisation.identity(0))
    (report,) = heterogeneity(fit, {s: SiteSums(4 * np.eye(1), np.array([g]), False) for s, g in (("a", 4), ("b", -4))})
    assert [astuple(d) for d in report.deviations] == [
        ("a", -1.0, pytest.approx(8**-0.5), False),
        ("b", 1.0, pytest.approx(8**-0.5), False),
    ]
    assert report.q == pytest.approx(8.0)
    assert report.i2 == pytest.approx(7 / 8)


def test_sites_without_any_difference_are_not_heterogeneous() -> None:
    fit = FitSums(np.zeros(1), 8 * np.eye(1), np.zeros(1), 9.0, 4.0, 1.0, np.zeros(1), Standardisation.identity(0))
    (report,) = heterogeneity(fit, {s: SiteSums(4 * np.eye(1), np.zeros(1), False) for s in "ab"})
    assert (report.q, report.i2, report.p_value) == (0.0, 0.0, 1.0)


def test_one_site_has_nothing_to_differ_from(hospitals: FitSums, train: dict[str, Problem]) -> None:
    sites = site_sums({"va": train["va"]}, hospitals)
    empty = {"nobody": SiteSums(np.zeros((14, 14)), np.zeros(14), single_class=False)}
    assert set(heterogeneity(hospitals, sites)) == {Heterogeneity()}
    assert set(heterogeneity(hospitals, sites | empty)) == {Heterogeneity()}


# --- what does not fit together ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (ShapeError, {"w": np.zeros(4)}),
        (ShapeError, {"H": np.eye(4)}),
        (ShapeError, {"meat": np.eye(4)}),
        (NonFiniteError, {"g": np.full(5, np.nan)}),
        (NonFiniteError, {"H": np.full((5, 5), np.inf)}),
        (ParameterError, {"penalty": -np.ones(5)}),
        (ParameterError, {"n": 0.0}),
        (ParameterError, {"n": np.nan}),
        (ParameterError, {"n_positive": 1e9}),
        (ParameterError, {"log_loss_sum": np.inf}),
    ],
)
def test_sums_that_do_not_fit_together_are_refused(
    problem: Problem, error: type[Exception], change: dict[str, Any]
) -> None:
    with pytest.raises(error):
        replace(sums(problem), **change)


@pytest.mark.parametrize(
    ("error", "H", "g"),
    [(ShapeError, np.eye(4), np.zeros(5)), (NonFiniteError, np.eye(5), np.full(5, np.inf))],
)
def test_a_site_that_does_not_fit_is_named(problem: Problem, error: type[Exception], H: Matrix, g: Vector) -> None:
    with pytest.raises(error, match="of hospital-3"):
        heterogeneity(sums(problem), {"hospital-3": SiteSums(H, g, single_class=False)})
