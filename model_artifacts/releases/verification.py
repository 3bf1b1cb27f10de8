"""Verification of a release: its files against SHA256SUMS, the manifest, the evidence and the signature.

A release's folder holds the manifest, the artifacts' files at the manifest's paths, and the files of `EVIDENCE`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, one_line
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Manifest
from model_artifacts.releases.archive import unpacked
from model_artifacts.releases.evidence import check_evidence
from model_artifacts.releases.signature import SIGNATURE

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.releases.signature import Verifier


MANIFEST, REPORT, SUMS = "manifest.json", "report.html", "SHA256SUMS"
BILL, PROVENANCE, NOTICES = "bom.cdx.json", "provenance.intoto.json", "NOTICES.txt"
CARD, NOTES = "README.md", "RELEASE_NOTES.md"
EVIDENCE = frozenset({MANIFEST, REPORT, SUMS, BILL, PROVENANCE, NOTICES, CARD, NOTES, SIGNATURE})
"""A release's files beside those of its artifacts."""
_REQUIRED = EVIDENCE - {SUMS, SIGNATURE, CARD, NOTES}
"""Files that SHA256SUMS must list. Releases of older versions have no texts for people."""
_COPY_AGAIN = "copy or pull the release again"


def latest_release(releases: Path) -> Path:
    """Return the newest release's folder, by the modification time of its SHA256SUMS.

    Args:
        releases: the folder of a build's releases, `<artifacts>/release`.

    Raises:
        ReleaseError: the folder holds no release.
    """
    folders = [path.parent for path in releases.glob(f"*/{SUMS}")]
    if not folders:
        raise ReleaseError(f"{releases} holds no release", fix="run `doit release` first")
    return max(folders, key=lambda folder: (folder / SUMS).stat().st_mtime_ns)


def sums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a release's files by name, without SHA256SUMS and the signature.

    Raises:
        ReleaseError: the folder holds a link, whose target could change.
    """
    paths = sorted(folder.rglob("*"))
    for link in (path for path in paths if path.is_symlink()):
        raise ReleaseError(f"{link.relative_to(folder)} is a link; a release holds plain files only")
    names = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    return {name: sha256_of(folder / name) for name in names if name not in {SUMS, SIGNATURE}}


def verify_release(path: Path, verifier: Verifier | None = None, *, partial: bool = False) -> Manifest:
    """Check a release against its SHA256SUMS, manifest and evidence, and optionally its signature.

    Args:
        path: the release's folder, or its .tar.zst.
        verifier: the required signature; None checks no signature, so that the release's origin stays unproven.
        partial: True allows missing files of artifacts, as after a pull for one host.

    Returns:
        the release's manifest.

    Raises:
        ReleaseError: a file differs, is missing or is not listed, or the signature is missing or another signer's.
        RecordError: the manifest is missing or damaged.
    """
    with unpacked(path) as folder:
        return check_release(folder, verifier, partial=partial)


def check_release(folder: Path, verifier: Verifier | None, *, partial: bool) -> Manifest:
    """Check a release's folder, as `verify_release` does.

    Args:
        folder: the release's folder.
        verifier: the required signature; None checks no signature.
        partial: True allows missing files of artifacts.

    Returns:
        the release's manifest.

    Raises:
        ReleaseError: a file differs, is missing or is not listed, or the signature is missing or another signer's.
        RecordError: the manifest is missing or damaged.
    """
    listed, present = _listed(folder), sums_of(folder)
    absent = {name: digest for name, digest in listed.items() if name not in present} if partial else {}
    for name in sorted(_REQUIRED - listed.keys()):
        raise ReleaseError(f"the release has no {name}", expected=f"{name} listed in {SUMS}", fix=_COPY_AGAIN)
    if verifier:
        verifier.verify(folder, absent)
    for name in sorted(listed.keys() | present.keys()):
        if listed.get(name) != present.get(name) and (name not in absent or name in EVIDENCE):
            raise ReleaseError(
                f"{name} does not match {SUMS}",
                expected=listed.get(name, "no such file"),
                got=present.get(name, "no such file"),
            )
    manifest = read_record(folder / MANIFEST, Manifest, fix=_COPY_AGAIN)
    for entry in manifest.artifacts:
        for file in entry.files:
            if listed.get(file.path) != file.sha256:
                raise ReleaseError(
                    f"{entry.id}: {file.path} does not match the manifest",
                    expected=f"SHA-256 {file.sha256}",
                    got=listed.get(file.path, "no such file in the release"),
                )
    check_evidence(_text(folder / BILL), _text(folder / PROVENANCE), listed, EVIDENCE)
    return manifest


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ReleaseError(f"{path.name} cannot be read", got=one_line(exc), fix=_COPY_AGAIN) from exc


def release_paths(folder: Path) -> set[str]:
    """Return the paths of a release's files below its folder, missing ones included.

    Raises:
        ReleaseError: SHA256SUMS is missing or cannot be read.
    """
    return _listed(folder).keys() | {SUMS, SIGNATURE}


def _listed(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that SHA256SUMS lists, by name."""
    if not (folder / SUMS).is_file():
        raise ReleaseError(f"{SUMS} is missing", fix=_COPY_AGAIN)
    lines = (line.partition("  ") for line in _text(folder / SUMS).splitlines())
    return {name: digest for digest, _, name in lines}
