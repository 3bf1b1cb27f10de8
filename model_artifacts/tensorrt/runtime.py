"""Serialized engine → contexts that put batches on a CUDA stream."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from model_artifacts.records import BatchRange, KernelSpecialization, TensorSpec
from model_artifacts.tensorrt.flavour import BuildLog, Flavour, make_logger
from model_artifacts.tensorrt.inspector import EngineLayer, read_layers
from model_artifacts.tensorrt.refitter import put_weights, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32"}


@dataclass
class LoadedEngine:
    """A deserialised engine: shared by threads, each of which makes a context of its own."""

    flavour: Flavour
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    batches: BatchRange
    """The batch sizes that its profile takes."""
    activation_bytes: int
    _engine: Any
    _log: BuildLog

    @contextmanager
    def context(
        self, stream: int, cache: bytes | None = None, specialization: KernelSpecialization = KernelSpecialization.EAGER
    ) -> Iterator[ExecutionContext]:
        """Open an execution context.

        Args:
            stream: the CUDA stream that it is set up on.
            cache: what an earlier context's `runtime_cache()` gave; flavours without one ignore it.
            specialization: when kernels are compiled for shapes; flavours that do not compile then ignore it.

        Raises:
            RunError: the GPU has no room for it, or the cache cannot be used.
        """
        config, kept = self._runtime_config(cache, specialization)
        context = self._engine.create_execution_context(*([] if config is None else [config]))
        if context is None:
            raise refused("the GPU has no room for an execution context", self._log, f"{self.activation_bytes:,} bytes")
        chosen = context.active_optimization_profile == 0  # the first context's is chosen for it
        if not chosen and not context.set_optimization_profile_async(0, stream):
            raise refused("the engine's profile cannot be used", self._log, "a profile that contexts may share")
        opened = ExecutionContext(self.flavour, context, config, kept, self._log)
        try:
            yield opened
        finally:
            opened.release()

    def inspect(self) -> str:
        """Return the inspector's JSON; of an engine of several batch sizes it leaves the tensors' types open."""
        return _inspected(self.flavour.module, self._engine)

    def _runtime_config(self, cache: bytes | None, specialization: KernelSpecialization) -> tuple[Any, Any]:
        """Return the configuration and the runtime cache, which must outlive the context: the library holds neither."""
        trt = self.flavour.module
        if not hasattr(getattr(trt, "IRuntimeConfig", None), "create_runtime_cache"):
            return None, None
        config = self._engine.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, specialization.name)
        kept = config.create_runtime_cache()
        if cache and not kept.deserialize(cache):
            raise refused("the runtime cache cannot be used", self._log, "one that this flavour wrote on such a GPU")
        config.set_runtime_cache(kept)
        return config, kept


class ExecutionContext:
    """What runs one batch at a time."""

    def __init__(self, flavour: Flavour, context: Any, config: Any, cache: Any, log: BuildLog) -> None:  # noqa: ANN401 - TensorRT is untyped
        self._flavour = flavour
        self._context = context
        self._config = config
        self._cache = cache
        self._log = log
        self._profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Say which shape the next batch has.

        Raises:
            RunError: the engine does not take it.
        """
        if not self._context.set_input_shape(name, shape):
            raise refused(f"the engine does not take {name} of shape {shape}", self._log)

    def set_address(self, name: str, pointer: int) -> None:
        """Say where in the GPU's memory a tensor lies.

        Raises:
            RunError: the engine does not take it.
        """
        if not self._context.set_tensor_address(name, pointer):
            raise refused(f"the engine does not take an address for {name}", self._log)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, now that the inputs' are known."""
        return tuple(self._context.get_tensor_shape(name))

    def enqueue(self, stream: int) -> None:
        """Put the batch on a stream.

        Raises:
            RunError: the engine could not.
        """
        if not self._context.execute_async_v3(stream):
            raise refused("the engine could not be run", self._log)

    def layers(self) -> tuple[EngineLayer, ...]:
        """Return what the inspector says of the engine's layers, for the shapes that were set last."""
        return read_layers(_inspected(self._flavour.module, self._context.engine, self._context))

    def time_layers(self, stream: int, runs: int) -> dict[str, float]:
        """Run batches, and return the median time of each layer by its name, in milliseconds.

        The context goes on timing its layers afterwards, which makes it slow.

        Raises:
            RunError: the engine could not be run.
        """
        times: dict[str, list[float]] = {}
        self._profiler = _make_profiler(self._flavour.module, times)
        self._context.profiler = self._profiler
        for _ in range(runs):
            self.enqueue(stream)  # waits for the batch, and reports, as `enqueue_emits_profile` is by default
        # A name that several layers have counts as often as it is reported in a batch.
        return {name: median(found) * len(found) / runs for name, found in times.items()}

    def runtime_cache(self) -> bytes | None:
        """Return the kernels that were compiled for this GPU so far; None where the flavour compiles none."""
        if self._cache is None:
            return None
        written = self._cache.serialize()
        return None if written is None else bytes(written)

    def release(self) -> None:
        """Give back its memory: the context's first, then what it uses."""
        self._context = None
        self._profiler = None
        self._config = None
        self._cache = None


@contextmanager
def load_engine(flavour: Flavour, plan: bytes, weights: Path | None = None) -> Iterator[LoadedEngine]:
    """Deserialise an engine on the current GPU. Its digest must have been checked: a damaged one can crash the process.

    Args:
        flavour: the one that built it.
        plan: the serialized engine.
        weights: the ONNX file whose weights a stripped engine is refitted with.

    Raises:
        RunError: it is damaged, or for another GPU or version.
    """
    trt = flavour.module
    log = BuildLog()
    logger = make_logger(trt, log)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise refused("the engine cannot be loaded", log, f"an engine for {flavour} and this GPU")
    if weights is not None:
        put_weights(trt, engine, logger, log, weights)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    low, best, high = (int(next(iter(shape))) for shape in engine.get_tensor_profile_shape(inputs[0], 0))
    loaded = LoadedEngine(
        flavour=flavour,
        inputs=tuple(_spec(engine, name) for name in inputs),
        outputs=tuple(_spec(engine, name) for name in names if name not in inputs),
        batches=BatchRange(min=low, opt=best, max=high),
        activation_bytes=_activation_bytes(engine),
        _engine=engine,
        _log=log,
    )
    try:
        yield loaded
    finally:
        loaded._engine = None  # noqa: SLF001 - the engine goes before the runtime that made it


def _make_profiler(trt: Any, times: dict[str, list[float]]) -> Any:  # noqa: ANN401 - TensorRT is untyped
    """Return what a context reports every layer's time to."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # which pybind asks for

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.setdefault(layer_name, []).append(ms)

    return Profiler()


def _inspected(trt: Any, engine: Any, context: Any = None) -> str:  # noqa: ANN401 - TensorRT is untyped
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _activation_bytes(engine: Any) -> int:  # noqa: ANN401 - TensorRT is untyped
    newer = hasattr(engine, "device_memory_size_v2")
    return int(engine.device_memory_size_v2 if newer else engine.device_memory_size)


def _spec(engine: Any, name: str) -> TensorSpec:  # noqa: ANN401 - TensorRT is untyped
    shape = tuple(engine.get_tensor_shape(name))
    return tensor_spec(name, shape, engine.get_tensor_dtype(name))


def tensor_spec(name: str, shape: tuple[int, ...], dtype: Any) -> TensorSpec:  # noqa: ANN401 - TensorRT is untyped
    """Return the spec of a network's or an engine's input or output; four axes are taken for NCHW."""
    axes = tuple("batch" if size == -1 else int(size) for size in shape)
    kind = str(dtype).rpartition(".")[2]
    return TensorSpec(name=name, shape=axes, dtype=_DTYPES.get(kind, kind), layout="NCHW"[: len(shape)])
