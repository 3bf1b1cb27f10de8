"""Benchmarks of a target: groups and failures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.host.record_files import write_record
from model_artifacts.records import Clock, Graph
from pipeline.cli.main import main
from pipeline.planning.project import Project
from pipeline.records import BenchmarkReport, Outcome
from pipeline.stages import STAGES
from pipeline.stages.benchmark.stage import benchmark_target, group, room_of
from tests.support.hosts import H100, L4
from tests.support.modules import TORCH, finished, on_an_h100
from tests.support.parts import long_test

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Gpu


CPU = "cpu-x86_64"


def by_name(reports: tuple[BenchmarkReport, ...]) -> dict[str, BenchmarkReport]:
    """Return reports by their variant's own name."""
    return {report.variant_id.rpartition("/")[2]: report for report in reports}


def test_cpu_latencies_are_by_the_hosts_clock(built: Project) -> None:
    """A processor has no clock of its own, nothing to enqueue and no kernels to keep; a cold start it has, too."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnxruntime-fp32"))
    assert {(timing.clock, timing.enqueue_us) for timing in report.timings} == {(Clock.HOST, None)}
    assert (report.runtime_cache, report.disturbed_by, report.conditions) == (None, (), None)
    assert report.cold_start is not None
    assert 0 < report.cold_start.seconds < 60
    assert report.cold_start.cached_seconds is None


def test_every_cpu_variant_is_timed_at_every_batch(built: Project) -> None:
    """Each variant that a CPU runs has rounds x runs samples at each configured batch."""
    settings = built.config.benchmark
    for variant in built.plan.variants:
        report = built.benchmark(variant)
        if report.outcome is Outcome.DONE:
            assert [timing.batch for timing in report.timings] == list(built.config.timed_batches)
            runs = settings.restarts * settings.rounds * settings.runs_per_round
            assert {timing.runs for timing in report.timings} == {runs}
            assert report.restarts == settings.restarts
    done = [report.outcome for report in map(built.benchmark, built.plan.variants)].count(Outcome.DONE)
    assert done == 4


def test_the_raw_samples_are_the_summary(built: Project) -> None:
    """The percentiles that a report states are those of the samples that it keeps."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnxruntime-fp32"))
    assert report.samples is not None
    settings = built.config.benchmark
    with np.load(built.file(report.samples)) as samples:
        for timing in report.timings:
            name = f"host_batch_{timing.batch}"
            assert timing.p50_ms == pytest.approx(float(np.median(samples[name])), abs=1e-4)
            assert len(samples[name]) == len(samples[f"{name}_restart"]) == len(samples[f"{name}_round"])
            assert set(samples[f"{name}_restart"]) == set(range(settings.restarts))
            assert set(samples[f"{name}_round"]) == set(range(settings.restarts * settings.rounds))


def test_the_baseline_is_as_fast_as_itself(built: Project) -> None:
    """Eager FP32's speed-up over eager FP32 is 1."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/eager-fp32"))
    assert [timing.speedup for timing in report.timings] == [1.0, 1.0]


def test_a_reference_evaluator_is_not_timed(built: Project) -> None:
    """bf16 has no latency on a CPU, and the report says why."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnx-reference-bf16"))
    assert report.outcome is Outcome.SKIPPED
    assert "runs no bf16 convolutions" in report.reason


def test_a_stand_in_is_not_timed(built: Project) -> None:
    """TensorRT's graph has no latency on a processor that would not run it; the processor's own graph has one."""
    report = built.benchmark(built.plan.variant(f"tiny/{CPU}/onnxruntime-int8"))
    assert report.outcome is Outcome.SKIPPED
    assert report.reason.startswith("not deployed on a processor")
    assert built.benchmark(built.plan.variant(f"tiny/{CPU}/onnxruntime-int8-cpu")).timings


def test_engines_are_not_timed_without_a_gpu(built: Project) -> None:
    """An engine has no latency where no driver is, and the report says why."""
    report = built.benchmark(built.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB"))
    assert (report.outcome, report.reason) == (Outcome.SKIPPED, "no NVIDIA driver found")


@long_test
def test_one_broken_variant_costs_nobody_else(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A variant that cannot be opened fails alone; one that was never built is skipped; the others are timed."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    project.paths.onnx(Graph.FP16).write_bytes(b"not a model")
    project.paths.artifact(project.plan.variant(f"tiny/{CPU}/onnxruntime-int8")).unlink()
    assert main(["benchmark", f"tiny/{CPU}", "--config", str(copied / "pipeline.yaml")]) == 1
    assert f"FAILED: tiny/{CPU}/onnxruntime-fp16: ONNX Runtime cannot load" in capsys.readouterr().out
    reports = {variant.name: project.benchmark(variant) for variant in project.plan.variants if variant.target == CPU}
    assert reports["onnxruntime-fp16"].outcome is Outcome.FAILED
    assert reports["onnxruntime-int8"].reason.startswith("not built")
    assert reports["onnxruntime-fp32"].outcome is Outcome.DONE


@long_test
def test_a_process_that_dies_is_a_failure_of_its_variant(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant whose process is gone fails with that reason, and the baseline's death leaves others without ratios."""
    (copied / "dying.py").write_text("import os\n\ndef make():\n    os._exit(3)\n")
    monkeypatch.syspath_prepend(str(copied))
    monkeypatch.setenv("PYTHONPATH", str(copied))
    project = Project.load(copied / "pipeline.yaml", STAGES)
    write_record(project.paths.source, project.source().model_copy(update={"factory": "dying:make"}))
    reports = by_name(benchmark_target(project, CPU))
    assert reports["eager-fp32"].outcome is Outcome.FAILED
    assert reports["eager-fp32"].reason == "its process ended without a result (exit status 3)"
    assert reports["onnxruntime-fp32"].outcome is Outcome.DONE
    assert {timing.speedup for timing in reports["onnxruntime-fp32"].timings} == {None}


def test_each_group_has_the_baseline_first(built: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group has eager FP32 first, and no more processes than the host has memory for."""
    monkeypatch.setattr("pipeline.stages.benchmark.stage.host_memory_bytes", lambda: 20 * 2**30)
    project = on_an_h100(built)
    artifacts = [finished(project, variant) for variant in project.plan.variants if variant.target == TORCH]
    groups = group(project, TORCH, artifacts)
    assert {members[0].variant.name for members in groups} == {"eager-fp32"}
    assert max(len(members) for members in groups) == 5 + 1
    timed_ids = [artifact.variant.id for members in groups for artifact in members[1:]]
    assert sorted(timed_ids) == sorted(item.variant.id for item in artifacts if item.variant.name != "eager-fp32")


@pytest.mark.parametrize(
    ("gpu", "host_bytes", "room"),
    [
        (None, 2**40, 12),
        (None, 16 * 2**30, 4),
        (H100, 2**40, 12),
        (H100, 32 * 2**30, 8),
        (L4, 2**40, 6),
        (L4.model_copy(update={"memory_bytes": 2**30}), 2**40, 1),
    ],
)
def test_a_small_host_has_room_for_fewer(gpu: Gpu | None, host_bytes: int, room: int) -> None:
    """Every variant's process may take 4 GiB of the host and of the GPU, and one at least is timed."""
    assert room_of(gpu, host_bytes) == room


def test_the_baseline_alone_is_a_group(built: Project) -> None:
    """Eager FP32 is timed even if nothing else was built."""
    project = on_an_h100(built)
    baseline = project.plan.baseline(TORCH)
    assert baseline is not None
    (members,) = group(project, TORCH, [finished(project, baseline)])
    assert [artifact.variant for artifact in members] == [baseline]


def test_engines_are_timed_without_a_baseline_that_was_not_built(built: Project) -> None:
    """A host without torch has no eager FP32; its engines are timed alone."""
    project = on_an_h100(built)
    engines = [finished(project, item) for item in project.plan.variants if item.target == "rtx-sm80+"][:3]
    assert group(project, "rtx-sm80+", engines) == [engines]


def test_nothing_to_time_is_no_group(built: Project) -> None:
    """No process is started if every variant was skipped."""
    assert group(on_an_h100(built), TORCH, []) == []
