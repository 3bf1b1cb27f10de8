"""Stand-ins for the networks of timm and transformers, with the attributes that the pipeline reads, and their factory.

They hold nothing else: timm and transformers are no dependencies. The settings are those of real models.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from model_artifacts.records import Interpolation, Preprocessing

IMAGENET = Preprocessing(
    resize=256, crop=224, interpolation=Interpolation.BILINEAR, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""torchvision's preprocessing for IMAGENET1K_V1."""

LEVIT = {
    "input_size": (3, 32, 32),
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "num_classes": 1000,
}
"""timm's `pretrained_cfg` of levit_128s, for small images."""

VIT = {
    "size": {"height": 32, "width": 32},
    "do_resize": True,
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "image_processor_type": "ViTImageProcessor",
}
"""The settings of transformers' ViTImageProcessor, as `to_dict` gives them, for small images."""


class Pooled(nn.Module):
    """A classifier of 4x4 means, with a configuration of timm's where one is given."""

    def __init__(self, classes: int, cfg: object = None) -> None:
        super().__init__()
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(48, classes)
        self.pretrained_cfg = cfg

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, classes)."""
        logits: torch.Tensor = self.head(self.pool(image).flatten(1))
        return logits


def create_model(model_name: str, *, num_classes: int = 1000, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Make a network as timm does; trained weights are all ones, and a head of another size is drawn at random."""
    names = tuple(f"{model_name}-{number}" for number in range(3))
    model = Pooled(num_classes, SimpleNamespace(**LEVIT | {"label_names": names}), **kwargs)
    if pretrained and num_classes == 3:
        model.load_state_dict({"head.weight": torch.arange(144.0).reshape(3, 48) / 144, "head.bias": torch.ones(3)})
    return model


def half_trained() -> nn.Module:
    """Make a network of a trained part and a head that is drawn at random."""
    trained = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(trained.weight)
    model = nn.Sequential(trained, Pooled(3))
    model.pretrained_cfg = LEVIT  # type: ignore[assignment]  # torch types every attribute as a tensor or a module
    return model


def sized(sides: list[int], options: dict[str, int]) -> nn.Module:
    """Make a network from a list and a mapping, and change both."""
    sides.append(0)
    return Pooled(options.pop("classes"))


def needs(classes: int, *, width: int = 1) -> nn.Module:
    """Make a network from a number that has no default."""
    return nn.Sequential(Pooled(classes), nn.Identity() if width else nn.ReLU())


def by_place(classes: int, /) -> nn.Module:
    """Make a network from a number that has no name."""
    return Pooled(classes)


def plain() -> nn.Module:
    """Make a network of three classes that says nothing of its preprocessing."""
    return Pooled(3)


@dataclass
class Output:
    """What transformers' classifiers return, as a dataclass alone."""

    logits: torch.Tensor
    hidden_states: torch.Tensor | None = None


class HubClassifier(nn.Module):
    """A classifier with the attributes of transformers' ones."""

    def __init__(self, form: str, names: tuple[str, ...] = ("cat", "dog", "fox"), origin: str = "") -> None:
        super().__init__()
        self.body, self.form = Pooled(len(names)), form
        self.config = SimpleNamespace(id2label=dict(enumerate(names)), _name_or_path=origin, _commit_hash=None)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, form: str = "mapping") -> HubClassifier:
        """Make the network of a folder."""
        return cls(form, origin=pretrained_model_name_or_path)

    def forward(self, image: torch.Tensor) -> object:
        """Return the logits, alone or with features, in a mapping or a dataclass."""
        logits = self.body(image)
        features = image.mean((2, 3))
        outputs = {
            "mapping": {"loss": None, "logits": logits},
            "dataclass": Output(logits),
            "features": {"logits": logits, "pooled": features},
            "other name": {"scores": logits},
            "tuple": (logits,),
            "integers": {"logits": logits.argmax(1, keepdim=True)},
        }
        return outputs[self.form]


class Offline:
    """A factory of a model that is neither cached nor reachable."""

    @staticmethod
    def create() -> nn.Module:
        """Fail as huggingface_hub does without a network."""
        raise ConnectionError("[Errno -2] Name or service not known")
