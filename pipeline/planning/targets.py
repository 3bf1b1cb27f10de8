"""The targets of engines and modules: the GPUs and libraries that they are built for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from model_artifacts.records import EngineFlavour, Gpu
from model_artifacts.records.variants import major_minor
from pipeline.config.tensorrt import portable_target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.records import FarmHost


@dataclass(frozen=True)
class GpuTarget:
    """The target of one set of engines, or of torch's modules."""

    name: str
    gpu: Gpu | None
    """The GPU that builds them, or tries engines that were built ahead of time; None on a host without one."""
    flavour: EngineFlavour
    """The TensorRT that builds its engines."""
    flavour_version: str
    """The full version of the flavour; "absent" if it is not installed."""
    cuda_major: int | None = None
    """The major version of the CUDA that the flavour is made for, if known."""
    compute_capabilities: tuple[int, ...] = ()
    """The compute capabilities of engines that are built ahead of time; empty for engines of one GPU type."""
    workers: FarmHost | None = None
    """The farm's workers that build them; None on this machine."""


@dataclass(frozen=True)
class Machines:
    """Equal machines: their GPUs and libraries, and the compute capabilities to build for."""

    gpus: tuple[Gpu, ...]
    torch: str
    flavour: EngineFlavour
    flavour_version: str
    cuda_major: int | None
    compute_capabilities: tuple[int, ...]
    workers: FarmHost | None = None

    def target(self, name: str, gpu: Gpu | None, compute_capabilities: tuple[int, ...] = ()) -> GpuTarget:
        """Return a target of these machines."""
        return GpuTarget(
            name, gpu, self.flavour, self.flavour_version, self.cuda_major, compute_capabilities, self.workers
        )


def engine_targets_of(machines: Machines) -> Iterator[GpuTarget]:
    """Yield the targets of engines: one for all compute capabilities, or one for each GPU type."""
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
