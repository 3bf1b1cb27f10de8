"""Dynamic axes of inputs beside the batch: torch's dimensions for them, and traces that fix them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from model_artifacts.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.records import AxisRange, TensorSpec

INPUT = "image"
"""The name of an image's input, which is that of the parameter of `Typed.forward`."""

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


def require_free_axes(program: torch.export.ExportedProgram | None, axes: Axes) -> None:
    """Refuse a trace that holds for one size of an axis, for a part of its range, or for multiples of a number alone.

    torch 2.11's exporter may do so in silence, as for the batch.

    Raises:
        ExportError: an axis is fixed, or takes other sizes than its range.
    """
    exported: Any = program
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
            raise fixed_axis(axis, str(size))
        if (other := seen.setdefault(expression, axis.name)) != axis.name:
            raise fixed_axis(axis, f"the same size as {other}")
        limits = exported.range_constraints.get(expression)
        if limits is not None and (limits.upper < axis.max or limits.lower > axis.min):
            raise fixed_axis(axis, f"another way through forward outside of {limits.lower} to {limits.upper}")


def fixed_axis(axis: AxisRange, got: str) -> ExportError:
    """Return the error of an axis that does not take every size in its range."""
    return ExportError(
        f"the model does not take every {axis.name} in its range",
        expected=f"{axis.name} {axis.min} to {axis.max}, as `profiles` says",
        got=got,
        fix=_FIX,
    )
