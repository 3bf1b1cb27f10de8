"""The builder's settings: applied, recorded and refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import UnsupportedError
from model_artifacts.records import EngineFlavour, Graph
from model_artifacts.tensorrt.flavour import Flavour, load_flavour
from pipeline.config.tensorrt import HardwareCompatibility, TacticSource, TilingOptimizationLevel
from tests.support.engine_requests import MIB, build, request_of, with_setting

if TYPE_CHECKING:
    from pipeline.planning.project import Project


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """The installed TensorRT-RTX."""
    return load_flavour(EngineFlavour.TENSORRT_RTX)


def test_settings_are_recorded(built: Project, flavour: Flavour) -> None:
    """Every setting of the request is in the result, as applied."""
    engine = build(flavour, request_of(built))

    assert {setting.name: setting.value for setting in engine.settings if setting.applied} == {
        "workspace_bytes": str(16 * MIB),
        "profile": "b1-2-4",
        "profiling_verbosity": "detailed",
        "compute_capabilities": "80, 86, 89, 120",
    }


def test_strict_fp32_is_said_to_be_unsupported(built: Project, flavour: Flavour) -> None:
    """TensorRT-RTX multiplies FP32 in TF32 whatever is asked, and the engine's settings say so."""
    (setting,) = [setting for setting in build(flavour, request_of(built)).settings if setting.name == "tf32"]

    assert (setting.value, setting.applied) == ("off", False)
    assert "multiplies FP32 in TF32" in setting.note


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimization_level", 3),
        ("tactic_sources", (TacticSource.JIT_CONVOLUTIONS,)),
        ("hardware_compatibility", HardwareCompatibility.AMPERE_PLUS),
        ("version_compatible", True),
        ("refit", True),
        ("strip_plan", True),
        ("timing_cache", True),
        ("max_num_tactics", 8),
        ("avg_timing_iterations", 8),
        ("attempt", 2),
        ("tiling_optimization_level", TilingOptimizationLevel.FULL),
        ("l2_limit_for_tiling", 2**20),
        ("sparse_weights", True),
        ("strict_nans", True),
        ("build_route", "-conv_use_long_w=off"),
    ],
)
def test_setting_that_the_flavour_lacks_is_recorded(built: Project, flavour: Flavour, name: str, value: object) -> None:
    """A setting that the flavour cannot apply is recorded with the reason, and changes nothing."""
    engine = build(flavour, with_setting(request_of(built, Graph.FP16), name, value))

    (setting,) = [setting for setting in engine.settings if setting.name == name]
    assert not setting.applied
    assert setting.note.startswith(f"{flavour} ")
    assert engine.layers_sha256 == build(flavour, request_of(built, Graph.FP16)).layers_sha256


@pytest.mark.parametrize(("name", "value"), [("max_aux_streams", 0), ("weight_streaming", True)])
def test_setting_of_every_flavour_is_applied(built: Project, flavour: Flavour, name: str, value: object) -> None:
    """TensorRT-RTX takes these two settings, too, and keeps them."""
    engine = build(flavour, with_setting(request_of(built, Graph.FP16), name, value))

    assert [setting.applied for setting in engine.settings if setting.name == name] == [True]


def test_timing_cache_can_be_turned_off(built: Project, flavour: Flavour) -> None:
    """A build without a timing cache records the setting as off and returns an empty cache."""
    engine = build(flavour, with_setting(request_of(built), "timing_cache", value=False))

    assert ("timing_cache", "off", True) in {(item.name, item.value, item.applied) for item in engine.settings}
    assert engine.timing_cache == b""


def test_unknown_compute_capability(built: Project, flavour: Flavour) -> None:
    """A GPU generation that the flavour does not know is refused, with those that it knows."""
    with pytest.raises(UnsupportedError, match=r"(?s)cannot build for SM 90.*SM120.*SM80"):
        build(flavour, request_of(built, compute_capabilities=(80, 90)))
