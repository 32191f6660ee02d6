"""Where a broker is, and how to get in: AMQP URLs and TLS settings, without ever showing a password.

An URL is ``amqp://user:password@host:port/vhost`` or ``amqps://...``; its parts are percent-encoded as
in every URL. With a client certificate and no password in the URL, the certificate is the credential
(SASL EXTERNAL), and its common name is the user unless somebody says otherwise.

https://www.rabbitmq.com/docs/uri-spec
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from broker.errors import CredentialsRefused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PORTS = {"amqp": 5672, "amqps": 5671}
_SCHEME = re.compile(r"[a-zA-Z]+://")
_PLACE = re.compile(r"(\[[^\]]*\]|[^:/]*)(:\d*)?(/.*)?")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_COMMON_NAME = b"\x55\x04\x03"  # object identifier 2.5.4.3, X.520
_EXPLICIT_VERSION = 0xA0


def redact(url: str) -> str:
    """Return ``url`` without its password and its query, however malformed it is."""
    scheme = match.group() if (match := _SCHEME.match(url)) else ""
    # The last @ ends the credentials, whatever else stands unquoted in a password.
    credentials, at, place = url.removeprefix(scheme).rpartition("@")
    place = place.partition("?")[0]
    if at:
        user, colon, _ = credentials.partition(":")
        return f"{scheme}{user}{':***' if colon else ''}@{place}"
    if _PLACE.fullmatch(place):
        return scheme + place
    # No port follows this colon: perhaps a password, by somebody who forgot the host.
    return f"{scheme}{place.partition(':')[0]}:***"


@dataclass(frozen=True, slots=True)
class Address:
    """One broker, and as whom to log in there; a repr shows no password."""

    tls: bool
    host: str
    port: int
    vhost: str
    user: str | None
    password: str | None = field(repr=False)

    @property
    def where(self) -> str:
        """Host and port, for a sentence."""
        return f"{self.host}:{self.port}"


def parse_url(url: str) -> Address:
    """Read an AMQP URL.

    Raises
    ------
    ValueError
        With the URL, redacted, and what is wrong with it.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # `from None`: the standard library's sentence quotes the part that may be the password.
        raise _bad(url, "special characters in user and password are written %40 for @, %2F for /") from None
    if parts.scheme not in _PORTS:
        raise _bad(url, "it begins with amqp:// or amqps://")
    if not parts.hostname:
        raise _bad(url, "the host is missing")
    if parts.query or parts.fragment:
        raise _bad(url, "nothing follows the vhost: heartbeat, time limits and TLS have settings of their own")
    return Address(
        tls=parts.scheme == "amqps",
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        vhost=unquote(parts.path[1:]) or "/",
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _bad(url: str, advice: str) -> ValueError:
    return ValueError(f"{redact(url)} is not the URL of a broker: {advice}")


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """Files for an ``amqps`` connection: who signs the broker, and who we are.

    Without ``ca_file`` the system's certificate authorities count. ``key_file`` may be left out where
    the certificate's file holds the key as well.
    """

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Read the files. Called for each connection, so that renewed certificates are used.

        Raises
        ------
        CredentialsRefused
            A file is missing, or not what it should be.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert_file is not None:
                # A service has no terminal: without the empty password, OpenSSL would ask for one there.
                context.load_cert_chain(self.cert_file, self.key_file, password="")
        except OSError as error:
            files = ", ".join(str(file) for file in (self.ca_file, self.cert_file, self.key_file) if file)
            raise CredentialsRefused(
                f"the TLS files {files} cannot be used: {error}; they are PEM files, the key without a password"
            ) from error
        return context

    def common_name(self) -> str:
        """Return the user that the client certificate stands for.

        Raises
        ------
        ValueError
            There is no certificate in ``cert_file``, or it names nobody.
        """
        if self.cert_file is None:
            raise ValueError("the URL of the broker names no user, and there is no client certificate to do so")
        try:
            match = _CERTIFICATE.search(self.cert_file.read_text(encoding="ascii"))
            names = list(_common_names(ssl.PEM_cert_to_DER_cert(match.group()))) if match else []
        except (OSError, ValueError, IndexError) as error:
            raise ValueError(f"no certificate can be read from {self.cert_file}: {error}") from error
        if not names:
            raise ValueError(f"the certificate in {self.cert_file} has no common name; name the user in the URL")
        return names[0]


def _common_names(certificate: bytes) -> Iterator[str]:
    """Yield the common names of a certificate's subject (X.509 in DER; RFC 5280, section 4.1)."""
    [(_, signed)] = _elements(certificate)
    (_, to_be_signed), *_ = _elements(signed)
    fields = [content for tag, content in _elements(to_be_signed) if tag != _EXPLICIT_VERSION]
    _serial, _algorithm, _issuer, _validity, subject = fields[:5]
    for _, names in _elements(subject):
        for _, name in _elements(names):
            (_, kind), (_, value) = _elements(name)
            if kind == _COMMON_NAME:
                yield value.decode()


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tags and contents of the elements that stand one after the other."""
    while der:
        tag, length, start = der[0], der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start])
        yield tag, der[start : start + length]
        der = der[start + length :]
