"""The files of variants and graphs that left pipeline.yaml: found, and deleted on request."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import RecordError, storage_errors
from model_artifacts.host.record_files import read_record
from model_artifacts.records import SCHEMA_VERSION, Graph
from pipeline.planning.folder.owner import is_made
from pipeline.planning.spec import EXPORTED, QUANTIZED, WHOLE_QDQ
from pipeline.records import Artifact, OnnxRecord, SourceRecord

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pipeline.planning.project import Project

_AHEAD_OF_TIME = "rtx-sm"
"""The prefix of targets that depend on the configuration alone, such as `rtx-sm80+`, and on no host."""


class Leftovers(NamedTuple):
    """Files in the artifacts folder that the plan does not have."""

    files: tuple[Path, ...]
    """The files and folders of variants and graphs that left the configuration."""
    variants: tuple[Path, ...]
    """The folders of those variants."""
    elsewhere: tuple[Path, ...]
    """The folders of planned variants on targets that this host lacks: another host's, and kept."""
    in_use: tuple[Path, ...]
    """Files of dropped variants that a planned variant shares: kept."""
    models: tuple[Path, ...] = ()
    """The folders of other models, which no configuration is known to make: kept."""

    @property
    def bytes(self) -> int:
        """The size of the files on disk."""
        inner = [path for file in self.files for path in (file.rglob("*") if file.is_dir() else (file,))]
        return sum(path.stat().st_size for path in inner if path.is_file())


def find_leftovers(project: Project) -> Leftovers:
    """Return the files that `delete` would delete.

    A folder belongs to a variant if its record says so, in this schema or an older one. A folder of an unplanned target
    is another host's if the same precision, batch range and workspace are planned for some target.

    Raises:
        StorageError: the artifacts folder cannot be read.
        NewerRecordError: a record is there that only a newer version of this package can read.
    """
    plan, paths = project.plan, project.paths
    with storage_errors(f"reading {paths.folder}"):
        found = {path.parent: _record(project, path) for path in sorted(paths.folder.glob("*/*/artifact.json"))}
        ours = {folder: record for folder, record in found.items() if record or _is_older(folder / "artifact.json")}
        models = tuple(path for path in sorted(paths.root.glob("*/source/source.json")) if _is_another(project, path))
    planned = {paths.variant(variant) for variant in plan.variants}
    others = [folder for folder in ours if folder not in planned]
    elsewhere = [folder for folder in others if _is_elsewhere(project, folder)]
    dropped = [folder for folder in others if folder not in elsewhere]
    kept = [record for folder, record in ours.items() if record and folder not in dropped]
    used = {project.file(file) for record in kept for file in record.files}
    gone = [record for folder, record in ours.items() if record and folder in dropped]
    files = dict.fromkeys(
        path
        for path in (
            *(folder / name for folder in dropped for name in _names(project)),
            *(path for folder in dropped for path in paths.restarts_in(folder)),
            *(cache_of(folder) for folder in dropped for cache_of in (paths.engine_cache_of, paths.inductor_cache_of)),
            *_surplus_restarts(project),
            *_orphans(project, gone),
            *_graphs(project),
        )
        if path.exists()
    )
    return Leftovers(
        files=tuple(path for path in files if path not in used),
        variants=tuple(dropped),
        elsewhere=tuple(elsewhere),
        in_use=tuple(path for path in files if path in used),
        models=tuple(path.parent.parent for path in models),
    )


def delete(project: Project, leftovers: Leftovers) -> None:
    """Delete files, then records, then empty folders: an interrupted deletion is found again by its records.

    Raises:
        StorageError: something cannot be deleted.
    """
    for path in sorted(leftovers.files, key=lambda path: path.suffix == ".json"):
        with storage_errors(f"deleting {path}"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for folder in dict.fromkeys((*leftovers.variants, *(path.parent for path in leftovers.files))):
        for empty in (folder, folder.parent):
            with storage_errors(f"deleting {empty}"):
                if empty != project.paths.folder and empty.is_dir() and not any(empty.iterdir()):
                    empty.rmdir()


def _surplus_restarts(project: Project) -> Iterator[Path]:
    """Yield the restarts of planned variants beyond the configured number."""
    for variant in project.plan.variants:
        for path, number in project.paths.restarts(variant).items():
            if number > project.config.benchmark.restarts:
                yield path


def _names(project: Project) -> list[str]:
    """Return the names of the files that the stages write into the folder of a variant, the build's record last."""
    plan, paths = project.plan, project.paths
    variant = plan.variants[0]
    written = dict.fromkeys(
        path.name
        for spec in project.stages
        for subject in spec.subjects.named(plan).values()
        if spec.subjects.target(subject) == variant.target
        for path in (*spec.files(paths, plan, subject), *spec.records(paths, plan, subject))
        if path.parent == paths.variant(variant)
    )
    return sorted(written, key=lambda name: name == paths.artifact(variant).name)


def _record(project: Project, path: Path) -> Artifact | None:
    """Return a build's record; None for another file, or for a record of another folder's variant."""
    try:
        record = read_record(path, Artifact)
    except RecordError:
        return None
    return record if project.paths.artifact(record.variant) == path else None


def _is_older(path: Path) -> bool:
    """Return whether an older version of this package wrote a build's record."""
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        return False
    if not isinstance(record, dict) or "variant" not in record:
        return False
    version = record.get("schema_version")
    return type(version) is int and (version < SCHEMA_VERSION or (version == SCHEMA_VERSION and "digest" not in record))


def _is_elsewhere(project: Project, folder: Path) -> bool:
    """Return whether a variant is planned, for a target of another host."""
    target, names = folder.parent.name, {variant.name for variant in project.plan.variants}
    return target not in project.plan.targets and not target.startswith(_AHEAD_OF_TIME) and folder.name in names


def _orphans(project: Project, gone: list[Artifact]) -> Iterator[Path]:
    """Yield engines that only dropped variants share, and whose own variant is gone already."""
    for record in gone:
        path = project.file(record.file) if record.file and record.same_as else None
        if path and not (path.parent / "artifact.json").exists():
            yield path


def _graphs(project: Project) -> Iterator[Path]:
    """Yield the files of graphs that no variant needs any more."""
    paths = project.paths
    for graph in Graph:
        try:
            read_record(paths.onnx_record(graph), OnnxRecord)
        except RecordError:
            continue  # there is no record, or a damaged one
        if graph not in project.plan.graphs:
            yield from (path for path in _files_of(project, graph) if path != paths.onnx_record(graph))
            yield paths.onnx_record(graph)


def _files_of(project: Project, graph: Graph) -> Iterator[Path]:
    """Yield the places of the files that stages write for a graph."""
    for spec in project.stages:
        if spec.subjects in (EXPORTED, QUANTIZED, WHOLE_QDQ):
            yield from spec.files(project.paths, project.plan, graph)
            yield from spec.records(project.paths, project.plan, graph)


def _is_another(project: Project, path: Path) -> bool:
    """Return whether a folder belongs to a model of another name, which no configuration is known to make."""
    try:
        model = read_record(path, SourceRecord).model
    except RecordError:
        return False
    if model == project.plan.model or model != path.parent.parent.name:
        return False
    return not is_made(project, model)
