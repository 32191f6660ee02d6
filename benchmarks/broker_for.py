"""A broker for a benchmark: the one that is named, or a private node that is started and ended here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def broker_url(given: str | None) -> Iterator[str]:
    """Yield ``given``, or the URL of a private RabbitMQ node of this machine's programs."""
    if given:
        yield given
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from servers.rabbitmq import RabbitMQ, find_rabbitmq, fresh_vhost  # noqa: PLC0415 - only where one is started

    programs = find_rabbitmq()
    if programs is None:
        sys.exit("no RabbitMQ is installed here: give --broker URL, or apt-get install rabbitmq-server")
    with RabbitMQ(programs) as node:
        for vhost in fresh_vhost(node):
            yield vhost.amqp_url(user="bench", password="bench")  # noqa: S106 - a private node's own
