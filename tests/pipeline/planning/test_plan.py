"""Plans: variants, their names, and the look-up of subjects."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from model_artifacts.errors import UsageError
from model_artifacts.records import CPU_TARGET, GPU_TARGET, Backend, Graph, Precision
from pipeline.planning.plan import Plan
from tests.support.hosts import H100, L4, TRT10, TRT86, host, workers
from tests.support.plans import PLANS, commands_of, config_of, engines_of, farm_plan, plan_of, schedule_of


def test_layers_that_are_left_make_variants_of_their_own() -> None:
    """Beside plain int8 there is a mixed graph for TensorRT and one for processors, and nothing where none is named."""
    left = plan_of(precisions=["int8", "fp8"], leave_unquantized={"int8": ["conv"]})
    assert left.graphs == (Graph.FP32, Graph.INT8, Graph.INT8_CPU, Graph.FP8, Graph.INT8_MIXED, Graph.INT8_MIXED_CPU)
    engines = [variant.name for variant in left.variants if variant.backend is Backend.TENSORRT]
    assert engines == ["int8-b1-ws1GiB", "int8-mixed-b1-ws1GiB", "fp8-b1-ws1GiB"]
    assert {step.subject for step in schedule_of(left).on_demand if step.stage == "sensitivity"} == {"m/int8", "m/fp8"}
    assert not any(graph.is_mixed for graph in plan_of(precisions=["int8"]).graphs)


MODULES = (
    "eager-fp32",
    "eager-fp16",
    "eager-fp16-channels_last",
    "onnxruntime-fp16",
    "torch_compile-fp16-b1-ws1GiB",
    "dynamo-fp16-b1-ws1GiB",
)
"""What runs on a GPU beside engines, where fp16 is the only precision."""


def test_plan_of_one_precision_is_spelt_out() -> None:
    """The smallest matrix has exactly these steps."""
    assert [
        step.command.removeprefix("python -m pipeline ") for step in schedule_of(plan_of(precisions=["fp16"])).steps
    ] == [
        "source m",
        "data m",
        "export m/fp32",
        "export m/fp16",
        "rounding m/fp32",
        "rounding m/tf32",
        "rounding m/fp16",
        "build m/cpu-x86_64/eager-fp32",
        "build m/cpu-x86_64/onnxruntime-fp16",
        "build m/rtx-sm80+/fp16-b1-ws1GiB",
        *(f"build m/gpu/{name}" for name in MODULES),
        "validate m/cpu-x86_64/eager-fp32",
        "validate m/cpu-x86_64/onnxruntime-fp16",
        "validate m/rtx-sm80+/fp16-b1-ws1GiB",
        *(f"validate m/gpu/{name}" for name in MODULES),
        "benchmark m/cpu-x86_64",
        "benchmark m/rtx-sm80+",
        "benchmark m/gpu",
        "manifest m",
        "report m",
    ]


def test_fp32_graph_is_always_exported() -> None:
    """Quantisation starts from the FP32 graph, which is made even where no variant runs it."""
    plan = plan_of(precisions=["int8"])
    assert plan.graphs == (Graph.FP32, Graph.INT8, Graph.INT8_CPU)
    assert commands_of(plan, "export") == ["m/fp32"]
    assert commands_of(plan, "quantize") == ["m/int8", "m/int8-cpu"]


def test_eager_fp32_is_always_the_first_variant() -> None:
    """The baseline that speed-ups are of is built whatever the precisions are."""
    first = plan_of(precisions=["int8"]).variants[0]
    assert (first.backend, first.precision, first.graph) == (Backend.EAGER, Precision.FP32, None)


def test_bf16_runs_on_the_reference_evaluator() -> None:
    """ONNX Runtime has no bf16 on a processor, so that another evaluator takes the graph."""
    (variant,) = [variant for variant in plan_of(precisions=["bf16"]).variants if variant.graph is Graph.BF16][:1]
    assert (variant.target, variant.backend) == (CPU_TARGET, Backend.ONNX_REFERENCE)


def test_modules_have_no_int8() -> None:
    """A Torch-TensorRT module is cast to its precision, and int8 is no cast: only the baseline is left."""
    variants = [variant for variant in plan_of(precisions=["int8"]).variants if variant.target == GPU_TARGET]
    assert [variant.name for variant in variants] == ["eager-fp32"]


@pytest.mark.parametrize(
    ("precisions", "name"),
    [
        (["fp32", "bf16", "fp16"], "inductor-fp16"),
        (["fp32", "bf16"], "inductor-bf16"),
        (["tf32", "fp32"], "inductor-tf32"),
    ],
)
def test_inductor_is_tuned_in_the_fastest_precision_only(precisions: list[str], name: str) -> None:
    """It takes minutes for each batch size, and one of it is enough to compare with."""
    plan = plan_of(precisions=precisions, benchmark={"baselines": ["inductor"]})
    names = [variant.name for variant in plan.variants if variant.backend is Backend.INDUCTOR]
    assert names == [name]


def test_modules_are_planned_in_the_named_precisions_and_profiles_alone() -> None:
    """They take a minute or two each, and engines keep the whole matrix."""
    matrix = {"precisions": ["fp32", "fp16", "bf16", "int8"], "profiles": [1, {"min": 1, "opt": 8, "max": 32}]}
    every, few = (
        [variant.name for variant in plan_of(**matrix, torch_tensorrt=changes).variants]
        for changes in ({}, {"precisions": ["fp16"], "profiles": [1]})
    )

    assert [name for name in few if name.startswith(("dynamo", "torch_compile"))] == [
        "torch_compile-fp16-b1-ws1GiB",
        "dynamo-fp16-b1-ws1GiB",
    ]
    assert [name for name in every if name.startswith("dynamo")] == [
        f"dynamo-{precision}-{profile}-ws1GiB"
        for precision in ("fp32", "fp16", "bf16")
        for profile in ("b1", "b1-8-32")
    ]
    assert set(every) - set(few) == {
        *(name for name in every if name.startswith(("dynamo", "torch_compile")) and "fp16-b1-ws" not in name),
        "eager-bf16",
        "eager-bf16-channels_last",
    }
    assert {"eager-fp32", "eager-fp16", "eager-fp16-channels_last"} <= set(few)


def test_baselines_are_built_as_the_configuration_says() -> None:
    """The plan has eager and the baselines of the configuration, and no others."""
    for wanted in ([], ["inductor"], ["onnxruntime"], ["onnxruntime_tensorrt"]):
        plan = plan_of(precisions=["fp16"], benchmark={"baselines": wanted})
        found = {variant.backend.value for variant in plan.variants if variant.target == GPU_TARGET}
        assert found - {"dynamo", "torch_compile"} == {"eager", *wanted}


def test_onnxruntimes_tensorrt_is_planned_like_an_engine_if_named() -> None:
    """It is no default, and has the profiles and the largest workspace, in fp16 and int8."""
    changes = {"precisions": ["fp32", "fp16", "int8", "fp8"], "profiles": [1, {"min": 1, "opt": 8, "max": 32}]}
    named = plan_of(**changes, workspaces=["16MiB", "1GiB"], benchmark={"baselines": ["onnxruntime_tensorrt"]})
    names = [item.name for item in named.variants if item.backend is Backend.ONNXRUNTIME_TENSORRT]

    assert names == [
        f"onnxruntime_tensorrt-{precision}-{profile}-ws1GiB"
        for precision in ("fp16", "int8")
        for profile in ("b1", "b1-8-32")
    ]
    assert Backend.ONNXRUNTIME_TENSORRT not in {item.backend for item in plan_of(**changes).variants}


def test_modules_are_saved_as_the_configuration_says() -> None:
    """The plan has one artifact for each format of the configuration, and no others."""
    for formats in (["exported_program"], ["aot_inductor"], ["exported_program", "aot_inductor"]):
        plan = plan_of(precisions=["fp16"], torch_tensorrt={"formats": formats})
        backends = {variant.backend for variant in plan.variants}
        assert (Backend.DYNAMO in backends) == ("exported_program" in formats)
        assert (Backend.DYNAMO_AOTI in backends) == ("aot_inductor" in formats)


def test_modules_belong_to_a_type_of_gpu_and_a_version_of_torch() -> None:
    """A second type of GPU, or another torch, adds a folder and overwrites none."""
    plan = Plan(config_of(device="all"), host(H100, L4, flavours=(TRT86,)))
    assert [target.name for target in plan.module_targets] == ["sm90-h100-80gb-hbm3-torch2.11", "sm89-l4-torch2.11"]


@pytest.mark.parametrize(
    ("target", "baseline"),
    [
        (CPU_TARGET, f"m/{CPU_TARGET}/eager-fp32"),
        ("sm89-l4-trt8.6", "m/sm89-l4-torch2.11/eager-fp32"),
        ("sm89-l4-torch2.11", "m/sm89-l4-torch2.11/eager-fp32"),
    ],
)
def test_the_baseline_runs_where_the_target_does(target: str, baseline: str) -> None:
    """Engines and modules are held against eager FP32 on the same GPU, the CPU's variants against it on the CPU."""
    found = Plan(config_of(device="all"), host(H100, L4, flavours=(TRT86,))).baseline(target)
    assert found is not None
    assert found.id == baseline


def test_a_module_says_which_gpu_it_needs() -> None:
    """A module of a host without a GPU needs any; one of a GPU needs that type."""
    (bare, *_), (tuned, *_) = (
        [variant for variant in plan.variants if variant.backend is Backend.DYNAMO]
        for plan in (plan_of(), Plan(config_of(), host(H100)))
    )
    assert plan_of().hardware(bare) == "an NVIDIA GPU"
    assert Plan(config_of(), host(H100)).hardware(tuned) == "an NVIDIA H100 80GB HBM3"


def test_tf32_is_the_fp32_graph_under_a_name_of_its_own() -> None:
    """TF32 multiplies FP32's graph otherwise: it has no file of its own, and no variant on a processor."""
    plan = plan_of(precisions=["tf32"])
    assert plan.graphs == (Graph.FP32,)
    assert [(engine.name, engine.graph) for engine in engines_of(plan)] == [("tf32-b1-ws1GiB", Graph.FP32)]
    assert [variant.name for variant in plan.variants if variant.target == CPU_TARGET] == ["eager-fp32"]


def test_tf32_and_fp32_differ_in_precision_alone() -> None:
    """Both engines are built from one export."""
    plan = plan_of(precisions=["fp32", "tf32"])
    assert commands_of(plan, "export") == ["m/fp32"]
    assert [engine.precision for engine in engines_of(plan)] == [Precision.FP32, Precision.TF32]


def test_fp8_is_quantised_as_int8_is() -> None:
    """FP8 is calibrated, ONNX Runtime simulates it on a processor, and no module is cast to it."""
    plan = plan_of(precisions=["fp8"])
    assert commands_of(plan, "quantize") == ["m/fp8"]
    assert [(variant.target, variant.backend) for variant in plan.variants if variant.precision is Precision.FP8] == [
        (CPU_TARGET, Backend.ONNXRUNTIME),
        ("rtx-sm80+", Backend.TENSORRT),
    ]


def test_workspaces_are_built_smallest_first() -> None:
    """The order is that of bytes, not of the file or of the text."""
    plan = plan_of(workspaces=["1GiB", "64MiB", "512MiB", "100000B"])
    assert [variant.workspace.label for variant in engines_of(plan) if variant.workspace] == [
        "100000B",
        "64MiB",
        "512MiB",
        "1GiB",
    ]


def test_family_is_the_same_variant_with_smaller_workspaces() -> None:
    """A variant's family differs in nothing but a smaller workspace, smallest first."""
    plan = plan_of(precisions=["fp32", "fp16"], profiles=[1, 8], workspaces=["3GiB", "1GiB", "2GiB"])
    family = plan.family(plan.variant("m/rtx-sm80+/fp16-b8-ws3GiB"))
    assert [other.name for other in family] == ["fp16-b8-ws1GiB", "fp16-b8-ws2GiB"]


@pytest.mark.parametrize("subject", ["m/cpu-x86_64/eager-fp32", "m/rtx-sm80+/fp32-b1-ws1GiB"])
def test_family_of_the_smallest_is_empty(subject: str) -> None:
    """A variant without a workspace, or with the smallest one, has no family."""
    plan = plan_of(workspaces=["1GiB", "2GiB"])
    assert plan.family(plan.variant(subject)) == ()


def test_variant_is_found_by_its_id() -> None:
    """Every variant's id leads back to it."""
    plan = plan_of(profiles=[1, {"min": 1, "opt": 2, "max": 4}])
    assert [plan.variant(variant.id) for variant in plan.variants] == list(plan.variants)


def test_misspelt_variant_is_told_the_closest() -> None:
    """A variant that is not there is answered with those that resemble it, the closest first."""
    with pytest.raises(UsageError) as caught:
        plan_of().variant("m/rtx-sm80+/fp23-b1-ws1GiB")
    lines = str(caught.value).splitlines()
    assert lines[0] == "no variant 'm/rtx-sm80+/fp23-b1-ws1GiB' in this configuration"
    assert lines[1].startswith("  expected: one of m/rtx-sm80+/fp32-b1-ws1GiB")
    assert (
        lines[2]
        == "  fix:      `python -m pipeline plan` lists every step, with the `--config` of this command if it has one"
    )


def test_variant_like_no_other_is_told_the_first_ones() -> None:
    """An unknown name without a similar one is answered with at most five names."""
    with pytest.raises(UsageError) as caught:
        plan_of(precisions=["fp32", "fp16", "bf16", "int8"]).variant("???")
    expected = str(caught.value).splitlines()[1]
    assert expected.count("m/") == 5
    assert expected.endswith("m/cpu-x86_64/onnxruntime-int8")


@given(PLANS)
@settings(deadline=None)
def test_no_two_variants_share_an_id(plan: Plan) -> None:
    """Ids are unique in every matrix, without regard to case, because folders are named after them."""
    names = [variant.id.lower() for variant in plan.variants]
    assert len(set(names)) == len(names)


TUNED: dict[str, object] = {"accelerator": "H100", "flavour": "tensorrt"}
AHEAD: dict[str, object] = {"flavour": "tensorrt_rtx"}
OF_H100 = workers("H100 with tensorrt", host(H100, flavours=(TRT10,)))

OF_PROCESSORS = workers("a processor with tensorrt_rtx", host(torch="absent"))


def test_farms_baseline_is_of_the_same_machines() -> None:
    """An engine's baseline is eager FP32 on its own GPU, and machines without torch have no baseline."""
    plan = Plan(farm_plan(TUNED, AHEAD), host(), (OF_H100, OF_PROCESSORS))
    baseline = plan.baseline("sm90-h100-80gb-hbm3-trt10.15")
    assert baseline is not None
    assert baseline.id == "m/sm90-h100-80gb-hbm3-torch2.11/eager-fp32"
    assert plan.baseline("rtx-sm80+") is None


def test_machines_without_torch_build_no_modules() -> None:
    """No module is planned, and none is listed as skipped."""
    plan = Plan(farm_plan(AHEAD), host(), (OF_PROCESSORS,))
    assert plan.module_targets == ()
    assert plan.targets == (CPU_TARGET, "rtx-sm80+")
