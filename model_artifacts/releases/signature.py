"""Who vouches for a release: an OpenSSF model signature over all of its files, by a key or by an identity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import ReleaseError, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIGNATURE = "model.sig"


@dataclass(frozen=True)
class Signer:
    """Signs with a private key (PEM, elliptic curve), or, without one, as the identity that CI's OIDC vouches for."""

    key: Path | None = None

    def sign(self, folder: Path) -> None:
        """Write the signature into a release's folder.

        Raises:
            ReleaseError: the key cannot be read, or the identity cannot be had.
        """
        from model_signing import hashing, signing  # noqa: PLC0415 - a second, and not installed in deployments

        folder = folder.resolve()  # what is to be ignored is compared as it is written
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
                expected="a private key on an elliptic curve, in PEM" if self.key else "an OIDC token, as CI gives one",
                got=one_line(exc),
            ) from exc


@dataclass(frozen=True)
class Verifier:
    """Demands a signature: by the private half of a public key, or by an identity that an issuer vouched for."""

    key: Path | None = None
    identity: str = ""
    issuer: str = ""

    def verify(self, folder: Path, absent: Mapping[str, str]) -> None:
        """Check that every file of a release is as it was signed, and that there is no other.

        Args:
            folder: the release's.
            absent: the SHA-256 that files should have which are not there; they are held to what was signed, too.

        Raises:
            ReleaseError: the signature is missing, is not theirs, or does not fit the files.
        """
        from model_signing import hashing, manifest, verifying  # noqa: PLC0415 - a second, and not installed in deployments

        if not (folder / SIGNATURE).is_file():
            raise ReleaseError(f"the release has no signature ({SIGNATURE}), and one is demanded")
        folder = folder.resolve()

        class WithAbsent(hashing.Config):
            def hash(self, *args: Any, **kwargs: Any) -> manifest.Manifest:  # noqa: ANN401 - as it is in the base
                found = super().hash(*args, **kwargs)
                known = [(item.identifier, item.digest) for item in found.resource_descriptors()]
                digest = type(known[0][1])
                known += [(name, digest("sha256", bytes.fromhex(sha256))) for name, sha256 in absent.items()]
                items = [manifest.FileManifestItem(path=PurePosixPath(name), digest=of) for name, of in known]
                kind = manifest.SerializationType.from_args(found.serialization_type)
                return manifest.Manifest(found.model_name, items, kind)

        ignoring = WithAbsent().set_ignored_paths(paths=[folder / SIGNATURE])  # type: ignore[no-untyped-call]
        try:
            config: Any = verifying.Config()  # type: ignore[no-untyped-call]
            if self.key:
                config.use_elliptic_key_verifier(public_key=self.key)
            else:
                config.use_sigstore_verifier(identity=self.identity, oidc_issuer=self.issuer)
            config.set_hashing_config(ignoring).verify(folder, folder / SIGNATURE)
        except Exception as exc:  # of model-signing, cryptography and sigstore, without a common base
            whose = str(self.key) if self.key else f"{self.identity}, vouched for by {self.issuer}"
            raise ReleaseError("the signature does not hold", expected=f"that of {whose}", got=one_line(exc)) from exc
