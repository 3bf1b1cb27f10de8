"""Records of a machine that builds or runs artifacts: its GPUs and libraries."""

from __future__ import annotations

import re
from enum import Enum
from typing import Annotated, NamedTuple

from pydantic import Field, PositiveInt, model_validator

from model_artifacts.records.base import SCHEMA_VERSION, Count, Record, Tool


class Gpu(Record):
    """A GPU of this host."""

    index: Count
    """CUDA's ordinal."""
    uuid: str
    """The driver's identifier, `GPU-…`."""
    name: str
    """CUDA's name of the type, such as `NVIDIA H100 80GB HBM3`."""
    compute_capability: PositiveInt
    """Major and minor version in one number: 90 is SM 9.0."""
    memory_bytes: PositiveInt
    """Total memory in bytes."""

    @property
    def slug(self) -> str:
        """The GPU's type in names of folders: `sm90-h100-80gb-hbm3`."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower().removeprefix("nvidia ")).strip("-")
        return f"sm{self.compute_capability}-{words}"


class InstalledTensorRT(NamedTuple):
    """A TensorRT flavour on a host."""

    flavour: EngineFlavour
    """The flavour."""
    version: str
    """Full version; "absent" if the flavour is not installed."""
    cuda_major: int | None
    """Major version of the CUDA that the package is made for; None if unknown."""


class Host(Record):
    """A plan's inputs besides the configuration: the machine's GPUs and libraries."""

    gpus: tuple[Gpu, ...] = ()
    """The GPUs in CUDA's order."""
    flavours: tuple[Tool, ...] = ()
    """Installed TensorRT flavours, by module and full version, the preferred one first."""
    cuda_majors: tuple[int | None, ...] = ()
    """Major version of the CUDA for each of `flavours`; None if the package's name does not contain it."""
    torch: str = "absent"
    """Version of torch; "absent" if it is not installed."""

    def tensorrt(self, flavour: EngineFlavour) -> InstalledTensorRT:
        """Return the installed version of a flavour, which is "absent" if there is none."""
        majors = (*self.cuda_majors, *[None] * len(self.flavours))
        known = {tool.name: (tool.version, cuda) for tool, cuda in zip(self.flavours, majors, strict=False)}
        version, cuda = known.get(flavour.value, ("absent", None))
        return InstalledTensorRT(flavour, version, cuda)


class DeploymentHost(Record):
    """A machine that runs artifacts: `model-artifacts host` prints it, `model-artifacts resolve --host` reads it."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    """Version of the record's schema."""
    machine: str
    """The kernel's name of the architecture: `x86_64`."""
    processor: str
    """Name of the processor, and the number of usable cores."""
    host: Host
    """The machine's GPUs and libraries."""
    free_memory_bytes: tuple[Count | None, ...]
    """Free memory of each GPU in bytes; None if unknown."""
    driver: str
    """Version of the NVIDIA driver; "absent" without one."""
    driver_cuda: int | None = None
    """Major version of the latest CUDA that the driver runs; None if unknown."""
    torch_tensorrt: Tool
    """The installed Torch-TensorRT, in one of its two packages."""
    onnxruntime: Tool
    """The installed ONNX Runtime, by the distributions that brought it."""
    onnxruntime_cuda: bool | None = None
    """True if it has its CUDA provider; None if unknown, as in older descriptions."""

    @model_validator(mode="after")
    def _tells_of_every_gpu(self) -> DeploymentHost:
        if len(self.free_memory_bytes) != len(self.host.gpus):
            raise ValueError(
                f"expected the free memory of {len(self.host.gpus)} GPUs, got {len(self.free_memory_bytes)}"
            )
        return self

    def cuda_that_the_driver_lacks(self, flavour: EngineFlavour) -> int | None:
        """Return the major version of the CUDA that the installed TensorRT needs and the driver is too old for.

        A driver runs every CUDA of its own major version and of earlier ones
        (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).

        Args:
            flavour: the flavour to check.

        Returns:
            the major version; None if the driver is new enough, or if one of the versions is unknown.
        """
        needed = self.host.tensorrt(flavour).cuda_major
        return needed if needed and self.driver_cuda and self.driver_cuda < needed else None


class EngineFlavour(str, Enum):
    """A TensorRT flavour, by the name of its module."""

    TENSORRT = "tensorrt"
    """TensorRT, which tunes engines on the GPU."""
    TENSORRT_RTX = "tensorrt_rtx"
    """TensorRT for RTX, which builds engines ahead of time."""
