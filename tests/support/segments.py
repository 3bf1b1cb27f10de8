"""A small segmenter of coloured shapes, its images and masks, and the configuration that builds it."""

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

CLASSES = ("background", "red", "green")
SIZE = 32
"""The side of the input, and of the output."""


class Segmenter(nn.Module):
    """A network that smooths an image, and tells its red and its green pixels from dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.smooth = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.classes = nn.Conv2d(6, len(CLASSES), 1)
        weight = torch.zeros(6, 3, 3, 3)
        for channel in range(3):
            weight[channel, channel] = torch.tensor([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
            weight[channel + 3, channel, 1, 1] = 1
        generator = torch.Generator().manual_seed(0)
        weight += 0.03 * torch.randn(weight.shape, generator=generator)  # numbers that FP16 must round
        self.smooth.weight.data = weight
        self.classes.weight.data = torch.tensor(
            [[-3.0, -3, 0, -1, -1, 0], [4, -3, 0, 1, -1, 0], [-3, 4, 0, -1, 1, 0]]
        ).view(3, 6, 1, 1)
        self.classes.weight.data += 0.03 * torch.randn(self.classes.weight.shape, generator=generator)
        self.classes.bias = nn.Parameter(torch.tensor([1.03, -1.01, -1.07]))

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the maps of logits (batch, 3, 32, 32) by their name, as torchvision's segmenters do."""
        return {"out": self.classes(torch.relu(self.norm(self.smooth(image))))}


class Probabilities(Segmenter):
    """The same network with a softmax."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return shares of the classes."""
        return {"out": super().forward(image)["out"].softmax(1)}


def write_images(folder: Path, count: int) -> None:
    """Write images of 48x40 pixels with a red and a green shape, and masks of the shapes beside them."""
    random = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((40, 48), dtype=np.uint8)
        for value in (1, 2):
            top, left = random.integers(0, 28), random.integers(0, 36)
            mask[top : top + random.integers(8, 20), left : left + random.integers(8, 24)] = value
        colours = np.array([[40, 40, 60], [210, 40, 40], [40, 210, 40]])[mask]
        pixels = (colours + random.integers(-40, 41, colours.shape)).clip(0, 255).astype(np.uint8)
        mask[:, :2] = 255  # not judged
        for name, array in (("images", pixels), ("masks", mask)):
            file = folder / name / "part" / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)


def configuration(folder: Path, factory: str = "Segmenter", *, masks: bool = True) -> str:
    """Return the configuration of the segmenter with the images of a folder."""
    beside = f", masks: {folder / 'masks'}" if masks else ""
    names = f"[{', '.join(CLASSES)}]"
    data = f"{{images: {folder / 'images'}{beside}, classes: {names}, calibration: 8, validation: 40}}"
    return configuration_of(f"tests.support.segments:{factory}", Task.SEGMENTATION, data)
