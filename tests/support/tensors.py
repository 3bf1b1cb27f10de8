"""Small networks that give one tensor for each image, and the configuration that builds them."""

from __future__ import annotations

from typing import Any

import numpy as np
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


def found_boxes(outputs: np.typing.NDArray[np.float32], truth: np.typing.NDArray[np.float32]) -> np.typing.NDArray[Any]:
    """Return the share of places whose score and box are near the true ones: a metric of the user's own."""
    near = np.abs(outputs[:, 4] - truth[:, 4]) < 0.005
    near &= np.abs(outputs[:, :4] - truth[:, :4]).max(axis=1) < 10
    return np.asarray(near.mean(axis=(1, 2)))


def no_scores(outputs: np.typing.NDArray[np.float32], _truth: np.typing.NDArray[np.float32]) -> float:
    """Return one number for all images, which is no metric."""
    return float(outputs.mean())
