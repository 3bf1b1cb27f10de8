"""Profiles of variants, on the CPU and on a simulated GPU."""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.errors import KilledError, RunError
from model_artifacts.records import BatchRange, Precision
from model_artifacts.sessions.engine import Engine
from pipeline.cli.main import main
from pipeline.planning.freshness import is_current
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.records import LayerProfile, Outcome
from pipeline.stages import STAGES
from pipeline.stages.profile import profilers, workload
from pipeline.stages.profile import stage as profiling
from pipeline.stages.profile.profilers import trace_with_nsight
from pipeline.stages.profile.stage import profile_variant
from tests.support.fake_cuda import FakeEngine, FakeRuntime
from tests.support.hosts import H100, host
from tests.support.nsight import SUMMARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


CPU = "tiny/cpu-x86_64"
ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB"


# On the CPU, for real.


def test_onnxruntime_tells_its_nodes(copied: Path) -> None:
    """Every node with its operator, its type, its output's shape, and its share of the time."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    profile = profile_variant(project, project.plan.variant(f"{CPU}/onnxruntime-fp32"))
    assert (profile.outcome, profile.batch) == (Outcome.DONE, 1)
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1, abs=0.01)
    hottest = next(layer for layer in profile.layers if layer.kind == "Conv")
    assert (hottest.precision, hottest.median_us > 0, hottest.shape[:2]) == (Precision.FP32, True, "1x")
    assert project.layers(project.plan.variant(f"{CPU}/onnxruntime-fp32")) == profile


def test_torch_tells_its_operators(copied: Path) -> None:
    """Eager has no layers; its operators are the functions that are hot."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    profile = profile_variant(project, project.plan.variant(f"{CPU}/eager-fp32"))
    assert (profile.outcome, profile.layers) == (Outcome.DONE, ())
    assert any("convolution" in item.name for item in profile.functions)
    assert profile.profilers[0].name == "torch's profiler"


def test_profile_is_printed_and_recorded(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows the hottest layers, and is up to date afterwards; the report is not."""
    config = copied / "pipeline.yaml"
    step = Step("profile", f"{CPU}/onnxruntime-fp32")
    assert not is_current(Project.load(config, STAGES), step)
    assert main(["profile", step.subject, "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "computes in" in said
    assert "tactic" not in said  # a column in which nothing is told
    assert "of their time is spent on copies and conversions" in said
    assert is_current(Project.load(config, STAGES), step)
    assert not is_current(Project.load(config, STAGES), Step("report", "tiny"))


@pytest.mark.parametrize(
    ("subject", "reason"),
    [(f"{CPU}/onnx-reference-bf16", "reference evaluator"), (ENGINE, "no NVIDIA driver")],
)
def test_what_cannot_be_profiled_says_why(copied: Path, subject: str, reason: str) -> None:
    """It is skipped with its reason, which is recorded."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    profile = profile_variant(project, project.plan.variant(subject))
    assert profile.outcome is Outcome.SKIPPED
    assert reason in profile.reason


def test_a_damaged_artifact_fails(copied: Path) -> None:
    """An ONNX file that cannot be read is a failure with the file's name."""
    project = Project.load(copied / "pipeline.yaml", STAGES)
    variant = project.plan.variant(f"{CPU}/onnxruntime-fp32")
    artifact = project.artifact(variant)
    assert artifact.file is not None
    project.file(artifact.file).write_bytes(b"nothing")
    profile = profile_variant(project, variant)
    assert profile.outcome is Outcome.FAILED
    assert artifact.file.path in profile.reason


def _kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("on_worker", [False, True])
def test_a_killed_profiler_fails_here_and_is_retried_by_a_farm(
    copied: Path, monkeypatch: pytest.MonkeyPatch, *, on_worker: bool
) -> None:
    """A killed process is a failure on this machine; on a worker it leaves no record, and the farm tries another."""
    found = Project.load(copied / "pipeline.yaml", STAGES)
    project = Project(found.plan, found.paths, STAGES, found.config_file, on_worker=on_worker)
    variant = project.plan.variant(f"{CPU}/onnxruntime-fp32")
    monkeypatch.setattr(profiling, "_on_cpu", _kill_itself)

    if on_worker:
        with pytest.raises(KilledError, match="SIGKILL"):
            profile_variant(project, variant)
        assert not project.paths.layers(variant).exists()
    else:
        profile = profile_variant(project, variant)
        assert (profile.outcome, "SIGKILL" in profile.reason) == (Outcome.FAILED, True)


# On a GPU, whose part is played.


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """Return a CUDA that keeps its memory in the host."""
    fake = FakeRuntime()
    monkeypatch.setattr("model_artifacts.host.cuda.runtime", fake)
    return fake


@pytest.fixture
def project(copied: Path, gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The tiny project on a host with a GPU, on which its engines run in this process."""
    found = Project.load(copied / "pipeline.yaml", STAGES)
    fake: Any = FakeEngine(gpu, BatchRange(min=1, opt=2, max=4), sample=(3, 32, 32))

    @contextmanager
    def open_fake(*_: object) -> Iterator[Engine]:
        yield Engine(fake, H100)

    def here(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    monkeypatch.setattr(profiling, "open_serialized", open_fake)
    monkeypatch.setattr(workload, "open_serialized", open_fake)
    monkeypatch.setattr(profiling, "run_isolated", here)
    return Project(Plan(found.config, host(H100)), found.paths, STAGES, found.config_file)


def install_nsys(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program called nsys on the PATH."""
    program = folder / "bin" / "nsys"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def profiled(project: Project) -> LayerProfile:
    """Return the profile of an engine."""
    return profile_variant(project, project.plan.variant(ENGINE))


NSYS = """
case "$1" in
  --version) echo "NVIDIA Nsight Systems version 2024.4.2" ;;
  profile) for word; do case "$word" in --output=*) echo trace > "${word#--output=}" ;; esac; done ;;
  stats) cat "$0.summary" ;;
esac
"""


def test_nsight_systems_tells_the_kernels(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its report is kept, with the command that made it and its summary; layers are the engine's own."""
    install_nsys(tmp_path, monkeypatch, NSYS)
    (tmp_path / "bin" / "nsys.summary").write_text(SUMMARY)
    profile = profiled(project)
    assert (profile.outcome, profile.batch, profile.reason) == (Outcome.DONE, 2, "")
    assert [(layer.name, layer.median_us) for layer in profile.layers] == [("conv", 300.0), ("copy", 100.0)]
    assert profile.functions[0].name.startswith("sm90_xmma_fprop")
    assert profile.command.startswith("nsys profile --trace=cuda,nvtx")
    assert profile.command.endswith(f"python -m pipeline.stages.profile.workload {project.config_file} {ENGINE}")
    assert profile.trace is not None
    assert project.file(profile.trace).read_text() == "trace\n"
    assert [tool.name for tool in profile.profilers] == ["tensorrt_rtx's profiler", "nsys"]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("echo no permission >&2; exit 3", r"nsys failed \(exit status 3\)"),
        ("exit 0", "nsys wrote no report"),
    ],
)
def test_nsight_systems_that_fails_is_a_failure(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str
) -> None:
    """A profile fails if Nsight Systems fails."""
    install_nsys(tmp_path, monkeypatch, script)
    profile = profiled(project)
    assert profile.outcome is Outcome.FAILED
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(profile.reason)


def test_trace_that_fails_leaves_the_one_before(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report takes its place once it is whole, and nothing is left beside it."""
    path = project.paths.trace(project.plan.variant(ENGINE))
    path.write_text("before")
    listed = sorted(path.parent.iterdir())
    install_nsys(tmp_path, monkeypatch, NSYS.replace('cat "$0.summary"', "exit 1"))
    with pytest.raises(RunError, match="nsys failed"):
        trace_with_nsight(project, project.plan.variant(ENGINE))
    assert path.read_text() == "before"
    assert sorted(path.parent.iterdir()) == listed


def test_what_nsight_systems_runs_ends_with_it(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that hangs is killed with its workload, which would go on working on the GPU."""
    install_nsys(tmp_path, monkeypatch, f"sleep 600 & echo $! > {tmp_path}/workload; wait")
    monkeypatch.setattr(profilers, "_SECONDS", 1)
    with pytest.raises(RunError, match="nsys gave no result in 1 s"):
        trace_with_nsight(project, project.plan.variant(ENGINE))
    workload = Path("/proc", (tmp_path / "workload").read_text().strip(), "stat")
    deadline = time.monotonic() + 30
    with suppress(OSError):  # it has gone
        while workload.read_text().split()[2] != "Z":  # it was killed, which may take its time
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_without_any_profiler_of_kernels_the_layers_are_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with neither Nsight Systems nor torch says that the kernels are missing."""
    monkeypatch.setattr(profiling, "installed", lambda _: False)
    profile = profiled(project)
    assert (profile.outcome, len(profile.layers), profile.functions) == (Outcome.DONE, 2, ())
    assert profile.reason == "no kernels: neither Nsight Systems nor torch is installed here"


def test_the_workload_runs_between_the_marks(
    project: Project, gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The profiled process warms up before the marks, and closes its session."""
    monkeypatch.setattr(workload, "load_projects", lambda *_, **__: (project,))
    workload.main(str(project.config_file), ENGINE)
    assert gpu.looked_at == [True, False]
    assert gpu.idle
