"""Small networks that give several outputs for each image, and the configuration that builds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from model_artifacts.records import Task
from tests.support.tasks import configuration_of

SHAPES = {"boxes": (4, 16, 16), "scores": (1, 16, 16), "features": (16, 16, 16), "mirror": (4, 16, 16)}
"""The shapes of one image's outputs."""


class Heads(nn.Module):
    """A network with boxes in pixels, scores from 0 to 1, and features that its later layers read; as a mapping.

    `mirror` has the shape of `boxes`, so that a swap of the two shows in no shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.neck = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.boxes, self.scores, self.mirror = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)

    def tensors(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs in the order of `SHAPES`."""
        features = self.body(image)
        found = self.neck(features)
        return self.boxes(found) * 300, self.scores(found).sigmoid() * 0.1, features, self.mirror(found)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each output by its name."""
        return dict(zip(SHAPES, self.tensors(image), strict=True))


class InATuple(Heads):
    """The same network without names."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]  # what differs
        """Return the outputs as a tuple."""
        return self.tensors(image)


@dataclass
class Found:
    """Two outputs, and one that is not there."""

    boxes: torch.Tensor
    scores: torch.Tensor
    loss: torch.Tensor | None = None


class InADataclass(Heads):
    """The same network with attributes for names."""

    def forward(self, image: torch.Tensor) -> Found:  # type: ignore[override]  # what differs
        """Return two of the outputs."""
        return Found(*self.tensors(image)[:2])


class Pair(NamedTuple):
    """Two outputs by their names."""

    boxes: torch.Tensor
    scores: torch.Tensor


class InANamedTuple(Heads):
    """The same network with a tuple that has names."""

    def forward(self, image: torch.Tensor) -> Pair:  # type: ignore[override]  # what differs
        """Return two of the outputs."""
        return Pair(*self.tensors(image)[:2])


class Nested(Heads):
    """The same network with outputs inside of others, as detectors return maps beside boxes."""

    def forward(self, image: torch.Tensor) -> object:  # type: ignore[override]  # what differs
        """Return three of the outputs."""
        boxes, scores, _, mirror = self.tensors(image)
        return boxes, [scores, {"mirror": mirror, "loss": None}]


class Twice(Heads):
    """A network that returns one tensor under two names."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the boxes twice."""
        boxes = self.tensors(image)[0]
        return {"boxes": boxes, "again": boxes}


def configuration(factory: str = "Heads", precisions: str = "[fp32, fp16]") -> str:
    """Return the configuration of such a network."""
    text = configuration_of(
        f"tests.support.heads:{factory}", Task.TENSORS, "{images: photographs, calibration: 8, validation: 40}"
    )
    return text.replace("precisions: [fp32, fp16]", f"precisions: {precisions}")
