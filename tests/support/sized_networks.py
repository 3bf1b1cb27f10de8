"""Networks that take images of any size, or of one size only."""

from __future__ import annotations

import torch
from torch import nn


def _body() -> list[nn.Module]:
    return [
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]


def make() -> nn.Module:
    """Return a fully convolutional network with a global mean, for images of any size in 10 classes."""
    return nn.Sequential(*_body(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def make_flat() -> nn.Module:
    """Return a network whose last layer has weights for each place of a 32x32 image."""
    return nn.Sequential(*_body(), nn.Flatten(), nn.Linear(64 * 8 * 8, 10))


def make_gridded() -> nn.Module:
    """Return a network whose means over a grid of 4x4 have no form in ONNX for images of any size."""
    return nn.Sequential(*_body(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 10))


class Read(nn.Module):
    """A network that reads a size as a number, which a trace keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_body())
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 10) of images (batch, 3, height, width)."""
        maps = self.body(image)
        places = torch.tensor(float(int(maps.shape[2]) * int(maps.shape[3])))
        logits: torch.Tensor = self.head(maps.sum((2, 3)) / places)
        return logits


def make_read() -> nn.Module:
    """Return `Read`."""
    return Read()


class Maps(nn.Module):
    """A network whose output is as large as a quarter of its image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_body())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return maps (batch, 64, height / 4, width / 4)."""
        maps: torch.Tensor = self.body(image)
        return maps


def make_maps() -> nn.Module:
    """Return `Maps`."""
    return Maps()
