"""TensorRT's tensors → the specs of inputs and outputs, with the ranges of their dynamic axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.records import AxisRange, TensorSpec

if TYPE_CHECKING:
    from model_artifacts.records import BatchRange

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
}
"""TensorRT's names of types → the records' names."""


def spec_of(engine: Any, name: str) -> TensorSpec:  # noqa: ANN401 - TensorRT is untyped
    """Return the spec of an engine's input or output."""
    shape = tuple(engine.get_tensor_shape(name))
    return tensor_spec(name, shape, engine.get_tensor_dtype(name))


def input_of(engine: Any, name: str) -> TensorSpec:  # noqa: ANN401 - TensorRT is untyped
    """Return the spec of an input with the ranges of its dynamic axes beside the batch."""
    spec = spec_of(engine, name)
    ends = zip(*(tuple(shape) for shape in engine.get_tensor_profile_shape(name, 0)), strict=True)
    ranges = tuple(
        AxisRange(name=axis, min=int(low), opt=int(best), max=int(high))
        for axis, (low, best, high) in zip(spec.shape, ends, strict=True)
        if isinstance(axis, str)
    )
    return spec.with_ranges(ranges)


_PICTURE = {2: "height", 3: "width"}
"""Names of the axes of images in NCHW, by their places. Engines keep no names of axes."""


def tensor_spec(name: str, shape: tuple[int, ...], dtype: Any, names: tuple[str, ...] = ()) -> TensorSpec:  # noqa: ANN401 - TensorRT is untyped
    """Return the spec of an input or output of a network or an engine; four axes without names are taken for NCHW.

    Args:
        name: name of the tensor.
        shape: sizes of the axes; -1 is a dynamic one, the first of them the batch.
        dtype: TensorRT's type of the elements.
        names: names of the axes, as far as they are known.
    """
    known = {**dict(enumerate(names)), 0: "batch"}
    usual = _PICTURE if len(shape) == len("NCHW") else {}
    axes = tuple(
        known.get(place) or usual.get(place) or f"axis_{place}" if size == -1 else int(size)
        for place, size in enumerate(shape)
    )
    kind = str(dtype).rpartition(".")[2]
    return TensorSpec(name=name, shape=axes, dtype=_DTYPES.get(kind, kind), layout="NCHW"[: len(shape)])


def output_of(engine: Any, name: str, batches: BatchRange) -> TensorSpec:  # noqa: ANN401 - TensorRT is untyped
    """Return an output of an engine, whose first axis is the batch if the engine takes several sizes.

    TensorRT 10.6 shows the size of the first profile there, if each profile has one size alone.
    """
    spec = spec_of(engine, name)
    return spec.model_copy(update={"shape": ("batch", *spec.shape[1:])}) if batches.tuned else spec
