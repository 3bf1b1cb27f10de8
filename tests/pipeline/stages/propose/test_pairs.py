"""Places of Q/DQ pairs that are read from another tool's graph, and graphs that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from model_artifacts.errors import QuantizeError
from pipeline.stages.propose.pairs import pairs_of
from pipeline.stages.quantize.calibration import Reader
from tests.support.quantized_graphs import residual_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IMAGES = np.random.default_rng(1).normal(size=(4, 3, 32, 32)).astype(np.float32)


def quantized(folder: Path, kinds: list[str], *, pairs_on_weights: bool) -> onnx.ModelProto:
    """Return the residual network with pairs in front of some operators, by ONNX Runtime's quantiser."""
    file = folder / "quantized.onnx"
    quantize_static(
        residual_graph(),
        str(file),
        Reader(iter([IMAGES]), ["image"]),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        op_types_to_quantize=kinds,
        extra_options={
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": kinds,
            "AddQDQPairToWeight": pairs_on_weights,
        },
    )
    return onnx.load(file)


def places(model: onnx.ModelProto) -> set[str]:
    """Return the places of pairs as texts: `node:input tensor`."""
    return {f"{pair.node}:{pair.input} {pair.tensor}" for pair in pairs_of(model, residual_graph())}


@pytest.mark.parametrize("pairs_on_weights", [True, False], ids=["pairs", "stored"])
def test_pairs_are_read_with_their_tensors(tmp_path: Path, pairs_on_weights: bool) -> None:  # noqa: FBT001 - a case
    """Weights are named as in the FP32 graph, whether they are behind a pair or stored in int8 under another name."""
    model = quantized(tmp_path, ["Gemm"], pairs_on_weights=pairs_on_weights)
    assert places(model) == {
        "hidden:0 flat",
        "hidden:1 hidden.weight",
        "last:0 positive",
        "last:1 last.weight",
    }
    assert [pair.node for pair in pairs_of(model, residual_graph())] == ["hidden", "hidden", "last", "last"]


def small(*nodes: onnx.NodeProto, weights: tuple[str, ...] = ("w", "scale", "zero")) -> onnx.ModelProto:
    """Return a graph of an image x with some nodes and weights, which ends in y."""
    shapes = {"w": [2, 2, 1, 1]}
    kinds = {"zero": TensorProto.INT8}
    tensors = [
        helper.make_tensor(
            name, kinds.get(name, TensorProto.FLOAT), shapes.get(name, []), [1] * int(np.prod(shapes.get(name, [])))
        )
        for name in weights
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 4, 4]) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "small", ends[:1], ends[1:], tensors))


def conv(*inputs: str, name: str = "conv") -> onnx.NodeProto:
    """Return a convolution that ends the graph."""
    return helper.make_node("Conv", inputs, ["y"], name=name)


def pair(source: str, result: str) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """Return a Q/DQ pair."""
    return (
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{result}_q"]),
        helper.make_node("DequantizeLinear", [f"{result}_q", "scale", "zero"], [result]),
    )


PLAIN = small(conv("x", "w"), weights=("w",))


def test_casts_around_pairs_are_no_part_of_the_graph() -> None:
    """Model Optimizer casts what is around the pairs to FP16."""
    before = helper.make_node("Cast", ["x"], ["x16"], to=TensorProto.FLOAT16)
    after = helper.make_node("Cast", ["x_dq"], ["x_end"], to=TensorProto.FLOAT16)
    (found,) = pairs_of(small(before, *pair("x16", "x_dq"), after, conv("x_end", "w")), PLAIN)
    assert (found.node, found.kind, found.input, found.tensor) == ("conv", "Conv", 0, "x")


@pytest.mark.parametrize(
    ("made", "where", "got"),
    [
        (lambda: small(*pair("x", "d"), conv("d", "w", name="other")), "input 0 of other (Conv)", "no such node"),
        (
            lambda: small(*pair("x", "d"), helper.make_node("Gemm", ["d", "w"], ["y"], name="conv")),
            "input 0 of conv (Gemm)",
            "no such node",
        ),
        (
            lambda: small(*pair("scale", "d"), conv("x", "w", "d")),
            "input 2 of conv (Conv)",
            "no such node or input",
        ),
        (
            lambda: small(helper.make_node("Relu", ["x"], ["r"]), *pair("r", "d"), conv("d", "w")),
            "input 0 of conv (Conv)",
            "a pair on r",
        ),
        (lambda: small(*pair("lost", "d"), conv("d", "w")), "a pair on lost", "no node, weight or input of this name"),
    ],
    ids=["other node", "other operator", "other input", "other tensor", "lost tensor"],
)
def test_a_graph_that_does_not_fit_is_refused(made: Callable[[], onnx.ModelProto], where: str, got: str) -> None:
    """The message names the place, what the FP32 graph has there, and what to do."""
    with pytest.raises(QuantizeError, match="does not fit the FP32 graph that it was given") as caught:
        pairs_of(made(), PLAIN)
    assert where in str(caught.value)
    assert got in caught.value.got
    assert "leave `quantization.placement` at auto" in str(caught.value)


def test_a_graph_without_quantised_layers_is_refused(tmp_path: Path) -> None:
    """An engine of it would be called int8, and be none."""
    with pytest.raises(QuantizeError, match="quantises no layer") as caught:
        pairs_of(PLAIN, PLAIN)
    assert caught.value.got == "no pairs"
    with pytest.raises(QuantizeError, match="quantises no layer") as caught:
        pairs_of(quantized(tmp_path, ["GlobalAveragePool"], pairs_on_weights=False), residual_graph())
    assert caught.value.got == "pairs in front of pooled alone"
