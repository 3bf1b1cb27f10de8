"""From a configuration to variants, steps, and what comes before what."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.errors import UsageError
from pipeline.plan import CPU_TARGET, GPU_TARGET, Plan, Stage, Step
from pipeline.records import Backend, Graph, Precision


def _plan(**values: object) -> Plan:
    document = {"model": {"name": "m"}, "profiles": [1], "workspaces": ["1GiB"], "precisions": ["fp32"], **values}
    return Plan(Config.model_validate(document))


def _commands(plan: Plan, stage: Stage) -> list[str]:
    return [step.subject for step in plan.steps if step.stage is stage]


def test_steps_come_in_the_order_of_the_stages() -> None:
    """Every stage's steps stand together, source first and manifest last."""
    stages = [step.stage for step in _plan(precisions=["int8", "fp16"]).steps]
    assert list(dict.fromkeys(stages)) == list(Stage)
    assert stages == sorted(stages, key=list(Stage).index)


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
        "build m/gpu/dynamo-fp16-b1-ws1GiB",
        "build m/gpu/torch_compile-fp16-b1-ws1GiB",
        "validate m/cpu-x86_64/eager-fp32",
        "validate m/cpu-x86_64/onnxruntime-fp16",
        "validate m/rtx-sm80+/fp16-b1-ws1GiB",
        "validate m/gpu/dynamo-fp16-b1-ws1GiB",
        "validate m/gpu/torch_compile-fp16-b1-ws1GiB",
        "benchmark m/cpu-x86_64",
        "benchmark m/rtx-sm80+",
        "benchmark m/gpu",
        "manifest m",
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
    """A Torch-TensorRT module is cast to its precision, and int8 is no cast."""
    variants = [variant for variant in _plan(precisions=["int8"]).variants if variant.target == GPU_TARGET]
    assert variants == []


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
    (engine,) = [variant for variant in plan.variants if variant.backend is Backend.TENSORRT]
    assert (plan.engine_target, engine.target, plan.needs(engine)) == (target, target, needs)


def test_needs_of_the_other_targets_are_phrases() -> None:
    """What runs on a processor and what runs on the host's own GPU say so."""
    plan = _plan()
    assert {
        variant.target: plan.needs(variant) for variant in plan.variants if variant.backend is not Backend.TENSORRT
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
    engines = [variant for variant in plan.variants if variant.backend is Backend.TENSORRT]
    assert [variant.workspace.label for variant in engines if variant.workspace] == [
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
    found = plan.dependencies(Step(Stage(stage), subject)).needs
    assert [f"{other.stage.value} {other.subject}" for other in found] == needs


def test_build_follows_the_builds_with_smaller_workspaces() -> None:
    """An engine may turn out to be that of a smaller workspace, which therefore is built before."""
    plan = _plan(workspaces=["1GiB", "2GiB", "3GiB"])
    follows = plan.dependencies(Step(Stage.BUILD, "m/rtx-sm80+/fp32-b1-ws3GiB")).follows
    assert [step.subject for step in follows] == ["m/rtx-sm80+/fp32-b1-ws1GiB", "m/rtx-sm80+/fp32-b1-ws2GiB"]


def test_benchmark_follows_everything_that_would_disturb_the_clock() -> None:
    """All builds, all validations and the benchmarks before it come first, whether or not they succeed."""
    plan = _plan()
    follows = plan.dependencies(Step(Stage.BENCHMARK, "m/rtx-sm80+")).follows
    expected = {step for step in plan.steps if step.stage in {Stage.BUILD, Stage.VALIDATE}}
    assert set(follows) == expected | {Step(Stage.BENCHMARK, "m/cpu-x86_64")}


def test_manifest_follows_everything() -> None:
    """The manifest tells of failures too, so that it comes after all the other steps and needs none."""
    plan = _plan()
    assert plan.dependencies(plan.steps[-1]).follows == plan.steps[:-1]


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
        assert {*before.needs, *before.follows} <= done
        done.add(step)


@given(_PLANS)
@settings(deadline=None)
def test_no_two_variants_share_an_id(plan: Plan) -> None:
    """Whatever the matrix is, ids, which folders are named after, are unique, in any case of letters."""
    names = [variant.id.lower() for variant in plan.variants]
    assert len(set(names)) == len(names)
