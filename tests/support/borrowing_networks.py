"""Networks that call compiled functions, or layers that are no part of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.support.odd_networks import Plain


def _plus_one(logits: torch.Tensor) -> torch.Tensor:
    return logits + 1


class CompiledHelper(Plain):
    """Calls a function that torch.compile made."""

    helper = staticmethod(torch.compile(_plus_one, backend="eager"))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.helper(super().forward(image))
        return logits


class CompiledMethod(Plain):
    """Calls its own method, compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.quick = torch.compile(self.features, backend="eager")

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.head(self.quick(image))
        return logits


class DisabledHelper(Plain):
    """Calls a function that torch.compile is told to leave alone, which is a plain one."""

    helper = staticmethod(torch.compiler.disable(_plus_one))  # type: ignore[no-untyped-call]  # torch's own

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.helper(super().forward(image))
        return logits


class ScriptedHelper(Plain):
    """Calls a function in TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        trace: Any = torch.jit.trace  # untyped
        self.helpers = [trace(_plus_one, torch.zeros(2, 10))]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.helpers[0](super().forward(image))
        return logits


class ScriptedLayer(Plain):
    """Calls a TorchScript module that it keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        trace: Any = torch.jit.trace  # untyped
        self.layers = [trace(nn.Softsign(), torch.zeros(2, 10))]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.layers[0](super().forward(image))
        return logits


class Borrowing(Plain):
    """Computes with a layer that it keeps in a list, where no state dict finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(10, 10)]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (batch, 10)."""
        logits: torch.Tensor = self.layers[0](super().forward(image))
        return logits
