"""Engine + graph with other weights → engine with these weights, on the current GPU. No tactic is timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from model_artifacts.errors import RunError, one_line, shortened
from model_artifacts.tensorrt.flavour import BuildLog, make_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.tensorrt.flavour import Flavour


def refit_engine(flavour: Flavour, plan: bytes, weights: Path, log: BuildLog) -> bytes:
    """Return a serialized engine with other weights.

    Args:
        flavour: the flavour that built the engine, with `refit` on.
        plan: the serialized engine; the caller has checked its digest.
        weights: an ONNX file of the same structure as the engine's graph.
        log: gets all messages of the library.

    Raises:
        RunError: the engine is damaged or was built without `refit`, or the weights do not fit.
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
    """Put the weights of an ONNX file into an engine, with the library's own reader of ONNX.

    Args:
        trt: the flavour's module.
        engine: the library's engine; changed in place.
        logger: the library's logger, which appends to `log`.
        log: the messages of the library.
        weights: the ONNX file.

    Raises:
        RunError: the flavour has no such reader, or the weights do not fit.
    """
    if not hasattr(trt, "OnnxParserRefitter"):  # 8.6, which cannot build engines without weights either
        raise RunError(f"TensorRT {trt.__version__} cannot refit an engine from an ONNX file")
    refitter = _refitter(trt, engine, logger, log)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(weights)) or not refitter.refit_cuda_engine():
        raise refused("the engine cannot be refitted", log, f"weights of the engine's own graph in {weights}")


def _refitter(trt: Any, engine: Any, logger: Any, log: BuildLog) -> Any:  # noqa: ANN401 - TensorRT is untyped
    """Return the library's refitter of an engine.

    Raises:
        RunError: the engine was built without `refit`.
    """
    try:
        return trt.Refitter(engine, logger)
    except TypeError as exc:  # raised by the bindings if the library returns no refitter
        raise refused("the engine cannot be refitted", log, "an engine built with `refit: true`") from exc


def _put_named(
    trt: Any,  # noqa: ANN401 - TensorRT is untyped
    engine: Any,  # noqa: ANN401 - the same
    logger: Any,  # noqa: ANN401 - the same
    log: BuildLog,
    values: Mapping[str, npt.NDArray[np.generic]],
) -> None:
    """Put weights into an engine by their names, which the parser took from the graph."""
    refitter = _refitter(trt, engine, logger, log)
    names = refitter.get_all_weights()
    if unknown := sorted(set(names) - values.keys()):
        raise RunError("the engine cannot be refitted", got=f"weights that are missing from the graph: {unknown[:3]}")
    fits = all(refitter.set_named_weights(name, trt.Weights(values[name])) for name in names)
    if not fits or refitter.get_missing_weights() or not refitter.refit_cuda_engine():
        raise refused("the engine cannot be refitted", log, "weights of the same types and shapes as at build time")


def _initializers(file: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Return a graph's weights by name."""
    try:
        import onnx  # noqa: PLC0415 - only this path needs it
        from onnx import numpy_helper  # noqa: PLC0415 - the same

        return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
    except Exception as exc:  # ImportError, OSError, or protobuf's DecodeError
        raise RunError(f"the weights of {file} cannot be read", got=one_line(exc)) from exc


def refused(what: str, log: BuildLog, expected: str = "") -> RunError:
    """Return an error with the library's last error message.

    Args:
        what: the failure, as a short sentence.
        log: the messages of the library; at most 500 characters of the last error are used.
        expected: the input that would have been right.
    """
    messages = log.errors()
    return RunError(what, expected=expected, got=shortened(messages[-1], 500) if messages else "")
