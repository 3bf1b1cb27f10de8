"""Serialized engine → execution contexts that run batches on a CUDA stream."""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from model_artifacts.errors import KernelsError, RunError
from model_artifacts.records import BatchRange, KernelSpecialization
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, make_logger
from model_artifacts.tensorrt.inspector import EngineLayer, of_profile, read_layers
from model_artifacts.tensorrt.memory import activation_bytes, stream_weights
from model_artifacts.tensorrt.refitter import put_weights, refused
from model_artifacts.tensorrt.specs import batches_of, input_of, output_of
from model_artifacts.tensorrt.split import SplitContext, bytes_of_part, of_all_parts, part_obstacle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model_artifacts.records import TensorSpec

_MEMORY = r"(?i)out ?of ?memory|MemoryAllocation|allocat"
"""The library's words for a lack of GPU memory."""


def no_context(log: BuildLog, activation_bytes: int) -> RunError:
    """Return the error of a context that was not created. Memory is the cause if the library says so, or says nothing.

    Args:
        log: the library's messages. Myelin, for one, refuses if cuDNN cannot compile a graph.
        activation_bytes: the GPU memory that a context needs.
    """
    # Ordinary messages speak of allocated memory, too.
    if log.errors() and not any(re.search(_MEMORY, error) for error in log.errors()):
        return refused("the library cannot create an execution context", log)
    what = "the GPU has too little free memory for an execution context"
    return refused(what, log, f"{activation_bytes:,} bytes")


@dataclass
class LoadedEngine:
    """A deserialised engine, which threads may share; each thread opens its own context."""

    flavour: Flavour
    """The flavour that loaded the engine."""
    inputs: tuple[TensorSpec, ...]
    """The engine's inputs."""
    outputs: tuple[TensorSpec, ...]
    """The engine's outputs."""
    batches: BatchRange
    """Batch sizes of the engine's optimization profiles."""
    activation_bytes: int
    """GPU memory for each `context`, in bytes: of several profiles, that of them all."""
    streams_weights: bool
    """True if some weights stay in the host's memory; CUDA graphs cannot be captured then."""
    _engine: Any
    _log: BuildLog
    parts: int = 1
    """The equal parts of a batch that run at once. All other facts are of the whole batch."""

    @contextmanager
    def context(
        self, stream: int, cache: bytes | None = None, specialization: KernelSpecialization = KernelSpecialization.EAGER
    ) -> Iterator[Context]:
        """Open an execution context, which holds one of the library's for each optimization profile.

        One that changed its profile would wait for it, and lose the CUDA graphs of the former one.

        Args:
            stream: handle of the CUDA stream for the set-up.
            cache: the `runtime_cache()` of an earlier context; flavours without a runtime cache ignore it.
            specialization: time at which kernels are compiled for shapes; flavours that never compile ignore it.

        Raises:
            RunError: the GPU has too little free memory, the library refuses for another reason, or the profile
                cannot be used.
            KernelsError: the cache cannot be used.
        """
        config, runtime_cache = self._runtime_config(cache, specialization)
        sizes = self.batches.tuned_for
        with ExitStack() as stack:
            parts = []
            for _ in range(self.parts):
                contexts = {size: self._of_profile(index, config, stream) for index, size in enumerate(sizes)}
                parts.append(ExecutionContext(self.flavour, contexts, config, runtime_cache, self._log))
                stack.callback(parts[-1].release)
            if self.parts == 1:
                yield parts[0]
                return
            ends = (*self.inputs, *self.outputs)
            split = SplitContext(parts, {spec.name: bytes_of_part(spec) // self.parts for spec in ends})
            stack.pop_all()  # it releases them itself
            stack.callback(split.release)
            yield split

    def _of_profile(self, index: int, config: Any, stream: int) -> Any:  # noqa: ANN401 - TensorRT is untyped
        """Return a context of the library that runs an optimization profile."""
        several = len(self.batches.profiles) > 1
        strategies = getattr(self.flavour.module, "ExecutionContextAllocationStrategy", None) if several else None
        given = [] if config is None else [config]
        if strategies is not None:  # by default each context takes the memory of the largest profile
            if config is None:
                given = [strategies.ON_PROFILE_CHANGE]
            else:
                config.set_execution_context_allocation_strategy(strategies.ON_PROFILE_CHANGE)
        context = self._engine.create_execution_context(*given)
        if context is None:
            raise no_context(self._log, self.activation_bytes)
        # The library chooses the first profile itself for the first context. Only a choice allocates as it is told.
        chosen = not several and context.active_optimization_profile == index
        if not chosen and not context.set_optimization_profile_async(index, stream):
            raise refused(
                "the engine's optimization profile cannot be used", self._log, "a profile that contexts may share"
            )
        return context

    def inspect(self) -> str:
        """Return the inspector's JSON, which lacks the tensors' types for an engine of several batch sizes."""
        return _inspected(self.flavour.module, self._engine)

    def _runtime_config(self, cache: bytes | None, specialization: KernelSpecialization) -> tuple[Any, Any]:
        """Return the configuration and the runtime cache; the library keeps neither alive, so the context must."""
        trt = self.flavour.module
        if not hasattr(getattr(trt, "IRuntimeConfig", None), "create_runtime_cache"):
            return None, None
        config = self._engine.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, specialization.name)
        runtime_cache = config.create_runtime_cache()
        if cache and not runtime_cache.deserialize(cache):
            said = refused("the runtime cache cannot be used", self._log)
            raise KernelsError(said.what, expected="one of this flavour, GPU and driver", got=said.got)
        config.set_runtime_cache(runtime_cache)
        return config, runtime_cache


class ExecutionContext:
    """An execution context, which runs one batch at a time, by the optimization profile of its size."""

    def __init__(
        self,
        flavour: Flavour,
        contexts: dict[int, Any],
        config: Any,  # noqa: ANN401 - TensorRT is untyped
        cache: Any,  # noqa: ANN401
        log: BuildLog,
    ) -> None:
        """Hold the library's contexts.

        Args:
            flavour: the flavour of the engine.
            contexts: one for each profile, by the batch size that it is tuned for.
            config: their configuration.
            cache: their runtime cache.
            log: the library's messages.
        """
        self._flavour = flavour
        self._contexts = contexts
        self._context = next(iter(contexts.values()))
        self._config = config
        self._cache = cache
        self._log = log
        self._profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Set an input's shape for the next batch. Of several profiles, that of its size runs from now on.

        Args:
            name: name of the input.
            shape: sizes of all axes, the batch first.

        Raises:
            RunError: the engine does not accept the shape.
        """
        if len(self._contexts) > 1:
            if shape[0] not in self._contexts:
                raise refused(f"the engine has no profile for {name} of shape {shape}", self._log)
            self._context = self._contexts[shape[0]]
        if not self._context.set_input_shape(name, shape):
            raise refused(f"the engine does not accept {name} of shape {shape}", self._log)

    def set_address(self, name: str, pointer: int) -> None:
        """Set a tensor's address in GPU memory, for all profiles.

        Args:
            name: name of the input or output.
            pointer: address of the first element.

        Raises:
            RunError: the engine does not accept the address.
        """
        if not all(context.set_tensor_address(name, pointer) for context in self._contexts.values()):
            raise refused(f"the engine does not accept a memory address for {name}", self._log)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, which follows from the shapes of the inputs."""
        return tuple(self._context.get_tensor_shape(name))

    def most_bytes(self, name: str) -> int:
        """Return the most bytes that an output takes, for any shape of the inputs in the optimization profiles.

        The inputs' shapes must be set.

        Raises:
            RunError: the library does not know it.
        """
        most = max(int(context.get_max_output_size(name)) for context in self._contexts.values())
        if most <= 0:
            raise refused(f"the largest size of the output {name!r} is not known", self._log)
        return most

    def enqueue(self, stream: int) -> None:
        """Put the batch on a stream.

        Args:
            stream: handle of the CUDA stream.

        Raises:
            RunError: the engine cannot be run.
        """
        if not self._context.execute_async_v3(stream):
            raise refused("the engine cannot be run", self._log)

    def layers(self) -> tuple[EngineLayer, ...]:
        """Return the engine's layers from its inspector, for the shapes set last.

        Of several profiles the inspector is not given a context: TensorRT 10.6 then shows nothing, or ends the process.
        """
        trt, engine = self._flavour.module, self._context.engine
        if len(self._contexts) == 1:
            return read_layers(_inspected(trt, engine, self._context))
        profile = next(index for index, one in enumerate(self._contexts.values()) if one is self._context)
        return of_profile(read_layers(_inspected(trt, engine)), profile)

    def time_layers(self, stream: int, runs: int) -> dict[str, float]:
        """Run batches, and return the median time per batch of each layer, in milliseconds.

        Afterwards the context still times its layers, which makes it slow.

        Args:
            stream: handle of the CUDA stream.
            runs: number of batches.

        Returns:
            the layer's name → its time.

        Raises:
            RunError: the engine cannot be run.
        """
        times: dict[str, list[float]] = {}
        self._profiler = _make_profiler(self._flavour.module, times)
        self._context.profiler = self._profiler
        for _ in range(runs):
            self.enqueue(stream)  # by default (`enqueue_emits_profile`) it waits for the batch and reports
        # Several layers may share a name: it counts as often as a batch reports it.
        return {name: median(samples) * len(samples) / runs for name, samples in times.items()}

    def runtime_cache(self) -> bytes | None:
        """Return the kernels compiled for this GPU so far; None for flavours that compile none."""
        if self._cache is None:
            return None
        written = self._cache.serialize()
        return None if written is None else bytes(written)

    def release(self) -> None:
        """Free the context's memory, then the objects that it uses."""
        self._context = None
        self._contexts.clear()
        self._profiler = None
        self._config = None
        self._cache = None


Context = ExecutionContext | SplitContext
"""The runner of a batch: one context, or those of its parts."""


@contextmanager
def load_engine(
    flavour: Flavour, plan: bytes, weights: Path | None = None, *, host_code: bool = False, parts: int = 1
) -> Iterator[LoadedEngine]:
    """Deserialise an engine on the current GPU.

    The caller has checked the engine's digest: a damaged engine can crash the process.

    Args:
        flavour: the flavour that built the engine.
        plan: the serialized engine.
        weights: the ONNX file with the weights of an engine that was built without them; None for other engines.
        host_code: run the code in the engine; a version-compatible engine holds its lean runtime, and needs it.
        parts: the equal parts of a batch that run at once; the engine's own batch is one of them.

    Raises:
        RunError: the engine is damaged or is for another GPU or version, the weights do not fit, or its batches cannot
            be parts.
    """
    trt = flavour.module
    log = BuildLog()
    logger = make_logger(trt, log)
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise refused("the engine cannot be loaded", log, f"an engine for {flavour} and this GPU")
    if weights is not None:
        put_weights(trt, engine, logger, log, weights)
    streams = stream_weights(engine)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    batches = batches_of(engine, inputs, log)
    loaded = LoadedEngine(
        flavour=flavour,
        inputs=tuple(input_of(engine, name) for name in inputs),
        outputs=tuple(output_of(engine, name, batches) for name in names if name not in inputs),
        batches=batches,
        activation_bytes=activation_bytes(trt, engine, len(batches.profiles)),
        streams_weights=streams,
        _engine=engine,
        _log=log,
    )
    loaded = _of_whole_batch(loaded, parts) if parts > 1 else loaded
    try:
        yield loaded
    finally:
        loaded._engine = None  # noqa: SLF001 - the engine is freed before its runtime


def _of_whole_batch(part: LoadedEngine, parts: int) -> LoadedEngine:
    """Return an engine whose batch is a number of equal parts.

    Raises:
        RunError: the engine takes several sizes, or its inputs and outputs cannot lie one behind the other.
    """
    ends = (*part.inputs, *part.outputs)
    if obstacle := part_obstacle(ends):
        what = "the engine's batch cannot be a part of a larger one"
        raise RunError(what, expected="inputs and outputs of one size", got=obstacle, fix="build the artifact again")
    whole = {spec.name: of_all_parts(spec, parts) for spec in ends}
    size = part.batches.max * parts
    return replace(
        part,
        inputs=tuple(whole[spec.name] for spec in part.inputs),
        outputs=tuple(whole[spec.name] for spec in part.outputs),
        batches=BatchRange(min=size, opt=size, max=size),
        activation_bytes=part.activation_bytes * parts,
        parts=parts,
    )


def _make_profiler(trt: Any, times: dict[str, list[float]]) -> Any:  # noqa: ANN401 - TensorRT is untyped
    """Return a profiler that collects every layer's times in milliseconds."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # pybind requires this

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()


def _inspected(trt: Any, engine: Any, context: Any = None) -> str:  # noqa: ANN401 - TensorRT is untyped
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
