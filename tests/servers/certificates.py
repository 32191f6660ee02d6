"""Certificates for tests, made by openssl: an authority, and whom it vouches for."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    cert_file: Path
    key_file: Path


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.ca_file = folder / "ca.pem"
        self._ca_key = folder / "ca.key"
        self._make("/CN=test authority", self.ca_file, self._ca_key)

    def issue(self, common_name: str) -> Certificate:
        """Make a certificate for a user, or for a server at 127.0.0.1."""
        issued = Certificate(self._folder / f"{common_name}.pem", self._folder / f"{common_name}.key")
        signed = ["-CA", str(self.ca_file), "-CAkey", str(self._ca_key)]
        name = f"/O=A hospital/CN={common_name}"
        self._make(name, issued.cert_file, issued.key_file, *signed, "-addext", "subjectAltName=IP:127.0.0.1")
        return issued

    @staticmethod
    def _make(subject: str, cert_file: Path, key_file: Path, *more: str) -> None:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key_file)]
        request = ["-days", "2", "-subj", subject, "-out", str(cert_file)]
        subprocess.run(["openssl", "req", "-x509", *key, *request, *more], check=True, capture_output=True)
