"""Dynamic axes of a model's inputs: their places by name, the checks against its own samples, and shorter samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.axes import input_axes, named_inputs, own_sizes, ranges_without
from pipeline.config.loading import placed_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from model_artifacts.records import AxisRange, TensorSpec
    from pipeline.config.axes import InputAxes, Sizes
    from pipeline.config.files.yaml_source import Location
    from pipeline.config.settings import Config
    from pipeline.planning.project import Project

_PLACE: Location = ("data", "axes")


def dynamic_inputs(project: Project) -> tuple[TensorSpec, ...]:
    """Return the model's inputs with the name of each dynamic axis in the place of its size."""
    return named_inputs(project.source().inputs, project.config.data.axes, project.config.axes)


def require_axes(project: Project, specs: Sequence[TensorSpec]) -> None:
    """Refuse names of axes that the inputs have not, and ranges that their own samples do not fit.

    Args:
        project: the configuration.
        specs: the inputs, with the sizes of the model's own samples.

    Raises:
        ConfigError: there are such; all of them are listed.
    """
    config = project.config
    if not config.axes:
        return
    problems = list(_naming_problems(specs, input_axes(config.data))) or list(_range_problems(specs, config))
    if problems:
        raise placed_error(project.config_file, project.plan.model, problems)


def _naming_problems(specs: Sequence[TensorSpec], written: Sequence[InputAxes]) -> Iterator[tuple[Location, str]]:
    """Yield the names of axes that the inputs have not, or that mean two sizes."""
    shapes = {spec.name: spec.shape[1:] for spec in specs}
    seen: dict[str, tuple[str, int | str]] = {}
    for item in written:
        place, setting = (*_PLACE, item.input), f"`data.axes.{item.input}`"
        shape = shapes.get(item.input)
        if shape is None:
            yield place, f"{setting}: the model has no such input; expected one of {', '.join(shapes)}"
            continue
        if len(item.axes) != len(shape):
            sizes = f"its sample has {len(shape)} axes, of sizes ({', '.join(map(str, shape))})"
            yield place, f"{setting}: expected a name or null for each axis, got {len(item.axes)}; {sizes}"
            continue
        for name, size in zip(item.axes, shape, strict=True):
            if name is None:
                continue
            first, known = seen.setdefault(name, (item.input, size))
            if known != size:
                differ = f"{name!r} has {size} entries in {item.input!r} and {known} in {first!r}"
                yield place, f"{setting}: {differ}; one name is one size: write arrays of the same, or two names"


def _range_problems(specs: Sequence[TensorSpec], config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the ranges that do not fit the samples' own size, at which every artifact is validated."""
    own = own_sizes(specs, named_inputs(specs, config.data.axes, config.axes))
    tensors = config.data.tensors
    for index, axis in ranges_without([item.axes for item in config.profiles], own, ends=tensors is not None):
        yield ("profiles", index, axis.name), f"`profiles[{index}]`: {_misfit(axis, own[axis.name], tensors)}"


def _misfit(axis: AxisRange, own: int, tensors: str | None) -> str:
    """Return what keeps a range from the samples' own size."""
    span = f"{axis.name} {axis.min} to {axis.max}"
    if tensors is None:
        fact = f"{span} does not hold the images' own {axis.name}, {own}, at which every artifact is validated"
        return f"{fact}; widen it, or change `preprocessing`"
    fact = f"{span} must end at the size of the samples in {tensors}, {own}: smaller ones are their beginnings"
    advice = "pad the samples at their end" if axis.max > own else "shorten the samples"
    return f"{fact}; write `max: {own}`, or {advice}"


def beginnings(rows: npt.NDArray[Any], named: Sequence[TensorSpec], sizes: Sizes) -> npt.NDArray[Any]:
    """Return samples whose named axes are cut to smaller sizes: their first entries.

    Args:
        rows: (samples,), of a type with a field for each input.
        named: the inputs, with the names of their dynamic axes.
        sizes: the new size of each axis by its name; an axis without one keeps its own.
    """
    wanted = dict(sizes)
    parts = {
        spec.name: rows[spec.name][tuple(slice(wanted.get(size)) for size in map(str, spec.shape))] for spec in named
    }
    kind = np.dtype([(name, part.dtype, part.shape[1:]) for name, part in parts.items()])
    found = np.empty(len(rows), dtype=kind)
    for name, part in parts.items():
        found[name] = part
    return found


def what_of(project: Project) -> str:
    """Return what the model takes, as messages name it: `images` or `samples`."""
    return "samples" if project.source().named_inputs else "images"
