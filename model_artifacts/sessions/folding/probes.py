"""Inputs that a folded network is compared on. Importing this module imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from model_artifacts.sessions.arithmetic import torch_batch
from model_artifacts.sessions.feeds.samples import Samples

if TYPE_CHECKING:
    from model_artifacts.sessions.arithmetic import Result

_SEED = 0
_PROBES = 3
"""Samples that a folded network is compared on."""


def probes_of(inputs: tuple[int, int, int] | Samples) -> Result:
    """Return a few images of this shape, or the first samples."""
    if isinstance(inputs, Samples):
        return torch_batch(inputs.batch(_PROBES))
    generator = torch.Generator().manual_seed(_SEED)
    coarse = torch.randn(_PROBES, inputs[0], 8, 8, generator=generator)
    return interpolate(coarse, inputs[1:]) + 0.3 * torch.randn(_PROBES, *inputs, generator=generator)
