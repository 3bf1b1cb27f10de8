"""ONNX → serialized engine, by whichever flavour: every setting applied, or recorded as unsupported."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from model_artifacts.errors import BuildError, UnsupportedError
from model_artifacts.records import BuiltFor, EngineMemory, Precision, Setting, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, make_logger
from model_artifacts.tensorrt.runtime import load_engine, tensor_spec
from pipeline.config.settings import HardwareCompatibility, TensorRTConfig

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from model_artifacts.records import Gpu, Profile


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
    profile: Profile
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
    settings = _Settings(flavour, builder, network, config, request, timings).apply()
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
        inputs=_specs([network.get_input(index) for index in range(network.num_inputs)]),
        outputs=_specs([network.get_output(index) for index in range(network.num_outputs)]),
        settings=settings,
        built_for=_built_for(flavour, request, settings),
        timing_cache=bytes(config.get_timing_cache().serialize()) if _keeps_timings(flavour, request) else b"",
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
    needed = _FIRST_WITH.get(precision, 0)
    if gpu and not request.compute_capabilities and gpu.compute_capability < needed:
        return f"{precision.value} needs SM {needed} or later, and the {gpu.name} is SM {gpu.compute_capability}"
    if precision in {Precision.INT8, Precision.FP8} and not flavour.tunes:
        return _no_quantized_convolutions(flavour, request)
    return None


_FIRST_WITH = {Precision.TF32: 80, Precision.BF16: 80, Precision.INT8: 61, Precision.FP8: 89}
"""The first compute capability with hardware for a type (TensorRT's support matrix, "Hardware and Precision")."""


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
    _set_capabilities(trt, config, request.compute_capabilities)
    if builder.build_serialized_network(network, config) is not None:
        return None
    where = f" for SM {_joined(request.compute_capabilities)}" if request.compute_capabilities else ""
    return f"{flavour} cannot build {request.precision.value} convolutions{where}"


def _network_flags(flavour: Flavour) -> int:
    flags = flavour.module.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED if flavour.strongly_typed else flags.EXPLICIT_BATCH)


class _Settings:
    """Applies every setting of a request to a builder's configuration, and says how."""

    def __init__(  # noqa: PLR0913 - the parts of a build
        self,
        flavour: Flavour,
        builder: Any,  # noqa: ANN401 - TensorRT's bindings are untyped
        network: Any,  # noqa: ANN401
        config: Any,  # noqa: ANN401
        request: EngineRequest,
        timings: bytes,
    ) -> None:
        self._flavour = flavour
        self._trt = flavour.module
        self._builder = builder
        self._network = network
        self._config = config
        self._request = request
        self._timings = timings
        self._said: list[Setting] = []

    def apply(self) -> tuple[Setting, ...]:
        """Return each setting: applied, or unsupported with the reason."""
        config, request, trt = self._config, self._request, self._trt
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        self._say("workspace_bytes", request.workspace_bytes)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._say("profiling_verbosity", "detailed")
        self._profile()
        _set_capabilities(trt, config, request.compute_capabilities)
        if request.compute_capabilities:
            self._say("compute_capabilities", _joined(request.compute_capabilities))
        self._precision()
        self._choices()
        self._flags()
        self._timing_cache()
        return tuple(self._said)

    def _say(self, name: str, value: object, unsupported: str = "") -> None:
        self._said.append(Setting(name=name, value=str(value), applied=not unsupported, note=unsupported))

    def _profile(self) -> None:
        wanted = self._request.profile
        profile = self._builder.create_optimization_profile()
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            sample = tuple(tensor.shape)[1:]
            if wanted.is_fixed:
                tensor.shape = (wanted.opt, *sample)  # a static shape is twice as fast as a profile of one size
            profile.set_shape(tensor.name, *((batch, *sample) for batch in (wanted.min, wanted.opt, wanted.max)))
        self._config.add_optimization_profile(profile)
        self._say("profile", wanted.label)
        sharing = getattr(self._trt.PreviewFeature, "PROFILE_SHARING_0806", None)
        if sharing is not None and not self._flavour.strongly_typed:
            self._config.set_preview_feature(sharing, True)  # noqa: FBT003 - later ones always share: a context a thread

    def _precision(self) -> None:
        """Set TF32; and where precisions are flags, those of the graph's own types."""
        precision = self._request.precision
        strict = precision is Precision.FP32
        if self._flavour.tunes:
            (self._config.clear_flag if strict else self._config.set_flag)(self._trt.BuilderFlag.TF32)
            self._say("tf32", "off" if strict else "on")
        elif strict:
            self._say("tf32", "off", f"{self._flavour} multiplies FP32 in TF32 whatever the flag says")
        if self._flavour.strongly_typed:
            return
        names = {Precision.FP16: ("FP16",), Precision.INT8: ("INT8", "FP16")}.get(precision, ())
        for name in names:  # a quantised graph's other layers are FP16, as in the graph for later versions
            self._config.set_flag(getattr(self._trt.BuilderFlag, name))
        if names:
            self._say("precision_flags", ", ".join(names))

    def _choices(self) -> None:
        settings, trt = self._request.settings, self._trt
        if settings.optimization_level is not None:
            reason = self._untuned() or self._missing(self._config, "builder_optimization_level")
            if not reason:
                self._config.builder_optimization_level = settings.optimization_level
            self._say("optimization_level", settings.optimization_level, reason)
        if settings.tactic_sources is not None:
            names = [source.name for source in settings.tactic_sources]
            unknown = [name for name in names if not hasattr(trt.TacticSource, name)]
            reason = self._untuned() or (f"{self._flavour} has no {', '.join(unknown)}" if unknown else "")
            mask = sum(1 << int(getattr(trt.TacticSource, name)) for name in names if name not in unknown)
            if not reason and not self._config.set_tactic_sources(mask):
                reason = f"{self._flavour} refuses this choice"
            self._say("tactic_sources", ", ".join(names).lower(), reason)
        if settings.hardware_compatibility is not HardwareCompatibility.NONE:
            name = settings.hardware_compatibility.name
            reason = self._untuned() or self._missing(trt.HardwareCompatibilityLevel, name)
            if not reason:
                self._config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
            self._say("hardware_compatibility", settings.hardware_compatibility.value, reason)

    def _flags(self) -> None:
        settings = self._request.settings
        on_gpu = "" if self._request.gpu else f"{self._flavour} needs a GPU for it"
        wanted = (
            ("version_compatible", settings.version_compatible, self._untuned()),
            ("refit", settings.refit, on_gpu),
            ("strip_plan", settings.strip_plan, on_gpu),
        )
        for name, on, reason in wanted:
            if not on:
                continue
            why_not = reason or self._missing(self._trt.BuilderFlag, name.upper())
            if not why_not:
                self._config.set_flag(getattr(self._trt.BuilderFlag, name.upper()))
            self._say(name, "on", why_not)

    def _timing_cache(self) -> None:
        """Start from what was timed before; what another version or GPU timed is refused by the library."""
        if not self._request.settings.timing_cache:
            self._config.set_flag(self._trt.BuilderFlag.DISABLE_TIMING_CACHE)
            self._say("timing_cache", "off")
            return
        if not self._flavour.tunes:
            self._say("timing_cache", "on", self._untuned())
            return
        cache = self._config.create_timing_cache(self._timings)
        if not self._config.set_timing_cache(cache, False):  # noqa: FBT003 - ignore_mismatch
            cache = self._config.create_timing_cache(b"")
            self._config.set_timing_cache(cache, False)  # noqa: FBT003
            self._say("timing_cache", "from the start", "the stored one is for another version or GPU")
            return
        self._say("timing_cache", "continued" if self._timings else "from the start")

    def _untuned(self) -> str:
        return "" if self._flavour.tunes else f"{self._flavour} builds ahead of time, and has no use for it"

    def _missing(self, owner: object, name: str) -> str:
        return "" if hasattr(owner, name) else f"{self._flavour} has no {name}"


def _keeps_timings(flavour: Flavour, request: EngineRequest) -> bool:
    return flavour.tunes and request.settings.timing_cache


def _set_capabilities(trt: ModuleType, config: Any, capabilities: tuple[int, ...]) -> None:  # noqa: ANN401 - TensorRT is untyped
    if not hasattr(trt, "ComputeCapability"):
        return
    if not capabilities:
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.CURRENT, 0)
        return
    known = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    config.num_compute_capabilities = len(capabilities)
    for index, number in enumerate(capabilities):
        name = f"SM{number}"
        if name not in known:
            raise UnsupportedError(
                f"{trt.__name__} {trt.__version__} cannot build for SM {number}", expected=", ".join(sorted(known))
            )
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _joined(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _specs(tensors: list[Any]) -> tuple[TensorSpec, ...]:
    return tuple(tensor_spec(tensor.name, tuple(tensor.shape), tensor.dtype) for tensor in tensors)


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
