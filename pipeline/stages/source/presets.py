"""Preprocessing and classes that come with a model, from timm or Hugging Face; a written one is checked against it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from model_artifacts.errors import SourceError, listed, one_line
from model_artifacts.records import ChannelOrder, Fit, Interpolation, Offset, Preprocessing, Task
from pipeline.config.preprocessing import range_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from model_artifacts.records import Argument

log = logging.getLogger(__name__)

_CROP_SHARE = 0.875
"""timm's `crop_pct` where a model's configuration has none (timm.data.constants)."""
_TIMM_FILTER = "bicubic"
"""timm's `interpolation` where a model's configuration has none (timm.data.config)."""
_NARROWEST, _WIDEST = 0.5, 2.0
"""Bounds of the width of the inputs' range, as a share of the range that the weights were trained on."""
_BEYOND = 0.25
"""The share of the trained range by which inputs may lie outside of it."""
_CONVNEXT_SQUASHES = 384
"""The side from which ConvNextImageProcessor squashes images instead of cropping them (transformers)."""
_PLAIN = frozenset(
    f"{name}ImageProcessor"
    for name in ("ViT", "DeiT", "Beit", "Bit", "CLIP", "ConvNext", "MobileNetV1", "MobileNetV2", "MobileViT", "Siglip")
)
"""Image processors of transformers that resize, crop, scale and normalise, and nothing else."""
_OTHER_SIZES = frozenset({"LevitImageProcessor", "PoolFormerImageProcessor"})
"""Image processors that do the same, and compute the resize from `size` by a rule of their own."""
_EFFICIENTNET = "EfficientNetImageProcessor"
"""The image processor that may shift the scaled values by -1, and may divide by `image_std` twice."""
_BEYOND_A_PREPROCESSING = ("do_pad", "do_reduce_labels", "do_color_quantize", "do_thumbnail")
"""Steps of image processors that a preprocessing does not hold."""
_SAME_SCALE = 1e-6
"""The relative difference of `rescale_factor` from 1/255 that is one of its decimal digits."""
_NONE: tuple[float, ...] = (0.0, 0.0, 0.0)
"""The mean that changes nothing."""
_ONE: tuple[float, ...] = (1.0, 1.0, 1.0)
"""The std that changes nothing."""
_OF_PILLOW = {
    0: Interpolation.NEAREST,
    1: Interpolation.LANCZOS,
    2: Interpolation.BILINEAR,
    3: Interpolation.BICUBIC,
    4: Interpolation.BOX,
    5: Interpolation.HAMMING,
}
"""Pillow's numbers of its filters, which `resample` holds."""
_SIZES = ("img_size", "input_size")
"""timm's parameters for the size of the input."""
_WRITE = (
    "write the steps of the training in pipeline.yaml, preprocessing: {resize: …, crop: …, interpolation: …, "
    "mean: […], std: […]}; ImageNet's usual ones are {resize: 256, crop: 224, interpolation: bilinear, "
    "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}"
)


def _timm_settings(model: nn.Module) -> Mapping[str, Any]:
    """Return timm's configuration of a network; an empty one if it has none."""
    found = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    return found if isinstance(found, Mapping) else vars(found) if found else {}


def timm_preprocessing(model: nn.Module) -> Preprocessing | None:
    """Return the preprocessing that timm's evaluation takes from a model's `pretrained_cfg`; None if it has none.

    Raises:
        SourceError: the configuration is not one of timm's.
    """
    settings = _timm_settings(model)
    if not settings:
        return None
    try:
        height, width = settings["input_size"][-2:]
        share = settings.get("crop_pct") or _CROP_SHARE
        resize = math.floor(height / share), math.floor(width / share)
        mode = settings.get("crop_mode") or "center"
        covers = mode == "center" and resize[0] != resize[1]
        named = Interpolation(settings.get("interpolation") or _TIMM_FILTER)
        return Preprocessing(
            resize=resize[0] if mode == "center" and not covers else resize,
            crop=height if height == width else (height, width),
            # timm resizes to cover a rectangle bilinearly, whatever the configuration says.
            interpolation=Interpolation.BILINEAR if covers else named,
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            fit=Fit.COVER if covers else Fit.BORDER if mode == "border" else Fit.SQUASH,
        )
    except (KeyError, TypeError, ValueError) as exc:  # a ValidationError is a ValueError
        raise SourceError(
            "the preprocessing of the model's `pretrained_cfg` cannot be read",
            expected="timm's input_size, crop_pct, crop_mode, interpolation, mean and std",
            got=f"{type(exc).__name__}: {exc}",
            fix="write `preprocessing` in pipeline.yaml",
        ) from exc


class HubModel(NamedTuple):
    """The folder or the id that a Hugging Face model came from."""

    name: str
    """A folder of this machine, or the id of a model in the cache."""
    revision: str | None
    """The commit of a cached model; None for a folder."""


def hub_model_of(model: nn.Module) -> HubModel | None:
    """Return the place that transformers loaded a network from; None for any other network."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "")
    if not isinstance(name, str) or not name:
        return None
    revision = getattr(model.config, "_commit_hash", None)
    return HubModel(name, revision if isinstance(revision, str) else None)


def hub_settings(hub: HubModel) -> Mapping[str, object] | None:
    """Return all settings of a model's image processor, from its folder or from the cache; None if it has none.

    transformers itself reads preprocessor_config.json, because the classes of older files have defaults of their own.
    """
    from transformers import AutoImageProcessor  # noqa: PLC0415 - there, because the model came from it

    try:
        processor = AutoImageProcessor.from_pretrained(hub.name, revision=hub.revision or "main", local_files_only=True)
    except (OSError, ValueError) as exc:  # no such file; a file of a class that is unknown
        log.info("%s has no preprocessor_config.json that can be read: %s", hub.name, one_line(exc))
        return None
    settings: Mapping[str, object] = processor.to_dict()
    return settings


def hub_preprocessing(settings: Mapping[str, object]) -> Preprocessing:
    """Return the preprocessing of an image processor of transformers.

    Args:
        settings: the processor's settings with its defaults, as its `to_dict` gives them.

    Raises:
        SourceError: the processor does something that a `Preprocessing` does not hold.
    """
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type"))
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    beyond = (*_BEYOND_A_PREPROCESSING, *(() if kind == _EFFICIENTNET else ("rescale_offset",)))
    try:
        others = [name for name in beyond if settings.get(name)]
        known = kind in _PLAIN | _OTHER_SIZES | {_EFFICIENTNET}
        if not known or others or not settings.get("do_resize"):
            raise ValueError(f"{kind} with {listed(others) or 'a chain of its own'}")  # noqa: TRY301 - one message
        return _chain(settings, kind)
    except (KeyError, TypeError, ValueError) as exc:  # a ValidationError is a ValueError
        raise SourceError(
            "the preprocessing of the model's preprocessor_config.json cannot be taken over",
            expected="a resize, a centre crop, a scale, a mean and a std",
            got=one_line(exc),
            fix=_WRITE,
        ) from exc


def _chain(settings: Mapping[str, Any], kind: str) -> Preprocessing:
    size, crop = _sizes_of(settings, kind)
    mean, std = _statistics_of(settings, kind)
    return Preprocessing(
        resize=size,
        crop=crop,
        interpolation=_OF_PILLOW[int(settings["resample"])],
        mean=mean,
        std=std,
        offset=_offset_of(size, crop),
        order=ChannelOrder.BGR if settings.get("do_flip_channel_order") else ChannelOrder.RGB,
    )


def _offset_of(size: int | tuple[int, int], crop: int | tuple[int, int]) -> Offset:
    """Return the place of transformers' centre crop; the usual one where both are the same for every picture."""
    if isinstance(size, int):
        return Offset.DOWN
    crops = crop if isinstance(crop, tuple) else (crop, crop)
    spare = [before - after for before, after in zip(size, crops, strict=True)]
    return Offset.EVEN if all(Offset.EVEN.of(pixels) == Offset.DOWN.of(pixels) for pixels in spare) else Offset.DOWN


def _sizes_of(settings: Mapping[str, Any], kind: str) -> tuple[int | tuple[int, int], int | tuple[int, int]]:
    """Return the resize and the crop of an image processor.

    Raises:
        ValueError: its images have many shapes.
    """
    size = _sides_of(settings["size"])
    crop = _sides_of(settings["crop_size"]) if settings.get("do_center_crop") else None
    if kind.startswith("ConvNext"):
        short = settings["size"].get("shortest_edge") if isinstance(settings["size"], Mapping) else None
        return _convnext_sizes(int(short or 0), float(settings["crop_pct"]))
    if kind.startswith("Levit") and isinstance(size, int):
        size = int((256 / 224) * size)
    if kind.startswith("PoolFormer") and settings.get("crop_pct") is not None:
        size = _enlarged(size, float(settings["crop_pct"]))
    if crop is None and isinstance(size, int):
        raise ValueError(f"a resize of the short side to {size} without a crop: images of many shapes")
    return size, crop or size


def _enlarged(size: int | tuple[int, int], share: float) -> int | tuple[int, int]:
    """Return the resize of PoolFormerImageProcessor: a square becomes a short side, and both are divided by a share."""
    if isinstance(size, tuple) and size[0] != size[1]:
        return int(size[0] / share), int(size[1] / share)
    return int((size if isinstance(size, int) else size[0]) / share)


def _statistics_of(settings: Mapping[str, Any], kind: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the std of values from 0 to 1 that do what an image processor does to those from 0 to 255.

    It computes ((f·x - o - mean) / std): f is its factor, o is 1 with `rescale_offset`. EfficientNet's divides by its
    std once more with `include_top`.
    """
    factor = float(settings["rescale_factor"]) * 255 if settings.get("do_rescale") else 255.0
    factor = 1.0 if math.isclose(factor, 1, rel_tol=_SAME_SCALE) else factor
    normalises = settings.get("do_normalize")
    means, stds = (_three(settings["image_mean"]), _three(settings["image_std"])) if normalises else (_NONE, _ONE)
    offset, again = 0.0, _ONE
    if kind == _EFFICIENTNET:
        offset = 1.0 if settings.get("rescale_offset") and settings.get("do_rescale") else 0.0
        again = _three(settings["image_std"]) if settings.get("include_top") else _ONE
    mean = tuple((value + offset) / factor for value in means)
    return mean, tuple(value * other / factor for value, other in zip(stds, again, strict=True))


def _three(value: float | Iterable[float]) -> tuple[float, ...]:
    """Return a statistic of each channel; a number is that of all three."""
    return (float(value),) * 3 if isinstance(value, (int, float)) else tuple(map(float, value))


def _sides_of(size: object) -> int | tuple[int, int]:
    """Return a size of transformers: {height, width}, {shortest_edge}, or a number for both sides."""
    if isinstance(size, Mapping):
        sides = {name: value for name, value in size.items() if value is not None}
        if sides.keys() == {"height", "width"}:
            return int(sides["height"]), int(sides["width"])
        if sides.keys() == {"shortest_edge"}:
            return int(sides["shortest_edge"])
    if isinstance(size, int):
        return size, size
    raise ValueError(f"size {size}")


def _convnext_sizes(side: int, share: float) -> tuple[int | tuple[int, int], tuple[int, int]]:
    """Return the resize and the crop of ConvNextImageProcessor, which squashes images of 384 pixels and more."""
    square = side, side
    return (square, square) if side >= _CONVNEXT_SQUASHES else (int(side / share), square)


def hub_classes(model: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a Hugging Face model's classes (`id2label`); None without names (LABEL_0, …)."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or sorted(map(int, names)) != list(range(len(names))):
        return None
    ordered = tuple(str(names[number]) for number in sorted(names, key=int))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(ordered)) else ordered


_PROBLEMS = {"multi_label_classification": Task.MULTILABEL, "regression": Task.REGRESSION}
"""transformers' `problem_type` → the task."""


def require_problem(model: nn.Module, task: Task) -> None:
    """Refuse a Hugging Face model of several labels or of numbers as a classification: its largest logit says little.

    Raises:
        SourceError: the model's `problem_type` is that of another task.
    """
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if task is Task.CLASSIFICATION and isinstance(problem, str) and problem in _PROBLEMS:
        raise SourceError(
            "the model is no classification of one class for each image",
            expected=f"`model.task: {_PROBLEMS[problem].value}`",
            got=f"`task: {task.value}`, and `problem_type` {problem} in the model's own configuration",
            fix="set the task in pipeline.yaml",
        )


def timm_classes(model: nn.Module) -> tuple[str, ...] | None:
    """Return the `label_names` of timm's weights; None if their configuration has none."""
    names = _timm_settings(model).get("label_names")
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) and names else None


def own_preprocessing(model: nn.Module, arguments: tuple[Argument, ...] = ()) -> Preprocessing | None:
    """Return the preprocessing that comes with a network, from timm or Hugging Face; None if nothing says it.

    Args:
        model: the network as the factory returns it.
        arguments: the factory's arguments.

    Raises:
        SourceError: it cannot be read, or the arguments ask timm for another size than its configuration says.
    """
    if found := timm_preprocessing(model):
        _require_size(found, arguments)
        log.info("the preprocessing is that of timm's pretrained_cfg")
        return found
    hub = hub_model_of(model)
    settings = hub_settings(hub) if hub else None
    if hub is None or settings is None:
        return None
    log.info("the preprocessing is that of %s/preprocessor_config.json", hub.name)
    return hub_preprocessing(settings)


def _require_size(own: Preprocessing, arguments: tuple[Argument, ...]) -> None:
    for argument in arguments:
        size = argument.value
        sides = [size, size] if isinstance(size, int) else size
        if argument.name in _SIZES and sides is not None and sides != [own.height, own.width]:
            raise SourceError(
                f"`{argument.name}` is another size than that of timm's `pretrained_cfg`",
                where="model.arguments",
                expected=f"{own.height}×{own.width}, for which `pretrained_cfg` gives the preprocessing",
                got=str(size),
                fix=_WRITE,
            )


def refuse_unknown(call: str, model: nn.Module) -> NoReturn:
    """Refuse `preprocessing: auto` for a network that nothing says the preprocessing of.

    Raises:
        SourceError: always.
    """
    raise SourceError(
        "nothing says how the images for this network were prepared in its training",
        where="preprocessing: auto",
        expected="torchvision's own factory, timm's `pretrained_cfg`, or preprocessor_config.json in the folder or the "
        "cached model of Hugging Face",
        got=f"{call} returns {type(model).__name__}, with none of them",
        fix=_WRITE,
    )


def require_range_of(own: Preprocessing, written: Preprocessing) -> None:
    """Compare the range of a written preprocessing with the one that the weights come with.

    Args:
        own: the preprocessing of the weights.
        written: the one of pipeline.yaml.

    Raises:
        SourceError: the inputs lie outside the trained range or fill less than half of it, and no `input_range` says
            that this is meant.
    """
    (low, high), (least, most) = own.reach, written.reach
    width = high - low
    slack = _BEYOND * width
    fits = low - slack <= least and most <= high + slack and _NARROWEST * width <= most - least <= _WIDEST * width
    if fits or written.input_range is not None:
        return
    raise SourceError(
        "`preprocessing` gives the network other inputs than its weights were trained on",
        expected=f"inputs from {low:.4g} to {high:.4g}: mean {list(own.mean)}, std {list(own.std)}",
        got=f"inputs from {least:.4g} to {most:.4g}: mean {list(written.mean)}, std {list(written.std)}",
        fix=f"write the expected mean and std, or `preprocessing: auto`; or {range_line(written)} to keep it as it is",
    )
