"""A finished build → a release: one folder and one archive with the deployable artifacts and their evidence.

`<artifacts>/release/<model>-<commit>/` holds the manifest and files of the deployable artifacts, the report, the model
card, the changes since the release before, and the evidence: a CycloneDX bill of materials, in-toto provenance (SLSA
v1), the tools' licences and SHA256SUMS. A signed release also has an OpenSSF model signature over all files. The commit
in the name is the manifest's; the provenance names those of the artifacts, which may be older.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_artifacts.deployment.files import entry_files
from model_artifacts.errors import RecordError, ReleaseError
from model_artifacts.host.files import replacing_folder, write_bytes
from model_artifacts.host.hashes import sha256_of
from model_artifacts.host.record_files import read_record, write_record
from model_artifacts.records import Manifest, Status
from model_artifacts.releases.archive import pack
from model_artifacts.releases.verification import (
    BILL,
    CARD,
    MANIFEST,
    NOTES,
    NOTICES,
    PROVENANCE,
    REPORT,
    SUMS,
    sums_of,
)
from pipeline.config.quantization import Placement
from pipeline.planning.folder.whole import read_released
from pipeline.planning.freshness import freshness_of
from pipeline.planning.steps import Step
from pipeline.stages.release.evidence import ReleaseRequest, bill_of_materials, notices, provenance
from pipeline.stages.release.texts import Earlier, model_card, release_notes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from model_artifacts.records import FileRecord, ManifestEntry
    from model_artifacts.releases.signature import Signer
    from pipeline.planning.project import Project


@dataclass(frozen=True)
class Release:
    """A finished release."""

    folder: Path
    archive: Path
    """The same as a .tar.zst."""
    manifest: Manifest
    signed: bool


def make_release(project: Project, signer: Signer | None = None, *, allow_dirty: bool = False) -> Release:
    """Write the release's folder and archive.

    Args:
        project: the manifest and the report must be up to date.
        signer: the signer; None leaves the release unsigned.
        allow_dirty: True releases even if files differ from the commit or no commit is known; the provenance says so.

    Raises:
        ReleaseError: the manifest, the report or an artifact's file is stale; no artifact is deployable; one of them
            was made from files that differ from a commit; or signing fails.
        RecordError: a record is missing or damaged.
        StorageError: the release cannot be written.
    """
    for stage in ("manifest", "report"):
        if reasons := freshness_of(project, Step(stage, project.plan.model)).reasons:
            raise ReleaseError(f"the {stage} is not up to date: {reasons[0]}", fix=f"run `{project.doit}` first")
    built = project.manifest()
    artifacts = tuple(_deployable(built))
    if not artifacts:
        expected = f"a {Status.DEPLOYABLE.value} engine, module or ONNX file"
        raise ReleaseError(
            "no artifact is deployable", expected=expected, fix=f"see the reasons in the table of `{project.doit}`"
        )
    if not allow_dirty:
        _demand_commits(project, built, artifacts)
    manifest = built.model_copy(update={"artifacts": artifacts})
    made = [state for entry in artifacts for state in entry.commits]
    own = [state for state in (built.git, project.git if allow_dirty else None) if state]
    commits = tuple(dict.fromkeys([*made, *own]))
    name = _name(manifest)
    folder = project.paths.releases / name
    archive = folder.parent / f"{name}.tar.zst"
    with replacing_folder(folder) as scratch:
        _fill(project, manifest, name, scratch, ReleaseRequest(commits, _options(signer, allow_dirty=allow_dirty)))
        if signer:
            signer.sign(scratch, name)
        pack(scratch, archive, manifest.built_at)
    return Release(folder, archive, manifest, signer is not None)


def _name(manifest: Manifest) -> str:
    """Return the name of a release's folder."""
    model = manifest.model.name if manifest.model else "model"
    return f"{model}-{manifest.git.commit[:12] if manifest.git else manifest.key.digest[:12]}"


def _earlier(project: Project, manifest: Manifest, name: str) -> Earlier | None:
    """Return the release to compare with: the configured one, or else the newest here that was built before.

    Raises:
        RecordError: the configured manifest is missing or damaged.
    """
    if released := read_released(project):
        return Earlier(_name(released), released)
    found = []
    for path in project.paths.releases.glob(f"*/{MANIFEST}"):
        try:
            other = read_record(path, Manifest)
        except RecordError:  # of another schema, or damaged: `verify` tells, and this release does not depend on it
            continue
        same_model = manifest.model and other.model and other.model.name == manifest.model.name
        if same_model and path.parent.name != name and other.built_at < manifest.built_at:
            found.append(Earlier(path.parent.name, other))
    return max(found, key=lambda earlier: (earlier.manifest.built_at, earlier.name), default=None)


def _options(signer: Signer | None, *, allow_dirty: bool) -> tuple[str, ...]:
    """Return the command line's options; the path of a key is left out, because provenance is public."""
    signing = () if signer is None else ("--key",) if signer.key else ("--keyless",)
    return (*signing, *(("--allow-dirty",) if allow_dirty else ()))


def _demand_commits(project: Project, built: Manifest, artifacts: Sequence[ManifestEntry]) -> None:
    """Check that the release could be built again from commits, which need not be the checked-out one.

    Raises:
        ReleaseError: the checkout is dirty or none, or was so when the manifest or an artifact was made.
    """
    if project.git is None:
        raise ReleaseError(
            "the configuration is in no git checkout, so that this release could not be built again",
            fix=f"build in a checkout: run `{project.doit}` there",
        )
    if project.git.dirty or built.git is None or built.git.dirty:
        again = project.command(Step("manifest", project.plan.model))
        raise ReleaseError(
            "tracked files differ from the commit, or did when the manifest was made",
            expected="a release that can be built again from its commits",
            fix=f"commit the changes, run `{again}`, then `{project.doit}`, which keeps up-to-date results",
        )
    for problem, entries in (
        ("were made from files that differ from their commit", [entry for entry in artifacts if _dirty(entry)]),
        ("were made outside of a git checkout", [entry for entry in artifacts if not entry.commits]),
    ):
        if entries:
            raise ReleaseError(
                f"{len(entries)} of {len(artifacts)} artifacts {problem}",
                expected="artifacts that can be built again from their commits",
                got=f"{entries[0].id}, for example",
                fix=f"make them again from commits: delete {project.paths.folder}, then run `{project.doit}`",
            )


def _dirty(entry: ManifestEntry) -> bool:
    return any(state.dirty for state in entry.commits)


def _deployable(manifest: Manifest) -> Iterator[ManifestEntry]:
    for entry in manifest.artifacts:
        if entry.status is Status.DEPLOYABLE and entry.file and not entry.backend.is_baseline:
            yield entry


def _fill(project: Project, manifest: Manifest, name: str, folder: Path, request: ReleaseRequest) -> None:
    """Write all files of a release but its signature."""
    files = _files(project, manifest)
    for file in files:
        there = folder / file.path
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(project.file(file), there)
        if sha256_of(there) != file.sha256:
            raise ReleaseError(f"{file.path} changed since it was built", fix=f"run `{project.doit}`")
    shutil.copyfile(project.paths.report, folder / REPORT)
    write_record(folder / MANIFEST, manifest)
    before = _earlier(project, manifest, name)
    write_bytes(folder / CARD, model_card(name, manifest, before).encode())
    write_bytes(folder / NOTES, release_notes(name, manifest, before).encode())
    write_bytes(folder / NOTICES, notices(manifest).encode())
    write_bytes(folder / BILL, bill_of_materials(manifest, files).encode())
    inputs = {path.name: sha256_of(path) for path in read_by(project)}
    sums = sums_of(folder)
    write_bytes(folder / PROVENANCE, provenance(manifest, sums, request, inputs).encode())
    sums[PROVENANCE] = sha256_of(folder / PROVENANCE)
    lines = [f"{sums[path]}  {path}\n" for path in sorted(sums)]
    write_bytes(folder / SUMS, "".join(lines).encode())


def read_by(project: Project) -> Iterator[Path]:
    """Yield what the build has read that is not in the release: the configuration, the images' record, proposals."""
    yield from (project.config_file, project.paths.data)
    if project.config.quantization.placement is not Placement.AUTO:
        yield from (path for graph in project.plan.graphs if (path := project.paths.proposal(graph)).is_file())


def _files(project: Project, manifest: Manifest) -> tuple[FileRecord, ...]:
    """Return the files of a manifest's artifacts, recipes' weights included, each once and sorted by path."""
    files: dict[str, FileRecord] = {}
    for entry in manifest.artifacts:
        files.update({file.path: file for file in entry_files(entry, project.paths.root)})
    return tuple(files[path] for path in sorted(files))
