"""Small networks that give a vector for each image, and the configuration that builds them as embeddings."""

from __future__ import annotations

import torch
from torch import nn

from model_artifacts.records import Task
from tests.support.tasks import configuration_of

LENGTH = 24


def make() -> nn.Module:
    """Return a network of two convolutions that gives vectors of 24 numbers, for images of 32x32 pixels."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(512, LENGTH),
    )


class Named(nn.Module):
    """The same network, whose output is a mapping of the vectors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = make()

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor | None]:
        """Return the vectors by their name, beside an entry that is absent."""
        return {"features": self.body(image), "attentions": None}


def configuration(factory: str = "make") -> str:
    """Return the configuration of an embedding."""
    return configuration_of(
        f"tests.support.embeddings:{factory}", Task.EMBEDDING, "{images: digits, calibration: 8, validation: 60}"
    )
