"""An FP32 graph in ONNX Runtime, compared with the network in torch, before anything is built from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.errors import CrashedError, ExportError, RunError
from model_artifacts.sessions.feeds.batches import rows_of_batch
from model_artifacts.sessions.onnx import stand_in
from pipeline.stages.common.sizes.expected import require_outputs
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.stages.common.sizes.expected import Expected


def require_agreement(file: Path, wanted: Sequence[Expected], rerun: str, floor: float = 0.0) -> None:
    """Refuse an FP32 graph that computes something else than the network.

    Args:
        file: the graph.
        wanted: the network's own logits, for samples of one size or of several. All run in one process.
        rerun: the command that repeats the export.
        floor: the root mean square of a difference that counts as none.

    Raises:
        ExportError: ONNX Runtime cannot run the graph, or an output differs; the message names the likely cause.
    """
    require_outputs(wanted, _run(file, wanted, rerun), "the ONNX graph", floor)


def _run(file: Path, wanted: Sequence[Expected], rerun: str) -> list[tuple[Outputs, ...]]:
    """Return the graph's outputs for each of some expected ones, in each of their batches."""
    try:
        ran = run_isolated(_in_onnxruntime, file, [(item.images, item.batches) for item in wanted], rerun=rerun)
    except CrashedError as exc:
        if len(wanted) > 1:  # to name the size that it crashes at
            return [found for expected in wanted for found in _run(file, [expected], rerun)]
        raise _unable(wanted[0], str(exc)) from exc
    for expected, found in zip(wanted, ran, strict=False):
        if isinstance(found, str):
            raise _unable(expected, found)
    return [found for found in ran if not isinstance(found, str)]


def _unable(expected: Expected, got: str) -> ExportError:
    return ExportError(
        "ONNX Runtime cannot run the exported graph",
        where=f"fp32{expected.where}",
        got="; ".join(part for part in (got.replace("\n", ";"), expected.cause) if part),
        fix=expected.fix if expected.where else "",
    )


def _in_onnxruntime(file: Path, wanted: list[tuple[Batch, tuple[int, ...]]]) -> list[tuple[Outputs, ...] | str]:
    """Run a graph in batches of several sizes, in a process that may crash; what fails is said, and is the last."""
    found: list[tuple[Outputs, ...] | str] = []
    try:
        run = stand_in(file.read_bytes())
        for images, batches in wanted:
            found.append(tuple(run(rows_of_batch(images, slice(size))) for size in batches))
    except RunError as exc:
        found.append(str(exc))
    return found
