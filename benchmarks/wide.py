"""How long a federation with a million sparse columns takes, and how much memory: twenty thousand rows at three sites.

``fedmq train`` as a user runs it, in one process: all sites, the aggregator and the broker between them. The files are
drawn with a seed; a few columns are in most rows, and most columns in hardly any, as words are in texts.

    python benchmarks/wide.py
    python benchmarks/wide.py --columns 200000 --rows 5000 --standardise off --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

SITES = ("north", "south", "west")
PER_ROW = 50


@dataclass(frozen=True)
class Result:
    """One training; ``peak_mib`` is the largest memory of its process, ``model_mib`` the size of its file."""

    columns: int
    rows: int
    standardised: bool
    seconds: float
    peak_mib: float
    versions: int
    converged: bool
    model_mib: float


def write_sites(folder: Path, n_columns: int, n_rows: int) -> None:
    """Write a file of CSR parts for each site."""
    truth = np.random.default_rng(0).normal(size=n_columns)
    for seed, name in enumerate(SITES, start=1):
        rng = np.random.default_rng(seed)
        columns = [np.unique((n_columns ** rng.random(PER_ROW)).astype(np.int64)) - 1 for _ in range(n_rows // 3)]
        indptr = np.concatenate([[0], np.cumsum([each.size for each in columns])])
        margins = np.array([truth[each].sum() for each in columns]) / 3.0
        np.savez(
            folder / f"site-{name}.npz",
            data=np.ones(indptr[-1]),
            indices=np.concatenate(columns),
            indptr=indptr,
            shape=np.array([len(columns), n_columns]),
            y=(rng.random(len(columns)) < 1.0 / (1.0 + np.exp(-margins))).astype(float),
            is_train=rng.random(len(columns)) < 0.8,
        )


def measure(n_columns: int, n_rows: int, *, standardise: bool) -> Result:
    """Train once in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as name:
        folder = Path(name)
        (folder / "sites").mkdir()
        write_sites(folder / "sites", n_columns, n_rows)
        command = [sys.executable, "-m", "fedmq", "train", "--data", folder / "sites", "--out", folder / "model"]
        command.append("--standardise" if standardise else "--no-standardise")
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            sys.exit(f"fedmq train ended with {os.waitstatus_to_exitcode(status)}")
        path = folder / "model" / "model.json"
        model = json.loads(path.read_text(encoding="utf-8"))
        return Result(
            columns=n_columns,
            rows=n_rows,
            standardised=standardise,
            seconds=seconds,
            peak_mib=used.ru_maxrss / 1024,
            versions=model["version"],
            converged=model["converged"],
            model_mib=path.stat().st_size / 2**20,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--standardise", choices=["on", "off"], help="one of the two; by default both")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    wanted = [arguments.standardise] if arguments.standardise else ["on", "off"]
    results = [measure(arguments.columns, arguments.rows, standardise=each == "on") for each in wanted]
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))
        return
    for each in results:
        how = "standardised" if each.standardised else "as they are"
        ended = "converged" if each.converged else "not converged"
        print(
            f"{each.columns:,} columns, {each.rows:,} rows, {how}: {each.seconds:.0f} s, {each.peak_mib:,.0f} MiB, "
            f"{each.versions} versions, {ended}; model.json {each.model_mib:.0f} MiB"
        )


if __name__ == "__main__":
    main()
