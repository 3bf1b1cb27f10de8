"""Small networks that take arrays in the place of images, their arrays, and the configuration that builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SAMPLES = 96
WORDS, LENGTH = 50, 12
"""The number of known tokens, and of those in a text."""


class Sensors(nn.Module):
    """A network of one input: two channels of 16×16, such as no picture has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2)
        )
        self.head = nn.Linear(16, 4)

    def forward(self, field: torch.Tensor) -> torch.Tensor:
        """Return four numbers for each field."""
        found: torch.Tensor = self.head(self.body(field).relu().mean(dim=(2, 3)))
        return found


class Pair(nn.Module):
    """A network of two inputs: an image and a vector beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3)
        )
        self.vector = nn.Sequential(nn.Linear(5, 24), nn.ReLU())
        self.head = nn.Linear(24, 6)

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """Return six numbers for each pair."""
        found: torch.Tensor = self.head(self.image(image).relu().mean(dim=(2, 3)) + self.vector(vector))
        return found


class Siamese(nn.Module):
    """A network that compares two signals by one body, and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return both vectors, and their difference."""
        one, other = self.body(left), self.body(right)
        return {"one": one, "other": other, "apart": (one - other).abs()}


class Echo(nn.Module):
    """A network whose output has the name of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(5, 5)

    def forward(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return two vectors."""
        found = self.mix(vector)
        return {"vector": found, "twice": found * 2}


class Words(nn.Module):
    """A network of token ids and their weights, whose result is a row of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.mix = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return five logits for each text."""
        each = self.mix(self.words(tokens)) * weights.unsqueeze(2)
        found: torch.Tensor = self.head(each.mean(dim=1)) * 4
        return found


class Tokens(nn.Module):
    """The same network without weights: one input of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return five logits for each text."""
        found: torch.Tensor = self.head(self.words(tokens).relu().mean(dim=1)) * 4
        return found


def arrays_of(network: str, count: int = SAMPLES) -> dict[str, npt.NDArray[np.generic]]:
    """Return the arrays of a network's inputs by the name of its class."""
    rng = np.random.default_rng(7)

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.normal(size=(count, *shape)).astype(np.float32)

    tokens = rng.integers(0, WORDS, (count, LENGTH))
    found: dict[str, dict[str, npt.NDArray[np.generic]]] = {
        "Sensors": {"field": normal(2, 16, 16)},
        "Pair": {"vector": normal(5), "image": normal(3, 16, 16)},  # in another order than the network's
        "Siamese": {"left": normal(32), "right": normal(32)},
        "Words": {"tokens": tokens, "weights": rng.uniform(0.5, 1.5, (count, LENGTH)).astype(np.float32)},
        "Tokens": {"tokens": tokens.astype(np.int32)},
    }
    return found[network]


def configuration(network: str, file: Path, task: str = "tensors", precisions: str = "[fp32, fp16]") -> str:
    """Return the configuration of such a network, whose arrays lie in a file."""
    return f"""\
model: {{name: tiny, factory: "tests.support.inputs:{network}", weights: factory, task: {task}}}
precisions: {precisions}
profiles: [{{min: 1, opt: 2, max: 4}}]
workspaces: [16MiB]
benchmark: {{batches: [2], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}}
data: {{tensors: "{file}", calibration: 16, validation: 64}}
"""


def write_arrays(folder: Path, network: str) -> Path:
    """Write the arrays of a network into a folder, and return the file."""
    file = folder / "inputs.npz"
    np.savez(file, **arrays_of(network))  # type: ignore[arg-type]  # numpy's own types take no mapping of names
    return file
