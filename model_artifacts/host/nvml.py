"""Access to NVML: a GPU's free memory, and its handle for further queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import missing_driver

if TYPE_CHECKING:
    from typing import Any

    from model_artifacts.records import Gpu


def free_memory_bytes(gpu: Gpu) -> int | None:
    """Return a GPU's free memory in bytes; None without a driver, or if NVML does not report it."""
    if missing_driver():
        return None
    import pynvml  # noqa: PLC0415 - hosts without a driver do not need it

    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(gpu_handle(pynvml, gpu)).free)
    except pynvml.NVMLError:
        return None


def gpu_handle(pynvml: Any, gpu: Gpu) -> Any:  # noqa: ANN401 - untyped
    """Initialise NVML, and return its handle of a GPU.

    Args:
        pynvml: the imported module.
        gpu: a GPU of this host.

    Raises:
        pynvml.NVMLError: NVML does not start, or has no such GPU.
    """
    pynvml.nvmlInit()
    return pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
