"""Samples of a model's inputs, from the user's own arrays, where noise would be no input: token ids, or angles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model_artifacts.sessions.feeds.batches import filled, from_fields

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.sessions.feeds.batches import Batch


@dataclass(frozen=True)
class Samples:
    """A few samples of every input."""

    rows: npt.NDArray[Any]
    """(samples,), of a type with a field for each input, in the model's order."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return self.rows.dtype.names or ()

    def batch(self, size: int) -> Batch:
        """Return the first samples as a batch of this size, repeated where they are too few."""
        return filled(from_fields(self.rows[:size]), size)
