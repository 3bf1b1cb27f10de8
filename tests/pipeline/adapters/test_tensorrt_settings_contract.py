"""The settings of a build against NVIDIA's own bindings of three versions, without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Precision
from tests.support.tensorrt_contract import BUILDS, applied, flags, newer, only_8, only_10, only_11

if TYPE_CHECKING:
    from tests.support.tensorrt_drive import Report


def test_every_setting_is_accounted_for(report: Report) -> None:
    """Every setting is applied, or has a note that says why not; never both."""
    settings = [setting for case in report.cases.values() for setting in case.settings]

    assert settings
    assert [setting for setting in settings if setting.applied is bool(setting.note)] == []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "every",
            {
                "optimization_level",
                "tactic_sources",
                "hardware_compatibility",
                "version_compatible",
                "lean_runtime",
                "refit",
                "strip_plan",
                "timing_cache",
                "max_num_tactics",
                "avg_timing_iterations",
                "attempt",
                "tiling_optimization_level",
                "l2_limit_for_tiling",
                "max_aux_streams",
                "sparse_weights",
                "strict_nans",
                "weight_streaming",
                "build_route",
            },
        ),
        ("same", {"hardware_compatibility"}),
        ("cublas", {"tactic_sources"}),
        ("untimed", {"timing_cache"}),
    ],
)
def test_every_wish_is_recorded(report: Report, name: str, wanted: set[str]) -> None:
    """Every configured setting is recorded, applied or not."""
    assert wanted <= applied(report.cases[f"build fp16 {name}"]).keys()


@pytest.mark.parametrize("how", ["refused", "not kept"])
def test_refused_tactic_sources_are_recorded(report: Report, how: str) -> None:
    """A choice of tactics that the library does not take is unsupported, and the build goes on without it."""
    case = report.cases[f"build with tactic sources that are {how}"]
    (setting,) = (setting for setting in case.settings if setting.name == "tactic_sources")

    assert case.error == ""
    assert (setting.applied, setting.note) == (False, f"tensorrt {report.version} refuses this choice")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.TF32, Precision.FP16, Precision.INT8])
def test_tf32_is_off_for_strict_fp32_only(report: Report, precision: Precision) -> None:
    """The one flag that every flavour has for a type is cleared for FP32, and set for the rest."""
    case = report.cases[f"build {precision.value} plain"]

    assert flags(case)[0] == f"{'clear' if precision is Precision.FP32 else 'set'}_flag(BuilderFlag.TF32)"


def test_a_lean_runtime_that_is_missing_is_left_out(report: Report) -> None:
    """Without a lean runtime, the engine is built without it, and later versions of TensorRT are not promised."""
    case, whole = (report.cases[name] for name in ("build fp16 every", "build with a lean runtime"))
    (setting,) = (setting for setting in case.settings if setting.name == "lean_runtime")

    assert "set_flag(BuilderFlag.EXCLUDE_LEAN_RUNTIME)" in flags(case)
    assert "set_flag(BuilderFlag.EXCLUDE_LEAN_RUNTIME)" not in flags(whole)
    assert setting.note.startswith("no lean runtime. Without it, tensorrt ")
    assert (applied(case)["version_compatible"], applied(whole)["lean_runtime"]) == (True, True)


@only_8
def test_8_lacks_newer_settings(report: Report) -> None:
    """8.6 applies every setting that it had in its time."""
    cases = report.cases

    assert {name for name, done in applied(cases["build with a lean runtime"]).items() if not done} == {
        "max_num_tactics",
        "tiling_optimization_level",
        "l2_limit_for_tiling",
        "build_route",
        "strip_plan",
        "strict_nans",
        "weight_streaming",
    }
    assert not applied(cases["build fp16 same"])["hardware_compatibility"]
    assert applied(cases["build fp16 cublas"])["tactic_sources"]


@newer
@pytest.mark.parametrize("name", BUILDS)
def test_newer_precisions_are_never_flags(report: Report, name: str) -> None:
    """10 and 11 build every precision, and no flag but TF32 is about a type."""
    case = report.cases[name]
    others = {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "REFIT", "STRIP_PLAN", "WEIGHTLESS", "TF32"}
    others |= {"DISABLE_TIMING_CACHE", "SPARSE_WEIGHTS", "STRICT_NANS", "WEIGHT_STREAMING"}

    assert case.error == ""
    assert {call.partition("BuilderFlag.")[2].rstrip(")") for call in flags(case)} <= others


@newer
def test_newer_settings_are_all_applied(report: Report) -> None:
    """10 and 11 apply every setting, compatibility within a compute capability included; build routes are of 11.1."""
    cases = report.cases
    missing = {name for name, done in applied(cases["build with a lean runtime"]).items() if not done}

    assert missing == ({"build_route"} if report.version.startswith("10.") else set())
    assert all(applied(cases["build fp16 same"]).values())


@newer
def test_a_value_that_is_not_kept_is_recorded(report: Report) -> None:
    """A value that the library drops is found when it is read back, and the build goes on without it."""
    case = report.cases["build with a value that is refused"]
    (setting,) = (setting for setting in case.settings if setting.name == "l2_limit_for_tiling")

    assert case.error == ""
    assert not setting.applied
    assert setting.note.startswith(f"tensorrt {report.version} refuses this value")


@only_10
def test_10_has_cublas(report: Report) -> None:
    """10 takes tactics from cuBLAS and cuDNN."""
    case = report.cases["build fp16 cublas"]

    assert applied(case)["tactic_sources"]
    assert "IBuilderConfig.set_tactic_sources(7)" in case.calls


@only_11
def test_11_has_no_cublas(report: Report) -> None:
    """11 takes no tactics from cuBLAS and cuDNN, and the setting's note says so."""
    case = report.cases["build fp16 cublas"]
    (setting,) = (setting for setting in case.settings if setting.name == "tactic_sources")

    assert not setting.applied
    assert setting.note == "tensorrt 11.4.0.106 has no CUBLAS, CUBLAS_LT, CUDNN"
    assert not any("set_tactic_sources" in call for call in case.calls)


@only_8
@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", []), ("tf32", []), ("fp16", ["FP16"]), ("int8", ["INT8", "FP16"])],
)
def test_8_has_flags_for_the_types_of_the_graph(report: Report, precision: str, expected: list[str]) -> None:
    """8.6 is told by flags which types the graph asks for."""
    case = report.cases[f"build {precision} plain"]

    assert flags(case)[1:] == [f"set_flag(BuilderFlag.{name})" for name in expected]
