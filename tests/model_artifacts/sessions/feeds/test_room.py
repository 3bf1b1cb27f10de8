"""The bytes of an engine's inputs and outputs, with outputs that follow the images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from model_artifacts.records import AxisRange, BatchRange, TensorSpec
from model_artifacts.sessions.feeds.room import largest_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

RANGES = (AxisRange(name="height", min=2, opt=4, max=8), AxisRange(name="width", min=2, opt=4, max=6))
IMAGE = TensorSpec(name="image", shape=("batch", 3, "height", "width"), dtype="float32", layout="NCHW", ranges=RANGES)


class Context:
    """A context whose library knows the bound of one output."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        """Keep it."""
        self.shapes[name] = shape

    def most_bytes(self, name: str) -> int:
        """Return the bound."""
        return {"maps": 77}[name]


def of_outputs(context: Context, shapes: Sequence[tuple[int | str, ...]]) -> dict[str, int]:
    """Return the bytes of an engine for 1 to 5 images with such outputs: `maps`, `row`."""
    names = ("maps", "row")
    outputs = [
        TensorSpec(name=name, shape=shape, dtype="float16", layout="")
        for name, shape in zip(names, shapes, strict=True)
    ]
    loaded: Any = SimpleNamespace(inputs=(IMAGE,), outputs=outputs, batches=BatchRange(min=1, opt=2, max=5))
    any_context: Any = context
    return largest_bytes(loaded, any_context)


@pytest.mark.parametrize("axes", [("height", "width"), ("maps_axis_2", "maps_axis_3")], ids=["images", "own"])
def test_the_library_knows_the_bound_of_outputs_that_follow(axes: tuple[str, str]) -> None:
    """It computes it for the largest images; the room of all else follows from the shapes."""
    context = Context()
    found = of_outputs(context, [("batch", 10, *axes), ("batch", 7)])
    assert found == {"image": 5 * 3 * 8 * 6 * 4, "maps": 77, "row": 5 * 7 * 2}
    assert context.shapes == {"image": (5, 3, 8, 6)}


def test_fixed_outputs_need_no_context() -> None:
    """Nothing is set before the first batch."""
    context = Context()
    found = of_outputs(context, [("batch", 10), (5, 7)])
    assert found == {"image": 5 * 3 * 8 * 6 * 4, "maps": 5 * 10 * 2, "row": 5 * 7 * 2}
    assert context.shapes == {}
