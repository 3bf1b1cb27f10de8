"""Named ranges for Nsight Systems; nothing at all where it does not look."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from model_artifacts.host.environment import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

_INJECTED = "NVTX_INJECTION64_PATH"
"""Where a profiler tells NVTX which library hears of the ranges (NVTX, nvtxDetail/nvtxInit.h)."""


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """Show what is done inside as a range of this name."""
    if _INJECTED not in os.environ or not installed("nvtx"):
        yield
        return
    import nvtx  # noqa: PLC0415 - 0.3 s that runs without a profiler save

    with nvtx.annotate(name, domain="pipeline"):
        yield
