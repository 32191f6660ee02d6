"""What can go wrong while others watch.

::

    MonitoringError      metrics, health or logs cannot be set up as asked
"""

from __future__ import annotations


class MonitoringError(Exception):
    """Metrics, health or logs cannot be set up as asked; the message says why and what to change."""
