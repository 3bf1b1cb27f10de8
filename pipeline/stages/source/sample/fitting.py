"""The steps that fit the sample model: damped residuals, batch-norm statistics by one pass, a head in closed form.

Importing this module imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from model_artifacts.errors import SourceError
from model_artifacts.sessions.preprocessing import to_input
from pipeline.stages.common import images

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.records import Preprocessing

SAMPLE_RIDGE = 60.0
"""Penalty λ of the ridge regression that fits the sample model's head.

A smaller λ fits better but magnifies rounding errors, until correct engines miss their gates. With TF32's rounding
simulated on held-out digits, the relative L2 is 1.7e-3 at 30, 1.5e-3 at 60 and 1.4e-3 at 100. Top-1 on all 997
held-out digits is 92.5 % at 60, 91.8 % at 80 and 91.0 % at 100.
"""
SAMPLE_RESIDUAL_SCALE = 0.5
"""Weight of the last batch-norm of each residual branch of the sample model.

The branches of a random network add noise that a trained network's do not. At a weight of 1 on an H100, relative L2 to
FP32 was 2.4e-3 for TF32 and 7.0e-3 for FP16, outside their gates of 2e-3 and 5e-3.
"""
SAMPLE_NORM_IMAGES = 400
"""Number of digits that give the sample model's batch-norm statistics."""

_BATCH = 50


def damp_residuals(model: nn.Module) -> None:
    """Weaken the branches of torchvision's residual blocks; other networks stay unchanged."""
    for block in model.modules():
        norms = [getattr(block, name, None) for name in ("bn3", "bn2")]
        last = next((norm for norm in norms if isinstance(norm, nn.BatchNorm2d)), None)
        if hasattr(block, "downsample") and last is not None:
            nn.init.constant_(last.weight, SAMPLE_RESIDUAL_SCALE)


def batches(pixels: npt.NDArray[np.uint8], spec: Preprocessing) -> Iterator[torch.Tensor]:
    """Yield images as the network's input: float32 (batch, channels, height, width)."""
    # Contiguous, whatever the weights' layout: the first convolution, which changes the layout, is twice as fast then.
    for start in range(0, len(pixels), _BATCH):
        yield torch.from_numpy(to_input(pixels[start : start + _BATCH], spec))


def set_norm_statistics(model: nn.Module, batches: Iterator[torch.Tensor]) -> None:
    """Set every batch-norm's statistics by one pass over images; only batch-norms are in training mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for batch in batches:
        model(batch)
    model.eval()


def features(model: nn.Module, head: str, batches: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return the inputs of the head: float64 (samples, features).

    Raises:
        SourceError: the model does not call it.
    """
    caught: list[torch.Tensor] = []
    hook = (
        dict(model.named_modules())
        .get(head, nn.Identity())
        .register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    )
    try:
        for batch in batches:
            model(batch)
    finally:
        hook.remove()
    if not caught:
        raise SourceError(
            f"the model does not call the sample model's head {head!r}",
            expected="a network whose last torch.nn.Linear gives the logits",
            fix="set `model.weights` in pipeline.yaml to a .pth or .safetensors file, or to `factory`",
        )
    return torch.cat(caught).double()


def ridge(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve (AᵀA + λI) W = AᵀY; A is the features with a column of ones, Y the one-hot labels.

    Args:
        features: float64 (samples, features).
        labels: int64 (samples,).
        penalty: λ.

    Returns:
        float32 weight (classes, features) and bias (classes,).
    """
    columns = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], dim=1)
    targets = nn.functional.one_hot(labels, images.DIGIT_CLASSES).to(features.dtype)
    gram = columns.T @ columns + penalty * torch.eye(columns.shape[1], dtype=features.dtype)
    solution = torch.linalg.solve(gram, columns.T @ targets).float()
    return solution[:-1].T.contiguous(), solution[-1].contiguous()
