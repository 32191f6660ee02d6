"""Fixtures that any test may ask for."""

from __future__ import annotations

import os

# As the commands that fit at several sites at once: before numpy is loaded, or it has no effect.
for _library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

from typing import TYPE_CHECKING

import pytest
from servers.processes import no_program
from servers.rabbitmq import Programs, RabbitMQ, VHost, find_rabbitmq, fresh_vhost

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def rabbitmq_programs() -> Programs:
    """Give the RabbitMQ that is installed here, for tests that start nodes of their own."""
    programs = find_rabbitmq()
    if programs is None:
        no_program("RabbitMQ is not installed here: apt-get install --no-install-recommends rabbitmq-server")
    return programs


@pytest.fixture(scope="session")
def rabbitmq(rabbitmq_programs: Programs) -> Iterator[RabbitMQ]:
    """Give the RabbitMQ node of this test session."""
    with RabbitMQ(rabbitmq_programs) as node:
        yield node


@pytest.fixture
def vhost(rabbitmq: RabbitMQ) -> Iterator[VHost]:
    """Give a vhost of the test's own on the node of the session."""
    yield from fresh_vhost(rabbitmq)
