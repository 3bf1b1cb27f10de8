"""Batches of one input and of several: the same steps for both, and refusals of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from model_artifacts.sessions.feeds.batches import (
    Batch,
    Parts,
    each,
    feed_of,
    filled,
    from_fields,
    parts_of,
    rows_of_batch,
    shown,
    size_of,
    values_of,
)

IMAGES = np.arange(12, dtype=np.float32).reshape(3, 4)
TOKENS = np.arange(3, dtype=np.int64)
BOTH: dict[str, Any] = {"image": IMAGES, "tokens": TOKENS}


@pytest.mark.parametrize("batch", [IMAGES, BOTH], ids=["one", "several"])
def test_steps_keep_every_input_together(batch: Batch) -> None:
    """Choosing, filling up and counting do the same to each input."""
    assert size_of(batch) == 3
    chosen = rows_of_batch(batch, np.array([2, 0]))
    for array, of_batch in zip(values_of(chosen), values_of(batch), strict=True):
        np.testing.assert_array_equal(array, of_batch[[2, 0]])
    full = filled(batch, 5)
    for array, of_batch in zip(values_of(full), values_of(batch), strict=True):
        np.testing.assert_array_equal(array, of_batch[[0, 1, 2, 0, 1]])
        assert array.dtype == of_batch.dtype


def test_batches_become_parts_of_one_without_a_copy() -> None:
    """They have the shape of all of them, and are the callers' own arrays."""
    found = parts_of([IMAGES, IMAGES[:1], IMAGES[1:]])
    assert isinstance(found, Parts)
    assert (found.shape, found.dtype) == ((6, 4), np.dtype(np.float32))
    assert all(np.shares_memory(array, IMAGES) for array in found.arrays)
    both = parts_of([BOTH, BOTH])
    assert isinstance(both, dict)
    assert {name: part.shape for name, part in both.items()} == {"image": (6, 4), "tokens": (6,)}


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        pytest.param(IMAGES.astype(np.float64), np.float64, id="another type"),
        pytest.param(np.asfortranarray(IMAGES), np.float32, id="not contiguous"),
    ],
)
def test_what_cannot_be_parts_is_a_new_array(other: Any, kind: type[Any]) -> None:
    """The session refuses another type, and takes a contiguous array."""
    found = parts_of([IMAGES, other])
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.concatenate([IMAGES, IMAGES]))
    assert found.dtype == kind


def test_tensors_of_torch_stay_in_a_tuple() -> None:
    """A network is called with its inputs by their places."""
    assert each((1, 2), lambda value: value + 1) == (2, 3)


@pytest.mark.parametrize("names", [("image",), ("image", "tokens")], ids=["one", "several"])
def test_fields_of_a_file_become_inputs(names: tuple[str, ...]) -> None:
    """One field is an array, several are arrays by their names; each is contiguous."""
    fields = [(name, BOTH[name].dtype, BOTH[name].shape[1:]) for name in names]
    rows = np.empty(3, dtype=fields)
    for name in names:
        rows[name] = BOTH[name]
    batch = from_fields(rows)
    assert isinstance(batch, dict) is (len(names) > 1)
    for name, array in zip(names, values_of(batch), strict=True):
        np.testing.assert_array_equal(array, BOTH[name])
        assert array.flags.c_contiguous


def test_inputs_are_fed_by_their_names() -> None:
    """In the order of the artifact, whatever the order of the batch."""
    assert [*feed_of(["tokens", "image"], BOTH)] == ["tokens", "image"]
    assert feed_of(["pixels"], IMAGES)["pixels"] is IMAGES


@pytest.mark.parametrize(
    ("names", "batch"),
    [
        pytest.param(["image"], BOTH, id="one more"),
        pytest.param(["image", "tokens", "mask"], BOTH, id="one less"),
        pytest.param(["image", "words"], BOTH, id="another name"),
        pytest.param(["image", "tokens"], IMAGES, id="an array for several"),
    ],
)
def test_another_signature_is_refused(names: list[str], batch: object) -> None:
    """An input that nothing fills would hold whatever its memory holds."""
    with pytest.raises(RunError, match="other inputs than the batch"):
        feed_of(names, batch)


def test_messages_show_each_input() -> None:
    """With its name, type and shape."""
    assert shown(IMAGES) == "float32 (3, 4)"
    assert shown(BOTH) == "image: float32 (3, 4), tokens: int64 (3,)"
