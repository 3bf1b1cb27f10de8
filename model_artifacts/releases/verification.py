"""A finished build → one folder and one archive that deployments take: only what may be deployed, with its evidence.

`<artifacts>/release/<model>-<commit>/` holds the manifest of what is in it, the files at their places, the report, a
CycloneDX bill of materials, in-toto provenance (SLSA v1), the licences of what made it, SHA256SUMS, and, with a key, an
OpenSSF model signature over all of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError, one_line
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record
from model_artifacts.records import Backend, Manifest, Recipe
from model_artifacts.releases.archive import unpacked
from model_artifacts.releases.evidence import check_evidence
from model_artifacts.releases.signature import SIGNATURE

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import FileRecord, ManifestEntry
    from model_artifacts.releases.signature import Verifier


MANIFEST, REPORT, SUMS = "manifest.json", "report.html", "SHA256SUMS"
BILL, PROVENANCE, NOTICES = "bom.cdx.json", "provenance.intoto.json", "NOTICES.txt"
EVIDENCE = frozenset({MANIFEST, REPORT, SUMS, BILL, PROVENANCE, NOTICES, SIGNATURE})
"""What every release has beside its artifacts' files."""
_TAKE_AGAIN = "take the release from where it was made again"


def latest_release(releases: Path) -> Path:
    """Return the folder of the release that was made last.

    Raises:
        ReleaseError: there is none.
    """
    made = [path.parent for path in releases.glob(f"*/{SUMS}")]
    if not made:
        raise ReleaseError(f"{releases} holds no release", fix="run `doit release` first")
    return max(made, key=lambda folder: (folder / SUMS).stat().st_mtime_ns)


def entry_files(entry: ManifestEntry, root: Path) -> tuple[FileRecord, ...]:
    """Return the files that an artifact consists of.

    Args:
        entry: as the manifest has it.
        root: the folder that holds the artifact's own file, which may name others.

    Raises:
        RecordError: that file is damaged.
    """
    files = [file for file in (entry.file, entry.runtime_cache) if file]
    if entry.kind is Backend.TORCH_COMPILE and entry.file:
        files.append(read_record(root / entry.file.path, Recipe).weights)
    return tuple(files)


def sums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of a release by name, but for those that tell of all others.

    Raises:
        ReleaseError: there is a link, whose target may change.
    """
    paths = sorted(folder.rglob("*"))
    for link in (path for path in paths if path.is_symlink()):
        raise ReleaseError(f"{link.relative_to(folder)} is a link, and a release holds files alone")
    names = sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())
    return {name: sha256_of(folder / name) for name in names if name not in {SUMS, SIGNATURE}}


def verify_release(path: Path, verifier: Verifier | None = None, *, partial: bool = False) -> Manifest:
    """Check a release folder, or an archive, against everything that it says of itself.

    Args:
        path: the folder, or the .tar.zst.
        verifier: whose signature is demanded; None demands none, and then nobody vouches for it.
        partial: files of artifacts may be missing, as they are after a pull for one host.

    Returns:
        its manifest.

    Raises:
        ReleaseError: something differs, is missing, or is too much; or the signature is missing or another's.
        RecordError: the manifest is damaged.
    """
    with unpacked(path) as folder:
        return check_release(folder, verifier, partial=partial)


def check_release(folder: Path, verifier: Verifier | None, *, partial: bool) -> Manifest:
    """Check a release's folder, as `verify_release` does.

    Raises:
        ReleaseError: something differs, is missing, or is too much; or the signature is missing or another's.
        RecordError: the manifest is damaged.
    """
    listed, found = _listed(folder), sums_of(folder)
    absent = {name: digest for name, digest in listed.items() if name not in found} if partial else {}
    for name in sorted(EVIDENCE - {SUMS, SIGNATURE} - listed.keys()):
        raise ReleaseError(f"the release has no {name}", expected=f"{SUMS} lists it", fix=_TAKE_AGAIN)
    if verifier:
        verifier.verify(folder, absent)
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name) and (name not in absent or name in EVIDENCE):
            raise ReleaseError(
                f"{name} is not what {SUMS} says",
                expected=listed.get(name, "no such file"),
                got=found.get(name, "no such file"),
            )
    manifest = read_record(folder / MANIFEST, Manifest, fix=_TAKE_AGAIN)
    for entry in manifest.artifacts:
        for file in (entry.file, entry.runtime_cache):
            if file and listed.get(file.path) != file.sha256:
                raise ReleaseError(
                    f"{entry.id}: {file.path} is not what the manifest says",
                    expected=f"SHA-256 {file.sha256}",
                    got=listed.get(file.path, "no such file in the release"),
                )
    check_evidence(_text(folder / BILL), _text(folder / PROVENANCE), listed, EVIDENCE)
    return manifest


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ReleaseError(f"{path.name} cannot be read", got=one_line(exc), fix=_TAKE_AGAIN) from exc


def release_paths(folder: Path) -> set[str]:
    """Return the paths below a release's folder that its files have, whether or not they are there.

    Raises:
        ReleaseError: there is no SHA256SUMS.
    """
    return _listed(folder).keys() | {SUMS, SIGNATURE}


def _listed(folder: Path) -> dict[str, str]:
    """Return the digests that SHA256SUMS lists, by name."""
    if not (folder / SUMS).is_file():
        raise ReleaseError(f"{SUMS} is missing", fix=_TAKE_AGAIN)
    lines = (line.partition("  ") for line in _text(folder / SUMS).splitlines())
    return {name: digest for digest, _, name in lines}
