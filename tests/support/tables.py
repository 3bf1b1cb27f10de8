"""Small networks of several labels and of numbers, their images with a table, and the configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import nn

from model_artifacts.records import Task
from tests.support.tasks import configuration_of

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = ("red", "green")


class _Shares(nn.Module):
    """The shares of an image's pixels that are red and green, up to a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Conv2d(3, 2, 1)
        self.colours.weight.data = torch.tensor([[1.13, -1.31, -0.11], [-1.31, 1.13, -0.11]]).view(2, 3, 1, 1)
        self.colours.bias = nn.Parameter(torch.tensor([-1.51, -1.51]))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.colours(image)).clamp(max=2).mean((2, 3))


class Labels(nn.Module):
    """A network that gives a logit for red and one for green."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = _Shares()
        self.last = nn.Linear(2, 2)
        self.last.weight.data = torch.tensor([[61.3, 1.7], [1.7, 61.3]])
        self.last.bias.data = torch.tensor([-3.1, -3.1])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 2)."""
        logits: torch.Tensor = self.last(self.shares(image))
        return logits


class Sigmoids(Labels):
    """The same network with a sigmoid."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return values from 0 to 1."""
        return super().forward(image).sigmoid()


class Numbers(nn.Module):
    """A network that gives the red pixels in per cent, and the green ones as a share."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = _Shares()
        self.last = nn.Linear(2, 2)
        self.last.weight.data = torch.tensor([[57.1, 0.11], [0.0011, 0.571]])
        self.last.bias.data = torch.tensor([0.031, 0.00017])

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return numbers (batch, 2) by their name."""
        return {"areas": self.last(self.shares(image))}


def write_images(folder: Path, count: int) -> None:
    """Write images of 32x32 pixels, some with a red or a green shape, and tables of both networks' labels."""
    random = np.random.default_rng(0)
    labels, numbers = ["image,green,red"], ["image,red,green"]
    (folder / "images").mkdir()
    for number in range(count):
        mask = np.zeros((32, 32), dtype=np.uint8)
        for value in (1, 2):
            if random.random() < 0.6:
                top, left = random.integers(0, 20, 2)
                mask[top : top + random.integers(9, 20), left : left + random.integers(9, 20)] = value
        colours = np.array([[40, 40, 60], [210, 40, 40], [40, 210, 40]])[mask]
        pixels = (colours + random.integers(-30, 31, colours.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        red, green = (float((mask == value).mean()) for value in (1, 2))
        labels.append(f"{number}.png,{int(green > 0.03)},{int(red > 0.03)}")
        numbers.append(f"{number}.png,{100 * red},{green}")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "numbers.csv").write_text("\n".join(numbers) + "\n")


def labels_configuration(folder: Path, factory: str = "Labels", *, table: bool = True) -> str:
    """Return the configuration of the network of labels."""
    beside = f", labels: {folder / 'labels.csv'}" if table else ""
    data = f"{{images: {folder / 'images'}{beside}, classes: [red, green], calibration: 8, validation: 60}}"
    return configuration_of(f"tests.support.tables:{factory}", Task.MULTILABEL, data)


def numbers_configuration(folder: Path, tolerance: str = "[5, 0.05]", *, table: bool = True) -> str:
    """Return the configuration of the network of numbers."""
    beside = f", labels: {folder / 'numbers.csv'}" if table else ""
    data = f"{{images: {folder / 'images'}{beside}, calibration: 8, validation: 60}}"
    text = configuration_of("tests.support.tables:Numbers", Task.REGRESSION, data)
    return text.replace("task: regression", f"task: regression, tolerance: {tolerance}")
