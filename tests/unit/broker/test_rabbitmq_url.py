"""URLs are understood or refused, and never show a password."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest
from servers.certificates import Authority

from broker.errors import CredentialsRefused
from broker.url import Address, TLSSettings, parse_url, redact


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://alice:secret@host:5672/vhost", "amqp://alice:***@host:5672/vhost"),
        ("amqps://alice:secret@host", "amqps://alice:***@host"),
        ("amqp://alice@host/v", "amqp://alice@host/v"),
        ("amqp://host:5672", "amqp://host:5672"),
        ("amqp://[::1]:5672/v", "amqp://[::1]:5672/v"),
        ("amqp://alice:se@cr:et/wi?th#it@host/v?password=secret", "amqp://alice:***@host/v"),
        ("amqp://alice:secret", "amqp://alice:***"),
        ("amqp://alice:secret/v", "amqp://alice:***"),
        ("alice:secret@host", "alice:***@host"),
        ("alice:secret://x@host", "alice:***@host"),
        ("amqp://host/v?password=secret", "amqp://host/v"),
        ("", ""),
    ],
)
def test_a_redacted_url_shows_everything_but_the_password(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_the_parts_of_an_url_are_decoded() -> None:
    address = parse_url("amqp://a%40b:p%40ss%2F@broker.example:1234/trial%2Fone")
    assert address == Address(False, "broker.example", 1234, "trial/one", "a@b", "p@ss/")
    assert address.where == "broker.example:1234"
    assert "p@ss" not in repr(address)


@pytest.mark.parametrize(("url", "port"), [("amqp://u:p@h", 5672), ("amqps://u:p@h", 5671), ("AMQP://u:p@h:9/", 9)])
def test_port_and_vhost_have_their_usual_values(url: str, port: int) -> None:
    address = parse_url(url)
    assert (address.port, address.vhost, address.tls) == (port, "/", url.startswith("amqps"))


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("http://alice:secret@host", "begins with amqp://"),
        ("alice:secret@host", "begins with amqp://"),
        ("", "begins with amqp://"),
        ("amqp://alice:secret@", "host is missing"),
        ("amqp://alice:sec/ret@host", "percent|written %40"),
        ("amqp://alice:secret", "written %40"),
        ("amqp://alice:secret@host:70000", "written %40"),
        ("amqp://alice:sec#ret@host", "written %40"),
        ("amqp://alice:secret@host/v?heartbeat=5", "nothing follows the vhost"),
        ("amqp://alice:secret@host/v#part", "nothing follows the vhost"),
    ],
)
def test_a_bad_url_is_told_what_to_do_and_keeps_its_secret(url: str, advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as caught:
        parse_url(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert not any(secret in f"{error!r}" for secret in ("secret", "sec/ret", "sec#ret"))
        error = error.__cause__


def test_a_context_checks_the_broker_and_knows_no_old_protocol(authority: Authority) -> None:
    context = TLSSettings(authority.ca_file).context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_client_certificate_names_its_user(authority: Authority) -> None:
    issued = authority.issue("hospital-1")
    tls = TLSSettings(authority.ca_file, issued.cert_file, issued.key_file)
    assert tls.common_name() == "hospital-1"
    tls.context()


def test_a_certificate_without_a_name_asks_for_one(tmp_path: Path) -> None:
    nameless = tmp_path / "nameless.pem"
    where = ["-out", str(nameless), "-keyout", str(tmp_path / "key.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/O=A hospital", *where],
        check=True,
        capture_output=True,
    )
    with pytest.raises(ValueError, match="no common name"):
        TLSSettings(None, nameless).common_name()


def test_without_certificate_somebody_has_to_name_the_user() -> None:
    with pytest.raises(ValueError, match="no user"):
        TLSSettings().common_name()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----",
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
    ],
)
def test_what_is_no_certificate_is_named(content: str, tmp_path: Path) -> None:
    file = tmp_path / "odd.pem"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"odd\.pem"):
        TLSSettings(None, file).common_name()


def test_files_that_are_no_use_are_named(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(CredentialsRefused, match=r"missing\.pem"):
        TLSSettings(tmp_path / "missing.pem").context()
    with pytest.raises(CredentialsRefused, match=r"ca\.pem"):
        TLSSettings(None, authority.ca_file).context()


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path: Path, authority: Authority) -> None:
    issued = authority.issue("hospital-2")
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", str(issued.key_file), "-aes256", "-passout", "pass:secret", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    with pytest.raises(CredentialsRefused, match=r"locked\.key"):
        TLSSettings(None, issued.cert_file, locked).context()
