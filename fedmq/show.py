"""What the commands print: progress while it trains, a summary at the end. Numbers people compare stand in columns."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from broker.messages import Metrics, ReleasedModel
from fedmq.model_file import Written
from fedmq.watch import TrainingProgress

#: Versions between two lines where there is no terminal to rewrite a line on.
LINE_EVERY = 25


def console(*, to_stderr: bool = False) -> Console:
    """Return where people read: the terminal's width, or 110 columns where there is none."""
    stream = sys.stderr if to_stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 110, highlight=False, soft_wrap=False)


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


def print_summary(model: ReleasedModel, written: Written) -> None:
    """Print what people want to know of a trained model."""
    out = console()
    ended = "converged" if model.converged else "stopped at its last version, not converged"
    out.print(
        f"{model.strategy}, {ended}: version {model.version}, {model.n_samples} rows at {len(model.participants)} sites"
    )
    out.print(f"objective {model.objective.value:.6f} nats per row (l2 = {model.objective.l2:.6g})")
    out.print()
    out.print(_coefficients(model))
    out.print()
    out.print(_metrics(model))
    out.print()
    print_written(out, written)


def print_written(out: Console, written: Written) -> None:
    """Print where the model is, and what made way for it."""
    out.print(f"The model is in {written.path}", soft_wrap=True)
    if written.kept is not None:
        out.print(f"What was in that folder before is in {written.kept}", soft_wrap=True)


def _coefficients(model: ReleasedModel) -> Grid:
    grid = Grid(box=None, pad_edge=False, header_style="")
    grid.add_column("coefficient (original scale)")
    grid.add_column("estimate", justify="right")
    for row in (model.intercept_coefficient, *model.coefficients):
        grid.add_row(Text(row.name), f"{row.estimate:.6g}")
    return grid


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


def _add_metrics(grid: Grid, of: str, metrics: Metrics) -> None:
    values = (metrics.log_loss, metrics.brier, metrics.accuracy, metrics.auc)
    grid.add_row(Text(of), str(metrics.n), *(number(value) for value in values))
