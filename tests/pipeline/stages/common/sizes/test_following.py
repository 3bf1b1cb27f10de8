"""Shapes of outputs at several sizes → the names of their axes, or a refusal."""

from __future__ import annotations

import pytest

from model_artifacts.errors import DataError
from model_artifacts.records import Task
from pipeline.stages.common.sizes.following import AtSize, Shape, named_axes, require_following

SIZES = [(32, 32), (24, 24), (48, 64), (37, 45), (24, 64), (48, 24)]


def maps(*functions: tuple[int, str, int]) -> list[AtSize]:
    """Return maps at every size; each axis is (constant, axis of the image, divisor): constant + ⌈axis / divisor⌉."""
    found = []
    for height, width in SIZES:
        own = {"height": height, "width": width, "": 0}
        shape: Shape = tuple(constant - -own[axis] // divisor for constant, axis, divisor in functions)
        found.append(AtSize((("height", height), ("width", width)), (shape,)))
    return found


@pytest.mark.parametrize(
    ("functions", "axes"),
    [
        (((5, "", 1), (0, "height", 1), (0, "width", 1)), (5, "height", "width")),
        (((5, "", 1), (0, "width", 1), (0, "height", 1)), (5, "width", "height")),
        (((5, "", 1), (0, "height", 4), (0, "width", 4)), (5, "out_axis_2", "out_axis_3")),
        (((0, "height", 2), (7, "", 1)), ("out_axis_1", 7)),
        (((3, "height", 1),), ("out_axis_1",)),
    ],
    ids=["images", "turned", "quarter", "half of the rows", "border"],
)
def test_an_axis_has_the_name_of_what_it_equals(
    functions: tuple[tuple[int, str, int], ...], axes: tuple[int | str, ...]
) -> None:
    """Only an axis that equals the image's at every size takes its name."""
    assert named_axes(maps(*functions), ["out"]) == (axes,)


@pytest.mark.parametrize(
    "functions",
    [((5, "", 1), (0, "height", 1), (0, "width", 1)), ((5, "", 1), (0, "height", 4), (2, "width", 4))],
    ids=["image", "quarter"],
)
def test_maps_that_grow_with_their_image_are_taken(functions: tuple[tuple[int, str, int], ...]) -> None:
    """They have the image's size, or any that grows with it."""
    require_following(maps(*functions), Task.SEGMENTATION, DataError)


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        (((5, "", 1), (32, "", 1), (32, "", 1)), "height of the network's maps does not follow"),
        (((5, "", 1), (0, "height", 1), (32, "", 1)), "width of the network's maps does not follow"),
        (((5, "", 1), (0, "width", 1), (0, "height", 1)), "height of the network's maps does not follow"),
        (((90, "", 1), (90, "height", -1), (0, "width", 1)), "height of the network's maps does not follow"),
        (((0, "height", 1), (0, "height", 1), (0, "width", 1)), "classes of the network's maps change"),
    ],
    ids=["constant", "constant width", "turned", "shrinking", "classes"],
)
def test_other_maps_are_refused(functions: tuple[tuple[int, str, int], ...], said: str) -> None:
    """The message has the shapes at every size."""
    with pytest.raises(DataError, match=rf"(?s){said} .*for height 48, width 24"):
        require_following(maps(*functions), Task.SEGMENTATION, DataError)


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.EMBEDDING, Task.MULTILABEL, Task.REGRESSION], ids=str)
def test_rows_have_one_shape(task: Task) -> None:
    """A row of values for each image is the same for every size."""
    require_following(maps((10, "", 1)), task, DataError)
    with pytest.raises(DataError, match=r"(?s)other outputs for images of height 24, width 24.*\(32\).*\(24\)"):
        require_following(maps((0, "height", 1)), task, DataError)
