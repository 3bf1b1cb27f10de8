"""Keys of signatures: elliptic curves in PEM files or on PKCS #11 tokens, checked before use."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, one_line

if TYPE_CHECKING:
    from typing import Any

PASSWORD = "MODEL_ARTIFACTS_KEY_PASSWORD"  # noqa: S105 - the variable's name, not a password
"""Environment variable with the password of an encrypted private key."""

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""Curves that OpenSSF model signing takes (`_check_supported_ec_key` of model-signing 1.1)."""
_EXPECTED = "a key on the curve P-256, P-384 or P-521, in PEM"
_MAKE = "make one: openssl ecparam -name prime256v1 -genkey -noout -out release.pem"
_PUBLISH = "write its public half: openssl ec -in PRIVATE.pem -pubout -out release.pub"


@dataclass(frozen=True)
class PrivateKey:
    """A private key in a PEM file.

    Attributes:
        path: the file.
        password: the password of an encrypted file; None for a plain one.
    """

    path: Path
    password: str | None = field(default=None, repr=False)

    def check(self) -> None:
        """Check that the key can sign.

        Raises:
            ReleaseError: the file is missing or holds no such key, or the password is missing or wrong.
        """
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415 - with `verify`

        content = _read(self.path, "private")
        if b"PUBLIC KEY-----" in content:
            raise ReleaseError(
                f"{self.path} holds a public key; a signature needs the private one", expected=_EXPECTED, fix=_MAKE
            )
        encoded = self.password.encode() if self.password is not None else None
        try:
            key = load_pem_private_key(content, encoded)
        except TypeError as exc:  # cryptography's sign of a missing or a needless password
            if encoded is None:
                fix = f"set {PASSWORD}, or run the command in a terminal, which asks for it"
                raise ReleaseError(
                    f"the private key {self.path} is encrypted", expected="its password", fix=fix
                ) from exc
            fix = f"unset {PASSWORD}"
            raise ReleaseError(f"the private key {self.path} is not encrypted", got="a password", fix=fix) from exc
        except Exception as exc:  # ValueError, UnsupportedAlgorithm, and errors of OpenSSL without a common base
            if encoded is not None:
                fix = f"correct {PASSWORD}, or make another key"
                raise ReleaseError(
                    f"the private key {self.path} cannot be decrypted", got=one_line(exc), fix=fix
                ) from exc
            raise _no_key(self.path, "private", exc, _MAKE) from exc
        _check_curve(key, self.path, _MAKE)


@dataclass(frozen=True)
class TokenKey:
    """A private key on a PKCS #11 token, such as an HSM, a smart card or a cloud's KMS.

    Attributes:
        uri: the URI (RFC 7512) with `token`, `object` or `id`, and `module-path` of the token's library.
    """

    uri: str = field(repr=False)

    def __str__(self) -> str:
        """Return the URI without its query, which may hold the PIN."""
        return self.uri.partition("?")[0]


def is_encrypted(path: Path) -> bool:
    """Return True if a file holds an encrypted private key.

    Raises:
        ReleaseError: the file is missing or cannot be read.
    """
    content = _read(path, "private")
    return b"ENCRYPTED PRIVATE KEY-----" in content or b"Proc-Type: 4,ENCRYPTED" in content


def open_key(text: str) -> PrivateKey | TokenKey:
    """Return the signing key that a command line names; ask for its password in a terminal.

    Args:
        text: the path of a PEM file, or a URI that starts with `pkcs11:`.

    Raises:
        ReleaseError: the file is missing or cannot be read.
    """
    if text.startswith("pkcs11:"):
        return TokenKey(text)
    path = Path(text)
    if not is_encrypted(path):
        return PrivateKey(path)
    password = os.environ.get(PASSWORD)
    if password is None and sys.stdin.isatty():
        password = getpass(f"password of {path}: ")
    return PrivateKey(path, password)


def check_public_key(path: Path) -> None:
    """Check that a file holds a public key that can verify a signature.

    Raises:
        ReleaseError: the file is missing or holds no such key.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415 - with `verify`

    content = _read(path, "public")
    if b"PRIVATE KEY-----" in content:
        raise ReleaseError(f"{path} holds a private key, which belongs to the signer alone", fix=_PUBLISH)
    if b"BEGIN CERTIFICATE-----" in content:
        fix = f"write its key: openssl x509 -in {path.name} -pubkey -noout > release.pub"
        raise ReleaseError(f"{path} holds a certificate", expected=_EXPECTED, fix=fix)
    try:
        key = load_pem_public_key(content)
    except Exception as exc:  # ValueError, UnsupportedAlgorithm, and errors of OpenSSL without a common base
        raise _no_key(path, "public", exc, _PUBLISH) from exc
    _check_curve(key, path, "ask the signer for the public half of the key that signs")


def _read(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise ReleaseError(f"the {kind} key {path} is missing", expected=_EXPECTED, fix="correct `--key`") from exc
    except OSError as exc:
        raise ReleaseError(f"the {kind} key {path} cannot be read", expected=_EXPECTED, got=one_line(exc)) from exc


def _no_key(path: Path, kind: str, exc: Exception, fix: str) -> ReleaseError:
    return ReleaseError(f"{path} holds no {kind} key", expected=_EXPECTED, got=one_line(exc), fix=fix)


def _check_curve(key: Any, path: Path, fix: str) -> None:  # noqa: ANN401 - a key of any algorithm
    curve = getattr(getattr(key, "curve", None), "name", "")
    if curve not in _CURVES:
        algorithm = type(key).__name__.replace("PrivateKey", "").replace("PublicKey", "").lstrip("_")
        raise ReleaseError(
            f"{path} holds a key of another kind; OpenSSF model signing takes elliptic curves of NIST only",
            expected=_EXPECTED,
            got=f"the curve {curve}" if curve else algorithm,
            fix=fix,
        )
