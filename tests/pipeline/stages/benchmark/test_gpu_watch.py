"""The use of NVML's answers. NVML itself answers on a GPU host (tests/gpu)."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from pipeline.records import Range
from pipeline.stages.benchmark.gpu_watch import Reading, conditions_of, others, read_sensors, watching
from tests.support.hosts import H100


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """NVML's answers: processes, to be filled by a test."""
    pynvml = pytest.importorskip("pynvml")
    answer: list[SimpleNamespace] = []
    monkeypatch.setattr("pipeline.stages.benchmark.gpu_watch.missing_driver", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda _: answer)
    return answer


def process(pid: int, mebibytes: int | None = 100) -> SimpleNamespace:
    """Return a process as NVML tells of one."""
    return SimpleNamespace(pid=pid, usedGpuMemory=None if mebibytes is None else mebibytes * 2**20)


def test_host_without_a_driver_has_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without a driver has no other processes on a GPU."""
    monkeypatch.setattr("pipeline.stages.benchmark.gpu_watch.missing_driver", lambda: "no NVIDIA driver found")
    assert others(H100, frozenset()) == ()


def test_others_are_named_with_their_memory(nvml: list[SimpleNamespace]) -> None:
    """Processes that are not ours are told, ours and this one are not."""
    nvml += [process(11), process(12, 640), process(13, None), process(os.getpid())]
    assert others(H100, frozenset({11})) == ("process 12 with 640 MiB", "process 13 with 0 MiB")


def test_our_own_processes_are_no_others(nvml: list[SimpleNamespace]) -> None:
    """Our own processes do not count as disturbing."""
    nvml += [process(11), process(12)]
    assert others(H100, frozenset({11, 12})) == ()


def test_idle_gpu_has_no_others(nvml: list[SimpleNamespace]) -> None:
    """An idle GPU has no disturbing process."""
    assert nvml == []
    assert others(H100, frozenset({11})) == ()


def test_processes_outside_the_container_are_counted(nvml: list[SimpleNamespace]) -> None:
    """Only the number of other processes is known if NVML's numbers are of another namespace."""
    nvml += [process(901), process(902), process(903)]
    assert others(H100, frozenset({11})) == ("processes outside this container: 2",)


def test_as_many_processes_as_ours_are_ours(nvml: list[SimpleNamespace]) -> None:
    """Processes of another namespace count as ours if there are as many as we have."""
    nvml += [process(901)]
    assert others(H100, frozenset({11})) == ()


def test_nvml_that_does_not_tell_is_said(nvml: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is not taken for a GPU of our own."""
    pynvml = pytest.importorskip("pynvml")

    def refuse(_: str) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    assert nvml == []
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", refuse)
    (said,) = others(H100, frozenset())
    assert said.startswith("unknown: NVML does not tell (")


# Sensors.


@pytest.fixture
def sensors(nvml: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """NVML of a GPU that runs at 1,980 MHz, is 41 °C warm, takes 312.5 W and is held back by its power cap."""
    pynvml = pytest.importorskip("pynvml")
    clocks = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 2619}
    monkeypatch.setattr(pynvml, "nvmlDeviceGetClockInfo", lambda _, clock: clocks[clock])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTemperature", lambda *_: 41)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", lambda _: 312_500)
    reasons = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", lambda _: reasons)
    return nvml


READING = Reading(1980, 2619, 41, 312.5, 5)


@pytest.mark.usefixtures("sensors")
def test_sensors_are_read_in_their_units() -> None:
    """Clocks in MHz, heat in °C, power in W."""
    assert read_sensors(H100) == READING


def test_bits_are_nvml_s_own() -> None:
    """The bit of each named reason is NVML's own."""
    pynvml = pytest.importorskip("pynvml")
    named = {
        "clocks set by an application": pynvml.nvmlClocksEventReasonApplicationsClocksSetting,
        "power cap": pynvml.nvmlClocksEventReasonSwPowerCap,
        "hardware slowdown": pynvml.nvmlClocksThrottleReasonHwSlowdown,
        "sync boost": pynvml.nvmlClocksEventReasonSyncBoost,
        "software thermal slowdown": pynvml.nvmlClocksEventReasonSwThermalSlowdown,
        "hardware thermal slowdown": pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hardware power brake": pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
        "display clock setting": pynvml.nvmlClocksEventReasonDisplayClockSetting,
    }
    for name, bit in named.items():
        found = conditions_of([READING._replace(reasons=bit)])
        assert found is not None
        assert found.throttled_by == (name,)


def test_conditions_are_ranges_and_every_reason() -> None:
    """Each sensor's lowest, middle and highest; a reason that was seen once counts; being idle is none."""
    found = conditions_of(
        [READING, READING._replace(power_w=100.0, reasons=1), READING._replace(power_w=700.0, reasons=64)]
    )
    assert found is not None
    assert found.power_w == Range(low=100.0, median=312.5, high=700.0)
    assert found.throttled_by == ("power cap", "hardware thermal slowdown")


def test_nothing_read_is_nothing_said() -> None:
    """A run without readings has no conditions."""
    assert conditions_of([]) is None


def test_a_sensor_that_is_missing_is_no_error(sensors: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without some sensor is timed all the same."""
    pynvml = pytest.importorskip("pynvml")

    def refuse(_: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    assert sensors == []
    monkeypatch.setattr(pynvml, "nvmlDeviceGetPowerUsage", refuse)
    assert read_sensors(H100) is None


def test_a_host_without_a_driver_has_no_sensors() -> None:
    """A host without a driver has no readings."""
    assert read_sensors(H100) is None


def test_a_watch_sees_who_came_and_went(sensors: list[SimpleNamespace]) -> None:
    """The report after the block has every process of any look, and the sensors' ranges."""
    sensors.append(process(11))
    with watching(H100, frozenset({11})) as watch:
        sensors.append(process(12, 640))
        watch.look(H100, frozenset({11}))
        sensors.pop()
    assert watch.strangers == ("process 12 with 640 MiB",)
    assert watch.conditions == conditions_of([READING])


def test_nothing_is_watched_without_a_gpu() -> None:
    """A benchmark of the CPU has neither strangers nor conditions."""
    with watching(None, frozenset()) as watch:
        pass
    assert (watch.strangers, watch.conditions) == ((), None)
