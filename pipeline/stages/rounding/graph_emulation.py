"""The rounding of a precision in an ONNX graph, emulated node by node: the emulation of networks of torch, for graphs.

Products run in torch, whose emulation rounds their operands, results and sums. ONNX Runtime computes every other node
by itself, and its results are rounded as a torch operator's are. Sizes, and what they are computed of, stay exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from model_artifacts.errors import RunError, one_line
from model_artifacts.host.environment import threads
from model_artifacts.sessions.feeds.batches import feed_of, rows_of_batch, size_of
from pipeline.adapters.onnx_sizes import size_nodes, size_operands
from pipeline.stages.rounding.emulation import emulating, rounding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Precision
    from model_artifacts.sessions.feeds.batches import Batch

    Array = npt.NDArray[Any]

_ERRORS = 3
"""ONNX Runtime's log level of errors."""
_MULTIPLYING = {"Conv", "ConvTranspose", "Einsum", "Gemm", "GRU", "LSTM", "MatMul", "RNN"}
"""Operators whose operands a precision rounds."""
_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {
    3: functional.conv1d,
    4: functional.conv2d,
    5: functional.conv3d,
}


class GraphEmulation:
    """An ONNX graph in FP32 that rounds as a precision does."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, *, sums: bool = False) -> None:
        """Prepare a graph.

        Args:
            model: the FP32 graph, without functions.
            precision: fp32, tf32, fp16 or bf16.
            sums: True rounds the sums of convolutions and matrix products after every 16 products, too.

        Raises:
            RunError: a node holds a graph of its own (`If`, `Loop`, `Scan`), whose inside would not be rounded.
        """
        self._model, self._precision, self._sums = model, precision, sums
        self._stored, self._multiplied = rounding_of(precision)
        self._sizes = size_nodes(model.graph)
        self._computed = {name for number in self._sizes for name in model.graph.node[number].output}
        weights = {item.name: item for item in model.graph.initializer}
        exact = {
            node.input[place]
            for number, node in enumerate(model.graph.node)
            for place in self._exact_places(number, node)
            if place < len(node.input)
        }
        self._exact = {name: numpy_helper.to_array(weights[name]) for name in exact & weights.keys()}
        self._weights = {name: self._round(numpy_helper.to_array(item)) for name, item in weights.items()}
        self._sessions: dict[tuple[Any, ...], onnxruntime.InferenceSession] = {}
        self._last = {name: place for place, node in enumerate(model.graph.node) for name in node.input}
        for node in model.graph.node:
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                raise RunError("a graph in a node cannot be rounded", got=f"{node.op_type} {node.name!r}")

    def __call__(self, images: Batch) -> tuple[Array, ...]:
        """Return the graph's outputs for images, in its order.

        Args:
            images: float32 (batch, channels, height, width), or the arrays of several inputs by their names.
        """
        graph = self._model.graph
        kept = {output.name for output in graph.output} | self._weights.keys()
        values: dict[str, Any] = {**self._weights, **feed_of([value.name for value in graph.input], images)}
        for place, node in enumerate(graph.node):
            inputs = self._operands(place, node, values)
            results = None if place in self._sizes else self._product(node, inputs)
            if results is None:
                results = self._alone(place, node, inputs)
            values.update(zip(node.output, results, strict=False))
            for name in {*node.input, *node.output}:  # 64 images of every layer would not fit
                if name and self._last.get(name, place) <= place and name not in kept:
                    values.pop(name, None)
        return tuple(values[output.name] for output in graph.output)

    def _operands(self, number: int, node: onnx.NodeProto, values: dict[str, Any]) -> list[Any]:
        """Return a node's inputs: sizes as they are, and all else rounded."""
        exact = self._exact_places(number, node)
        found: list[Any] = []
        for place, name in enumerate(node.input):
            if not name:
                found.append(None)
            elif place in exact:
                found.append(self._exact.get(name, values[name]))
            else:
                found.append(self._round(values[name]) if name in self._computed else values[name])
        return found

    def _exact_places(self, number: int, node: onnx.NodeProto) -> Collection[int]:
        """Return the places of a node's inputs that are not rounded."""
        return range(len(node.input)) if number in self._sizes else size_operands(node)

    def _round(self, value: Any, rounded: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Any:  # noqa: ANN401 - a sequence is a list
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            return value
        return (rounded or self._stored)(torch.from_numpy(np.array(value))).numpy()

    def _product(self, node: onnx.NodeProto, inputs: list[Any]) -> list[Array] | None:
        """Return the result of a product in torch; None for any other node, and for one that torch has not."""
        if node.domain or node.op_type not in {"Conv", "Gemm", "MatMul"}:
            return None
        if any(value is not None and value.dtype != np.float32 for value in inputs):
            return None
        tensors: list[Any] = [None if value is None else torch.from_numpy(np.array(value)) for value in inputs]
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        with emulating(self._precision, sums=self._sums):
            if node.op_type == "MatMul":
                found: torch.Tensor | None = torch.matmul(tensors[0], tensors[1])
            elif node.op_type == "Gemm":
                found = _gemm(tensors, settings)
            else:
                found = _convolution(tensors, settings)
        return None if found is None else [found.numpy()]

    def _alone(self, place: int, node: onnx.NodeProto, inputs: list[Any]) -> list[Any]:
        """Return the rounded results of a node that ONNX Runtime computes by itself; those of sizes as they are."""
        is_size = place in self._sizes
        if node.op_type in _MULTIPLYING and not is_size:
            inputs = [self._round(value, self._multiplied) for value in inputs]
        operands = {name: value for name, value in zip(node.input, inputs, strict=True) if name and value is not None}
        given = {name: value for name, value in operands.items() if name not in self._weights}
        key = (place, *(value.shape for value in given.values() if isinstance(value, np.ndarray) and value.ndim == 1))
        if key not in self._sessions:
            weights = {name: value for name, value in operands.items() if name in self._weights}
            self._sessions[key] = self._session(node, given, weights)
        names = [name for name in node.output if name]
        try:
            results = dict(zip(names, self._sessions[key].run(names, given), strict=True))
        except Exception as exc:  # onnxruntime's exceptions have no common public base
            raise RunError(f"{node.op_type} {node.name!r} does not run by itself", got=one_line(exc)) from exc
        found = [results.get(name) for name in node.output]
        return found if is_size else [self._round(value) for value in found]

    def _session(
        self, node: onnx.NodeProto, given: dict[str, Any], weights: dict[str, Array]
    ) -> onnxruntime.InferenceSession:
        """Return a session of a graph that holds one node, with its weights.

        A vector has its length there: ONNX reads an unknown one as no sizes at all.
        """
        inputs = []
        for name, value in given.items():
            if not isinstance(value, np.ndarray):
                raise RunError(f"{node.op_type} {node.name!r} takes a sequence, which cannot be rounded")
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            shape = value.shape if value.ndim == 1 else [None] * value.ndim
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
        graph = helper.make_graph([node], "alone", inputs, outputs, stored)
        model = helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = _ERRORS
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # the same
            raise RunError(f"{node.op_type} {node.name!r} does not run by itself", got=one_line(exc)) from exc


def _gemm(tensors: list[Any], settings: dict[str, Any]) -> torch.Tensor:
    """Compute `alpha · A · B + beta · C` (ONNX, Gemm)."""
    left = tensors[0].T if settings.get("transA") else tensors[0]
    right = tensors[1].T if settings.get("transB") else tensors[1]
    alpha, beta = settings.get("alpha", 1.0), settings.get("beta", 1.0)
    bias = tensors[2] if len(tensors) > 2 else None  # noqa: PLR2004 - A, B and C
    if alpha == beta == 1 and bias is not None:
        return torch.addmm(bias, left, right)
    product: torch.Tensor = torch.mm(left, right)
    product = product if alpha == 1 else product.mul(alpha)
    return product if bias is None else product.add(bias if beta == 1 else bias.mul(beta))


def _convolution(tensors: list[Any], settings: dict[str, Any]) -> torch.Tensor | None:
    """Convolve; None for a padding that depends on the image's size (`auto_pad`)."""
    images, weights = tensors[:2]
    bias = tensors[2] if len(tensors) > 2 else None  # noqa: PLR2004 - images, weights and bias
    axes = images.ndim - 2
    if images.ndim not in _CONVOLUTIONS or settings.get("auto_pad", b"NOTSET") != b"NOTSET":
        return None
    pads = list(settings.get("pads", [0] * 2 * axes))
    begins, ends = pads[:axes], pads[axes:]
    if begins != ends:
        both = [size for pair in reversed(list(zip(begins, ends, strict=True))) for size in pair]
        images, begins = functional.pad(images, both), [0] * axes
    return _CONVOLUTIONS[images.ndim](
        images,
        weights,
        bias,
        stride=list(settings.get("strides", [1] * axes)),
        padding=begins,
        dilation=list(settings.get("dilations", [1] * axes)),
        groups=settings.get("group", 1),
    )


def emulate_graph(
    file: Path, precision: Precision, images: Batch, batch: int, runs: tuple[tuple[str, bool], ...]
) -> dict[str, Array]:
    """Return the flattened outputs of each emulation, by its name, those of several side by side.

    Call it in a process that may crash.

    Args:
        file: the FP32 graph.
        precision: fp32, tf32, fp16 or bf16.
        images: float32 (samples, channels, height, width), or the arrays of several inputs by their names.
        batch: the number of images at once.
        runs: the emulations: names, and whether their sums are rounded.

    Raises:
        RunError: a node cannot be run by itself.
    """
    model = onnx.load(file)
    found = {}
    for name, sums in runs:
        emulation = GraphEmulation(model, precision, sums=sums)
        starts = range(0, size_of(images), batch)
        parts = [emulation(rows_of_batch(images, slice(at, at + batch))) for at in starts]
        rows = [np.concatenate([output.reshape(len(output), -1) for output in part], axis=1) for part in parts]
        found[name] = np.concatenate(rows).astype(np.float32)
    return found
