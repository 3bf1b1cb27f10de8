"""An ONNX file in float16, bfloat16 or float64 → its FP32 graph, tried against the file itself."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from model_artifacts.errors import CrashedError, SourceError, listed, one_line
from model_artifacts.sessions.arithmetic import call, relative_l2, tensors, torch_batch
from pipeline.adapters import onnx_graph, onnx_widening
from pipeline.adapters.onnx_network import OnnxNetwork
from pipeline.stages.common.probe import probe_batch
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    import onnx

    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.feeds.samples import Samples

log = logging.getLogger(__name__)

APART = {"float64": 1e-3, "float16": 0.05, "bfloat16": 0.3}
"""The largest relative L2 distance of a file's own run to its FP32 graph's. Another network is about 1 away."""
_NARROW = {"float16", "bfloat16"}
_IMAGES = 3
_NAMED = 3


class OwnRun(NamedTuple):
    """The comparison of a graph in float32 with the run of the file that it was made from."""

    distance: float | None = None
    """Largest relative L2 distance of an output; None without a comparison."""
    uncompared: str = ""
    """Reason why the file's own types were not compared; empty if they were, and for a file in float32."""


def take_in_float32(model: onnx.ModelProto, where: str) -> tuple[str, ...]:
    """Let a model compute in float32, in place, and return the types that it computed in; () if it did already.

    Args:
        model: the model, with its external data taken in.
        where: the file, for messages.

    Raises:
        SourceError: float32 cannot hold its weights.
    """
    types = onnx_widening.types_of(model)
    lost = onnx_widening.widen(model) if types else ()
    if lost:
        raise SourceError(
            "the ONNX file's weights are too large for float32, which artifacts are compared with",
            where=where,
            expected="numbers up to 3.4e38",
            got=f"larger ones in {listed([repr(name) for name in lost], most=_NAMED)}",
            fix="export the network in float32 (`model.float()`)",
        )
    if types:
        rounded = "; no gate sees what their own rounding has lost" if {*types} & _NARROW else ", rounded to float32"
        named = " and ".join(types)
        log.warning("WARNING: %s computes in %s: the reference is the FP32 run of its weights%s", where, named, rounded)
    return types


def require_own_outputs(  # noqa: PLR0913 - two graphs, and how they are run
    model: onnx.ModelProto,
    file: Path,
    types: tuple[str, ...],
    spec: Preprocessing | Samples,
    batch: int | None,
    rerun: str,
) -> OwnRun:
    """Return how far a file's own run is from its graph in float32, and refuse a graph that computes something else.

    A file that ONNX Runtime does not run on a processor, as most in bfloat16, is not compared, which is said.

    Args:
        model: the graph in float32.
        file: the file itself.
        types: the types that the file computes in.
        spec: the preprocessing, or samples of the inputs.
        batch: the size of the batch that its input is written for; None if that axis is dynamic.
        rerun: the command that repeats the work, for messages.

    Raises:
        SourceError: the outputs are farther apart than these types' rounding makes them.
    """
    named = " and ".join(types)
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "float32.onnx"
        onnx_graph.save(model, wide)
        try:
            distance = run_isolated(distance_of, file, wide, spec, batch, rerun=rerun)
        except (SourceError, CrashedError) as exc:
            trouble = (exc.got if isinstance(exc, SourceError) else "") or one_line(exc)
            reason = f"ONNX Runtime cannot run it in its own {named} on a processor: {trouble}"
            log.warning("WARNING: the FP32 graph was not compared with the file's own %s: %s", named, reason)
            return OwnRun(uncompared=reason)
    if distance is None:
        log.warning("WARNING: %s gives infinities or NaN in its own %s; in float32 it is judged anyway", file, named)
        return OwnRun(uncompared=f"it gives infinities or NaN in its own {named}")
    log.info("in float32 its outputs are %.1e apart from those of its own %s (relative L2)", distance, named)
    most = max(APART[name] for name in types)
    if distance > most:
        raise SourceError(
            f"the ONNX file computes something else in float32 than in {named}, so that there is no FP32 reference",
            where=str(file),
            expected=f"outputs at most {most:g} apart (relative L2), which the rounding explains",
            got=f"{distance:.2g}",
            fix="export the network in float32 (`model.float()`), without autocast",
        )
    return OwnRun(distance)


def distance_of(file: Path, wide: Path, spec: Preprocessing | Samples, batch: int | None) -> float | None:
    """Return the largest relative L2 distance of an output in two graphs; None if the first gives no finite numbers.

    Args:
        file: the file itself.
        wide: its graph in float32.
        spec: the preprocessing, or samples of the inputs.
        batch: the batch size that both take; None takes one image at a time.

    Raises:
        SourceError: ONNX Runtime cannot run the file.
    """
    images = torch_batch(probe_batch(spec, _IMAGES))
    own_graph, wide_graph = OnnxNetwork(file, batch or 1), OnnxNetwork(wide, batch or 1)
    try:
        found = call(own_graph, images)
    except Exception as exc:  # onnxruntime's exceptions have no common public base
        raise SourceError("ONNX Runtime cannot run the ONNX file as it is", got=one_line(exc)) from exc
    own = [output.float() for output in tensors(found)]
    if not all(bool(torch.isfinite(output).all()) for output in own):
        return None
    return max(relative_l2(*pair) for pair in zip(own, tensors(call(wide_graph, images)), strict=True))
