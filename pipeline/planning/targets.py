"""`Config` → what there is to do: the variants of the matrix and the steps that make them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_artifacts.records import EngineFlavour, Gpu
from model_artifacts.records.targets import major_minor
from pipeline.config.settings import portable_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import FarmHost


@dataclass(frozen=True)
class GpuTarget:
    """What one set of engines, or of torch's modules, is built for."""

    name: str
    gpu: Gpu | None
    """The GPU that they are built on, or else are tried on; None on a host without."""
    flavour: EngineFlavour
    """The TensorRT that builds its engines."""
    flavour_version: str
    """Its full version, "absent" where it is not installed."""
    cuda_major: int | None = None
    """Of the CUDA that it is made for, where that is known."""
    compute_capabilities: tuple[int, ...] = ()
    """What they run on, where they are built ahead of time; empty for the GPU alone."""
    workers: FarmHost | None = None
    """Who builds them, where this machine does not."""


@dataclass(frozen=True)
class Machines:
    """Machines of one kind: what they have, and what they are to build."""

    gpus: tuple[Gpu, ...]
    torch: str
    flavour: EngineFlavour
    flavour_version: str
    cuda_major: int | None
    compute_capabilities: tuple[int, ...]
    workers: FarmHost | None = None

    def target(self, name: str, gpu: Gpu | None, compute_capabilities: tuple[int, ...] = ()) -> GpuTarget:
        return GpuTarget(
            name, gpu, self.flavour, self.flavour_version, self.cuda_major, compute_capabilities, self.workers
        )


def engine_targets_of(machines: Machines) -> Iterator[GpuTarget]:
    if machines.compute_capabilities:
        gpu = machines.gpus[0] if machines.gpus else None
        yield machines.target(portable_target(machines.compute_capabilities), gpu, machines.compute_capabilities)
        return
    library = ("rtx" if machines.flavour is EngineFlavour.TENSORRT_RTX else "trt") + major_minor(
        machines.flavour_version
    )
    if not machines.gpus:
        yield machines.target(library, None)
    for gpu in machines.gpus:
        yield machines.target(f"{gpu.slug}-{library}", gpu)
