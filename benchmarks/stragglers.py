"""How far from the pooled optimum the asynchronous strategies end, with equally fast sites and with stragglers.

The four hospitals as processes of their own over RabbitMQ, default settings, l2 = 0.01. Equally fast; then
with one of them ten times slower while another is killed with -9 in the middle and started again. For each run: the
excess of the objective over the pooled optimum, the excess that down-weighting the sites as the ledger says predicts,
and what the ledger says of every update ever sent.

    python benchmarks/stragglers.py
    python benchmarks/stragglers.py --strategy fedasync --json
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from broker_for import ROOT, broker_url

from fedmq.sites import Site, find_sites
from logistic import Moments, Problem, Standardisation, Vector, loss, make_solver, merge_all, solve
from participant.sources import Columns

DATA = ROOT / "examples" / "heart_disease"
STRATEGIES = ("fedbuff", "fedasync")
L2 = 0.01
SLOW, KILLED = "hungarian", "cleveland"
SLOWDOWN = 10
#: Seconds a fit takes at least: a fit on 200 rows takes a millisecond, and ten of them would be no straggler.
FIT_SECONDS = 0.05
#: Updates of the site to be killed that must be in the ledger first: it dies in the middle of the training.
KILL_AFTER = 8
PATIENCE = 120.0


@dataclass(frozen=True)
class Audit:
    """What ledger and outboxes say.

    ``lost`` are contributions that a site put into its outbox and the ledger does not know; ``counted_twice`` are
    updates of one site from one version that are included more than once.
    """

    updates: int
    included: int
    after_the_end: int
    refused_otherwise: int
    lost: int
    counted_twice: int


@dataclass(frozen=True)
class Result:
    """One training."""

    strategy: str
    setting: str
    versions: int
    excess: float
    predicted_excess: float
    audit: Audit


def measure(url: str, strategy: str, *, stragglers: bool) -> Result:
    """Train once and return what came of it."""
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder:
        state, out = Path(folder) / "state", Path(folder) / "model"
        command = [sys.executable, "-m", "fedmq", "train", "--data", str(DATA), "--label", "y", "--split", "split"]
        command += ["--l2", str(L2), "--strategy", strategy, "--out", str(out), "--state", str(state), "--json"]
        if stragglers:
            command += ["--fit-seconds", str(FIT_SECONDS), "--slow", f"{SLOW}={SLOWDOWN}"]
        training = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "FEDMQ_BROKER": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if stragglers:
            kill_in_the_middle(state, KILLED, training)
        printed, told = training.communicate(timeout=PATIENCE)
        if training.returncode != 0:
            sys.exit(f"the training failed:\n{told}")
        model = json.loads(printed)
        rows = ledger(state)
        predicted, best = predicted_objective(rows)
        setting = f"{SLOW} {SLOWDOWN}x slower, {KILLED} killed" if stragglers else "equally fast"
        excess = model["objective"]["value"] / best - 1
        return Result(
            strategy, setting, model["version"], excess, predicted / best - 1, audit(rows, last_numbers(state))
        )


# --- the ledger -------------------------------------------------------------------------------


def ledger(state: Path) -> list[sqlite3.Row]:
    """Return every row of the ledger in the folder ``state``; none before there is one."""
    path = state / "aggregator.sqlite"
    if not path.exists():
        return []
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)
    database.row_factory = sqlite3.Row
    try:
        return database.execute("SELECT * FROM ledger ORDER BY rowid").fetchall()
    except sqlite3.OperationalError:  # its tables are being made
        return []
    finally:
        database.close()


def kill_in_the_middle(state: Path, site: str, training: subprocess.Popen[str]) -> None:
    """Kill -9 the process of ``site`` once some of its updates are in the ledger."""
    deadline = time.monotonic() + PATIENCE
    while sum(row["participant"] == site for row in ledger(state)) < KILL_AFTER:
        if training.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"{site} never got as far as {KILL_AFTER} updates")
        time.sleep(0.02)
    os.kill(int((state / f"site-{site}.pid").read_text()), signal.SIGKILL)


def last_numbers(state: Path) -> dict[str, int]:
    """Return, for each site and incarnation, the highest number that its outbox has given."""
    found = {}
    for path in state.glob("*.sqlite"):
        if path.stem != "aggregator":
            database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            meta = dict(database.execute("SELECT key, value FROM meta"))
            database.close()
            found[f"{path.stem}:{meta['incarnation']}"] = int(meta["last"])
    return found


def audit(rows: list[sqlite3.Row], last: dict[str, int]) -> Audit:
    """Return what became of every contribution that was ever put into an outbox."""
    known = Counter(row["update_id"].rpartition(":")[0] for row in rows)
    updates = [row for row in rows if row["kind"] not in {"moments", "evaluation", "ranks", "sides", "path"}]
    verdicts = Counter(row["verdict"] for row in updates)
    waiting = sum(row["verdict"] == "accepted" and row["included_in"] is None for row in updates)
    included = Counter((row["participant"], row["base_version"]) for row in updates if row["included_in"] is not None)
    return Audit(
        updates=len(updates),
        included=included.total(),
        after_the_end=verdicts["training-over"] + waiting,
        refused_otherwise=len(updates) - verdicts["accepted"] - verdicts["training-over"],
        lost=sum(number - known[sender] for sender, number in last.items()),
        counted_twice=sum(count - 1 for count in included.values()),
    )


# --- the optimum, and what down-weighting makes of it -------------------------------------------


def predicted_objective(rows: list[sqlite3.Row]) -> tuple[float, float]:
    """Return F at the optimum of the sites weighted as in the ledger, and at the pooled optimum.

    A site's rows count by the sum of the weights with which its updates were included, in the later half of the
    versions: fewer updates and staler ones make it less.
    """
    sites = find_sites([DATA], Columns("y", split="split"))
    trained = [(site.table.dense[site.table.is_train], site.table.y[site.table.is_train]) for site in sites]
    scale = Standardisation.from_moments(merge_all(Moments.of(X) for X, _ in trained))
    X = np.vstack([scale.apply(X) for X, _ in trained])
    y = np.concatenate([labels for _, labels in trained])
    pooled = Problem(X, y, l2=L2)
    weighted = Problem(X, y, sample_weight=_row_weights(sites, rows), l2=L2)
    return loss(pooled, _optimum(weighted)), loss(pooled, _optimum(pooled))


def _row_weights(sites: list[Site], rows: list[sqlite3.Row]) -> Vector:
    included = [row for row in rows if row["included_in"] is not None]
    half = max(row["included_in"] for row in included) / 2
    total = Counter[str]()
    for row in included:
        if row["included_in"] > half:
            total[row["participant"]] += row["weight"]
    per_row = [np.full(site.table.n_train, total[site.name] / site.table.n_train) for site in sites]
    weights = np.concatenate(per_row)
    return weights * len(weights) / weights.sum()


def _optimum(problem: Problem) -> Vector:
    start = np.zeros(problem.n_parameters)
    return solve(make_solver("newton"), problem, start, max_steps=100, tolerance=1e-10).w


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--broker", help="AMQP URL; a private node by default")
    parser.add_argument("--strategy", action="append", choices=STRATEGIES, help="may be given again; all by default")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with broker_url(given.broker) as url:
        results = [
            measure(url, strategy, stragglers=stragglers)
            for strategy in given.strategy or STRATEGIES
            for stragglers in (False, True)
        ]
    if given.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    print("excess of the objective over the pooled optimum, four hospitals as processes over RabbitMQ, l2 = 0.01")
    print(f"{'strategy':<9} {'setting':<42} {'versions':>8} {'excess':>7} {'predicted':>9}  updates of the ledger")
    for result in results:
        a = result.audit
        print(
            f"{result.strategy:<9} {result.setting:<42} {result.versions:>8} {100 * result.excess:>6.2f}% "
            f"{100 * result.predicted_excess:>8.2f}%  {a.updates}: {a.included} included, {a.after_the_end} after the "
            f"end, {a.refused_otherwise} refused otherwise, {a.lost} lost, {a.counted_twice} twice"
        )


if __name__ == "__main__":
    main()
