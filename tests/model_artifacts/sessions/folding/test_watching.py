"""Batch-norms folded by a run, in networks that torch.fx cannot trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional

from model_artifacts.sessions.folding.watching import count_batch_norms
from model_artifacts.sessions.torch_model import fold_batch_norms

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPE = (3, 16, 16)


class Untraced(nn.Module):
    """Branches on the height of the image, which torch.fx cannot trace, around convolutions with batch-norms."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.layers = nn.Sequential(*layers)
        self.head: nn.Module = nn.Linear(8, 5)

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Return (batch, 8, …)."""
        result: torch.Tensor = self.layers(value)
        return result

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 5)."""
        if image.shape[2] < 4:
            raise ValueError("too small")
        result: torch.Tensor = self.head(self.body(functional.relu(self.stem(image))).mean((2, 3)))
        return result


class ReadTwice(Untraced):
    """Adds a convolution's result to its batch-norm's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Read the convolution's result a second time."""
        found = self.conv(value)
        result: torch.Tensor = self.norm(found) + found
        return result


class CalledTwice(ReadTwice):
    """Calls a convolution with its batch-norm twice."""

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Call both in turn."""
        result: torch.Tensor = self.norm(self.conv(self.norm(self.conv(value))))
        return result


class ChangedInPlace(ReadTwice):
    """Changes the convolution's result in front of its batch-norm."""

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Call a ReLU in place between them."""
        result: torch.Tensor = self.norm(self.conv(value).relu_())
        return result


class WayByValue(ReadTwice):
    """Passes by the convolution for dark images."""

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Take the convolution for bright images alone."""
        result: torch.Tensor = self.norm(self.conv(value) if float(value.sum()) > 1 else value)
        return result


class WayByBatch(ReadTwice):
    """Passes by the convolution for a single image."""

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Take the convolution for several images alone."""
        result: torch.Tensor = self.norm(self.conv(value) if len(value) > 1 else value)
        return result


class Remembers(ReadTwice):
    """Keeps a grid of its first call, as detectors keep their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.grid: torch.Tensor | None = None

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Add the grid."""
        if self.grid is None or self.grid.shape != value.shape[2:]:
            self.grid = torch.ones(value.shape[2:], dtype=value.dtype)
        result: torch.Tensor = self.norm(self.conv(value)) + self.grid
        return result


class Hooked(ReadTwice):
    """Has a hook that doubles the convolution's result."""

    def __init__(self) -> None:
        super().__init__()
        self.conv.register_forward_hook(lambda _module, _inputs, result: result * 2)

    def body(self, value: torch.Tensor) -> torch.Tensor:
        """Call both in turn."""
        result: torch.Tensor = self.norm(self.conv(value))
        return result


class Standardised(nn.Conv2d):
    """Standardises its weight in every call, so that a factor of the weight is lost."""

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        """Convolve with the standardised weight."""
        return functional.conv2d(value, self.weight / self.weight.std(), self.bias)


class Flat(Untraced):
    """Has a batch-norm behind a linear layer."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.head = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 5))


def prepared(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a network with statistics in its batch-norms that a fold has to move."""
    torch.manual_seed(1)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1, 2)
            nn.init.uniform_(module.bias, -1, 2)
            if module.running_mean is not None and module.running_var is not None:
                module.running_mean.uniform_(-1, 2)
                module.running_var.uniform_(0.5, 3)
    return model.eval()


def strided() -> nn.Module:
    """Return a depthwise, a grouped and a dilated convolution with padding by reflection."""
    return Untraced(
        nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.BatchNorm2d(8),
        nn.Hardswish(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2, padding_mode="reflect", bias=False),
        nn.BatchNorm2d(8),
    )


@pytest.mark.parametrize(
    ("make", "folded", "left"),
    [
        (Untraced, 1, 0),
        (strided, 3, 0),
        (lambda: Untraced(nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)), 2, 0),
        (Flat, 2, 0),
        (lambda: Untraced(nn.ConvTranspose2d(8, 8, 2, 2, groups=2), nn.BatchNorm2d(8)), 1, 1),
        (lambda: Untraced(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1)), 1, 1),
        (lambda: Untraced(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)), 1, 1),
        (lambda: Untraced(Standardised(8, 8, 1), nn.BatchNorm2d(8)), 1, 1),
        (ReadTwice, 1, 1),
        (CalledTwice, 1, 1),
        (ChangedInPlace, 1, 1),
        (Hooked, 1, 1),
        (WayByValue, 0, 2),
        (WayByBatch, 0, 2),
    ],
    ids=[
        "conv",
        "strided",
        "transposed",
        "linear",
        "grouped",
        "before",
        "own statistics",
        "standardised",
        "read twice",
        "called twice",
        "in place",
        "hooked",
        "way by value",
        "way by batch",
    ],
)
def test_just_what_can_be_folded_is_folded(make: Callable[[], nn.Module], folded: int, left: int) -> None:
    """Logits stay, the original keeps its batch-norms, and others than those in front of it are left."""
    model = prepared(make)
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(4, *SHAPE, generator=generator)
    with torch.no_grad():
        before = model(images.clone())

        found = fold_batch_norms(model, SHAPE)

        assert (found.batch_norms, count_batch_norms(found.model)) == (folded, left)
        torch.testing.assert_close(found.model(images.clone()), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(images.clone()), before)
    assert count_batch_norms(model) == folded + left


def test_nothing_is_kept_of_the_runs() -> None:
    """A network that keeps tensors of its first call has kept none, so that a cast finds it as it was."""
    folded = fold_batch_norms(prepared(Remembers), SHAPE)

    assert folded.batch_norms == 2
    assert getattr(folded.model, "grid", "none") is None
