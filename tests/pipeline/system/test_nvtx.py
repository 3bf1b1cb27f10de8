"""NVTX ranges."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.system.nvtx import nvtx_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def test_ranges_are_shown_to_a_profiler_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a profiler, NVTX is not imported."""
    shown: list[str] = []

    @contextmanager
    def annotate(name: str, domain: str) -> Iterator[None]:
        shown.append(f"{domain}: {name}")
        yield

    monkeypatch.setattr("nvtx.annotate", annotate)
    monkeypatch.delenv("NVTX_INJECTION64_PATH", raising=False)
    with nvtx_range("build"):
        pass
    monkeypatch.setenv("NVTX_INJECTION64_PATH", "/opt/libToolsInjection64.so")
    with nvtx_range("validate"):
        pass
    assert shown == ["pipeline: validate"]
