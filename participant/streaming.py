"""Rows that do not stay in memory: each time that they are gone over they are read anew, and made what a plan wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.messages import Array
from logistic.problem import CHUNK_ROWS, Chunk
from logistic.rows import over_chunks
from participant.design import Design
from participant.sources.table import Streamed

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class StreamedRows:
    """Some of the rows of a table that is read anew, as the mathematics wants them.

    Attributes
    ----------
    which : (n_rows of the table,) booleans: those that are meant.
    y, sample_weight, offset : of these rows.
    threads : how many compute at a time while one reads.
    """

    X: Streamed
    design: Design
    which: NDArray[np.bool_]
    y: Array
    sample_weight: Array | None
    offset: Array | None
    threads: int = 1

    @property
    def n_rows(self) -> int:
        """How many are meant."""
        return len(self.y)

    @property
    def n_features(self) -> int:
        """The columns of the plan."""
        return len(self.design.picks)

    @property
    def n_samples(self) -> float:
        """The sum of their weights."""
        return float(self.n_rows if self.sample_weight is None else self.sample_weight.sum())

    def over(self, function: Callable[[Chunk], T]) -> Iterator[T]:
        """Yield ``function`` of each chunk of rows, in their order."""
        return over_chunks(self._chunks(), partial(_designed, self.design, function), self.threads)

    def blocks(self) -> Iterator[tuple[Array, Array | None]]:
        """Yield the plan's columns as they came, with NaN in the gaps, and the weights: what moments are made of."""
        for cells, of in self._parts():
            yield self.design.raw(cells), None if self.sample_weight is None else self.sample_weight[of]

    def _chunks(self) -> Iterator[Chunk]:
        """Yield the chunks with the table's columns: who computes with them makes the plan's, several at a time."""
        for cells, of in self._parts():
            yield Chunk(
                cells,
                self.y[of],
                None if self.sample_weight is None else self.sample_weight[of],
                None if self.offset is None else self.offset[of],
            )

    def _parts(self) -> Iterator[tuple[Array, slice]]:
        """Yield the cells of a few of our rows at a time, and which of them these are."""
        seen = done = 0
        for coded in self.X.rows:
            ours = self.which[seen : seen + len(coded.X)]
            cells = coded.X if ours.all() else coded.X[ours]
            seen += len(coded.X)
            for start in range(0, len(cells), CHUNK_ROWS):
                part = cells[start : start + CHUNK_ROWS]
                yield part, slice(done, done + len(part))
                done += len(part)


def _designed(design: Design, function: Callable[[Chunk], T], chunk: Chunk) -> T:
    return function(chunk._replace(X=design.apply(chunk.dense())))
