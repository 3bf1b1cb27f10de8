"""Torch module → ONNX graph: constants that TensorRT can read, and batch-norms that are folded once or not at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime import InferenceSession
from torch import nn

from model_artifacts.errors import BuildError, ExportError, MemoryShortageError
from model_artifacts.records import EngineFlavour
from model_artifacts.sessions.arithmetic import strict_fp32
from model_artifacts.sessions.torch_model import Typed, fold_batch_norms, share_weights
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour, make_logger
from pipeline.adapters.tensorrt_builder import parse
from pipeline.stages.export.graph import to_onnx
from tests.support.factories import SharedConvolution

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.export.graph import Exported

SHAPE = (3, 16, 16)
TYPES = {torch.float32: 17, torch.float16: 17, torch.bfloat16: 22}
"""Opset of each type."""


class Preactivation(nn.Module):
    """Batch-norms in front of convolutions, one of which follows a concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.before, self.conv = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3, padding=1, bias=False)
        self.last, self.head = nn.BatchNorm2d(12), nn.Linear(12, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        features = self.norm(self.stem(image)).relu()
        features = torch.cat([features, self.conv(self.before(features).relu())], dim=1)
        logits: torch.Tensor = self.head(self.last(features).mean((2, 3)))
        return logits


class Untraceable(nn.Module):
    """Takes a branch on a size, which torch.fx cannot trace; its only batch-norm follows a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        features = self.norm(self.conv(image))
        if features.shape[-1] > 1:
            features = features.mean((2, 3), keepdim=True)
        logits: torch.Tensor = self.head(features.flatten(1))
        return logits


class Functional(nn.Module):
    """Normalises by a function, so that it has no batch-norm module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.mean, self.var = nn.Buffer(torch.zeros(8)), nn.Buffer(torch.ones(8))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        features = nn.functional.batch_norm(self.conv(image), self.mean, self.var)
        logits: torch.Tensor = self.head(features.mean((2, 3)))
        return logits


class Fourier(nn.Module):
    """Mixes pixels by a Fourier transform, which knows no half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        logits: torch.Tensor = self.head(torch.fft.fft2(image, norm="ortho").real.mean((2, 3)))
        return logits


class LargeLetters(nn.Module):
    """Names the axes of a product by capital letters and words apart, as MaxViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3, 5, 4))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        logits: torch.Tensor = torch.einsum("B c H W, c K H -> B K", image[..., :4, :], self.weight)
        return logits


class Scaled(nn.Module):
    """Computes with weights and Python's numbers, as normaliser-free networks and Swin V2 do."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.gain = nn.Parameter(torch.rand(3, 1, 1) * 3), nn.Parameter(torch.rand(5, 3))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        features = (image * self.scale.clamp(max=1.5).exp()).mean((2, 3))
        return nn.functional.linear(features, self.gain * 0.5)


class Maxima(nn.Module):
    """Takes maxima of windows of unequal sizes, of equal ones, and of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.uneven, self.even, self.last = (nn.AdaptiveMaxPool2d(size) for size in ((5, 6), (5, 3), 1))
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        features = self.even(self.uneven(self.first(image)))
        logits: torch.Tensor = self.last(self.second(features)).flatten(1)
        return logits


class Float32Inside(nn.Module):
    """Adds a table of float32 to its features, whatever type it is cast to."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        logits: torch.Tensor = self.head(image.mean((2, 3)) + torch.arange(3, dtype=torch.float32))
        return logits


class Exponential(nn.Module):
    """Takes the exponential of a matrix, which ONNX does not know."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 16)."""
        logits: torch.Tensor = torch.linalg.matrix_exp(image[:, 0] / 100).sum(1)
        return logits


class Guarded(nn.Module):
    """Divides by a length and a tiny number, which keeps features that are all zero at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        features = self.conv(image).relu().mean((2, 3))
        logits: torch.Tensor = self.head(features / (features.norm(dim=1, keepdim=True) + 1e-12) * (1 + 1e-6) - 1e-9)
        return logits


NETWORKS = {
    "guarded": Guarded,
    "scaled": Scaled,
    "maxima": Maxima,
    "einsum": LargeLetters,
    "preactivation": Preactivation,
    "shared": SharedConvolution,
    "untraceable": Untraceable,
    "functional": Functional,
}


def network(name: str) -> nn.Module:
    """Return a network whose batch-norms have statistics that matter."""
    torch.manual_seed(1)
    model = NETWORKS[name]().eval()
    for key, tensor in model.state_dict().items():
        if "norm" in key or "first" in key or "mean" in key or "var" in key:
            tensor.uniform_(0.5, 1.5) if tensor.is_floating_point() else None
    return model


def exported(model: nn.Module, dtype: torch.dtype = torch.float32) -> Exported:
    """Export a network as the stage does."""
    return to_onnx(Typed(share_weights(fold_batch_norms(model, SHAPE).model), dtype).eval(), SHAPE, TYPES[dtype])


def parsed(model: onnx.ModelProto, folder: Path) -> int:
    """Return the number of layers of TensorRT-RTX's network of a graph."""
    onnx.save(model, folder / "graph.onnx")
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    logger = make_logger(flavour.module, BuildLog())
    layers: int = parse(flavour, flavour.module.Builder(logger), logger, folder / "graph.onnx").num_layers
    return layers


@pytest.mark.part(6)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_takes_the_graph(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Axes and shapes are constants in every precision, whether or not all batch-norms can be folded."""
    if (name, dtype) == ("einsum", torch.bfloat16):
        pytest.skip("ONNX has no Einsum in bfloat16")
    assert parsed(exported(network(name), dtype).model, tmp_path) > 3


class Activated(nn.Module):
    """A convolution with an activation, as MobileNetV3, YOLOv4 and the metric networks have them."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.conv, self.activation = nn.Conv2d(3, 8, 3), activation

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 8), of unit length."""
        return nn.functional.normalize(self.activation(self.conv(image)).mean((2, 3)))


@pytest.mark.parametrize(
    "activation", [nn.Hardswish(), nn.Mish(), nn.CELU(0.5), nn.GELU(), nn.SiLU()], ids=lambda item: type(item).__name__
)
def test_operators_that_tensorrt_refuses_in_bf16_are_written_with_others(activation: nn.Module, tmp_path: Path) -> None:
    """TensorRT's parser has no HardSwish or Mish in bfloat16. Their definitions by other operators it takes."""
    torch.manual_seed(3)
    model, images = Activated(activation).eval(), torch.rand(3, *SHAPE)
    with torch.no_grad():
        expected = model(images).numpy()

    graph = exported(model, torch.bfloat16).model

    assert parsed(graph, tmp_path) > 3
    (got,) = ReferenceEvaluator(graph).run(None, {"image": images.numpy()})
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.part(3)
@pytest.mark.parametrize("name", NETWORKS)
def test_graph_gives_the_networks_logits(name: str) -> None:
    """Folding neither loses a batch-norm nor folds one twice."""
    model, images = network(name), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    with strict_fp32():
        expected = model(images).numpy()

    session = InferenceSession(exported(model).model.SerializeToString(), providers=["CPUExecutionProvider"])

    np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


def test_numbers_near_zero_and_one_are_kept() -> None:
    """The exporter's optimiser takes them for 0 and 1: a black image would be divided by nothing."""
    model = network("guarded")
    session = InferenceSession(exported(model).model.SerializeToString())
    with strict_fp32():
        expected = model(torch.zeros(1, *SHAPE)).numpy()

    (found,) = session.run(None, {"image": np.zeros((1, *SHAPE), np.float32)})

    np.testing.assert_allclose(found, expected, rtol=1e-5)
    numbers = {float(numpy_helper.to_array(item)) for item in exported(model).model.graph.initializer if not item.dims}
    assert {round(number, 7) for number in numbers} >= {1.000001}


def test_weights_beside_numbers_keep_their_type() -> None:
    """A product of a weight and Python's number has the values of PyTorch's in FP16."""
    model, images = network("scaled"), torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2))
    typed = Typed(share_weights(model), torch.float16).eval()
    with strict_fp32():
        expected = typed(images).numpy()

    session = InferenceSession(to_onnx(typed, SHAPE, 17).model.SerializeToString(), providers=["CPUExecutionProvider"])

    np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected, rtol=5e-3)


def test_fp32_folds_a_batch_norm_that_is_no_module() -> None:
    """The exporter's optimiser folds the batch-norm that follows a convolution, and counts it."""
    graph = exported(network("functional"))

    assert graph.batch_norms == 1
    assert "BatchNormalization" not in {node.op_type for node in graph.model.graph.node}


@pytest.mark.parametrize("dtype", TYPES)
def test_what_torch_fx_cannot_trace_is_folded_in_fp32(dtype: torch.dtype) -> None:
    """No graph has a batch-norm, and the weights are the product in FP32, rounded once."""
    model = network("untraceable")
    norm = model.get_submodule("norm")
    with torch.no_grad():
        scale = norm.get_parameter("weight") / (norm.get_buffer("running_var") + 1e-5).sqrt()
        expected = (model.get_parameter("conv.weight") * scale[:, None, None, None]).to(dtype).float().numpy()

    graph = exported(model, dtype).model.graph

    (convolution,) = (node for node in graph.node if node.op_type == "Conv")
    (weight,) = (numpy_helper.to_array(item) for item in graph.initializer if item.name == convolution.input[1])
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    np.testing.assert_allclose(weight.astype(np.float32), expected, rtol=4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["functional"])
def test_no_batch_norm_is_folded_in_a_narrow_type(name: str, dtype: torch.dtype) -> None:
    """The graph keeps the batch-norm, its weights are the model's own, and all have the graph's type."""
    model = network(name)
    graph = exported(model, dtype)

    nodes = [node for node in graph.model.graph.node if node.op_type == "BatchNormalization"]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.model.graph.initializer}
    weight = next(value for name, value in tensors.items() if name.endswith("conv.weight"))
    floating = {str(value.dtype) for value in tensors.values() if value.dtype.kind not in "iu"}
    assert (graph.batch_norms, [node.domain for node in nodes]) == (0, [""])
    assert {entry.domain for entry in graph.model.opset_import} == {""}
    assert floating == {str(dtype).removeprefix("torch.")}
    np.testing.assert_array_equal(
        weight.astype(np.float32), model.state_dict()["conv.weight"].to(dtype).float().numpy()
    )


def test_exporting_does_not_keep_or_change_the_weights() -> None:
    """The export reads the model's own tensors, and leaves them as they were."""
    model = network("preactivation")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    exported(model, torch.float16)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_operator_without_half_precision_is_named() -> None:
    """The message names the operator or the line of the model, the type, and the remedies."""
    traced, untraced = fold_batch_norms(Fourier().eval(), SHAPE).model, Fourier().eval()

    with pytest.raises(
        ExportError, match=r"does not compute in float16\n  where: +the operator fft_fft2[\s\S]*Half[\s\S]*precisions"
    ):
        to_onnx(Typed(traced, torch.float16).eval(), SHAPE, 17)
    with pytest.raises(ExportError, match=r"where: +test_graph\.py:\d+: .*torch\.fft\.fft2\(image"):
        to_onnx(Typed(untraced, torch.float16).eval(), SHAPE, 17)


def test_a_type_that_mixes_with_float32_is_refused_by_line() -> None:
    """PyTorch does not multiply FP16 by float32, and the exporter's graph is not valid: the message has the cause."""
    with pytest.raises(ExportError, match=r"does not compute in float16\n  where: .*head[\s\S]*fix: .*`\.float"):
        to_onnx(Typed(Float32Inside().eval(), torch.float16).eval(), SHAPE, 17)


def test_operator_that_onnx_lacks_is_named() -> None:
    """The message names the operator, and the artifacts that do without it."""
    with pytest.raises(ExportError, match=r"where: +the operator linalg_matrix_exp[\s\S]*fix: .*other operators"):
        to_onnx(Typed(Exponential().eval(), torch.float32).eval(), SHAPE, 17)


def test_a_branch_on_a_large_batch_is_refused() -> None:
    """A graph has one way only, so that the network's answers for large batches would be lost."""

    class Branch(Scaled):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) * (2 if image.shape[0] > 8 else 1)

    with pytest.raises(ExportError, match=r"on the batch size[\s\S]*for more than 8 images[\s\S]*x\.shape\[0\]"):
        to_onnx(Typed(Branch().eval(), torch.float32).eval(), SHAPE, 17)


def test_a_loop_over_the_images_is_refused_with_the_remedy() -> None:
    """The number of images becomes a part of such a graph."""

    class Loop(Scaled):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.stack([super(Loop, self).forward(one[None])[0] for one in image])

    with pytest.raises(ExportError, match=r"a fixed batch of 2 images\n  fix: .*`x\.shape\[0\]`"):
        to_onnx(Typed(Loop().eval(), torch.float32).eval(), SHAPE, 17)


def test_tensorrts_refusal_names_operator_and_node(tmp_path: Path) -> None:
    """An operator that TensorRT lacks is named once, with its node."""
    graph = exported(Fourier().eval()).model
    node = next(node for node in graph.graph.node if node.op_type == "DFT")

    with pytest.raises(BuildError, match=rf"refuses DFT[\s\S]*DFT \(node '{node.name}'\): unsupported node"):
        parsed(graph, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_lack_of_memory_is_said(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that runs out of memory is not taken for a model that torch cannot trace."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(MemoryShortageError, match="this machine ran out of memory"):
        exported(network("untraceable"))
