"""A real OCI registry on loopback: Debian's `docker-registry`, with passwords or TLS if a test wants them."""

from __future__ import annotations

import http.client
import ipaddress
import json
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAM = shutil.which("docker-registry")
needs_registry = pytest.mark.skipif(
    PROGRAM is None, reason="no registry to talk to: `apt-get install docker-registry` brings one"
)
_SECONDS = 30.0
"""The longest that a registry may take to start."""


@dataclass(frozen=True)
class Login:
    """A name and a password that a registry accepts."""

    user: str
    password: str


class RegistryServer:
    """A registry's process, and its files."""

    def __init__(self, folder: Path, *, login: Login | None = None, tls: bool = False, deletes: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = _free_port()
        self.certificate = folder / "certificate.pem" if tls else None
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        http_part = {"addr": f"127.0.0.1:{self.port}", "secret": "the same after a restart"}
        config = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": deletes}},
            "http": http_part,
        }
        if login:
            import bcrypt  # noqa: PLC0415 - GPU hosts do not have it

            hashed = bcrypt.hashpw(login.password.encode(), bcrypt.gensalt(4)).decode()
            (folder / "htpasswd").write_text(f"{login.user}:{hashed}\n")
            config["auth"] = {"htpasswd": {"realm": "ours", "path": str(folder / "htpasswd")}}
        if self.certificate:
            key = folder / "key.pem"
            _write_certificate(self.certificate, key)
            config["http"] = {**http_part, "tls": {"certificate": str(self.certificate), "key": str(key)}}
        (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML

    @property
    def host(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def url(self, repository: str) -> str:
        """Return the URL of a repository."""
        return f"oci{'' if self.certificate else '+http'}://{self.host}/{repository}"

    def blob(self, sha256: str) -> Path:
        """Return the file of a blob."""
        return self.folder / "data/docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"

    def start(self) -> None:
        """Start the registry, and wait until it answers."""
        assert PROGRAM is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - fixed
                [PROGRAM, "serve", str(self.folder / "config.yml")], stdout=log, stderr=log
            )
        until = time.monotonic() + _SECONDS
        while not self._answers():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < until, "the registry does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        """Kill the registry, as a machine that goes away does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        connection: http.client.HTTPConnection
        if self.certificate:
            trusted = ssl.create_default_context(cafile=str(self.certificate))
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=2, context=trusted)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in {200, 401}
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def running(
    folder: Path, *, login: Login | None = None, tls: bool = False, deletes: bool = True
) -> Iterator[RegistryServer]:
    """Run a registry.

    Args:
        folder: the folder for its configuration and its blobs.
        login: the only one that it accepts; None for anybody.
        tls: True for a certificate, which `RegistryServer.certificate` holds.
        deletes: False for a registry that removes nothing, as docker's does by default.
    """
    server = RegistryServer(folder, login=login, tls=tls, deletes=deletes)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _write_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate of 127.0.0.1 that vouches for itself, and its key."""
    from cryptography import x509  # noqa: PLC0415 - GPU hosts do not have it
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415 - the same
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - the same

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
