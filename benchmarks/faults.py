"""Faults of builds for `gates.py`, each in several sizes of ascending harm."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from networks import BATCH, Residual
from torch import nn
from torch.nn import functional

from model_artifacts.records import Precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
    Change = Callable[[nn.Module, torch.Tensor, float], tuple[nn.Module, torch.Tensor]]
    """A copy of the network, the images and a size → the faulty network, and its images."""


def _products(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def _middle(model: nn.Module) -> nn.Conv2d | nn.Linear:
    found = _products(model)
    return found[len(found) // 2]


def _one_weight(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    flat = _middle(model).weight.data.view(-1)
    flat[flat.abs().argmax()] *= size
    return model, images


def _one_channel(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    weight = _middle(model).weight.data
    weight[weight.flatten(1).norm(dim=1).argmax()] *= size
    return model, images


def _weights_off(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for module in _products(model):
        noise = torch.randn(module.weight.shape, generator=generator)
        module.weight.data += size * module.weight.data.std() * noise
    return model, images


def _biases_lost(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    for module in _products(model)[: int(size)]:
        if module.bias is not None:
            module.bias.data.zero_()
    return model, images


def _one_bias(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    for module in _products(model):
        if module.bias is not None:
            module.bias.data[module.bias.data.abs().argmax()] *= 1 - size
            break
    return model, images


def _coarse_weights(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    for module in _products(model):
        step = module.weight.data.abs().max() / 2 ** (size - 1)
        module.weight.data = (module.weight.data / step).round() * step
    return model, images


def _saturated(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    def clip(_module: nn.Module, _inputs: object, result: torch.Tensor) -> torch.Tensor:
        return result.clamp(-size * float(result.abs().max()), size * float(result.abs().max()))

    _middle(model).register_forward_hook(clip)
    return model, images


def _bad_tile(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    def spoil(_module: nn.Module, _inputs: object, result: torch.Tensor) -> torch.Tensor:
        result = result.clone()
        middle = result.shape[-1] // 2
        result[:, :, middle : middle + 4, middle : middle + 4] *= 1 - size
        return result

    next(module for module in model.modules() if isinstance(module, nn.Conv2d)).register_forward_hook(spoil)
    return model, images


def _skip_dropped(model: nn.Module, images: torch.Tensor, size: float) -> tuple[nn.Module, torch.Tensor]:
    for module in model.modules():
        if isinstance(module, Residual):
            module.skip.register_forward_hook(lambda _module, _inputs, result: result * (1 - size))
            break
    return model, images


def _images(change: Callable[[torch.Tensor, float], torch.Tensor]) -> Change:
    return lambda model, images, size: (model, change(images, size))


def _cut(images: torch.Tensor, size: float) -> torch.Tensor:
    return images.clamp(min=float(images.min()) + size)


def _swapped(images: torch.Tensor, size: float) -> torch.Tensor:
    return images + size * (images.flip(1) - images)


def _blurred(images: torch.Tensor, size: float) -> torch.Tensor:
    small = functional.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    return images + size * (functional.interpolate(small, scale_factor=2.0, mode="bilinear") - images)


class Fault(NamedTuple):
    """A fault, with its sizes in ascending harm."""

    what: str
    sizes: tuple[float, ...]
    change: Change
    precision: Precision = Precision.FP16
    of: type[nn.Module] | None = None
    """The kind of layer that a network must have; None for any network."""


FAULTS = (
    Fault("the largest weight of a layer × size", (1.01, 1.1, 1.5, 2, 4, 8), _one_weight),
    Fault("a channel × size", (1.01, 1.05, 1.1, 1.5, 2, 4), _one_channel),
    Fault("a channel, in bf16", (1.01, 1.1, 1.5, 2, 4, 8), _one_channel, Precision.BF16),
    Fault("a channel, in FP32", (1.00001, 1.0001, 1.001, 1.01), _one_channel, Precision.FP32),
    Fault("other weights, by size standard deviations", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), _weights_off),
    Fault("other weights, in TF32", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), _weights_off, Precision.TF32),
    Fault("one bias less by the share size", (0.01, 0.1, 0.5, 1), _one_bias),
    Fault("the biases of the first layers lost", (1, 2, 3), _biases_lost),
    Fault("weights of 2^size steps", (11, 10, 9, 8, 7, 6), _coarse_weights),
    Fault("activations cut at the share size", (0.95, 0.8, 0.6, 0.4, 0.2), _saturated),
    Fault("a tile of 4 × 4 less by the share size", (0.01, 0.1, 0.5, 1), _bad_tile),
    Fault("a skip connection less by the share size", (0.003, 0.01, 0.1, 0.5, 1), _skip_dropped, of=Residual),
    Fault("mean of the images off by size", (0.001, 0.003, 0.01, 0.03, 0.1), _images(torch.add)),
    Fault("their deviation off by the factor size", (1.001, 1.003, 1.01, 1.03, 1.1), _images(torch.mul)),
    Fault("channels swapped, to the share size", (0.01, 0.1, 0.5, 1), _images(_swapped)),
    Fault("images shifted by size pixels", (1, 2, 4), _images(lambda images, size: images.roll(int(size), 3))),
    Fault("another resize, to the share size", (0.01, 0.1, 0.5, 1), _images(_blurred)),
    Fault(
        "dark values cut, by size",
        (0.01, 0.05, 0.2),
        _images(lambda images, size: images.clamp(min=images.min() + size)),
    ),
)


def _rows_mixed(logits: Logits, size: float) -> Logits:
    mixed = logits.copy()
    for start in range(0, len(logits), BATCH):
        late = slice(start + 33, start + BATCH)
        mixed[late] += size * (np.roll(logits[late], 1, axis=0) - logits[late])
    return mixed


def _one_row(logits: Logits, size: float) -> Logits:
    spoilt = logits.copy()
    spoilt[7] *= 1 - size
    return spoilt


def _classes_swapped(logits: Logits, size: float) -> Logits:
    swapped = logits.copy()
    swapped[:, :2] += size * (logits[:, 1::-1] - logits[:, :2])
    return swapped


OF_LOGITS: tuple[tuple[str, tuple[float, ...], Callable[[Logits, float], Logits]], ...] = (
    ("rows mixed from batch 33 on, to the share size", (0.003, 0.01, 0.03, 0.1, 1), _rows_mixed),
    ("one sample in 320 less by the share size", (0.01, 0.1, 0.3, 1), _one_row),
    ("two classes swapped, to the share size", (0.003, 0.01, 0.1, 1), _classes_swapped),
)
WRONG_TYPES = (
    ("FP32 called fp16", Precision.FP16, None),
    ("FP32 called bf16", Precision.BF16, None),
    ("fp16 called bf16", Precision.BF16, Precision.FP16),
    ("bf16 called fp16", Precision.FP16, Precision.BF16),
    ("TF32 called FP32", Precision.FP32, Precision.TF32),
    ("fp16 called TF32", Precision.TF32, Precision.FP16),
)
