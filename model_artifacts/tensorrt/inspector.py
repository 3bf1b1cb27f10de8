"""Layers of an engine, read from its inspector, and the types in which they multiply."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_artifacts.records import LayerShare, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

_MULTIPLIES = re.compile(r"conv|correlation|gemm|matmul|matrixmultiply|fullyconnected|\bfc\b", re.IGNORECASE)
"""Types of layers that are convolutions or matrix products: `CaskConvolution`, `CaskGemmConvolution`, `gemm` (8.6 and
10), `correlation` (TensorRT-RTX)."""

_COPIES = re.compile(r"reformat|copy|shuffle|transpose|reorder|^move$|^cast$", re.IGNORECASE)
"""Types of layers that compute nothing: `Reformat`, `Shuffle` (8.6 and 10), ONNX's `Transpose` and `Cast`, and ONNX
Runtime's `ReorderInput`."""

_TYPES = (
    (re.compile(r"\bint8\b", re.IGNORECASE), Precision.INT8),
    (re.compile(r"fp8|e4m3", re.IGNORECASE), Precision.FP8),
    (re.compile(r"bfloat16|bf16", re.IGNORECASE), Precision.BF16),
    (re.compile(r"half|fp16|float16", re.IGNORECASE), Precision.FP16),
    (re.compile(r"float|fp32", re.IGNORECASE), Precision.FP32),
)
"""The inspector's names of a tensor's type or format: `Half`, `Two wide channel vectorized row major FP16 format`."""

_PROFILE = re.compile(r"\[profile (\d+)\]")
"""The number of the optimization profile in a layer's name: `node_conv2d + node_relu [profile 1]`."""

_EXAMPLES = 32


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine."""

    name: str
    """The library's name of the layer."""
    kind: str
    """Type of the layer, in the library's words."""
    tactic: str
    """Name of the kernel; empty if the inspector does not report it."""
    precision: Precision | None
    """Type in which the layer multiplies; None if it does not multiply, or if the type is unknown."""
    shape: str = ""
    """Shape of the first output, such as `1x64x112x112`; empty if unknown."""
    weights: int = 0
    """Number of weight values; 0 also if unknown."""

    @property
    def multiplies(self) -> bool:
        """True for a convolution or a matrix product."""
        return _MULTIPLIES.search(self.kind) is not None

    @property
    def only_copies(self) -> bool:
        """True for a layer that changes a tensor's layout, type or place, and computes nothing."""
        return _COPIES.search(self.kind) is not None


def read_layers(text: str) -> tuple[EngineLayer, ...]:
    """Return the layers in an inspector's JSON.

    Args:
        text: the inspector's JSON.

    Returns:
        the layers; none if the engine was built without detailed profiling verbosity.
    """
    layers = json.loads(text, strict=False).get("Layers", [])  # 8.6 writes control characters unescaped
    return tuple(_layer(layer) for layer in layers if isinstance(layer, dict))


def of_profile(layers: tuple[EngineLayer, ...], profile: int) -> tuple[EngineLayer, ...]:
    """Return the layers of an optimization profile.

    The inspector shows the layers of all profiles, one profile after the other. It names the profile of most of them,
    but not the first one, and not of what TensorRT's own compiler adds: those go with the layers before them.

    Args:
        layers: all layers that the inspector shows.
        profile: the profile's number, from 0.
    """
    found, current = [], 0
    for layer in layers:
        if named := _PROFILE.search(layer.name):
            current = int(named[1])
        if current == profile:
            found.append(layer)
    return tuple(found)


def _layer(layer: dict[str, Any]) -> EngineLayer:
    kind = str(layer.get("LayerType", ""))
    if kind == "Reformat":
        return EngineLayer(str(layer.get("Name", "")), kind, "", None, _shape(layer))
    kind = str(layer.get("ParameterType") or kind)
    tactic = str(layer.get("TacticName", ""))
    name, shape, weights = str(layer.get("Name", "")), _shape(layer), layer.get("Weights")
    count = weights.get("Count") if isinstance(weights, dict) else None
    return EngineLayer(
        name, kind, tactic, _precision(layer, tactic), shape, count if isinstance(count, int) and count > 0 else 0
    )


def _shape(layer: dict[str, Any]) -> str:
    outputs = layer.get("Outputs") or []
    first = outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], dict) else {}
    sizes = first.get("Dimensions")
    return "x".join(map(str, sizes)) if isinstance(sizes, list) else ""


def _precision(layer: dict[str, Any], tactic: str) -> Precision | None:
    """Return the type of a layer's first input; a tactic's name shows if tensor cores multiply FP32 as TF32.

    For dynamic shapes TensorRT does not report an input's type ("N/A due to dynamic shapes"). Then the type of the
    weights counts.
    """
    inputs, weights = layer.get("Inputs") or [], layer.get("Weights")
    first = inputs[0] if inputs and isinstance(inputs[0], dict) else {}
    shown = [str(first.get(name, "")) for name in ("Format/Datatype", "Datatype", "Format")]
    shown.append(str(weights.get("Type", "")) if isinstance(weights, dict) else "")
    named = next((precision for text in shown for pattern, precision in _TYPES if pattern.search(text)), None)
    return Precision.TF32 if named is Precision.FP32 and "tf32" in tactic.lower() else named


def shares(layers: tuple[EngineLayer, ...]) -> tuple[LayerShare, ...]:
    """Count the convolutions and matrix products by the type in which they multiply, the most frequent first."""
    return count_by_type((layer.precision, layer.name) for layer in layers if layer.multiplies)


def count_by_type(layers: Iterable[tuple[Precision | None, str]]) -> tuple[LayerShare, ...]:
    """Count layers by type, the most frequent first.

    Args:
        layers: the type in which each layer multiplies, and the layer's name.
    """
    by_type: dict[Precision | None, list[str]] = {}
    for precision, name in layers:
        by_type.setdefault(precision, []).append(name)
    ordered = sorted(by_type.items(), key=lambda item: -len(item[1]))
    return tuple(
        LayerShare(precision=precision, layers=len(names), examples=tuple(names[:_EXAMPLES]))
        for precision, names in ordered
    )
