"""NVML's view of a GPU during a measurement: other processes, clocks, temperature and power."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.host.environment import gpu_handle, missing_driver
from pipeline.records import Conditions, Range

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from model_artifacts.records import Gpu


_LOOK_SECONDS = 0.1
_REASONS = {
    0x002: "clocks set by an application",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clock setting",
}
"""Bits of `nvmlDeviceGetCurrentClocksEventReasons` (nvml.h, nvmlClocksEventReasons); 1 is an idle GPU."""


class Reading(NamedTuple):
    """The sensors' values at one moment."""

    sm_clock_mhz: float
    memory_clock_mhz: float
    temperature_c: float
    power_w: float
    reasons: int
    """The bits of the reasons for lowered clocks."""


@dataclass
class Watch:
    """The observations so far."""

    strangers: tuple[str, ...] = ()
    """Other processes that computed on the GPU."""
    readings: list[Reading] = field(default_factory=list)

    def look(self, gpu: Gpu, ours: frozenset[int]) -> None:
        """Observe the GPU once."""
        self.strangers = tuple(dict.fromkeys((*self.strangers, *others(gpu, ours))))
        if reading := read_sensors(gpu):
            self.readings.append(reading)

    @property
    def conditions(self) -> Conditions | None:
        """The ranges of the sensors' values; None without a reading."""
        return conditions_of(self.readings)


@contextmanager
def watching(gpu: Gpu | None, ours: frozenset[int]) -> Iterator[Watch]:
    """Observe a GPU ten times a second until the block ends.

    Args:
        gpu: the GPU; None is not observed.
        ours: process ids that are not strangers.
    """
    watch = Watch()
    if gpu is None:
        yield watch
        return
    done = threading.Event()

    def keep_looking() -> None:
        while not done.wait(_LOOK_SECONDS):
            watch.look(gpu, ours)

    watch.look(gpu, ours)
    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        done.set()
        thread.join()


def conditions_of(readings: Sequence[Reading]) -> Conditions | None:
    """Return the ranges of readings, and every reason for lowered clocks; None without a reading."""
    if not readings:
        return None
    seen = 0
    for reading in readings:
        seen |= reading.reasons
    return Conditions(
        sm_clock_mhz=_range([reading.sm_clock_mhz for reading in readings]),
        memory_clock_mhz=_range([reading.memory_clock_mhz for reading in readings]),
        temperature_c=_range([reading.temperature_c for reading in readings]),
        power_w=_range([reading.power_w for reading in readings]),
        throttled_by=tuple(name for bit, name in _REASONS.items() if seen & bit),
    )


def _range(values: list[float]) -> Range:
    ordered = sorted(values)
    return Range(low=ordered[0], median=ordered[len(ordered) // 2], high=ordered[-1])


def read_sensors(gpu: Gpu) -> Reading | None:
    """Return a GPU's sensor values; None without a driver, or if NVML does not report them."""
    if missing_driver():
        return None
    import pynvml  # noqa: PLC0415 - hosts without a driver do without

    try:
        handle = gpu_handle(pynvml, gpu)
        return Reading(
            pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM),
            pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
            pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle),
        )
    except pynvml.NVMLError:  # the GPU lacks a sensor; the report then has no conditions
        return None


def others(gpu: Gpu, ours: frozenset[int]) -> tuple[str, ...]:
    """Return the processes that compute on a GPU and are not `ours`, with the memory that they hold.

    Args:
        gpu: the GPU.
        ours: process ids that do not count; this process never does.
    """
    if missing_driver():
        return ()
    import pynvml  # noqa: PLC0415 - hosts without a driver do without

    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(gpu_handle(pynvml, gpu))
    except pynvml.NVMLError as exc:
        return (f"unknown: NVML does not tell ({exc})",)
    memory = {process.pid: (process.usedGpuMemory or 0) / 2**20 for process in found}
    strange = set(memory) - ours - {os.getpid()}
    if strange and not strange < set(memory):  # none of ours is among them: NVML sees another PID namespace
        count = len(memory) - len(ours)
        return (f"processes outside this container: {count}",) if count > 0 else ()
    return tuple(f"process {pid} with {memory[pid]:.0f} MiB" for pid in sorted(strange))
