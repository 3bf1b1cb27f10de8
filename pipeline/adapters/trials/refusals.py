"""TensorRT's module × settings of a build → those that it cannot apply, as far as that is known without a build.

And the values of the one setting that the library itself lists: its build routes.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from model_artifacts.errors import BuildError
from model_artifacts.tensorrt.flavour import BuildLog, make_logger
from pipeline.config.tensorrt import TensorRTConfig, check_build_route

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_artifacts.tensorrt.flavour import Flavour

_ATTRIBUTES = {
    "optimization_level": "builder_optimization_level",
    "hardware_compatibility": "hardware_compatibility_level",
    "max_num_tactics": "max_num_tactics",
    "avg_timing_iterations": "avg_timing_iterations",
    "tiling_optimization_level": "tiling_optimization_level",
    "l2_limit_for_tiling": "l2_limit_for_tiling",
    "max_aux_streams": "max_aux_streams",
    "build_route": "build_route",
}
"""The attributes of `IBuilderConfig` that settings are written to."""
_FLAGS = {
    "version_compatible": "VERSION_COMPATIBLE",
    "refit": "REFIT",
    "strip_plan": "STRIP_PLAN",
    "sparse_weights": "SPARSE_WEIGHTS",
    "strict_nans": "STRICT_NANS",
    "weight_streaming": "WEIGHT_STREAMING",
}
"""The names of settings in `BuilderFlag`."""
_EVERYWHERE = {"max_aux_streams", "refit", "strip_plan", "weight_streaming"}
"""The settings among these that a flavour has a use for which builds ahead of time: the others concern tuning."""


def refusals(flavour: Flavour, settings: TensorRTConfig) -> dict[str, str]:
    """Return the settings that a flavour cannot apply, with the reasons. A setting with its default is none of them.

    What its library refuses only when it is asked, such as a value, is not known here.
    """
    default = TensorRTConfig()
    names = ("tactic_sources", "attempt", *_ATTRIBUTES, *_FLAGS)
    asked = [name for name in names if _of(settings, name) != _of(default, name)]
    found = {name: next(_reasons(flavour, settings, name), "") for name in asked}
    return {name: reason for name, reason in found.items() if reason}


def _of(settings: TensorRTConfig, name: str) -> object:
    found: object = getattr(settings, name)
    return found


def _reasons(flavour: Flavour, settings: TensorRTConfig, name: str) -> Iterator[str]:
    trt = flavour.module
    if not flavour.tunes and name not in _EVERYWHERE:
        yield f"{flavour} builds ahead of time, and has no use for it"
    needed: list[tuple[object, str]] = []
    if name in _ATTRIBUTES:
        needed.append((trt.IBuilderConfig, _ATTRIBUTES[name]))
    if name in _FLAGS:
        needed.append((trt.BuilderFlag, _FLAGS[name]))
    if name == "hardware_compatibility":
        needed.append((trt.HardwareCompatibilityLevel, settings.hardware_compatibility.name))
    if name == "tiling_optimization_level":
        needed.append((trt, "TilingOptimizationLevel"))
    if name == "tactic_sources":
        needed += [(trt.TacticSource, source.name) for source in settings.tactic_sources or ()]
    missing = [attribute for owner, attribute in needed if not hasattr(owner, attribute)]
    if missing:
        yield f"{flavour} has no {', '.join(missing)}"


_BOUNDED = re.compile(r"\[([^\]]*)\]")
"""The values of a knob that has a list of them: `[on|off]`; a range has dots inside."""


def build_routes(flavour: Flavour) -> tuple[str, ...]:
    """Return the build routes of a flavour that differ from the default in one knob; none if it has no knobs.

    Raises:
        BuildError: its builder cannot be created, or it lists its knobs in another form.
    """
    trt = flavour.module
    if not flavour.tunes or not hasattr(trt.IBuilderConfig, "all_build_routes"):
        return ()
    log = BuildLog()
    try:
        builder = trt.Builder(make_logger(trt, log))
    except TypeError as exc:  # raised by the bindings if the library returns no builder
        raise BuildError(f"{flavour} creates no builder", got="; ".join(log.errors()[:1])) from exc
    return routes_of(builder.create_builder_config().all_build_routes)


def routes_of(text: str) -> tuple[str, ...]:
    """Return the routes of a library's list of knobs, each with one value that is not the default. Pure.

    The form is that which Torch-TensorRT's tuner reads: `tuner_options`, each with `option`, `allowed_values` such as
    `[on|off]`, and `default_value`. Knobs with a range of numbers are left out.

    Raises:
        BuildError: the text has another form.
    """
    try:
        knobs = json.loads(text)["tuner_options"] if text.strip() else []
        return tuple(route for item in knobs for route in _routes_of(item))
    except (ValueError, KeyError, TypeError) as exc:
        raise BuildError(
            "the library lists its build routes in an unknown form",
            expected="JSON with tuner_options of option, allowed_values and default_value",
            got=repr(text[:60]),
        ) from exc


def _routes_of(knob: dict[str, object]) -> list[str]:
    listed = _BOUNDED.search(str(knob["allowed_values"]))
    values = listed.group(1).split("|") if listed and "..." not in listed.group(1) else []
    others = [value.strip() for value in values if value.strip() not in {"", str(knob["default_value"])}]
    return [check_build_route(f"{knob['option']}={value}") for value in others]
