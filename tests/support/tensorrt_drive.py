"""Drives the adapter on a TensorRT's genuine bindings with stand-in objects, and prints the outcome as JSON.

python -m tests.support.tensorrt_drive FOLDER    # the folder holds the package `tensorrt_bindings`
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_artifacts.errors import ArtifactError
from model_artifacts.records import BatchRange, EngineFlavour, Precision, Record, Setting, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, make_logger
from model_artifacts.tensorrt.refitter import refit_engine
from model_artifacts.tensorrt.runtime import load_engine
from pipeline.adapters.tensorrt_builder import EngineRequest, build_engine
from pipeline.config.tensorrt import HardwareCompatibility, TacticSource, TensorRTConfig, TilingOptimizationLevel
from tests.support.hosts import H100
from tests.support.tensorrt_stub import Library, Standin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType


class Case(Record):
    """The outcome of one use of the adapter."""

    calls: tuple[str, ...] = ()
    violation: str = ""
    """What the genuine binding would have raised."""
    error: str = ""
    """What the adapter raised on purpose, by its class and first line."""
    settings: tuple[Setting, ...] = ()
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    said: tuple[str, ...] = ()
    """What else it gave, as text."""


class Report(Record):
    """The outcomes for one flavour."""

    version: str
    cases: dict[str, Case]


SETTINGS = {
    "plain": TensorRTConfig(),
    "every": TensorRTConfig(
        optimization_level=3,
        tactic_sources=(TacticSource.EDGE_MASK_CONVOLUTIONS, TacticSource.JIT_CONVOLUTIONS),
        hardware_compatibility=HardwareCompatibility.AMPERE_PLUS,
        version_compatible=True,
        refit=True,
        strip_plan=True,
        max_num_tactics=8,
        avg_timing_iterations=2,
        attempt=2,
        tiling_optimization_level=TilingOptimizationLevel.FULL,
        l2_limit_for_tiling=2**20,
        max_aux_streams=0,
        sparse_weights=True,
        strict_nans=True,
        weight_streaming=True,
        build_route="-conv_use_long_w=off",
    ),
    "same": TensorRTConfig(hardware_compatibility=HardwareCompatibility.SAME_COMPUTE_CAPABILITY),
    "cublas": TensorRTConfig(tactic_sources=(TacticSource.CUBLAS, TacticSource.CUBLAS_LT, TacticSource.CUDNN)),
    "untimed": TensorRTConfig(timing_cache=False),
}
RANGE = BatchRange(min=1, opt=2, max=4)
FIXED = BatchRange(min=4, opt=4, max=4)
EACH = BatchRange(min=1, opt=4, max=4, tuned=(1, 2, 4))
LAYER = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": [{"Name": "image", "Format/Datatype": "Half"}]}


def _answers(library: Library) -> dict[str, Any]:
    """Return the answers of a network and an engine with one input and one output."""
    trt = library.genuine
    shapes = {"image": trt.Dims((-1, 3, 8, 8)), "logits": trt.Dims((-1, 10))}
    image, logits = (
        Standin(trt.ITensor, library, name=name, shape=shape, dtype=trt.DataType.FLOAT)
        for name, shape in shapes.items()
    )
    kept = [0]

    def keep(mask: int) -> bool:
        kept[0] = mask
        return True

    return {
        "IBuilderConfig.set_tactic_sources": keep,
        "IBuilderConfig.get_tactic_sources": lambda: kept[0],
        "INetworkDefinition.num_inputs": 1,
        "INetworkDefinition.num_outputs": 1,
        "INetworkDefinition.get_input": image,
        "INetworkDefinition.get_output": logits,
        "IBuilderConfig.hardware_compatibility_level": trt.HardwareCompatibilityLevel.NONE,
        "IBuilderConfig.tiling_optimization_level": "NONE",
        "Builder.build_serialized_network": lambda _, config: _build(library, config),
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.device_memory_size": 4096,
        "ICudaEngine.device_memory_size_v2": 4096,
        "ICudaEngine.get_tensor_name": lambda index: list(shapes)[index],
        "ICudaEngine.get_tensor_mode": lambda name: getattr(trt.TensorIOMode, {"image": "INPUT"}.get(name, "OUTPUT")),
        "ICudaEngine.get_tensor_shape": shapes.get,
        "ICudaEngine.get_tensor_dtype": trt.DataType.FLOAT,
        "ICudaEngine.get_tensor_profile_shape": [trt.Dims((batch, 3, 8, 8)) for batch in (1, 2, 4)],
        "IExecutionContext.get_tensor_shape": lambda name: trt.Dims((2, *tuple(shapes[name])[1:])),
        "EngineInspector.get_engine_information": json.dumps({"Layers": [LAYER]}),
    }


def _build(library: Library, config: Any) -> Standin:
    """Build, and tell of it as the library's C++ does: through the genuine class's virtual methods."""
    trt = library.genuine
    if hasattr(trt, "IProgressMonitor") and config.progress_monitor:
        monitor, kind = config.progress_monitor, trt.IProgressMonitor
        kind.phase_start(monitor, "tune", None, 2)
        kind.phase_start(monitor, "conv", "tune", 1)
        library.calls.append(f"go on: {kind.step_complete(monitor, 'conv', 0)}")
        kind.phase_finish(monitor, "conv")
    return Standin(trt.IHostMemory, library)


@dataclass
class _Told:
    """Hears of a build's progress."""

    events: list[str]

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.events.append(f"start {phase} of {parent}, {steps} steps")

    def step(self, phase: str, done: int) -> None:
        self.events.append(f"{phase}: {done}")

    def finish(self, phase: str) -> None:
        self.events.append(f"finish {phase}")


def _request(precision: Precision, settings: TensorRTConfig, profile: BatchRange = RANGE) -> EngineRequest:
    return EngineRequest(
        onnx=Path("graph.onnx"),
        onnx_opset17=Path("graph17.onnx"),
        precision=precision,
        profile=profile,
        workspace_bytes=2**24,
        compute_capabilities=(),
        gpu=H100,
        settings=settings,
    )


def _built(
    flavour: Flavour, request: EngineRequest, timings: bytes = b"", lean: str = "no lean runtime"
) -> dict[str, Any]:
    """Build; `lean` is the reason why there is no lean runtime, whatever is installed."""
    told = _Told([])
    with patch("pipeline.adapters.tensorrt_settings.missing_lean_runtime", lambda _: lean):
        engine = build_engine(flavour, request, BuildLog(), told, timings)
    memory = str(engine.memory.activation_bytes)
    said = (memory, engine.plan.decode(), engine.timing_cache.decode(), *told.events)
    return {"settings": engine.settings, "inputs": engine.inputs, "outputs": engine.outputs, "said": said}


def _loaded(flavour: Flavour, weights: Path | None = None, *, host_code: bool = False) -> dict[str, Any]:
    """Use everything that a loaded engine and its context offer."""
    with load_engine(flavour, b"plan", weights, host_code=host_code) as engine:
        inspected = engine.inspect()
        with engine.context(stream=7) as context:
            context.set_input_shape("image", (2, 3, 8, 8))
            context.set_address("image", 4096)
            shape = context.shape("logits")
            layers = context.layers()
            context.enqueue(7)
            cache = context.runtime_cache()
        streams = str(engine.streams_weights)
        said = (engine.batches.label, str(layers[0].precision), str(shape), str(cache), inspected, streams)
        return {"inputs": engine.inputs, "outputs": engine.outputs, "said": said}


def _several(trt: ModuleType, sizes: tuple[int, ...] = EACH.tuned) -> dict[str, Any]:
    """Return the answers of an engine with a profile for each of several batch sizes."""
    return {
        "ICudaEngine.num_optimization_profiles": len(sizes),
        "ICudaEngine.get_tensor_profile_shape": lambda _, profile: [trt.Dims((sizes[profile], 3, 8, 8))] * 3,
        "ICudaEngine.get_device_memory_size_for_profile_v2": lambda profile: 1000 * sizes[profile],
        "IExecutionContext.set_optimization_profile_async": True,
        "IExecutionContext.set_tensor_address": True,
        "IExecutionContext.set_input_shape": True,
    }


def _switched(flavour: Flavour) -> dict[str, Any]:
    """Run batches of several sizes in turns."""
    with load_engine(flavour, b"plan") as engine, engine.context(stream=7) as context:
        context.set_address("image", 4096)
        for size in (1, 4, 1):
            context.set_input_shape("image", (size, 3, 8, 8))
            context.enqueue(7)
        return {"said": (engine.batches.label, str(engine.activation_bytes))}


def _refitted(flavour: Flavour, weights: Path) -> dict[str, Any]:
    """Put other weights into an engine."""
    return {"said": (refit_engine(flavour, b"plan", weights, BuildLog()).decode(),)}


def _weights(folder: Path, *names: str) -> Path:
    """Write a graph with weights of these names."""
    tensors = [numpy_helper.from_array(np.ones(2, dtype=np.float16), name) for name in names]
    graph = helper.make_graph([], "graph", [], [], tensors)
    file = folder / "weights.onnx"
    onnx.save(helper.make_model(graph), file)
    return file


def _profiled(flavour: Flavour) -> dict[str, Any]:
    """Have a context time its layers."""
    with load_engine(flavour, b"plan") as engine, engine.context(stream=7) as context:
        return {"said": tuple(f"{name} {taken:.2f}" for name, taken in context.time_layers(7, 2).items())}


def _telling(trt: ModuleType) -> dict[str, Any]:
    """Return answers of a context that reports to its profiler, through the genuine class's virtual method."""
    told: list[Any] = []

    def run(_: int) -> bool:
        for name, taken in (("conv", 0.5), ("copy", 0.125), ("copy", 0.125)):
            trt.IProfiler.report_layer_time(told[-1], name, taken)
        return True

    return {"IExecutionContext.profiler.set": told.append, "IExecutionContext.execute_async_v3": run}


def _logged(flavour: Flavour) -> dict[str, Any]:
    """Log as the library's C++ does: through the genuine class's virtual method."""
    trt, log = flavour.module, BuildLog()
    logger = make_logger(trt, log)
    for severity in trt.ILogger.Severity.__members__.values():
        trt.ILogger.log(logger, severity, "hello")
    return {"said": tuple(log.text().splitlines())}


def _config(flavour: Flavour) -> Any:
    trt = flavour.module
    return trt.Builder(make_logger(trt, BuildLog())).create_builder_config()


def _assign(target: object, name: str, value: object) -> None:
    setattr(target, name, value)


_MISTAKES: dict[str, Callable[[Flavour], object]] = {
    "a property": lambda flavour: _config(flavour).max_workspace_size,
    "a property that is set": lambda flavour: _assign(_config(flavour), "max_workspace_size", 1),
    "a flag": lambda flavour: _config(flavour).set_flag(flavour.module.BuilderFlag.FP16),
    "a keyword": lambda flavour: _config(flavour).set_memory_pool_limit(
        pool=flavour.module.MemoryPoolType.WORKSPACE, size=1
    ),
    "the number of arguments": lambda flavour: _config(flavour).set_timing_cache(
        _config(flavour).create_timing_cache(b"")
    ),
    "another enumeration": lambda flavour: _config(flavour).set_flag(flavour.module.MemoryPoolType.WORKSPACE),
    "a number for an enumeration": lambda flavour: _assign(_config(flavour), "profiling_verbosity", 1),
    "another object": lambda flavour: _config(flavour).add_optimization_profile(_config(flavour)),
    "a property that is read only": lambda flavour: _assign(_config(flavour), "num_optimization_profiles", 1),
    "a constructor": lambda flavour: flavour.module.Runtime(),
}
"""What the contract must catch: some in every flavour, some in those that lack what is used."""


def _mistaken(mistake: Callable[[Flavour], object], flavour: Flavour) -> dict[str, Any]:
    mistake(flavour)
    return {}


def _attempt(
    genuine: ModuleType, action: Callable[[Flavour], Mapping[str, Any]], answers: Mapping[str, Any] | None = None
) -> Case:
    library = Library(genuine, lambda self: {**_answers(self), **(answers or {})})
    flavour = Flavour(EngineFlavour.TENSORRT, genuine.__version__, library)
    gave: Mapping[str, Any] = {}
    try:
        gave = action(flavour)
    except ArtifactError as exc:
        gave = {"error": f"{type(exc).__name__}: {exc.what}"}
    except (AttributeError, TypeError) as exc:
        gave = {"violation": f"{type(exc).__name__}: {exc}"}
    return Case(calls=tuple(library.calls), **gave)


def drive(genuine: ModuleType, folder: Path) -> Report:
    """Use a flavour in every way that the adapter offers; files lie in the folder."""
    attempt = partial(_attempt, genuine)
    matrix = {
        f"build {precision.value} {name}": attempt(partial(_built, request=_request(precision, settings)))
        for precision in Precision
        for name, settings in SETTINGS.items()
    }
    build = partial(_built, request=_request(Precision.FP16, SETTINGS["plain"]))
    refit = partial(_loaded, weights=Path("weights.onnx"))
    bad_graph = {
        "OnnxParser.parse_from_file": False,
        "OnnxParser.num_errors": 1,
        "ParserError.desc": "no such operator",
    }
    streamed = {
        "ICudaEngine.streamable_weights_size": 4096,
        "ICudaEngine.get_weight_streaming_automatic_budget": 1024,
    }
    taken = iter((False, True))
    named = {"Refitter.get_all_weights": ["weight"], "Refitter.get_missing_weights": []}
    fresh = partial(_refitted, weights=_weights(folder, "weight"))
    others = {
        "build a fixed batch": attempt(partial(_built, request=_request(Precision.FP16, SETTINGS["plain"], FIXED))),
        "build several profiles": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["plain"], EACH)), _several(genuine)
        ),
        "build of which a profile is lost": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["plain"], EACH)), _several(genuine, (1, 4))
        ),
        "load several profiles": attempt(_switched, _several(genuine)),
        "load profiles in another order": attempt(_switched, _several(genuine, (4, 1))),
        "load a profile that cannot be used": attempt(
            _switched,
            {**_several(genuine), "IExecutionContext.set_optimization_profile_async": lambda index, _: index < 2},
        ),
        "build with timings": attempt(partial(build, timings=b"timings")),
        "build with another GPU's timings": attempt(
            partial(build, timings=b"timings"), {"IBuilderConfig.set_timing_cache": lambda *_: next(taken)}
        ),
        "build with tactic sources that are refused": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["every"])),
            {"IBuilderConfig.set_tactic_sources": False},
        ),
        "build with tactic sources that are not kept": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["every"])),
            {"IBuilderConfig.get_tactic_sources": 0},
        ),
        "build with a value that is refused": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["every"])),
            {"IBuilderConfig.l2_limit_for_tiling.set": False},
        ),
        "build with a lean runtime": attempt(
            partial(_built, request=_request(Precision.FP16, SETTINGS["every"]), lean="")
        ),
        "build of a bad graph": attempt(build, bad_graph),
        "build that fails": attempt(build, {"Builder.build_serialized_network": None}),
        "load": attempt(_loaded),
        "load with weights": attempt(refit),
        "load with weights of another": attempt(refit, {"OnnxParserRefitter.refit_from_file": False}),
        "load with its lean runtime": attempt(partial(_loaded, host_code=True)),
        "load without room for the weights": attempt(_loaded, streamed),
        "load with room for the weights": attempt(
            _loaded, {**streamed, "ICudaEngine.get_weight_streaming_automatic_budget": 4096}
        ),
        "load what is damaged": attempt(_loaded, {"Runtime.deserialize_cuda_engine": None}),
        "a second context": attempt(_loaded, {"IExecutionContext.active_optimization_profile": -1}),
        "refit": attempt(fresh, named),
        "refit what is damaged": attempt(fresh, {"Runtime.deserialize_cuda_engine": None}),
        "refit that fails": attempt(fresh, {**named, "Refitter.refit_cuda_engine": False}),
        "refit that lacks weights": attempt(fresh, {**named, "Refitter.get_missing_weights": ["other"]}),
        "refit of other names": attempt(fresh, {**named, "Refitter.get_all_weights": ["weight", "other"]}),
        "refit without a graph": attempt(partial(_refitted, weights=Path("none.onnx")), named),
        "profile": attempt(_profiled, _telling(genuine)),
        "log": attempt(_logged),
    }
    mistakes = {f"mistake: {name}": attempt(partial(_mistaken, mistake)) for name, mistake in _MISTAKES.items()}
    return Report(version=genuine.__version__, cases={**matrix, **others, **mistakes})


if __name__ == "__main__":
    sys.modules["tensorrt_libs"] = None  # type: ignore[assignment]  # the stub libraries, not those that may be installed
    sys.path.insert(0, sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        report = drive(importlib.import_module("tensorrt_bindings"), Path(scratch))
    sys.stdout.write(report.model_dump_json())
