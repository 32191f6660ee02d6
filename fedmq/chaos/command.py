"""``fedmq chaos``: run seeds, print the verdict, and say how to see a failing one again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click
from rich.table import Table as Grid

from fedmq.chaos.broken import VARIANTS
from fedmq.chaos.runs import Result, Totals, run_seed, run_seeds
from fedmq.errors import CommandError, PromiseBroken
from fedmq.show import console
from monitoring.logs import configure_logging

#: Seconds between two lines of progress; failing seeds that are shown, and violations of each.
TELL_EVERY, MOST_SHOWN, MOST_OF_EACH = 5.0, 20, 3


#: In one command.
MOST_SEEDS = 1_000_000


class Row(NamedTuple):
    """A line of the verdict."""

    name: str
    key: str
    says: str


#: In the order of Jepsen's: what was tried, what became of it, what must be zero.
ROWS = (
    Row("attempted", "attempted", "contributions put into an outbox"),
    Row("confirmed", "confirmed", "of which a broker said that it has them"),
    Row("aggregated", "aggregated", "in a version, each in one"),
    Row("answered", "answered", "moments, scores and counts, each used once"),
    Row("void", "void", "accepted, and of rows that were others before the next version"),
    Row("unheard", "unheard", "never delivered before the disk with their outbox was lost"),
    Row("resent", "resent", "sent again, in the same bytes"),
    Row("duplicated", "duplicated", "messages that came to the broker several times"),
    Row("recovered", "recovered", "services that died and were started again"),
    Row("takeovers", "takeovers", "terms that an aggregator began"),
    Row("fenced", "fenced", "commits of an aggregator that had been overtaken"),
    Row("versions", "versions", "models made"),
    Row("releases", "releases", "models released"),
    Row("compared", "compared", "runs whose model was computed again from the updates or the rows"),
    Row("lost", "lost", "confirmed, and neither in a version nor judged"),
    Row("counted twice", "twice", "in more than one version"),
    Row("unexpected", "unexpected", "runs that broke another promise"),
    Row("hangs", "hangs", "runs without a release in time"),
)


def run_chaos(
    seeds: str, *, jobs: int | None = None, as_json: bool = False, broken: str | None = None, trace: bool = False
) -> None:
    """Run ``seeds``, such as ``0-999``; raises `PromiseBroken` if any of them breaks a promise.

    Parameters
    ----------
    jobs : runs at a time; by default one on each core.
    as_json : print a document in place of the table.
    broken : run the product with a promise broken on purpose, one of `broken.VARIANTS`.
    trace : print everything that was seen, seed by seed.
    """
    configure_logging(level="error")
    if broken is not None and broken not in VARIANTS:
        raise CommandError(f"there is no variant {broken!r}: choose one of {', '.join(VARIANTS)}")
    chosen = parse_seeds(seeds)
    totals = Totals()
    began = told = time.monotonic()
    for result in _traced(chosen, broken) if trace else run_seeds(chosen, variant=broken, jobs=jobs):
        totals.add(result)
        if time.monotonic() - told >= TELL_EVERY:
            told = time.monotonic()
            click.echo(f"{totals.runs} of {len(chosen)} runs, {len(totals.failing)} failed", err=True)
    if as_json:
        click.echo(json.dumps(_document(totals), indent=1, ensure_ascii=False))
    else:
        _print(totals, time.monotonic() - began)
    for result in totals.failing[:MOST_SHOWN]:
        for violation in result.violations[:MOST_OF_EACH]:
            click.echo(f"seed {result.seed} ({result.strategy}): {violation}", err=True)
        click.echo(f"  fedmq chaos --seeds {result.seed}-{result.seed} --trace{_flag(broken)}", err=True)
    if totals.failing:
        raise PromiseBroken(f"{len(totals.failing)} of {totals.runs} runs broke a promise")


def parse_seeds(text: str) -> range:
    """Return the seeds from the first to the last of ``A-B``; raises `CommandError`."""
    found = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", text)
    first = int(found[1]) if found else 1
    last = int(found[2] or found[1]) if found else 0
    if first > last:
        raise CommandError("seeds: give the first and the last, as in 0-999")
    if last - first >= MOST_SEEDS:
        raise CommandError(f"seeds: at most {MOST_SEEDS:,} at a time, which take a day: give a shorter range")
    return range(first, last + 1)


def _traced(seeds: Sequence[int], broken: str | None) -> Iterator[Result]:
    for seed in seeds:
        result, history = run_seed(seed, broken)
        click.echo(f"seed {seed}: {result.strategy}")
        for line in history.lines():
            click.echo(line)
        yield result


def _flag(broken: str | None) -> str:
    return "" if broken is None else f" --broken {broken}"


def _print(totals: Totals, seconds: float) -> None:
    grid = Grid(box=None, pad_edge=False, show_header=False)
    grid.add_column()
    grid.add_column(justify="right")
    grid.add_column(style="dim")
    grid.add_row("runs", f"{totals.runs:,}", f"in {seconds:.0f} s")
    for row in ROWS:
        grid.add_row(row.name, f"{totals.numbers[row.key]:,}", row.says)
        if row.key == "answered":  # and then why others were neither
            for reason, n in sorted(totals.refused.items()):
                grid.add_row(f"refused, {reason}", f"{n:,}", "")
    console().print(grid)


def _document(totals: Totals) -> dict[str, Any]:
    return {
        "runs": totals.runs,
        **{row.key: totals.numbers[row.key] for row in ROWS},
        "refused": dict(sorted(totals.refused.items())),
        "faults": dict(sorted(totals.faults.items())),
        "strategies": dict(sorted(totals.strategies.items())),
        "digest": totals.digest.hexdigest(),
        "failing": [
            {"seed": each.seed, "strategy": each.strategy, "violations": [str(v) for v in each.violations]}
            for each in totals.failing
        ],
    }
