"""`pipeline.yaml` → `Config`: the only reader of the configuration, and every check that needs nothing else."""

from __future__ import annotations

from enum import Enum


class KernelSpecialization(str, Enum):
    """When TensorRT-RTX compiles kernels for the shapes that an engine of several batch sizes really sees."""

    EAGER = "eager"
    """Before the first batch of a size runs."""
    LAZY = "lazy"
    """In the background, while slower kernels serve."""
    NONE = "none"
