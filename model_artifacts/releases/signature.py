"""OpenSSF model signature over all files of a release, by a key or by an identity (sigstore)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import ReleaseError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIGNATURE = "model.sig"
"""Name of the signature's file in a release."""


@dataclass(frozen=True)
class Signer:
    """Signer of releases: a private key, or without one the identity of CI's OIDC token."""

    key: Path | None = None
    """Private key on an elliptic curve, PEM."""

    def sign(self, folder: Path) -> None:
        """Write the signature into a release's folder.

        Args:
            folder: the complete release.

        Raises:
            ReleaseError: the key cannot be read, or no identity is available.
        """
        from model_signing import hashing, signing  # noqa: PLC0415 - a second, and not installed in deployments

        folder = folder.resolve()  # model-signing compares ignored paths as text
        ignoring = hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE])  # type: ignore[no-untyped-call]
        try:
            config: Any = signing.Config()  # type: ignore[no-untyped-call]
            if self.key:
                config.use_elliptic_key_signer(private_key=self.key)
            else:
                config.use_sigstore_signer(use_ambient_credentials=True)
            config.set_hashing_config(ignoring).sign(folder, folder / SIGNATURE)
        except Exception as exc:  # of model-signing, cryptography and sigstore, without a common base
            raise ReleaseError(
                "the release cannot be signed",
                expected="a private key on an elliptic curve, in PEM" if self.key else "an OIDC token, as in CI",
                got=one_line(exc),
            ) from exc


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

        ignoring = WithAbsent().set_ignored_paths(paths=[folder / SIGNATURE])  # type: ignore[no-untyped-call]
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
