"""Artifacts × the rates of a GPU's link → latencies from host to host beside the floor of their copies. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.deployment.choices import may_be_deployed
from model_artifacts.records import Clock, Layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from model_artifacts.records import BatchTiming, Link, ManifestEntry, TensorSpec


class CopiedBytes(NamedTuple):
    """The bytes of a sample that are copied each way."""

    to_gpu: int
    to_host: int


class HostToHost(NamedTuple):
    """An artifact's latencies at one batch size."""

    id: str
    input: str
    """The type of its input, such as uint8."""
    floor_ms: float
    """The least time of the copies, one after the other."""
    gpu: BatchTiming
    """On the GPU alone: by its CUDA graph, or without one."""
    pinned: BatchTiming
    """From pinned memory to pinned memory."""
    host: BatchTiming | None
    """From NumPy arrays."""
    overlapped: BatchTiming | None
    """Per batch, with the copies of some beside the computation of another."""

    @property
    def share(self) -> float | None:
        """The overlapped throughput, as a share of the GPU's; None if it was not measured."""
        if self.overlapped is None or not self.overlapped.p50_ms:
            return None
        return self.gpu.p50_ms / self.overlapped.p50_ms


def copied_of(entry: ManifestEntry) -> CopiedBytes | None:
    """Return the bytes that a sample of an artifact takes on its way; None if an axis or a type is not known."""
    to_gpu, to_host = _total(entry.inputs), _total(entry.outputs)
    return CopiedBytes(to_gpu, to_host) if to_gpu and to_host else None


_BFLOAT16_BYTES = 2
"""The size of a type that numpy itself does not have."""


def _total(specs: Iterable[TensorSpec]) -> int | None:
    sizes = [_bytes(spec) for spec in specs]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _bytes(spec: TensorSpec) -> int | None:
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    try:
        width = _BFLOAT16_BYTES if spec.dtype == "bfloat16" else np.dtype(spec.dtype).itemsize
    except TypeError:
        return None
    return math.prod(sizes) * width if len(sizes) == len(spec.shape) - 1 else None


def _input_of(entry: ManifestEntry) -> str:
    """Return the types of an artifact's inputs, each once."""
    return ", ".join(dict.fromkeys(spec.dtype for spec in entry.inputs))


def rows_of(entries: Sequence[ManifestEntry], link: Link | None) -> tuple[HostToHost, ...]:
    """Return a row for each artifact that may be deployed and each batch size that was timed from host to host.

    Args:
        entries: the artifacts of one GPU.
        link: the rates of copies to and from it; None gives no rows.
    """
    if link is None:
        return ()
    rows = []
    for entry in entries:
        copied = copied_of(entry) if may_be_deployed(entry) else None
        for batch in sorted({timing.batch for timing in entry.timings}) if copied else ():
            by_clock = {
                timing.clock: timing
                for timing in entry.timings
                if timing.batch == batch and timing.layout is Layout.CONTIGUOUS
            }
            gpu = by_clock.get(Clock.GPU_GRAPH, by_clock.get(Clock.GPU))
            pinned = by_clock.get(Clock.PINNED)
            if copied and gpu and pinned:
                floor = link.floor_ms(batch * copied.to_gpu, batch * copied.to_host)
                rows.append(
                    HostToHost(
                        entry.id,
                        _input_of(entry),
                        floor,
                        gpu,
                        pinned,
                        by_clock.get(Clock.HOST),
                        by_clock.get(Clock.OVERLAPPED),
                    )
                )
    return tuple(rows)


def rate_limits(entries: Sequence[ManifestEntry], link: Link | None) -> dict[str, float]:
    """Return the most images a second that the link carries, by the type of the input.

    Both directions carry at once, so that the slower one limits.

    Args:
        entries: the artifacts of one GPU.
        link: the rates of copies to and from it; None gives none.
    """
    limits: dict[str, float] = {}
    for entry in entries:
        copied = copied_of(entry) if link and may_be_deployed(entry) else None
        if link and copied:
            milliseconds = max(link.floor_ms(copied.to_gpu, 0), link.floor_ms(0, copied.to_host))
            name = _input_of(entry)
            limits[name] = max(limits.get(name, 0.0), 1e3 / milliseconds)
    return limits
