"""Small networks of texts of any length, or of one length only, and the configuration that builds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

WORDS, LONGEST, SAMPLES = 50, 24, 96
"""The number of known tokens, the places of a text, and the texts."""
LENGTHS = "{min: 4, opt: 12, max: 24}"


class Texts(nn.Module):
    """A network of token ids with a mask, positions and attention: a vector for each text of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, 32), nn.Embedding(LONGEST, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.mix = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 16)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return vectors (batch, 16) of tokens and a mask (batch, sequence) of zeros and ones."""
        vectors: torch.Tensor = self.head(self.mixed(tokens, mask).mean(1) / self.share(mask)) * 4
        return vectors

    def mixed(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the features of each place (batch, sequence, 32), zero where the mask is."""
        found = self.words(tokens) + self.places(self.numbers(tokens.shape[1]))
        scores = self.query(found) @ self.key(found).transpose(1, 2) / 32**0.5
        shares = torch.softmax(scores - (1 - mask).unsqueeze(1) * 1e4, dim=2)
        features: torch.Tensor = self.mix(found + shares @ self.value(found)) * mask.unsqueeze(2)
        return features

    def numbers(self, length: int) -> torch.Tensor:
        """Return the positions of a text's tokens, on the network's device."""
        return torch.arange(length, device=self.words.weight.device)

    def share(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the share of places with a token: (batch, 1)."""
        return mask.mean(1, keepdim=True)


class FromEnd(Texts):
    """A wrong twin: the last positions of its table. It is right for the longest texts."""

    def numbers(self, length: int) -> torch.Tensor:
        """Return the positions of a text that ends where the table ends."""
        return torch.arange(length) + LONGEST - length


class TracedLength(Texts):
    """A wrong twin: a mean that divides by the length of a trace. It is right for the longest texts."""

    def share(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the sum of the mask by that length."""
        return mask.sum(1, keepdim=True) / LONGEST


class OneOther(Texts):
    """A wrong one at one length: it counts its places backwards there."""

    def numbers(self, length: int) -> torch.Tensor:
        """Return the positions of a text's tokens."""
        return torch.arange(length) if length != LONGEST - 4 else torch.arange(length).flip(0)


class Windows(Texts):
    """A network of windows that pads a text to whole ones."""

    def share(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the share of places with a token, as the mean of windows of eight places."""
        windows = (mask.shape[1] + 7) // 8
        filled = nn.functional.pad(mask, (0, windows * 8 - mask.shape[1])).view(mask.shape[0], windows, 8)
        return filled.sum((1, 2)).unsqueeze(1) / mask.shape[1]


class Counted(nn.Module):
    """A network that divides by its length as a number, which a trace keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 32), nn.Linear(32, 16)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return vectors (batch, 16)."""
        length = torch.tensor(float(int(tokens.shape[1])))
        vectors: torch.Tensor = self.head((self.words(tokens) * mask.unsqueeze(2)).sum(1) / length)
        return vectors


class Flat(nn.Module):
    """A network whose last layer has weights for each place of the longest text."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(8 * LONGEST, 16)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return vectors (batch, 16)."""
        vectors: torch.Tensor = self.head((self.words(tokens) * mask.unsqueeze(2)).flatten(1))
        return vectors


class Wide(Texts):
    """A network whose vectors have an entry for each token, so that texts of two lengths have no common space."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return vectors (batch, sequence)."""
        return self.mixed(tokens, mask).mean(2)


class Tags(Texts):
    """A network that tags each token: its output follows the text."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, sequence, 16)."""
        logits: torch.Tensor = self.head(self.mixed(tokens, mask)) * 4
        return logits


class TagsFromEnd(Tags, FromEnd):
    """A wrong twin: as many tags as tokens at every length, and the right ones for the longest texts alone."""


def arrays_of(count: int = SAMPLES, longest: int = LONGEST) -> dict[str, npt.NDArray[np.generic]]:
    """Return seeded texts of 3 tokens or more, and their masks, padded at the end."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(3, longest + 1, (count, 1))
    mask = np.arange(longest) < lengths
    tokens = rng.integers(1, WORDS, (count, longest)) * mask
    return {"tokens": tokens, "mask": mask.astype(np.float32)}


def write_texts(folder: Path) -> Path:
    """Write texts into a folder, and return the file."""
    file = folder / "texts.npz"
    np.savez(file, **arrays_of())  # type: ignore[arg-type]  # numpy's own types take no mapping of names
    return file


def configuration(
    file: Path,
    network: str = "Texts",
    task: str = "embedding",
    sequence: str = LENGTHS,
    axes: str = "{tokens: [sequence], mask: [sequence]}",
) -> str:
    """Return the configuration of such a network, whose texts lie in a file."""
    return f"""\
model: {{name: tiny, factory: "tests.support.texts:{network}", weights: factory, task: {task}}}
precisions: [fp32, fp16]
profiles: [1, {{batch: {{min: 1, opt: 2, max: 4}}, sequence: {sequence}}}]
workspaces: [16MiB]
benchmark: {{batches: [1], restarts: 1, warmup_runs: 1, warmup_seconds: 0.1, rounds: 1, runs_per_round: 2}}
data: {{tensors: "{file}", axes: {axes}, calibration: 16, validation: 64}}
"""


class Tabled(Texts):
    """A network that keeps a table of positions for the length that it has run at last, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor | None = None

    def numbers(self, length: int) -> torch.Tensor:
        """Return the positions of a text's tokens, of a table that is made again for another length."""
        if self.table is None or self.table.shape[0] != length:
            self.table = super().numbers(length)
        return self.table


class Growing(Tabled):
    """A network whose table grows with the longest text that it has run at."""

    def numbers(self, length: int) -> torch.Tensor:
        """Return the positions of a text's tokens."""
        if self.table is None or self.table.shape[0] < length:
            self.table = Texts.numbers(self, length)
        return self.table[:length]
