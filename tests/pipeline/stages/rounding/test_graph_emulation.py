"""The rounding of a graph, node by node, is that of the same network in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import RunError
from model_artifacts.records import Graph, Precision
from model_artifacts.sessions.torch_model import fold_batch_norms
from pipeline.stages.common.model import restore_model
from pipeline.stages.common.samples import to_batch
from pipeline.stages.rounding.emulation import RUNS, emulating
from pipeline.stages.rounding.graph_emulation import GraphEmulation, emulate_graph
from tests.support.sized_files import grown

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pipeline.planning.project import Project

RANDOM = np.random.default_rng(0)


def relative(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """Return the relative L2 distance."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", RUNS, ids=[precision.value for precision in RUNS])
def test_a_graph_rounds_as_its_network_does(built: Project, precision: Precision) -> None:
    """Both emulations of the tiny network are as far from FP32, by each way of rounding."""
    data = built.data()
    images = to_batch(np.asarray(built.pixels(data.validation)[:16]), data.preprocessing)
    reference = np.load(built.file(data.reference))[:16]
    network = fold_batch_norms(restore_model(built), built.source().pictures.input_shape).model.eval()
    found = emulate_graph(built.paths.onnx(Graph.FP32), precision, images, 8, RUNS[precision])
    for name, sums in RUNS[precision]:
        with emulating(precision, sums=sums):
            torch_ = network(torch.from_numpy(images.copy())).numpy()
        ours, theirs = relative(found[name], reference), relative(torch_, reference)
        assert ours == pytest.approx(theirs, rel=0.25), name
        assert ours > 0, name


def test_without_rounding_it_is_the_graph(built: Project) -> None:
    """FP32's own emulation without its sums changes nothing but the kernels."""
    images = to_batch(np.asarray(built.pixels(built.data().validation)[:8]), built.data().preprocessing)
    model = onnx.load(built.paths.onnx(Graph.FP32))
    (found,) = GraphEmulation(model, Precision.FP32)(images)
    assert relative(found, np.load(built.file(built.data().reference))[:8]) < 5e-6


def one(node: onnx.NodeProto, shape: Sequence[int], **weights: npt.NDArray[np.generic]) -> onnx.ModelProto:
    """Return a graph of one node from `x` to `y`."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def random(*shape: int) -> npt.NDArray[np.float32]:
    """Return random numbers."""
    return RANDOM.standard_normal(shape).astype(np.float32)


CONV = {"w": random(6, 4, 3, 3), "b": random(6)}
NODES = {
    "pads-apart": (helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[0, 1, 2, 3]), (2, 4, 9, 9), CONV),
    "strides": (
        helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 3], dilations=[2, 1], pads=[1, 1, 1, 1]),
        (2, 4, 9, 9),
        {"w": random(6, 4, 3, 3)},
    ),
    "auto-pad": (helper.make_node("Conv", ["x", "w", "b"], ["y"], auto_pad="SAME_UPPER"), (2, 4, 9, 9), CONV),
    "groups": (helper.make_node("Conv", ["x", "w"], ["y"], group=4), (2, 4, 9, 9), {"w": random(8, 1, 3, 3)}),
    "one-axis": (helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 0]), (2, 4, 9), {"w": random(6, 4, 3)}),
    "transposed": (helper.make_node("ConvTranspose", ["x", "w"], ["y"]), (2, 4, 5, 5), {"w": random(4, 3, 2, 2)}),
    "gemm": (
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], alpha=0.5, beta=2.0, transB=1),
        (3, 20),
        {"w": random(7, 20), "b": random(7)},
    ),
    "gemm-turned": (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), (20, 3), {"w": random(20, 7)}),
    "matmul": (helper.make_node("MatMul", ["x", "w"], ["y"]), (2, 3, 5, 20), {"w": random(20, 4)}),
    "softmax": (helper.make_node("Softmax", ["x"], ["y"], axis=1), (3, 20), {}),
    "resize": (
        helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"),
        (1, 2, 5, 5),
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
}


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16], ids=lambda item: item.value)
@pytest.mark.parametrize(("node", "shape", "weights"), NODES.values(), ids=NODES)
def test_every_form_of_a_node_is_computed(
    node: onnx.NodeProto, shape: tuple[int, ...], weights: dict[str, npt.NDArray[np.generic]], precision: Precision
) -> None:
    """Forms of convolutions and products are the same in torch and in ONNX Runtime, up to the rounding."""
    from onnxruntime import InferenceSession  # noqa: PLC0415 - beside its use

    model, x = one(node, shape, **weights), random(*shape)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    for sums in (False, True):
        (found,) = GraphEmulation(model, precision, sums=sums)(x)
        distance = relative(found, np.asarray(expected))
        assert found.shape == np.asarray(expected).shape
        assert distance < (1e-5 if precision is Precision.FP32 else 3e-3)
        if precision is Precision.FP16 or (precision is Precision.TF32 and node.op_type not in {"Softmax", "Resize"}):
            assert distance > 1e-5


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16], ids=lambda item: item.value)
@pytest.mark.parametrize("by_scales", [False, True], ids=["sizes", "scales"])
def test_sizes_are_exact(precision: Precision, *, by_scales: bool) -> None:
    """A resize to a computed size gives FP32's shape, and only its numbers are rounded, in another shape of images too.

    50 × 1.1 is 55 in FP32, and 54.97 in FP16.
    """
    model = grown(17, by_scales=by_scales)
    emulation, wide = GraphEmulation(model, precision), GraphEmulation(model, Precision.FP32)
    for height, width in [(50, 100), (37, 64)]:
        images = random(1, 3, height, width)
        (found,), (expected,) = emulation(images), wide(images)
        assert found.shape == expected.shape
        assert 1e-5 < relative(found, expected) < 1e-2


def test_a_constant_scale_is_exact() -> None:
    """BF16 holds no 1.3: a tensor of 10 would become one of 12."""
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="nearest")
    (found,) = GraphEmulation(one(node, (1, 1, 10, 10), s=np.array([1, 1, 1.3, 1.3], np.float32)), Precision.BF16)(
        random(1, 1, 10, 10)
    )
    assert found.shape == (1, 1, 13, 13)


def test_a_graph_in_a_node_is_refused() -> None:
    """Its inside would not be rounded, so that the bound would be too narrow or too wide; the gate needs its own."""
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["inner"])], "inner", [], [onnx.ValueInfoProto(name="inner")]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner, name="choice")
    with pytest.raises(RunError, match=r"(?s)a graph in a node cannot be rounded.*If 'choice'"):
        GraphEmulation(one(node, (2, 3), c=np.ones((), np.bool_)), Precision.FP16)
