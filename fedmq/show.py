"""What the commands print: progress while it trains, a summary at the end. Numbers people compare stand in columns."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from broker.messages import (
    Array,
    ClassModel,
    Coefficient,
    Deviation,
    FitStatistics,
    Heterogeneity,
    Metrics,
    PathPoint,
    ReleasedModel,
)
from fedmq.model_file import SITES, Written
from fedmq.watch import TrainingProgress

#: What ``local.json`` of a site says.
OwnDocument = Mapping[str, Any]

#: Columns up to which a table has all their coefficients, and the largest ones that it has of more: a page.
WHOLE_TABLE, LARGEST = 200, 30

#: Versions between two lines where there is no terminal to rewrite a line on.
LINE_EVERY = 25


def console(*, to_stderr: bool = False) -> Console:
    """Return where people read: the terminal's width, or 110 columns where there is none."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else 110
    # In a notebook the library would show each line itself, and a summary that is wanted as text would be empty.
    return Console(file=stream, width=width, highlight=False, soft_wrap=False, force_jupyter=False)


def number(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with so many digits after the point; a dash for what does not exist."""
    return "-" if value is None else f"{value:.{digits}f}"


class ProgressLines:
    """A line on standard error that says where a training stands; rewritten on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self._console = console(to_stderr=True)
        self._began = time.monotonic()
        self._phase = ""
        self._version = -LINE_EVERY
        self._status = self._console.status("waiting for the sites")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._status.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        """Show ``progress``."""
        line = self._line(progress)
        if self._console.is_terminal:
            self._status.update(line)
        elif progress.phase != self._phase or progress.version >= self._version + LINE_EVERY:
            self._console.print(line)
            self._version = progress.version
        self._phase = progress.phase

    def _line(self, progress: TrainingProgress) -> str:
        late = [site.name for site in progress.sites.values() if site.late]
        parts = [f"{time.monotonic() - self._began:6.1f} s", progress.phase, f"version {progress.version}"]
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.5f}")
        if late:
            parts.append(f"late: {', '.join(late)}")
        return "  ".join(parts)


def print_summary(model: ReleasedModel, written: Written, own_models: Mapping[str, OwnDocument | None]) -> None:
    """Print what people want to know of a trained model, and of those that sites made of their own, if any."""
    out = console()
    ended = "converged" if model.converged else "stopped at its last version, not converged"
    out.print(
        f"{model.strategy}, {ended}: version {model.version}, {model.n_samples} rows at {len(model.participants)} sites"
    )
    out.print(f"objective {model.objective.value:.6f} nats per row ({_penalty(model)}){_remainder(model)}")
    out.print()
    inference = model.inference
    if inference is not None and inference.statistics is not None:
        out.print(_statistics(inference.statistics))
        out.print()
    for title, table in _tables(model):
        out.print(_coefficients(title, table))
        out.print()
    for sentence in _remarks(model):
        out.print(f"note: {sentence}", soft_wrap=True)
        out.print()
    if model.path:
        out.print(_path(model.path))
        out.print()
    if inference is not None and any(row.p_value is not None for row in inference.heterogeneity):
        out.print(_heterogeneity(inference.heterogeneity))
        out.print()
    out.print(_metrics(model))
    out.print()
    if own_models:
        out.print(_own_models(own_models))
        out.print()
    print_written(out, written)
    if own_models:
        out.print(f"What the sites keep is in {written.path.parent / SITES}", soft_wrap=True)


def _penalty(model: ReleasedModel) -> str:
    objective = model.objective
    if objective.penalty == "firth":
        return "without Firth's penalty"
    parts = [f"l2 = {objective.l2:.6g}"] + ([f"l1 = {objective.l1:.6g}"] if objective.l1 else [])
    return ", ".join(parts)


def _remainder(model: ReleasedModel) -> str:
    """Return how much a step of Newton's method would still change, where that is known."""
    step = None if model.convergence is None else model.convergence.newton_step
    return "" if step is None else f", largest Newton step left {step:.1e}"


def _remarks(model: ReleasedModel) -> list[str]:
    remarks = list(model.notes)
    if (n := len(model.features)) > WHOLE_TABLE:
        scale = "standardised" if any(each != 1.0 for each in model.standardisation.scale) else "columns' own"
        remarks.append(
            f"of {n:,} columns the {LARGEST} with the largest weights on the {scale} scale are shown; the model has all"
        )
    if model.inference is not None and model.inference.kind == "none" and model.inference.why:
        remarks.append(f"there are no standard errors: {model.inference.why}")
    elif model.inference is not None and model.objective.l2 > 0.0:
        remarks.append(
            "standard errors are of the penalised estimates, whose bias is not in them; for tests use --l2 0"
        )
    return remarks


def _statistics(found: FitStatistics) -> Grid:
    """Return the fit as a whole in two columns, as statsmodels prints it."""
    grid = Grid(box=None, pad_edge=False, show_header=False)
    for justify in ("left", "right", "left", "right"):
        grid.add_column(justify=justify)
    df = f"{found.df_model:g}"
    left = (
        ("log-likelihood", number(found.log_likelihood, 4)),
        ("deviance", number(found.deviance, 3)),
        ("null deviance", number(found.null_deviance, 3)),
        ("df model, residual", f"{df}, {found.df_residual:g}"),
    )
    right = (
        ("AIC", number(found.aic, 2)),
        ("BIC", number(found.bic, 2)),
        ("McFadden's pseudo R2", number(found.pseudo_r2, 4)),
        (f"likelihood ratio, {df} df", _test(found.lr_statistic, found.lr_p_value)),
    )
    for (name, value), (other, also) in zip(left, right, strict=True):
        grid.add_row(name, value, f"    {other}", also)
    return grid


def _test(statistic: float | None, p_value: float | None) -> str:
    if statistic is None:
        return "-"
    return number(statistic, 2) if p_value is None else f"{statistic:.2f}, p = {p_text(p_value)}"


def p_text(p_value: float | None) -> str:
    """Return a p-value as it is printed: three digits, or that it is below the last of them."""
    if p_value is None:
        return "-"
    return f"{p_value:.3f}" if p_value >= 0.001 else f"{p_value:.1e}"  # noqa: PLR2004 - three digits


def _tables(model: ReleasedModel) -> list[tuple[str, list[Coefficient]]]:
    if not model.by_class:
        return [("coefficient (original scale)", _lines(model.features, model, np.zeros(len(model.weights))))]
    first, *others = model.by_class
    return [
        (
            f"class {each.label} against {first.label} (original scale)",
            _lines(model.features, each, np.array(first.weights)),
        )
        for each in others
    ]


def _lines(features: Sequence[str], one: ReleasedModel | ClassModel, against: Array) -> list[Coefficient]:
    """Return the lines of a table, the intercept first; of very many columns, those with the largest weights.

    A model that has no coefficients has its weights on the original scale.
    """
    weights = np.array(one.weights) - against
    which = range(len(features))
    if len(features) > WHOLE_TABLE:
        which = np.argsort(-np.abs(weights), kind="stable")[:LARGEST].tolist()
    of_columns = [
        one.coefficients[k] if one.coefficients else Coefficient(features[k], float(weights[k])) for k in which
    ]
    return [one.intercept_coefficient, *of_columns]


def _coefficients(title: str, rows: Sequence[Coefficient]) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="")
    grid.add_column(title)
    inferred = any(row.std_error is not None for row in rows)
    columns = ("estimate", "std error", "z", "P>|z|", "[0.025", "0.975]", "odds ratio") if inferred else ("estimate",)
    for column in columns:
        grid.add_column(column, justify="right")
    for row in rows:
        grid.add_row(Text(row.name), f"{row.estimate:.6g}", *(_inferred(row) if inferred else ()))
    return grid


def _inferred(row: Coefficient) -> tuple[str, ...]:
    if row.std_error is None:
        return ("-",) * 6
    return (
        f"{row.std_error:.5g}",
        number(row.z, 2),
        p_text(row.p_value),
        short(row.ci_low),
        short(row.ci_high),
        short(row.odds_ratio),
    )


def short(value: float | None) -> str:
    """Return ``value`` with four digits; a dash for what does not exist."""
    return "-" if value is None else f"{value:.4g}"


def _path(points: Sequence[PathPoint]) -> Grid:
    """Return the lasso path: what each penalty leaves, and how it does on test rows."""
    grid = Grid(box=None, pad_edge=False, header_style="")
    for name in ("l1", "columns left", "objective", "log-loss, training", "log-loss, test"):
        grid.add_column(name, justify="right")
    for point in points:
        losses = (number(point.objective, 5), number(point.log_loss, 5), number(point.test_log_loss, 5))
        grid.add_row(f"{point.l1:.5g}", str(point.n_nonzero), *losses)
    return grid


def _in_std_errors(found: Deviation) -> float:
    """Return the size of a deviation in its own standard errors, which may be too small for a number."""
    return abs(found.deviation) / found.std_error if found.std_error > 0.0 else 0.0


def _heterogeneity(rows: Sequence[Heterogeneity]) -> Grid:
    """Return whether the sites agree: Cochran's Q for each coefficient that at least two of them can estimate."""
    grid = Grid(box=None, pad_edge=False, header_style="")
    for name in ("do the sites agree?", "Q", "df", "p", "I2", "farthest"):
        grid.add_column(name, justify="left" if name in {"do the sites agree?", "farthest"} else "right")
    for row in rows:
        if row.p_value is not None:
            name = max(row.by_site, key=lambda site: _in_std_errors(row.by_site[site]))
            grid.add_row(
                Text(row.name), number(row.q, 2), str(row.df), p_text(row.p_value), number(row.i2, 2), Text(name)
            )
    return grid


def print_written(out: Console, written: Written) -> None:
    """Print where the model is, and what made way for it."""
    out.print(f"The model is in {written.path}", soft_wrap=True)
    if written.kept is not None:
        out.print(f"What was in that folder before is in {written.kept}", soft_wrap=True)


def _metrics(model: ReleasedModel) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="")
    for name in ("rows of", "n", "log-loss", "Brier", "accuracy", "AUC"):
        grid.add_column(name, justify="left" if name == "rows of" else "right")
    _add_metrics(grid, "training, all sites", model.metrics.train)
    if model.metrics.test is not None:
        _add_metrics(grid, "test, all sites", model.metrics.test)
    for site, metrics in model.metrics.test_by_site.items():
        _add_metrics(grid, f"test, {site}", metrics)
    return grid


#: What ``local.json`` has of each model of a site's own, and what its column is called.
_OWN = {"own_intercept": "own intercept", "fine_tuned": "fine-tuned"}

_VERDICTS = {
    "own": "its own is better here",
    "global": "the global one is better here",
    "neither": "no difference to be told",
    None: "too few test rows to tell",
}


def _own_models(documents: Mapping[str, OwnDocument | None]) -> Grid:
    """Return how the models of each site's own do on its test rows; the last one is compared, as its verdict says."""
    kinds = [kind for kind in _OWN if any(each and kind in each for each in documents.values())]
    title = "log-loss of the model, and of each site's own, on the test rows of that site"
    grid = Grid(title=title, title_justify="left", title_style="", box=None, pad_edge=False, header_style="")
    names = ("site", "test rows", "global", *(_OWN[kind] for kind in kinds), "difference", "std error", "verdict")
    for name in names:
        grid.add_column(name, justify="left" if name in {"site", "verdict"} else "right")
    for site, each in documents.items():
        if each is None:
            grid.add_row(Text(site), *["-"] * (len(names) - 2), "none was made; see its log")
            continue
        judged = each[kinds[-1]]
        compared = judged["comparison"] or {}
        losses = [number(each[kind]["test"] and each[kind]["test"]["log_loss"]) for kind in ("global", *kinds)]
        sure = [number(compared.get(key)) for key in ("difference", "std_error")]
        grid.add_row(Text(site), str(each["n_test_rows"]), *losses, *sure, _verdict(judged, compared))
    return grid


def _verdict(judged: OwnDocument, compared: OwnDocument) -> str:
    if judged["kept"]:
        return "the global one is kept"
    return _VERDICTS[compared["better"]] if compared else "no test rows to tell by"


def _add_metrics(grid: Grid, of: str, metrics: Metrics) -> None:
    values = (metrics.log_loss, metrics.brier, metrics.accuracy, metrics.auc)
    grid.add_row(Text(of), str(metrics.n), *(number(value) for value in values))
