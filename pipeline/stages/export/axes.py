"""Dynamic axes of inputs beside the batch: torch's dimensions for them, their names, and graphs that fix them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from model_artifacts.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from model_artifacts.records import AxisRange, TensorSpec

_FIX = (
    "let forward read the size where it needs it (`x.shape[2]`), and take layers that fit all sizes, such as "
    "`AdaptiveAvgPool2d`; or write the batch alone in `profiles`"
)


@dataclass(frozen=True)
class Axes:
    """The dynamic axes of a model's inputs beside the batch."""

    inputs: tuple[TensorSpec, ...] = ()
    """The inputs in the model's order, with the names of these axes in the place of their sizes."""
    ranges: tuple[AxisRange, ...] = ()
    """The range of each axis, by its name."""

    def places(self) -> Iterator[tuple[int, int, AxisRange]]:
        """Yield the number of an input, the place of an axis in it, and the axis."""
        known = {axis.name: axis for axis in self.ranges}
        for number, spec in enumerate(self.inputs):
            for place, size in enumerate(spec.shape):
                if place and isinstance(size, str):
                    yield number, place, known[size]


NO_AXES = Axes()


def dims_of(axes: Axes, count: int) -> tuple[dict[int, torch.export.Dim], ...]:
    """Return torch's dimension of each axis by its place, for each of several inputs. One name is one dimension.

    Args:
        axes: the dynamic axes.
        count: the number of inputs.
    """
    dims = {axis.name: torch.export.Dim(axis.name, min=axis.min, max=axis.max) for axis in axes.ranges}
    found: tuple[dict[int, torch.export.Dim], ...] = tuple({} for _ in range(count))
    for number, place, axis in axes.places():
        found[number][place] = dims[axis.name]
    return found


def require_free_axes(program: torch.onnx.ONNXProgram, axes: Axes) -> None:
    """Refuse a trace that holds for one size of an axis, for a part of its range, or for multiples of a number alone.

    torch 2.11's exporter may do so in silence, as for the batch.

    Raises:
        ExportError: an axis is fixed, or takes other sizes than its range.
    """
    exported: Any = program.exported_program
    names = set(exported.graph_signature.user_inputs)
    given = [node for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]
    seen: dict[Any, str] = {}
    for number, place, axis in axes.places():
        value = given[number].meta.get("val")
        if value is None:
            continue  # the network does not use this input
        size = value.shape[place]
        expression = size.node.expr if isinstance(size, torch.SymInt) else None
        if expression is None or not expression.is_Symbol:
            raise _fixed(axis, str(size))
        if (other := seen.setdefault(expression, axis.name)) != axis.name:
            raise _fixed(axis, f"the same size as {other}")
        limits = exported.range_constraints.get(expression)
        if limits is not None and (limits.upper < axis.max or limits.lower > axis.min):
            raise _fixed(axis, f"another way through forward outside of {limits.lower} to {limits.upper}")


def require_named_axes(graph: onnx.GraphProto, axes: Axes) -> None:
    """Refuse a graph whose input has another size or name for an axis.

    Raises:
        ExportError: an axis is fixed in the graph.
    """
    for number, place, axis in axes.places():
        size = graph.input[number].type.tensor_type.shape.dim[place]
        if size.dim_param != axis.name:
            raise _fixed(axis, size.dim_param or str(size.dim_value))


def name_outputs(graph: onnx.GraphProto, axes: Sequence[tuple[int | str, ...]]) -> None:
    """Name the axes of a graph's outputs as the network's own outputs have them at several sizes, in place.

    torch's exporter names them by formulas of its own, such as `((height - 1)//4) + 1`.

    Args:
        graph: the graph.
        axes: the axes of each output for one image: a size, or the name of a dynamic axis.

    Raises:
        ExportError: the graph has one size where the network's outputs follow the input, or the other way round.
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
        "the shape of an output follows the size of the input in another way than the network's",
        where=f"output {output!r} of the exported graph",
        expected=f"(batch, {', '.join(map(str, wanted))})",
        got=f"(batch, {', '.join(str(size or '?') for size in got)})",
        fix="let forward read the size where it needs it (`size=image.shape[-2:]`), and give other axes one size; or "
        "write the batch alone in `profiles`",
    )


def require_free(graph: onnx.GraphProto, inputs: Sequence[TensorSpec], where: str) -> None:
    """Refuse an ONNX file that fixes an axis which is to be dynamic.

    Args:
        graph: the file's graph, with the sizes that it states.
        inputs: the inputs in the file's order, with the names of the dynamic axes.
        where: the file, for messages.

    Raises:
        ExportError: it does.
    """
    for value, spec in zip(graph.input, inputs, strict=True):
        stated = value.type.tensor_type.shape.dim
        for size, name in zip(stated[1:], spec.shape[1:], strict=True):
            if isinstance(name, str) and size.dim_value > 0:
                raise ExportError(
                    f"the ONNX file's axis {name!r} is fixed",
                    where=f"{where}, input {value.name!r}",
                    expected="a dynamic axis, which takes every size in the range of `profiles`",
                    got=f"{size.dim_value} entries",
                    fix="export it with this axis dynamic (torch.onnx.export: `dynamic_axes` or `dynamic_shapes`), or "
                    "write the batch alone in `profiles`",
                )


def _fixed(axis: AxisRange, got: str) -> ExportError:
    return ExportError(
        f"the model does not take every {axis.name} in its range",
        expected=f"{axis.name} {axis.min} to {axis.max}, as `profiles` says",
        got=got,
        fix=_FIX,
    )
