"""TensorRT's network × a batch range → the equal parts of a batch that can run at once, with the reason if none can."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import BatchRange
from model_artifacts.tensorrt.split import part_obstacle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from model_artifacts.records import TensorSpec


class Parts(NamedTuple):
    """The division of a batch."""

    number: int
    """The parts; 1 for a batch that stays whole."""
    profile: BatchRange
    """The batch of the engine itself: one part."""
    obstacle: str = ""
    """The reason why a batch stays whole that was to be divided; empty if it is as asked for."""


def parts_of(profile: BatchRange, asked: int, ends: Sequence[TensorSpec]) -> Parts:
    """Return the division of a batch. Pure.

    Args:
        profile: the batch range of the engine.
        asked: the parts that the configuration asks for.
        ends: the inputs and outputs of the network, whose first axis is `batch`.
    """
    if asked == 1:
        return Parts(1, profile)
    if obstacle := batch_obstacle(profile, asked):
        return Parts(1, profile, obstacle)
    fixed = [spec.name for spec in ends if spec.shape[:1] != ("batch",)]
    if fixed:
        return Parts(1, profile, f"the batch size of {fixed[0]} is fixed in the graph")
    part = profile.max // asked
    of_part = [spec.model_copy(update={"shape": (part, *spec.shape[1:])}) for spec in ends]
    if obstacle := part_obstacle(of_part):
        return Parts(1, profile, obstacle)
    return Parts(asked, BatchRange(min=part, opt=part, max=part))


def shape_obstacle(part: BatchRange, ends: Sequence[TensorSpec]) -> str:
    """Return the reason why the results of parts are not those of a batch; empty if they may be. Pure.

    Args:
        part: the batch of one part.
        ends: the inputs and outputs of the network, once the batch of its inputs is that of a part.
    """
    for spec in ends:
        rows = spec.shape[0] if spec.shape else "no"
        if isinstance(rows, int) and rows != part.max:
            return f"{spec.name} has {rows} rows for a batch of {part.max}, so that parts of it may have others"
    return part_obstacle(ends)


def batch_obstacle(profile: BatchRange, parts: int) -> str:
    """Return the reason why batches of a range have no such number of equal parts; empty if they have. Pure."""
    if profile.axes or not profile.is_fixed:
        return "an engine for several sizes runs each batch as a whole"
    return f"a batch of {profile.max} has no {parts} equal parts" if profile.max % parts else ""
