"""Places of Q/DQ pairs for TensorRT: means that end in int8, and none around a squeeze-excite's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.records import Graph
from pipeline.adapters.rewrites.products import PRODUCT
from pipeline.config.quantization import GROUPS, QuantizationConfig
from pipeline.stages.quantize.groups import left_by, members
from pipeline.stages.quantize.placement import (
    AUTO,
    left_for_kernels,
    moves_pairs,
    outer_layers,
    quantizer_settings,
)
from pipeline.stages.quantize.placing import place_pairs
from pipeline.stages.quantize.rewriting import carry_skips_in_int8, leave, leave_idle, quantized_nodes
from tests.support.quantized_graphs import Given, nodes, read_by, residual_graph, run, weights

if TYPE_CHECKING:
    from pathlib import Path

RANDOM = np.random.default_rng(0)


def graph(*body: onnx.NodeProto, output: str = "pooled") -> onnx.ModelProto:
    """Return two convolutions of the image, `a` and `b`, and more nodes behind them."""
    wide = {"a.weight": (8, 3, 3, 3), "b.weight": (8, 3, 3, 3), "squeeze.weight": (2, 8, 1, 1)}
    shapes = {**wide, "excite.weight": (8, 2, 1, 1), "last.weight": (8, 8, 1, 1)}
    stems = [
        helper.make_node("Conv", ["image", f"{name}.weight"], [name], name=name, pads=[1] * 4) for name in ("a", "b")
    ]
    return helper.make_model(
        helper.make_graph(
            [*stems, *body],
            "graph",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(RANDOM.normal(size=shape).astype(np.float32), name)
                for name, shape in shapes.items()
                if name[0] in "ab" or any(name in node.input for node in body)
            ],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def node(kind: str, name: str, *inputs: str) -> onnx.NodeProto:
    """Return a node whose result has its name."""
    return helper.make_node(kind, [*inputs], [name], name=name)


POOLED = node("GlobalAveragePool", "pooled", "x")


@pytest.mark.parametrize(
    ("body", "paired"),
    [
        ((node("Add", "x", "a", "b"), POOLED), True),
        ((node("Add", "sum", "a", "b"), node("Relu", "x", "sum"), POOLED), True),
        ((node("Relu", "x", "a"), POOLED), True),
        ((node("Clip", "x", "a"), helper.make_node("ReduceMean", ["x"], ["pooled"], "pooled", axes=[2, 3])), True),
        ((node("Clip", "x", "a"), helper.make_node("ReduceMean", ["x"], ["pooled"], "pooled", axes=[1, 2])), False),
        ((node("Concat", "x", "a", "b"), POOLED), False),
        ((node("Mul", "x", "a", "b"), POOLED), False),
        ((node("HardSwish", "x", "a"), POOLED), False),
        ((node("Relu", "x", "a"), POOLED, node("Mul", "scaled", "x", "pooled")), False),
        ((node("Relu", "x", "a"), POOLED, node("Sigmoid", "other", "a")), False),
        ((helper.make_node("GlobalAveragePool", ["image"], ["pooled"], "pooled"),), False),
    ],
    ids=[
        "sum",
        "ReLU of a sum",
        "ReLU",
        "mean",
        "other mean",
        "concat",
        "product",
        "hard-swish",
        "excite",
        "other reader",
        "image",
    ],
)
def test_a_mean_has_a_pair_where_a_kernel_can_end_in_int8(body: tuple[onnx.NodeProto, ...], *, paired: bool) -> None:
    """That is a sum or a convolution that the mean alone reads, through a ReLU at most."""
    excluded = quantizer_settings(Graph.INT8, graph(*body))["nodes_to_exclude"]

    assert ("pooled" not in excluded) == paired


def test_a_squeeze_excite_multiplies_what_was_not_rounded(tmp_path: Path) -> None:
    """Mean and product read the activation itself; every convolution reads a pair; leaving all leaves no pair."""
    model = graph(
        node("HardSwish", "x", "a"),
        node("GlobalAveragePool", "mean", "x"),
        node("Conv", "squeeze", "mean", "squeeze.weight"),
        node("Relu", "middle", "squeeze"),
        node("Conv", "excite", "middle", "excite.weight"),
        node("Sigmoid", "gate", "excite"),
        node("Mul", "scaled", "x", "gate"),
        node("Conv", "last", "scaled", "last.weight"),
        node("Add", "sum", "last", "b"),
        node("GlobalAveragePool", "pooled", "sum"),
    )
    images = RANDOM.normal(size=(4, 3, 8, 8)).astype(np.float32)
    exact, expected = weights(model), run(model, images)

    placed = placed_by_the_stage(model, tmp_path)

    assert read_by(placed, "mean") == ["x"]
    assert read_by(placed, "scaled") == ["x", "gate"]
    assert read_by(placed, "pooled") == ["sum*"]
    assert {item.name for item in quantized_nodes(placed)} >= {"a", "b", "squeeze", "excite", "last", "pooled"}
    plain = leave(placed, exact, [item.name for item in quantized_nodes(placed)])
    assert not nodes(plain, "QuantizeLinear", "DequantizeLinear")
    np.testing.assert_allclose(run(plain, images), expected, rtol=1e-5, atol=1e-6)


def test_a_concatenation_puts_together_what_was_not_rounded(tmp_path: Path) -> None:
    """Its input is rounded for the convolution that reads it, too, and its result for the next one, each once."""
    model = graph(
        node("Relu", "x", "a"),
        node("Conv", "squeeze", "x", "squeeze.weight"),
        node("Concat", "both", "x", "squeeze"),
        node("MaxPool", "pool", "both"),
        node("Conv", "last", "pool", "ten.weight"),
        node("Identity", "pooled", "last"),
    )
    model.graph.node[5].attribute.append(helper.make_attribute("kernel_shape", [2, 2]))
    model.graph.node[4].attribute.append(helper.make_attribute("axis", 1))
    model.graph.initializer.append(
        numpy_helper.from_array(RANDOM.normal(size=(4, 10, 1, 1)).astype(np.float32), "ten.weight")
    )

    placed = placed_by_the_stage(model, tmp_path)

    assert [read_by(placed, name)[0] for name in ("squeeze", "both", "last")] == ["x*", "x", "pool*"]
    assert read_by(placed, "both") == ["x", "squeeze"]


@pytest.mark.parametrize(
    ("groups", "side", "kept"),
    [(1, 3, False), (8, 3, True), (2, 3, True), (1, 5, False), (1, 7, True)],
    ids=["3×3", "depthwise", "two groups", "5×5", "7×7"],
)
def test_a_convolution_without_fp8_kernels_stays_in_floating_point(groups: int, side: int, *, kept: bool) -> None:
    """TensorRT has none for groups and for large filters; int8 has them all."""
    convolution = node("Conv", "x", "a", "x.weight")
    convolution.attribute.append(helper.make_attribute("group", groups))
    model = graph(convolution, POOLED)
    values = RANDOM.normal(size=(8, 8 // groups, side, side)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "x.weight"))

    assert ("x" in quantizer_settings(Graph.FP8, model)["nodes_to_exclude"]) == kept
    assert "x" not in quantizer_settings(Graph.INT8, model)["nodes_to_exclude"]


@pytest.mark.parametrize(("note", "left"), [("", ["x"]), (PRODUCT, [])], ids=["convolution", "product"])
def test_a_rewritten_product_is_not_left_for_want_of_kernels(note: str, left: list[str]) -> None:
    """It stays in floating point by itself: the gate must not spare it twice among the layers in fp8."""
    convolution = node("Conv", "x", "a", "x.weight")
    convolution.doc_string = note
    model = graph(convolution, node("Flatten", "pooled", "x"))
    values = RANDOM.normal(size=(8, 8, 8, 8)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(values, "x.weight"))

    assert (left_for_kernels(Graph.FP8, model), left_for_kernels(Graph.INT8, model)) == (left, [])
    assert "x" in quantizer_settings(Graph.FP8, model)["nodes_to_exclude"]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ([], {"identity": ["b", "begun*"], "projection": ["c", "d*"], "a": ["begun*"]}),
        (["b"], {"identity": ["b", "begun"], "projection": ["c", "d*"], "a": ["begun*"]}),
        (["a"], {"identity": ["b", "begun*"], "a": ["begun"]}),
        (["c"], {"projection": ["c", "d"], "d": ["again*"]}),
        (["a", "b", "c", "d", "first", "hidden"], {"identity": ["b", "begun"], "projection": ["c", "d"]}),
    ],
)
def test_sums_beside_a_left_convolution_are_left_with_it(
    left: list[str], expected: dict[str, list[str]], tmp_path: Path
) -> None:
    """A skip connection is int8 for the kernel of the convolution before its sum, and of no use without it."""
    model = residual_graph()
    exact = weights(model)
    placed = placed_by_the_stage(model, tmp_path)

    found = leave_idle(leave(placed, exact, left), exact)

    assert {name: [item for item in read_by(found, name) if "weight" not in item] for name in expected} == expected


def placed_by_the_stage(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return TensorRT's int8 graph of a network, calibrated with a few random images."""
    exact, side = weights(model), model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    images = RANDOM.normal(size=(4, 3, side, side)).astype(np.float32)
    place_pairs(Given(images), Graph.INT8, model, folder / "placed.onnx")
    placed = onnx.load(folder / "placed.onnx")
    carry_skips_in_int8(placed)
    return leave_idle(placed, exact)


def with_heads(*outputs: str, swapped: bool = False) -> onnx.ModelProto:
    """Return a convolution, two products of it, `age` and `pose`, and a gate on its map; with the outputs' names."""
    flat = [helper.make_node("GlobalAveragePool", ["a"], ["mean"], "mean"), node("Flatten", "row", "mean")]
    gate = [
        node("MatMul", "gate", "row", "gate.weight"),
        helper.make_node("Reshape", ["gate", "square"], ["tall"], "tall"),
        node("Mul", "scaled", "b", "tall"),
        node("Conv", "map", "scaled", "last.weight"),
    ]
    heads = [
        node("MatMul", "hidden", "row", "hidden.weight"),
        node("Relu", "positive", "hidden"),
        node("MatMul", "age", "positive", "age.weight"),
        node("MatMul", "pose", "row", "pose.weight"),
        node("Softmax", "shares", "pose"),
    ]
    model = graph(*flat, *(heads + gate if swapped else gate + heads))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 8, 1, 1]), "square"))
    for name in ("gate", "hidden", "age", "pose"):
        values = RANDOM.normal(size=(8, 8)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, f"{name}.weight"))
    return model


@pytest.mark.parametrize("precision", [Graph.INT8, Graph.INT8_CPU, Graph.FP8], ids=["int8", "x86", "fp8"])
@pytest.mark.parametrize(
    ("outputs", "kept"),
    [
        (("age", "shares"), ["age", "pose"]),
        (("shares", "age", "map"), ["age", "pose"]),
        (("age", "row"), ["age"]),
        (("map", "row"), []),
        (("age", "positive"), ["hidden", "age"]),
        (("shares",), ["pose"]),
    ],
    ids=["two", "two and a map", "one and features", "none", "one behind another", "alone"],
)
def test_each_outputs_last_product_stays(outputs: tuple[str, ...], kept: list[str], precision: Graph) -> None:
    """A gate's product in front of a map is none of them; fp8 leaves the first convolution, too."""
    for swapped in (False, True) if len(outputs) > 1 else (False,):
        found = outer_layers(with_heads(*outputs, swapped=swapped), precision)
        assert found == kept + (["a"] if precision is Graph.FP8 else [])


def quantized(precision: Graph, settings: QuantizationConfig, folder: Path) -> str:
    """Return the digest of the residual graph as it leaves the quantiser, without the pairs of groups left out."""
    fp32, file = residual_graph(), folder / "placed.onnx"
    values = {item.name: numpy_helper.to_array(item) for item in fp32.graph.initializer}
    left = left_by(settings, fp32)
    images = Given(RANDOM.normal(size=(2, 3, 32, 32)).astype(np.float32))
    place_pairs(images, precision, fp32, file, settings=settings)
    placed = onnx.load(file)
    if precision is Graph.INT8:
        carry_skips_in_int8(placed)
    if not precision.for_x86:
        placed = leave_idle(leave(placed, values, left) if left else placed, values)
    return " ".join(sorted(f"{item.name}<{','.join(item.input)}" for item in placed.graph.node))


@pytest.mark.parametrize(
    ("precision", "idle"),
    [
        (Graph.INT8, {("first", True), ("last", False)}),
        (Graph.INT8_CPU, {("first", True), ("last", False)}),
        (Graph.FP8, {("first", False), ("last", False), ("pools", False)}),
    ],
    ids=["int8", "x86", "fp8"],
)
def test_settings_that_move_no_pair_are_known(precision: Graph, idle: set[tuple[str, bool]], tmp_path: Path) -> None:
    """A choice that is foretold to change nothing changes nothing in the quantiser."""
    auto = quantized(precision, AUTO, tmp_path)
    settings = [(group, False) for group in GROUPS if members(residual_graph(), group)]
    foretold, moving = set(), set()
    for group, placed in [*settings, ("first", True), ("last", True)]:
        if not moves_pairs(precision, residual_graph(), group, placed=placed):
            foretold.add((group, placed))
        if quantized(precision, QuantizationConfig.model_validate({group: placed}), tmp_path) != auto:
            moving.add((group, placed))
    assert foretold == idle
    assert not foretold & moving
    assert moving
