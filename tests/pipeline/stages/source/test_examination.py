"""Networks that cannot be the FP32 reference are refused, with the cause that was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.records import Interpolation, Preprocessing
from pipeline.stages.source.examination import require_full_precision, require_same_logits
from tests.support import borrowing_networks, odd_networks

if TYPE_CHECKING:
    from collections.abc import Callable

SPEC = Preprocessing(
    resize=32, crop=32, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
)


class BatchOfSeven(odd_networks.Plain):
    """Goes another way with exactly seven images."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        return super().forward(image) * (2 if len(image) == 7 else 1)


def examine(model: nn.Module) -> None:
    """Do as the stage does."""
    model.eval()
    require_same_logits(model, SPEC, require_full_precision(model, SPEC))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (odd_networks.Autocast, r"(?s)lowers its own precision.*where: +forward of Autocast.*torch\.autocast"),
        (odd_networks.AutocastOnGpu, r"(?s)lowers its own precision.*torch\.autocast\('cuda'"),
        (odd_networks.HalfInput, r"(?s)lowers its own precision.*torch\.float16"),
        (odd_networks.Switches, r"(?s)lowers its own precision.*set_float32_matmul_precision is set to medium"),
        (
            borrowing_networks.CompiledHelper,
            r"(?s)calls a compiled function.*forward of CompiledHelper.*'_plus_one' of torch\.compile.*take `torch",
        ),
        (borrowing_networks.ScriptedHelper, r"(?s)calls a compiled function.*'_plus_one' of torch\.jit"),
        (
            borrowing_networks.Borrowing,
            r"(?s)weights that are not among its own.*'Linear' outside of.*shape \(10, 10\).*nn\.ModuleList",
        ),
        (odd_networks.AlwaysDropout, r"(?s)other logits for the same batch.*forward of AlwaysDropout.*random numbers"),
        (
            odd_networks.ForgottenTraining,
            r"(?s)other logits for the same.*in training mode after `eval\(\)`.*drop",
        ),
        (odd_networks.NumpyNoise, r"(?s)other logits for the same batch.*numpy's or Python's"),
        (odd_networks.Moving, r"(?s)other logits for the same batch.*where: +calls.*changes these buffers"),
        (odd_networks.batch_statistics, r"(?s)other images of its batch.*layer 'body\.1' \(BatchNorm2d\)"),
        (odd_networks.Centred, r"(?s)other images of its batch.*forward of Centred"),
        (odd_networks.BatchOfOne, r"(?s)depends on the batch size.*in a batch of 1 as"),
        (odd_networks.BatchOfTwo, r"(?s)depends on the batch size.*in a batch of 1 as"),
        (BatchOfSeven, r"(?s)depends on the batch size.*in a batch of 7 as"),
    ],
)
def test_no_reference(make: Callable[[], nn.Module], message: str) -> None:
    """Each message names the cause and the layer."""
    torch.manual_seed(0)

    with pytest.raises(SourceError, match=message):
        examine(make())


@pytest.mark.parametrize(
    "kind",
    [
        odd_networks.Plain,
        odd_networks.AutocastOff,
        odd_networks.EvaluatedDropout,
        odd_networks.Counting,
        odd_networks.root_hook,
        odd_networks.patched_forward,
    ],
)
def test_honest_networks(kind: Callable[[], nn.Module]) -> None:
    """A network that gives an image one answer passes, also if it counts its calls or has hooks."""
    examine(kind())


def test_a_shared_offset_hides_nothing() -> None:
    """Logits that all share a large offset are compared by their distances from each other."""

    class Offset(odd_networks.BatchOfOne):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) + 50.0

    torch.manual_seed(0)

    with pytest.raises(SourceError, match="depends on the batch size"):
        examine(Offset())
