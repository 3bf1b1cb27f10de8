"""Detectors and images for `task_gates.py`: shapes in random colours, and networks of one box a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional

from model_artifacts.records import Activation, Decoding
from pipeline.stages.common.rows import Span
from pipeline.stages.validate.detections import Detector

if TYPE_CHECKING:
    import numpy.typing as npt

SIZE, CELL, CLASSES = 64, 8, 3
CELLS = SIZE // CELL
SHAPE = (4 + CLASSES, CELLS * CELLS)
"""The shape of one output: centre, width and height in pixels, and a logit of each class."""
DETECTOR = Detector(
    (Span("map", SHAPE, slice(None)),), (SIZE, SIZE), Decoding(activation=Activation.SIGMOID), classes=CLASSES
)
"""The step from an output to boxes, with the default thresholds."""


class OneBox(nn.Module):
    """A body, and one box for each of its 64 cells."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Conv2d(width, SHAPE[0], 1)
        rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        self.register_buffer("corners", CELL * torch.stack([columns, rows]).view(1, 2, -1).float())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (batch, 7, 64)."""
        raw = self.head(self.body(images)).flatten(2)
        centres, sizes = self.corners + CELL * raw[:, :2].sigmoid(), 4 + 32 * raw[:, 2:4].sigmoid()
        return torch.cat([centres, sizes, raw[:, 4:]], dim=1)


def _block(inputs: int, outputs: int, stride: int, groups: int = 1, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    layers = [
        nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        activation(),
    ]
    return nn.Sequential(*layers)


def plain() -> nn.Module:
    """Return convolutions with batch-norms and ReLU."""
    blocks = [_block(3, 24, 2), _block(24, 32, 2), _block(32, 48, 2), _block(48, 48, 1), _block(48, 48, 1)]
    return OneBox(nn.Sequential(*blocks), 48)


class _Added(nn.Module):
    """A block of depthwise and pointwise convolutions, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(_block(width, width, 1, width, nn.SiLU), nn.Conv2d(width, width, 1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        result: torch.Tensor = features + self.block(features)
        return result


def silu() -> nn.Module:
    """Return convolutions with SiLU and depthwise blocks that are added to their input."""
    blocks = [_block(3, 24, 2, 1, nn.SiLU), _block(24, 32, 2, 1, nn.SiLU), _Added(32), _block(32, 48, 2, 1, nn.SiLU)]
    return OneBox(nn.Sequential(*blocks, _Added(48), _block(48, 48, 1, 1, nn.SiLU), _Added(48)), 48)


def scenes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (count, 3, 64, 64), normalised, and their boxes (count, 3, 6), the last number a `BoxKind`."""
    random = np.random.default_rng((seed, 7))
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    truth = np.full((count, 3, 6), -1, np.float32)
    for number in range(count):
        images[number], rows = _scene(random)
        truth[number, : len(rows)] = np.reshape(rows, (-1, 6))
    normal = (images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.4) / 0.3
    return torch.from_numpy(normal), torch.from_numpy(truth)


def _scene(random: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[list[int]]]:
    picture = Image.new("RGB", (SIZE, SIZE), tuple(map(int, random.integers(0, 90, 3))))
    draw, rows, taken = ImageDraw.Draw(picture), [], set()
    for _ in range(int(random.integers(0, 4))):
        wide, high = map(int, random.integers(10, 27, 2))
        left, top = int(random.integers(0, SIZE - wide)), int(random.integers(0, SIZE - high))
        if (cell := ((left + wide // 2) // 16, (top + high // 2) // 16)) in taken:
            continue
        taken.add(cell)
        kind, colour = int(random.integers(0, CLASSES)), tuple(map(int, random.integers(110, 256, 3)))
        right, bottom = left + wide - 1, top + high - 1
        if kind == 0:
            draw.rectangle((left, top, right, bottom), fill=colour)
        elif kind == 1:
            draw.ellipse((left, top, right, bottom), fill=colour)
        else:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=colour)
        rows.append([left, top, right + 1, bottom + 1, kind, 0])
    noise = random.integers(-25, 26, (SIZE, SIZE, 3))
    return (np.asarray(picture) + noise).clip(0, 255).astype(np.uint8), rows


def loss(got: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return the loss of outputs (batch, 7, 64): of each cell's classes, and of the boxes with a centre."""
    images, places = torch.nonzero(truth[..., 5] == 0, as_tuple=True)
    rows = truth[images, places]
    centres, sizes = (rows[:, :2] + rows[:, 2:4]) / 2, rows[:, 2:4] - rows[:, :2]
    cells = (centres[:, 1] // CELL * CELLS + centres[:, 0] // CELL).long()
    wanted = torch.zeros_like(got[:, 4:])
    wanted[images, rows[:, 4].long(), cells] = 1
    classes = functional.binary_cross_entropy_with_logits(got[:, 4:], wanted, pos_weight=torch.tensor(4.0))
    return classes + 0.05 * functional.l1_loss(got[images, :4, cells], torch.cat([centres, sizes], dim=1))
