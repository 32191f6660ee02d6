"""One pass of gradient and Hessian over a Parquet file of 1,000,000 rows and 100 columns, beside reading it alone.

The pass is the product's own: rows that stream from DuckDB, are coded, checked and standardised, and summed. It is held
against reading the same file through the source and doing nothing with it, plus the bare ``A.T @ A`` of numpy over the
same rows in memory, each alone: what nobody could do without. Each figure is of a fresh process.

    python benchmarks/parquet.py                   # one thread and two; makes its file in a temporary folder, 800 MB
    python benchmarks/parquet.py --groups 20480    # rows of a group in the file: memory follows from it
"""

from __future__ import annotations

import os

# As the commands do: the threads are ours, not the BLAS library's.
for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import duckdb
import numpy as np

from broker.messages import Frame, LocalWork, Plan
from logistic.loss import gradient_and_hessian_sum
from participant.sources.duckdb import DuckDBSource
from participant.sources.reading import read
from participant.sources.table import Columns
from participant.training import prepare

N_ROWS, N_FEATURES = 1_000_000, 100
#: Rows that DuckDB puts into one group, by default.
GROUP_ROWS = 122_880
CHUNK_ROWS = 4096
#: A pass may take so many times reading and multiplying alone, and all of it so much memory.
MOST_TIMES, MOST_BYTES = 1.5, 2**30


def make(path: Path, group_rows: int) -> None:
    """Write numbers without any structure: what compresses is read faster."""
    columns = ", ".join(f"random() * {index + 1} AS x{index:02}" for index in range(N_FEATURES))
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute(
            f"COPY (SELECT {columns}, (random() < 0.3)::DOUBLE AS y FROM range({N_ROWS})) "  # noqa: S608 - our own
            f"TO '{path}' (FORMAT parquet, ROW_GROUP_SIZE {group_rows})"
        )


def seconds(once: Callable[[], object], repeats: int) -> float:
    """Return the median of the wall clock's seconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        taken.append(time.perf_counter() - start)
    return median(taken)


def pass_seconds(path: Path, threads: int, repeats: int) -> float:
    """Return how long the product takes for one pass."""
    table = read(DuckDBSource((str(path),)), Columns("y"))
    frame = Frame(np.full(N_FEATURES, 0.5), np.linspace(1.0, 2.0, N_FEATURES))
    work = LocalWork("newton", 1, None, None)
    plan = Plan("benchmark", 0, table.features, 0.0, "incremental-newton", "curvature", work, 0, frame)
    problem = prepare(table, plan, "", threads=threads).train
    weights = np.linspace(-0.1, 0.1, N_FEATURES + 1)
    return seconds(lambda: gradient_and_hessian_sum(problem, weights), repeats)


def read_seconds(path: Path, _: int, repeats: int) -> float:
    """Return how long the source takes to hand out all rows."""
    source = DuckDBSource((str(path),))
    names = source.names()
    return seconds(lambda: sum(batch.n_rows for batch in source.batches(names)), repeats)


def product_seconds(_: Path, __: int, repeats: int) -> float:
    """Return how long numpy takes for the sum of ``A.T @ A`` over chunks of as many rows in memory."""
    rows = np.random.default_rng(0).random((N_ROWS, N_FEATURES))

    def products() -> None:
        total = np.zeros((N_FEATURES, N_FEATURES))
        for start in range(0, N_ROWS, CHUNK_ROWS):
            A = rows[start : start + CHUNK_ROWS]
            total += A.T @ A

    return seconds(products, repeats)


FIGURES = {"pass": pass_seconds, "read": read_seconds, "product": product_seconds}


def measure(figure: str, path: Path, threads: int, repeats: int) -> tuple[float, int]:
    """Return the seconds of one figure, and the peak of the bytes in memory, in a process of its own."""
    told = json.dumps([figure, str(path), threads, repeats])
    answer = subprocess.run([sys.executable, __file__, "--measure", told], check=True, stdout=subprocess.PIPE)
    taken, peak = json.loads(answer.stdout)
    return taken, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, action="append", help="may be given again; 1 and 2 by default")
    parser.add_argument("--groups", type=int, default=GROUP_ROWS, help="rows of a group in the file")
    parser.add_argument("--repeats", type=int, default=5, help="of which the median counts")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        figure, path, threads, repeats = json.loads(given.measure)
        taken = FIGURES[figure](Path(path), threads, repeats)
        print(json.dumps([taken, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
        return
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder:
        path = Path(folder) / "rows.parquet"
        make(path, given.groups)
        print(f"{N_ROWS:,} rows of {N_FEATURES} columns, {path.stat().st_size / 2**20:.0f} MiB of Parquet")
        reading, _ = measure("read", path, 1, given.repeats)
        product, _ = measure("product", path, 1, given.repeats)
        print(f"reading alone {reading:.2f} s, A.T @ A alone {product:.2f} s")
        for threads in given.threads or (1, 2):
            taken, peak = measure("pass", path, threads, given.repeats)
            times = taken / (reading + product)
            kept = times <= MOST_TIMES and peak < MOST_BYTES
            print(
                f"threads {threads}: gradient and Hessian {taken:.2f} s, {times:.2f} times both; peak "
                f"{peak / 2**20:.0f} MiB{'' if kept else '   FAILED'}"
            )


if __name__ == "__main__":
    main()
