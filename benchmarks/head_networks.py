"""Networks of two heads for `head_gates.py`: the class and the box of a digit that lies anywhere in its image."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from networks import BATCH, NETWORKS, coloured_digits, parts
from torch import nn
from torch.nn import functional

from model_artifacts.sessions.torch_model import fold_batch_norms

if TYPE_CHECKING:
    from collections.abc import Callable

EPOCHS, INK, PLACES = 24, 0.3, 17
"""Epochs of a training, the share of full ink from which a pixel belongs to its digit, and places on each axis."""
HEADS = {"scores": 10, "boxes": 4}
"""The outputs, with the values of each: a score of each class, and the first and last column and row of the ink."""
TRUNKS = {"resnet": 64, "mobilenet": 40, "densenet": 64}
"""The networks of `networks.py` whose layers before the mean make the maps, with the channels of these."""


class TwoHeads(nn.Module):
    """Maps that two heads read: a class from their mean, and a box from their places."""

    def __init__(self, name: str) -> None:
        super().__init__()
        whole = NETWORKS[name]()
        self.trunk = nn.Sequential(*[*whole.children()][:-3])  # without the mean, and the layer of classes
        channels = TRUNKS[name]
        self.scores = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, HEADS["scores"]))
        self.boxes = nn.Sequential(
            nn.Conv2d(channels, 8, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 8 * 8, 32),
            nn.ReLU(),
            nn.Linear(32, HEADS["boxes"]),
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (samples, 10), and boxes in pixels (samples, 4)."""
        maps = self.trunk(images)
        return self.scores(maps), self.boxes(maps)


class Rows(nn.Module):
    """A network whose outputs become one row a sample, one after the other."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (samples, values of all outputs)."""
        return torch.cat([output.flatten(1) for output in self.body(images)], dim=1)


class Found(NamedTuple):
    """Images with the class and the box of the digit in each."""

    images: torch.Tensor
    classes: torch.Tensor
    boxes: torch.Tensor


def found_digits(seed: int) -> Found:
    """Return scikit-learn's digits in half their size, each at a random place of an empty image of 32 × 32."""
    digits, classes = coloured_digits(seed)
    generator = torch.Generator().manual_seed(seed)
    small = functional.avg_pool2d(digits, 2)
    images = digits.min().expand_as(digits).clone()
    for image, digit, (left, top) in zip(
        images, small, torch.randint(PLACES, (len(digits), 2), generator=generator).tolist(), strict=True
    ):
        image[:, top : top + small.shape[2], left : left + small.shape[3]] = digit
    brightest = images.amax(dim=1) - images.min()
    ink = brightest > INK * brightest.amax(dim=(1, 2), keepdim=True)
    ends = [(line.float().argmax(dim=1), 31 - line.flip(1).float().argmax(dim=1)) for line in (ink.any(1), ink.any(2))]
    return Found(images, classes, torch.stack([*ends[0], *ends[1]], dim=1).float())


def trained_heads(make: Callable[[], TwoHeads], data: Found, train: slice, seed: int) -> Rows:
    """Train a network on both answers at once, and return it with its batch-norms folded."""
    torch.manual_seed(seed)
    model = make().train()
    images, classes, boxes = (tensor[train] for tensor in data)
    optimizer = torch.optim.Adam(model.parameters())
    steps = EPOCHS * len(parts(images, BATCH))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for part in parts(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            scores, places = model(images[part])
            loss = functional.cross_entropy(scores, classes[part]) + functional.smooth_l1_loss(places, boxes[part]) / 4
            loss.backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
            schedule.step()
    _, channels, height, width = images.shape
    return Rows(fold_batch_norms(model.eval(), (channels, height, width)).model.eval()).eval()
