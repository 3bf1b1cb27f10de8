"""An FP32 graph in ONNX Runtime, compared with the network in torch, before anything is built from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from model_artifacts.errors import CrashedError, ExportError, RunError
from model_artifacts.sessions.arithmetic import call, relative_l2, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import rows_of_batch
from model_artifacts.sessions.module_kinds import untraced
from model_artifacts.sessions.onnx import run_stand_in
from pipeline.stages.common.probe import probe_batch
from pipeline.system.isolation import run_isolated

if TYPE_CHECKING:
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


def expected_of(model: nn.Module, spec: Preprocessing | Samples, names: tuple[str, ...]) -> Expected:
    """Run the network itself in strict FP32, before it is exported.

    Args:
        model: the network with its weights, in FP32: not folded and not traced.
        spec: the preprocessing, or samples of the inputs.
        names: the names of the outputs.
    """
    images = probe_batch(spec, max(_SIZES))
    with strict_fp32():
        outputs = tuple(
            tuple(
                output.detach().numpy()
                for output in tensors(call(model, torch_batch(rows_of_batch(images, slice(size)))))
            )
            for size in _SIZES
        )
    return Expected(images, outputs, names, untraced(model))


def require_agreement(file: Path, expected: Expected, rerun: str, floor: float = 0.0) -> None:
    """Refuse an FP32 graph that computes something else than the network.

    Args:
        file: the graph.
        expected: the network's own logits.
        rerun: the command that repeats the export.
        floor: the root mean square of a difference that counts as none.

    Raises:
        ExportError: ONNX Runtime cannot run the graph, or an output differs; the message names the likely cause.
    """
    for size, found, outputs in zip(_SIZES, _run(file, expected, rerun), expected.outputs, strict=True):
        several = len(expected.names) > 1
        for name, output in zip(expected.names, outputs, strict=True):
            computed = found[name] if isinstance(found, dict) else found
            if (distance := relative_l2(torch.from_numpy(computed), torch.from_numpy(output))) <= _LARGEST:
                continue
            if computed.shape == output.shape and float(np.sqrt(np.mean((computed - output) ** 2))) <= floor:
                continue
            raise ExportError(
                "the ONNX graph computes something else than the network",
                where=f"fp32, in a batch of {size}" + (f", output {name!r}" if several else "") + expected.where,
                expected=f"the logits of PyTorch in FP32, within {_LARGEST:g} (relative L2)",
                got=f"{distance:.2g}; {expected.cause}",
                fix="let forward compute the same wherever it runs: write hooks and replaced forwards into its class",
            )


def _run(file: Path, expected: Expected, rerun: str) -> tuple[Outputs, ...]:
    try:
        return run_isolated(_in_onnxruntime, file, expected.images, rerun=rerun)
    except (RunError, CrashedError) as exc:
        raise ExportError(
            "ONNX Runtime cannot run the exported graph",
            where=f"fp32{expected.where}",
            got=str(exc).replace("\n", ";"),
        ) from exc


def _in_onnxruntime(file: Path, images: Batch) -> tuple[Outputs, ...]:
    """Run a graph in a batch of each size, in a process that may crash."""
    graph = file.read_bytes()
    return tuple(run_stand_in(graph, rows_of_batch(images, slice(size)), size) for size in _SIZES)
