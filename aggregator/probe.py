"""The message by which an aggregator learns whether deliveries reach it: it says nothing, to whoever serves."""

from __future__ import annotations

from broker.topology import UPDATES, probe_key
from broker.transport import Outgoing

#: A probe that is older has been overtaken by others; they do not pile up where nobody serves.
EXPIRY_SECONDS = 5.0


def probe(federation: str) -> Outgoing:
    """Return a probe for the aggregators of ``federation``."""
    return Outgoing(
        exchange=UPDATES,
        routing_key=probe_key(federation),
        body=b"",
        message_id=f"{federation}:probe",
        persistent=False,
        expiration_seconds=EXPIRY_SECONDS,
    )
