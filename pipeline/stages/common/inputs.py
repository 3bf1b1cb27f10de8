"""The records that a step reads on a worker, with the files that they name."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from model_artifacts.errors import RecordError
from pipeline.planning.spec import Input
from pipeline.records import RestartRecord
from pipeline.system.digests import digests_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from model_artifacts.records import FileRecord, StageRecord, Variant
    from pipeline.planning.project import Project


def source(project: Project, variants: Sequence[Variant]) -> Input:
    """Return the record of the source, with the weights and the samples of inputs if a variant is a torch module."""
    record = project.source()
    return Input(project.paths.source, record.files if any(item.backend.is_module for item in variants) else ())


def data(project: Project) -> Input:
    """Return the record of the images, with all files but the calibration images."""
    record = project.data()
    return Input(project.paths.data, tuple(file for file in record.files if file != record.calibration))


def to_run(project: Project, variant: Variant) -> Iterator[Input]:
    """Yield what running a variant takes: the source, the images, its graph and its build."""
    yield source(project, (variant,))
    yield data(project)
    yield from graph(project, variant)
    yield from artifact(project, variant)


def graph(project: Project, variant: Variant) -> Iterator[Input]:
    """Yield the record of a variant's graph with its ONNX files, if the variant has a graph."""
    if variant.graph:
        yield Input(project.paths.onnx_record(variant.graph), project.onnx(variant.graph).files)


def artifact(project: Project, variant: Variant) -> Iterator[Input]:
    """Yield a variant's build; a variant without one does not keep the others from running."""
    with suppress(RecordError):
        yield Input(project.paths.artifact(variant), project.artifact(variant).files)


def artifact_if_whole(project: Project, variant: Variant) -> Iterator[Input]:
    """Yield a variant's build if it is there and undamaged; a step does without otherwise."""
    yield from _if_whole(project, project.paths.artifact(variant), lambda: project.artifact(variant))


def accuracy_if_whole(project: Project, variant: Variant) -> Iterator[Input]:
    """Yield a variant's validation if it is there and undamaged; a step does without otherwise."""
    yield from _if_whole(project, project.paths.accuracy(variant), lambda: project.accuracy(variant))


def restarts_if_whole(project: Project, variant: Variant) -> Iterator[Input]:
    """Yield the restarts of a variant's benchmark that were taken already, from which a step goes on."""
    for number in range(1, project.config.benchmark.restarts + 1):
        path = project.paths.restart(variant, number)
        yield from _if_whole(project, path, partial(project.read, path, RestartRecord))


def _if_whole(project: Project, path: Path, read: Callable[[], StageRecord]) -> Iterator[Input]:
    with suppress(RecordError):
        files = read().files
        if all(is_whole(project, file) for file in files):
            yield Input(path, files)


def is_whole(project: Project, file: FileRecord) -> bool:
    """Return whether a recorded file is there with its digest."""
    path = project.file(file)
    return path.is_file() and digests_in(project.paths.digests).sha256_of(path) == file.sha256
