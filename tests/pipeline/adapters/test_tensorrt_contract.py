"""The adapter of TensorRT against NVIDIA's own bindings of three versions, without a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Precision
from tests.support.tensorrt_contract import BUILDS, CONTRACT, TRT8, TRT10, TRT11, flags, newer, only_8
from tests.support.tensorrt_drive import LAYER, Report

if TYPE_CHECKING:
    from tests.support.wheels import Wheel

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


def test_each_size_has_a_profile(report: Report) -> None:
    """The input's batch stays dynamic, and each profile holds one size. The memory is that of all."""
    case = report.cases["build several profiles"]
    shapes = [call for call in case.calls if call.startswith("IOptimizationProfile.set_shape")]

    assert shapes == [
        f"IOptimizationProfile.set_shape('image', {', '.join([f'({size}, 3, 8, 8)'] * 3)})" for size in (1, 2, 4)
    ]
    assert sum("add_optimization_profile" in call for call in case.calls) == 3
    assert not any(call.startswith("ITensor.shape.set") for call in case.calls)
    assert case.inputs[0].shape == ("batch", 3, 8, 8)


def test_each_profile_has_a_context(report: Report) -> None:
    """A batch runs in the context of its size, and no context changes its profile between batches."""
    case = report.cases["load several profiles"]
    calls = [call.partition(".")[2] for call in case.calls if call.startswith("IExecutionContext.")]

    assert calls == [
        *[f"set_optimization_profile_async({index}, 7)" for index in range(3)],
        *["set_tensor_address('image', 4096)"] * 3,
        *[
            step
            for size in (1, 4, 1)
            for step in (f"set_input_shape('image', ({size}, 3, 8, 8))", "execute_async_v3(7)")
        ],
    ]
    assert case.said[0] == "each1-2-4"


@newer
def test_each_context_has_the_memory_of_its_profile(report: Report) -> None:
    """A context of a small batch does not take the memory of the largest."""
    case = report.cases["load several profiles"]

    made = "ICudaEngine.create_execution_context(ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE)"
    assert case.calls.count(made) == 3
    assert case.said[1] == "7000"


@only_8
def test_8_counts_the_largest_profile_for_each(report: Report) -> None:
    """TensorRT 8.6 gives every context the memory of the largest profile."""
    assert report.cases["load several profiles"].said[1] == str(3 * 4096)


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
        ("build of which a profile is lost", "BuildError: the engine has other optimization profiles"),
        ("load profiles in another order", "RunError: the engine has the profiles (4, 4, 4), (1, 1, 1)"),
        ("load a profile that cannot be used", "RunError: the engine's optimization profile cannot be used"),
    ],
)
def test_failures_are_told(report: Report, name: str, error: str) -> None:
    """A refusal by the library is an error of the adapter."""
    assert report.cases[name].error == error


def test_code_in_an_engine_is_run_on_demand_alone(report: Report) -> None:
    """The library may load the lean runtime in an engine only if the caller allows it."""
    allowed = "Runtime.engine_host_code_allowed.set(True)"

    assert allowed in report.cases["load with its lean runtime"].calls
    assert allowed not in report.cases["load"].calls


# TensorRT 8.6


@only_8
def test_8_takes_explicit_batches(report: Report) -> None:
    """8.6 makes networks with an explicit batch (flag 0), and reads the graph of opset 17."""
    calls = report.cases["build fp16 plain"].calls

    assert "Builder.create_network(1)" in calls
    assert "OnnxParser.parse_from_file('graph17.onnx')" in calls


@only_8
@pytest.mark.parametrize("name", [name for name in BUILDS if name.split()[1] in {"bf16", "fp8"}])
def test_8_refuses_newer_types(report: Report, name: str) -> None:
    """8.6 has no bfloat16 and no FP8 graphs, and says so before anything is built."""
    case = report.cases[name]

    assert case.error.startswith("UnsupportedError: tensorrt 8.6.1 has no ")
    assert case.calls == ()


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
@pytest.mark.parametrize(("name", "budget", "streams"), [("without", 1024, "True"), ("with", 4096, "False")])
def test_weights_are_streamed_where_the_gpu_lacks_the_room(
    report: Report, name: str, budget: int, streams: str
) -> None:
    """The library's automatic budget is set before any context is created."""
    case = report.cases[f"load {name} room for the weights"]
    calls = [call.partition("(")[0] for call in case.calls]

    assert f"ICudaEngine.weight_streaming_budget_v2.set({budget})" in case.calls
    assert calls.index("ICudaEngine.weight_streaming_budget_v2.set") < calls.index(
        "ICudaEngine.create_execution_context"
    )
    assert case.said[5] == streams


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
