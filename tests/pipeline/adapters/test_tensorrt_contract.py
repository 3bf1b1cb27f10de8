"""The adapter of TensorRT against NVIDIA's own bindings of three versions, without a GPU."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Precision
from tests.support.tensorrt_contract import BUILDS, CONTRACT, SYMBOLS
from tests.support.tensorrt_stub import LAYER, Case, Report
from tests.support.wheels import Wheel, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable


REPOSITORY = Path(__file__).parents[3]

TRT8 = Wheel("tensorrt_bindings", "8.6.1", last_python=(3, 11))
TRT10 = Wheel("tensorrt-cu13-bindings", "10.15.1.29")
TRT11 = Wheel("tensorrt-cu13-bindings", "11.4.0.106")
ALL = (TRT8, TRT10, TRT11)

only_8 = pytest.mark.parametrize("bindings", [TRT8], ids=str)
only_10 = pytest.mark.parametrize("bindings", [TRT10], ids=str)
only_11 = pytest.mark.parametrize("bindings", [TRT11], ids=str)
newer = pytest.mark.parametrize("bindings", [TRT10, TRT11], ids=str)


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stubs of TensorRT's libraries: one library under all of their names."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("there is no C compiler (cc, gcc) for the stub libraries")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    subprocess.run(  # noqa: S603 - fixed arguments
        [compiler, "-shared", "-fPIC", "-o", folder / "stub.so", folder / "stub.c"], check=True, capture_output=True
    )
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers"):
        for bindings in ALL:
            (folder / f"lib{library}.so.{bindings.major}").symlink_to("stub.so")
    return folder


@pytest.fixture(scope="session")
def drive(stubs: Path, wheels: Path) -> Callable[[Wheel], subprocess.CompletedProcess[str] | str]:
    """A function that drives the adapter on a flavour, once a session; it returns the reason where it cannot."""

    @functools.cache
    def driven(bindings: Wheel) -> subprocess.CompletedProcess[str] | str:
        folder = unpacked(bindings, wheels)
        if isinstance(folder, str):
            return folder
        libraries = os.pathsep.join(filter(None, (str(stubs), os.environ.get("LD_LIBRARY_PATH"))))
        return subprocess.run(  # noqa: S603 - fixed arguments
            [sys.executable, "-m", "tests.support.tensorrt_stub", folder],
            check=False,
            cwd=REPOSITORY,
            env={**os.environ, "LD_LIBRARY_PATH": libraries},
            capture_output=True,
            text=True,
        )

    return driven


@pytest.fixture(params=ALL, ids=str)
def bindings(request: pytest.FixtureRequest) -> Wheel:
    """Every flavour, unless a test says which."""
    chosen: Wheel = request.param
    return chosen


@pytest.fixture
def report(bindings: Wheel, drive: Callable[[Wheel], subprocess.CompletedProcess[str] | str]) -> Report:
    """The outcome of the adapter on a flavour's genuine bindings, in a process of their own."""
    done = drive(bindings)
    if isinstance(done, str):
        pytest.skip(done)
    assert done.returncode == 0, done.stderr
    return Report.model_validate_json(done.stdout)


def applied(case: Case) -> dict[str, bool]:
    """Return which settings were applied."""
    return {setting.name: setting.applied for setting in case.settings}


def flags(case: Case) -> list[str]:
    """Return the calls that set or clear a builder flag."""
    return [call.partition(".")[2] for call in case.calls if "_flag(" in call]


# What holds for every flavour


def test_bindings_are_genuine(bindings: Wheel, report: Report) -> None:
    """The version of the bindings is the one that was requested."""
    assert report.version == bindings.version


@pytest.mark.parametrize("name", CONTRACT)
def test_adapter_keeps_to_the_bindings(report: Report, name: str) -> None:
    """No attribute, enumeration, method or keyword is used that the flavour lacks."""
    assert report.cases[name].violation == ""


def test_every_case_is_judged(report: Report) -> None:
    """Every driven case is in one of the lists of these tests."""
    assert {name for name in report.cases if not name.startswith("mistake: ")} == set(CONTRACT)


def test_every_setting_is_accounted_for(report: Report) -> None:
    """Every setting is applied, or has a note that says why not; never both."""
    settings = [setting for case in report.cases.values() for setting in case.settings]

    assert settings
    assert [setting for setting in settings if setting.applied is bool(setting.note)] == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "every",
            {
                "optimization_level",
                "tactic_sources",
                "hardware_compatibility",
                "version_compatible",
                "refit",
                "strip_plan",
                "timing_cache",
            },
        ),
        ("same", {"hardware_compatibility"}),
        ("cublas", {"tactic_sources"}),
        ("untimed", {"timing_cache"}),
    ],
)
def test_every_wish_is_recorded(report: Report, name: str, wanted: set[str]) -> None:
    """Every configured setting is recorded, applied or not."""
    assert wanted <= applied(report.cases[f"build fp16 {name}"]).keys()


def test_engine_is_described(report: Report) -> None:
    """An engine's inputs and outputs have the flavour's genuine dimensions and types."""
    engine, loaded = (report.cases[name] for name in ("build fp16 plain", "load"))

    assert [(spec.name, spec.shape, spec.dtype) for spec in engine.inputs] == [("image", ("batch", 3, 8, 8), "float32")]
    assert [(spec.name, spec.shape, spec.dtype) for spec in engine.outputs] == [("logits", ("batch", 10), "float32")]
    assert (loaded.inputs, loaded.outputs) == (engine.inputs, engine.outputs)


def test_engine_says_what_memory_it_needs(report: Report) -> None:
    """The memory is read from the property that the flavour has."""
    assert report.cases["build fp16 plain"].said[0] == "4096"


def test_fixed_batch_is_a_static_shape(report: Report) -> None:
    """A profile of one size fixes the network's input."""
    assert "ITensor.shape.set((4, 3, 8, 8))" in report.cases["build a fixed batch"].calls


def test_context_runs(report: Report) -> None:
    """A context takes shapes and addresses, tells the output's shape, and runs on a stream."""
    case = report.cases["load"]

    assert case.said[:4] == ("b1-2-4", str(Precision.FP16), "(2, 10)", "None")
    assert "IExecutionContext.set_tensor_address('image', 4096)" in case.calls
    assert case.calls[-1] == "IExecutionContext.execute_async_v3(7)"


def test_a_context_times_its_layers(report: Report) -> None:
    """The layer times of the library's profiler are those of one batch, even if layers share a name."""
    assert report.cases["profile"].said == ("conv 0.50", "copy 0.25")


def test_layers_are_inspected_with_the_shapes_of_the_context(report: Report) -> None:
    """The inspector is given the context, once that knows its batch: types that follow from it are open until then."""
    calls = [call.partition("(")[0] for call in report.cases["load"].calls]
    shaped = calls[calls.index("IExecutionContext.set_input_shape") :]

    assert [call for call in shaped if "Inspector" in call or "inspector" in call] == [
        "ICudaEngine.create_engine_inspector",
        "EngineInspector.execution_context.set",
        "EngineInspector.get_engine_information",
    ]


def test_engine_is_inspected_without_a_context(report: Report) -> None:
    """An engine's own description is the inspector's JSON, independent of a batch size."""
    case = report.cases["load"]
    before = case.calls[: case.calls.index("IExecutionContext.set_input_shape('image', (2, 3, 8, 8))")]

    assert json.loads(case.said[4]) == {"Layers": [LAYER]}
    assert not any("EngineInspector.execution_context" in call for call in before)


def test_second_context_shares_the_profile(report: Report) -> None:
    """A context for which no profile was chosen is given the engine's."""
    assert "IExecutionContext.set_optimization_profile_async(0, 7)" in report.cases["a second context"].calls


def test_logger_hears_the_library(report: Report) -> None:
    """Messages to the genuine class's virtual method are logged with their severity."""
    said = [tuple(line.split()) for line in report.cases["log"].said]

    assert said == [(name, "hello") for name in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")]


def test_timings_are_kept(report: Report) -> None:
    """A build starts from earlier timings and gives its own back, unless they are off."""
    cases = report.cases

    assert "IBuilderConfig.create_timing_cache(b'timings')" in cases["build with timings"].calls
    assert cases["build with timings"].said[2] == "host memory"
    assert cases["build fp16 untimed"].said[2] == ""
    assert "set_flag(BuilderFlag.DISABLE_TIMING_CACHE)" in flags(cases["build fp16 untimed"])


def test_timings_of_another_gpu_are_dropped(report: Report) -> None:
    """An empty timing cache replaces one that the library refuses."""
    calls = report.cases["build with another GPU's timings"].calls

    assert [call for call in calls if "create_timing_cache" in call] == [
        "IBuilderConfig.create_timing_cache(b'timings')",
        "IBuilderConfig.create_timing_cache(b'')",
    ]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("build of a bad graph", "BuildError: TensorRT cannot read the ONNX graph"),
        ("build that fails", "BuildError: the builder returned no engine"),
        ("load what is damaged", "RunError: the engine cannot be loaded"),
    ],
)
def test_failures_are_told(report: Report, name: str, error: str) -> None:
    """A refusal by the library is an error of the adapter."""
    assert report.cases[name].error == error


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8])
def test_tf32_is_off_for_strict_fp32_only(report: Report, precision: Precision) -> None:
    """The one flag that every flavour has for a type is cleared for FP32, and set for the rest."""
    case = report.cases[f"build {precision.value} plain"]

    assert flags(case)[0] == f"{'clear' if precision is Precision.FP32 else 'set'}_flag(BuilderFlag.TF32)"


def test_refused_tactic_sources_are_recorded(report: Report) -> None:
    """A choice of tactics that the library does not take is unsupported, and the build goes on without it."""
    case = report.cases["build with tactic sources that are refused"]
    (setting,) = (setting for setting in case.settings if setting.name == "tactic_sources")

    assert case.error == ""
    assert (setting.applied, setting.note) == (False, f"tensorrt {report.version} refuses this choice")


# TensorRT 8.6


@only_8
def test_8_takes_explicit_batches(report: Report) -> None:
    """8.6 makes networks with an explicit batch (flag 0), and reads the graph of opset 17."""
    calls = report.cases["build fp16 plain"].calls

    assert "Builder.create_network(1)" in calls
    assert "OnnxParser.parse_from_file('graph17.onnx')" in calls


@only_8
@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", []), ("tf32", []), ("fp16", ["FP16"]), ("int8", ["INT8", "FP16"])],
)
def test_8_has_flags_for_the_types_of_the_graph(report: Report, precision: str, expected: list[str]) -> None:
    """8.6 is told by flags which types the graph asks for."""
    case = report.cases[f"build {precision} plain"]

    assert flags(case)[1:] == [f"set_flag(BuilderFlag.{name})" for name in expected]


@only_8
@pytest.mark.parametrize("name", [name for name in BUILDS if name.split()[1] in {"bf16", "fp8"}])
def test_8_refuses_newer_types(report: Report, name: str) -> None:
    """8.6 has no bfloat16 and no FP8 graphs, and says so before anything is built."""
    case = report.cases[name]

    assert case.error.startswith("UnsupportedError: tensorrt 8.6.1 has no ")
    assert case.calls == ()


@only_8
def test_8_cannot_strip_plans(report: Report) -> None:
    """8.6 applies every setting but stripped plans and compatibility within a compute capability."""
    cases = report.cases

    assert [name for name, done in applied(cases["build fp16 every"]).items() if not done] == ["strip_plan"]
    assert not applied(cases["build fp16 same"])["hardware_compatibility"]
    assert applied(cases["build fp16 cublas"])["tactic_sources"]


@only_8
def test_8_shares_profiles_on_demand(report: Report) -> None:
    """8.6 lets contexts share a profile where it is asked to."""
    sharing = "IBuilderConfig.set_preview_feature(PreviewFeature.PROFILE_SHARING_0806, True)"

    assert sharing in report.cases["build fp16 plain"].calls


@only_8
def test_8_tells_of_no_progress(report: Report) -> None:
    """8.6 has no progress monitor, and builds without."""
    assert len(report.cases["build fp16 plain"].said) == 3


@only_8
@pytest.mark.parametrize("name", ["load with weights", "load with weights of another"])
def test_8_refits_nothing_from_onnx(report: Report, name: str) -> None:
    """8.6 has no refitter that reads ONNX, and says so."""
    assert report.cases[name].error == "RunError: TensorRT 8.6.1 cannot refit an engine from an ONNX file"


@only_8
def test_8_puts_weights_into_engines_by_their_names(report: Report) -> None:
    """The parser names weights as the graph does, and a weight that does not fit is reported."""
    cases = report.cases
    assert "Refitter.set_named_weights('weight', Weights)" in cases["refit"].calls
    assert cases["refit"].said == ("host memory",)
    assert cases["refit of other names"].error == "RunError: the engine cannot be refitted"
    assert cases["refit that lacks weights"].error == "RunError: the engine cannot be refitted"
    assert cases["refit without a graph"].error == "RunError: the weights of none.onnx cannot be read"


def test_an_engine_takes_other_weights(report: Report) -> None:
    """Each flavour gives the engine back, or says why not."""
    cases = report.cases
    assert "Refitter.refit_cuda_engine()" in cases["refit"].calls
    assert cases["refit"].said == ("host memory",)
    assert cases["refit that fails"].error == "RunError: the engine cannot be refitted"
    assert cases["refit what is damaged"].error == "RunError: the engine cannot be loaded"


# TensorRT 10 and 11


@pytest.mark.parametrize(("bindings", "flags"), [(TRT10, 2), (TRT11, 1)], ids=str)
def test_newer_networks_are_strongly_typed(report: Report, flags: int) -> None:
    """10 and 11 make strongly typed networks, each by its own number for that, and read the newest graph."""
    calls = report.cases["build fp16 plain"].calls

    assert f"Builder.create_network({flags})" in calls
    assert "OnnxParser.parse_from_file('graph.onnx')" in calls


@newer
@pytest.mark.parametrize("name", BUILDS)
def test_newer_precisions_are_never_flags(report: Report, name: str) -> None:
    """10 and 11 build every precision, and no flag but TF32 is about a type."""
    case = report.cases[name]
    others = {"VERSION_COMPATIBLE", "REFIT", "STRIP_PLAN", "WEIGHTLESS", "DISABLE_TIMING_CACHE", "TF32"}

    assert case.error == ""
    assert {call.partition("BuilderFlag.")[2].rstrip(")") for call in flags(case)} <= others


@newer
def test_newer_settings_are_all_applied(report: Report) -> None:
    """10 and 11 apply every setting, compatibility within a compute capability included."""
    cases = report.cases

    assert all(applied(cases["build fp16 every"]).values())
    assert all(applied(cases["build fp16 same"]).values())


@only_10
def test_10_has_cublas(report: Report) -> None:
    """10 takes tactics from cuBLAS and cuDNN."""
    case = report.cases["build fp16 cublas"]

    assert applied(case)["tactic_sources"]
    assert "IBuilderConfig.set_tactic_sources(7)" in case.calls


@only_11
def test_11_has_no_cublas(report: Report) -> None:
    """11 takes no tactics from cuBLAS and cuDNN, and the setting's note says so."""
    case = report.cases["build fp16 cublas"]
    (setting,) = (setting for setting in case.settings if setting.name == "tactic_sources")

    assert not setting.applied
    assert setting.note == "tensorrt 11.4.0.106 has no CUBLAS, CUBLAS_LT, CUDNN"
    assert not any("set_tactic_sources" in call for call in case.calls)


@newer
def test_newer_builds_tell_of_their_progress(report: Report) -> None:
    """Calls of the genuine monitor's virtual methods arrive, and the build goes on."""
    case = report.cases["build fp16 plain"]

    assert case.said[3:] == (
        "start tune of None, 2 steps",
        "start conv of tune, 1 steps",
        "conv: 1",
        "finish conv",
    )
    assert "go on: True" in case.calls


@newer
def test_newer_engines_are_refitted(report: Report) -> None:
    """10 and 11 put an ONNX file's weights into a stripped engine, and say where they do not fit."""
    cases = report.cases

    assert "OnnxParserRefitter.refit_from_file('weights.onnx')" in cases["load with weights"].calls
    assert "Refitter.refit_cuda_engine()" in cases["load with weights"].calls
    assert cases["load with weights of another"].error == "RunError: the engine cannot be refitted"


# The contract can fail


@pytest.mark.parametrize(
    ("mistake", "caught"),
    [
        ("a keyword", "IBuilderConfig.set_memory_pool_limit: missing a required argument: 'pool_size'"),
        ("the number of arguments", "missing a required argument: 'ignore_mismatch'"),
        ("another enumeration", "flag is MemoryPoolType.WORKSPACE, no tensorrt_bindings.tensorrt.BuilderFlag"),
        ("a number for an enumeration", "arg1 is 1, no tensorrt_bindings.tensorrt.ProfilingVerbosity"),
        ("another object", "profile is IBuilderConfig, no tensorrt_bindings.tensorrt.IOptimizationProfile"),
        ("a property that is read only", "IBuilderConfig.num_optimization_profiles cannot be set"),
        ("a constructor", "Runtime.__init__: missing a required argument: 'logger'"),
    ],
)
def test_contract_catches(report: Report, mistake: str, caught: str) -> None:
    """A wrong keyword, argument, value or assignment is caught in every flavour."""
    assert caught in report.cases[f"mistake: {mistake}"].violation


@pytest.mark.parametrize(
    ("mistake", "missing", "having"),
    [
        ("a property", "max_workspace_size", [TRT8]),
        ("a property that is set", "max_workspace_size", [TRT8]),
        ("a flag", "FP16", [TRT8, TRT10]),
    ],
)
def test_contract_catches_what_a_flavour_lacks(
    bindings: Wheel, report: Report, mistake: str, missing: str, having: list[Wheel]
) -> None:
    """A feature that only some flavours have is refused in the others alone."""
    violation = report.cases[f"mistake: {mistake}"].violation

    assert (violation == "") is (bindings in having)
    assert not violation or violation.endswith(f"has no attribute '{missing}'")
