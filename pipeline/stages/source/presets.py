"""Preprocessing that comes with a model: timm's `pretrained_cfg`, and the check of a written one against it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from model_artifacts.errors import SourceError
from model_artifacts.records import Fit, Interpolation, Preprocessing
from pipeline.config.preprocessing import range_line

if TYPE_CHECKING:
    from torch import nn

_CROP_SHARE = 0.875
"""timm's `crop_pct` where a model's configuration has none (timm.data.constants)."""
_NARROWEST, _WIDEST = 0.5, 2.0
"""Bounds of the width of the inputs' range, as a share of the range that the weights were trained on."""
_BEYOND = 0.25
"""The share of the trained range by which inputs may lie outside of it."""


def timm_preprocessing(model: nn.Module) -> Preprocessing | None:
    """Return the preprocessing that timm's evaluation takes from a model's `pretrained_cfg`; None if it has none.

    Raises:
        SourceError: the configuration is not one of timm's.
    """
    found = getattr(model, "pretrained_cfg", None)
    if not found:
        return None
    settings = found if isinstance(found, Mapping) else vars(found)
    try:
        height, width = settings["input_size"][-2:]
        share = settings.get("crop_pct") or _CROP_SHARE
        resize = math.floor(height / share), math.floor(width / share)
        mode = settings.get("crop_mode") or "center"
        covers = mode == "center" and resize[0] != resize[1]
        named = str(settings.get("interpolation"))
        filters = {item.value: item for item in Interpolation}
        return Preprocessing(
            resize=resize[0] if mode == "center" and not covers else resize,
            crop=height if height == width else (height, width),
            # timm resizes to cover a rectangle bilinearly, whatever the configuration says.
            interpolation=Interpolation.BILINEAR if covers else filters.get(named, Interpolation.BILINEAR),
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
