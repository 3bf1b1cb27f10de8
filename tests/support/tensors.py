"""Small networks that give one tensor for each image, and the configuration that builds them."""

from __future__ import annotations

import torch
from torch import nn

from model_artifacts.records import Task
from tests.support.tasks import configuration_of

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


def configuration(factory: str = "Boxes") -> str:
    """Return the configuration of such a network."""
    return configuration_of(
        f"tests.support.tensors:{factory}", Task.TENSORS, "{images: photographs, calibration: 8, validation: 40}"
    )
