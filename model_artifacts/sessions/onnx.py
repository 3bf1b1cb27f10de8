"""ONNX file → ONNX Runtime session. Importing this module does not import onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import RetryableError, RunError, UnsupportedError, one_line
from model_artifacts.host.environment import threads
from model_artifacts.records import Precision

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from onnxruntime import InferenceSession, SessionOptions

    from model_artifacts.records import Gpu, Graph

    Batch = npt.NDArray[np.float32]


_CUDA_PROVIDER = "CUDAExecutionProvider"
_ERRORS, _FATAL = 3, 4
"""Log levels of ONNX Runtime (https://onnxruntime.ai/docs/api/python/api_summary.html). Its warnings concern providers
that a host lacks; it raises whatever a caller must know.
"""


def run_stand_in(model: bytes, images: Batch, batch: int) -> Batch:
    """Run a graph with TensorRT's placement of Q/DQ pairs in ONNX Runtime, as a stand-in for TensorRT.

    Args:
        model: the serialized graph.
        images: float32 (samples, channels, height, width).
        batch: the batch size.

    Returns:
        float32 (samples, classes).

    Raises:
        RunError: the graph cannot be loaded or run.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    options, unwanted = _session_options(stands_in=True)
    try:
        session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
        )
        name = session.get_inputs()[0].name
        parts = [session.run(None, {name: images[at : at + batch]})[0] for at in range(0, len(images), batch)]
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise RunError("ONNX Runtime cannot run the graph", got=one_line(exc)) from exc
    logits: Batch = np.concatenate(parts).astype(np.float32)
    return logits


def _for_tensorrt(graph: Graph) -> bool:
    return graph.precision in {Precision.INT8, Precision.FP8} and not graph.for_x86


def _session_options(*, stands_in: bool) -> tuple[SessionOptions, list[str]]:
    """Return session options, and the optimisations to disable.

    Args:
        stands_in: true for a stand-in for TensorRT. Fusions for x86 would change its numbers. One of the basic
            optimisations quantises biases that are in floating point on purpose, and garbles float8.
    """
    import onnxruntime  # noqa: PLC0415 - only needed here

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = _ERRORS
    if not stands_in:
        return options, []
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return options, ["WeightBiasQuantization"]


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

    options, unwanted = _session_options(stands_in=graph is not None and _for_tensorrt(graph))
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if gpu is not None:
        if _CUDA_PROVIDER not in onnxruntime.get_available_providers():
            raise UnsupportedError(f"this onnxruntime {onnxruntime.__version__} has no {_CUDA_PROVIDER}")
        providers.insert(0, (_CUDA_PROVIDER, {"device_id": str(gpu.index), "use_tf32": "1" if tf32 else "0"}))
        onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers, disabled_optimizers=unwanted)
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise RunError(f"ONNX Runtime cannot load {file}", got=one_line(exc)) from exc
    if gpu is not None and _CUDA_PROVIDER not in session.get_providers():
        raise RetryableError(f"ONNX Runtime's {_CUDA_PROVIDER} does not start here; its CUDA libraries are missing")
    if gpu is not None:
        # ONNX Runtime logs harmless errors: every FP16 convolution for which cuDNN's first choice has no plan.
        onnxruntime.set_default_logger_severity(_FATAL)
    return session
