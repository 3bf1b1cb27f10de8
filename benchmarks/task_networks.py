"""Networks and images for `task_gates.py`: masks, labels, numbers and vectors, made of scikit-learn's digits."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import task_detectors
import torch
from networks import BATCH, NETWORKS, UNet, coloured_digits, parts
from torch import nn
from torch.nn import functional

from model_artifacts.records import Task
from model_artifacts.sessions.torch_model import fold_batch_norms

if TYPE_CHECKING:
    from collections.abc import Callable


_SCENES = 1800
"""Images of shapes, about as many as there are digits."""
EPOCHS, INK = 8, 0.3
"""Epochs of a training, and the share of full ink from which a pixel belongs to its digit."""


class Flat(nn.Module):
    """A network whose output of any shape becomes one row a sample."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return (samples, values)."""
        result: torch.Tensor = self.body(images)
        return result.flatten(1)


class Labelled(NamedTuple):
    """Images of a task with their labels."""

    task: Task
    images: torch.Tensor
    truth: torch.Tensor
    shape: tuple[int, ...]
    """The shape of one output."""
    tolerance: tuple[float, ...] = ()


class Maps(UNet):
    """The U-Net of `networks.py` without its mean: a map for the ground and one for each digit."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 11, 1))
        self.whole = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return maps in the size of the images."""
        second = self.second(self.first(images))
        joined = torch.cat([self.up(self.third(second)), second], dim=1)
        result: torch.Tensor = functional.interpolate(self.last(joined), size=images.shape[2:], mode="nearest")
        return result


def _dilated() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs, dilation in ((3, 24, 1), (24, 24, 2), (24, 24, 4), (24, 24, 8), (24, 24, 1)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(24, 11, 1))


def _rows(name: str, length: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = NETWORKS[name]()
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        replacement = nn.Linear(last.in_features, length)
        if name == "vit":
            model.head = replacement
        elif isinstance(model, nn.Sequential):
            model[-1] = replacement
        return model

    return make


FAMILIES: dict[Task, dict[str, Callable[[], nn.Module]]] = {
    Task.SEGMENTATION: {"unet": Maps, "dilated": _dilated},
    Task.MULTILABEL: {name: _rows(name, 10) for name in ("resnet", "mobilenet", "vit")},
    Task.REGRESSION: {name: _rows(name, 2) for name in ("resnet", "mobilenet", "vit")},
    Task.EMBEDDING: {name: _rows(name, 32) for name in ("resnet", "mobilenet", "vit")},
    Task.DETECTION: {"plain": task_detectors.plain, "silu": task_detectors.silu},
}
"""The networks of each task."""


def labelled(task: Task, seed: int) -> Labelled:
    """Return the digits with the labels of a task.

    A mask has a digit's class where it has ink. Several labels are those of four digits in one image, each there with a
    probability of 0.6. Numbers are their sum and the ink in per cent. Vectors have the digits' classes. A detector's
    images have shapes in place of digits.
    """
    if task is Task.DETECTION:
        return Labelled(task, *task_detectors.scenes(_SCENES, seed), task_detectors.SHAPE)
    digits, classes = coloured_digits(seed)
    if task is Task.EMBEDDING:
        return Labelled(task, digits, classes, (32,))
    if task is Task.SEGMENTATION:
        brightest = (digits * 0.3 + 0.4).amax(dim=1)
        ink = brightest > INK * brightest.amax(dim=(1, 2), keepdim=True)
        return Labelled(task, digits, torch.where(ink, classes[:, None, None] + 1, 0), (11, 32, 32))
    random = np.random.default_rng(seed)
    count, small = len(digits), functional.avg_pool2d(digits, 2)
    chosen = torch.from_numpy(random.integers(count, size=(count, 4)))
    there = torch.from_numpy(random.random((count, 4)) < 0.6)  # noqa: PLR2004 - as the docstring says
    empty = digits.min()
    quarters = torch.where(there[:, :, None, None, None], small[chosen], empty)
    rows = [torch.cat([quarters[:, at], quarters[:, at + 1]], dim=3) for at in (0, 2)]
    images = torch.cat(rows, dim=2)
    if task is Task.MULTILABEL:
        hot = functional.one_hot(classes[chosen], 10) * there[:, :, None]
        return Labelled(task, images, hot.amax(dim=1), (10,))
    total = (classes[chosen] * there).sum(dim=1).float()
    ink = 100 * (images.amax(dim=1) > 0).float().mean(dim=(1, 2))
    return Labelled(task, images, torch.stack([total, ink], dim=1), (2,), (4.0, 2.0))


def _loss(data: Labelled, head: nn.Module, got: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    if data.task is Task.DETECTION:
        return task_detectors.loss(got, truth)
    if data.task is Task.MULTILABEL:
        return functional.binary_cross_entropy_with_logits(got, truth.float())
    if data.task is Task.REGRESSION:
        return functional.smooth_l1_loss(got / torch.tensor(data.tolerance), truth / torch.tensor(data.tolerance))
    if data.task is Task.EMBEDDING:
        return functional.cross_entropy(10 * functional.normalize(got) @ functional.normalize(head.weight).t(), truth)  # type: ignore[arg-type]  # of a Linear
    return functional.cross_entropy(got, truth)


def trained(make: Callable[[], nn.Module], data: Labelled, train: slice, seed: int) -> nn.Module:
    """Train a network, and return it with its batch-norms folded and its output as one row a sample."""
    torch.manual_seed(seed)
    model, head = make().train(), nn.Linear(32, 10)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=2e-3)
    images, truth = data.images[train], data.truth[train]
    for _ in range(2 * EPOCHS if data.task is Task.DETECTION else EPOCHS):
        for part in parts(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            _loss(data, head, model(images[part]), truth[part]).backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
    _, channels, height, width = images.shape
    return Flat(fold_batch_norms(model.eval(), (channels, height, width)).model.eval()).eval()
