"""The one place that knows TensorRT's flavours, from 8.6 to 11 and TensorRT-RTX.

What a flavour can do is asked of it (`hasattr`), never looked up by version.
"""

from pipeline.trt_adapter.builder import BuiltEngine, EngineRequest, build_engine, graph_file
from pipeline.trt_adapter.flavour import BuildLog, Flavour, load_flavour, weight_warnings
from pipeline.trt_adapter.inspector import EngineLayer, read_layers, shares
from pipeline.trt_adapter.refitter import refit_engine
from pipeline.trt_adapter.runtime import ExecutionContext, LoadedEngine, load_engine

__all__ = [
    "BuildLog",
    "BuiltEngine",
    "EngineLayer",
    "EngineRequest",
    "ExecutionContext",
    "Flavour",
    "LoadedEngine",
    "build_engine",
    "graph_file",
    "load_engine",
    "load_flavour",
    "read_layers",
    "refit_engine",
    "shares",
    "weight_warnings",
]
