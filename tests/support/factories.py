"""Tiny models for each kind of trouble with a model, and the configuration that takes one of them."""

from __future__ import annotations

import torch
from torch import nn

from model_artifacts.sessions.torch_model import in_layout
from tests.support.tiny_model import make

NOT_CALLABLE = 3


def configuration(factory: str = "tests.support.tiny_model:make", *, weights: str = "factory", more: str = "") -> str:
    """Return a small configuration of 32x32 images; `more` holds further top-level keys."""
    return f"""\
model: {{name: tiny, factory: "{factory}", weights: "{weights}"}}
preprocessing: {{resize: 32, crop: 32, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
profiles: [1]
workspaces: [16MiB]
benchmark: {{batches: [1]}}
{more or "data: {calibration: 4, validation: 6}"}
"""


def fails() -> nn.Module:
    """Fail, as a factory that misses a file does."""
    raise FileNotFoundError("backbone.bin")


def number() -> int:
    """Return something else than a module."""
    return 7


def needs_an_argument(width: int) -> nn.Module:
    """Return a network that nobody can make without arguments."""
    return nn.Linear(width, width)


def three_classes() -> nn.Module:
    """Return a network with three logits."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))


def blue_first() -> nn.Module:
    """Return a network that tells red, green and blue images apart, and takes blue as its first channel."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        next(model.parameters()).copy_(torch.eye(3).flip(0))
    return model


def feature_map() -> nn.Module:
    """Return a network that gives a feature map, and has no linear layer."""
    return nn.Conv2d(3, 10, 3)


def greyscale() -> nn.Module:
    """Return a network for images of one channel."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def in_channels_last() -> nn.Module:
    """Return the tiny network with its weights in that layout."""
    return in_layout(make(), torch.channels_last)


def not_finite() -> nn.Module:
    """Return a network whose logits are NaN."""
    model = three_classes()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


class TwoOutputs(nn.Module):
    """Gives a tuple."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the image twice."""
        return image, image


class Logits(nn.Module):
    """A linear layer on the flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(image.flatten(1))
        return logits


class DataDependent(Logits):
    """Takes another way where the image is dark: torch.export refuses."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(image.flatten(1))
        return logits if image.sum() > 0 else -logits


class OtherCodeForTwo(Logits):
    """Goes another way with a batch of two, which is the batch that an export takes."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(image.reshape(2, -1) if image.shape[0] == 2 else image.flatten(1))
        return logits


class UnusedHead(nn.Module):
    """Its only linear layer takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 3)
        self.head = nn.Linear(10, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.conv(image).mean((2, 3))
        return logits


class Tied(nn.Module):
    """Has one convolution under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first
        self.head = nn.Linear(3, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(self.second(self.first(image).relu()).mean((2, 3)))
        return logits


class SharedConvolution(nn.Module):
    """Calls one convolution twice, each time with a batch-norm of its own behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        torch.nn.init.constant_(self.first.weight, 0.5)
        torch.nn.init.constant_(self.second.weight, 2.0)
        self.head = nn.Linear(3, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        features = self.second(self.conv(self.first(self.conv(image)).relu())).mean((2, 3))
        logits: torch.Tensor = self.head(features)
        return logits


def recurrent() -> nn.Module:
    """Return a network that calls one block of convolution and batch-norm twice."""
    norm = nn.BatchNorm2d(3)
    torch.nn.init.constant_(norm.weight, 0.5)
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, bias=False), norm, nn.ReLU())
    return nn.Sequential(block, block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))


class Branches(nn.Module):
    """Goes another way where the image is dark."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 3072)."""
        return image.flatten(1) if image.sum() > 0 else -image.flatten(1)


def one_logit() -> nn.Module:
    """Return a binary classifier with one logit."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 1))
