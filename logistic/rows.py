"""What a site's rows are to the mathematics: something that applies a function to one chunk of them after another.

Every sum of this package is one over chunks of consecutive rows. So the rows may be arrays, or be read from disk anew
each time, a chunk at a time, or lie on several machines that the function is sent to (`Rows`). Chunks are added up in
the order of the rows, whoever finished first: a sum does not depend on the number of threads. Several threads want a
BLAS that has one (``OMP_NUM_THREADS=1``): else each product wants all cores, and they wait for one another.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial, reduce
from itertools import pairwise
from operator import add
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from logistic.arrays import Matrix, Vector
from logistic.sparse import CSR

T = TypeVar("T")

Features: TypeAlias = Matrix | CSR

# Rows per chunk: 3 MB at 100 columns, about a core's cache; 49 MB at 1500, the widest Hessian we expect.
CHUNK_ROWS = 4096

# Entries per chunk of sparse rows: 2 MB of values, about a core's cache.
CHUNK_ENTRIES = 2**18

# At least so many entries for each column: a gradient is an array of all columns, to be made for each chunk.
ENTRIES_PER_COLUMN = 2

# Of an array of all cells of some sparse rows: 64 MiB.
DENSE_BYTES = 2**26


class Chunk(NamedTuple):
    """A few consecutive rows: ``X`` (m, n_features), ``y`` (m,), ``sample_weight`` and ``offset`` (m,) or None."""

    X: Features
    y: Vector
    sample_weight: Vector | None
    offset: Vector | None

    def weighted(self, values: Vector) -> Vector:
        """Multiply each row's values, (m,) or (m, n_classes), by its sample weight."""
        return values if self.sample_weight is None else (values.T * self.sample_weight).T

    def squared_row_norms(self) -> Vector:
        """Return ||x||^2 of each row, (m,)."""
        return self.X.squared_row_norms() if isinstance(self.X, CSR) else np.einsum("ij,ij->i", self.X, self.X)

    def dense(self) -> Matrix:
        """Return X as an array of all cells; of sparse rows it is made, so ask a block for it (`in_blocks`)."""
        return self.X.dense() if isinstance(self.X, CSR) else self.X

    def blocks(self) -> Iterator["Chunk"]:
        """Cut sparse rows into chunks of which an array of all cells is small; an array's chunk is one already."""
        if not isinstance(self.X, CSR):
            yield self
            return
        size = min(CHUNK_ROWS, max(1, DENSE_BYTES // (8 * max(1, self.X.shape[1]))))
        for start in range(0, max(1, len(self.y)), size):
            yield self.part(slice(start, start + size))

    def part(self, rows: slice) -> "Chunk":
        """Return consecutive ones of these rows, without a copy."""
        return Chunk(self.X[rows], self.y[rows], part(self.sample_weight, rows), part(self.offset, rows))


class Rows(Protocol):
    """A site's rows with their labels, sample weights and offsets, wherever they are.

    Labels are 0.0, 1.0, ... n_classes - 1, every number is finite, and no sample weight is negative: whoever hands the
    rows out has seen to it. Either all chunks have sample weights, or none; and so with offsets.
    """

    @property
    def n_rows(self) -> int:
        """Number of rows, whatever their weights."""

    @property
    def n_features(self) -> int:
        """Number of columns."""

    @property
    def n_samples(self) -> float:
        """Sum of the sample weights."""

    def over(self, function: Callable[[Chunk], T]) -> Iterator[T]:
        """Yield the function of each chunk, in the order of the rows, working no further ahead than it must.

        Parameters
        ----------
        function : can be pickled, so that it can be sent to where the rows are; what it returns is small beside them.
        """


def over_chunks(chunks: Iterable[Chunk], function: Callable[[Chunk], T], threads: int) -> Iterator[T]:
    """Yield the function of each chunk in order, computed by ``threads`` threads; by the caller's own where it is 1.

    The caller's thread alone reads ``chunks``, and never has more than ``threads + 1`` of them at once. What either
    raises is raised here. A generator that is abandoned waits for the chunks in hand, and leaves no thread behind.
    """
    if threads == 1:
        yield from map(function, chunks)
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for chunk in chunks:
                # The context has numpy's errstate: a thread of its own would warn of what the caller has allowed.
                ahead.append(pool.submit(copy_context().run, function, chunk))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def in_blocks(function: Callable[[Chunk], T], chunk: Chunk) -> T:
    """Add up the function of each block of a chunk, for functions that need an array of all cells (`Chunk.dense`)."""
    return reduce(add, map(function, chunk.blocks()))


def row_cuts(X: Features, chunk_rows: int | None = None) -> Iterator[tuple[int, int]]:
    """Where to cut rows in memory into chunks: the first row of each, and the first one after it.

    Parameters
    ----------
    chunk_rows : at most so many rows in each; None for `CHUNK_ROWS`, or of sparse rows for a fair number of entries.
    """
    if chunk_rows is None and isinstance(X, CSR):
        budget = max(CHUNK_ENTRIES, ENTRIES_PER_COLUMN * X.shape[1])
        work = X.indptr + np.arange(len(X) + 1)  # a row without entries is not for nothing either
        ends = np.searchsorted(work, np.arange(budget, work[-1] + budget, budget), side="right") - 1
        return pairwise(np.unique(np.concatenate([[0], ends, [len(X)]])).tolist())
    size = CHUNK_ROWS if chunk_rows is None else chunk_rows
    return ((start, min(start + size, len(X))) for start in range(0, len(X), size))


@dataclass(frozen=True, slots=True)
class WithoutOffset:
    """Some rows, with their offsets left out."""

    rows: Rows

    @property
    def n_rows(self) -> int:
        """Number of rows, whatever their weights."""
        return self.rows.n_rows

    @property
    def n_features(self) -> int:
        """Number of columns."""
        return self.rows.n_features

    @property
    def n_samples(self) -> float:
        """Sum of the sample weights."""
        return self.rows.n_samples

    def over(self, function: Callable[[Chunk], T]) -> Iterator[T]:
        """Yield the function of each chunk without its offsets."""
        return self.rows.over(partial(_without_offset, function))


def _without_offset(function: Callable[[Chunk], T], chunk: Chunk) -> T:
    return function(chunk._replace(offset=None))


def part(values: Vector | None, rows: slice) -> Vector | None:
    """Return some of a column that may not be there."""
    return None if values is None else values[rows]
