"""Means and standard deviations that blind a network → problems, each with its place and the line to write. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.records import ChannelOrder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from model_artifacts.records import Preprocessing
    from pipeline.config.files.yaml_source import Location

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_MEAN_TOLERANCE = 0.01
"""Caffe's, CLIP's and DPN's means of ImageNet are this close to torchvision's, and 0.03 apart from its own reverse."""
_LARGEST_INPUT = 10.0
"""The largest normalised input that needs no statement. torchvision's and timm's weights take inputs up to 2.8."""
_LARGEST_SIDE = 2**14
"""Pixels of a side. One picture of 16,384×16,384 takes 0.8 GB, and as FP32 four times as much."""
_RANGE_TOLERANCE = 0.02
"""The share of a range by which its stated and its actual ends may differ, because people round."""


def preprocessing_problems(spec: Preprocessing) -> Iterator[tuple[Location, str]]:
    """Yield the reasons why a preprocessing would blind the network, as pairs of location and text.

    Values from 0 to 1 have a mean from 0 to 1 and a standard deviation of at most 0.5. Statistics in units of 0 to 255
    give every picture nearly the same input. A stated `input_range` replaces the first two checks, an `order` that is
    written the last one.
    """
    for name, size in (("resize", spec.resize), ("crop", spec.crop)):
        largest = max(size) if isinstance(size, tuple) else size
        if largest > _LARGEST_SIDE:
            yield (
                ("preprocessing", name),
                f"`preprocessing.{name}`: expected at most {_LARGEST_SIDE} pixels, got {largest}",
            )
    if spec.input_range is not None:
        yield from _range_problems(spec)
    elif min(spec.mean) < 0 or max(spec.mean) > 1 or max(spec.std) > 1:
        yield ("preprocessing", "mean"), _unit_problem(spec)
    elif max(map(abs, spec.reach)) > _LARGEST_INPUT:
        low, high = spec.reach
        yield (
            ("preprocessing", "std"),
            _in_lines(
                f"`preprocessing.std`: normalised inputs reach beyond ±{_LARGEST_INPUT:g}",
                expected="the std of values from 0 to 1",
                got=f"std {_list(spec.std)}: inputs from {low:.4g} to {high:.4g}",
                fix=f"if this network was trained so, write {range_line(spec)}",
            ),
        )
    if "order" not in spec.model_fields_set and _is_reversed(spec.mean):
        others = f"order: {ChannelOrder.BGR.value} if the network takes blue first, order: {ChannelOrder.RGB.value}"
        yield (
            ("preprocessing", "mean"),
            _in_lines(
                "`preprocessing.mean` is ImageNet's in the order blue, green, red",
                expected="the order of the pictures, which come in red, green, blue",
                got=f"mean {_list(spec.mean)}",
                fix=f"write mean: {_list(spec.mean[::-1])}, std: {_list(spec.std[::-1])}",
                otherwise=f"{others} to keep it as it is",
            ),
        )


def range_line(spec: Preprocessing) -> str:
    """Return the setting that states the range of a preprocessing's inputs: `input_range: [-2.118, 2.64]`."""
    return f"input_range: {_list(spec.reach)}"


def _range_problems(spec: Preprocessing) -> Iterator[tuple[Location, str]]:
    """Yield the difference between the stated and the actual range."""
    stated, actual = spec.input_range, spec.reach
    if stated is None:
        return
    slack = _RANGE_TOLERANCE * (actual[1] - actual[0])
    if any(abs(ours - theirs) > slack for ours, theirs in zip(stated, actual, strict=True)):
        refusal = "`preprocessing.input_range` is not the range that mean and std give"
        yield ("preprocessing", "input_range"), f"{refusal}; expected {_list(actual)}, got {_list(stated)}"


def _unit_problem(spec: Preprocessing) -> str:
    """Return the refusal of statistics that are not those of values from 0 to 1, with the line to write."""
    wide = max(spec.mean) > 1
    mean = [value / 255 for value in spec.mean] if wide else list(spec.mean)
    no_std = wide and set(spec.std) == {1.0}
    std = [value / 255 for value in spec.std] if no_std or max(spec.std) > 1 else list(spec.std)
    fix = f"if this network was trained on such inputs, write {range_line(spec)}"
    if min(mean) >= 0 and max(mean) <= 1 and max(std) <= 1:
        scaled = spec.model_copy(update={"mean": tuple(mean), "std": tuple(std)})
        reach = f", {range_line(scaled)}" if max(map(abs, scaled.reach)) > _LARGEST_INPUT else ""
        fix = f"if these are in units of 0 to 255, write mean: {_list(mean)}, std: {_list(std)}{reach}"
    low, high = spec.reach
    return _in_lines(
        "`preprocessing`: pixels are scaled to 0 to 1 first, and mean and std are not those of such values",
        expected="means from 0 to 1, and stds up to 1",
        got=f"mean {_list(spec.mean)}, std {_list(spec.std)}: inputs from {low:.4g} to {high:.4g}",
        fix=fix,
    )


def _in_lines(refusal: str, *, expected: str, got: str, fix: str, otherwise: str = "") -> str:
    """Return a problem with its details below it, as `ArtifactError` lays out its own."""
    details = (("expected", expected), ("got", got), ("fix", fix), ("or", otherwise))
    return "\n".join([refusal, *(f"{'':6}{label + ':':<10}{text}" for label, text in details if text)])


def _is_reversed(mean: tuple[float, ...]) -> bool:
    """Return True for a mean like ImageNet's with blue first."""
    return len(mean) == len(_IMAGENET_MEAN) and all(
        abs(value - known) <= _MEAN_TOLERANCE for value, known in zip(mean[::-1], _IMAGENET_MEAN, strict=True)
    )


def _list(values: Iterable[float]) -> str:
    """Return numbers as a list of YAML, with four digits."""
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"
