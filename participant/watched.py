"""Where a standing participant's rows come from: it notices when they change, and contributes again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from participant.sources import Reading, Table


@dataclass(slots=True)
class Watched:
    """Rows that may change.

    Attributes
    ----------
    reading : how they are read.
    signature : what it was when they were read last.
    seconds : between two looks; 0 for never.

    Rows that were refused count as not read: the next look tries again, since not only what they are may be mended but
    also a database that was away.
    """

    reading: Reading
    signature: Any
    seconds: float

    def have_changed(self) -> bool:
        """Whether they may have changed since they were read last; raises `DataError`."""
        return bool(self.reading.signature() != self.signature)

    def read(self) -> Table:
        """Return what they are now; raises `DataError`."""
        signature = self.reading.signature()  # before the rows: what changes from here on is noticed
        table = self.reading.table()
        self.signature = signature
        return table
