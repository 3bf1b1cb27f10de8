"""Verification of a release: its files against SHA256SUMS, the manifest, the evidence and the signature.

A release's folder holds the manifest, the artifacts' files at the manifest's paths, and the files of `EVIDENCE`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, UsageError, listed, one_line, shortened, storage_errors
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.plain_files import read_plain, tree
from model_artifacts.host.record_files import read_record
from model_artifacts.records import HostRelease, Manifest, model_names
from model_artifacts.releases.archive import unpacked
from model_artifacts.releases.evidence import check_evidence
from model_artifacts.releases.signature import FOR_HOST, SIGNATURE, UNSIGNED

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
_MAX_BYTES = 64 * 2**20
"""The most bytes of a release's text: SHA256SUMS, the bill of materials, the provenance."""
_COPY_AGAIN = "copy or pull the release again"


def latest_release(releases: Path, model: str | None = None) -> Path:
    """Return the newest release's folder, by the time in its manifest, which a signature covers.

    Of several releases of one manifest, it is the one that was written last.

    Args:
        releases: the folder of a build's releases, `<artifacts>/release`.
        model: the name of the releases' model; None takes the only one.

    Raises:
        ReleaseError: the folder holds no release, or none of this model.
        UsageError: the releases are of several models, and none was named.
        RecordError: the manifest of one is missing or damaged, so that the newest is unknown.
    """
    folders = sorted(path.parent for path in releases.glob(f"*/{SUMS}"))
    if not folders:
        raise ReleaseError(f"{releases} holds no release", fix="run `doit release` first")
    fix = "delete that folder, or name the release"
    manifests = {folder: read_record(folder / MANIFEST, Manifest, fix=fix) for folder in folders}
    models = sorted({name for item in manifests.values() for name in model_names(item)})
    if model is None and len(models) > 1:
        raise UsageError(
            f"{releases} has releases of several models, and none was chosen",
            expected=f"one of {listed(models, most=20)}",
            fix=f"name it: `--model {models[0]}`, or name the release",
        )
    built = {folder: item.built_at for folder, item in manifests.items() if model in {None, *model_names(item)}}
    if not built:
        raise ReleaseError(f"{releases} holds no release of {model}", fix="run `doit release` first")
    return max(built, key=lambda folder: (built[folder], (folder / SUMS).stat().st_mtime_ns))


def sums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of a release's files by name, without SHA256SUMS and what is not signed.

    Raises:
        ReleaseError: the folder holds a link, whose target could change, or a pipe, a socket or a device.
        StorageError: the folder cannot be read, is too deep or has too many files.
    """
    with storage_errors(f"reading {folder}"):
        paths = tree(folder)
    for path in paths:
        if path.is_symlink():
            raise ReleaseError(f"{path.relative_to(folder)} is a link; a release holds plain files only")
        if not path.is_dir() and not path.is_file():
            raise ReleaseError(f"{path.relative_to(folder)} is no plain file; a release holds plain files only")
    names = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    return {name: sha256_of(folder / name) for name in names if name not in {SUMS, *UNSIGNED}}


def verify_release(path: Path, verifier: Verifier | None = None, *, partial: bool = False) -> Manifest:
    """Check a release against its SHA256SUMS, manifest and evidence, and optionally its signature.

    Args:
        path: the release's folder, or its .tar.zst.
        verifier: the required signature; None checks no signature, so that the release's origin stays unproven.
        partial: True allows missing files of artifacts. A folder that was pulled for one host says itself which.

    Returns:
        the release's manifest.

    Raises:
        ReleaseError: a file differs, is missing or is not listed, or the signature is missing or another signer's.
        RecordError: the manifest is missing or damaged.
    """
    with unpacked(path) as folder:
        there = host_release(folder)
        manifest = check_release(folder, verifier, partial=partial or there is not None)
        for name in there.paths if there else ():
            if not (folder / name).is_file():
                raise ReleaseError(f"{name} is missing, which was pulled for this host", fix=_COPY_AGAIN)
        return manifest


def host_release(folder: Path) -> HostRelease | None:
    """Return what a pull for one host has installed; None for a whole release.

    Raises:
        RecordError: the record of it is damaged.
    """
    path = folder / FOR_HOST
    return read_record(path, HostRelease, fix=_COPY_AGAIN) if os.path.lexists(path) else None


def present_artifacts(manifest: Manifest, folder: Path) -> int:
    """Return the number of a release's artifacts whose files are in its folder."""
    wanted = ([file for file in (entry.file, entry.runtime_cache) if file] for entry in manifest.artifacts)
    return sum(all((folder / file.path).is_file() for file in files) for files in wanted)


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
        return read_plain(path, _MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise ReleaseError(f"{path.name} cannot be read", got=one_line(exc), fix=_COPY_AGAIN) from exc


def release_paths(folder: Path) -> set[str]:
    """Return the paths of a release's files below its folder, missing ones included.

    Raises:
        ReleaseError: SHA256SUMS is missing or damaged.
    """
    return _listed(folder).keys() | {SUMS, *UNSIGNED}


def _listed(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files that SHA256SUMS lists, by name."""
    if not (folder / SUMS).is_file():
        raise ReleaseError(f"{SUMS} is missing", fix=_COPY_AGAIN)
    listed: dict[str, str] = {}
    for number, line in enumerate(_text(folder / SUMS).splitlines(), 1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch("[0-9a-f]{64}", digest) or not name or name in listed or name in {SUMS, *UNSIGNED}:
            raise ReleaseError(
                f"{SUMS} is damaged in line {number}",
                expected="a SHA-256, two spaces and a file's name, each name once",
                got=repr(shortened(line)),
                fix=_COPY_AGAIN,
            )
        listed[name] = digest
    return listed
