"""A project's artifact → its opened file: finds the file, its GPU and the facts, then leaves the rest to `sessions`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host.environment import missing_gpu
from model_artifacts.records import CPU_TARGET, Backend, is_applied
from model_artifacts.sessions.onnx import ProviderFacts, mute
from model_artifacts.sessions.opening import (
    ArtifactFile,
    ModuleFacts,
    open_artifact,
    open_engine_file,
    open_module_file,
    require_package,
)
from pipeline.planning.steps import Step

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.records import Gpu
    from model_artifacts.sessions.engine import Engine
    from model_artifacts.sessions.module import Loaded, ModuleSession
    from model_artifacts.sessions.opening import Runner
    from pipeline.planning.project import Project
    from pipeline.records import Artifact


@contextmanager
def open_runner(project: Project, artifact: Artifact) -> Iterator[Runner]:
    """Open an artifact of any backend.

    Args:
        project: the project that holds the artifact's file.
        artifact: the record of a finished build.

    Yields:
        a function from float32 (batch, channels, height, width) to float32 (batch, classes); of several outputs, to
        such an array by the name of each.

    Raises:
        UnsupportedError: this host cannot run it.
        RunError: the artifact cannot be loaded.
    """
    file = file_of(project, artifact)
    if file.variant.backend.is_onnxruntime and file.gpu is not None:
        mute()
    with open_artifact(file, lambda: _load(project, artifact, file.gpu)) as run:
        yield run


@contextmanager
def open_serialized(project: Project, artifact: Artifact) -> Iterator[Engine]:
    """Load a serialized engine into the GPU's memory, after a check of its digest.

    Raises:
        UnsupportedError: this host has no GPU, or not the engine's TensorRT.
        RunError: the engine is damaged, or built for another GPU or version.
    """
    with open_engine_file(file_of(project, artifact)) as engine:
        yield engine


@contextmanager
def open_module(project: Project, artifact: Artifact) -> Iterator[ModuleSession]:
    """Load a torch module on its target's device, after a check of its digest.

    Raises:
        UnsupportedError: this host lacks torch, Torch-TensorRT, or the module's GPU.
        RunError: the module is damaged, or other versions made it.
    """
    file = file_of(project, artifact)
    with open_module_file(file, lambda: _load(project, artifact, file.gpu)) as session:
        yield session


def _load(project: Project, artifact: Artifact, gpu: Gpu | None) -> Loaded:
    from pipeline.stages.common.modules import load_module  # noqa: PLC0415 - it imports torch

    return load_module(project, artifact, gpu)


def gpu_of(project: Project, artifact: Artifact) -> Gpu:
    """Return the GPU that an artifact runs on here.

    Raises:
        UnsupportedError: there is none.
    """
    gpu = project.plan.gpu(artifact.variant.target)
    if gpu is None:
        raise UnsupportedError(missing_gpu())
    return gpu


def file_of(project: Project, artifact: Artifact) -> ArtifactFile:
    """Return an artifact's file, for the GPU of its target.

    Raises:
        UnsupportedError: this host lacks the backend's package or the GPU.
        RunError: the artifact has no file.
    """
    variant = artifact.variant
    require_package(variant.backend)
    gpu = None if variant.target == CPU_TARGET else gpu_of(project, artifact)
    return file_on(project, artifact, gpu)


def file_on(project: Project, artifact: Artifact, gpu: Gpu | None) -> ArtifactFile:
    """Return an artifact's file, to be opened on a GPU; None for the CPU.

    Raises:
        RunError: the artifact has no file.
    """
    variant, record = artifact.variant, artifact.file
    if record is None:
        raise RunError(f"{variant.id} has no file: {artifact.reason}")
    module = None
    if variant.backend.is_module:
        source = project.source()
        module = ModuleFacts(
            artifact.module, source.factory, artifact.inputs, project.paths.root, source.arguments, source.output_names
        )
    provider = None
    if variant.backend is Backend.ONNXRUNTIME_TENSORRT:
        provider = ProviderFacts(artifact.inputs, project.paths.provider_cache(variant, record))
    # A damaged engine can crash its process, and a module holds code. ONNX's readers refuse a damaged graph themselves.
    is_checked = variant.backend is Backend.TENSORRT or variant.backend.is_module
    return ArtifactFile(
        id=variant.id,
        variant=variant,
        path=project.file(record),
        gpu=gpu,
        fix=f"run `{project.command(Step('build', variant.id))}`",
        record=record if is_checked else None,
        built_for=artifact.built_for,
        weights=_weights(project, artifact),
        module=module,
        provider=provider,
    )


def _weights(project: Project, artifact: Artifact) -> Path | None:
    """Return the ONNX file of an engine that was built without its weights; None for any other artifact."""
    stripped = is_applied("strip_plan", artifact.settings)
    graph = artifact.variant.graph
    return project.file(project.onnx(graph).file) if stripped and graph else None
