"""A caller's requirements for an artifact."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model_artifacts.errors import UsageError
from model_artifacts.records import PLAIN, ImageInput, Precision

_OUTPUT = re.compile(r"logits|probabilities|top[1-9]\d*")


@dataclass(frozen=True)
class Requirements:
    """A caller's requirements for an artifact; None requires nothing."""

    batch: int | None = None
    """A batch size that the artifact takes. The default is 1 or, for throughput, any."""
    max_latency_ms: float | None = None
    """The bound on the median latency at `timed_batch`, as measured on this type of GPU or processor."""
    throughput: bool = False
    """Prefer images per second to milliseconds per batch."""
    min_top1: float | None = None
    """The smallest share of labelled validation images with a correct top-1 class."""
    precision: Precision | str | None = None
    """The precision, or its name, such as `fp16`."""
    max_memory_bytes: int | None = None
    """The bound on the GPU's memory."""
    input: ImageInput | str = ImageInput.FLOAT32
    """The images that the caller feeds: `float32`, `float16` or `uint8`. Other artifacts are never taken."""
    output: str = PLAIN.answer
    """The answer that the caller reads: `logits`, which stands for whatever the network gives, `probabilities`, or the
    most likely classes, such as `top5`. Other artifacts are never taken."""

    def __post_init__(self) -> None:
        """Refuse requirements that nothing can mean.

        Raises:
            UsageError: the precision is unknown, or a number is out of its range; the message has the right ones.
        """
        names = [precision.value for precision in Precision]
        if self.precision is not None and self.precision not in names:
            raise UsageError("unknown precision", expected=", ".join(names), got=repr(self.precision))
        inputs = [kind.value for kind in ImageInput]
        if self.input not in inputs:
            raise UsageError("unknown input", expected=", ".join(inputs), got=repr(self.input))
        if not _OUTPUT.fullmatch(self.output):
            raise UsageError("unknown output", expected="logits, probabilities, or such as top5", got=repr(self.output))
        if self.batch is not None and self.batch < 1:
            raise UsageError("a batch has images", expected="`batch` of 1 or more", got=repr(self.batch))
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            expected = "`min_top1` from 0 to 1: 0.75 is 75 %"
            raise UsageError("the required accuracy is no share", expected=expected, got=repr(self.min_top1))
        for name in ("max_latency_ms", "max_memory_bytes"):
            bound = getattr(self, name)
            if bound is not None and not bound > 0:
                raise UsageError("nothing meets this bound", expected=f"`{name}` above 0", got=repr(bound))

    @property
    def timed_batch(self) -> int:
        """The batch size whose latency counts."""
        return self.batch or 1
