"""TensorRT's tensors → the specs of inputs and outputs, with the ranges of their axes, and the batches of an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.records import AxisRange, BatchRange, TensorSpec
from model_artifacts.tensorrt.refitter import refused

if TYPE_CHECKING:
    from model_artifacts.tensorrt.flavour import BuildLog

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


def batches_of(engine: Any, inputs: list[str], log: BuildLog) -> BatchRange:  # noqa: ANN401 - TensorRT is untyped
    """Return the batch sizes of an engine's optimization profiles.

    Raises:
        RunError: its inputs differ, or it has several profiles that are no fixed sizes in ascending order.
    """
    found: list[tuple[int, ...]] = []
    for profile in range(max(1, engine.num_optimization_profiles)):
        ranges = {_batches(engine, name, profile) for name in inputs}
        if len(ranges) > 1:
            raise refused(
                "the inputs take other batches than each other", log, "one range of batch sizes for all inputs"
            )
        found += ranges
    if len(found) == 1:
        low, best, high = found[0]
        return BatchRange(min=low, opt=best, max=high)
    sizes = tuple(high for _, _, high in found)
    if any(low != high for low, _, high in found) or list(sizes) != sorted(set(sizes)):
        raise refused(
            f"the engine has the profiles {', '.join(map(str, found))}",
            log,
            "a fixed size for each of several profiles",
        )
    return BatchRange(min=1, opt=sizes[-1], max=sizes[-1], tuned=sizes)


def _batches(engine: Any, name: str, profile: int) -> tuple[int, ...]:  # noqa: ANN401 - TensorRT is untyped
    """Return the smallest, the best and the largest batch of an input in an optimization profile."""
    return tuple(int(next(iter(shape))) for shape in engine.get_tensor_profile_shape(name, profile))
