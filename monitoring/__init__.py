"""What operators see: metrics, health, logs, and the rules and dashboards that read them."""

from monitoring.errors import MonitoringError
from monitoring.http import Health, MetricsServer
from monitoring.logs import configure_logging, logger, redact
from monitoring.metrics import PHASES, STATES, UNLISTED, AggregatorMetrics, ParticipantMetrics

__all__ = [
    "PHASES",
    "STATES",
    "UNLISTED",
    "AggregatorMetrics",
    "Health",
    "MetricsServer",
    "MonitoringError",
    "ParticipantMetrics",
    "configure_logging",
    "logger",
    "redact",
]
