"""Small networks that give one tensor for each image, and the configuration that builds them."""

from __future__ import annotations

import torch
from torch import nn

SHAPE = (5, 16, 16)
"""The shape of one image's output."""


class Boxes(nn.Module):
    """A network whose output has four channels of boxes in pixels, and one of scores from 0 to 1, as a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.SiLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return (batch, 5, 16, 16) by its name."""
        features = self.body(image)
        return {"out": torch.cat([self.boxes(features) * 300, self.scores(features).sigmoid() * 0.1], 1)}


class TwoOutputs(Boxes):
    """The same network with two entries, which cannot be built yet."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the output twice."""
        out = super().forward(image)["out"]
        return {"out": out, "aux": out}


def configuration(factory: str = "Boxes", more: str = "") -> str:
    """Return the configuration of such a network; `more` holds further keys of the first level."""
    return f"""\
model: {{name: tiny, factory: "tests.support.tensors:{factory}", weights: factory, task: tensors}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
precisions: [fp32, fp16]
profiles: [{{min: 1, opt: 2, max: 4}}]
workspaces: [16MiB]
benchmark: {{batches: [2], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}}
{more or "data: {images: photographs, calibration: 8, validation: 40}"}
"""
