"""Settings of a model that many threads call."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

from model_artifacts.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from model_artifacts.serving.batching import Batching


class PicturesOn(str, Enum):
    """The place where `predict` and `outputs` decode and resize pictures."""

    CPU = "cpu"
    """Pillow on the processor."""
    GPU = "gpu"
    """nvJPEG and torch on the artifact's GPU, if its answers are proven there."""


@dataclass(frozen=True)
class Serving:
    """The way in which a model serves its callers."""

    contexts: int = 1
    """The most calls that run at once."""
    wait_seconds: float | None = None
    """The longest time in seconds that a call waits for others; None has no limit."""
    batching: Batching | None = None
    """The limits of joined batches; None joins none."""
    kernel_cache: Path | None = None
    """The folder of kernels that TensorRT-RTX compiles here; None takes the user's."""
    pictures: PicturesOn | Literal["cpu", "gpu"] = PicturesOn.CPU
    """The place where pictures are decoded."""

    def __post_init__(self) -> None:
        """Check the numbers and names.

        Raises:
            UsageError: one of them is none that makes sense.
        """
        if isinstance(self.contexts, bool) or not isinstance(self.contexts, int) or self.contexts < 1:
            raise UsageError(
                "`load` needs a number of contexts",
                expected="`contexts`: a whole number above 0",
                got=repr(self.contexts),
                fix="name the most calls that are to run at once, or leave it out for 1",
            )
        if not isinstance(self.pictures, str) or self.pictures not in {item.value for item in PicturesOn}:
            raise UsageError(
                "`load` needs a place to decode pictures",
                expected="`pictures`: cpu or gpu",
                got=repr(self.pictures),
                fix="name one of them, or leave it out for cpu",
            )
        wait = self.wait_seconds
        is_number = isinstance(wait, (int, float)) and not isinstance(wait, bool)
        if wait is not None and not (is_number and 0 <= wait < float("inf")):
            raise UsageError(
                "`load` needs a time to wait",
                expected="`wait_seconds`: a number of seconds, from 0",
                got=repr(wait),
                fix="name the longest time that a call may wait, or leave it out for no limit",
            )


PLAIN = Serving()
"""One context, whose callers take turns."""
