"""Clauses of the contract with the bindings of TensorRT, and the symbols that these need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.records import Precision
from tests.support.tensorrt_drive import SETTINGS
from tests.support.wheels import Wheel

if TYPE_CHECKING:
    from tests.support.tensorrt_drive import Case

TRT8 = Wheel("tensorrt_bindings", "8.6.1", last_python=(3, 11))
TRT10 = Wheel("tensorrt-cu13-bindings", "10.15.1.29")
TRT11 = Wheel("tensorrt-cu13-bindings", "11.4.0.106")
ALL = (TRT8, TRT10, TRT11)

only_8 = pytest.mark.parametrize("bindings", [TRT8], ids=str)
only_10 = pytest.mark.parametrize("bindings", [TRT10], ids=str)
only_11 = pytest.mark.parametrize("bindings", [TRT11], ids=str)
newer = pytest.mark.parametrize("bindings", [TRT10, TRT11], ids=str)


BUILDS = [f"build {precision.value} {settings}" for precision in Precision for settings in SETTINGS]
CONTRACT = [
    *BUILDS,
    "build a fixed batch",
    "build several profiles",
    "build of which a profile is lost",
    "load several profiles",
    "load profiles in another order",
    "load a profile that cannot be used",
    "build with timings",
    "build with another GPU's timings",
    "build with tactic sources that are refused",
    "build with tactic sources that are not kept",
    "build with a value that is refused",
    "build with a lean runtime",
    "build of a bad graph",
    "build that fails",
    "load",
    "load with weights",
    "load with weights of another",
    "load with its lean runtime",
    "load without room for the weights",
    "load with room for the weights",
    "load what is damaged",
    "a second context",
    "refit",
    "refit what is damaged",
    "refit that fails",
    "refit that lacks weights",
    "refit of other names",
    "refit without a graph",
    "profile",
    "log",
]

# What the bindings want of the libraries that they are linked with; nothing of it is called.
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
    "_ZN11nvuffparser15createUffParserEv",
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi",
    "_ZN14nvcaffeparser117createCaffeParserEv",
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv",
)


def applied(case: Case) -> dict[str, bool]:
    """Return which settings were applied."""
    return {setting.name: setting.applied for setting in case.settings}


def flags(case: Case) -> list[str]:
    """Return the calls that set or clear a builder flag."""
    return [call.partition(".")[2] for call in case.calls if "_flag(" in call]
