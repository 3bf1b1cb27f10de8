"""Named ranges for Nsight Systems; without a profiler they do nothing."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from model_artifacts.host.environment import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

_INJECTED = "NVTX_INJECTION64_PATH"
"""The environment variable by which a profiler names NVTX's receiving library (NVTX, nvtxDetail/nvtxInit.h)."""


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """Show the enclosed work as a range of this name."""
    if _INJECTED not in os.environ or not installed("nvtx"):
        yield
        return
    import nvtx  # noqa: PLC0415 - it takes 0.3 s, which runs without a profiler save

    with nvtx.annotate(name, domain="pipeline"):
        yield
