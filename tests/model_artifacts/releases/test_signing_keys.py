"""Keys of signatures: encrypted ones, wrong kinds, missing files and PKCS #11 tokens."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from model_artifacts.errors import ReleaseError
from model_artifacts.releases import signing_keys
from model_artifacts.releases.signature import Signer, Verifier
from model_artifacts.releases.signing_keys import PASSWORD, PrivateKey, TokenKey, check_public_key, open_key
from tests.support.keys import pem

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


def _write(path: Path, key: PrivateKeyTypes, password: bytes | None = None) -> Path:
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    return path


def _write_public(path: Path, key: PrivateKeyTypes) -> Path:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to sign."""
    (tmp_path / "release").mkdir()
    (tmp_path / "release/model.onnx").write_bytes(b"weights")
    return tmp_path / "release"


# Encrypted keys.


def test_an_encrypted_key_signs_with_its_password(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password comes from the environment, and the public half verifies the signature."""
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = _write(tmp_path / "key.pem", key, b"geheim"), _write_public(tmp_path / "key.pub", key)
    monkeypatch.setenv(PASSWORD, "geheim")
    Signer(open_key(str(private))).sign(folder, "tiny-1")
    Verifier(public).verify(folder, {})


def test_the_terminal_is_asked_for_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable a person types the password."""
    private = _write(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()), b"typed")
    monkeypatch.delenv(PASSWORD, raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(signing_keys, "getpass", lambda prompt: "typed" if str(private) in prompt else "")
    key = open_key(str(private))
    assert isinstance(key, PrivateKey)
    key.check()
    assert "typed" not in repr(key)


@pytest.mark.parametrize(
    ("password", "message"),
    [
        (None, f"is encrypted\n.*its password\n.*set {PASSWORD}"),
        ("falsch", f"cannot be decrypted\n(.*\n)*.*{PASSWORD}"),
    ],
)
def test_a_missing_or_wrong_password_is_said(tmp_path: Path, password: str | None, message: str) -> None:
    """The message names the variable, and never the password."""
    private = _write(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()), b"geheim")
    with pytest.raises(ReleaseError, match=message) as told:
        PrivateKey(private, password).check()
    assert "falsch" not in str(told.value)


def test_a_password_without_need_is_refused(tmp_path: Path) -> None:
    """A plain key with a password is probably another file than the user meant."""
    with pytest.raises(ReleaseError, match="is not encrypted"):
        PrivateKey(pem(tmp_path, "plain")[0], "geheim").check()


# Other kinds of keys.


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
        (rsa.generate_private_key(65537, 2048), "RSA"),
        (ec.generate_private_key(ec.SECP256K1()), "the curve secp256k1"),
    ],
)
def test_a_key_of_another_kind_is_named(tmp_path: Path, key: PrivateKeyTypes, got: str) -> None:
    """Both halves are refused with the kinds that the signature's format has."""
    private, public = _write(tmp_path / "key.pem", key), _write_public(tmp_path / "key.pub", key)
    for check in (PrivateKey(private).check, lambda: check_public_key(public)):
        with pytest.raises(ReleaseError, match=rf"(?s)P-256, P-384 or P-521.*got: +{got}"):
            check()


def test_a_missing_key_is_said_to_be_missing(tmp_path: Path) -> None:
    """A wrong path is not a wrong key."""
    with pytest.raises(ReleaseError, match=r"the private key .*none\.pem is missing"):
        open_key(str(tmp_path / "none.pem"))
    with pytest.raises(ReleaseError, match=r"the public key .*none\.pub is missing"):
        Verifier(tmp_path / "none.pub").verify(tmp_path, {})
    with pytest.raises(ReleaseError, match="cannot be read"):
        open_key(str(tmp_path))


def test_halves_that_were_exchanged_are_named(tmp_path: Path) -> None:
    """Each half says that the other one is needed."""
    private, public = pem(tmp_path, "ours")
    with pytest.raises(ReleaseError, match="holds a public key"):
        PrivateKey(public).check()
    with pytest.raises(ReleaseError, match="holds a private key"):
        check_public_key(private)


def test_a_certificate_is_no_public_key(tmp_path: Path) -> None:
    """The message has the command that takes the key out."""
    (tmp_path / "signer.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    with pytest.raises(ReleaseError, match=r"openssl x509 -in signer\.crt -pubkey"):
        check_public_key(tmp_path / "signer.crt")


# Tokens.


def test_the_pin_of_a_token_is_never_shown() -> None:
    """A URI may hold the PIN, and texts show the URI without its query."""
    key = open_key("pkcs11:token=ours;object=release?module-path=/x.so&pin-value=1234")
    assert isinstance(key, TokenKey)
    assert str(key) == "pkcs11:token=ours;object=release"
    assert "1234" not in repr(key)


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """The URI of a key on a software token, and the file with its public half."""
    tool = shutil.which("softhsm2-util")
    if not tool or not _SOFTHSM.is_file():
        pytest.skip("needs SoftHSM: apt-get install softhsm2")
    if not importlib.util.find_spec("PyKCS11"):
        pytest.skip("needs PyKCS11, which has no wheel for this Python")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    private, public = pem(tmp_path, "ours")
    environment = dict(os.environ)
    for arguments in (
        ["--init-token", "--free", "--label", "ours", "--pin", "1234", "--so-pin", "5678"],
        ["--import", private, "--token", "ours", "--label", "release", "--id", "01", "--pin", "1234"],
    ):
        subprocess.run([tool, *arguments], check=True, env=environment, capture_output=True)  # noqa: S603 - our own
    return f"pkcs11:token=ours;object=release?module-path={_SOFTHSM}&pin-value=1234", public


def test_a_token_signs(folder: Path, token: tuple[str, Path]) -> None:
    """The key never leaves the token, and its public half verifies the signature."""
    uri, public = token
    Signer(open_key(uri)).sign(folder, "tiny-1")
    Verifier(public).verify(folder, {})


@pytest.mark.parametrize(
    ("right", "wrong"), [("object=release", "object=other"), ("token=ours", "token=theirs"), ("=1234", "=4321")]
)
def test_a_token_that_cannot_sign_is_one_message(folder: Path, token: tuple[str, Path], right: str, wrong: str) -> None:
    """A wrong object, token or PIN is an error with the remedy, and the PIN stays unseen."""
    with pytest.raises(ReleaseError, match="the release cannot be signed") as told:
        Signer(open_key(token[0].replace(right, wrong))).sign(folder, "tiny-1")
    assert "pkcs11-tool" in str(told.value)
    assert "1234" not in str(told.value)
    assert "4321" not in str(told.value)
    assert not (folder / "model.sig").exists()
