"""Trials of quantised layers with the TensorRT that is installed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import BuildError
from model_artifacts.host.environment import gpus
from model_artifacts.records import EngineFlavour, Graph, Precision
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, load_flavour
from pipeline.adapters.tensorrt_builder import build_engine, unsupported
from pipeline.adapters.trials.quantized_layers import QuantizedLayer, quantized_layers, refused_layers
from tests.support.engine_requests import request_for, request_of

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.planning.project import Project

CONVOLUTION, TRANSPOSED, PRODUCT, PAIR = QuantizedLayer


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """The installed TensorRT-RTX."""
    return load_flavour(EngineFlavour.TENSORRT_RTX)


def graph_of(file: Path, *layers: str, plain: tuple[str, ...] = ()) -> Path:
    """Write a graph with one layer after the other: quantised ones, then plain ones."""
    scale, zero = numpy_helper.from_array(np.float32(0.05), "scale"), numpy_helper.from_array(np.int8(0), "zero")
    flat = [name for name in (*layers, *plain) if name in {"MatMul", "Gemm"}]
    size = (4, 4) if flat else (4, 4, 1, 1)
    tensors, nodes, last = [scale, zero], [], "image"

    def quantized(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"]))
        return f"{name}_dq"

    for index, operator in enumerate((*layers, *plain)):
        operands = [last, f"weights_{index}"]
        tensors.append(numpy_helper.from_array(np.ones(size, np.float32), operands[1]))
        if operator == "Relu":
            operands.pop()
        if index < len(layers):
            operands = [quantized(name) for name in operands]
        last = f"out_{index}"
        nodes.append(helper.make_node(operator, operands, [last]))
    shape = ["batch", *((4,) if flat else (4, 1, 1))]
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [tensor for tensor in tensors if any(tensor.name in node.input for node in nodes)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, file)
    return file


@pytest.mark.parametrize(
    ("layers", "plain", "expected"),
    [
        (("Conv", "Conv"), (), (CONVOLUTION,)),
        (("Conv", "ConvTranspose"), (), (CONVOLUTION, TRANSPOSED)),
        (("MatMul", "Gemm"), (), (PRODUCT,)),
        (("ConvTranspose",), ("Conv",), (TRANSPOSED,)),
        (("Relu",), ("Gemm",), (PAIR,)),
        ((), ("Conv",), ()),
    ],
    ids=["convolutions", "two kinds", "products", "a plain convolution", "a pair", "no pairs"],
)
def test_the_kinds_are_those_of_the_graph(
    tmp_path: Path, layers: tuple[str, ...], plain: tuple[str, ...], expected: tuple[QuantizedLayer, ...]
) -> None:
    """Layers in floating point are none of them."""
    assert quantized_layers(graph_of(tmp_path / "a.onnx", *layers, plain=plain)) == expected


@pytest.mark.parametrize("content", [None, b"no graph"], ids=["missing", "damaged"])
def test_a_file_that_is_no_graph_is_an_error_of_the_build(tmp_path: Path, content: bytes | None) -> None:
    """The build fails with the file, and does not skip the variant for layers that nobody knows."""
    file = tmp_path / "a.onnx"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BuildError, match=r"(?s)cannot be read.*a\.onnx"):
        quantized_layers(file)


@pytest.mark.parametrize("layer", [CONVOLUTION, TRANSPOSED], ids=lambda layer: layer.name)
@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_convolutions_are_refused_for_their_type(flavour: Flavour, precision: Precision, layer: QuantizedLayer) -> None:
    """TensorRT-RTX 1.4 and 1.6 cannot build quantised convolutions for SM 80, and the reason blames no missing GPU."""
    reason = refused_layers(flavour, precision, (layer, PRODUCT), (80,), has_gpu=False)

    assert reason is not None
    assert reason.startswith(f"tensorrt_rtx {flavour.version} cannot build {precision.value} {layer.value}")
    assert reason.endswith(" for SM 80")


@pytest.mark.skipif(bool(gpus()), reason="this host has a GPU, with which products may be built")
@pytest.mark.parametrize("layer", [PRODUCT, PAIR], ids=lambda layer: layer.name)
def test_other_layers_need_a_gpu(flavour: Flavour, layer: QuantizedLayer) -> None:
    """The reason names the network's own layers, and what is missing: the library asks CUDA for a GPU."""
    kinds = refused_layers(flavour, Precision.INT8, (layer,), (80, 89), has_gpu=False)

    assert kinds == f"tensorrt_rtx {flavour.version} cannot build int8 {layer.value} for SM 80, 89 without a GPU"


def test_a_graph_without_pairs_is_not_tried(flavour: Flavour) -> None:
    """Nothing of it is quantised."""
    assert refused_layers(flavour, Precision.INT8, (), (80,), has_gpu=False) is None


@pytest.mark.skipif(bool(gpus()), reason="this host has a GPU, with which products may be built")
@pytest.mark.parametrize("layers", [("MatMul", "Gemm"), ("Relu",), ("Conv",)], ids=" ".join)
def test_the_trial_agrees_with_a_real_build(
    tmp_path: Path, flavour: Flavour, monkeypatch: pytest.MonkeyPatch, layers: tuple[str, ...]
) -> None:
    """A graph that the trial refuses cannot be built. With one plain layer instead, it can."""
    enough = partial(replace, workspace_bytes=2**26)
    request = enough(request_for(graph_of(tmp_path / "a.onnx", *layers), Precision.INT8))
    assert unsupported(flavour, request) is not None
    monkeypatch.setattr("pipeline.adapters.tensorrt_builder.unsupported", lambda *_: None)
    with pytest.raises(BuildError, match="the builder returned no engine"):
        build_engine(flavour, request, BuildLog())

    plain = enough(request_for(graph_of(tmp_path / "b.onnx", plain=layers), Precision.INT8))
    assert build_engine(flavour, plain, BuildLog()).plan


def test_the_trial_agrees_with_a_real_network(
    built: Project, flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model's int8 graph, whose convolutions the trial refuses, gives no engine."""
    request = request_of(built, Graph.INT8, workspace_bytes=2**26)
    assert quantized_layers(request.onnx) == (CONVOLUTION,)
    reason = f"tensorrt_rtx {flavour.version} cannot build int8 convolutions for SM 80, 86, 89, 120"
    assert unsupported(flavour, request) == reason
    monkeypatch.setattr("pipeline.adapters.tensorrt_builder.unsupported", lambda *_: None)

    with pytest.raises(BuildError, match="the builder returned no engine"):
        build_engine(flavour, request, BuildLog())
