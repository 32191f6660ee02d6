"""Where rows come from. A source returns a `Table`; what happens to it then does not depend on the source.

A source's errors say which file, line and column, and what kind of defect: never the value, since a log travels further
than the data may.
"""

from participant.sources.csv import read_csv
from participant.sources.table import Table

__all__ = ["Table", "read_csv"]
