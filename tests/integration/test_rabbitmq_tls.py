"""TLS: the broker proves who it is, and a certificate is as good as a password."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from servers.certificates import Authority
from servers.rabbitmq import Programs, RabbitMQ, VHost, fresh_vhost

from broker.errors import CredentialsRefused, TopologyRefused
from broker.rabbitmq import RabbitMQTransport
from broker.testing import letter, queue, take
from broker.url import TLSSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.rabbitmq

CONFIG = """
listeners.ssl.local = 127.0.0.1:{tls_port}
ssl_options.cacertfile = {folder}/ca.pem
ssl_options.certfile = {folder}/broker.pem
ssl_options.keyfile = {folder}/broker.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = EXTERNAL
auth_mechanisms.2 = PLAIN
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture(scope="module")
def tls_node(authority: Authority, rabbitmq_programs: Programs) -> Iterator[RabbitMQ]:
    broker = authority.issue("broker")
    files = {path.name: path.read_bytes() for path in (authority.ca_file, broker.cert_file, broker.key_file)}
    with RabbitMQ(
        rabbitmq_programs,
        plugins=("rabbitmq_management", "rabbitmq_auth_mechanism_ssl"),
        config=CONFIG,
        files=files,
    ) as node:
        yield node


@pytest.fixture
def tls_vhost(tls_node: RabbitMQ) -> Iterator[VHost]:
    for vhost in fresh_vhost(tls_node):
        vhost.amqp_url(user="hospital-1")
        yield vhost


def url(vhost: VHost, credentials: str = "") -> str:
    return f"amqps://{credentials}127.0.0.1:{vhost.rabbitmq.tls_port}/{vhost.name.replace('/', '%2F')}"


def settings(trusted: Authority, issuer: Authority | None = None, name: str = "hospital-1") -> TLSSettings:
    certificate = issuer.issue(name) if issuer is not None else None
    return TLSSettings(
        trusted.ca_file,
        certificate.cert_file if certificate else None,
        certificate.key_file if certificate else None,
    )


async def refusal(transport: RabbitMQTransport) -> str:
    with pytest.raises(CredentialsRefused) as caught:
        async with asyncio.timeout(10):
            await transport.__aenter__()
    return str(caught.value)


async def test_a_certificate_alone_logs_in_as_its_common_name(tls_vhost: VHost, authority: Authority) -> None:
    async with RabbitMQTransport([url(tls_vhost)], tls=settings(authority, authority)) as transport:
        assert transport.user == "hospital-1"
        await transport.declare(queue())
        await transport.publish(letter(1))
        [delivery] = await take(await transport.consume("q", prefetch=1), 1)
        assert delivery.user_id == "hospital-1"


async def test_certificate_and_key_may_share_a_file(tls_vhost: VHost, authority: Authority, tmp_path: Path) -> None:
    certificate = authority.issue("hospital-1")
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.key_file.read_bytes() + certificate.cert_file.read_bytes())
    tls = TLSSettings(authority.ca_file, both)
    async with RabbitMQTransport([url(tls_vhost)], tls=tls) as transport:
        assert transport.user == "hospital-1"


async def test_a_password_still_counts_where_there_is_one(tls_vhost: VHost, authority: Authority) -> None:
    tls_vhost.amqp_url(user="alice", password="planted")
    address = url(tls_vhost, "alice:planted@")
    async with RabbitMQTransport([address], tls=settings(authority, authority)) as transport:
        assert transport.user == "alice"


async def test_who_is_not_in_the_certificate_cannot_be_claimed(tls_vhost: VHost, authority: Authority) -> None:
    tls = settings(authority, authority)
    async with RabbitMQTransport([url(tls_vhost)], user="hospital-2", tls=tls) as transport:
        await transport.declare(queue())
        with pytest.raises(TopologyRefused, match="user_id"):
            await transport.publish(letter(1))


async def test_a_user_whom_the_broker_does_not_know_is_refused(tls_vhost: VHost, authority: Authority) -> None:
    tls = settings(authority, authority, name="hospital-9")
    assert "hospital-9" in await refusal(RabbitMQTransport([url(tls_vhost)], tls=tls))


async def test_a_certificate_of_another_authority_is_refused(
    tls_vhost: VHost, authority: Authority, stranger: Authority
) -> None:
    tls = settings(authority, stranger)
    assert "refuses our certificate" in await refusal(RabbitMQTransport([url(tls_vhost)], tls=tls))


async def test_no_certificate_is_refused(tls_vhost: VHost, authority: Authority) -> None:
    address = url(tls_vhost, "alice:planted@")
    assert "certificate" in await refusal(RabbitMQTransport([address], tls=settings(authority)))


async def test_a_broker_of_another_authority_is_not_trusted(
    tls_vhost: VHost, authority: Authority, stranger: Authority
) -> None:
    tls = settings(stranger, authority)
    assert "is not to be trusted" in await refusal(RabbitMQTransport([url(tls_vhost)], tls=tls))


async def test_a_broker_by_another_name_is_not_trusted(tls_vhost: VHost, authority: Authority) -> None:
    address = url(tls_vhost).replace("127.0.0.1", "localhost")
    assert "is not to be trusted" in await refusal(RabbitMQTransport([address], tls=settings(authority, authority)))


async def test_a_certificate_file_that_is_gone_is_named(tls_vhost: VHost, authority: Authority, tmp_path: Path) -> None:
    lost = tmp_path / "lost.pem"
    shutil.copy(authority.ca_file, lost)
    transport = RabbitMQTransport([url(tls_vhost, "alice:planted@")], tls=TLSSettings(lost))
    lost.unlink()
    assert str(lost) in await refusal(transport)
