"""ONNX graph → serialized engine, by either flavour of TensorRT, with the reason if there is none."""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from model_artifacts.errors import BuildError, UnsupportedError, shortened
from model_artifacts.records import BuiltFor, EngineMemory, Precision, Setting, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, make_logger
from model_artifacts.tensorrt.runtime import load_engine
from model_artifacts.tensorrt.split import of_all_parts
from pipeline.adapters.tensorrt_libraries import missing_library
from pipeline.adapters.tensorrt_settings import (
    FIRST_COMPUTE_CAPABILITY,
    BuilderSettings,
    io_formats,
    keeps_timings,
    network_flags,
)
from pipeline.adapters.trials.parts import Parts, parts_of, shape_obstacle
from pipeline.adapters.trials.quantized_layers import quantized_layers, refused_layers

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType
    from typing import Any

    from model_artifacts.records import AxisRange, BatchRange, Gpu
    from model_artifacts.tensorrt.flavour import Flavour
    from pipeline.config.tensorrt import TensorRTConfig


class Progress(Protocol):
    """A receiver of a long build's progress. The builder's threads call it."""

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Begin a phase of so many steps."""

    def step(self, phase: str, done: int) -> None:
        """Note that so many steps of a phase are done."""

    def finish(self, phase: str) -> None:
        """End a phase."""


@dataclass(frozen=True)
class EngineRequest:
    """The description of an engine to build."""

    onnx: Path
    precision: Precision
    profile: BatchRange
    workspace_bytes: int
    compute_capabilities: tuple[int, ...]
    """The GPU generations to build for ahead of time. Empty for the current GPU."""
    gpu: Gpu | None
    """The current GPU. None on a machine without one."""
    settings: TensorRTConfig
    axes: tuple[AxisRange, ...] = ()
    """The ranges of all dynamic axes of the graph beside the batch."""
    onnx_opset17: Path | None = None
    """The same graph for a flavour without strong typing, if `onnx` is too new for it."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine and the facts that its builder reported."""

    plan: bytes
    """The serialized engine."""
    memory: EngineMemory
    layers_sha256: str
    """Equal for engines that do the same work."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    settings: tuple[Setting, ...]
    built_for: BuiltFor
    timing_cache: bytes
    """The timing cache after the build. Empty if the flavour times nothing or the setting is off."""
    seconds: float
    """Duration of the build."""


def build_engine(
    flavour: Flavour, request: EngineRequest, log: BuildLog, progress: Progress | None = None, timings: bytes = b""
) -> BuiltEngine:
    """Build an engine with the precisions of its graph.

    Args:
        flavour: the TensorRT library.
        request: the graph, the batch range, the workspace and the GPUs.
        log: receives all messages of the builder, also of a failed build.
        progress: receives the builder's phases, if the flavour reports them.
        timings: the timing cache of earlier builds, for flavours that keep one.

    Raises:
        BuildError: the builder returned no engine; the error has the reason from its log.
        UnsupportedError: the flavour or the GPU does not support the request.
    """
    if reason := unsupported(flavour, request):
        raise UnsupportedError(reason)
    trt = flavour.module
    logger = make_logger(trt, log)
    try:
        builder = trt.Builder(logger)
    except TypeError as exc:  # raised by the bindings if the library returns no builder
        raise _failure(log, request, "the builder cannot be created") from exc
    network = parse(flavour, builder, logger, graph_file(flavour, request))
    parts = parts_of(request.profile, request.settings.batch_parts, _ends(network))
    config, settings = _configured(flavour, builder, network, replace(request, profile=parts.profile), timings)
    if parts.number > 1 and (obstacle := shape_obstacle(parts.profile, _ends(network))):
        parts = Parts(1, request.profile, obstacle)
        config, settings = _configured(flavour, builder, network, request, timings)
    settings = _recorded(settings, parts, request)
    monitor = _monitor(trt, progress) if progress and hasattr(trt, "IProgressMonitor") else None
    if monitor:
        config.progress_monitor = monitor
    began = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - began
    if plan is None:
        raise _failure(log, request)
    data = bytes(plan)
    built_for = _built_for(flavour, request, settings, parts.number)
    memory, digest = _measure(flavour, data, log, parts.profile, host_code=built_for.version_compatible)
    ends = _ends(network)
    return BuiltEngine(
        plan=data,
        memory=memory.model_copy(update={"activation_bytes": memory.activation_bytes * parts.number}),
        layers_sha256=digest if parts.number == 1 else hashlib.sha256(f"{digest} {parts.number}".encode()).hexdigest(),
        inputs=tuple(of_all_parts(spec, parts.number) for spec in ends[: network.num_inputs]),
        outputs=tuple(of_all_parts(spec, parts.number) for spec in ends[network.num_inputs :]),
        settings=settings,
        built_for=built_for,
        timing_cache=bytes(config.get_timing_cache().serialize()) if keeps_timings(flavour, request) else b"",
        seconds=seconds,
    )


def _ends(network: Any) -> tuple[TensorSpec, ...]:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return the specs of a network's inputs, and then of its outputs."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    return io_formats([*inputs, *(network.get_output(index) for index in range(network.num_outputs))])


def _configured(
    flavour: Flavour,
    builder: Any,  # noqa: ANN401 - TensorRT's bindings are untyped
    network: Any,  # noqa: ANN401 - as above
    request: EngineRequest,
    timings: bytes,
) -> tuple[Any, tuple[Setting, ...]]:
    """Return a builder's configuration for a request, and its settings. The network's inputs get its batch."""
    config = builder.create_builder_config()
    return config, BuilderSettings(flavour, builder, network, config, request, timings).apply()


def _recorded(settings: tuple[Setting, ...], parts: Parts, request: EngineRequest) -> tuple[Setting, ...]:
    """Return the settings of a build with the parts of a batch that were asked for; the profile is of the whole."""
    asked, obstacle = request.settings.batch_parts, parts.obstacle
    if asked == 1:
        return settings
    whole = {"profile": request.profile.label}
    of_whole = [item.model_copy(update={"value": whole.get(item.name, item.value)}) for item in settings]
    return (*of_whole, Setting(name="batch_parts", value=str(asked), applied=not obstacle, note=obstacle))


def parse(flavour: Flavour, builder: Any, logger: Any, graph: Path) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return TensorRT's network of an ONNX file.

    Raises:
        BuildError: the parser refuses the graph; the error names the operators and nodes.
    """
    network = builder.create_network(network_flags(flavour))
    parser = flavour.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        raise _refused_graph(parser)
    return network


def _refused_graph(parser: Any) -> BuildError:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return the error of a graph that TensorRT's parser refused: each operator and node with the parser's reason."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    # TensorRT 8.6 knows neither names nor operators of nodes; the parser may know neither, either.
    operators = list(dict.fromkeys(filter(None, (_of_node(error, "node_operator") for error in errors))))
    problems = []
    for error in errors:
        name, operator = _of_node(error, "node_name"), _of_node(error, "node_operator")
        node = " ".join(filter(None, (operator, f"(node {name!r})" if name else "")))
        reason = str(error.desc())
        if reason == "false" and hasattr(error, "code"):  # the text of an assertion that always fails
            reason = str(error.code().name).lower().replace("_", " ")
        problems.append(f"{node}: {reason}" if node else reason)
    return BuildError(
        f"TensorRT cannot read the ONNX graph: it refuses {', '.join(operators)}"
        if operators
        else "TensorRT cannot read the ONNX graph",
        expected="operators and attributes that TensorRT's ONNX parser supports" if operators else "",
        got=shortened("; ".join(dict.fromkeys(problems)), 500),
        fix="replace this operation in the model, or build this model for ONNX Runtime or PyTorch only"
        if operators
        else "",
    )


def _of_node(error: Any, name: str) -> str:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return a fact about a parser error's node; empty if the parser gives none."""
    fact = getattr(error, name, None)
    return str(fact() or "") if fact is not None else ""


def graph_file(flavour: Flavour, request: EngineRequest) -> Path:
    """Return the request's ONNX file for a flavour: that of opset 17 if the flavour is not strongly typed."""
    return request.onnx_opset17 if request.onnx_opset17 and not flavour.strongly_typed else request.onnx


def unsupported(flavour: Flavour, request: EngineRequest) -> str | None:
    """Return the reason why a flavour or a GPU cannot build an engine. None if there is no known reason."""
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
        layers = quantized_layers(graph_file(flavour, request))
        return refused_layers(flavour, precision, layers, request.compute_capabilities, has_gpu=gpu is not None)
    return None


def _built_for(flavour: Flavour, request: EngineRequest, settings: tuple[Setting, ...], parts: int) -> BuiltFor:
    ahead = bool(request.compute_capabilities)
    gpu = request.gpu
    applied = {setting.name: setting.value for setting in settings if setting.applied}
    return BuiltFor(
        flavour=flavour.name,
        version=flavour.version,
        gpu=None if ahead or gpu is None else gpu.name,
        compute_capabilities=(gpu.compute_capability,) if gpu and not ahead else request.compute_capabilities,
        version_compatible="lean_runtime" in applied,  # without one, the plan alone is of no use to a later version
        hardware_compatibility=applied.get("hardware_compatibility", "none"),
        batch_parts=parts,
    )


def _measure(
    flavour: Flavour, plan: bytes, log: BuildLog, profile: BatchRange, *, host_code: bool = False
) -> tuple[EngineMemory, str]:
    """Return the memory of an engine and the digest of its layers, from the engine itself or from its builder's log.

    Raises:
        BuildError: the engine has other optimization profiles than were asked for, or its memory is unknown.
    """
    weights = _logged(log, r"Total Weights Memory: (\d+)")
    if flavour.tunes:
        with load_engine(flavour, plan, host_code=host_code) as engine:
            if engine.batches.tuned != profile.tuned:
                raise BuildError(
                    "the engine has other optimization profiles", expected=profile.label, got=engine.batches.label
                )
            memory = EngineMemory(activation_bytes=engine.activation_bytes, weights_bytes=weights)
            # Without a context the inspector shows the first profile alone: others could differ unseen.
            shown = plan if profile.tuned else engine.inspect().encode()
            return memory, hashlib.sha256(shown).hexdigest()
    activations = [int(size) for size in re.findall(r"Total Activation Memory: (\d+)", log.text())]
    wanted = len(profile.profiles)
    if len(activations) < wanted or (profile.tuned and len(activations) != wanted):
        raise BuildError(
            "the builder did not report the memory of the engine",
            expected="`Total Activation Memory: …` in its log"
            + (f", once for each of {wanted} profiles" if wanted > 1 else ""),
            got=f"{len(activations)} of them",
        )
    memory = EngineMemory(activation_bytes=sum(activations[-wanted:]), weights_bytes=weights)
    return memory, _layers_digest(plan, memory)


def _layers_digest(plan: bytes, memory: EngineMemory) -> str:
    """Return a digest that is equal for engines that do the same work.

    Plans are not reproducible byte for byte, because they hold the workspace and counters. A TensorRT-RTX plan names
    its compiled kernels by a hash of their code (`fqn=__myl_Conv_0x…`). The digest covers these names, in order, and
    the engine's memory. For a plan without such names it covers all bytes.
    """
    kernels = re.findall(rb"fqn=([\w]+)", plan)
    digest = hashlib.sha256(b"\n".join(kernels) if kernels else plan)
    digest.update(f"{memory.activation_bytes} {memory.weights_bytes}".encode())
    return digest.hexdigest()


def _logged(log: BuildLog, pattern: str) -> int | None:
    match = log.search(pattern)
    return int(match[1]) if match else None


def _failure(log: BuildLog, request: EngineRequest, what: str = "the builder returned no engine") -> BuildError:
    """Return the error of a failed build. The reason stands in the log, because the builder itself returns None."""
    errors = log.errors()
    return explain(log, request.workspace_bytes) or BuildError(
        what, got=shortened(errors[0], 500) if errors else "no error in its log"
    )


def explain(log: BuildLog, workspace_bytes: int) -> BuildError | None:
    """Return the reason of a failed build with its fix. None if the log holds no known reason.

    Args:
        log: the builder's messages.
        workspace_bytes: the builder's limit of scratch memory.
    """
    if missing := missing_library(log):
        return missing
    budget = log.search(r"Exceeded mem budget of (\d+)\. Need (\d+)")
    if budget:
        # The log's budget is the workspace plus the weights. The workspace itself must hold the need less the weights.
        needed = int(budget[2]) - (int(budget[1]) - workspace_bytes)
        return BuildError(
            f"the workspace is too small: {workspace_bytes:,} bytes, and the engine needs {needed:,}",
            fix=f"raise `workspaces` in pipeline.yaml to at least {-(-needed // 2**20)}MiB",
        )
    if log.search(r"within workspace limit|insufficient workspace"):
        return BuildError(
            f"the workspace is too small: {workspace_bytes:,} bytes, and some operation has no kernel that needs less",
            fix="raise `workspaces` in pipeline.yaml",
        )
    if log.search(r"(?i)out ?of ?memory"):
        return BuildError(
            "the GPU ran out of memory while building",
            fix="free GPU memory (`nvidia-smi` lists its users), or use a profile with a smaller batch",
        )
    return None


def _monitor(trt: ModuleType, progress: Progress) -> Any:  # noqa: ANN401 - TensorRT's bindings are untyped
    """Return an adapter from TensorRT's progress monitor to `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the base exists once a flavour is imported
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step + 1)
            return True  # never cancel: a cancelled build is ended with its process

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
