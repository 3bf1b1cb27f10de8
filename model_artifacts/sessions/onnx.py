"""ONNX file → ONNX Runtime session, on the CPU, CUDA or TensorRT. Importing this module does not import onnxruntime."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from model_artifacts.errors import RetryableError, RunError, UnsupportedError, listed, one_line
from model_artifacts.host.environment import missing_gpu, threads
from model_artifacts.records import EngineFlavour, Precision
from model_artifacts.sessions.feeds.batches import feed_of, rows_of_batch, size_of
from model_artifacts.sessions.feeds.checks import shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from onnxruntime import InferenceSession, SessionOptions

    from model_artifacts.records import Gpu, Graph, TensorSpec, Variant
    from model_artifacts.sessions.feeds.batches import Batch


Outputs = Any
"""The array of the one output; of several outputs, a dictionary with an array by the name of each.

The artifact decides which, so that types do not tell them apart. `model(batch)` of one output stays an array.
"""
T = TypeVar("T")
_CUDA_PROVIDER = "CUDAExecutionProvider"
_TENSORRT_PROVIDER = "TensorrtExecutionProvider"
_ERRORS, _FATAL = 3, 4
"""Log levels of ONNX Runtime (https://onnxruntime.ai/docs/api/python/api_summary.html). Its warnings concern providers
that a host lacks; it raises whatever a caller must know.
"""
_CRASHES_IN_FP16 = "NchwcTransformer"
"""ONNX Runtime's optimisation that lays convolutions out in blocks of channels, for processors. In 1.31.1 it ends the
process by SIGSEGV while it loads a transformer in FP16: patches by a convolution, which are flattened and transposed.
"""


class ProviderFacts(NamedTuple):
    """The facts that a session of the TensorRT provider takes beside the ONNX file."""

    inputs: tuple[TensorSpec, ...]
    """The graph's inputs."""
    cache: Path
    """The folder of the engines that earlier sessions of this very file built."""


def run_stand_in(model: bytes, samples: Batch, batch: int) -> Outputs:
    """Run a graph with TensorRT's placement of Q/DQ pairs in ONNX Runtime, as a stand-in for TensorRT.

    Args:
        model: the serialized graph.
        samples: float32 (samples, channels, height, width), or the inputs that the graph has.
        batch: the batch size.

    Returns:
        float32 (samples, classes); of several outputs, such an array by the name of each.

    Raises:
        RunError: the graph cannot be loaded or run.
    """
    run = stand_in(model)
    return joined([run(rows_of_batch(samples, slice(at, at + batch))) for at in range(0, size_of(samples), batch)])


def stand_in(model: bytes) -> Callable[[Batch], Outputs]:
    """Return a function that runs batches of any size as `run_stand_in` does.

    Args:
        model: the serialized graph.

    Raises:
        RunError: the graph cannot be loaded. The function raises it if the graph cannot be run.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    options, unwanted = _session_options(None, stands_in=True)

    def run(batch: Batch) -> Outputs:
        with _explained():
            return compute(batch)

    with _explained():
        session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
        )
        compute = run_of(session)
    return run


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RunError:
        raise
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise RunError("ONNX Runtime cannot run the graph", got=one_line(exc)) from exc


class Ends(NamedTuple):
    """Names of a graph's inputs and outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def ends_of(inputs: Sequence[str], outputs: Sequence[str]) -> Ends:
    """Return the names of a graph's inputs and outputs. Pure.

    Raises:
        RunError: there is no input, or no output.
    """
    for role, names in (("input", inputs), ("output", outputs)):
        if not names:
            raise RunError(f"the artifact has no {role}", expected="one or more", got="none")
    return Ends(tuple(inputs), tuple(outputs))


def named(names: Sequence[str], values: Sequence[T]) -> T | dict[str, T]:
    """Return the value of the one output, or the values of several by their names, in the same order. Pure.

    Raises:
        RunError: there are more names than values, or fewer.
    """
    if len(names) != len(values):
        raise RunError(
            "the artifact gives another number of outputs",
            expected=f"{len(names)}: {listed(list(names))}" if any(names) else "one",
            got=str(len(values)),
        )
    return values[0] if len(names) == 1 else dict(zip(names, values, strict=True))


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return the outputs of several batches as those of one. Pure.

    Args:
        parts: the outputs of each batch, at least one: an array, or the same names with an array each.
    """
    first = parts[0]
    if isinstance(first, dict):
        return {name: np.concatenate([part[name] for part in parts if isinstance(part, dict)]) for name in first}
    return np.concatenate([part for part in parts if not isinstance(part, dict)])


def run_of(session: InferenceSession) -> Callable[[Batch], Outputs]:
    """Return a function that runs batches in a session, and gives every output.

    Raises:
        RunError: the graph has no input or no output. The function raises it for a batch of other inputs.
    """
    ends = ends_of([item.name for item in session.get_inputs()], [item.name for item in session.get_outputs()])

    def run(batch: Batch) -> Outputs:
        results = session.run([*ends.outputs], feed_of(ends.inputs, batch))
        return named(ends.outputs, [_widened(np.asarray(result)) for result in results])

    return run


def _widened(result: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return indices as they are, and values in float32."""
    return result if np.issubdtype(result.dtype, np.integer) else result.astype(np.float32, copy=False)


def _session_options(graph: Graph | None, *, stands_in: bool) -> tuple[SessionOptions, list[str]]:
    """Return session options, and the optimisations to disable.

    Args:
        graph: the graph to run, if it is one of the pipeline's.
        stands_in: true for a stand-in for TensorRT. Fusions for x86 would change its numbers. One of the basic
            optimisations quantises biases that are in floating point on purpose, and garbles float8.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = _ERRORS
    if not stands_in:
        return options, [_CRASHES_IN_FP16] if graph is not None and graph.precision is Precision.FP16 else []
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options, ["WeightBiasQuantization"]


def mute() -> None:
    """Mute ONNX Runtime's log of this process, which a build's own process may do, but no application's library.

    It logs harmless errors: every FP16 convolution for which cuDNN's first choice has no plan.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    onnxruntime.set_default_logger_severity(_FATAL)


def onnx_session(
    file: Path, graph: Graph | None, gpu: Gpu | None, *, tf32: bool = False, profile: str = ""
) -> InferenceSession:
    """Load an ONNX file into ONNX Runtime.

    Args:
        file: the ONNX file.
        graph: the pipeline's graph in the file; one with TensorRT's placement of Q/DQ pairs is run without fusions.
        gpu: the GPU; None for the CPU.
        tf32: let a GPU multiply in TF32.
        profile: the prefix of the profiles' file names, to time every node; empty for no profile.

    Raises:
        UnsupportedError: this onnxruntime has no CUDA, or its libraries are missing.
        RunError: the file is not an ONNX graph.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    options, unwanted = _session_options(graph, stands_in=graph is not None and graph.for_tensorrt)
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if gpu is not None:
        if _CUDA_PROVIDER not in onnxruntime.get_available_providers():
            raise UnsupportedError(f"this onnxruntime {onnxruntime.__version__} has no {_CUDA_PROVIDER}")
        providers.insert(0, (_CUDA_PROVIDER, {"device_id": str(gpu.index), "use_tf32": "1" if tf32 else "0"}))
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers, disabled_optimizers=unwanted)
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise RunError(f"ONNX Runtime cannot load {file}", got=one_line(exc)) from exc
    if gpu is not None and _CUDA_PROVIDER not in session.get_providers():
        raise RetryableError(f"ONNX Runtime's {_CUDA_PROVIDER} does not start here; its CUDA libraries are missing")
    return session


def tensorrt_session(file: Path, variant: Variant, gpu: Gpu | None, facts: ProviderFacts) -> InferenceSession:
    """Load an ONNX file into ONNX Runtime's TensorRT provider. The first session builds an engine, which takes minutes.

    TensorRT gets the graph without ONNX Runtime's own optimisations. The session fails if a node would run elsewhere.

    Args:
        file: the ONNX file.
        variant: the precision, batch range and workspace.
        gpu: the GPU.
        facts: the graph's inputs, and the folder of built engines.

    Raises:
        UnsupportedError: there is no GPU or no TensorRT, or this onnxruntime has no TensorRT provider.
        RetryableError: TensorRT is installed, but its libraries are missing.
        RunError: the provider does not start, or does not take the whole graph.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    from model_artifacts.tensorrt.flavour import load_flavour  # noqa: PLC0415 - only where there is a GPU

    if gpu is None:
        raise UnsupportedError(missing_gpu())
    if _TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
        raise UnsupportedError(f"this onnxruntime {onnxruntime.__version__} has no {_TENSORRT_PROVIDER}")
    flavour = load_flavour(EngineFlavour.TENSORRT)  # loads the libraries that the provider links to
    cache = facts.cache / flavour.version
    cache.mkdir(parents=True, exist_ok=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = (_TENSORRT_PROVIDER, provider_options(variant, gpu, facts.inputs, cache))
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider], enable_fallback=0)
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise RunError(f"ONNX Runtime's {_TENSORRT_PROVIDER} cannot run all of {file}", got=one_line(exc)) from exc
    if _TENSORRT_PROVIDER not in session.get_providers():
        got = ", ".join(session.get_providers())
        raise RunError(f"ONNX Runtime's {_TENSORRT_PROVIDER} does not start with {flavour}", got=got)
    return session


def provider_options(variant: Variant, gpu: Gpu, inputs: Sequence[TensorSpec], cache: Path) -> dict[str, str]:
    """Return the TensorRT provider's options for a variant.

    Source of the names: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html. Engines are
    kept in `cache`, whose path must name the file's digest: the provider does not compare weights. It takes flags as
    "True" and "False" alone.
    """
    options = {
        "device_id": str(gpu.index),
        "trt_fp16_enable": "True",
        "trt_int8_enable": "True" if variant.precision is Precision.INT8 else "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(cache),
    }
    if variant.workspace:
        options["trt_max_workspace_size"] = str(variant.workspace.bytes)
    if variant.profile:
        for end in ("min", "opt", "max"):
            size = getattr(variant.profile, end)
            shapes = [f"{spec.name}:{'x'.join(map(str, shape_of(spec, size, end)))}" for spec in inputs]
            options[f"trt_profile_{end}_shapes"] = ",".join(shapes)
    return options
