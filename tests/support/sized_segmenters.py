"""Segmenters of coloured shapes for images of any size, or with a map that does not follow its image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.support.segments import SIZE, Segmenter


class Coarse(Segmenter):
    """The segmenter whose maps are a quarter of the image, rounded up."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps of logits (batch, 3, ⌈height / 4⌉, ⌈width / 4⌉)."""
        maps = super().forward(image)["out"]
        return {"out": functional.avg_pool2d(maps, 4, ceil_mode=True)}


class Resized(Coarse):
    """The segmenter whose coarse maps are resized to the image's own size, as torchvision's segmenters do."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps of logits (batch, 3, height, width)."""
        maps = super().forward(image)["out"]
        return {"out": functional.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False)}


class Sampled(Segmenter):
    """The segmenter with every fourth pixel of its maps, resized to the image's own size."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps of logits (batch, 3, height, width)."""
        maps = super().forward(image)["out"][:, :, ::4, ::4]
        return {"out": functional.interpolate(maps, size=image.shape[-2:], mode="bilinear", align_corners=False)}


class Constant(Coarse):
    """The segmenter whose coarse maps are resized to the size that it was trained at."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps of logits (batch, 3, 32, 32), whatever the image's size is."""
        return {"out": functional.interpolate(super().forward(image)["out"], size=(SIZE, SIZE), mode="bilinear")}


class Turned(Segmenter):
    """The segmenter whose maps lie on their side."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps of logits (batch, 3, width, height)."""
        return {"out": super().forward(image)["out"].transpose(2, 3)}


class Rows(nn.Module):
    """A network with a class for each row of its image."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return maps (batch, height, height, width)."""
        maps = self.body(image)
        return {"out": maps * torch.ones_like(image[:, :1, :, :1]).transpose(1, 2)}
