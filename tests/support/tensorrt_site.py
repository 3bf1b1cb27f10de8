"""Uses an installed TensorRT as far as this host allows, and prints the outcome as JSON.

    python -m tests.support.tensorrt_site FOLDER    # the folder gets a graph

Without a driver the library creates no builder. With one, every setting is applied and read back, and a network of one
convolution is built; a TensorRT without the builder's kernels ends there.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_artifacts.errors import ArtifactError
from model_artifacts.host.environment import gpus
from model_artifacts.records import EngineFlavour, Precision, Record, Setting
from model_artifacts.tensorrt.flavour import BuildLog, load_flavour, make_logger
from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine
from pipeline.adapters.tensorrt_settings import BuilderSettings, network_flags
from tests.support.hosts import H100
from tests.support.tensorrt_drive import RANGE, SETTINGS

NAMES = {
    "IBuilderConfig": (
        "avg_timing_iterations",
        "builder_optimization_level",
        "hardware_compatibility_level",
        "l2_limit_for_tiling",
        "max_aux_streams",
        "max_num_tactics",
        "tiling_optimization_level",
    ),
    "BuilderFlag": (
        "EXCLUDE_LEAN_RUNTIME",
        "REFIT",
        "SPARSE_WEIGHTS",
        "STRICT_NANS",
        "STRIP_PLAN",
        "TF32",
        "VERSION_COMPATIBLE",
        "WEIGHT_STREAMING",
    ),
    "ICudaEngine": ("get_weight_streaming_automatic_budget", "streamable_weights_size", "weight_streaming_budget_v2"),
    "Runtime": ("engine_host_code_allowed",),
}
"""The names of TensorRT 10 and 11 that the adapters use for settings."""


class Site(Record):
    """The outcome for one TensorRT."""

    version: str
    strongly_typed: bool
    tunes: bool
    missing: tuple[str, ...]
    """Those of `NAMES` that it lacks."""
    error: str
    """The reason why a build ended without an engine."""
    settings: tuple[Setting, ...] = ()
    """Every setting, applied and read back. Empty without a driver."""
    build_routes: str = ""
    """The library's own list of build routes, as JSON. Empty without a driver, and before 11.1."""


def use(folder: Path) -> Site:
    """Use the installed TensorRT.

    Args:
        folder: gets a graph.
    """
    flavour = load_flavour(EngineFlavour.TENSORRT)
    trt: Any = flavour.module
    request = EngineRequest(
        onnx=_graph(folder),
        precision=Precision.FP16,
        profile=RANGE,
        workspace_bytes=2**26,
        compute_capabilities=(),
        gpu=next(iter(gpus()), H100),
        settings=SETTINGS["every"],
    )
    settings: tuple[Setting, ...] = ()
    routes = ""
    builder = None
    if gpus():
        with suppress(TypeError):  # raised by the bindings if the library creates none; the build below says why
            builder = trt.Builder(make_logger(trt, BuildLog()))
    if builder is not None:
        network = builder.create_network(network_flags(flavour))
        network.add_input("image", trt.float16, (-1, 8, 8, 8))
        config = builder.create_builder_config()
        settings = BuilderSettings(flavour, builder, network, config, request, b"").apply()
        routes = getattr(config, "all_build_routes", "")
    error = ""
    try:
        build_engine(flavour, request, BuildLog())
    except ArtifactError as exc:
        error = str(exc)
    return Site(
        version=flavour.version,
        strongly_typed=flavour.strongly_typed,
        tunes=flavour.tunes,
        missing=tuple(
            f"{owner}.{name}"
            for owner, names in NAMES.items()
            for name in names
            if not hasattr(getattr(trt, owner), name)
        ),
        error=error,
        settings=settings,
        build_routes=routes,
    )


def _graph(folder: Path) -> Path:
    """Write a graph of one convolution."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT16, ["batch", 8, 8, 8])
    result = helper.make_tensor_value_info("result", TensorProto.FLOAT16, ["batch", 8, 6, 6])
    kernel = numpy_helper.from_array(np.ones((8, 8, 3, 3), dtype=np.float16), "kernel")
    convolution = helper.make_node("Conv", ["image", "kernel"], ["result"])
    graph = helper.make_graph([convolution], "graph", [image], [result], [kernel])
    file = folder / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), file)
    return file


if __name__ == "__main__":
    sys.stdout.write(use(Path(sys.argv[1])).model_dump_json())
