"""Settings that a library is known to lack, and its build routes."""

from __future__ import annotations

import json

import pytest

from model_artifacts.errors import BuildError
from model_artifacts.records import EngineFlavour
from model_artifacts.tensorrt.flavour import load_flavour
from pipeline.adapters.trials.refusals import build_routes, refusals, routes_of
from pipeline.config.tensorrt import TensorRTConfig


def knobs(*found: tuple[str, str, object]) -> str:
    """Return a library's list of knobs: option, allowed values, default."""
    fields = ("option", "allowed_values", "default_value")
    return json.dumps({"tuner_version": "1", "tuner_options": [dict(zip(fields, knob, strict=True)) for knob in found]})


def test_default_settings_are_never_refused() -> None:
    """Nothing was asked for."""
    flavour = load_flavour(EngineFlavour.TENSORRT_RTX)
    assert refusals(flavour, TensorRTConfig()) == {}
    asked = TensorRTConfig(max_aux_streams=0, refit=True, strict_nans=True, attempt=2)
    reason = f"{flavour} builds ahead of time, and has no use for it"
    assert refusals(flavour, asked) == {"strict_nans": reason, "attempt": reason}


def test_each_value_but_the_default_is_a_route() -> None:
    """Of knobs with a list of values; a range of numbers is none."""
    text = knobs(("-fuse", "[on|off]", "on"), ("-depth", "[1 | 2|4]", 2), ("-size", "[0...8]", 0), ("-free", "", ""))
    assert routes_of(text) == ("-fuse=off", "-depth=1", "-depth=4")
    assert routes_of("") == routes_of(knobs()) == ()


@pytest.mark.parametrize(
    "text", ["knobs", "[]", '{"tuner_options": [{"option": "-a"}]}'], ids=["text", "list", "field"]
)
def test_another_form_of_the_list_is_refused(text: str) -> None:
    """It is told, and the search goes on without routes."""
    with pytest.raises(BuildError, match="in an unknown form"):
        routes_of(text)


def test_rtx_has_no_routes() -> None:
    """It has no knobs."""
    assert build_routes(load_flavour(EngineFlavour.TENSORRT_RTX)) == ()
