"""Knowledge of choices before anything is built: of the configuration, of the network, and of the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import ExportError
from model_artifacts.records import BatchRange, EngineFlavour, Graph, Host
from pipeline.config.quantization import QuantizationConfig
from pipeline.planning.plan import Plan
from pipeline.planning.project import Project
from pipeline.stages import STAGES
from pipeline.stages.export.rewrites import rewritten
from pipeline.stages.propose.model_optimizer import VARIABLE
from pipeline.tune.foresight import (
    Foresight,
    Library,
    foresight_of,
    idle_heads,
    idle_pairs,
    idle_rewrites,
    is_own,
    left_lines,
    library_of,
)
from pipeline.tune.records import Choice, Point
from pipeline.tune.setups import Setups
from pipeline.tune.space import BUILDER_CHOICES, PARTS, PROPOSED, REWRITE_CHOICES, space_of
from pipeline.tune.steps.limits import Rest
from pipeline.tune.steps.running import ensure
from tests.support.model_optimizer import interpreter
from tests.support.plans import config_of
from tests.support.quantized_graphs import residual_graph, short_graph
from tests.support.searches import LEVEL, STREAMS

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Variant

PLAN = Plan(config_of(precisions=["fp32", "int8"]), Host())


def variant_of(graph: Graph, backend: str = "") -> Variant:
    """Return the first variant of a graph."""
    return next(item for item in PLAN.variants if item.graph is graph and item.backend.value.startswith(backend))


def test_settings_that_the_library_lacks_are_no_choices() -> None:
    """TensorRT-RTX is installed here, and times no tactics; what it applies is left."""
    library = library_of(EngineFlavour.TENSORRT_RTX, None, BUILDER_CHOICES, "doit tune")
    assert [choice for choice in BUILDER_CHOICES if choice not in library.refused] == [
        choice for choice in BUILDER_CHOICES if choice.setting in {STREAMS.setting, PARTS}
    ]
    assert "builds ahead of time" in library.refused[LEVEL]
    foresight = Foresight(PLAN, libraries={EngineFlavour.TENSORRT_RTX: library})
    engine, onnx = variant_of(Graph.FP32, "tensorrt"), variant_of(Graph.FP32, "onnxruntime")
    assert foresight.refusal(engine, LEVEL) == library.refused[LEVEL]
    assert foresight.refusal(engine, STREAMS) == foresight.refusal(onnx, LEVEL) == ""


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((128, 128, 128), ""),
        ((1, 1, 1), "a batch of 1 has no 2 equal parts"),
        ((1, 8, 8), "an engine for several sizes runs each batch as a whole"),
    ],
    ids=["even", "odd", "range"],
)
def test_parts_are_a_choice_of_batches_that_can_be_halved(sizes: tuple[int, int, int], reason: str) -> None:
    """No engine is built for one that would stay whole."""
    low, best, high = sizes
    engine = variant_of(Graph.FP32, "tensorrt").model_copy(update={"profile": BatchRange(min=low, opt=best, max=high)})
    assert Foresight(PLAN).refusal(engine, Choice(setting=PARTS, value=2)) == reason


def test_a_library_that_is_not_here_refuses_nothing() -> None:
    """Its builds say why they fail."""
    library = library_of(EngineFlavour.TENSORRT, None, BUILDER_CHOICES, "doit tune")
    assert (library.refused, library.routes) == ({}, ())
    assert library.remark.startswith("what the library cannot apply is found by a build: tensorrt is not installed")
    assert Foresight(PLAN, libraries={EngineFlavour.TENSORRT: library}).remarks == (library.remark,)


@pytest.mark.parametrize(
    ("graph", "setting", "value", "reason"),
    [
        (Graph.INT8, "quantization.sums", False, ""),
        (Graph.INT8, "quantization.concats", False, "the network has none"),
        (Graph.FP8, "quantization.pools", False, "fp8 stays the same"),
    ],
    ids=["sums", "concats", "pools"],
)
def test_pairs_that_no_setting_moves_are_no_choices(graph: Graph, setting: str, value: object, reason: str) -> None:
    """The residual network has sums and a pool, and no concatenation; fp8 has no pairs at pools."""
    variant = variant_of(Graph.INT8, "tensorrt").model_copy(update={"graph": graph})
    found = Foresight(PLAN, idle_pairs(residual_graph(), [graph])).refusal(
        variant, Choice.model_validate({"setting": setting, "value": value})
    )
    assert found == reason


def test_a_head_in_half_precision_needs_a_product_in_floating_point() -> None:
    """One layer alone is in int8."""
    choice = Choice(setting="quantization.head", value="float16")
    engine = variant_of(Graph.INT8, "tensorrt")
    reasons = idle_heads(short_graph("conv"), [Graph.INT8])
    assert Foresight(PLAN, reasons).refusal(engine, choice).startswith("the network has no last product")
    assert Foresight(PLAN, idle_heads(residual_graph(), [Graph.INT8])).refusal(engine, choice) == ""


def test_a_head_and_its_pairs_do_not_stand_beside_each_other() -> None:
    """Whichever of the two the configuration has; another type of graph has no head."""
    last, head = Choice(setting="quantization.last", value=True), Choice(setting="quantization.head", value="float16")
    settings = {"last": True}, {"head": "float16"}, {"head": "float16", "last": False}
    paired, typed, bare = (QuantizationConfig.model_validate(item) for item in settings)
    reasons = idle_heads(residual_graph(), [Graph.INT8, Graph.FP8], paired)
    assert reasons[Graph.INT8, head].startswith("the network has no last product")
    for own in (typed, bare):
        reasons = idle_heads(residual_graph(), [Graph.INT8, Graph.FP8], own)
        assert reasons == {(Graph.INT8, last): "the head of the configuration is in floating point"}


@pytest.mark.parametrize(
    ("settings", "choice"),
    [
        ({"last": False}, Choice(setting="quantization.last", value=True)),
        ({"first": True}, Choice(setting="quantization.first", value=False)),
    ],
    ids=["last", "first"],
)
def test_another_value_than_the_configurations_moves_pairs(settings: dict[str, object], choice: Choice) -> None:
    """Whatever the graph would be like without any: the last layer here is in int8 by itself."""
    graph = short_graph("conv")
    found = idle_pairs(graph, [Graph.INT8], QuantizationConfig.model_validate(settings))
    assert (Graph.INT8, choice) not in found
    assert (Graph.INT8, Choice(setting="quantization.last", value=True)) in idle_pairs(graph, [Graph.INT8])


def test_another_number_of_channels_than_the_configurations_is_a_choice() -> None:
    """The graph has the rewrite of the configuration already, which the other value replaces."""
    four, eight = (Choice(setting="rewrites.channels", value=number) for number in (4, 8))
    config = config_of(rewrites={"channels": 8})
    wider = rewritten(residual_graph(), config.rewrites)
    assert {*idle_rewrites(wider)} >= {four, eight}
    foresight = Foresight(Plan(config, Host()), rewrites=idle_rewrites(wider, config.rewrites.chosen))
    engine = variant_of(Graph.FP32, "tensorrt")
    assert foresight.refusal(engine, four) == ""
    assert foresight.refusal(engine, eight) == "the configuration has it"
    product = Choice(setting="rewrites.product", value="convolution")
    assert foresight.refusal(engine, product).startswith("no product of a global pool's output")


def test_rewrites_of_what_the_network_lacks_are_no_choices() -> None:
    """The residual network's last product reads an activation; its first convolution reads three channels."""
    product, pooled, channels = (
        Choice(setting="rewrites.product", value="convolution"),
        Choice(setting="rewrites.product", value="pooled"),
        Choice(setting="rewrites.channels", value=4),
    )
    foresight = Foresight(PLAN, rewrites=idle_rewrites(residual_graph()))
    engine = variant_of(Graph.FP32, "tensorrt")
    assert foresight.refusal(engine, product).startswith("no product of a global pool's output")
    assert foresight.refusal(engine, pooled).startswith("no product by constants of the mean over an image")
    assert foresight.refusal(engine, channels) == ""
    assert idle_rewrites(short_graph("conv", "product")) == {}


def test_a_proposal_of_the_configuration_holds_for_no_rewritten_graph() -> None:
    """It names nodes of the graph as it is; graphs in floating point have no places, and those of x86 their own."""
    plan = Plan(config_of(precisions=["fp32", "int8"], quantization={"placement": "model_optimizer"}), Host())
    foresight = Foresight(plan)
    for choice in REWRITE_CHOICES:
        for graph in (Graph.INT8, Graph.INT8_MIXED):
            engine = variant_of(Graph.INT8, "tensorrt").model_copy(update={"graph": graph})
            assert foresight.refusal(engine, choice).startswith("the proposal of places is of the graph without it")
            assert Foresight(PLAN).refusal(engine, choice) == ""
        assert foresight.refusal(variant_of(Graph.FP32, "tensorrt"), choice) == ""
        assert foresight.refusal(variant_of(Graph.INT8_CPU, "onnxruntime"), choice) == ""


@pytest.mark.parametrize(
    ("section", "choice"),
    [
        ({"tensorrt": {"l2_limit_for_tiling": "16MiB"}}, Choice(setting="tensorrt.l2_limit_for_tiling", value="16MiB")),
        (
            {"tensorrt": {"tactic_sources": ["cublas", "jit_convolutions"]}},
            Choice(setting="tensorrt.tactic_sources", value=("cublas", "jit_convolutions")),
        ),
        ({"quantization": {"last": True}}, Choice(setting="quantization.last", value=True)),
        ({"torch_tensorrt": {"min_block_size": 1}}, Choice(setting="torch_tensorrt.min_block_size", value=1)),
        ({"rewrites": {"channels": 4}}, Choice(setting="rewrites.channels", value=4)),
    ],
    ids=["bytes", "list", "group", "module", "rewrite"],
)
def test_what_the_configuration_has_is_no_choice(section: dict[str, object], choice: Choice) -> None:
    """It would be built a second time in a folder of its own."""
    assert is_own(config_of(**section), choice)
    assert not is_own(config_of(), choice)
    plan = Plan(config_of(**section), Host())
    assert Foresight(plan).refusal(plan.variants[0], choice) == "the configuration has it"


def test_each_reason_is_told_once() -> None:
    """With all choices that are none for it."""
    left = [
        ("tensorrt.a: 1", "no use"),
        ("quantization.sums: false", "int8 stays the same"),
        ("tensorrt.b: 2", "no use"),
    ]
    assert left_lines(left) == [
        "no choice: tensorrt.a: 1, tensorrt.b: 2: no use",
        "no choice: quantization.sums: false: int8 stays the same",
    ]


def test_routes_of_all_libraries_are_choices() -> None:
    """Those that have any."""
    libraries = {EngineFlavour.TENSORRT: Library({}, ("-a=off",)), EngineFlavour.TENSORRT_RTX: Library({})}
    assert Foresight(PLAN, libraries=libraries).routes == ("-a=off",)


def test_a_matrix_of_one_precision_has_the_graph_to_judge_by(
    copied_search: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP32's is made where no variant needs it; if it cannot be made, trials find what a choice changes."""

    def failing(*_: object) -> None:
        raise ExportError("the network has no graph")

    product = Choice(setting="rewrites.product", value="convolution")
    before = copied_search.config_file.read_text()
    copied_search.config_file.write_text(before.replace("precisions: [fp32, int8]", "precisions: [fp16]"))
    project = Project.load(copied_search.config_file, STAGES)
    engine = project.plan.variant("tiny/rtx-sm80+/fp16-b1-ws16MiB")
    project.paths.onnx_record(Graph.FP32).unlink()
    found = foresight_of(project)
    assert found.refusal(engine, product).startswith("no product of a global pool's output")
    assert found.remark == ""
    assert project.onnx(Graph.FP32).graph is Graph.FP32
    monkeypatch.setattr("pipeline.tune.foresight.ensure", failing)
    found = foresight_of(project)
    assert found.refusal(engine, product) == ""
    assert found.remarks == ("which choices change no graph is found by trials: the network has no graph",)


def test_places_of_model_optimizer_are_proposed_before_the_search(
    copied_search: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each graph for TensorRT is asked about once; a point with the choice then has a graph of its own."""
    monkeypatch.setenv(VARIABLE, str(interpreter(tmp_path / "env")))
    variant = copied_search.plan.variant("tiny/rtx-sm80+/int8-b1-ws16MiB")
    assert foresight_of(copied_search).refusal(variant, PROPOSED) == ""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))  # what is there is taken
    assert foresight_of(copied_search).refusal(variant, PROPOSED) == ""
    project, _ = Setups(copied_search).place(Point(subject=variant.id, choices=(PROPOSED,)))
    ensure(project, project.plan.graph_step(Graph.INT8), Rest())
    assert project.onnx(Graph.INT8).canonical_sha256 != copied_search.onnx(Graph.INT8).canonical_sha256
    assert is_own(project.config, PROPOSED)
    assert foresight_of(project).refusal(variant, PROPOSED) == "the configuration has it"


def test_the_places_are_no_choice_without_model_optimizer(
    copied_search: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is told, and that a record was there which does not fit."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    reason = f"Model Optimizer is not installed: {tmp_path / 'nowhere'} cannot be started: No such file or directory"
    left = space_of(copied_search.plan, foresight_of(copied_search).refusal).left
    assert ("quantization.placement: model_optimizer", reason) in left
    copied_search.paths.proposal(Graph.INT8).write_text("{}")
    variant = copied_search.plan.variant("tiny/rtx-sm80+/int8-b1-ws16MiB")
    assert foresight_of(copied_search, [variant.id]).refusal(variant, PROPOSED) == ""  # nothing is asked for it
    left = space_of(copied_search.plan, foresight_of(copied_search).refusal).left
    stale = f"int8.proposal.json is stale; {reason}"
    assert ("quantization.placement: model_optimizer", stale) in left
