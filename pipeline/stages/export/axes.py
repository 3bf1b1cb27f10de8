"""Dynamic axes beside the batch in ONNX graphs: their names, and graphs that fix them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import ExportError
from pipeline.stages.common.sizes.axes import fixed_axis

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from model_artifacts.records import TensorSpec
    from pipeline.stages.common.sizes.axes import Axes


def require_named_axes(graph: onnx.GraphProto, axes: Axes) -> None:
    """Refuse a graph whose input has another size or name for an axis.

    Raises:
        ExportError: an axis is fixed in the graph.
    """
    for number, place, axis in axes.places():
        size = graph.input[number].type.tensor_type.shape.dim[place]
        if size.dim_param != axis.name:
            raise fixed_axis(axis, size.dim_param or str(size.dim_value))


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
