"""`Config` → what there is to do: the variants of the matrix and the steps that make them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model_artifacts.records.hosts import Gpu


CPU_TARGET = "cpu-x86_64"
GPU_TARGET = "gpu"
"""What torch's modules run on, where there is no GPU to name."""


def module_target(gpu: Gpu, torch: str) -> str:
    """Return what torch's modules on a GPU are grouped under: `sm90-h100-80gb-hbm3-torch2.11`."""
    return f"{gpu.slug}-torch{major_minor(torch)}"


def major_minor(version: str) -> str:
    """Return the first two parts of a version; nothing of one that is absent."""
    return "" if version == "absent" else ".".join(version.split(".")[:2])
