"""From a configuration to variants, steps, and what comes before what."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_artifacts.errors import UsageError
from model_artifacts.records import (
    CPU_TARGET,
    GPU_TARGET,
    Backend,
    EngineFlavour,
    Gpu,
    Graph,
    Precision,
    Tool,
    Variant,
    Workspace,
)
from pipeline.config.settings import Config
from pipeline.planning.plan import Plan
from pipeline.planning.steps import Stage, Step
from tests.support.hosts import H100, L4, RTX, TRT10, TRT86, host, workers


def _config(**values: object) -> Config:
    document = {"model": {"name": "m"}, "profiles": [1], "workspaces": ["1GiB"], "precisions": ["fp32"], **values}
    return Config.model_validate(document)


def _plan(**values: object) -> Plan:
    return Plan(_config(**values))


def _engines(plan: Plan) -> list[Variant]:
    return [variant for variant in plan.variants if variant.backend is Backend.TENSORRT]


def _commands(plan: Plan, stage: Stage) -> list[str]:
    return [step.subject for step in plan.steps if step.stage is stage]


def test_steps_come_in_the_order_of_the_stages() -> None:
    """Every stage's steps stand together, source first and manifest last."""
    stages = [step.stage for step in _plan(precisions=["int8", "fp16"]).steps]
    assert list(dict.fromkeys(stages)) == [stage for stage in Stage if stage.by_default]
    assert stages == sorted(stages, key=list(Stage).index)


def test_layers_that_are_left_make_variants_of_their_own() -> None:
    """Beside plain int8 there is a mixed graph for TensorRT and one for processors, and nothing where none is named."""
    left = _plan(precisions=["int8", "fp8"], leave_unquantized={"int8": ["conv"]})
    assert left.graphs == (Graph.FP32, Graph.INT8, Graph.INT8_CPU, Graph.FP8, Graph.INT8_MIXED, Graph.INT8_MIXED_CPU)
    engines = [variant.name for variant in left.variants if variant.backend is Backend.TENSORRT]
    assert engines == ["int8-b1-ws1GiB", "int8-mixed-b1-ws1GiB", "fp8-b1-ws1GiB"]
    assert {step.subject for step in left.on_demand if step.stage is Stage.SENSITIVITY} == {"m/int8", "m/fp8"}
    assert not any(graph.is_mixed for graph in _plan(precisions=["int8"]).graphs)


MODULES = (
    "eager-fp32",
    "eager-fp16",
    "eager-fp16-channels_last",
    "inductor-fp16",
    "onnxruntime-fp16",
    "torch_compile-fp16-b1-ws1GiB",
    "dynamo-fp16-b1-ws1GiB",
)
"""What runs on a GPU beside engines, where fp16 is the only precision."""


def test_plan_of_one_precision_is_spelt_out() -> None:
    """The smallest matrix has exactly these steps."""
    assert [step.command.removeprefix("python -m pipeline ") for step in _plan(precisions=["fp16"]).steps] == [
        "source m",
        "data m",
        "export m/fp32",
        "export m/fp16",
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
    plan = _plan(precisions=["int8"])
    assert plan.graphs == (Graph.FP32, Graph.INT8, Graph.INT8_CPU)
    assert _commands(plan, Stage.EXPORT) == ["m/fp32"]
    assert _commands(plan, Stage.QUANTIZE) == ["m/int8", "m/int8-cpu"]


def test_eager_fp32_is_always_the_first_variant() -> None:
    """The baseline that speed-ups are of is built whatever the precisions are."""
    first = _plan(precisions=["int8"]).variants[0]
    assert (first.backend, first.precision, first.graph) == (Backend.EAGER, Precision.FP32, None)


def test_bf16_runs_on_the_reference_evaluator() -> None:
    """ONNX Runtime has no bf16 on a processor, so that another evaluator takes the graph."""
    (variant,) = [variant for variant in _plan(precisions=["bf16"]).variants if variant.graph is Graph.BF16][:1]
    assert (variant.target, variant.backend) == (CPU_TARGET, Backend.ONNX_REFERENCE)


def test_modules_have_no_int8() -> None:
    """A Torch-TensorRT module is cast to its precision, and int8 is no cast: only the baseline is left."""
    variants = [variant for variant in _plan(precisions=["int8"]).variants if variant.target == GPU_TARGET]
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
    names = [variant.name for variant in _plan(precisions=precisions).variants if variant.backend is Backend.INDUCTOR]
    assert names == [name]


def test_baselines_are_built_as_the_configuration_says() -> None:
    """Eager is always there; what is not asked for is not planned."""
    for wanted in ([], ["inductor"], ["onnxruntime"]):
        plan = _plan(precisions=["fp16"], benchmark={"baselines": wanted})
        found = {variant.backend.value for variant in plan.variants if variant.target == GPU_TARGET}
        assert found - {"dynamo", "torch_compile"} == {"eager", *wanted}


def test_modules_are_saved_as_the_configuration_says() -> None:
    """Each format is an artifact of its own, and what is not asked for is not planned."""
    for formats in (["exported_program"], ["aot_inductor"], ["exported_program", "aot_inductor"]):
        plan = _plan(precisions=["fp16"], torch_tensorrt={"formats": formats})
        backends = {variant.backend for variant in plan.variants}
        assert (Backend.DYNAMO in backends) == ("exported_program" in formats)
        assert (Backend.DYNAMO_AOTI in backends) == ("aot_inductor" in formats)


def test_modules_belong_to_a_type_of_gpu_and_a_version_of_torch() -> None:
    """A second type of GPU, or another torch, adds a folder and overwrites none."""
    plan = Plan(_config(device="all"), host(H100, L4, flavours=(TRT86,)))
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
    found = Plan(_config(device="all"), host(H100, L4, flavours=(TRT86,))).baseline(target)
    assert found is not None
    assert found.id == baseline


def test_a_module_says_which_gpu_it_needs() -> None:
    """A module of a host without a GPU needs any; one of a GPU needs that type."""
    (bare, *_), (tuned, *_) = (
        [variant for variant in plan.variants if variant.backend is Backend.DYNAMO]
        for plan in (_plan(), Plan(_config(), host(H100)))
    )
    assert _plan().hardware(bare) == "an NVIDIA GPU"
    assert Plan(_config(), host(H100)).hardware(tuned) == "an NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("capabilities", "target", "needs"),
    [
        ("80+", "rtx-sm80+", "an SM80+ GPU"),
        ([120, 89, 86, 80], "rtx-sm80+", "an SM80+ GPU"),
        ([89, 75], "rtx-sm75-89", "a GPU of SM 75, 89"),
        ([121], "rtx-sm121", "a GPU of SM 121"),
    ],
)
def test_engine_target_names_the_gpu_generations(capabilities: object, target: str, needs: str) -> None:
    """An engine's target, and what it says it needs, follow from the compute capabilities."""
    plan = _plan(tensorrt={"compute_capabilities": capabilities})
    (engine,) = _engines(plan)
    assert ([found.name for found in plan.engine_targets], engine.target) == ([target], target)
    assert plan.hardware(engine) == needs


@pytest.mark.parametrize(
    ("flavours", "target"),
    [
        ((TRT86,), "sm90-h100-80gb-hbm3-trt8.6"),
        ((TRT10, RTX), "sm90-h100-80gb-hbm3-trt10.15"),
        ((RTX,), "rtx-sm80+"),
    ],
)
def test_engine_target_follows_from_gpu_and_flavour(flavours: tuple[Tool, ...], target: str) -> None:
    """What tunes on the GPU belongs to its type and the library's version; what does not, to generations."""
    (found,) = Plan(_config(), host(H100, flavours=flavours)).engine_targets
    assert (found.name, found.gpu) == (target, H100)


def test_every_type_of_gpu_is_a_target_of_its_own() -> None:
    """Engines for two types stand side by side, each tuned on its own GPU."""
    plan = Plan(_config(device="all"), host(H100, L4, flavours=(TRT86,)))
    assert [(found.name, found.gpu) for found in plan.engine_targets] == [
        ("sm90-h100-80gb-hbm3-trt8.6", H100),
        ("sm89-l4-trt8.6", L4),
    ]
    assert [engine.target for engine in _engines(plan)] == ["sm90-h100-80gb-hbm3-trt8.6", "sm89-l4-trt8.6"]


def test_portable_engines_are_one_target_whatever_gpus_there_are() -> None:
    """Engines that are built ahead of time are built once, and tried on the first GPU."""
    (found,) = Plan(_config(device="all"), host(H100, L4)).engine_targets
    assert (found.name, found.gpu, found.compute_capabilities) == ("rtx-sm80+", H100, (80, 86, 89, 120))


def test_current_is_a_target_of_the_gpu() -> None:
    """TensorRT-RTX's engines for this very GPU are not those that run on others."""
    config = _config(tensorrt={"compute_capabilities": "current"})
    (found,) = Plan(config, host(H100)).engine_targets
    assert (found.name, found.compute_capabilities) == ("sm90-h100-80gb-hbm3-rtx1.4", ())


def test_tensorrt_without_a_gpu_is_a_target_that_nothing_is_built_for() -> None:
    """The variants are planned, so that the manifest can say why they were skipped."""
    plan = Plan(_config(), host(flavours=(TRT86,)))
    (found,) = plan.engine_targets
    assert (found.name, found.gpu, found.compute_capabilities) == ("trt8.6", None, ())
    assert [plan.hardware(engine) for engine in _engines(plan)] == ["an NVIDIA GPU"]


def test_configured_flavour_goes_before_the_one_installed() -> None:
    """A flavour that the file names is taken, with the version that this host has of it."""
    config = _config(tensorrt={"flavour": "tensorrt_rtx"})
    plan = Plan(config, host(H100, flavours=(TRT10, RTX)))
    (found,) = plan.engine_targets
    assert (found.flavour, found.flavour_version) == (EngineFlavour.TENSORRT_RTX, "1.4.0.76")


def test_flavour_that_is_not_installed_has_no_version() -> None:
    """Of a flavour that this host lacks there is no version to know."""
    (found,) = Plan(_config(tensorrt={"flavour": "tensorrt"}), host(flavours=(RTX,))).engine_targets
    assert found.flavour_version == "absent"


@pytest.mark.parametrize(
    ("config", "installed", "target"),
    [
        ({"flavour": "tensorrt"}, RTX, "trt"),
        ({"flavour": "tensorrt_rtx", "compute_capabilities": "current"}, TRT10, "rtx"),
    ],
)
@pytest.mark.parametrize(("gpus", "prefix"), [((), ""), ((H100,), "sm90-h100-80gb-hbm3-")], ids=["no GPU", "H100"])
def test_target_of_a_flavour_that_is_not_installed_has_no_version(
    config: dict[str, object], installed: Tool, target: str, gpus: tuple[Gpu, ...], prefix: str
) -> None:
    """Where the library's version is not known, its name alone stands in the target's."""
    (found,) = Plan(_config(tensorrt=config), host(*gpus, flavours=(installed,))).engine_targets
    assert found.name == prefix + target


def test_host_without_a_flavour_plans_for_tensorrt_rtx() -> None:
    """Where neither is installed, the default is what installs anywhere."""
    (found,) = Plan(_config()).engine_targets
    assert found.flavour is EngineFlavour.TENSORRT_RTX


def test_tuned_engine_needs_the_gpu_that_it_was_tuned_on() -> None:
    """An engine of a flavour that tunes runs on the type of GPU that it names."""
    plan = Plan(_config(), host(H100, flavours=(TRT86,)))
    assert [plan.hardware(engine) for engine in _engines(plan)] == ["an NVIDIA H100 80GB HBM3"]


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (CPU_TARGET, None),
        ("sm90-h100-80gb-hbm3-trt8.6", 0),
        ("sm89-l4-trt8.6", 1),
        ("sm90-h100-80gb-hbm3-torch2.11", 0),
        ("sm89-l4-torch2.11", 1),
    ],
)
def test_each_target_runs_on_its_own_gpu(target: str, index: int | None) -> None:
    """Engines and modules run on the type that they were made for, and the CPU's variants on none."""
    gpu = Plan(_config(device="all"), host(H100, L4, flavours=(TRT86,))).gpu(target)
    assert (gpu and gpu.index) == index


def test_host_without_a_gpu_runs_no_target_on_one() -> None:
    """Where there is no GPU, no target has one."""
    plan = Plan(_config(), host())
    assert {plan.gpu(target) for target in plan.targets} == {None}


def test_tf32_is_the_fp32_graph_under_a_name_of_its_own() -> None:
    """TF32 multiplies FP32's graph otherwise: it has no file of its own, and no variant on a processor."""
    plan = _plan(precisions=["tf32"])
    assert plan.graphs == (Graph.FP32,)
    assert [(engine.name, engine.graph) for engine in _engines(plan)] == [("tf32-b1-ws1GiB", Graph.FP32)]
    assert [variant.name for variant in plan.variants if variant.target == CPU_TARGET] == ["eager-fp32"]


def test_tf32_and_fp32_differ_in_precision_alone() -> None:
    """Both engines are built from one export."""
    plan = _plan(precisions=["fp32", "tf32"])
    assert _commands(plan, Stage.EXPORT) == ["m/fp32"]
    assert [engine.precision for engine in _engines(plan)] == [Precision.FP32, Precision.TF32]


def test_fp8_is_quantised_as_int8_is() -> None:
    """FP8 is calibrated, ONNX Runtime simulates it on a processor, and no module is cast to it."""
    plan = _plan(precisions=["fp8"])
    assert _commands(plan, Stage.QUANTIZE) == ["m/fp8"]
    assert [(variant.target, variant.backend) for variant in plan.variants if variant.precision is Precision.FP8] == [
        (CPU_TARGET, Backend.ONNXRUNTIME),
        ("rtx-sm80+", Backend.TENSORRT),
    ]


def test_shares_are_of_each_targets_own_gpu() -> None:
    """A quarter of each GPU's memory is another size on another type, under one label."""
    plan = Plan(_config(device="all", workspaces=["25%", "8GiB"]), host(H100, L4, flavours=(TRT86,)))
    assert [(engine.target[:4], engine.workspace) for engine in _engines(plan)] == [
        ("sm90", Workspace(bytes=8 * 2**30, label="8GiB")),
        ("sm90", Workspace(bytes=20 * 2**30, label="25pct")),
        ("sm89", Workspace(bytes=6 * 2**30, label="25pct")),
        ("sm89", Workspace(bytes=8 * 2**30, label="8GiB")),
    ]


def test_needs_of_the_other_targets_are_phrases() -> None:
    """What runs on a processor and what runs on the host's own GPU say so."""
    plan = _plan()
    assert {
        variant.target: plan.hardware(variant) for variant in plan.variants if variant.backend is not Backend.TENSORRT
    } == {
        CPU_TARGET: "an x86-64 processor",
        GPU_TARGET: "an NVIDIA GPU",
    }


def test_targets_are_listed_once_in_the_order_of_the_variants() -> None:
    """There is one interleaved benchmark a target."""
    assert _plan(precisions=["fp32", "fp16"]).targets == (CPU_TARGET, "rtx-sm80+", GPU_TARGET)


def test_workspaces_are_built_smallest_first() -> None:
    """The order is that of bytes, not of the file or of the text."""
    plan = _plan(workspaces=["1GiB", "64MiB", "512MiB", "100000"])
    assert [variant.workspace.label for variant in _engines(plan) if variant.workspace] == [
        "100000",
        "64MiB",
        "512MiB",
        "1GiB",
    ]


def test_family_is_the_same_variant_with_smaller_workspaces() -> None:
    """A variant's family differs in nothing but a smaller workspace, smallest first."""
    plan = _plan(precisions=["fp32", "fp16"], profiles=[1, 8], workspaces=["3GiB", "1GiB", "2GiB"])
    family = plan.family(plan.variant("m/rtx-sm80+/fp16-b8-ws3GiB"))
    assert [other.name for other in family] == ["fp16-b8-ws1GiB", "fp16-b8-ws2GiB"]


@pytest.mark.parametrize("subject", ["m/cpu-x86_64/eager-fp32", "m/rtx-sm80+/fp32-b1-ws1GiB"])
def test_family_of_the_smallest_is_empty(subject: str) -> None:
    """What has no workspace, and what has the smallest, has no family."""
    plan = _plan(workspaces=["1GiB", "2GiB"])
    assert plan.family(plan.variant(subject)) == ()


@pytest.mark.parametrize(
    ("step", "needs"),
    [
        ("source m", []),
        ("data m", ["source m"]),
        ("export m/fp16", ["source m"]),
        ("quantize m/int8", ["data m", "export m/fp32"]),
        ("build m/cpu-x86_64/eager-fp32", ["source m"]),
        ("build m/cpu-x86_64/onnxruntime-fp16", ["export m/fp16"]),
        ("build m/rtx-sm80+/int8-b1-ws1GiB", ["quantize m/int8"]),
        ("build m/gpu/dynamo-fp16-b1-ws1GiB", ["source m"]),
        ("validate m/gpu/dynamo-fp16-b1-ws1GiB", ["data m", "build m/gpu/dynamo-fp16-b1-ws1GiB"]),
        ("benchmark m/gpu", ["data m"]),
        ("manifest m", []),
    ],
)
def test_each_step_needs_what_it_reads(step: str, needs: list[str]) -> None:
    """A step needs the steps whose results it cannot do without."""
    plan = _plan(precisions=["fp16", "int8"])
    stage, subject = step.split(" ")
    found = plan.dependencies(Step(Stage(stage), subject)).requires
    assert [f"{other.stage.value} {other.subject}" for other in found] == needs


def test_build_follows_the_builds_with_smaller_workspaces() -> None:
    """An engine may turn out to be that of a smaller workspace, all of which are built before, one after the other."""
    plan = _plan(workspaces=["3GiB", "1GiB", "2GiB"])
    before = {
        size: [step.subject[-6:] for step in plan.dependencies(Step(stage, f"m/rtx-sm80+/fp32-b1-ws{size}")).follows]
        for size in ("1GiB", "2GiB", "3GiB")
        for stage in (Stage.BUILD, Stage.VALIDATE)
    }
    assert before == {"1GiB": [], "2GiB": ["ws1GiB"], "3GiB": ["ws2GiB"]}


def test_benchmark_follows_everything_that_would_disturb_the_clock() -> None:
    """All builds, all validations and the benchmarks before it come first, whether or not they succeed."""
    plan = _plan()
    follows = plan.dependencies(Step(Stage.BENCHMARK, "m/rtx-sm80+")).follows
    expected = {step for step in plan.steps if step.stage in {Stage.BUILD, Stage.VALIDATE}}
    assert set(follows) == expected | {Step(Stage.BENCHMARK, "m/cpu-x86_64")}


def test_manifest_follows_everything() -> None:
    """The manifest tells of failures too, so that it comes after all the other steps and needs none."""
    plan = _plan()
    *others, manifest, report = plan.steps
    assert plan.dependencies(manifest).follows == tuple(others)
    assert plan.dependencies(report).requires == (manifest,)


def test_variant_is_found_by_its_id() -> None:
    """Every variant's id leads back to it."""
    plan = _plan(profiles=[1, {"min": 1, "opt": 2, "max": 4}])
    assert [plan.variant(variant.id) for variant in plan.variants] == list(plan.variants)


def test_graph_is_found_by_its_subject() -> None:
    """`m/int8-cpu` names the graph for processors."""
    assert _plan(precisions=["int8"]).graph("m/int8-cpu") is Graph.INT8_CPU


def test_target_is_found_by_its_subject() -> None:
    """`m/rtx-sm80+` names the engines' target."""
    assert _plan().target("m/rtx-sm80+") == "rtx-sm80+"


def test_model_is_accepted_by_its_name() -> None:
    """The plan's own model is no error."""
    _plan().check_model("m")  # does not raise


def test_misspelt_variant_is_told_the_closest() -> None:
    """A variant that is not there is answered with those that resemble it, the closest first."""
    with pytest.raises(UsageError) as caught:
        _plan().variant("m/rtx-sm80+/fp23-b1-ws1GiB")
    lines = str(caught.value).splitlines()
    assert lines[0] == "no variant 'm/rtx-sm80+/fp23-b1-ws1GiB' in this configuration"
    assert lines[1].startswith("  expected: one of m/rtx-sm80+/fp32-b1-ws1GiB")
    assert lines[2] == "  fix:      `python -m pipeline plan` lists every step"


def test_variant_like_no_other_is_told_the_first_ones() -> None:
    """What resembles nothing is answered with at most five of what there is."""
    with pytest.raises(UsageError) as caught:
        _plan(precisions=["fp32", "fp16", "bf16", "int8"]).variant("???")
    expected = str(caught.value).splitlines()[1]
    assert expected.count("m/") == 5
    assert expected.endswith("m/cpu-x86_64/onnxruntime-int8")


@pytest.mark.parametrize("subject", ["m/int8", "fp32", "other/fp32"])
def test_graph_that_no_variant_needs_is_refused(subject: str) -> None:
    """A graph outside the plan is a usage error that names the kind."""
    with pytest.raises(UsageError, match=f"no graph '{subject}' in this configuration"):
        _plan().graph(subject)


def test_target_that_is_not_planned_is_refused() -> None:
    """A target outside the plan is a usage error that names the kind."""
    with pytest.raises(UsageError, match="no target 'm/rtx-sm90' in this configuration"):
        _plan().target("m/rtx-sm90")


def test_another_model_is_refused() -> None:
    """A model that the configuration is not about is a usage error with the one it is about."""
    with pytest.raises(UsageError, match=r"(?s)no model 'n' in this configuration\n  expected: .*\bm\b"):
        _plan().check_model("n")


_PLANS = st.builds(
    _plan,
    precisions=st.lists(st.sampled_from([name.value for name in Precision]), min_size=1, unique=True),
    profiles=st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    workspaces=st.lists(st.integers(1, 64).map("{}MiB".format), min_size=1, max_size=3, unique=True),
)


@given(_PLANS)
@settings(deadline=None)
def test_every_plan_is_in_an_order_in_which_it_can_run(plan: Plan) -> None:
    """Whatever the matrix is, what comes before a step stands before it, and is part of the plan."""
    done: set[Step] = set()
    for step in plan.steps:
        before = plan.dependencies(step)
        assert {*before.requires, *before.follows} <= done
        done.add(step)


@given(_PLANS)
@settings(deadline=None)
def test_no_two_variants_share_an_id(plan: Plan) -> None:
    """Whatever the matrix is, ids, which folders are named after, are unique, in any case of letters."""
    names = [variant.id.lower() for variant in plan.variants]
    assert len(set(names)) == len(names)


def _farm(*targets: dict[str, object], **values: object) -> Config:
    return _config(executor="ray", farm={"targets": targets}, **values)


TUNED: dict[str, object] = {"accelerator": "H100", "flavour": "tensorrt"}
AHEAD: dict[str, object] = {"flavour": "tensorrt_rtx"}
OF_H100 = workers("H100 with tensorrt", host(H100, flavours=(TRT10,)))
OF_L4 = workers("L4 with tensorrt_rtx", host(L4, torch="absent"))
OF_PROCESSORS = workers("a processor with tensorrt_rtx", host(torch="absent"))


def test_farm_has_the_targets_of_all_its_machines() -> None:
    """Each in the flavour that it names; modules where the machines have torch."""
    config = _farm(TUNED, {"accelerator": "L4", "flavour": "tensorrt_rtx", "compute_capabilities": "current"}, AHEAD)
    plan = Plan(config, host(), (OF_H100, OF_L4, OF_PROCESSORS))
    engines = [(found.name, found.flavour_version, found.gpu) for found in plan.engine_targets]
    assert engines == [
        ("sm90-h100-80gb-hbm3-trt10.15", "10.15.1.29", H100),
        ("sm89-l4-rtx1.4", "1.4.0.76", L4),
        ("rtx-sm80+", "1.4.0.76", None),
    ]
    assert [found.name for found in plan.module_targets] == ["sm90-h100-80gb-hbm3-torch2.11"]


def test_farm_runs_what_belongs_to_its_targets() -> None:
    """What they share, and what runs on this processor, is made here."""
    plan = Plan(_farm(TUNED, AHEAD), host(), (OF_H100, OF_PROCESSORS))
    where = {
        (step.stage, step.subject.split("/")[1] if "/" in step.subject else ""): plan.workers(step)
        for step in plan.steps
    }
    tuned = {stage for (stage, _), found in where.items() if found == OF_H100}
    assert tuned == {Stage.BUILD, Stage.VALIDATE, Stage.BENCHMARK}
    assert where[Stage.BUILD, "rtx-sm80+"] == OF_PROCESSORS
    assert {found for (_, target), found in where.items() if target in {"", CPU_TARGET, "fp32"}} == {None}
    assert {plan.workers(step) for step in plan.on_demand} == {None, OF_H100, OF_PROCESSORS}


def test_farms_machines_time_without_waiting_for_each_other() -> None:
    """What is timed comes after what its own machines build and validate; here it comes after everything."""
    plan = Plan(_farm(TUNED, AHEAD), host(), (OF_H100, OF_PROCESSORS))
    after = {target: plan.dependencies(Step(Stage.BENCHMARK, f"m/{target}")).follows for target in plan.targets}
    assert {plan.workers(step) for step in after["rtx-sm80+"]} == {OF_PROCESSORS}
    assert {plan.workers(step) for step in after["sm90-h100-80gb-hbm3-trt10.15"]} == {OF_H100}
    assert {plan.workers(step) for step in after[CPU_TARGET]} == {None, OF_H100, OF_PROCESSORS}


def test_farms_baseline_is_of_the_same_machines() -> None:
    """Eager FP32 on the GPU that an engine runs on; machines without torch have none."""
    plan = Plan(_farm(TUNED, AHEAD), host(), (OF_H100, OF_PROCESSORS))
    baseline = plan.baseline("sm90-h100-80gb-hbm3-trt10.15")
    assert baseline is not None
    assert baseline.id == "m/sm90-h100-80gb-hbm3-torch2.11/eager-fp32"
    assert plan.baseline("rtx-sm80+") is None


def test_share_of_memory_is_of_each_targets_own_gpu() -> None:
    """A quarter of an H100 is more than a quarter of an L4."""
    config = _farm(
        TUNED,
        {"accelerator": "L4", "flavour": "tensorrt_rtx", "compute_capabilities": "current"},
        workspaces=["25%"],
    )
    plan = Plan(config, host(), (OF_H100, OF_L4))
    sizes = {variant.target: variant.workspace for variant in _engines(plan)}
    assert sizes["sm90-h100-80gb-hbm3-trt10.15"] == Workspace(bytes=20 * 2**30, label="25pct")
    assert sizes["sm89-l4-rtx1.4"] == Workspace(bytes=6 * 2**30, label="25pct")


def test_machines_without_torch_build_no_modules() -> None:
    """Nor is anything skipped for them."""
    plan = Plan(_farm(AHEAD), host(), (OF_PROCESSORS,))
    assert plan.module_targets == ()
    assert plan.targets == (CPU_TARGET, "rtx-sm80+")
