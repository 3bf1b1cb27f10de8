"""Artifact → `LayerProfile`: the layers and kernels that take its time. It is for people, and decides nothing."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host.environment import device_name, installed, now, tools, version
from model_artifacts.records import CPU_TARGET, Backend, Tool
from pipeline.planning.keys import key_of
from pipeline.planning.steps import Step
from pipeline.records import LayerProfile, Outcome
from pipeline.stages.common.console import say_outcome
from pipeline.stages.common.opening import file_of, gpu_of, open_serialized
from pipeline.stages.common.outcomes import attempt, unbuilt
from pipeline.stages.common.samples import images_of
from pipeline.stages.profile.profilers import (
    Timed,
    Trace,
    has_nsight,
    rank_layers,
    read_onnxruntime_profile,
    run_profiled,
    torch_functions,
    trace_with_nsight,
)
from pipeline.stages.profile.table import print_profile
from pipeline.stages.profile.workload import RUNS, batch_of, repeated
from pipeline.system.isolation import run_isolated
from pipeline.system.locks import exclusive

if TYPE_CHECKING:
    from model_artifacts.records import Variant
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import Artifact, HotFunction


class _Measured(NamedTuple):
    """The profilers' results."""

    timed: Timed = Timed((), 0.0)
    functions: tuple[HotFunction, ...] = ()
    profilers: tuple[Tool, ...] = ()
    trace: Trace | None = None
    missing: str = ""
    """The missing results, and the reason."""


def profile_variant(project: Project, variant: Variant) -> LayerProfile:
    """Run a variant under the profilers of this host, and record the layers and kernels that take its time.

    Raises:
        RecordError: the artifact or the data are missing.
        KilledError: on a worker of a farm, something outside has ended the profiled process.
        StorageError: the record cannot be written.
    """
    key = key_of(project, Step("profile", variant.id))
    artifact = project.artifact(variant)
    profiling = attempt(lambda: _profile(project, artifact), RunError, on_worker=project.on_worker)
    measured, ending = profiling.result or _Measured(), profiling.ending
    done = ending.outcome is Outcome.DONE
    profile = LayerProfile(
        key=key,
        built_at=now(),
        toolchain=tools("torch", "onnxruntime-gpu"),
        variant_id=variant.id,
        outcome=ending.outcome,
        reason=measured.missing if done else ending.reason,
        retryable=ending.retryable,
        device=_device(project, artifact) if done else "",
        batch=batch_of(project, variant) if done else 0,
        runs=RUNS if done else 0,
        layers=measured.timed.layers,
        copy_share=measured.timed.copy_share,
        functions=measured.trace.functions if measured.trace else measured.functions,
        profilers=(*measured.profilers, *((measured.trace.tool,) if measured.trace else ())),
        command=measured.trace.command if measured.trace else "",
        trace=measured.trace.file if measured.trace else None,
    )
    return project.write(project.paths.layers(variant), profile)


def _device(project: Project, artifact: Artifact) -> str:
    return device_name(None if artifact.variant.target == CPU_TARGET else gpu_of(project, artifact))


def _profile(project: Project, artifact: Artifact) -> _Measured:
    """Profile in a process of its own, which may crash, while nothing else is timed."""
    variant = artifact.variant
    if reason := unbuilt(artifact):
        raise UnsupportedError(reason)
    if variant.backend is Backend.ONNX_REFERENCE:
        raise UnsupportedError("a reference evaluator shows numerics only, and is not profiled")
    on_gpu = variant.target != CPU_TARGET
    gpu = gpu_of(project, artifact) if on_gpu else None
    with exclusive(gpu):
        measured = run_isolated(
            _on_gpu if on_gpu else _on_cpu,
            project,
            artifact,
            timeout_seconds=project.config.validation.timeout_seconds,
            log=project.paths.profile_log(variant),
            rerun=project.command(Step("profile", variant.id)),
        )
        return measured._replace(trace=trace_with_nsight(project, variant)) if on_gpu and has_nsight() else measured


def _on_cpu(project: Project, artifact: Artifact) -> _Measured:
    """Profile on the CPU: ONNX Runtime times its nodes, torch's profiler its operators."""
    variant = artifact.variant
    if variant.backend is not Backend.ONNXRUNTIME:
        with repeated(project, artifact) as run:
            return _Measured(functions=torch_functions(lambda: run(RUNS), on_gpu=False), profilers=(_torch_profiler(),))
    images = images_of(project, batch_of(project, variant), variant)
    with tempfile.TemporaryDirectory() as folder:
        text = run_profiled(file_of(project, artifact), images, 2 * RUNS, Path(folder))
    tool = Tool(name="ONNX Runtime's profiler", version=version("onnxruntime-gpu") or "unknown")
    return _Measured(rank_layers(read_onnxruntime_profile(text, RUNS)), profilers=(tool,))


def _on_gpu(project: Project, artifact: Artifact) -> _Measured:
    """Profile on a GPU: an engine's own profiler times its layers, and CUPTI the kernels unless Nsight Systems will."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    cuda.use(gpu_of(project, artifact))
    measured = _kernels(project, artifact)
    if artifact.variant.backend is not Backend.TENSORRT or artifact.built_for is None:
        return measured
    images = images_of(project, batch_of(project, artifact.variant), artifact.variant)
    specialization = project.config.tensorrt.kernel_specialization
    with (
        open_serialized(project, artifact) as engine,
        engine.session(cuda_graph=False, specialization=specialization) as session,
    ):
        session.upload(images)
        session.enqueue_kernels()
        timed = rank_layers(session.time_layers(RUNS))
    tool = Tool(name=f"{artifact.built_for.flavour.value}'s profiler", version=artifact.built_for.version)
    return measured._replace(timed=timed, profilers=(tool, *measured.profilers))


def _kernels(project: Project, artifact: Artifact) -> _Measured:
    if has_nsight():
        return _Measured()
    if not installed("torch"):
        return _Measured(missing="no kernels: neither Nsight Systems nor torch is installed here")
    import torch  # noqa: PLC0415 - hosts that build engines may have none

    torch.cuda.init()  # type: ignore[no-untyped-call]  # CUPTI records from here on
    with repeated(project, artifact) as run:
        return _Measured(functions=torch_functions(lambda: run(RUNS), on_gpu=True), profilers=(_torch_profiler(),))


def _torch_profiler() -> Tool:
    return Tool(name="torch's profiler", version=version("torch") or "unknown")


def run(project: Project, variant: Variant, console: Console) -> int:
    """Profile a variant, and print the layers and kernels that take its time."""
    profile = profile_variant(project, variant)
    if profile.outcome is Outcome.DONE:
        print_profile(profile, sys.stdout)
        return 0
    return say_outcome(console, profile.outcome, profile.reason, "")
