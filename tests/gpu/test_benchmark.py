"""Benchmarks on a real GPU: every clock, memory, and NVML's readings."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import installed
from model_artifacts.records import Backend, Clock
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import Outcome
from pipeline.stages import STAGES
from pipeline.stages.benchmark.gpu_watch import read_sensors
from pipeline.stages.common.opening import gpu_of
from tests.gpu.conftest import TINY_ON_A_GPU, needs_torch_tensorrt

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.records import Artifact, BenchmarkReport

ON_GPU = {Clock.GPU, Clock.GPU_GRAPH, Clock.COPIES, Clock.PINNED, Clock.HOST}


def reports_of(project: Project, target: str, folder: Path) -> dict[str, BenchmarkReport]:
    """Benchmark a copy of a project's target, and return the reports by the variants' names."""
    (folder / "pipeline.yaml").write_text(TINY_ON_A_GPU)
    shutil.copytree(project.paths.root, folder / "artifacts")
    copy = Project.load(folder / "pipeline.yaml", STAGES)
    main(["benchmark", f"{copy.plan.model}/{target}", "--config", str(folder / "pipeline.yaml")])
    variants = [variant for variant in copy.plan.variants if variant.target == target]
    reports = {variant.name: copy.benchmark(variant) for variant in variants}
    return {name: report for name, report in reports.items() if report.outcome is Outcome.DONE}


@pytest.mark.skipif(not installed("torch"), reason="torch is not installed here")
def test_engines_are_timed_by_every_clock(project: Project, tmp_path: Path) -> None:
    """Engines are timed by every clock, on several streams too; each report has their memory and conditions."""
    target = project.plan.engine_targets[0].name
    reports = reports_of(project, target, tmp_path)
    assert reports
    for report in reports.values():
        assert {timing.clock for timing in report.timings} == ON_GPU | {Clock.STREAMS, Clock.OVERLAPPED}
        assert report.link is not None
        assert 1e9 < report.link.to_gpu_bytes_per_s < 1e12
        assert 1e9 < report.link.to_host_bytes_per_s < 1e12
        assert report.device_memory_bytes
        assert report.conditions is not None
        assert report.conditions.sm_clock_mhz.high > 100
        for timing in report.timings:
            low, high = timing.interval_ms
            assert 0 <= low <= timing.p50_ms <= high
            assert timing.p50_ms > 0
    fastest = {timing.clock: timing.p50_ms for timing in next(iter(reports.values())).timings}
    assert fastest[Clock.GPU_GRAPH] <= fastest[Clock.COPIES] <= fastest[Clock.PINNED] <= fastest[Clock.HOST] * 1.1


@needs_torch_tensorrt
def test_modules_are_timed_by_every_clock(modules: Project, tmp_path: Path) -> None:
    """Torch's modules in both layouts are timed by every clock, with the cost of their cold start."""
    target = modules.plan.module_targets[0].name
    reports = reports_of(modules, target, tmp_path)
    assert {"eager-fp32", "dynamo-fp16-b1-ws64MiB", "torch_compile-fp16-b1-ws64MiB"} <= set(reports)
    for name, report in reports.items():
        if not name.startswith(Backend.ONNXRUNTIME.value):
            assert {timing.clock for timing in report.timings} == ON_GPU, (name, report.reason)
            assert report.cold_start is not None
            assert report.cold_start.seconds > 0


def test_sensors_are_plausible(project: Project, fixed: Artifact) -> None:
    """A GPU's clock is above 100 MHz, it is warmer than a cellar and takes some watts."""
    reading = read_sensors(gpu_of(project, fixed))
    assert reading is not None
    assert reading.sm_clock_mhz > 100
    assert 10 < reading.temperature_c < 110
    assert 5 < reading.power_w < 2000
