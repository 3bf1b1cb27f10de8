"""Dynamic axes of images beside the batch: torch's dimensions for them, their names, and graphs that fix them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from model_artifacts.errors import ExportError
from pipeline.config.axes import PICTURE_AXES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from model_artifacts.records import AxisRange

_FIRST = 2
"""The place of the height in NCHW; the width follows it."""
_FIX = (
    "let forward read the size where it needs it (`x.shape[2]`), and take a layer that fits all sizes, such as "
    "`AdaptiveAvgPool2d`; or write the batch alone in `profiles`"
)


def place_of(axis: AxisRange) -> int:
    """Return the place of an axis in NCHW."""
    return _FIRST + PICTURE_AXES.index(axis.name)


def dims_of(axes: tuple[AxisRange, ...]) -> dict[int, torch.export.Dim]:
    """Return torch's dimension of each axis, by its place in NCHW."""
    return {place_of(axis): torch.export.Dim(axis.name, min=axis.min, max=axis.max) for axis in axes}


def require_free_axes(program: torch.onnx.ONNXProgram, axes: tuple[AxisRange, ...]) -> None:
    """Refuse a trace that holds for one size of an axis, for a part of its range, or for multiples of a number alone.

    torch 2.11's exporter may do so in silence, as for the batch.

    Raises:
        ExportError: an axis is fixed, or takes other sizes than its range.
    """
    exported: Any = program.exported_program
    names = set(exported.graph_signature.user_inputs)
    given = next(node for node in exported.graph.nodes if node.op == "placeholder" and node.name in names)
    sizes = {axis: given.meta["val"].shape[place_of(axis)] for axis in axes}
    seen = set()
    for axis, size in sizes.items():
        expression = size.node.expr if isinstance(size, torch.SymInt) else None
        if expression is None or not expression.is_Symbol or expression in seen:
            got = "the same size as another axis" if expression in seen and expression is not None else str(size)
            raise _fixed(axis, got)
        seen.add(expression)
        limits = exported.range_constraints.get(expression)
        if limits is not None and (limits.upper < axis.max or limits.lower > axis.min):
            raise _fixed(axis, f"another way through forward outside of {limits.lower} to {limits.upper}")


def require_named_axes(graph: onnx.GraphProto, axes: tuple[AxisRange, ...]) -> None:
    """Refuse a graph whose input has another size or name for an axis.

    Raises:
        ExportError: an axis is fixed in the graph.
    """
    for axis in axes:
        size = graph.input[0].type.tensor_type.shape.dim[place_of(axis)]
        if size.dim_param != axis.name:
            raise _fixed(axis, size.dim_param or str(size.dim_value))


def name_outputs(graph: onnx.GraphProto, axes: Sequence[tuple[int | str, ...]]) -> None:
    """Name the axes of a graph's outputs as the network's own outputs have them at several sizes, in place.

    torch's exporter names them by formulas of its own, such as `((height - 1)//4) + 1`.

    Args:
        graph: the graph.
        axes: the axes of each output for one image: a size, or the name of a dynamic axis.

    Raises:
        ExportError: the graph has one size where the network's outputs follow the image, or the other way round.
    """
    for value, wanted in zip(graph.output, axes, strict=True):
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_param or dim.dim_value for dim in dims][1:]
        pairs = list(zip(shape, wanted, strict=False))
        if len(shape) != len(wanted) or any(isinstance(got, int) and got and got != want for got, want in pairs):
            raise _other_axes(value.name, wanted, shape)
        if any(isinstance(want, int) and got != want for got, want in pairs):
            raise _other_axes(value.name, wanted, shape)
        for dim, want in zip(list(dims)[1:], wanted, strict=True):
            if isinstance(want, str):
                dim.dim_param = want


def _other_axes(output: str, wanted: Sequence[int | str], got: Sequence[int | str]) -> ExportError:
    return ExportError(
        "the shape of an output follows the size of the image in another way than the network's",
        where=f"output {output!r} of the exported graph",
        expected=f"(batch, {', '.join(map(str, wanted))})",
        got=f"(batch, {', '.join(str(size or '?') for size in got)})",
        fix="let forward read the size where it needs it (`size=image.shape[-2:]`), and give other axes one size; or "
        "write the batch alone in `profiles`",
    )


def _fixed(axis: AxisRange, got: str) -> ExportError:
    return ExportError(
        f"the model does not take every {axis.name} in its range",
        expected=f"{axis.name} {axis.min} to {axis.max}, as `profiles` says",
        got=got,
        fix=_FIX,
    )
