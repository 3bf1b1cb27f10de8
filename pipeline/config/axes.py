"""Dynamic axes beside the batch in `profiles`: their ranges, and the sizes at which artifacts are checked. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import AxisRange, Task
from pipeline.config.values import INT32_MAX, in_yaml, parse_batch_range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pipeline.config.files.yaml_source import Location
    from pipeline.config.settings import Config

PICTURE_AXES = ("height", "width")
"""The axes of images that `profiles` may name, in the order of NCHW."""

_BATCH = "batch"
_RANGE = {"min", "opt", "max"}

Sizes = tuple[tuple[str, int], ...]
"""Names of axes, each with a size."""


def parse_profile(value: object) -> object:
    """Return the mapping of a profile: a batch size, its {min, opt, max}, or {batch, height, width, …}.

    Raises:
        ValueError: the value is none of these, or an axis has no range.
    """
    if not isinstance(value, dict) or _BATCH not in value:
        beside = sorted(map(str, value.keys() & {*PICTURE_AXES})) if isinstance(value, dict) else []
        if beside:
            raise ValueError(f"expected the batch beside {beside[0]}, such as {{batch: 8, {beside[0]}: …}}")
        return parse_batch_range(value)
    batch = parse_batch_range(value[_BATCH])
    axes = [_parse_axis(str(name), item) for name, item in value.items() if name != _BATCH]
    return {**batch, "axes": axes} if isinstance(batch, dict) else batch


def _parse_axis(name: str, value: object) -> dict[str, object]:
    """Return the mapping of an axis.

    Raises:
        ValueError: it is no range, or one of a single size.
    """
    if not isinstance(value, dict) or {*value} != _RANGE:
        raise ValueError(f"{name}: expected {{min, opt, max}}, got {in_yaml(value)}")
    low, best, high = (value[end] for end in ("min", "opt", "max"))
    for size in (low, best, high):
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= INT32_MAX:
            raise ValueError(f"{name}: expected sizes from 1 to {INT32_MAX}, got {in_yaml(size)}")
    if not low <= best <= high:
        raise ValueError(f"{name}: expected min ≤ opt ≤ max, got min {low}, opt {best}, max {high}")
    if low == high:
        raise ValueError(f"{name}: expected min < max, got {low} for both; an axis of one size needs no range")
    return {"name": name, **value}


def axes_of_all(profiles: Iterable[Iterable[AxisRange]]) -> tuple[AxisRange, ...]:
    """Return each axis that a profile names, with the sizes that any of them takes. The first one gives `opt`."""
    found: dict[str, AxisRange] = {}
    for axes in profiles:
        for axis in axes:
            known = found.setdefault(axis.name, axis)
            ends = {"min": min(known.min, axis.min), "max": max(known.max, axis.max)}
            found[axis.name] = known.model_copy(update=ends)
    return tuple(found[name] for name in sorted(found, key=_order))


def _order(name: str) -> tuple[int, str]:
    return (PICTURE_AXES.index(name) if name in PICTURE_AXES else len(PICTURE_AXES), name)


def checked_sizes(axes: tuple[AxisRange, ...]) -> tuple[Sizes, ...]:
    """Return the sizes at which an artifact is compared with the reference: the ends of every axis, and one between.

    All axes are at their smallest, best and largest size; then one is at an end and the others at the other end, which
    shows axes that were exchanged. The odd size between shows kernels and networks that need even ones.
    """
    if not axes:
        return ()
    found = [tuple((axis.name, getattr(axis, end)) for axis in axes) for end in ("min", "opt", "max")]
    found.append(tuple((axis.name, _between(axis)) for axis in axes))
    for alone in axes if len(axes) > 1 else ():
        found.append(tuple((axis.name, axis.min if axis is alone else axis.max) for axis in axes))
        found.append(tuple((axis.name, axis.max if axis is alone else axis.min) for axis in axes))
    return tuple(dict.fromkeys(found))


def ranges_without(ranges: Iterable[Iterable[AxisRange]], own: Mapping[str, int]) -> list[tuple[int, AxisRange]]:
    """Return the ranges that do not hold the images' own size, each with the place of its profile.

    Args:
        ranges: the ranges of each profile.
        own: the images' own size along each axis.
    """
    return [(index, axis) for index, axes in enumerate(ranges) for axis in axes if not axis.takes(own[axis.name])]


def _between(axis: AxisRange) -> int:
    """Return an odd size near the middle; the middle itself if the range has no odd one there."""
    middle = (axis.min + axis.max) // 2
    return next((size for size in (middle | 1, middle - 1) if size % 2 and axis.takes(size)), middle)


def shown_sizes(sizes: Sizes) -> str:
    """Return sizes as messages show them: `height 160, width 320`."""
    return ", ".join(f"{name} {size}" for name, size in sizes)


FOLLOWING = frozenset({Task.SEGMENTATION})
"""Tasks whose outputs may follow the size of the image."""
_UNTRIED = {
    Task.DETECTION: "its boxes follow the size of the image, and are decoded at one size",
}
"""Tasks whose outputs change their shape or their meaning with the size of the image."""


def axes_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the dynamic axes that the model has not, or that nothing proves, as pairs of location and text."""
    for index, profile in enumerate(config.profiles):
        for axis in profile.axes:
            place: Location = ("profiles", index)
            if axis.name not in PICTURE_AXES:
                text = f"`profiles[{index}]`: images have no axis {axis.name!r}; expected {' or '.join(PICTURE_AXES)}"
                yield place, text
        if profile.axes and (reason := _refusal(config)):
            yield ("profiles", index), f"`profiles[{index}]`: {reason}; write the batch alone"


def _refusal(config: Config) -> str:
    """Return the reason why a configuration can have no dynamic axes beside the batch; empty if it can."""
    if config.data.tensors is not None:
        return "the axes of `data.tensors` are fixed, but for the batch"
    if config.model.onnx is not None:
        return "a model that is an ONNX file has fixed axes, but for the batch"
    if config.model.task in _UNTRIED:
        return f"`task: {config.model.task.value}` takes one size of images: {_UNTRIED[config.model.task]}"
    return ""
