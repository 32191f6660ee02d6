"""Whether sites mean the same by a column, on real rows and on drawn ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pooled import DATA, SETS, a9a_sites
from unit.aggregator.story import rules

from aggregator.agreement import Disagreement, disagreements
from aggregator.plan import first_plan
from aggregator.state import Member
from broker.messages import Array, Hello, Plan
from logistic.moments import Moments
from participant.schema_file import read_schema
from participant.sources import Columns, Dialect, read_table
from participant.sources.table import Table
from participant.training import prepare

MMOL_CHOLESTEROL = 1 / 38.67
UMOL_CREATININE = 88.4


def plan_of(**tables: Table) -> Plan:
    """Return the plan before the moments are merged; every table fits."""

    def member(name: str, table: Table) -> Member:
        levels = table.told_levels(5)
        hello = Hello(
            "heart",
            name,
            "i1",
            table.features,
            table.n_train,
            0,
            table.classes,
            feature_schema=table.schema,
            levels=levels,
        )
        return Member(name, "i1", table.n_train, 0, hello=hello)

    plan, members = first_plan(rules(*tables), [member(name, table) for name, table in tables.items()])
    assert not any(each.barred for each in members.values())
    return plan


def compared(**tables: Table) -> tuple[Plan, dict[str, Moments]]:
    plan = plan_of(**tables)
    return plan, {name: prepare(table, plan, "hash").moments() for name, table in tables.items()}


def in_other_units(moments: Mapping[str, Moments], plan: Plan, site: str, column: str, factor: float) -> Any:
    """Return ``moments`` as they are where one site has a column in a unit that makes its numbers ``factor`` times."""
    by = np.where(np.array(plan.features) == column, factor, 1.0)
    its = moments[site]
    return {**moments, site: Moments(its.n, its.mean * by, its.m2 * by**2, its.observed)}


def told(moments: Mapping[str, Moments]) -> list[tuple[str, str]]:
    """Return the sites and columns that are suspected, of columns x0, x1, ..."""
    return [(each.participant, each.column) for each in found_in(moments)]


def found_in(moments: Mapping[str, Moments]) -> tuple[Disagreement, ...]:
    width = len(next(iter(moments.values())).mean)
    plan, _ = first_plan(rules("a"), [Member("a", "i1", 1, 0, hello=hello(width))])
    return disagreements(plan, moments)


def hello(width: int) -> Hello:
    return Hello("heart", "a", "i1", tuple(f"x{j}" for j in range(width)), 1, 0)


def of(X: Array) -> Moments:
    return Moments.of(np.asarray(X, dtype=float), allow_missing=True)


# --- real rows ----------------------------------------------------------------------------------


def hospitals() -> dict[str, Table]:
    """Return the four hospitals' files as they are, under their schema: 25 columns, cells are missing."""
    folder = DATA / "heart_disease" / "original"
    schema, header = read_schema(folder / "schema.toml")
    return {
        site: read_table(folder / f"processed.{site}.data", schema, Dialect(header=header))
        for site in ("cleveland", "hungarian", "switzerland", "va")
    }


def test_four_hospitals_mean_the_same_by_their_columns() -> None:
    plan, moments = compared(**hospitals())
    assert len(plan.features) == 25
    assert disagreements(plan, moments) == ()


@pytest.mark.parametrize("name", sorted(SETS))
def test_no_sites_of_real_rows_are_suspected(name: str, tmp_path: Path) -> None:
    folder = a9a_sites(tmp_path) if name == "a9a" else SETS[name].folder
    files = sorted(file for file in folder.iterdir() if file.name.startswith("site-"))
    tables = {file.stem: read_table(file, Columns("y", "split" if file.suffix == ".csv" else None)) for file in files}
    assert len(tables) >= 3
    assert disagreements(*compared(**tables)) == ()


@pytest.mark.parametrize(
    ("column", "factor"), [("chol", MMOL_CHOLESTEROL), ("trestbps", 1 / 7.5), ("thalach", 1 / 60), ("age", 12.0)]
)
@pytest.mark.parametrize("site", ["cleveland", "hungarian", "switzerland", "va"])
def test_a_hospital_that_measures_in_another_unit_is_told_with_the_column(
    site: str, column: str, factor: float
) -> None:
    plan, moments = compared(**hospitals())
    found = disagreements(plan, in_other_units(moments, plan, site, column, factor))
    if (site, column) == ("switzerland", "chol"):
        assert found == (), "all its cells are missing"
        return
    ((who, what, ratio),) = found
    assert (who, what) == (site, column)
    assert ratio == pytest.approx(factor, rel=0.2)


# --- which sites are told -----------------------------------------------------------------------


def creatinine(*, seed: int = 0, n: int = 60, factor: float = 1.0) -> Array:
    """Return cholesterol and creatinine of patients, both in mg/dl; creatinine, which is skewed, times ``factor``."""
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.normal(220.0, 45.0, n), rng.lognormal(0.0, 0.5, n) * factor])


def test_of_three_sites_the_one_with_another_unit_is_told_and_no_other() -> None:
    sites = {"a": of(creatinine()), "b": of(creatinine(seed=1, factor=UMOL_CREATININE)), "c": of(creatinine(seed=2))}
    (found,) = found_in(sites)
    assert (found.participant, found.column) == ("b", "x1")
    assert found.ratio == pytest.approx(UMOL_CREATININE, rel=0.3)


def test_of_five_sites_two_are_told_that_differ_from_the_three_others() -> None:
    factors = {"a": 1.0, "b": UMOL_CREATININE, "c": 1.0, "d": UMOL_CREATININE, "e": 1.0}
    sites = {name: of(creatinine(seed=ord(name), factor=factor)) for name, factor in factors.items()}
    assert told(sites) == [("b", "x1"), ("d", "x1")]


def test_of_two_sites_both_are_told_since_nobody_can_say_which_is_right() -> None:
    first, second = found_in({"a": of(creatinine()), "b": of(creatinine(seed=1, factor=UMOL_CREATININE))})
    assert [(each.participant, each.column) for each in (first, second)] == [("a", "x1"), ("b", "x1")]
    assert first.ratio == pytest.approx(1 / second.ratio)


def test_what_is_told_does_not_depend_on_the_order_in_which_sites_came() -> None:
    sites = {name: of(creatinine(seed=ord(name), factor=f)) for name, f in (("a", 1.0), ("b", 9.0), ("c", 0.1))}
    assert found_in(sites) == found_in(dict(reversed(sites.items())))


def test_one_site_alone_agrees_with_itself() -> None:
    assert found_in({"a": of(creatinine())}) == ()


def test_a_site_without_values_is_not_compared() -> None:
    empty = np.full((60, 2), np.nan)
    empty[:, 0] = 220.0 + np.arange(60)
    sites = {"a": of(creatinine()), "b": of(creatinine(seed=1, factor=UMOL_CREATININE)), "c": of(empty)}
    assert told(sites) == [("a", "x1"), ("b", "x1")]


def test_a_factor_of_five_is_told_and_less_is_not() -> None:
    X = np.arange(100.0, 200.0)[:, None]
    assert told({"a": of(X), "b": of(5.0 * X)}) == [("a", "x0"), ("b", "x0")]
    assert told({"a": of(X), "b": of(4.99 * X)}) == []


@pytest.mark.parametrize("rest", [1.0, 1.9, 1 / 1.9])
def test_the_spread_has_to_differ_as_the_mean_does(rest: float) -> None:
    X = np.arange(100.0, 200.0)[:, None]
    centred = X - X.mean()
    assert told({"a": of(X), "b": of(10.0 * (X.mean() + rest * centred))}) == [("a", "x0"), ("b", "x0")]
    assert told({"a": of(X), "b": of(10.0 * X.mean() + centred)}) == [], "it only lies elsewhere"
    assert told({"a": of(X), "b": of(10.0 * (X.mean() + 2.1 * centred))}) == []


def test_means_of_other_signs_are_no_matter_of_units() -> None:
    X = np.arange(100.0, 200.0)[:, None]
    assert told({"a": of(X), "b": of(-10.0 * X)}) == []
    assert told({"a": of(-X), "b": of(-10.0 * X)}) == [("a", "x0"), ("b", "x0")]


# --- what is passed over ------------------------------------------------------------------------


def test_shares_of_ones_may_be_any() -> None:
    def ones(n: int) -> Array:
        return (np.arange(100) < n).astype(float)[:, None]

    assert told({"a": of(ones(15)), "b": of(ones(90))}) == []
    assert told({"a": of(ones(90)), "b": of(100.0 * ones(90))}) == [("a", "x0"), ("b", "x0")], "per cent"


def test_a_few_rows_say_little() -> None:
    X = 100.0 + np.arange(6.0)[:, None]
    assert told({"a": of(X), "b": of(10.0 * X)}) == [("a", "x0"), ("b", "x0")]
    assert told({"a": of(X[:4]), "b": of(10.0 * X)}) == []


def test_constant_columns_and_columns_of_zeros_are_passed_over() -> None:
    constant, zeros = np.full((20, 1), 7.0), np.zeros((20, 1))
    spread = np.arange(100.0, 120.0)[:, None]
    for one, other in ((constant, 10 * constant), (zeros, constant), (zeros, zeros), (constant, spread)):
        assert told({"a": of(one), "b": of(other)}) == []


def test_numbers_at_the_edge_of_floating_point_are_compared_without_a_warning() -> None:
    def site(mean: float, m2: float) -> Moments:
        return Moments(10.0, np.array([mean]), np.array([m2]))

    for edge in (site(1e300, 1e300), site(1e-300, 0.0), site(5e-324, 5e-324), site(-1e300, 1e-300)):
        assert told({"a": edge, "b": site(1.0, 1.0), "c": Moments.zero(1)}) == []


@pytest.mark.parametrize("n_rows", [300, 3000])
@pytest.mark.parametrize("values", ["counts", "amounts"])
@pytest.mark.parametrize("alike", [True, False])
def test_sparse_rows_are_no_flood_of_warnings(n_rows: int, values: str, *, alike: bool) -> None:
    """Words of texts, of which each site has some more often than others; with a likeness of 3 hundreds were told."""
    rng = np.random.default_rng(n_rows)
    width = 1500
    common = np.minimum(0.5, np.arange(1, width + 1) ** -0.7)

    def site() -> Moments:
        shares = common if alike else np.minimum(0.9, common * rng.gamma(0.7, 1 / 0.7, width))
        drawn = rng.poisson(1.5, (n_rows, width)) + 1.0 if values == "counts" else rng.lognormal(size=(n_rows, width))
        return of(np.where(rng.random((n_rows, width)) < shares, drawn, 0.0))

    assert told({name: site() for name in "abcd"}) == []


# --- what is said -------------------------------------------------------------------------------


def test_it_is_said_in_a_sentence() -> None:
    assert Disagreement("va", "chol", 38.6666).words == (
        "chol at va is 38.7 times that of the other sites, mean and spread alike: is it in another unit?"
    )
    assert Disagreement("va", "chol", 0.025).words.startswith("chol at va is 1/40 of that of the other sites")
