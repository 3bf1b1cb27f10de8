"""Clauses of the contract with the bindings of TensorRT, and the symbols that these need."""

from __future__ import annotations

from model_artifacts.records import Precision
from tests.support.tensorrt_stub import SETTINGS

BUILDS = [f"build {precision.value} {settings}" for precision in Precision for settings in SETTINGS]
CONTRACT = [
    *BUILDS,
    "build a fixed batch",
    "build with timings",
    "build with another GPU's timings",
    "build with tactic sources that are refused",
    "build of a bad graph",
    "build that fails",
    "load",
    "load with weights",
    "load with weights of another",
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
