"""Graphs with another input or output: the same numbers in ONNX Runtime, and graphs that cannot have them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import UnsupportedError
from model_artifacts.records import (
    ChannelOrder,
    ImageInput,
    Interpolation,
    Io,
    OutputForm,
    Preprocessing,
    TensorSpec,
)
from model_artifacts.sessions.preprocessing import to_input
from pipeline.adapters import onnx_graph
from pipeline.adapters.onnx_ends import inputs_of, with_ends

SPEC = Preprocessing(
    resize=6, crop=6, interpolation=Interpolation.BILINEAR, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CLASSES = 7
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)


def network(*, narrow: bool = False, inputs: int = 1, outputs: int = 1, name: str = "images") -> onnx.ModelProto:
    """Return a graph of one product, in FP32 or with logits in FP16."""
    weights = np.random.default_rng(1).normal(size=(108, CLASSES)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", [name], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["wide" if narrow else "logits"]),
    ]
    if narrow:
        nodes.append(helper.make_node("Cast", ["wide"], ["logits"], to=TensorProto.FLOAT16))
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 3, 6, 6))]
    given += [helper.make_tensor_value_info(f"more{at}", TensorProto.FLOAT, ("batch", 3)) for at in range(1, inputs)]
    kind = TensorProto.FLOAT16 if narrow else TensorProto.FLOAT
    found = [helper.make_tensor_value_info("logits", kind, ("batch", CLASSES))]
    found += [helper.make_tensor_value_info("flat", TensorProto.FLOAT, ("batch", 108)) for _ in range(1, outputs)]
    graph = helper.make_graph(nodes, "network", given, found, [numpy_helper.from_array(weights, "weights")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, images: Any) -> list[Any]:
    """Run a graph in ONNX Runtime without optimisations."""
    onnx_graph.check(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, {session.get_inputs()[0].name: images})
    return found


def test_pixels_are_normalised_bit_for_bit() -> None:
    """The graph gives the very logits of what `to_input` makes of the pixels, and the first graph stays as it is."""
    plain = network()
    before = plain.SerializeToString()
    (found,) = run(with_ends(plain, Io(input=ImageInput.UINT8), SPEC), PIXELS)
    (want,) = run(plain, to_input(PIXELS, SPEC))
    np.testing.assert_array_equal(found, want)
    assert plain.SerializeToString() == before


def test_halves_are_widened() -> None:
    """Half precision gives the logits of the rounded images."""
    halves = to_input(PIXELS, SPEC).astype(np.float16)
    (found,) = run(with_ends(network(), Io(input=ImageInput.FLOAT16), SPEC), halves)
    np.testing.assert_array_equal(found, run(network(), halves.astype(np.float32))[0])


@pytest.mark.parametrize("narrow", [False, True], ids=["fp32", "fp16"])
def test_the_softmax_is_in_fp32(*, narrow: bool) -> None:
    """Probabilities of logits in FP16 are no coarser than those of FP32."""
    (found,) = run(with_ends(network(narrow=narrow), Io(output=OutputForm.PROBABILITIES), SPEC), to_input(PIXELS, SPEC))
    logits = run(network(narrow=narrow), to_input(PIXELS, SPEC))[0].astype(np.float64)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, likely / likely.sum(axis=1, keepdims=True), rtol=2e-6)


def test_the_logits_decide_the_order() -> None:
    """Classes whose probability is zero in FP32 keep the ranks of their logits."""
    io = Io(output=OutputForm.TOP, top=CLASSES)
    logits, images = run(network(), 100 * to_input(PIXELS, SPEC))[0], 100 * to_input(PIXELS, SPEC)
    values, places = run(with_ends(network(), io, SPEC), images)
    assert (values[:, -1] == 0).any()
    assert places.dtype == np.int32
    np.testing.assert_array_equal(places, np.argsort(-logits, axis=1, kind="stable"))


@pytest.mark.parametrize(
    ("model", "io", "reason"),
    [
        pytest.param(network(inputs=2), Io(input=ImageInput.UINT8), "one input, got images, more1", id="inputs"),
        pytest.param(network(outputs=2), Io(output=OutputForm.PROBABILITIES), "one output, got", id="outputs"),
        pytest.param(network(), Io(output=OutputForm.TOP, top=8), "7 classes, and the output is the top 8", id="few"),
        pytest.param(network(name="pixels"), Io(input=ImageInput.UINT8), "of this name already: pixels", id="taken"),
    ],
)
def test_other_graphs_are_refused(model: onnx.ModelProto, io: Io, reason: str) -> None:
    """A graph that cannot have these ends is skipped with the reason."""
    with pytest.raises(UnsupportedError, match=reason):
        with_ends(model, io, SPEC)


def test_other_images_are_refused() -> None:
    """The input of the graph must be that of the preprocessing."""
    spec = SPEC.model_copy(update={"crop": 5})
    with pytest.raises(UnsupportedError, match=r"float32 images \(3, 5, 5\), got \(3, 6, 6\)"):
        with_ends(network(), Io(input=ImageInput.UINT8), spec)


@pytest.mark.parametrize(
    ("count", "order", "words"),
    [
        pytest.param(1, ChannelOrder.RGB, "grey", id="grey"),
        pytest.param(3, ChannelOrder.BGR, "blue, green, red", id="bgr"),
        pytest.param(4, ChannelOrder.RGB, "red, green, blue, opacity", id="rgba"),
        pytest.param(4, ChannelOrder.BGR, "blue, green, red, opacity", id="bgra"),
    ],
)
def test_pixels_are_described_with_all_of_their_channels(count: int, order: ChannelOrder, words: str) -> None:
    """Whoever feeds them reads it in the manifest."""
    spec = SPEC.model_copy(update={"mean": (0.5,) * count, "std": (0.5,) * count, "order": order})
    plain = TensorSpec(name="images", shape=("batch", count, 6, 6), dtype="float32", layout="NCHW")
    (found,) = inputs_of(Io(input=ImageInput.UINT8), spec, (plain,))
    assert found.shape == ("batch", 6, 6, count)
    assert found.meaning.endswith(f"channels: {words}")
