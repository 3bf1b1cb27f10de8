"""The one place that knows TensorRT's flavours: what each can do is asked of it, never looked up by version."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BuildError, UnsupportedError
from pipeline.records import EngineMemory, Setting, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from pipeline.records import Profile

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32"}


@dataclass(frozen=True)
class Flavour:
    """An importable TensorRT."""

    name: str
    version: str
    module: ModuleType


def load_flavour() -> Flavour:
    """Return the flavour that builds engines without a GPU.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        module = importlib.import_module("tensorrt_rtx")
    except ImportError as exc:
        raise UnsupportedError(
            "TensorRT-RTX is not installed, and no other flavour builds engines without a GPU",
            got=str(exc),
            fix="install the dependency group `rtx`",
        ) from exc
    return Flavour("tensorrt_rtx", str(module.__version__), module)


@dataclass(frozen=True)
class EngineRequest:
    """What to build."""

    onnx: Path
    profile: Profile
    workspace_bytes: int
    compute_capabilities: tuple[int, ...]


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and what its builder said of it."""

    plan: bytes
    memory: EngineMemory
    layers_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    settings: tuple[Setting, ...]
    seconds: float


class BuildLog:
    """What a builder says, line by line, in the order in which its threads said it."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []
        self._lock = threading.Lock()

    def add(self, severity: str, message: str) -> None:
        """Append a line."""
        with self._lock:
            self._lines.append((severity, message))

    def text(self) -> str:
        """Return the whole log, a line each, severity first."""
        return "".join(f"{severity:<14} {message}\n" for severity, message in self._lines)

    def errors(self) -> list[str]:
        """Return the messages of errors."""
        return [message for severity, message in self._lines if severity in {"ERROR", "INTERNAL_ERROR"}]

    def search(self, pattern: str) -> re.Match[str] | None:
        """Return the last match of `pattern` in any message."""
        matches = [match for _, message in self._lines if (match := re.search(pattern, message))]
        return matches[-1] if matches else None


def build_engine(flavour: Flavour, request: EngineRequest, log: BuildLog) -> BuiltEngine:
    """Build a strongly typed engine: its precisions are the graph's.

    Args:
        flavour: which TensorRT.
        request: the graph, the batch range, the workspace and the GPU generations.
        log: filled with everything that the builder says, also when it fails.

    Raises:
        BuildError: the builder gave no engine; the reason is taken from its log.
        UnsupportedError: the flavour does not know one of the compute capabilities.
    """
    trt = flavour.module
    with _native_output(log):
        logger = _logger(trt, log)
        builder = trt.Builder(logger)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(request.onnx)):
            problems = [parser.get_error(index).desc() for index in range(parser.num_errors)]
            raise BuildError("TensorRT cannot read the ONNX graph", got="; ".join(problems)[:500])
        config = builder.create_builder_config()
        settings = _apply(trt, builder, network, config, request)
        began = time.perf_counter()
        plan = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - began
        inputs = tuple(_spec(network.get_input(index)) for index in range(network.num_inputs))
        outputs = tuple(_spec(network.get_output(index)) for index in range(network.num_outputs))
    if plan is None:
        raise _failure(log, request)
    data = bytes(plan)
    memory = EngineMemory(
        activation_bytes=_logged(log, r"Total Activation Memory: (\d+) bytes"),
        weights_bytes=_logged(log, r"Total Weights Memory: (\d+) bytes"),
    )
    return BuiltEngine(data, memory, _layers_digest(data, memory), inputs, outputs, settings, seconds)


def int8_convolutions(flavour: Flavour) -> str | None:
    """Find out by building one int8 convolution.

    Returns:
        why the flavour cannot build it, None where it can.
    """
    trt = flavour.module
    log = BuildLog()
    channels = 16
    scale = np.full(1, 0.05, dtype=np.float32)
    kernel = np.ones((channels, channels, 3, 3), dtype=np.float32)
    with _native_output(log):
        builder = trt.Builder(_logger(trt, log))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        image = network.add_input("image", trt.float32, (1, channels, 8, 8))
        weights = network.add_constant(kernel.shape, kernel).get_output(0)

        def quantized(tensor: Any) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
            factor = network.add_constant((), scale).get_output(0)
            narrow = network.add_quantize(tensor, factor, trt.int8).get_output(0)
            return network.add_dequantize(narrow, factor, trt.float32).get_output(0)

        convolution = network.add_convolution_nd(quantized(image), channels, (3, 3), trt.Weights())
        convolution.set_input(1, quantized(weights))
        network.mark_output(convolution.get_output(0))
        plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is not None:
        return None
    return f"{flavour.name} {flavour.version} cannot build int8 convolutions"


def _apply(
    trt: ModuleType,
    builder: Any,  # noqa: ANN401 - TensorRT's bindings are untyped
    network: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    request: EngineRequest,
) -> tuple[Setting, ...]:
    """Apply every setting, and say how."""
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        sample = tuple(tensor.shape)[1:]
        if request.profile.min == request.profile.max:
            tensor.shape = (request.profile.opt, *sample)  # a static shape is twice as fast as a profile of one size
        batches = (request.profile.min, request.profile.opt, request.profile.max)
        profile.set_shape(tensor.name, *((batch, *sample) for batch in batches))
    config.add_optimization_profile(profile)
    known = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    config.num_compute_capabilities = len(request.compute_capabilities)
    for index, number in enumerate(request.compute_capabilities):
        name = f"SM{number}"
        if name not in known:
            raise UnsupportedError(
                f"{trt.__name__} {trt.__version__} cannot build for SM {number}", expected=", ".join(sorted(known))
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    return (
        Setting(name="workspace_bytes", value=str(request.workspace_bytes), applied=True),
        Setting(name="profile", value=request.profile.label, applied=True),
        Setting(name="profiling_verbosity", value="detailed", applied=True),
        Setting(name="compute_capabilities", value=_joined(request.compute_capabilities), applied=True),
    )


def _joined(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _failure(log: BuildLog, request: EngineRequest) -> BuildError:
    """Find the reason in the log; the builder itself returns None."""
    budget = log.search(r"Exceeded mem budget of (\d+)\. Need (\d+)")
    if budget:
        # The budget is the workspace plus the weights, so what the workspace must hold is the need less the weights.
        needed = int(budget[2]) - (int(budget[1]) - request.workspace_bytes)
        return BuildError(
            f"the workspace is too small: {request.workspace_bytes:,} bytes, and the engine needs {needed:,}",
            fix=f"give `workspaces` in pipeline.yaml at least {-(-needed // 2**20)}MiB",
        )
    if log.search("within workspace limit"):
        return BuildError(
            f"the workspace is too small: {request.workspace_bytes:,} bytes, in which no kernel runs some operation",
            fix="give `workspaces` in pipeline.yaml more",
        )
    errors = log.errors()
    return BuildError("the builder gave no engine", got=errors[0][:500] if errors else "no error in its log")


def _logged(log: BuildLog, pattern: str) -> int:
    match = log.search(pattern)
    if match is None:
        raise BuildError("the builder did not say what memory the engine needs", expected=pattern)
    return int(match[1])


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


def _spec(tensor: Any) -> TensorSpec:  # noqa: ANN401 - TensorRT's bindings are untyped
    shape = tuple("batch" if size == -1 else int(size) for size in tensor.shape)
    name = str(tensor.dtype).rpartition(".")[2]
    return TensorSpec(name=tensor.name, shape=shape, dtype=_DTYPES.get(name, name), layout="NCHW"[: len(shape)])


def _logger(trt: ModuleType, log: BuildLog) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]  # the base exists once a flavour is imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            log.add(str(severity).rpartition(".")[2], message)

    return Logger()


@contextmanager
def _native_output(log: BuildLog) -> Iterator[None]:
    """Put what the library's native code prints into the log instead of onto the terminal."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            capture.seek(0)
            for line in capture.read().decode(errors="replace").splitlines():
                log.add("NATIVE", line)
