"""GPUs and TensorRTs that hosts may have, for tests that need none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import (
    AxisRange,
    Backend,
    BatchRange,
    DeploymentHost,
    Gpu,
    Host,
    Precision,
    TensorSpec,
    Tool,
)
from pipeline.adapters.torch_tensorrt_builder import ModuleRequest
from pipeline.config.settings import TorchTensorRTConfig
from pipeline.records import FarmHost, tensor_spec

if TYPE_CHECKING:
    from pathlib import Path

H100 = Gpu(
    index=0,
    uuid="GPU-b7c579ba-ea0e-c2fd-2dc2-2a782d5fbe8b",
    name="NVIDIA H100 80GB HBM3",
    compute_capability=90,
    memory_bytes=80 * 2**30,
)
L4 = Gpu(
    index=1,
    uuid="GPU-00000000-1111-2222-3333-444444444444",
    name="NVIDIA L4",
    compute_capability=89,
    memory_bytes=24 * 2**30,
)
TRT86 = Tool(name="tensorrt", version="8.6.0")
TRT10 = Tool(name="tensorrt", version="10.15.1.29")
RTX = Tool(name="tensorrt_rtx", version="1.4.0.76")


_HEIGHT, _WIDTH = AxisRange(name="height", min=24, opt=32, max=48), AxisRange(name="width", min=24, opt=40, max=64)
_SEQUENCE = AxisRange(name="sequence", min=4, opt=12, max=24)
IMAGES_OF_SIZES = (
    TensorSpec(
        name="image",
        shape=("batch", 3, "height", "width"),
        dtype="float32",
        layout="NCHW",
        ranges=(_HEIGHT, _WIDTH),
    ),
)
"""The input of a module of several heights and widths."""
TEXTS_OF_LENGTHS = tuple(
    TensorSpec(name=name, shape=("batch", "sequence"), dtype=kind, layout="NC", ranges=(_SEQUENCE,))
    for name, kind in (("tokens", "int64"), ("mask", "float32"))
)
"""The inputs of a module of several lengths."""


def host(*gpus: Gpu, flavours: tuple[Tool, ...] = (RTX,), torch: str = "2.11.0") -> Host:
    """Return a host with these GPUs and TensorRTs."""
    return Host(gpus=gpus, flavours=flavours, torch=torch)


def machine(there: Host, driver: str = "absent") -> DeploymentHost:
    """Return the description of a machine with these parts."""
    return DeploymentHost(
        machine="x86_64",
        processor="an x86-64 processor, 16 cores",
        host=there,
        free_memory_bytes=tuple(gpu.memory_bytes for gpu in there.gpus),
        driver="580.159.04" if there.gpus else driver,
        torch_tensorrt=Tool(name="torch-tensorrt", version="absent" if there.torch == "absent" else "2.11.0"),
        onnxruntime=Tool(name="onnxruntime-gpu", version="1.31.1"),
    )


def workers(needs: str, there: Host) -> FarmHost:
    """Return the farm's workers of a kind."""
    return FarmHost(worker_kind=needs, host=machine(there))


def module_request(  # noqa: PLR0913 - keywords, each with a default
    folder: Path,
    *,
    backend: Backend = Backend.DYNAMO,
    precision: Precision = Precision.FP16,
    profile: BatchRange | None = None,
    settings: TorchTensorRTConfig | None = None,
    inputs: tuple[TensorSpec, ...] = (),
) -> ModuleRequest:
    """Return a request for a module on the H100, by default of 32x32 images, with a workspace of 16 MiB."""
    chosen = settings or TorchTensorRTConfig()
    return ModuleRequest(
        backend=backend,
        precision=precision,
        profile=profile or BatchRange(min=1, opt=1, max=1),
        inputs=inputs or (tensor_spec("image", (3, 32, 32)),),
        workspace_bytes=2**24,
        gpu=H100,
        settings=chosen,
        timing_cache=folder / "timings.bin",
        engine_cache=folder / "engines" if chosen.engine_cache else None,
    )
