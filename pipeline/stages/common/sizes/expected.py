"""Outputs of a network itself, to compare a graph or a trace of it with, before anything is built from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from model_artifacts.errors import ExportError
from model_artifacts.records import Precision
from model_artifacts.sessions.arithmetic import call, relative_l2, strict_fp32, tensors, torch_batch
from model_artifacts.sessions.feeds.batches import rows_of_batch
from model_artifacts.sessions.module_kinds import untraced
from pipeline.stages.common.probe import probe_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_UNITS = 8
_LARGEST_NARROW = {
    Precision.FP16: _UNITS * torch.finfo(torch.float16).eps,
    Precision.BF16: _UNITS * torch.finfo(torch.bfloat16).eps,
}
"""The same of a narrow type, in units of its last place. Two ways that compute the same may round otherwise. The type
itself moves the logits of six networks by 0.6 to 1.6 units (resnet18, resnet50, densenet121, swin_t, vit_tiny and
convnextv2_atto with random weights, 64 x 64 pixels; mobilenet_v3_small and efficientnet_b0 underflow so in fp16)."""


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
    precision: Precision = Precision.FP32
    """The type that the network has computed in."""


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


def require_outputs(
    wanted: Sequence[Expected], found: Sequence[tuple[Outputs, ...]], what: str, floor: float = 0.0
) -> None:
    """Refuse outputs that differ from the network's own.

    Args:
        wanted: the network's own outputs, for samples of one size or of several.
        found: for each of these the outputs of what was made of it, in each of their batches.
        what: what was made of it, as messages name it.
        floor: the root mean square of a difference that counts as none.

    Raises:
        ExportError: an output differs; the message names the likely cause.
    """
    for expected, batches in zip(wanted, found, strict=True):
        for size, computed, outputs in zip(expected.batches, batches, expected.outputs, strict=True):
            for name, output in zip(expected.names, outputs, strict=True):
                array = computed[name] if isinstance(computed, dict) else computed
                largest = _LARGEST_NARROW.get(expected.precision, _LARGEST)
                if not _alike(array, output, floor, largest):
                    several = f", output {name!r}" if len(expected.names) > 1 else ""
                    distance = relative_l2(torch.from_numpy(array), torch.from_numpy(output))
                    raise ExportError(
                        f"{what} computes something else than the network",
                        where=f"{expected.precision.value}, in a batch of {size}{several}{expected.where}",
                        expected=f"the logits of PyTorch in {expected.precision.value.upper()}, "
                        f"within {largest:.2g} (relative L2)",
                        got=f"{distance:.2g}; {expected.cause}",
                        fix=expected.fix,
                    )


def _alike(computed: Logits, output: Logits, floor: float, largest: float) -> bool:
    if relative_l2(torch.from_numpy(computed), torch.from_numpy(output)) <= largest:
        return True
    return computed.shape == output.shape and float(np.sqrt(np.mean((computed - output) ** 2))) <= floor
