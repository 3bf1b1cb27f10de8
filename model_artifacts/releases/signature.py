"""OpenSSF model signature over all files of a release, by a key or by an identity (sigstore)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import ReleaseError, one_line
from model_artifacts.host.plain_files import read_plain
from model_artifacts.releases.signing_keys import PrivateKey, check_public_key

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from model_artifacts.releases.signing_keys import TokenKey

SIGNATURE = "model.sig"
"""Name of the signature's file in a release."""
FOR_HOST = "for-host.json"
"""Name of the file in which a pull for one host keeps what it installed; it belongs to no release."""
UNSIGNED = frozenset({SIGNATURE, FOR_HOST})
_MAX_BYTES = 64 * 2**20
_SCRATCH = ".writing-"
"""Beginning of the subject in signatures of older versions: the scratch folder's name."""


@dataclass(frozen=True)
class Signer:
    """Signer of releases: a private key, or without one the identity of CI's OIDC token."""

    key: PrivateKey | TokenKey | None = None
    """Key in a PEM file or on a token."""

    def sign(self, folder: Path, name: str) -> None:
        """Write the signature into a release's folder.

        Args:
            folder: the complete release.
            name: the release's name, which is the signature's subject.

        Raises:
            ReleaseError: the key cannot be read, or no identity is available.
        """
        from model_signing import hashing, manifest, signing  # noqa: PLC0415 - a second, and not installed in deployments

        folder = folder.resolve()  # model-signing compares ignored paths as text

        class Named(hashing.Config):
            def hash(self, *args: Any, **kwargs: Any) -> manifest.Manifest:  # noqa: ANN401 - as it is in the base
                present = super().hash(*args, **kwargs)  # named like its folder
                kind = manifest.SerializationType.from_args(present.serialization_type)
                known = [(PurePosixPath(item.identifier), item.digest) for item in present.resource_descriptors()]
                return manifest.Manifest(
                    name, [manifest.FileManifestItem(path=at, digest=of) for at, of in known], kind
                )

        ignoring = Named().set_ignored_paths(paths=[folder / SIGNATURE])  # type: ignore[no-untyped-call]
        if isinstance(self.key, PrivateKey):
            self.key.check()
        try:
            config: Any = signing.Config()  # type: ignore[no-untyped-call]
            if isinstance(self.key, PrivateKey):
                password = self.key.password
                # model-signing hands the password on to cryptography, which takes bytes only.
                encoded = password.encode() if password is not None else None
                config.use_elliptic_key_signer(private_key=self.key.path, password=encoded)
            elif self.key:
                config.use_pkcs11_signer(pkcs11_uri=self.key.uri)
            else:
                config.use_sigstore_signer(use_ambient_credentials=True)
            config.set_hashing_config(ignoring).sign(folder, folder / SIGNATURE)
        except Exception as exc:  # of model-signing, cryptography, sigstore and PKCS #11, without a common base
            raise ReleaseError(
                "the release cannot be signed",
                expected=f"the private key {self.key}" if self.key else "an OIDC token, as in CI",
                got=one_line(exc),
                fix=_token_advice(exc) if self.key else "sign with --key, or in a CI job with OIDC",
            ) from exc


def _token_advice(exc: Exception) -> str:
    """Return the remedy for a token that cannot sign."""
    if isinstance(exc, RuntimeError) and "'pkcs11' extra" in str(exc):  # model-signing's own words
        return 'install the token\'s Python library: pip install "model-artifacts[pkcs11]"'
    return "compare the URI with `pkcs11-tool --list-objects`; it needs module-path and pin-value or pin-source"


@dataclass(frozen=True)
class Verifier:
    """Verifier of signatures by a public key, or by an identity that an OIDC issuer certified."""

    key: Path | None = None
    """Public key, PEM; None for an identity."""
    identity: str = ""
    """Signer's identity, such as an e-mail address or a workflow's URL."""
    issuer: str = ""
    """URL of the OIDC issuer."""

    def verify(self, folder: Path, absent: Mapping[str, str]) -> None:
        """Check that the release holds exactly the signed files, unchanged.

        Args:
            folder: the release's folder.
            absent: the listed SHA-256 of files that are not in the folder, by name; the signature must cover them.

        Raises:
            ReleaseError: the signature is missing, is another signer's, or does not match the files.
        """
        from model_signing import hashing, manifest, verifying  # noqa: PLC0415 - a second, and not installed in deployments

        if self.key:
            check_public_key(self.key)
        if not (folder / SIGNATURE).is_file():
            raise ReleaseError(f"the release has no signature ({SIGNATURE}), but one is required")
        folder = folder.resolve()

        class WithAbsent(hashing.Config):
            def hash(self, *args: Any, **kwargs: Any) -> manifest.Manifest:  # noqa: ANN401 - as it is in the base
                present = super().hash(*args, **kwargs)
                known = [(item.identifier, item.digest) for item in present.resource_descriptors()]
                digest = type(known[0][1])
                known += [(name, digest("sha256", bytes.fromhex(sha256))) for name, sha256 in absent.items()]
                items = [manifest.FileManifestItem(path=PurePosixPath(name), digest=of) for name, of in known]
                kind = manifest.SerializationType.from_args(present.serialization_type)
                return manifest.Manifest(present.model_name, items, kind)

        ignoring = WithAbsent().set_ignored_paths(paths=[folder / name for name in UNSIGNED])  # type: ignore[no-untyped-call]
        try:
            config: Any = verifying.Config()  # type: ignore[no-untyped-call]
            if self.key:
                config.use_elliptic_key_verifier(public_key=self.key)
            else:
                config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)
            config.set_hashing_config(ignoring).verify(folder, folder / SIGNATURE)
        except Exception as exc:  # of model-signing, cryptography and sigstore, without a common base
            signer = str(self.key) if self.key else f"{self.identity}, certified by {self.issuer}"
            raise ReleaseError("the signature does not hold", expected=f"that of {signer}", got=one_line(exc)) from exc


def signed_name(folder: Path) -> str:
    """Return the release's name from its signature, which must have been verified.

    The name is empty in signatures of older versions, which named a scratch folder.

    Raises:
        ReleaseError: the signature is missing or damaged.
    """
    try:
        bundle = json.loads(read_plain(folder / SIGNATURE, _MAX_BYTES))
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        name = statement["subject"][0]["name"]
    except (OSError, ValueError, LookupError, TypeError) as exc:
        raise ReleaseError(f"the signature ({SIGNATURE}) cannot be read", got=one_line(exc)) from exc
    return "" if str(name).startswith(_SCRATCH) else str(name)
