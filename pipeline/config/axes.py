"""Dynamic axes beside the batch in `profiles`: their ranges, and the sizes at which artifacts are checked. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from model_artifacts.errors import listed
from model_artifacts.records import AxisName, AxisRange, BatchRange, Record, Task
from pipeline.config.values import (
    INT32_MAX,
    KEY_PROBLEM,
    UNKNOWN_KEY,
    in_yaml,
    missing_key,
    part_problem,
    parts_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pydantic_core import InitErrorDetails

    from model_artifacts.records import TensorSpec
    from pipeline.config.files.yaml_source import Location
    from pipeline.config.settings import Config, DataConfig

PICTURE_AXES = ("height", "width")
"""The axes of images that `profiles` may name, in the order of NCHW."""

_BATCH = "batch"
_RANGE = ("min", "opt", "max")
_KEYS = (*_RANGE, "sizes")
_AXIS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NAME = 150
"""Characters of a profile in the name of a variant. Names of folders have at most 255 bytes."""

Sizes = tuple[tuple[str, int], ...]
"""Names of axes, each with a size."""


class InputAxes(Record):
    """The names that `data.axes` gives the axes of an input of `data.tensors`."""

    input: str
    """The name of the input, or of the labels."""
    axes: tuple[AxisName | None, ...]
    """The name of each axis behind the sample; None for one of a fixed size."""


def parse_input_axes(value: object) -> object:
    """Return a mapping of inputs, each with a list of names, as the fields of `InputAxes`.

    Raises:
        ValueError: it is no such mapping, or names are none of an axis.
    """
    if isinstance(value, tuple):
        return value
    if not isinstance(value, dict):
        expected = "the names of the axes of each input, such as {tokens: [sequence]}"
        raise ValueError(f"expected {expected}, got {in_yaml(value)}")  # noqa: TRY004 - pydantic collects ValueErrors
    if wrong := [problem for name, item in value.items() for problem in _name_problems(str(name), item)]:
        raise parts_error(wrong)
    return tuple({"input": str(name), "axes": tuple(item)} for name, item in value.items())


def _name_problems(name: str, value: object) -> Iterator[InitErrorDetails]:
    """Yield what is wrong with the names of an input's axes."""
    if not isinstance(value, list) or not value:
        text = f"expected a list with the name of each axis behind the sample, got {in_yaml(value)}"
        yield part_problem((name,), value, text)
        return
    for index, item in enumerate(value):
        if item is not None and not (isinstance(item, str) and _AXIS.fullmatch(item)):
            text = f"expected letters, digits and `_`, or null for a fixed axis, got {in_yaml(item)}"
            yield part_problem((name, index), item, text)
        elif item == _BATCH:
            text = "expected the axes behind the sample, got `batch`, which is the sample's own"
            yield part_problem((name, index), item, text)


def named_inputs(
    specs: Sequence[TensorSpec], written: Sequence[InputAxes], axes: Sequence[AxisRange]
) -> tuple[TensorSpec, ...]:
    """Return a model's inputs with the name of each dynamic axis in the place of its size.

    Args:
        specs: the inputs, with the sizes of the model's own samples.
        written: the names of the axes of arrays; none for images, whose axes are known.
        axes: the dynamic axes beside the batch. Others keep their size.
    """
    known = {item.input: item.axes for item in written}
    dynamic = {axis.name for axis in axes}

    def renamed(spec: TensorSpec) -> TensorSpec:
        names = (None, *known.get(spec.name, () if written else (None, *PICTURE_AXES)))
        shape = tuple(
            name if name in dynamic and name is not None else size
            for name, size in zip((*names, *(None,) * len(spec.shape)), spec.shape, strict=False)
        )
        return spec.model_copy(update={"shape": shape})

    return tuple(map(renamed, specs)) if dynamic else tuple(specs)


def label_axes(data: DataConfig) -> tuple[str | None, ...]:
    """Return the names of the axes of the labels behind the sample; none if the configuration names none."""
    return next((item.axes for item in data.axes if item.input == data.labels), ())


def input_axes(data: DataConfig) -> tuple[InputAxes, ...]:
    """Return the names of the axes of the inputs, without those of the labels."""
    return tuple(item for item in data.axes if item.input != data.labels)


def own_sizes(specs: Sequence[TensorSpec], named: Sequence[TensorSpec]) -> dict[str, int]:
    """Return the size of each dynamic axis in the model's own samples; that of the first input if they differ.

    Args:
        specs: the inputs, with these sizes.
        named: the same with the names of the dynamic axes.
    """
    found: dict[str, int] = {}
    for spec, other in zip(specs, named, strict=True):
        for size, name in zip(spec.shape[1:], other.shape[1:], strict=True):
            if isinstance(name, str):
                found.setdefault(name, int(size))
    return found


def parse_profile(value: object) -> object:
    """Return the mapping of a profile: a batch size, its {min, opt, max} or {sizes}, or {batch, height, width, …}.

    A number `n` is the fixed batch {min: n, opt: n, max: n}; {sizes: […]} is one engine with a profile of each size.

    Raises:
        ValueError: the value is none of these; the error has each wrong part with its place.
    """
    wrong: list[InitErrorDetails] = []
    if not isinstance(value, dict) or _BATCH not in value:
        beside = (
            sorted(key for key, item in value.items() if key not in _KEYS and isinstance(item, dict))
            if isinstance(value, dict)
            else []
        )
        if beside:
            raise ValueError(f"expected the batch beside {beside[0]}, such as {{batch: 8, {beside[0]}: …}}")
        fields = _batch((), value, wrong, (*_KEYS, _BATCH))
    else:
        fields = _batch((_BATCH,), value[_BATCH], wrong, _KEYS)
        axes = [_axis(name, item, wrong) for name, item in value.items() if name != _BATCH]
        if axes and "tuned" in fields:
            text = "expected one range of batch sizes beside other axes, got several sizes"
            wrong.append(part_problem((_BATCH,), value[_BATCH], text))
        fields |= {"axes": axes}
    if wrong:
        raise parts_error(wrong)
    return fields


def _batch(place: Location, value: object, wrong: list[InitErrorDetails], known: Sequence[str]) -> dict[str, object]:
    """Return the fields of a batch range, and add what is wrong with it.

    Args:
        place: the place of the value in its profile.
        value: a number, {min, opt, max} or {sizes}.
        wrong: receives the problems.
        known: the keys that a mapping may have here.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= INT32_MAX:
            bound = "at least 1" if value < 1 else f"at most {INT32_MAX}"
            wrong.append(part_problem(place, value, f"expected a batch of {bound}, got {in_yaml(value)}"))
        return dict.fromkeys(_RANGE, value)
    if not isinstance(value, dict):
        text = f"expected a batch size, {{min, opt, max}} or {{sizes}}, got {in_yaml(value)}"
        wrong.append(part_problem(place, value, text))
        return {}
    if place and (inner := [key for key, item in value.items() if key not in _KEYS and isinstance(item, dict)]):
        text = f"expected the axis beside `{_BATCH}`, and not in it; write {{batch: …, {inner[0]}: …}}"
        wrong.append(part_problem((*place, inner[0]), value[inner[0]], text, KEY_PROBLEM))
        value = {key: item for key, item in value.items() if key not in inner}
    if "sizes" in value:
        return _each_size(place, value, wrong)
    return _range(place, value, wrong, known)


def _each_size(place: Location, value: dict[str, object], wrong: list[InitErrorDetails]) -> dict[str, object]:
    """Return the fields of a batch range with a profile for each size, and add what is wrong with it."""
    sizes, here = value["sizes"], (*place, "sizes")
    for other, item in value.items():
        if other != "sizes":
            text = "expected `sizes` alone, or min, opt and max; remove one of them"
            wrong.append(part_problem((*place, other), item, text, KEY_PROBLEM))
    if not isinstance(sizes, list) or not sizes:
        text = f"expected a list of at least two batch sizes, such as [1, 8, 64], got {in_yaml(sizes)}"
        wrong.append(part_problem(here, sizes, text))
        return {}
    if bad := [part for index, size in enumerate(sizes) for part in _size_problems((*here, index), size)]:
        wrong.extend(bad)
        return {}
    fields = {"min": 1, "opt": max(sizes), "max": max(sizes), "tuned": tuple(sizes)}
    try:
        BatchRange.model_validate(fields)
    except ValidationError as exc:
        (detail,) = exc.errors(include_url=False)
        wrong.append(part_problem(here, sizes, str(detail["ctx"]["error"])))
    return fields


def _axis(name: str, value: object, wrong: list[InitErrorDetails]) -> dict[str, object]:
    """Return the fields of an axis beside the batch, and add what is wrong with it."""
    if not _AXIS.fullmatch(name):
        text = "expected the name of an axis: letters, digits and `_`, the first one no digit"
        wrong.append(part_problem((name,), value, text, KEY_PROBLEM))
    elif not isinstance(value, dict):
        wrong.append(part_problem((name,), value, f"expected {{min, opt, max}}, got {in_yaml(value)}"))
    else:
        before = len(wrong)
        fields = _range((name,), value, wrong, _RANGE)
        if len(wrong) == before and fields["min"] == fields["max"]:
            text = f"expected min < max, got {fields['min']} for both; an axis of one size needs no range"
            wrong.append(part_problem((name,), value, text))
        return {"name": name, **fields}
    return {}


def _range(
    place: Location, value: dict[str, object], wrong: list[InitErrorDetails], known: Sequence[str]
) -> dict[str, object]:
    """Return the fields of {min, opt, max}, and add what is wrong with it."""
    found = [
        part_problem((*place, key), value[key], ", ".join(known), UNKNOWN_KEY) for key in value if key not in known
    ]
    found += [missing_key((*place, end), value) for end in _RANGE if end not in value]
    found += [part for end in _RANGE if end in value for part in _size_problems((*place, end), value[end])]
    if not found:
        low, best, high = (value[end] for end in _RANGE)
        if not low <= best <= high:  # type: ignore[operator]  # `_size_problems` has found whole numbers
            text = f"expected min ≤ opt ≤ max, got min {low}, opt {best}, max {high}"
            found.append(part_problem(place, value, text))
    wrong.extend(found)
    return {end: value.get(end) for end in _RANGE}


def _size_problems(place: Location, size: object) -> Iterator[InitErrorDetails]:
    """Yield what is wrong with a size."""
    if isinstance(size, bool) or not isinstance(size, int):
        yield part_problem(place, size, f"expected a whole number, got {in_yaml(size)}")
    elif not 1 <= size <= INT32_MAX:
        bound = "at least 1" if size < 1 else f"at most {INT32_MAX}"
        yield part_problem(place, size, f"expected {bound}, got {in_yaml(size)}")


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


def ranges_without(
    ranges: Iterable[Iterable[AxisRange]], own: Mapping[str, int], *, ends: bool = False
) -> list[tuple[int, AxisRange]]:
    """Return the ranges that do not fit the samples' own size, each with the place of its profile.

    Args:
        ranges: the ranges of each profile.
        own: the samples' own size along each axis. A range of an axis without one fits.
        ends: True if a range must end at this size, as of arrays, and not only hold it.
    """

    def fits(axis: AxisRange) -> bool:
        size = own.get(axis.name, axis.max)
        return axis.max == size if ends else axis.takes(size)

    return [(index, axis) for index, axes in enumerate(ranges) for axis in axes if not fits(axis)]


def _between(axis: AxisRange) -> int:
    """Return an odd size near the middle; the middle itself if the range has no odd one there."""
    middle = (axis.min + axis.max) // 2
    return next((size for size in (middle | 1, middle - 1) if size % 2 and axis.takes(size)), middle)


def shown_sizes(sizes: Sizes) -> str:
    """Return sizes as messages show them: `height 160, width 320`."""
    return ", ".join(f"{name} {size}" for name, size in sizes)


FOLLOWING = frozenset({Task.SEGMENTATION, Task.DETECTION, Task.TENSORS})
"""Tasks whose outputs may follow the size of the image; those of `tensors` that of an array, too."""


def axes_problems(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the dynamic axes that the model has not, or that nothing proves, as pairs of location and text."""
    yield from _long_names(config)
    written = config.data.axes
    if written and config.data.tensors is None:
        text = f"`data.axes` names axes of `data.tensors`; those of images are {' and '.join(PICTURE_AXES)}; remove it"
        yield ("data", "axes"), text
        return
    known = {name for item in input_axes(config.data) for name in item.axes if name is not None}
    yield from _label_problems(config, known)
    for index, profile in enumerate(config.profiles):
        for axis in profile.axes:
            if reason := _unknown_axis(config, axis.name, known):
                yield ("profiles", index, axis.name), f"`profiles[{index}]`: {reason}"
    ranged = {axis.name for axis in config.axes}
    for item in written:
        for index, name in enumerate(item.axes):
            if name is not None and name not in ranged and name not in item.axes[:index]:
                example = f"{{batch: 8, {name}: {{min: …, opt: …, max: …}}}}"
                text = f"no profile has a range for {name!r}; write one, such as {example}, or null for its name"
                yield ("data", "axes", item.input, index), f"`data.axes.{item.input}`: {text}"


def _long_names(config: Config) -> Iterator[tuple[Location, str]]:
    """Yield the profiles whose variants no file system could name, as pairs of location and text."""
    places: list[tuple[Location, str, str]] = [
        (("profiles", index), f"`profiles[{index}]`", profile.label) for index, profile in enumerate(config.profiles)
    ]
    together = (("profiles",), "`profiles`: all axes together", "-".join(axis.label for axis in config.axes))
    long = [item for item in places if len(item[2]) > _LONGEST_NAME]
    for place, what, label in long or [together]:
        if len(label) > _LONGEST_NAME:
            length = f"{what} is {len(label)} characters in names of files; expected at most {_LONGEST_NAME}"
            yield place, f"{length}; write fewer sizes, or shorter names of axes"


def _label_problems(config: Config, known: set[str]) -> Iterator[tuple[Location, str]]:
    """Yield the names of axes of labels that follow no input."""
    names, labels = label_axes(config.data), str(config.data.labels)
    if names and config.model.task is not Task.TENSORS:
        text = f"labels of `task: {config.model.task.value}` have one size; remove it"
        yield ("data", "axes", labels), f"`data.axes.{labels}`: {text}"
    elif unknown := [name for name in names if name is not None and name not in known]:
        text = f"no input has the axis {unknown[0]!r}, which the labels follow; name it, or null for a fixed one"
        yield ("data", "axes", labels), f"`data.axes.{labels}`: {text}"


def _unknown_axis(config: Config, name: str, known: set[str]) -> str:
    """Return the reason why no input has an axis of a profile; empty if one has it."""
    if config.data.tensors is None:
        return "" if name in PICTURE_AXES else f"images have no axis {name!r}; expected {' or '.join(PICTURE_AXES)}"
    if name in known:
        return ""
    if known:
        return f"no input has the axis {name!r}; `data.axes` names {listed(sorted(known))}"
    return f"no input has the axis {name!r}; name it, such as `data: {{axes: {{tokens: [{name}]}}}}`"
