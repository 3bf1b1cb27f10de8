"""Operators that torch's exporter leaves out, written in ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from onnxscript import opset18 as op

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_INT64 = 7
"""The number of this type in ONNX (`onnx.TensorProto.INT64`)."""


def adaptive_max_pool2d(image: Any, output_size: Sequence[int]) -> tuple[Any, Any]:  # noqa: ANN401 - onnxscript's own
    """Take the maximum of each window, whose borders torch rounds outwards: window i of n is [i·size/n, (i+1)·size/n).

    Args:
        image: (…, height, width), of known height and width.
        output_size: the number of windows along each of the two.

    Returns:
        the maxima, and a tensor in the place of their indices, which only `MaxUnpool2d` reads.
    """
    sizes = [int(size) for size in tuple(image.shape)[-2:]]
    if all(size % count == 0 for size, count in zip(sizes, output_size, strict=True)):
        windows = [size // count for size, count in zip(sizes, output_size, strict=True)]
        maxima, _ = op.MaxPool(image, kernel_shape=windows, strides=windows)
    else:
        maxima = image
        for axis, size, count in zip((-2, -1), sizes, output_size, strict=True):
            borders = [(index * size // count, -(-(index + 1) * size // count)) for index in range(count)]
            parts = [op.Slice(maxima, _vector(start), _vector(stop), _vector(axis)) for start, stop in borders]
            maxima = op.Concat(*(op.ReduceMax(part, _vector(axis), keepdims=1) for part in parts), axis=axis)
    return maxima, op.Cast(maxima, to=_INT64)


def _vector(value: int) -> Any:  # noqa: ANN401 - the same
    return op.Constant(value_ints=[value])


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.adaptive_max_pool2d.default: adaptive_max_pool2d
}
"""Translations by operator, for the exporter's `custom_translation_table`."""
