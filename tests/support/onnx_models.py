"""Small ONNX files, built node by node, and the configuration that takes one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipeline.planning.project import Project
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    import numpy.typing as npt

SIZE = 16
"""Height and width of the images."""
CLASSES = 5
MEANS = np.array([0.09, 0.40, 0.21, 0.28, 0.19, 0.74, 0.33, 0.37], np.float32)
"""The classifier's features, as means over 200 of scikit-learn's photographs: without them one class is all answers."""


def weights_of(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return random weights whose products keep the size of their operands."""
    fan = max(1, int(np.prod(shape[1:])))
    drawn: npt.NDArray[np.float32] = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return drawn / np.float32(np.sqrt(fan))


def make(  # noqa: PLR0913 - the kinds of files that exporters write
    *,
    batch: int | str = "batch",
    opset: int = 13,
    side: int | str = SIZE,
    softmax: bool = False,
    tail: Sequence[onnx.NodeProto] = (),
    extra: Sequence[tuple[str, npt.NDArray[Any]]] = (),
    output: str = "scores:0",
    flat: Sequence[int] | None = None,
) -> onnx.ModelProto:
    """Return a classifier: a convolution with batch-norm, a ReLU, a mean, and a matrix product.

    Args:
        batch: the first axis of the input, a size or a name.
        opset: the operator set.
        side: the height and width of the input, a size or a name.
        softmax: True ends it in a softmax.
        tail: nodes behind the logits, from `logits` to `output`, in place of the softmax.
        extra: further initialisers.
        output: the name of the output.
        flat: the constant shape of the reshape before the product; None flattens in any batch.
    """
    matrix = 3 * weights_of(8, CLASSES, seed=1)
    arrays = {
        "kernel": weights_of(8, 3, 3, 3),
        "scale": np.linspace(0.5, 1.5, 8, dtype=np.float32),
        "shift": np.linspace(-0.2, 0.2, 8, dtype=np.float32),
        "mean": np.linspace(-0.1, 0.1, 8, dtype=np.float32),
        "variance": np.linspace(0.5, 2, 8, dtype=np.float32),
        "matrix": matrix,
        "bias": -MEANS @ matrix,
        **dict(extra),
    }
    if flat is not None:
        arrays["flat"] = np.array(flat, dtype=np.int64)
    end = list(tail) or [helper.make_node("Softmax" if softmax else "Identity", ["logits"], [output])]
    nodes = [
        helper.make_node("Conv", ["pixels/in:0", "kernel"], ["convolved"], pads=[1, 1, 1, 1], name="first"),
        helper.make_node(
            "BatchNormalization", ["convolved", "scale", "shift", "mean", "variance"], ["normal"], epsilon=1e-5
        ),
        helper.make_node("Relu", ["normal"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["row"])
        if flat is None
        else helper.make_node("Reshape", ["pooled", "flat"], ["row"]),
        helper.make_node("Gemm", ["row", "matrix", "bias"], ["logits"], name="last"),
        *end,
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("pixels/in:0", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def configuration(file: Path, *, more: str = "data: {calibration: 8, validation: 40}", task: str = "") -> str:
    """Return the configuration of an ONNX file; `more` holds further top-level keys."""
    return f"""\
model: {{name: tiny, onnx: "{file}"{task and f", task: {task}"}}}
preprocessing:
  {{resize: {SIZE}, crop: {SIZE}, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25], order: rgb}}
precisions: [fp32, fp16, bf16, int8]
profiles: [{{min: 1, opt: 2, max: 4}}]
workspaces: [16MiB]
benchmark: {{batches: [2], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}}
{more}
"""


def project_of(model: onnx.ModelProto, folder: Path, write_config: Callable[[str], Path], *, task: str = "") -> Project:
    """Write a model beside a configuration that takes it, and return the project, of which nothing is made yet."""
    file = folder / "own.onnx"
    onnx.save(model, file)
    return Project.load(write_config(configuration(file, task=task)), STAGES)


def in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its weights, its input and its outputs in float64."""
    return _in(model, TensorProto.DOUBLE)


def in_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its weights, its input and its outputs in bfloat16."""
    return _in(model, TensorProto.BFLOAT16)


def _in(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for item in (weight for weight in made.graph.initializer if weight.data_type == TensorProto.FLOAT):
        item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item).astype(dtype), item.name))
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = kind
    return made
