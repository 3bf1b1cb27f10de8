"""Dynamic axes of images beside the batch: torch's dimensions for them, and the refusal of graphs that fix them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from model_artifacts.errors import ExportError
from pipeline.config.axes import PICTURE_AXES

if TYPE_CHECKING:
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
    """Refuse a graph whose input has another size or name for an axis, or whose outputs follow it.

    Raises:
        ExportError: an axis is fixed in the graph, or the shape of an output depends on it.
    """
    for axis in axes:
        size = graph.input[0].type.tensor_type.shape.dim[place_of(axis)]
        if size.dim_param != axis.name:
            raise _fixed(axis, size.dim_param or str(size.dim_value))
    for value in graph.output if axes else ():
        shape = [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        if any(not isinstance(size, int) for size in shape[1:]):
            raise ExportError(
                "the shape of an output depends on the size of the image",
                where=f"output {value.name!r}",
                expected="one shape for images of every size, as a classifier's or an embedding's",
                got=f"({', '.join(map(str, shape))})",
                fix="write the batch alone in `profiles`: such outputs are judged at one size",
            )


def _fixed(axis: AxisRange, got: str) -> ExportError:
    return ExportError(
        f"the model does not take every {axis.name} in its range",
        expected=f"{axis.name} {axis.min} to {axis.max}, as `profiles` says",
        got=got,
        fix=_FIX,
    )
