"""Networks that ask what a trace answers otherwise than a run: for the text or type of a size, or for the trace itself.

`branching.configuration` names them by `asking:NAME`.
"""

# mypy: disable-error-code="no-untyped-call, unreachable"
# torch._assert and torch._check have no types, and a size's type is another one in a trace than mypy knows.

from __future__ import annotations

import functools
import logging
import warnings
from typing import Any

import torch
from torch.compiler import is_compiling

from tests.support.branching import Branching, Tabled

NARROW = "height: {min: 16, opt: 24, max: 28}, width: {min: 16, opt: 24, max: 30}"
"""Ranges of 13 heights, each of which may be a way of its own."""

log = logging.getLogger(__name__)


class Text(Branching):
    """Another way at one height, which is compared as text."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return str(image.shape[2]) == "20"


class Formatted(Branching):
    """Another way at one height, whose text is a part of another one."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return format(image.shape[2]) + "px" == "20px"


class Looked(Branching):
    """Another way that is looked up by the text of a height."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 4)."""
        logits: torch.Tensor = self.head(torch.relu(self.features(image)).mean((2, 3)))
        return logits * {"20": 3.0}.get(f"{image.shape[2]}", 1.0)


class Percent(Branching):
    """Another way at one half of a height, a real number as text."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return "%s" % (image.shape[2] / 2) == "10.0"


class Bytes(Branching):
    """Another way by what a number of Python alone has."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return isinstance(image.shape[2], int) and image.shape[2].to_bytes(1, "big") == b"\x14"


class Shown(Branching):
    """Another way by the text of two sizes."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is of 20 x 21 pixels."""
        return "20, 21" in str(image.shape[2:])


class Whole(Branching):
    """Another way behind a question for the type of a size."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return isinstance(image.shape[2], int) and image.shape[2] == 20


class Exact(Branching):
    """Another way behind a question for the very type of a size."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return type(image.shape[2]) is int and image.shape[2] == 20


class Unsymbolic(Branching):
    """Another way behind a question for torch's own type of sizes."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return not isinstance(image.shape[2], (torch.SymInt, float)) and image.shape[2] == 20


class Matched(Branching):
    """Another way behind a pattern of a type."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        match image.shape[2]:
            case int():
                return image.shape[2] == 20
        return False


@functools.singledispatch
def twenty(size: object) -> bool:
    """Return False for a size of a trace."""
    return size is None


@twenty.register
def _(size: int) -> bool:
    """Return whether a size of a run is 20."""
    return size == 20


class Dispatched(Branching):
    """Another way by a function that Python's library chooses by the type of a size."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return twenty(image.shape[2])


class Plain(Branching):
    """Another way behind a question for the type of a tensor."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return type(image) is torch.Tensor and image.shape[2] == 20


class Untraced(Branching):
    """Another way where nothing is compiled."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        traced = is_compiling() or torch.compiler.is_exporting() or torch._dynamo.is_compiling()  # noqa: SLF001 - an older name
        return not traced and image.shape[2] == 20


class Caught(Branching):
    """Another way that is looked up by a size, which has no hash in a trace."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        try:
            return {20: True}.get(image.shape[2], False)
        except TypeError:
            return False


class Narrow(Branching):
    """Another way at one height in a narrow type alone."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return image.dtype != torch.float32 and image.shape[2] == 20


class NarrowValue(Branching):
    """A network that asks for the height in every type, and computes something else in a narrow one."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 4)."""
        logits = super().forward(image)
        if image.shape[2] == 20 and image.dtype in (torch.float16, torch.bfloat16):
            return logits * 3
        return logits


class NarrowSound(Branching):
    """A network that pads odd heights in a narrow type alone, and computes the same."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features; rows of zeros fill the height up and are cut off."""
        height = image.shape[2]
        if image.dtype != torch.float32 and height % 4:
            image = torch.nn.functional.pad(image, (0, 0, 0, 4 - height % 4))
        return super().features(image)[:, :, :height]


class Telling(Branching):
    """A network that writes its sizes into messages, and computes the same at each."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features; tell of the sizes in every way."""
        height, width = image.shape[-2:]
        assert height > 3, f"{height} rows"
        torch._assert(width > 3, f"{width} columns of {image.shape}")  # noqa: SLF001 - as torchvision does
        torch._check(height > 3, lambda: f"{height} rows")  # noqa: SLF001 - as users write it
        message = "{} rows".format(height) + f" of {width}"  # noqa: UP032 - as users write it
        torch._assert(height > 3, message)  # noqa: SLF001 - as above
        log.info("%d rows", height)
        log.info(f"{height} rows")  # noqa: G004 - as above
        print(height, f"{width}")  # noqa: T201 - as above
        if height < 3:
            warnings.warn(f"{height} rows", stacklevel=2)
        with torch.profiler.record_function(f"rows {height}"):
            return super().features(image)


class Typing(Tabled):
    """A network that asks for types, and computes the same at each size, with a table for its last one."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features."""
        height = image.shape[2]
        if not isinstance(height, (int, torch.SymInt)) or isinstance(image, torch.SymInt):
            raise TypeError(type(height).__name__)
        return super().features(image)


OTHER_WAYS = (
    *((name, ", height 20") for name in ("Text", "Formatted", "Looked", "Percent", "Bytes", "Caught")),
    *((name, ", height 20") for name in ("Whole", "Exact", "Unsymbolic", "Matched", "Dispatched", "Plain", "Untraced")),
)
"""Networks that go another way at some size, which graphs and modules are refused for in a batch of 2: the size."""
