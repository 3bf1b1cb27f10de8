"""What NVML tells of a GPU while something is timed on it: who else computes there, its clocks, heat and power."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import missing_driver

if TYPE_CHECKING:
    from typing import Any

    from model_artifacts.records import Gpu


def free_memory_bytes(gpu: Gpu) -> int | None:
    """Return how much memory of a GPU nobody holds; None where NVML does not tell."""
    if missing_driver():
        return None
    import pynvml  # noqa: PLC0415 - hosts without a driver do without

    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu_handle(pynvml, gpu)).free)
    except pynvml.NVMLError:
        return None


def gpu_handle(pynvml: Any, gpu: Gpu) -> Any:  # noqa: ANN401 - untyped
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
