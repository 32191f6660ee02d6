"""``fedmq demo``: four real hospitals, one of them slow, trained while you watch, compared with pooled training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table as Grid
from rich.text import Text

from aggregator.strategies import make_strategy
from broker.messages import ReleasedModel
from fedmq.model_file import check_out, write_model
from fedmq.show import console, number, print_written
from fedmq.sites import Site, find_sites
from fedmq.train import TrainRequest, train
from fedmq.watch import SiteProgress, TrainingProgress
from logistic import Evaluation, Moments, Problem, Standardisation, Vector, exact_auc, loss, make_solver, margins, solve
from monitoring.logs import configure_logging
from participant.settings import TableSettings

SLOW_SITE = "va"
SLOWDOWN = 10.0
#: Seconds a fit takes at least. A fit on 200 rows takes a millisecond, and nobody could see who is slow.
FIT_SECONDS = 0.05

#: The optimum is found to rounding well within this.
NEWTON_STEPS = 100
NEWTON_TOLERANCE = 1e-10


def heart_disease() -> Path:
    """Return the folder of the four hospitals: in the package, or in the source tree."""
    packaged = Path(str(files("fedmq"))) / "data" / "heart_disease"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "examples" / "heart_disease"


def run_demo(out: Path, *, seed: int, strategy: str) -> None:
    """Train, compare, and write the model to ``out``."""
    configure_logging(level="error")
    check_out(out)
    request = TrainRequest(
        data=[heart_disease()],
        tables=TableSettings(label="y", split="split"),
        out=out,
        options={"seed": seed, "strategy": strategy},
        slow=(f"{SLOW_SITE}={SLOWDOWN:g}",),
        least_fit_seconds=FIT_SECONDS,
    )
    screen = console()
    screen.print("UCI heart disease at its four hospitals. Their rows stay where they are; sums and weights travel.")
    screen.print(f"{SLOW_SITE} is made {SLOWDOWN:g} times slower than the others.\n")
    began = time.monotonic()
    with LiveTable(screen) as table:
        model = train(request, on_progress=table)
    written = write_model(out, model)
    seconds = time.monotonic() - began
    screen.print(f"\nTrained in {seconds:.1f} s: {model.version} versions, {model.strategy}.\n")
    compare(screen, model, find_sites(request.data, request.tables.reading().what))
    screen.print()
    print_written(screen, written)


# --- while it trains --------------------------------------------------------------------------


class LiveTable:
    """Where each hospital stands, rewritten in place on a terminal, printed now and then elsewhere."""

    #: Versions between two tables where nothing can be rewritten; the first ones are of everybody and say little.
    PRINT_EVERY = 20

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._live = Live(console=screen, refresh_per_second=12)
        self._sites: dict[str, SiteProgress] = {}
        self._staleness: dict[str, int] = {}
        self._printed = 0

    def __enter__(self) -> Self:
        if self._screen.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._live.stop()

    def __call__(self, progress: TrainingProgress) -> None:
        """Show ``progress``."""
        for name, site in progress.sites.items():
            if site.staleness is not None:
                self._staleness[name] = site.staleness
        if self._screen.is_terminal:
            self._live.update(self._grid(progress))
        elif progress.loss is not None and progress.version // self.PRINT_EVERY > self._printed:
            self._printed = progress.version // self.PRINT_EVERY
            self._screen.print(self._grid(progress))

    def _grid(self, progress: TrainingProgress) -> Grid:
        title = f"{progress.phase}   version {progress.version}   loss {number(progress.loss, 5)} nats per row"
        grid = Grid(title=title, title_justify="left", box=None, pad_edge=False, title_style="", header_style="")
        for name in ("hospital", "updates in the model", "staleness of its last", "in this version", "late"):
            grid.add_column(name, justify="left" if name == "hospital" else "right")
        for name, site in progress.sites.items():
            staleness = self._staleness.get(name)
            grid.add_row(
                Text(name),
                str(site.included),
                "-" if staleness is None else str(staleness),
                "yes" if site.in_last_version else "",
                "late" if site.late else "",
            )
        return grid


# --- afterwards -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fit:
    """A model trained on some rows by Newton's method, with the scale of those rows."""

    scale: Standardisation
    weights: Vector

    def auc(self, X: Vector, y: Vector) -> float | None:
        """Return the exact AUC on some rows."""
        return exact_auc(y, margins(self.scale.apply(X), self.weights))


def fit_newton(X: Vector, y: Vector, l2: float) -> Fit:
    """Return the penalised optimum on the rows ``X`` and ``y``, standardised by their own moments."""
    scale = Standardisation.from_moments(Moments.of(X))
    problem = Problem(scale.apply(X), y, l2=l2)
    start = np.zeros(X.shape[1] + 1)
    found = solve(make_solver("newton"), problem, start, max_steps=NEWTON_STEPS, tolerance=NEWTON_TOLERANCE)
    return Fit(scale, found.w)


def compare(screen: Console, model: ReleasedModel, sites: list[Site]) -> None:
    """Print what each hospital would have alone, what the federation has, and what pooling all rows would give."""
    trained = [(site.table.dense[site.table.is_train], site.table.y[site.table.is_train]) for site in sites]
    tested = [(site.table.dense[~site.table.is_train], site.table.y[~site.table.is_train]) for site in sites]
    X, y = np.vstack([rows for rows, _ in trained]), np.concatenate([labels for _, labels in trained])
    pooled = fit_newton(X, y, model.objective.l2)
    federation = Fit(
        Standardisation(np.array(model.standardisation.mean), np.array(model.standardisation.scale)),
        np.array([*model.weights, model.intercept]),
    )
    grid = Grid(box=None, pad_edge=False, header_style="")
    grid.add_column("AUC on the test rows of")
    for name in ("training rows", "test rows", "alone", "federation", "pooled"):
        grid.add_column(name, justify="right")
    for site, rows, own in zip(sites, trained, tested, strict=True):
        one_class = len(np.unique(rows[1])) == 1
        alone = "cannot train *" if one_class else number(fit_newton(*rows, 1.0 / len(rows[1])).auc(*own))
        both = (number(federation.auc(*own)), number(pooled.auc(*own)))
        grid.add_row(Text(site.name), str(len(rows[1])), str(len(own[1])), alone, *both)
    all_X, all_y = np.vstack([rows for rows, _ in tested]), np.concatenate([labels for _, labels in tested])
    both = (number(federation.auc(all_X, all_y)), number(pooled.auc(all_X, all_y)))
    grid.add_row("all four", str(len(y)), str(len(all_y)), "", *both)
    screen.print(grid)
    for site, rows in zip(sites, trained, strict=True):
        if len(np.unique(rows[1])) == 1:
            kind = "with" if rows[1][0] else "without"
            n_rows = len(rows[1])
            screen.print(f"* all {n_rows} training rows of {site.name} are {kind} the disease: alone it cannot learn.")
    best = loss(Problem(pooled.scale.apply(X), y, l2=model.objective.l2), pooled.weights)
    reached = f"Objective {model.objective.value:.5f}, pooled optimum {best:.5f}"
    if make_strategy(model.strategy).exact:
        farthest = float(np.abs(federation.weights - pooled.weights).max())
        end = f". {model.strategy} is exact: no weight is more than {farthest:.0e} from the pooled fit's."
    else:
        excess = model.objective.value / best - 1.0
        end = f": {100 * excess:.1f} % above it. {model.strategy} is approximate: near the pooled fit, not at it."
    screen.print(reached + end, soft_wrap=True)
    train = Evaluation.of(Problem(federation.scale.apply(X), y), federation.weights)
    screen.print(f"Training log-loss {train.log_loss:.5f}, accuracy {train.accuracy:.3f}, over {len(y)} rows.")
