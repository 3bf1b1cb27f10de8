"""What takes an artifact's time: real profilers on the CPU, stand-ins for a GPU's."""

from __future__ import annotations

import json
import os
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.errors import RunError
from model_artifacts.records import BatchRange, Precision
from model_artifacts.sessions.engine import Engine
from model_artifacts.tensorrt.inspector import EngineLayer
from pipeline.__main__ import main
from pipeline.planning.freshness import is_current
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.planning.steps import Stage, Step
from pipeline.records import LayerProfile, Outcome
from pipeline.stages.profile import profilers, workload
from pipeline.stages.profile import stage as profiling
from pipeline.stages.profile.profilers import (
    rank_functions,
    rank_layers,
    read_kernel_summary,
    read_onnxruntime_profile,
    trace_with_nsight,
)
from pipeline.stages.profile.stage import profile_variant
from pipeline.system.nvtx import nvtx_range
from tests.support.fake_cuda import FakeEngine, FakeRuntime
from tests.support.hosts import H100, host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPU = "tiny/cpu-x86_64"
ENGINE = "tiny/rtx-sm80+/fp16-b1-2-4-ws16MiB"

# As Nsight Systems 2024.4 writes it, after what it says of its own work.
SUMMARY = """Generating SQLite file profile.sqlite from profile.nsys-rep
Processing [profile.sqlite] with [/opt/nvidia/nsight-systems/reports/cuda_gpu_kern_sum.py]...

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
75.0,3000000,20,150000.0,150000.0,149000,151000,500.0,"sm90_xmma_fprop<half, (int)3>"
25.0,1000000,40,25000.0,25000.0,24000,26000,100.0,copy
"""


def conv(name: str = "conv", kind: str = "Convolution") -> EngineLayer:
    """Return a layer."""
    return EngineLayer(name, kind, "tactic", Precision.FP16, "1x64x56x56", 9408)


# Pure.


def test_the_hottest_layer_is_first() -> None:
    """Times are microseconds of a batch, shares are of all layers, and copies are counted."""
    layers, copies = rank_layers([(conv("a"), 0.1), (conv("b"), 0.6), (conv("c", "Reformat"), 0.3)])
    assert [(layer.name, layer.median_us, layer.share) for layer in layers] == [
        ("b", 600.0, 0.6),
        ("c", 300.0, 0.3),
        ("a", 100.0, 0.1),
    ]
    assert copies == 0.3
    assert (layers[0].kind, layers[0].tactic, layers[0].precision) == ("Convolution", "tactic", Precision.FP16)
    assert (layers[0].shape, layers[0].weights) == ("1x64x56x56", 9408)


def test_no_time_has_no_shares() -> None:
    """Layers that take nothing divide nothing by zero."""
    layers, copies = rank_layers([(conv(), 0.0)])
    assert (layers[0].share, copies) == (0.0, 0.0)


def test_the_hottest_function_is_first() -> None:
    """What took no time is left out."""
    found = rank_functions([("a", 1, 1.0), ("b", 2, 3.0), ("idle", 5, 0.0)])
    assert [(item.name, item.calls, item.share) for item in found] == [("b", 2, 0.75), ("a", 1, 0.25)]


def test_a_kernel_summary_is_read() -> None:
    """Names may hold commas, times are nanoseconds, and what nsys says before its table does not matter."""
    found = read_kernel_summary(SUMMARY)
    assert [(item.name, item.calls, item.total_us, item.share) for item in found] == [
        ("sm90_xmma_fprop<half, (int)3>", 20, 3000.0, 0.75),
        ("copy", 40, 1000.0, 0.25),
    ]


@pytest.mark.parametrize(
    "text", ["", "SKIPPED: profile.sqlite does not contain CUDA kernel data.", SUMMARY.replace("3000000", "many")]
)
def test_another_kernel_summary_is_one_error(text: str) -> None:
    """What is no table of kernels is not taken for an empty one."""
    with pytest.raises(RunError, match="nsys wrote"):
        read_kernel_summary(text)


def node(name: str, took: int, **told: object) -> dict[str, Any]:
    """Return an event of ONNX Runtime's profile."""
    shown = {"op_name": "Conv", "output_type_shape": [{"float": [1, 8, 4, 4]}], "parameter_size": "400", **told}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": took, "args": shown}


def test_nodes_are_read_without_their_warm_up() -> None:
    """The median of the last runs counts; sessions and fences are no nodes."""
    events = [{"cat": "Session", "name": "run", "dur": 9}, {"cat": "Node", "name": "a_fence_before", "dur": 9}]
    events += [node("a", took) for took in (900, 20, 30, 40)]
    ((layer, taken),) = read_onnxruntime_profile(json.dumps(events), 3)
    assert layer == EngineLayer("a", "Conv", "", Precision.FP32, "1x8x4x4", 100)
    assert taken == pytest.approx(0.030)


@given(
    st.one_of(
        st.text(),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(), st.just("Node"), st.just("a_kernel_time")),
            lambda inner: st.one_of(
                st.lists(inner), st.dictionaries(st.sampled_from(["cat", "name", "dur", "args", "op_name"]), inner)
            ),
        ).map(json.dumps),
    )
)
def test_no_profile_of_onnxruntime_breaks_the_reader(text: str) -> None:
    """Whatever is in the file, the answer is layers or an error of ours."""
    with suppress(RunError):
        read_onnxruntime_profile(text, 3)


# On the CPU, for real.


def test_onnxruntime_tells_its_nodes(copied: Path) -> None:
    """Every node with its operator, its type, its output's shape, and its share of the time."""
    project = Project.load(copied / "pipeline.yaml")
    profile = profile_variant(project, project.plan.variant(f"{CPU}/onnxruntime-fp32"))
    assert (profile.outcome, profile.batch) == (Outcome.DONE, 1)
    assert sum(layer.share for layer in profile.layers) == pytest.approx(1, abs=0.01)
    hottest = next(layer for layer in profile.layers if layer.kind == "Conv")
    assert (hottest.precision, hottest.median_us > 0, hottest.shape[:2]) == (Precision.FP32, True, "1x")
    assert project.layers(project.plan.variant(f"{CPU}/onnxruntime-fp32")) == profile


def test_torch_tells_its_operators(copied: Path) -> None:
    """Eager has no layers; its operators are the functions that are hot."""
    project = Project.load(copied / "pipeline.yaml")
    profile = profile_variant(project, project.plan.variant(f"{CPU}/eager-fp32"))
    assert (profile.outcome, profile.layers) == (Outcome.DONE, ())
    assert any("convolution" in item.name for item in profile.functions)
    assert profile.profilers[0].name == "torch's profiler"


def test_profile_is_printed_and_recorded(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command shows the hottest layers, and is up to date afterwards; the report is not."""
    config = copied / "pipeline.yaml"
    step = Step(Stage.PROFILE, f"{CPU}/onnxruntime-fp32")
    assert not is_current(Project.load(config), step)
    assert main(["profile", step.subject, "--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "computes in" in said
    assert "tactic" not in said  # a column in which nothing is told
    assert "of their time is spent on copies and conversions" in said
    assert is_current(Project.load(config), step)
    assert not is_current(Project.load(config), Step(Stage.REPORT, "tiny"))


@pytest.mark.parametrize(
    ("subject", "reason"),
    [(f"{CPU}/onnx-reference-bf16", "reference evaluator"), (ENGINE, "no NVIDIA driver")],
)
def test_what_cannot_be_profiled_says_why(copied: Path, subject: str, reason: str) -> None:
    """It is skipped with its reason, which is recorded."""
    project = Project.load(copied / "pipeline.yaml")
    profile = profile_variant(project, project.plan.variant(subject))
    assert profile.outcome is Outcome.SKIPPED
    assert reason in profile.reason


def test_a_damaged_artifact_fails(copied: Path) -> None:
    """An ONNX file that cannot be read is a failure with the file's name."""
    project = Project.load(copied / "pipeline.yaml")
    variant = project.plan.variant(f"{CPU}/onnxruntime-fp32")
    artifact = project.artifact(variant)
    assert artifact.file is not None
    project.file(artifact.file).write_bytes(b"nothing")
    profile = profile_variant(project, variant)
    assert profile.outcome is Outcome.FAILED
    assert artifact.file.path in profile.reason


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
    found = Project.load(copied / "pipeline.yaml")
    fake: Any = FakeEngine(gpu, BatchRange(min=1, opt=2, max=4), sample=(3, 32, 32))

    @contextmanager
    def open_fake(*_: object) -> Iterator[Engine]:
        yield Engine(fake, H100)

    def here(function: Callable[..., object], *arguments: object, **_: object) -> object:
        return function(*arguments)

    monkeypatch.setattr(profiling, "open_serialized", open_fake)
    monkeypatch.setattr(workload, "open_serialized", open_fake)
    monkeypatch.setattr(profiling, "run_isolated", here)
    return Project(Plan(found.config, host(H100)), found.paths, found.config_file)


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
    """A profile without what was asked for is none."""
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
    """What Nsight Systems runs warms up first, and closes what it opened."""
    monkeypatch.setattr(Project, "load", lambda _: project)
    workload.main(str(project.config_file), ENGINE)
    assert gpu.looked_at == [True, False]
    assert gpu.idle


# NVTX.


def test_ranges_are_shown_to_a_profiler_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no profiler told NVTX of itself, the library is not even imported."""
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
