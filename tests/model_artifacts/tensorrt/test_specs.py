"""Specs of an engine's tensors, as TensorRT shows them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from model_artifacts.records import BatchRange
from model_artifacts.tensorrt.specs import output_of, tensor_spec


@pytest.mark.parametrize(
    ("batches", "axis"),
    [
        (BatchRange(min=1, opt=64, max=64, tuned=(1, 8, 64)), "batch"),
        (BatchRange(min=1, opt=1, max=1), 1),
    ],
    ids=["several profiles", "one size"],
)
def test_outputs_of_several_profiles_have_a_batch_of_any_size(batches: BatchRange, axis: str | int) -> None:
    """TensorRT 10.6 shows the size of the first profile, for which the others' outputs have no room."""
    engine: Any = SimpleNamespace(get_tensor_shape=lambda _: (1, 10), get_tensor_dtype=lambda _: "DataType.FLOAT")
    assert output_of(engine, "logits", batches).shape == (axis, 10)


@pytest.mark.parametrize(
    ("names", "axes"),
    [
        (("batch", "", "bins", "frames"), ("batch", 2, "bins", "frames")),
        (("N", "", "bins", "frames"), ("batch", 2, "bins", "frames")),
        ((), ("batch", 2, "height", "width")),
    ],
    ids=["the graph's names", "another name of the batch", "an engine keeps none"],
)
def test_four_axes_without_names_are_those_of_images(names: tuple[str, ...], axes: tuple[int | str, ...]) -> None:
    """Names that a graph gives go first: an axis of sound is no height."""
    assert tensor_spec("sound", (-1, 2, -1, -1), "DataType.FLOAT", names).shape == axes
