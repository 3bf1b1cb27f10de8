"""A finished build → one folder and one archive that deployments take: only what may be deployed, with its evidence.

`<artifacts>/release/<model>-<commit>/` holds the manifest of what is in it, the files at their places, the report, a
CycloneDX bill of materials, in-toto provenance (SLSA v1), the licences of what made it, SHA256SUMS, and, with a key, an
OpenSSF model signature over all of that.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_artifacts.errors import ReleaseError
from model_artifacts.host.environment import git_state
from model_artifacts.host.files import replacing_folder, write_bytes
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import write_record
from model_artifacts.records import Manifest, Status
from model_artifacts.releases.archive import pack
from model_artifacts.releases.verification import (
    BILL,
    MANIFEST,
    NOTICES,
    PROVENANCE,
    REPORT,
    SUMS,
    entry_files,
    sums_of,
)
from pipeline.planning.freshness import freshness_of
from pipeline.planning.steps import Step
from pipeline.stages.release.evidence import Asked, bill_of_materials, notices, provenance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.records import FileRecord, GitState, ManifestEntry
    from model_artifacts.releases.signature import Signer
    from pipeline.planning.project import Project


@dataclass(frozen=True)
class Release:
    """What was made."""

    folder: Path
    archive: Path
    manifest: Manifest
    signed: bool


def make_release(project: Project, signer: Signer | None = None, *, allow_dirty: bool = False) -> Release:
    """Write the release folder and its archive.

    Args:
        project: everything must be up to date.
        signer: who vouches for it; None leaves it unsigned.
        allow_dirty: release although files differ from the commit, or no commit is known; the provenance says so.

    Raises:
        ReleaseError: something is stale, nothing may be deployed, or the tree is dirty.
        StorageError: the release cannot be written.
    """
    for stage in ("manifest", "report"):
        if reasons := freshness_of(project, Step(stage, project.plan.model)).reasons:
            raise ReleaseError(f"the {stage} is not up to date: {reasons[0]}", fix="run `doit` first")
    built = project.manifest()
    git = _commit(project, built, allow_dirty=allow_dirty)
    manifest = built.model_copy(update={"artifacts": tuple(_deployable(built))})
    if not manifest.artifacts:
        expected = f"a {Status.DEPLOYABLE.value} engine, module or ONNX file"
        raise ReleaseError("nothing may be deployed", expected=expected, fix="see the table that `doit` prints")
    name = f"{project.plan.model}-{git.commit[:12] if git else manifest.key.digest[:12]}"
    folder = project.paths.releases / name
    archive = folder.parent / f"{name}.tar.zst"
    with replacing_folder(folder) as scratch:
        _fill(project, manifest, scratch, Asked(git, _options(signer, allow_dirty=allow_dirty)))
        if signer:
            signer.sign(scratch)
        pack(scratch, archive, manifest.built_at)
    return Release(folder, archive, manifest, signer is not None)


def _options(signer: Signer | None, *, allow_dirty: bool) -> tuple[str, ...]:
    """Return what was asked for, as the command line has it; where a key lies is nobody's business."""
    signing = () if signer is None else ("--key",) if signer.key else ("--keyless",)
    return (*signing, *(("--allow-dirty",) if allow_dirty else ()))


def _commit(project: Project, built: Manifest, *, allow_dirty: bool) -> GitState | None:
    """Return what is checked out where the configuration lies, which the manifest must have been made of, too."""
    git = git_state(project.config_file.parent)
    if git and (built.git is None or built.git.commit != git.commit):
        raise ReleaseError(
            "the manifest was made of another commit than is checked out now",
            expected=git.commit,
            got=built.git.commit if built.git else "no commit",
            fix=f"run `{Step('manifest', project.plan.model).command}`, and then `doit`: what is up to date stays",
        )
    if git and built.git and built.git.dirty:
        git = built.git
    if not allow_dirty and (git is None or git.dirty):
        what = (
            "this is no git checkout"
            if git is None
            else "tracked files differ from the commit, or did when it was built"
        )
        raise ReleaseError(
            f"{what}: nobody could build this release again",
            fix="commit first, and make the manifest anew, or release all the same with --allow-dirty",
        )
    return git


def _deployable(manifest: Manifest) -> Iterator[ManifestEntry]:
    for entry in manifest.artifacts:
        if entry.status is Status.DEPLOYABLE and entry.file and not entry.kind.is_baseline:
            yield entry


def _fill(project: Project, manifest: Manifest, folder: Path, asked: Asked) -> None:
    files = _files(project, manifest)
    for file in files:
        there = folder / file.path
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.file(file), there)
        if sha256_of(there) != file.sha256:
            raise ReleaseError(f"{file.path} is not what was built", fix="run `doit`")
    shutil.copyfile(project.paths.report, folder / REPORT)
    write_record(folder / MANIFEST, manifest)
    write_bytes(folder / NOTICES, notices(manifest).encode())
    write_bytes(folder / BILL, bill_of_materials(manifest, files).encode())
    read = {path.name: sha256_of(path) for path in (project.config_file, project.paths.data)}
    write_bytes(folder / PROVENANCE, provenance(manifest, sums_of(folder), asked, read).encode())
    lines = [f"{digest}  {name}\n" for name, digest in sums_of(folder).items()]
    write_bytes(folder / SUMS, "".join(lines).encode())


def _files(project: Project, manifest: Manifest) -> tuple[FileRecord, ...]:
    """Return the files of a manifest's artifacts, each once, recipes' weights included."""
    found: dict[str, FileRecord] = {}
    for entry in manifest.artifacts:
        found.update({file.path: file for file in entry_files(entry, project.paths.root)})
    return tuple(found[path] for path in sorted(found))
