"""Networks whose forward asks for a size of their images, soundly or not, and the configuration that exports them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import guard_or_false, statically_known_true
from torch.nn import functional

RANGES = "height: {min: 16, opt: 24, max: 32}, width: {min: 16, opt: 24, max: 30}"
OWN, BATCH = 24, 4
"""The images' own height and width, and the largest batch of the configuration."""


class Branching(nn.Module):
    """A small classifier of images of any size. `other` says where its logits are three times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 4)."""
        logits: torch.Tensor = self.head(torch.relu(self.features(image)).mean((2, 3)))
        return logits * 3 if self.other(image) else logits

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features (batch, 8, height, width)."""
        found: torch.Tensor = self.body(image)
        return found

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the network goes its other way."""
        return image is None


class OneHeight(Branching):
    """Another way at one height, at which nothing else is checked."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return not image.shape[2] != 20  # noqa: SIM202 - as users write it


class OddWidth(Branching):
    """Another way at odd widths."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the width is odd."""
        return image.shape[-1] % 2


class Tall(Branching):
    """Another way for tall images."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is above 26."""
        return image.shape[2] > 26


class OneBatch(Branching):
    """Another way at one batch size, which the configuration does not name: its largest is 4."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the batch is 9."""
        return not image.shape[0] != 9  # noqa: SIM202 - as users write it


class IdenticalBatch(Branching):
    """Another way at one batch size, of which torch's trace keeps nothing."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the batch is 9."""
        return (image.shape[0] == 9) is True


class LargeBatch(Branching):
    """Another way at a batch that is too large to compare."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the batch is 500."""
        return image.shape[0] == 500


class Square(Branching):
    """Another way for squares. The images' own size is one."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is a square."""
        return image.shape[2] == image.shape[3]


class Upright(Branching):
    """Another way for images that are two rows higher than wide."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is such a one."""
        return image.shape[2] == image.shape[3] + 2


class Pixels(Branching):
    """Another way for a batch of a certain number of pixels: 3 images of 20 x 20."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the batch has as many values."""
        return image.numel() == 3 * 3 * 20 * 20


class Listed(Branching):
    """Another way at some heights of a list."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is one of them."""
        return image.shape[2] in (18, 21) if image.shape[3] == 19 else False


class Nested(Branching):
    """Another way behind a way that computes the same at its smallest and at its largest width."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is of 20 x 21 pixels."""
        if image.shape[2] != 20:
            return False
        return image.shape[3] == 21


class NestedChoice(Branching):
    """Another way behind a choice by a truth that is a number."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is of 20 x 21 pixels."""
        return int(image.shape[2] == 20) and image.shape[3] == 21


class NestedHalf(Branching):
    """Another way behind a number of Python's own, which a trace keeps for some heights."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is 20 or 21 pixels high and 21 wide."""
        return int(image.shape[2] * 0.5) == 10 and image.shape[3] == 21


class NestedTruth(Branching):
    """Another way behind the truth of a real number."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is of 20 x 21 pixels."""
        return not (image.shape[2] - 20) * 1.0 and image.shape[3] == 21


class Identical(Branching):
    """Another way by the identity of a truth, which no trace's truth has."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return (image.shape[2] == 20) is True


class Guarded(Branching):
    """Another way by torch's own question, which a trace answers with False."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return guard_or_false(image.shape[2] == 20)


class Known(Branching):
    """Another way by what torch knows statically, which it does of numbers alone."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return statically_known_true(image.shape[2] == 20)


class NestedIdentical(Branching):
    """Another way behind two identities of truths, of which a trace asks the first alone."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is of 20 x 21 pixels."""
        return (image.shape[2] == 20) is True and (image.shape[3] == 21) is True


class NestedKnown(Branching):
    """Another way behind what torch does not know of a trace's sizes. Its own trace is one of many heights."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the image is less than 30 pixels high, and 21 wide."""
        return statically_known_true(image.shape[2] < 30) and guard_or_false(image.shape[3] == 21)


@torch.fx.wrap
def bounded(image: torch.Tensor) -> torch.Tensor:
    """Return images; torch.fx leaves the question of this function to the trace."""
    return image * 2 if image.shape[2] > 1000 else image


class Wrapped(Branching):
    """Another way that torch.fx loses without a word, in a network whose trace by torch.fx asks elsewhere."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return (bounded(image).shape[2] == 20) is True


class Counted(Branching):
    """A network that takes the height as a number of Python, which a trace keeps."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return int(image.shape[2]) == 20


class CountedBatch(Branching):
    """A network that takes the batch as a number of Python."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the batch is 9."""
        return len(image) == 9


@torch.jit.script
def scripted(image: torch.Tensor) -> bool:
    """Return whether the height is 20."""
    return image.shape[2] == 20


class Scripted(Branching):
    """A network with a scripted part."""

    def other(self, image: torch.Tensor) -> Any:
        """Return whether the height is 20."""
        return scripted(image)


class Mapped(Branching):
    """A network that looks its way up by the height, which torch.fx takes for no known one. Its norm can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8))  # type: ignore[assignment]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 4)."""
        logits: torch.Tensor = self.head(torch.relu(self.body(image)).mean((2, 3)))
        return logits * {20: 3.0}.get(image.shape[2], 1.0)


class Stops(Branching):
    """A network that takes no images of odd height."""

    def other(self, image: torch.Tensor) -> Any:
        """Raise for an odd height; return False."""
        if image.shape[2] % 2:
            raise ValueError("an even height, please")
        return False


class Crowded(Branching):
    """A network of many ways, one for each height."""

    def other(self, image: torch.Tensor) -> Any:
        """Return False."""
        return any(image.shape[2] == size for size in range(16, 33) if size != OWN) and image.shape[2] < 0


class Sound(Branching):
    """A network that pads odd heights, as many do: both ways are in the graph."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features; rows of zeros fill the height up and are cut off."""
        height = image.shape[2]
        if height % 4:
            image = functional.pad(image, (0, 0, 0, 4 - height % 4))
        found: torch.Tensor = self.body(image)
        return found[:, :, :height]


class Tabled(Branching):
    """A network that keeps a table of positions for the height that it has run at last, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: torch.Tensor | None = None

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features with their row's number added, of a table that is made again for another height."""
        found: torch.Tensor = self.body(image)
        if self.table is None or self.table.shape[0] != found.shape[2]:
            self.table = torch.arange(found.shape[2]).to(found.dtype)
        return found + self.table[:, None]


class Chosen(Branching):
    """A network that chooses by a tensor, which a graph holds: `torch.where`."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 4)."""
        logits: torch.Tensor = self.head(torch.relu(self.body(image)).mean((2, 3)))
        return torch.where(torch.scalar_tensor(image.shape[2]) == 20, logits * 3, logits)


class Conditional(Branching):
    """A network with both ways in its graph, by `torch.cond`."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, 4)."""
        logits: torch.Tensor = self.head(torch.relu(self.body(image)).mean((2, 3)))
        chosen: torch.Tensor = torch.cond(image.shape[2] == 20, lambda it: it * 3, lambda it: it * 1, (logits,))
        return chosen


class Resized(Branching):
    """A network of maps, a quarter of the image rounded up and resized to its own size, as segmenters do."""

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Return features."""
        coarse = functional.avg_pool2d(self.body(image), 4, ceil_mode=True)
        return functional.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)


OTHER_WAYS = (
    ("OneHeight", ", height 20"),
    ("Listed", ", height 18, width 19"),
    ("Nested", ", height 20, width 21"),
    ("NestedChoice", ", height 20, width 21"),
    ("NestedHalf", ", height 20, width 21"),
    ("NestedTruth", ", height 20, width 21"),
    ("NestedIdentical", ", height 20, width 21"),
    ("NestedKnown", ", height 16, width 21"),
    ("Wrapped", ", height 20"),
)
"""Networks that go another way at some size, which graphs and modules are refused for in a batch of 2: the size."""


def configuration(network: str, axes: str = RANGES) -> str:
    """Return the configuration of such a network; of another module it is named `asking:Text`."""
    factory = network if ":" in network else f"branching:{network}"
    return f"""\
model: {{name: tiny, factory: "tests.support.{factory}", weights: factory}}
preprocessing: {{resize: 24, crop: 24, interpolation: bilinear, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}}
data: {{calibration: 4, validation: 6}}
precisions: [fp32, fp16]
profiles: [1, {{batch: {{min: 1, opt: 2, max: {BATCH}}}{", " if axes else ""}{axes}}}]
workspaces: [16MiB]
benchmark: {{batches: [1]}}
"""
