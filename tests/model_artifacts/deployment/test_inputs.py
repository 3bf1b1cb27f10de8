"""Calls as people write them: each works, or is refused with expected, got and the line to write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from model_artifacts.deployment.inputs import as_images, checked_batch, likeliest
from model_artifacts.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = (3, 4, 6)
BATCH = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, *SAMPLE)
PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(BATCH, id="array"),
        pytest.param(torch.from_numpy(BATCH), id="tensor"),
        pytest.param(BATCH.transpose(0, 1, 3, 2).copy().transpose(0, 1, 3, 2), id="strided"),
        pytest.param(torch.from_numpy(BATCH).contiguous(memory_format=torch.channels_last), id="channels_last"),
    ],
)
def test_batches_that_are_taken(given: Any) -> None:
    """Arrays and tensors of any layout arrive as one contiguous array with the same values."""
    taken = checked_batch(given, SAMPLE)

    assert taken.flags.c_contiguous
    np.testing.assert_array_equal(taken, BATCH)


@pytest.mark.parametrize(
    ("given", "got", "fix"),
    [
        (BATCH.astype(np.float64), r"float64 \(2, 3, 4, 6\)", "astype"),
        (BATCH.astype(np.uint8), r"uint8 \(2, 3, 4, 6\)", "`predict` takes images"),
        (BATCH.transpose(0, 2, 3, 1), r"float32 \(2, 4, 6, 3\)", r"transpose\(0, 3, 1, 2\)"),
        (BATCH[0], r"float32 \(3, 4, 6\)", r"batch\[None\]"),
        (BATCH[:0], r"float32 \(0, 3, 4, 6\)", "predict"),
        (BATCH[..., :5], r"float32 \(2, 3, 4, 5\)", "predict"),
        (None, "NoneType", "predict"),
        ("picture.jpg", "str", "predict"),
        (torch.ones(2, *SAMPLE, requires_grad=True), "Tensor: RuntimeError", r"detach\(\).cpu\(\).numpy\(\)"),
        (torch.ones(2, *SAMPLE, device="meta"), "Tensor: ", r"detach\(\).cpu\(\).numpy\(\)"),
    ],
)
def test_batches_that_are_refused(given: Any, got: str, fix: str) -> None:
    """Another type or shape is refused with the right ones."""
    with pytest.raises(RunError, match=rf"(?s)expected: float32 \(batch, 3, 4, 6\).*got: +{got}.*fix: .*{fix}"):
        checked_batch(given, SAMPLE)


@pytest.mark.parametrize(
    ("given", "modes"),
    [
        (lambda: Image.fromarray(PIXELS), ["RGB"]),
        (lambda: PIXELS, ["RGB"]),
        (lambda: PIXELS[..., 0], ["L"]),
        (lambda: [PIXELS, Image.fromarray(PIXELS[..., 0])], ["RGB", "L"]),
        (lambda: np.stack([PIXELS] * 3), ["RGB"] * 3),
        (lambda: (Image.fromarray(PIXELS) for _ in range(2)), ["RGB", "RGB"]),
        (lambda: (), []),
    ],
    ids=["image", "array", "grey array", "list", "stack", "generator", "none"],
)
def test_images_that_are_taken(given: Callable[[], Any], modes: list[str]) -> None:
    """One image, a list, a stack of arrays and a generator work alike."""
    found = [image for image in as_images(given()) if isinstance(image, Image.Image)]

    assert [image.mode for image in found] == modes
    for image in found:
        np.testing.assert_array_equal(np.asarray(image), PIXELS if image.mode == "RGB" else PIXELS[..., 0])


@pytest.mark.parametrize("given", ["a.png", Path("a.png"), ["a.png"], (Path("a.png"),)], ids=str)
def test_paths_are_taken(given: Any) -> None:
    """One path and several stay paths, which are read as the validation reads them."""
    assert [str(path) for path in as_images(given)] == ["a.png"]


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (None, "NoneType"),
        (3, "int"),
        (b"picture", "bytes"),
        (["picture.jpg", None], "NoneType"),
        ([PIXELS.astype(np.float32)], r"float32 \(4, 6, 3\)"),
        ([PIXELS.transpose(2, 0, 1)], r"uint8 \(3, 4, 6\)"),
        ([BATCH], r"float32 \(2, 3, 4, 6\)"),
        (torch.ones(3, 4, 6), "Tensor"),
    ],
)
def test_images_that_are_refused(given: Any, got: str) -> None:
    """Tensors and other arrays are refused with the kinds of images."""
    with pytest.raises(RunError, match=rf"(?s)`predict` takes images.*paths, Pillow's images.*got: +{got}"):
        as_images(given)


def test_the_likeliest_class() -> None:
    """The largest logit is the answer."""
    assert likeliest(np.array([[0.1, 2.0, -1.0], [3.0, 2.0, 1.0]], np.float32), ("a", "b", "c")) == [1, 0]


@pytest.mark.parametrize(
    ("logits", "names", "message"),
    [
        ([[0.3]], None, r"two logits or more.*got: +1"),
        ([[0.3, 0.2]], ("a", "b", "c"), r"3 logits for each image.*got: +2"),
        ([[0.0, 1.0], [np.nan, 1.0]], None, "NaN or infinity for 1 of 2 images, the first at 1"),
        ([[np.inf, 1.0]], ("a", "b"), "NaN or infinity for 1 of 1 images"),
    ],
)
def test_logits_without_an_answer(logits: list[list[float]], names: tuple[str, ...] | None, message: str) -> None:
    """One logit, another number than that of the names, and NaN have no likeliest class."""
    with pytest.raises(RunError, match=rf"(?s){message}"):
        likeliest(np.array(logits, np.float32), names)
