"""Names of the targets for ONNX files and torch modules. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_artifacts.records.hosts import Gpu


CPU_TARGET = "cpu-x86_64"
"""Target of artifacts for the processor."""
GPU_TARGET = "gpu"
"""Target of torch modules on a host without a GPU."""


def module_target(gpu: Gpu, torch: str) -> str:
    """Return the target of torch modules on a GPU, such as `sm90-h100-80gb-hbm3-torch2.11`."""
    return f"{gpu.slug}-torch{major_minor(torch)}"


def major_minor(version: str) -> str:
    """Return the first two parts of a version; an empty string for "absent"."""
    return "" if version == "absent" else ".".join(version.split(".")[:2])
