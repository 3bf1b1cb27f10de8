"""ONNX → serialized engine, by whichever flavour: every setting applied, or recorded as unsupported."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from model_artifacts.errors import BuildError, UnsupportedError
from model_artifacts.records import BuiltFor, EngineMemory, Precision, Setting, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, make_logger
from model_artifacts.tensorrt.runtime import load_engine
from pipeline.adapters.tensorrt_settings import (
    FIRST_COMPUTE_CAPABILITY,
    BuilderSettings,
    io_formats,
    joined,
    keeps_timings,
    set_compute_capabilities,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from model_artifacts.records import BatchRange, Gpu
    from model_artifacts.tensorrt.flavour import Flavour
    from pipeline.config.settings import TensorRTConfig


class Progress(Protocol):
    """What is told of a long build; called from the builder's threads."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins."""

    def step(self, phase: str, done: int) -> None:
        """A step of it is done."""

    def finish(self, phase: str) -> None:
        """It is over."""


@dataclass(frozen=True)
class EngineRequest:
    """What to build."""

    onnx: Path
    precision: Precision
    profile: BatchRange
    workspace_bytes: int
    compute_capabilities: tuple[int, ...]
    """The GPU generations to build for ahead of time; empty for the current GPU."""
    gpu: Gpu | None
    """The current GPU, where there is one."""
    settings: TensorRTConfig
    onnx_opset17: Path | None = None
    """The same graph for a flavour that is not strongly typed, where `onnx` is too new for it."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and what its builder said of it."""

    plan: bytes
    memory: EngineMemory
    layers_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    settings: tuple[Setting, ...]
    built_for: BuiltFor
    timing_cache: bytes
    """What the flavour has timed so far; empty where it times nothing."""
    seconds: float


def build_engine(
    flavour: Flavour, request: EngineRequest, log: BuildLog, progress: Progress | None = None, timings: bytes = b""
) -> BuiltEngine:
    """Build an engine whose precisions are the graph's.

    Args:
        flavour: which TensorRT.
        request: the graph, the batch range, the workspace and where it shall run.
        log: filled with everything that the builder says, also when it fails.
        progress: told of the builder's phases, where the flavour tells of them.
        timings: the timing cache of earlier builds, for flavours that keep one.

    Raises:
        BuildError: the builder gave no engine; the reason is taken from its log.
        UnsupportedError: the flavour or the GPU cannot do this, whatever is tried.
    """
    if reason := unsupported(flavour, request):
        raise UnsupportedError(reason)
    trt = flavour.module
    logger = make_logger(trt, log)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(flavour))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph_file(flavour, request))):
        problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise BuildError("TensorRT cannot read the ONNX graph", got="; ".join(problems)[:500])
    config = builder.create_builder_config()
    settings = BuilderSettings(flavour, builder, network, config, request, timings).apply()
    monitor = _monitor(trt, progress) if progress and hasattr(trt, "IProgressMonitor") else None
    if monitor:
        config.progress_monitor = monitor
    began = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    if plan is None:
        raise _failure(log, request)
    data = bytes(plan)
    memory, digest = _measure(flavour, data, log)
    return BuiltEngine(
        plan=data,
        memory=memory,
        layers_sha256=digest,
        inputs=io_formats([network.get_input(index) for index in range(network.num_inputs)]),
        outputs=io_formats([network.get_output(index) for index in range(network.num_outputs)]),
        settings=settings,
        built_for=_built_for(flavour, request, settings),
        timing_cache=bytes(config.get_timing_cache().serialize()) if keeps_timings(flavour, request) else b"",
        seconds=seconds,
    )


def graph_file(flavour: Flavour, request: EngineRequest) -> Path:
    """Return the ONNX file that a flavour takes of those that there are."""
    return request.onnx_opset17 if request.onnx_opset17 and not flavour.strongly_typed else request.onnx


def unsupported(flavour: Flavour, request: EngineRequest) -> str | None:
    """Return why a flavour or a GPU cannot build this; None where nothing is known against it."""
    trt, gpu, precision = flavour.module, request.gpu, request.precision
    if flavour.tunes and gpu is None:
        return f"{flavour} builds engines on the GPU that they are for, and this host has none"
    if precision is Precision.BF16 and not hasattr(trt.DataType, "BF16"):
        return f"{flavour} has no bfloat16"
    if precision is Precision.FP8 and not (hasattr(trt.DataType, "FP8") and flavour.strongly_typed):
        return f"{flavour} has no FP8 for quantised graphs"
    needed = FIRST_COMPUTE_CAPABILITY.get(precision, 0)
    if gpu and not request.compute_capabilities and gpu.compute_capability < needed:
        return f"{precision.value} needs SM {needed} or later, and the {gpu.name} is SM {gpu.compute_capability}"
    if precision in {Precision.INT8, Precision.FP8} and not flavour.tunes:
        return _no_quantized_convolutions(flavour, request)
    return None


def _no_quantized_convolutions(flavour: Flavour, request: EngineRequest) -> str | None:
    """Find out by building one, which takes a moment where nothing is tuned."""
    trt = flavour.module
    logger = make_logger(trt, BuildLog())
    narrow = trt.int8 if request.precision is Precision.INT8 else trt.fp8
    channels = 16
    scale = np.full(1, 0.05, dtype=np.float32)
    kernel = np.ones((channels, channels, 3, 3), dtype=np.float32)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(flavour))
    image = network.add_input("image", trt.float32, (1, channels, 8, 8))
    weights = network.add_constant(kernel.shape, kernel).get_output(0)

    def quantized(tensor: Any) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
        factor = network.add_constant((), scale).get_output(0)
        return network.add_dequantize(
            network.add_quantize(tensor, factor, narrow).get_output(0), factor, trt.float32
        ).get_output(0)

    convolution = network.add_convolution_nd(quantized(image), channels, (3, 3), trt.Weights())
    convolution.set_input(1, quantized(weights))
    network.mark_output(convolution.get_output(0))
    config = builder.create_builder_config()
    set_compute_capabilities(trt, config, request.compute_capabilities)
    if builder.build_serialized_network(network, config) is not None:
        return None
    where = f" for SM {joined(request.compute_capabilities)}" if request.compute_capabilities else ""
    return f"{flavour} cannot build {request.precision.value} convolutions{where}"


def _network_flags(flavour: Flavour) -> int:
    flags = flavour.module.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if flavour.strongly_typed else flags.EXPLICIT_BATCH)


def _built_for(flavour: Flavour, request: EngineRequest, settings: tuple[Setting, ...]) -> BuiltFor:
    ahead = bool(request.compute_capabilities)
    gpu = request.gpu
    applied = {setting.name: setting.value for setting in settings if setting.applied}
    return BuiltFor(
        flavour=flavour.name,
        version=flavour.version,
        gpu=None if ahead or gpu is None else gpu.name,
        compute_capabilities=(gpu.compute_capability,) if gpu and not ahead else request.compute_capabilities,
        version_compatible="version_compatible" in applied,
        hardware_compatibility=applied.get("hardware_compatibility", "none"),
    )


def _measure(flavour: Flavour, plan: bytes, log: BuildLog) -> tuple[EngineMemory, str]:
    """Return what memory the engine needs, and the digest of its layers: from itself, or from its builder's log."""
    weights = _logged(log, r"Total Weights Memory: (\d+)")
    if flavour.tunes:
        with load_engine(flavour, plan) as engine:
            memory = EngineMemory(activation_bytes=engine.activation_bytes, weights_bytes=weights)
            return memory, hashlib.sha256(engine.inspect().encode()).hexdigest()
    activation = _logged(log, r"Total Activation Memory: (\d+)")
    if activation is None:
        raise BuildError("the builder did not say what memory the engine needs")
    memory = EngineMemory(activation_bytes=activation, weights_bytes=weights)
    return memory, _layers_digest(plan, memory)


def _layers_digest(plan: bytes, memory: EngineMemory) -> str:
    """Return a digest that is equal for engines that do the same work.

    Plans are not reproducible byte for byte: they hold the workspace and counters. A TensorRT-RTX plan names its
    compiled kernels by a hash of their code (`fqn=__myl_Conv_0x…`), and those names, in order, with the memory that
    they need, are what the engine does. A plan that names none is compared as it is.
    """
    kernels = re.findall(rb"fqn=([\w]+)", plan)
    digest = hashlib.sha256(b"\n".join(kernels) if kernels else plan)
    digest.update(f"{memory.activation_bytes} {memory.weights_bytes}".encode())
    return digest.hexdigest()


def _logged(log: BuildLog, pattern: str) -> int | None:
    match = log.search(pattern)
    return int(match[1]) if match else None


def _failure(log: BuildLog, request: EngineRequest) -> BuildError:
    """Find the reason in the log; the builder itself returns None."""
    errors = log.errors()
    return explain(log, request.workspace_bytes) or BuildError(
        "the builder gave no engine", got=errors[0][:500] if errors else "no error in its log"
    )


def explain(log: BuildLog, workspace_bytes: int) -> BuildError | None:
    """Return why there is no engine, and what to do about it; None where the log does not tell.

    Args:
        log: what the builder has said.
        workspace_bytes: what it was given.
    """
    budget = log.search(r"Exceeded mem budget of (\d+)\. Need (\d+)")
    if budget:
        # The budget is the workspace plus the weights, so what the workspace must hold is the need less the weights.
        needed = int(budget[2]) - (int(budget[1]) - workspace_bytes)
        return BuildError(
            f"the workspace is too small: {workspace_bytes:,} bytes, and the engine needs {needed:,}",
            fix=f"give `workspaces` in pipeline.yaml at least {-(-needed // 2**20)}MiB",
        )
    if log.search(r"within workspace limit|insufficient workspace"):
        return BuildError(
            f"the workspace is too small: {workspace_bytes:,} bytes, in which no kernel runs some operation",
            fix="give `workspaces` in pipeline.yaml more",
        )
    if log.search(r"(?i)out ?of ?memory"):
        return BuildError(
            "the GPU ran out of memory while building",
            fix="free GPU memory (`nvidia-smi` shows who has it), or use a profile with a smaller batch",
        )
    return None


def _monitor(trt: ModuleType, progress: Progress) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the base exists once a flavour is imported
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step + 1)
            return True  # go on; whoever cancels ends the process

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
