"""Networks of kinds that teams quantise, for `int8_networks.py`: small enough to train in minutes."""

from __future__ import annotations

import torch
from task_detectors import OneBox
from torch import nn
from torch.nn import functional
from torchvision.models import VisionTransformer
from torchvision.models import mobilenet_v3_small as torchvisions


def mobilenet_v3_small() -> nn.Module:
    """Return torchvision's network with ten classes."""
    model: nn.Module = torchvisions(num_classes=10)
    return model


def vit_tiny() -> nn.Module:
    """Return ViT-Ti (Touvron et al. 2021, table 1) for images of 32 × 32 in patches of 8 × 8."""
    model: nn.Module = VisionTransformer(
        image_size=32, patch_size=8, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=10
    )
    return model


def yolo() -> nn.Module:
    """Return a detector with the parts of YOLOv8n: C2f, SPPF, SiLU and a path upwards."""
    return OneBox(_Body(16), 64)


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(plain, nn.BatchNorm2d(outputs), nn.SiLU())


class _Bottleneck(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(width, width, 3), _convolution(width, width, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the sum, or what was computed alone."""
        found: torch.Tensor = features + self.body(features)
        return found


class _C2f(nn.Module):
    """Halves of the channels, of which one goes through bottlenecks; all are put side by side."""

    def __init__(self, inputs: int, outputs: int, blocks: int = 0) -> None:
        super().__init__()
        half = outputs // 2
        self.first = _convolution(inputs, outputs)
        self.blocks = nn.ModuleList(_Bottleneck(half) for _ in range(blocks))
        self.last = _convolution((2 + blocks) * half, outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (batch, outputs, height, width)."""
        found = [*self.first(features).chunk(2, 1)]
        for block in self.blocks:
            found.append(block(found[-1]))
        result: torch.Tensor = self.last(torch.cat(found, 1))
        return result


class _Pyramid(nn.Module):
    """SPPF: three poolings in a row, side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = _convolution(width, width // 2), _convolution(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape."""
        found = [self.first(features)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        result: torch.Tensor = self.last(torch.cat(found, 1))
        return result


class _Body(nn.Module):
    """Two scales, of which the smaller is brought up to the larger."""

    def __init__(self, width: int) -> None:
        super().__init__()
        stem = [_convolution(3, width, 3, 2), _convolution(width, 2 * width, 3, 2), _C2f(2 * width, 2 * width, 1)]
        self.fine = nn.Sequential(*stem, _convolution(2 * width, 4 * width, 3, 2), _C2f(4 * width, 4 * width, 2))
        wide = 8 * width
        self.coarse = nn.Sequential(_convolution(4 * width, wide, 3, 2), _C2f(wide, wide, 1), _Pyramid(wide))
        self.up = _C2f(12 * width, 4 * width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the map of the finer scale, an eighth of the images' size."""
        fine = self.fine(images)
        raised = functional.interpolate(self.coarse(fine), scale_factor=2.0, mode="nearest")
        result: torch.Tensor = self.up(torch.cat([raised, fine], 1))
        return result
