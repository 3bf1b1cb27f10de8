"""The points of a plan: what this host runs and deploys, the promising first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import Backend, Graph, Host
from pipeline.planning.plan import Plan
from pipeline.tune.foresight import Foresight, idle_pairs
from pipeline.tune.space import mixed_of, space_of
from tests.support.hosts import H100, RTX, TRT10, host
from tests.support.plans import config_of
from tests.support.quantized_graphs import residual_graph

if TYPE_CHECKING:
    from model_artifacts.records import Variant
    from pipeline.tune.records import Choice
    from pipeline.tune.space import Space

MATRIX: dict[str, object] = {"precisions": ["fp32", "fp16", "int8"], "profiles": [1, {"min": 1, "opt": 8, "max": 32}]}


def names(space: Space) -> list[str]:
    """Return the names of the contenders, without the model."""
    return [item.subject.partition("/")[2] for item in space.contenders]


def settings(space: Space, kind: Backend) -> set[str]:
    """Return the settings that contenders of a backend could be given."""
    return {made.choice.setting for item in space.contenders if item.kind == kind.value for made in item.options}


def test_a_gpu_host_tries_its_own_variants_alone() -> None:
    """The processor's are for other machines; baselines are never an answer."""
    plan = Plan(config_of(**MATRIX), host(H100, flavours=(TRT10,)))
    space = space_of(plan)
    assert not any("cpu" in name or "eager" in name for name in names(space))
    assert names(space)[0].endswith("trt10.15/int8-b1-ws1GiB")
    assert {item.kind for item in space.contenders} == {"tensorrt", "onnxruntime", "dynamo", "torch_compile"}


def test_without_a_gpu_what_runs_here_comes_first() -> None:
    """Engines that are built ahead of time are built last, and end as skipped."""
    space = space_of(Plan(config_of(**MATRIX), Host()))
    first = [name for name in names(space) if name.startswith("cpu")]
    assert names(space)[: len(first)] == first
    assert first[0] == "cpu-x86_64/onnxruntime-int8-cpu"
    assert "rtx-sm80+/fp16-b1-ws1GiB" in names(space)


def test_a_graph_that_stands_in_on_a_processor_is_no_point() -> None:
    """TensorRT's int8 graph is never deployed there, nor is bf16's reference evaluator."""
    space = space_of(Plan(config_of(precisions=["int8", "bf16"]), Host()))
    assert [name for name in names(space) if name.startswith("cpu")] == ["cpu-x86_64/onnxruntime-int8-cpu"]


def test_each_flavour_has_the_settings_that_it_applies() -> None:
    """TensorRT-RTX times no tactics, and ONNX Runtime has no builder."""
    datacenter = space_of(Plan(config_of(**MATRIX), host(H100, flavours=(TRT10,))))
    assert {"tensorrt.tiling_optimization_level", "tensorrt.attempt"} <= settings(datacenter, Backend.TENSORRT)
    engine = next(item for item in datacenter.contenders if item.kind == Backend.TENSORRT.value)
    further = [(item.choice.setting, item.choice.value) for item in engine.options if item.replaces]
    assert further == [("tensorrt.attempt", 2), ("tensorrt.attempt", 3)]
    assert settings(datacenter, Backend.ONNXRUNTIME) == set()
    assert settings(datacenter, Backend.DYNAMO) == {
        "torch_tensorrt.optimization_level",
        "torch_tensorrt.min_block_size",
    }
    rtx = space_of(Plan(config_of(precisions=["fp16"]), host(H100, flavours=(RTX,))))
    assert settings(rtx, Backend.TENSORRT) == {
        "tensorrt.batch_parts",
        "tensorrt.max_aux_streams",
        "rewrites.product",
        "rewrites.channels",
    }


def test_choices_that_helped_before_come_first() -> None:
    """Those of graphs and of the builder alike; what made engines slower is tried last."""
    plan = Plan(config_of(precisions=["int8"], profiles=[64]), host(H100, flavours=(TRT10,)))
    engine = next(item for item in space_of(plan).contenders if item.kind == Backend.TENSORRT.value)
    order = [item.choice.text for item in engine.options]
    assert order[:3] == ["tensorrt.attempt: 2", "tensorrt.batch_parts: 2", "quantization.head: float16"]
    assert order.index("tensorrt.sparse_weights: true") < order.index("rewrites.channels: 4")


def test_a_range_serves_every_batch_that_it_takes() -> None:
    """A fixed engine serves its own, and is tried first."""
    space = space_of(Plan(config_of(**MATRIX), host(H100, flavours=(TRT10,))))
    engines = [item for item in space.contenders if item.kind == "tensorrt"][:2]
    assert [item.batches for item in engines] == [(1,), (1, 8)]


def test_each_quantised_point_has_one_with_layers_left_in_fp16() -> None:
    """Of the same backend, batches and workspace."""
    plan = Plan(config_of(precisions=["int8", "fp16"]), Host())
    mixed = {
        subject: (item.graph, item.ranked, item.contender.subject)
        for subject, item in mixed_of(plan, space_of(plan)).items()
    }
    assert mixed == {
        "m/cpu-x86_64/onnxruntime-int8-cpu": ("int8-cpu", "int8", "m/cpu-x86_64/onnxruntime-int8-mixed-cpu"),
        "m/rtx-sm80+/int8-b1-ws1GiB": ("int8", "int8", "m/rtx-sm80+/int8-mixed-b1-ws1GiB"),
    }


def pairs_of(plan: Plan, name: str, lacking: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the groups of Q/DQ pairs that a contender could be given, with their values."""

    def refusal(_variant: Variant, choice: Choice) -> str:
        return "lacking" if choice.setting.rpartition(".")[2] in lacking else ""

    (found,) = (item for item in space_of(plan, refusal).contenders if item.subject.endswith(name))
    made = [item.choice for item in found.options if item.choice.setting.startswith("quantization.")]
    return {choice.setting.rpartition(".")[2]: choice.value for choice in made}


def test_quantised_points_could_be_without_groups_of_pairs() -> None:
    """Each group, but what is known to change nothing; fp8 has none at its ends. Layers in FP16 have no such choice.

    Model Optimizer proposes for TensorRT's graphs alone.
    """
    plan = Plan(config_of(precisions=["fp32", "int8", "fp8"]), Host())
    left = dict.fromkeys(("sums", "pools", "concats"), False)
    assert pairs_of(plan, "onnxruntime-int8-cpu") == {"last": True, "first": False, **left}
    ends = {"last": True, "first": False, "head": "float16"}
    (engine,) = (item for item in space_of(plan).contenders if item.subject.endswith("/int8-b1-ws1GiB"))
    excluded = {item.choice.setting: item.excludes for item in engine.options if item.excludes}
    assert excluded["quantization.last"] == ("quantization.head",)
    assert excluded["quantization.head"] == ("quantization.last",)
    assert pairs_of(plan, "/int8-b1-ws1GiB", ("sums", "pools", "concats", "placement")) == ends
    assert pairs_of(plan, "onnxruntime-fp32") == {}
    gpu = Plan(config_of(precisions=["fp8"]), host(H100, flavours=(TRT10,)))
    proposed = {"placement": "model_optimizer"}
    assert pairs_of(gpu, "/fp8-b1-ws1GiB") == {**proposed, "last": True, "first": True, **left}
    space = space_of(gpu)
    (mixed,) = mixed_of(gpu, space).values()
    assert {item.choice.setting.partition(".")[0] for item in mixed.contender.options} == {"tensorrt", "rewrites"}


def test_choices_that_are_none_are_told_with_their_reason() -> None:
    """Once for all variants."""
    plan = Plan(config_of(**MATRIX), host(H100, flavours=(TRT10,)))
    space = space_of(plan, lambda _, choice: "no use" if choice.setting.endswith("tactics") else "")
    assert space.left == (("tensorrt.max_num_tactics: 512", "no use"),)
    assert "tensorrt.max_num_tactics" not in settings(space, Backend.TENSORRT)


def test_a_choice_that_others_are_given_names_the_graphs_without() -> None:
    """Without pairs at its pools fp8 stays the same; int8 does not, and tries it."""
    plan = Plan(config_of(precisions=["int8", "fp8"]), host(H100, flavours=(TRT10,)))
    reasons = idle_pairs(residual_graph(), [Graph.INT8, Graph.FP8])
    space = space_of(plan, Foresight(plan, reasons).refusal)
    assert ("quantization.pools: false (fp8)", "fp8 stays the same") in space.left
    assert ("quantization.concats: false", "the network has none") in space.left
    assert "quantization.pools" in settings(space, Backend.TENSORRT)


def test_a_choice_of_other_batch_ranges_names_those_without() -> None:
    """Each graph is given parts of a batch, for the one batch size that has them."""
    profiles = [1, 64, {"min": 1, "opt": 8, "max": 32}]
    plan = Plan(config_of(precisions=["fp16", "int8"], profiles=profiles), host(H100, flavours=(TRT10,)))
    left = space_of(plan, Foresight(plan).refusal).left
    assert left == (
        ("tensorrt.batch_parts: 2 (b1)", "a batch of 1 has no 2 equal parts"),
        ("tensorrt.batch_parts: 2 (b1-8-32)", "an engine for several sizes runs each batch as a whole"),
    )


def test_what_the_configuration_has_need_not_be_chosen_before() -> None:
    """The limit of the L2 cache is of use with the configuration's tiling."""
    needs = {}
    for level in ("none", "fast"):
        plan = Plan(
            config_of(precisions=["fp16"], tensorrt={"tiling_optimization_level": level}), host(H100, flavours=(TRT10,))
        )
        options = space_of(plan).contenders[0].options
        needs[level] = [item.needs for item in options if item.choice.setting.endswith("l2_limit_for_tiling")]
    assert needs == {"none": ["tensorrt.tiling_optimization_level"], "fast": [""]}


def test_build_routes_are_choices_of_engines() -> None:
    """Of the flavour that has them; each is one more value of the same setting."""
    plan = Plan(config_of(precisions=["fp16"]), host(H100, flavours=(TRT10,)))
    space = space_of(plan, routes=("-a=off", "-b=2"))
    made = [item.choice.value for item in space.contenders[0].options if item.choice.setting == "tensorrt.build_route"]
    assert made == ["-a=off", "-b=2"]
    assert "tensorrt.build_route" not in settings(space, Backend.DYNAMO)
