"""Engine + the same graph with other weights → an engine with those; no tactic is timed. On the current GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.errors import RunError, one_line
from model_artifacts.tensorrt.flavour import BuildLog, make_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.tensorrt.flavour import Flavour


def refit_engine(flavour: Flavour, plan: bytes, weights: Path, log: BuildLog) -> bytes:
    """Return an engine with other weights, serialized.

    Args:
        flavour: the one that built it, with `refit` on.
        plan: the serialized engine; its digest must have been checked.
        weights: an ONNX file of the same structure.
        log: filled with everything that the library says.

    Raises:
        RunError: the engine is damaged, was not built for this, or the weights do not fit.
    """
    trt = flavour.module
    logger = make_logger(trt, log)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise refused("the engine cannot be loaded", log, f"an engine for {flavour} and this GPU")
    if hasattr(trt, "OnnxParserRefitter"):
        put_weights(trt, engine, logger, log, weights)
    else:
        _put_named(trt, engine, logger, log, _initializers(weights))
    return bytes(engine.serialize())


def put_weights(trt: Any, engine: Any, logger: Any, log: BuildLog, weights: Path) -> None:  # noqa: ANN401 - untyped
    """Put the weights of an ONNX file into an engine, by the library's own reader of ONNX.

    Raises:
        RunError: the flavour has none, or the weights do not fit.
    """
    if not hasattr(trt, "OnnxParserRefitter"):  # 8.6, which cannot build an engine without weights either
        raise RunError(f"TensorRT {trt.__version__} cannot refit an engine from an ONNX file")
    refitter = _refitter(trt, engine, logger, log)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise refused("the engine cannot be refitted", log, f"the weights that it was built with, in {weights}")


def _refitter(trt: Any, engine: Any, logger: Any, log: BuildLog) -> Any:  # noqa: ANN401 - TensorRT is untyped
    """Return the library's refitter of an engine.

    Raises:
        RunError: it has none, because the engine was not built for that.
    """
    try:
        return trt.Refitter(engine, logger)
    except TypeError as exc:  # so its bindings say that the library gave none
        raise refused("the engine cannot be refitted", log, "one that was built with `refit: true`") from exc


def _put_named(
    trt: Any,  # noqa: ANN401 - TensorRT is untyped
    engine: Any,  # noqa: ANN401 - the same
    logger: Any,  # noqa: ANN401 - the same
    log: BuildLog,
    values: Mapping[str, npt.NDArray[np.generic]],
) -> None:
    """Put weights into an engine by their names: its parser has called them as the graph does."""
    refitter = _refitter(trt, engine, logger, log)
    names = refitter.get_all_weights()
    if unknown := sorted(set(names) - values.keys()):
        raise RunError("the engine cannot be refitted", got=f"weights that the graph does not name: {unknown[:3]}")
    fits = all(refitter.set_named_weights(name, trt.Weights(values[name])) for name in names)
    if not fits or refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        raise refused("the engine cannot be refitted", log, "weights of the types and shapes that it was built with")


def _initializers(file: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return a graph's weights by their names."""
    try:
        import onnx  # noqa: PLC0415 - TensorRT builds without it
        from onnx import numpy_helper  # noqa: PLC0415 - the same

        return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
    except Exception as exc:  # ImportError, OSError, or protobuf's DecodeError
        raise RunError(f"the weights of {file} cannot be read", got=one_line(exc)) from exc


def refused(what: str, log: BuildLog, expected: str = "") -> RunError:
    """Return the error with what the library said last."""
    said = log.errors()
    return RunError(what, expected=expected, got=said[-1][:500] if said else "")
