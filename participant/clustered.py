"""Rows on a Dask cluster, as the mathematics wants them: what is to be done goes to the rows, and sums come back.

A sum is made of the partitions in the order of their files, and within each in the order of its rows: it does not
depend on how many workers there are, or on who is done first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.messages import Plan
from logistic.moments import Moments, moments_of_rows
from logistic.problem import CHUNK_ROWS, Chunk, Problem
from logistic.rows import part
from participant.design import Design
from participant.sources.dask import ClusteredTable, Partition
from participant.sources.reading import DataChanged

T = TypeVar("T")

#: Of the features of a chunk. What comes back of each may be a Hessian, which is 18 MB at 1500 columns: few are large.
CHUNK_BYTES = 2**26


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class View:
    """What a plan makes of the rows of a partition.

    Attributes
    ----------
    design : of the whole table.
    is_train : whether the training rows are meant, or the test rows.
    classes : the labels as they came, in the order of the plan.
    class_weights : by which the rows of each class count besides; empty for 1.
    """

    design: Design
    is_train: bool
    classes: tuple[int, ...]
    class_weights: tuple[float, ...] = ()

    def chunks(self, partition: Partition, places: Mapping[int, NDArray[np.intp]]) -> Iterator[Chunk]:
        """Yield the rows of ``partition``, of whose levels ``places`` says which of the design's they are."""
        rows = partition.train if self.is_train else partition.test
        cells, y, sample_weight = rows.dense(), rows.y, rows.sample_weight
        codings = {
            first: replace(coding, codes=coding.codes[np.append(places[coding.column], -1)])
            for first, coding in self.design.codings.items()
        }
        design = replace(self.design, codings=codings)
        order = np.argsort(self.classes)
        labels = order[np.searchsorted(self.classes, y, sorter=order)]
        if self.class_weights:
            by_class = np.array(self.class_weights)[labels]
            sample_weight = by_class if sample_weight is None else by_class * sample_weight
        size = max(CHUNK_ROWS, CHUNK_BYTES // (8 * max(1, len(design.picks))))
        for start in range(0, len(y), size):
            of = slice(start, start + size)
            yield Chunk(
                design.apply(cells[of]), labels[of].astype(np.float64), part(sample_weight, of), part(rows.offset, of)
            )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ClusteredRows:
    """The training rows of a table on a cluster, or its test rows, in the columns of a plan."""

    table: ClusteredTable
    view: View

    @property
    def n_rows(self) -> int:
        """How many are meant."""
        return self.table.n_train if self.view.is_train else self.table.n_test

    @property
    def n_features(self) -> int:
        """The columns of the plan."""
        return len(self.view.design.picks)

    @property
    def n_samples(self) -> float:
        """The sum of their weights."""
        counts = dict(zip(self.view.classes, self.view.class_weights or (1.0,) * len(self.view.classes), strict=True))
        return sum(
            counts[int(label)] * weight
            for each in self.table.summaries
            for label, weight in (each.train_weights if self.view.is_train else each.test_weights).items()
        )

    def over(self, function: Callable[[Chunk], T]) -> Iterator[T]:
        """Yield ``function`` of each chunk of rows, in their order; raises `DataError` where the cluster fails."""
        table, cluster = self.table, self.table.cluster
        # Sent once, and from worker to worker: it may be larger than the partitions' own arguments by far.
        job = cluster.submit(_job, self.view, function, np.geterr())
        arguments = (
            (partition, summary.digest, table.places(summary), job)
            for partition, summary in zip(table.partitions, table.summaries, strict=True)
        )
        for found in cluster.in_order(_over, arguments):
            yield from found


def clustered_problems(table: ClusteredTable, plan: Plan, made: Design) -> tuple[Problem, Problem | None]:
    """Return the problems of the training rows and of the test rows; None where no row is for testing."""

    def problem(view: View) -> Problem:
        return Problem(ClusteredRows(table, view), l2=plan.l2, n_classes=len(plan.classes))

    train = problem(View(made, True, plan.classes, plan.class_weights))
    return train, problem(View(made, False, plan.classes)) if table.n_test else None


def clustered_moments(table: ClusteredTable, made: Design) -> Moments:
    """Return the moments of the plan's columns as they came, over the training rows; gaps count as gaps."""
    as_it_came = replace(made, fill=None, mean=None, scale=None)
    return moments_of_rows(ClusteredRows(table, View(as_it_came, True, table.classes)), allow_missing=True)


def _job(*parts: Any) -> Any:
    return parts


def _over(partition: Partition, digest: bytes, places: Mapping[int, NDArray[np.intp]], job: Any) -> list[Any]:
    """Return the function of each chunk of a partition, on its worker."""
    view, function, errors = job
    if partition.summary.digest != digest:
        raise DataChanged("a file on the Dask cluster has not the rows that it had; its rows are read anew")
    with np.errstate(**errors):  # what the caller has allowed
        return [function(chunk) for chunk in view.chunks(partition, places)]
