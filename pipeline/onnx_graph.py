"""ONNX files as the pipeline sees them: inputs, outputs, and a digest of what they compute."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.records import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

    import onnx.onnx_ml_pb2 as pb


def check(file: Path) -> None:
    """Run the ONNX checker in full, shape inference included.

    Raises:
        onnx.checker.ValidationError: the graph is not valid.
        onnx.shape_inference.InferenceError: its shapes contradict each other.
    """
    onnx.checker.check_model(str(file), full_check=True)


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"})


def tensor_specs(values: list[pb.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """Return the specs of a graph's inputs or outputs; four axes are taken for NCHW."""
    specs = []
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
        specs.append(TensorSpec(name=value.name, shape=shape, dtype=dtype, layout="NCHW"[: len(shape)]))
    return tuple(specs)


def canonical_digest(model: onnx.ModelProto) -> str:
    """Return the SHA-256 of what the graph computes.

    Counted: nodes with their attributes, initialisers with their values (external data must have been loaded), inputs,
    outputs and operator sets. Not counted: names of nodes, producer, documentation, metadata, how values are encoded.
    """
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode())

    add("opset", sorted((entry.domain, entry.version) for entry in model.opset_import))
    for value in (*model.graph.input, *model.graph.output):
        add(value.name, value.type.SerializeToString(deterministic=True))
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        add(tensor.name, tensor.data_type, tuple(tensor.dims))
        digest.update(numpy_helper.to_array(tensor).tobytes())
    for node in model.graph.node:
        attributes = sorted(_attribute(attribute) for attribute in node.attribute)
        add(node.domain, node.op_type, tuple(node.input), tuple(node.output), attributes)
    return digest.hexdigest()


def _attribute(attribute: pb.AttributeProto) -> tuple[str, bytes]:
    bare = onnx.AttributeProto()
    bare.CopyFrom(attribute)
    bare.ClearField("doc_string")
    return attribute.name, bare.SerializeToString(deterministic=True)
