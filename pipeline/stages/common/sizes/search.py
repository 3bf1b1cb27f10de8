"""The sizes at which a graph is compared with its network: those at which a condition of its trace does not hold. Pure.

The sizes of all axes that conditions name are looked through, whole: nothing is solved.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from model_artifacts.errors import ExportError
from pipeline.stages.common.sizes.conditions import BATCH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from model_artifacts.records import AxisRange
    from pipeline.config.axes import Sizes
    from pipeline.stages.common.sizes.conditions import Condition

MOST_WAYS = 16
"""The most ways through forward that are followed. Each takes a trace, of seconds for a large network."""
_ANY_BATCH = 1_000
"""The largest batch that is looked at for a condition on the batch alone: ONNX files take any."""
LARGEST_BATCH = 64
"""The largest batch to compare, and to look at beside other axes. It is that of the gates
(`pipeline/stages/validate/batches.py`)."""
_MOST = 2**23
"""The most combinations of sizes to look through: a formula of two axes takes a second, and 64 MiB."""
_FEW, _SEEDED = 32, 8
"""Ranges of so few combinations are compared at each; of larger ones so many are drawn, by a fixed seed."""


class Trial(NamedTuple):
    """Sizes to compare at."""

    sizes: Sizes
    """Sizes of some axes, perhaps of the batch; others have their own size."""
    reason: str
    """The condition that does not hold there; empty for sizes that were drawn."""


class Ranges(NamedTuple):
    """The sizes that a graph or a module must take."""

    axes: tuple[AxisRange, ...]
    """Those of the dynamic axes beside the batch."""
    batch: int
    """The largest batch: of the configuration, or of the module."""
    smallest: int | None = None
    """The smallest batch of a module, which takes no batches above `batch`. None for a graph, which takes any."""

    def of(self, names: frozenset[str]) -> dict[str, range]:
        """Return the sizes of some axes, the batch first, so that small batches come first."""
        batches = range(1, max(_ANY_BATCH if names == {BATCH} else LARGEST_BATCH, self.batch) + 1)
        if self.smallest is not None:
            batches = range(self.smallest, self.batch + 1)
        found = {BATCH: batches} if BATCH in names else {}
        return found | {axis.name: range(axis.min, axis.max + 1) for axis in self.axes if axis.name in names}


class _Grid:
    """All combinations of the sizes of some axes, in ascending order."""

    def __init__(self, ranges: Mapping[str, range]) -> None:
        self.ranges = ranges
        self.shape = tuple(map(len, ranges.values()))
        self.sizes = {
            name: torch.arange(sizes.start, sizes.stop, sizes.step).view(
                [-1 if at == place else 1 for at in self._axes]
            )
            for place, (name, sizes) in enumerate(ranges.items())
        }

    @property
    def _axes(self) -> range:
        return range(len(self.ranges))

    def where(self, condition: Condition) -> torch.Tensor:
        """Return where a condition has the truth of its trace: bool, of the grid's shape."""
        return condition.at(self.sizes).broadcast_to(self.shape)

    def whole(self, conditions: Sequence[Condition]) -> torch.Tensor:
        """Return where all of some conditions have the truth of their trace."""
        found = torch.ones(self.shape, dtype=torch.bool)
        for condition in conditions:
            found &= self.where(condition)
        return found

    def chosen(self, mask: torch.Tensor) -> list[Sizes]:
        """Return the smallest and the largest sizes of a part, and some between; of batches, only comparable ones."""
        places = mask.flatten().nonzero().flatten()
        if BATCH in self.ranges:
            small = places[places < self._places_of(max(LARGEST_BATCH, self.ranges[BATCH].start))]
            places = small if len(small) else places[:1]
        if not len(places):
            return []
        between = int(np.random.default_rng(len(places)).integers(len(places)))
        return [self.at(int(places[index])) for index in sorted({0, between, len(places) - 1})]

    def _places_of(self, batch: int) -> int:
        """Return the number of combinations with a batch of at most this size: the batch is the first axis."""
        return max(0, batch + 1 - self.ranges[BATCH].start) * math.prod(self.shape[1:])

    def at(self, place: int) -> Sizes:
        """Return the sizes at a place in ascending order."""
        found = np.unravel_index(place, self.shape)
        return tuple((name, sizes[int(at)]) for (name, sizes), at in zip(self.ranges.items(), found, strict=True))


def _grid(ranges: Ranges, conditions: Sequence[Condition]) -> _Grid:
    """Return all sizes of the axes that some conditions name.

    Raises:
        ExportError: there are too many.
    """
    found = ranges.of(frozenset().union(*(item.names for item in conditions)))
    if (count := math.prod(map(len, found.values()))) > _MOST:
        raise ExportError(
            "the ranges are too large to find the sizes at which the network goes another way",
            where="; ".join(map(str, conditions)),
            expected=f"at most {_MOST:,} combinations of sizes",
            got=f"{count:,}: " + ", ".join(f"{name} {sizes[0]} to {sizes[-1]}" for name, sizes in found.items()),
            fix="narrow the ranges in `profiles`, or take the branch on the size out of forward",
        )
    return _Grid(found)


def where_broken(condition: Condition, ranges: Ranges) -> list[Sizes]:
    """Return sizes at which a condition of torch's own code has another truth than in the trace; perhaps none.

    Too large ranges are thinned out evenly, since such conditions choose between two ways to the same values.
    """
    sizes = ranges.of(condition.names)
    if condition.always(sizes):
        return []
    while math.prod(map(len, sizes.values())) > _MOST:
        widest = max(sizes, key=lambda name: len(sizes[name]))
        sizes[widest] = sizes[widest][::2]
    grid = _Grid(sizes)
    return grid.chosen(~grid.where(condition))


def other_ways(
    known: Sequence[Condition], ranges: Ranges, follow: Callable[[Sizes], Sequence[Condition]]
) -> Iterator[Trial]:
    """Yield sizes of each way through forward that a trace has not taken.

    A way is the sizes at which all conditions have one truth. Sizes of no known way are followed by another trace,
    which may ask for further conditions, until each size is on a known way.

    Args:
        known: the conditions of the graph's trace that the network's own code asked for.
        ranges: the sizes.
        follow: returns the conditions of another trace, at these sizes.

    Raises:
        ExportError: there are too many ways or sizes, or a trace does not hold at its own sizes.
    """
    ways: list[Sequence[Condition]] = []
    new: Sequence[Condition] = known
    point: Sizes | None = None
    while True:
        ways.append([item for item in new if not item.always(ranges.of(item.names))])
        grid = _grid(ranges, [item for way in ways for item in way])
        *before, latest = (grid.whole(way) for way in ways)
        earlier = torch.stack(before).any(0) if before else torch.zeros_like(latest)
        if point is not None:
            yield from (Trial(sizes, reason_at(known, sizes)) for sizes in grid.chosen(latest & ~earlier))
        missing = (~(earlier | latest)).flatten().nonzero().flatten()
        if not len(missing):
            return
        if len(ways) == MOST_WAYS or (point is not None and not (latest & ~earlier).any()):
            raise _too_many(known, grid.at(int(missing[0])))
        point = grid.at(int(missing[0]))
        new = follow(point)


def reason_at(conditions: Sequence[Condition], sizes: Sizes) -> str:
    """Return the first condition that does not hold at some sizes; empty if all hold."""
    at = {name: torch.tensor(size) for name, size in sizes}
    return next((str(item) for item in conditions if item.names <= at.keys() and not bool(item.at(at))), "")


def _too_many(conditions: Sequence[Condition], sizes: Sizes) -> ExportError:
    shown = ", ".join(f"{name} {size}" for name, size in sizes)
    return ExportError(
        "the network goes too many ways through forward for one graph",
        where=reason_at(conditions, sizes),
        expected=f"at most {MOST_WAYS} ways for all sizes of the ranges",
        got=f"another one for {shown}",
        fix="narrow the ranges in `profiles`, or take the branch on the size out of forward; a text that is made of a "
        "size counts as one, unless it is a message",
    )


def drawn_sizes(axes: Sequence[AxisRange]) -> list[Sizes]:
    """Return every combination of sizes of small ranges, and some of large ones, drawn by a fixed seed."""
    ranges = [range(axis.min, axis.max + 1) for axis in axes]
    names = [axis.name for axis in axes]
    if not axes:
        return []
    if math.prod(map(len, ranges)) <= _FEW:
        return [tuple(zip(names, sizes, strict=True)) for sizes in itertools.product(*ranges)]
    rng = np.random.default_rng(0)
    return [
        tuple((name, int(rng.integers(sizes.start, sizes.stop))) for name, sizes in zip(names, ranges, strict=True))
        for _ in range(_SEEDED)
    ]
