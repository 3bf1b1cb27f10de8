"""Text and types that the tests of the configuration share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.records import Host

    Files = dict[Path, bytes]


MATRIX = "profiles: [1, {min: 1, opt: 8, max: 32}]\nworkspaces: [1GiB]\n"
"""The keys that must be there; what is appended begins in line 3."""

DATA_KEYS = "images, tensors, axes, calibration, validation, classes, masks, labels"
"""The keys of `data`, as messages list them."""
KEYS = (
    "artifacts, model, preprocessing, data, device, precisions, profiles, workspaces, io, rewrites, quantization, "
    "leave_unquantized, tensorrt, torch_tensorrt, gates, validation, benchmark, load, release, cache, executor, farm, "
    "models"
)
PREPROCESSING = "preprocessing: {{resize: {}, crop: {}, interpolation: {}, mean: {}, std: {}}}\n"


class Problems(Protocol):
    """Returns the problems of a configuration, each without the file's name in front."""

    def __call__(self, text: str, host: Host | None = None) -> list[str]:
        """Load it."""


FARM = "executor: ray\nfarm: {{targets: [{}]}}\n"
ON_H100 = "{accelerator: H100, flavour: tensorrt}"


def rewrite(folder: Path, old: str, new: str) -> str:
    """Change the configuration; return its path."""
    config = folder / "pipeline.yaml"
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    return str(config)
