"""An FP32 graph in ONNX Runtime, compared with the network in torch, before anything is built from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from model_artifacts.errors import CrashedError, ExportError, RunError
from model_artifacts.sessions.arithmetic import call, relative_l2, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import rows_of_batch
from model_artifacts.sessions.module_kinds import untraced
from model_artifacts.sessions.onnx import stand_in
from pipeline.stages.common.probe import probe_batch
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import nn

    from model_artifacts.records import Preprocessing
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.feeds.samples import Samples
    from model_artifacts.sessions.onnx import Outputs

    Logits = npt.NDArray[np.float32]

_SIZES = (1, 3)
"""Batch sizes to compare: one image, and another number than the two that the exporter saw."""
_LARGEST = 1e-4
"""The largest relative L2: ten times the floor of the gates' bounds (`pipeline/stages/validate/gates.py`), because a
probe is a few images. FP32's own rounding is 1e-6 to 2e-6 (its emulation in the stage `rounding`)."""


class Expected(NamedTuple):
    """The logits that a graph must give."""

    images: Batch
    """A few images, preprocessed: float32 (images, channels, height, width); or samples of the model's own inputs."""
    outputs: tuple[tuple[Logits, ...], ...]
    """The network's outputs of the first images, in a batch of each size."""
    names: tuple[str, ...]
    """The outputs' names."""
    cause: str
    """The likely cause of a difference."""
    where: str = ""
    """The size of the images as messages show it; empty for the network's own."""
    batches: tuple[int, ...] = _SIZES
    """The sizes of the batches."""
    fix: str = "let forward compute the same wherever it runs: write hooks and replaced forwards into its class"
    """Advice about a difference."""


def expected_of(
    model: nn.Module, spec: Preprocessing | Samples, names: tuple[str, ...], batches: tuple[int, ...] = _SIZES
) -> Expected:
    """Run the network itself in strict FP32, before it is exported.

    Args:
        model: the network with its weights, in FP32: not folded and not traced.
        spec: the preprocessing, or samples of the inputs.
        names: the names of the outputs.
        batches: the sizes of the batches.
    """
    images = probe_batch(spec, max(batches))
    with strict_fp32():
        outputs = tuple(
            tuple(
                output.detach().numpy()
                for output in tensors(call(model, torch_batch(rows_of_batch(images, slice(size)))))
            )
            for size in batches
        )
    return Expected(images, outputs, names, untraced(model), batches=batches)


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
    for expected, found in zip(wanted, _run(file, wanted, rerun), strict=True):
        for size, computed, outputs in zip(expected.batches, found, expected.outputs, strict=True):
            for name, output in zip(expected.names, outputs, strict=True):
                _require_same(
                    computed[name] if isinstance(computed, dict) else computed,
                    output,
                    floor,
                    (f"fp32, in a batch of {size}" + (f", output {name!r}" if len(expected.names) > 1 else "")),
                    expected,
                )


def _require_same(computed: Logits, output: Logits, floor: float, where: str, expected: Expected) -> None:
    if (distance := relative_l2(torch.from_numpy(computed), torch.from_numpy(output))) <= _LARGEST:
        return
    if computed.shape == output.shape and float(np.sqrt(np.mean((computed - output) ** 2))) <= floor:
        return
    raise ExportError(
        "the ONNX graph computes something else than the network",
        where=where + expected.where,
        expected=f"the logits of PyTorch in FP32, within {_LARGEST:g} (relative L2)",
        got=f"{distance:.2g}; {expected.cause}",
        fix=expected.fix,
    )


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
