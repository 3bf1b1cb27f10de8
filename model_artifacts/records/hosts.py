"""Records: the frozen, validated types that cross modules and that JSON files hold.

A record refuses unknown fields, is checked once when it is made, and round-trips through JSON. Units are in the names.
"""

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
    name: str
    compute_capability: PositiveInt
    """Major and minor in one number: 90 is SM 9.0."""
    memory_bytes: PositiveInt

    @property
    def slug(self) -> str:
        """What a folder calls its type: `sm90-h100-80gb-hbm3`."""
        words = re.sub(r"[^a-z0-9]+", "-", self.name.lower().removeprefix("nvidia ")).strip("-")
        return f"sm{self.compute_capability}-{words}"


class InstalledTensorRT(NamedTuple):
    """A TensorRT of a host."""

    flavour: EngineFlavour
    version: str
    """Its full version, "absent" where it is not installed."""
    cuda_major: int | None


class Host(Record):
    """What a plan depends on besides the configuration."""

    gpus: tuple[Gpu, ...] = ()
    """In CUDA's order."""
    flavours: tuple[Tool, ...] = ()
    """The TensorRTs that are installed, by module and full version, the preferred one first."""
    cuda_majors: tuple[int | None, ...] = ()
    """The CUDA that each of them is made for, by its major version; None where its package does not say."""
    torch: str = "absent"
    """torch's version."""

    def tensorrt(self, flavour: EngineFlavour) -> InstalledTensorRT:
        """Return what is installed of a TensorRT."""
        majors = (*self.cuda_majors, *[None] * len(self.flavours))
        known = {tool.name: (tool.version, cuda) for tool, cuda in zip(self.flavours, majors, strict=False)}
        version, cuda = known.get(flavour.value, ("absent", None))
        return InstalledTensorRT(flavour, version, cuda)


class DeploymentHost(Record):
    """The GPUs and runtimes of a machine: `model-artifacts host` prints them, `resolve --host` reads them."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    machine: str
    """As the kernel calls it: `x86_64`."""
    processor: str
    """Its name, and how many cores may be used."""
    host: Host
    free_memory_bytes: tuple[Count | None, ...]
    """Of each of its GPUs; None where that is not known."""
    driver: str
    """The NVIDIA driver's version, "absent" where there is none."""
    driver_cuda: int | None = None
    """The latest CUDA that the driver runs, by its major version; None where that is not known."""
    torch_tensorrt: Tool
    onnxruntime: Tool

    @model_validator(mode="after")
    def _tells_of_every_gpu(self) -> DeploymentHost:
        if len(self.free_memory_bytes) != len(self.host.gpus):
            raise ValueError(
                f"expected the free memory of {len(self.host.gpus)} GPUs, got {len(self.free_memory_bytes)}"
            )
        return self

    def cuda_that_the_driver_lacks(self, flavour: EngineFlavour) -> int | None:
        """Return the CUDA that the installed TensorRT takes, where the driver is too old for it.

        A driver runs every CUDA of its own major version and of earlier ones
        (docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
        """
        needed = self.host.tensorrt(flavour).cuda_major
        return needed if needed and self.driver_cuda and self.driver_cuda < needed else None


class EngineFlavour(str, Enum):
    """Which TensorRT, by the name of its module."""

    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt_rtx"
