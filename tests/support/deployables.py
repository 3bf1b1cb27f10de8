"""Machines, and manifest entries that suit them."""

from __future__ import annotations

from typing import Any

from model_artifacts.records import (
    Backend,
    BuiltFor,
    Clock,
    DeploymentHost,
    EngineFlavour,
    Gpu,
    GpuType,
    ManifestEntry,
    ModuleContents,
    Tool,
)
from tests.support.hosts import H100, RTX, TRT10, host
from tests.support.manifests import entry, timing

CPU = "AMD EPYC, 2 cores"
MODULE_TARGET = "sm90-h100-80gb-hbm3-torch2.11"
TORCHTRT = Tool(name="torch-tensorrt", version="2.11.0")


def machine(*gpus: Gpu, flavours: tuple[Tool, ...] = (TRT10, RTX), **changes: Any) -> DeploymentHost:
    """Return a machine that has everything, and these GPUs."""
    plain = DeploymentHost(
        machine="x86_64",
        processor=CPU,
        host=host(*gpus, flavours=flavours),
        free_memory_bytes=tuple(gpu.memory_bytes for gpu in gpus),
        driver="580.159" if gpus else "absent",
        torch_tensorrt=TORCHTRT,
        onnxruntime=Tool(name="onnxruntime-gpu", version="1.31.1"),
    )
    return plain.model_copy(update=changes)


def engine(name: str, *milliseconds: float, gpu: Gpu | None = H100, **changes: Any) -> ManifestEntry:
    """Return an engine tuned on a GPU, or built ahead of time for many; timed at batch 1, 2, …."""
    tuned = BuiltFor(
        flavour=EngineFlavour.TENSORRT if gpu else EngineFlavour.TENSORRT_RTX,
        version=(TRT10 if gpu else RTX).version,
        gpu=gpu.name if gpu else None,
        compute_capabilities=(gpu.compute_capability,) if gpu else (80, 86, 89, 120),
    )
    times = [timing(batch, p50, clock=Clock.GPU_GRAPH) for batch, p50 in enumerate(milliseconds, 1)]
    update = {"backend": Backend.TENSORRT, "built_for": tuned, "gpu": GpuType(name=H100.name, compute_capability=90)}
    return entry(name, *times).model_copy(update=update | changes)


def module(name: str, *milliseconds: float) -> ManifestEntry:
    """Return a Torch-TensorRT module made on an H100."""
    libraries = (Tool(name="torch", version="2.11.0"), TORCHTRT, TRT10)
    contents = ModuleContents(segments=1, torch_operators=(), libraries=libraries)
    return engine(name, *milliseconds, backend=Backend.DYNAMO, built_for=None, module=contents, target=MODULE_TARGET)
