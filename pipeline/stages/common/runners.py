"""Artifact → a context manager that turns a batch into logits; knows of torch only once a module is opened."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import RunError, UnsupportedError, one_line
from model_artifacts.host.environment import installed, missing_gpu, threads
from model_artifacts.host.hashes import check_digest
from model_artifacts.records import CPU_TARGET, Backend, Precision, is_applied
from model_artifacts.sessions.onnx import onnx_session
from pipeline.planning.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from onnxruntime import InferenceSession

    from model_artifacts.records import Gpu
    from model_artifacts.sessions.engine import Engine
    from model_artifacts.sessions.module import ModuleSession
    from pipeline.planning.project import Project
    from pipeline.records import Artifact

    Batch = npt.NDArray[np.float32]

    Runner = Callable[[Batch], Batch]


@contextmanager
def open_runner(project: Project, artifact: Artifact) -> Iterator[Runner]:
    """Open an artifact for running.

    Args:
        project: where the artifact's file lies.
        artifact: what a build made.

    Yields:
        a function from float32 (batch, channels, height, width) to float32 (batch, classes).

    Raises:
        UnsupportedError: this host cannot run it.
        RunError: the artifact cannot be loaded.
    """
    backend = artifact.variant.backend
    if backend is Backend.TENSORRT:
        with open_serialized(project, artifact) as engine, engine.session() as session:
            yield session
        return
    if backend.is_module:
        with open_module(project, artifact) as module:
            yield module
        return
    if not installed(_MODULES[backend]):
        raise UnsupportedError(f"{_MODULES[backend]} is not installed here")
    run = (_open_onnxruntime if backend is Backend.ONNXRUNTIME else _open_reference)(project, artifact)

    def guarded(batch: Batch) -> Batch:
        try:
            return run(batch)
        except Exception as exc:  # each runtime raises types of its own, without a common public base
            raise RunError(f"{artifact.variant.id} cannot run a batch {batch.shape}", got=one_line(exc)) from exc

    yield guarded


_MODULES = {Backend.ONNXRUNTIME: "onnxruntime", Backend.ONNX_REFERENCE: "onnx"}


def gpu_of(project: Project, artifact: Artifact) -> Gpu:
    """Return the GPU that an artifact runs on here.

    Raises:
        UnsupportedError: there is none.
    """
    gpu = project.plan.gpu(artifact.variant.target)
    if gpu is None:
        raise UnsupportedError(missing_gpu())
    return gpu


@contextmanager
def open_serialized(project: Project, artifact: Artifact) -> Iterator[Engine]:
    """Load a serialized engine into the GPU's memory, once its digest is what its record says.

    Raises:
        UnsupportedError: this host has no GPU, or not the engine's TensorRT.
        RunError: the engine is damaged, or for another GPU or version.
    """
    gpu = gpu_of(project, artifact)
    from model_artifacts.sessions.engine import open_engine  # noqa: PLC0415 - only where there is a GPU
    from model_artifacts.tensorrt.flavour import load_flavour  # noqa: PLC0415 - the same

    if artifact.built_for is None:
        raise RunError(f"{artifact.variant.id} does not say what its engine runs on")
    path = Path(_file(project, artifact))
    _verify(path, artifact)
    flavour = load_flavour(artifact.built_for.flavour)
    with open_engine(flavour, path.read_bytes(), artifact.built_for, gpu, _weights(project, artifact)) as engine:
        yield engine


@contextmanager
def open_module(project: Project, artifact: Artifact) -> Iterator[ModuleSession]:
    """Load a torch module where its target says, once its digest is what its record says.

    Raises:
        UnsupportedError: this host has no torch, no Torch-TensorRT, or not the GPU that the module is for.
        RunError: the module is damaged, or made by other versions.
    """
    if not installed("torch"):
        raise UnsupportedError("torch is not installed here")
    gpu = None if artifact.variant.target == CPU_TARGET else gpu_of(project, artifact)
    import torch  # noqa: PLC0415 - deployments of engines have none

    from model_artifacts.sessions.module import open_session  # noqa: PLC0415 - the same
    from pipeline.stages.common.modules import load_module  # noqa: PLC0415 - the same

    _verify(Path(_file(project, artifact)), artifact)
    torch.set_num_threads(threads())
    input_shape = project.source().preprocessing.input_shape
    module = load_module(project, artifact, gpu)
    with open_session(module, artifact.variant, input_shape, gpu) as session:
        yield session


def _verify(path: Path, artifact: Artifact) -> None:
    if artifact.file:
        check_digest(path, artifact.file, fix=f"run `{Step('build', artifact.variant.id).command}`")


def _weights(project: Project, artifact: Artifact) -> Path | None:
    """Return the ONNX file of an engine that was built without its weights."""
    stripped = is_applied("strip_plan", artifact.settings)
    graph = artifact.variant.graph
    return project.file(project.onnx(graph).file) if stripped and graph else None


def run_profiled(project: Project, artifact: Artifact, images: Batch, runs: int, folder: Path) -> str:
    """Run an ONNX file over and over with ONNX Runtime, which times every node.

    Returns:
        the profile that it writes, JSON.

    Raises:
        UnsupportedError: this host cannot run it.
        RunError: it cannot be loaded or run.
    """
    session = _onnxruntime_session(project, artifact, profile=str(folder / "profile"))
    name = session.get_inputs()[0].name
    try:
        for _ in range(runs):
            session.run(None, {name: images})
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise RunError(f"{artifact.variant.id} cannot run a batch {images.shape}", got=one_line(exc)) from exc
    return Path(session.end_profiling()).read_text()


def _open_onnxruntime(project: Project, artifact: Artifact) -> Runner:
    session = _onnxruntime_session(project, artifact)
    name = session.get_inputs()[0].name

    def run(batch: Batch) -> Batch:
        logits: Batch = session.run(None, {name: batch})[0]
        return logits

    return run


def _onnxruntime_session(project: Project, artifact: Artifact, profile: str = "") -> InferenceSession:
    """Load an artifact's ONNX file; with a profile's path, every node is timed."""
    variant = artifact.variant
    gpu = None if variant.target == CPU_TARGET else gpu_of(project, artifact)
    file = Path(_file(project, artifact))
    return onnx_session(file, variant.graph, gpu, tf32=variant.precision is Precision.TF32, profile=profile)


def _open_reference(project: Project, artifact: Artifact) -> Runner:
    import onnx  # noqa: PLC0415 - only where it runs something
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - the same

    file = _file(project, artifact)
    try:
        model = onnx.load(file)
        evaluator = ReferenceEvaluator(model)
        name = model.graph.input[0].name
    except Exception as exc:  # protobuf's DecodeError, OSError, and what onnx raises for operators it lacks
        raise RunError(f"onnx.reference cannot load {file}", got=one_line(exc)) from exc

    def run(batch: Batch) -> Batch:
        return np.asarray(evaluator.run(None, {name: batch})[0], dtype=np.float32)

    return run


def _file(project: Project, artifact: Artifact) -> str:
    if artifact.file is None:
        raise RunError(f"{artifact.variant.id} has no file: {artifact.reason}")
    return str(project.file(artifact.file))
