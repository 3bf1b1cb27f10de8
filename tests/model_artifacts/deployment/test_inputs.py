"""Calls as people write them: each works, or is refused with expected, got and the line to write."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from model_artifacts.deployment import inputs
from model_artifacts.deployment.inputs import check_finite, checked_batch, detached, pictures_of
from model_artifacts.errors import RunError
from model_artifacts.records import AxisRange, ImageInput, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLE = (3, 4, 6)
BATCH = np.arange(2 * 3 * 4 * 6, dtype=np.float32).reshape(2, *SAMPLE)
PIXELS = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)


def masked(values: Any) -> Any:
    """Return an array whose small values are masked."""
    return np.ma.MaskedArray(values, values < 5)  # type: ignore[no-untyped-call]  # numpy's own


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(BATCH, id="array"),
        pytest.param(torch.from_numpy(BATCH), id="tensor"),
        pytest.param(torch.from_numpy(BATCH).requires_grad_(), id="tensor with gradients"),
        pytest.param(torch.nn.Parameter(torch.from_numpy(BATCH)), id="parameter"),
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
        (BATCH[:0], r"float32 \(0, 3, 4, 6\)", "hand over at least one sample"),
        (BATCH[..., :5], r"float32 \(2, 3, 4, 5\)", "predict"),
        (None, "NoneType", "predict"),
        ("picture.jpg", "str", "predict"),
        (BATCH.astype(">f4"), r">f4 \(the other byte order\) \(2, 3, 4, 6\)", "astype"),
        (masked(BATCH), "a masked array", "filled"),
        (torch.ones(2, *SAMPLE, dtype=torch.bfloat16), "Tensor: TypeError", r"float\(\).cpu\(\).numpy\(\)"),
        (torch.ones(2, *SAMPLE).to_sparse(), "Tensor: ", r"float\(\).cpu\(\).numpy\(\)"),
        (torch.ones(2, *SAMPLE, device="meta"), "Tensor: ", r"float\(\).cpu\(\).numpy\(\)"),
    ],
)
def test_batches_that_are_refused(given: Any, got: str, fix: str) -> None:
    """Another type or shape is refused with the right ones."""
    with pytest.raises(RunError, match=rf"(?s)expected: float32 \(batch, 3, 4, 6\).*got: +{got}.*fix: .*{fix}"):
        checked_batch(given, SAMPLE)


SIZED = TensorSpec(
    name="image",
    shape=("batch", 3, "height", "width"),
    dtype="float32",
    layout="NCHW",
    ranges=(AxisRange(name="height", min=4, opt=5, max=6), AxisRange(name="width", min=4, opt=6, max=8)),
)


@pytest.mark.parametrize(
    ("shape", "fix"),
    [
        ((2, 3, 7, 6), r"bring height into the range, or build a profile with a wider one \(`profiles`"),
        ((2, 3, 7, 9), "bring height and width into the range"),
        ((2, 4, 7, 6), "preprocess images as the manifest says"),
        ((2, 3, 7), "preprocess images as the manifest says"),
    ],
    ids=["height", "both", "channels, too", "no width"],
)
def test_sizes_outside_of_the_ranges_are_named(shape: tuple[int, ...], fix: str) -> None:
    """The fix is about what is wrong: a size alone, or more than that."""
    assert checked_batch(np.ones((2, 3, 6, 4), np.float32), SAMPLE, spec=SIZED).shape == (2, 3, 6, 4)
    with pytest.raises(RunError, match=rf"(?s)height 4 to 6, width 4 to 8.*fix: +{fix}"):
        checked_batch(np.ones(shape, np.float32), SAMPLE, spec=SIZED)


def test_sparse_batches_are_refused_before_a_runtime_sees_them() -> None:
    """A sparse tensor stays as it is until it is refused by name."""
    sparse = torch.ones(2, *SAMPLE).to_sparse()
    assert detached(sparse).is_sparse


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_batches_that_are_not_finite_are_refused(value: float) -> None:
    """One value that is no number is enough, and the image is named."""
    batch = BATCH.copy()
    batch[1, 2, 3, 4] = value
    with pytest.raises(RunError, match=r"(?s)expected: finite.*1 of 2 images, the first at 1.*fix: "):
        checked_batch(batch, SAMPLE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_tensors_that_are_not_finite_are_refused(dtype: torch.dtype) -> None:
    """Those of torch that stay where they are, such as on an engine's GPU: of types that NumPy lacks, too."""
    batch = torch.ones(2, *SAMPLE, dtype=dtype)
    check_finite(batch)
    batch[1, 2, 3, 4] = torch.nan
    with pytest.raises(RunError, match=r"(?s)expected: finite.*1 of 2 images, the first at 1.*fix: "):
        check_finite(batch)


def test_large_finite_batches_are_taken() -> None:
    """Values whose sum is infinite are finite all the same."""
    huge = np.full_like(BATCH, np.finfo(np.float32).max)
    np.testing.assert_array_equal(checked_batch(huge, SAMPLE), huge)


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0xFC01, 0x7E00, 0xFFFF], ids=hex)
def test_halves_that_are_not_finite_are_refused(bits: int) -> None:
    """Both infinities, and NaN with its smallest and its largest bits."""
    batch = BATCH.astype(np.float16)
    batch.view(np.uint16)[1, 2, 3, 4] = bits
    with pytest.raises(RunError, match="1 of 2 images, the first at 1"):
        checked_batch(batch, SAMPLE, ImageInput.FLOAT16)


def test_large_halves_are_taken() -> None:
    """The largest values of both signs, zero with a sign, and the smallest one."""
    batch = np.resize(np.array([0x7BFF, 0xFBFF, 0x8000, 0x0001], np.uint16), BATCH.shape).view(np.float16)
    np.testing.assert_array_equal(checked_batch(batch, SAMPLE, ImageInput.FLOAT16), batch)


def test_pixels_are_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are finite by their type, and their sum would take longer than the network."""
    monkeypatch.setattr(inputs, "_looks_finite", lambda _: pytest.fail("it reads the pixels"))
    checked_batch(PIXELS[None], PIXELS.shape, ImageInput.UINT8)


def encoded(pixels: Any = PIXELS) -> bytes:
    """Return the bytes of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def seen(given: Any) -> list[tuple[str, Any]]:
    """Return the mode and the pixels of each picture."""
    opened = [Image.open(io.BytesIO(found)) if isinstance(found, bytes) else found for found in pictures_of(given)]
    assert all(isinstance(picture, Image.Image) for picture in opened)
    return [(picture.mode, np.asarray(picture)) for picture in opened if isinstance(picture, Image.Image)]


GREY = PIXELS[..., 0].copy()
CLEAR = np.dstack([PIXELS, GREY])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lambda: Image.fromarray(PIXELS), [("RGB", PIXELS)]),
        (lambda: PIXELS, [("RGB", PIXELS)]),
        (lambda: PIXELS[:, ::-1], [("RGB", PIXELS[:, ::-1])]),
        (lambda: GREY, [("L", GREY)]),
        (lambda: GREY[..., None], [("L", GREY)]),
        (lambda: CLEAR, [("RGBA", CLEAR)]),
        (lambda: [PIXELS, Image.fromarray(GREY)], [("RGB", PIXELS), ("L", GREY)]),
        (lambda: np.stack([PIXELS] * 3), [("RGB", PIXELS)] * 3),
        (lambda: np.stack([GREY] * 5), [("L", GREY)] * 5),
        (lambda: [PIXELS.transpose(2, 0, 1)], [("RGB", PIXELS)]),
        (lambda: torch.from_numpy(PIXELS.transpose(2, 0, 1).copy()), [("RGB", PIXELS)]),
        (lambda: torch.from_numpy(PIXELS), [("RGB", PIXELS)]),
        (lambda: torch.from_numpy(np.stack([PIXELS.transpose(2, 0, 1)] * 2)), [("RGB", PIXELS)] * 2),
        (lambda: list(torch.from_numpy(np.stack([PIXELS] * 2))), [("RGB", PIXELS)] * 2),
        (lambda: torch.from_numpy(GREY)[None], [("L", GREY)]),
        (lambda: torch.from_numpy(PIXELS[:3].transpose(2, 0, 1).copy()), [("RGB", PIXELS[:3])]),
        (lambda: (Image.fromarray(PIXELS) for _ in range(2)), [("RGB", PIXELS)] * 2),
        (lambda: map(Image.fromarray, [PIXELS]), [("RGB", PIXELS)]),
        (encoded, [("RGB", PIXELS)]),
        (lambda: bytearray(encoded()), [("RGB", PIXELS)]),
        (lambda: memoryview(encoded()), [("RGB", PIXELS)]),
        (lambda: io.BytesIO(encoded()), [("RGB", PIXELS)]),
        (lambda: [encoded(), io.BytesIO(encoded(GREY))], [("RGB", PIXELS), ("L", GREY)]),
        (lambda: GREY.astype(np.uint16) + 600, [("I;16", GREY.astype(np.uint16) + 600)]),
        (lambda: (GREY.astype(np.uint16) + 600).astype(">u2"), [("I;16", GREY.astype(np.uint16) + 600)]),
        (lambda: GREY.astype(">i4") - 70_000, [("I", GREY.astype(np.int32) - 70_000)]),
        (lambda: GREY.astype(">f8") / 4, [("F", (GREY / 4).astype(np.float32))]),
        (lambda: (), []),
        (lambda: np.zeros((0, 4, 6, 3), np.uint8), []),
    ],
)
def test_pictures_that_are_taken(given: Callable[[], Any], expected: list[tuple[str, Any]]) -> None:
    """One picture, several, bytes, files, arrays and tensors give their own pixels, in every order of axes."""
    found = seen(given())

    assert [mode for mode, _ in found] == [mode for mode, _ in expected]
    for (_, pixels), (_, wanted) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(pixels, wanted)


@pytest.mark.parametrize("given", ["a.png", Path("a.png"), ["a.png"], (Path("a.png"),)], ids=str)
def test_paths_are_taken(given: Any) -> None:
    """One path and several stay paths, which are read as the validation reads them."""
    assert [str(path) for path in pictures_of(given)] == ["a.png"]


def test_pictures_are_taken_when_they_are_needed() -> None:
    """A generator of many pictures is not read at once."""
    endless = pictures_of(Image.fromarray(PIXELS) for _ in itertools.count())
    assert [picture.mode for picture in itertools.islice(endless, 2) if isinstance(picture, Image.Image)] == ["RGB"] * 2


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (None, "NoneType"),
        (3, "int"),
        ({"a.png": 1}, "dict"),
        ({"a.png"}, "set"),
        (["picture.jpg", None], "NoneType"),
        ([["picture.jpg"]], "list"),
        ([PIXELS.astype(np.float32)], r"float32 \(5, 6, 3\)"),
        (PIXELS.astype(np.uint16), r"uint16 \(5, 6, 3\)"),
        (GREY.astype(np.int64), r"int64 \(5, 6\)"),
        (GREY.astype(bool), r"bool \(5, 6\)"),
        ([BATCH], r"float32 \(2, 3, 4, 6\)"),
        (BATCH, r"float32 \(4, 6, 3\)"),
        (torch.ones(3, 4, 6), r"float32 \(4, 6, 3\)"),
        (np.zeros((0, 6, 3), np.uint8), r"uint8 \(0, 6, 3\)"),
        (np.zeros((2, 2, 2, 4, 6), np.uint8), r"uint8 \(2, 2, 2, 4, 6\)"),
        (np.array(["a.png"]), r"<U5 \(1,\)"),
        (io.StringIO("text"), "gives str"),
    ],
)
def test_pictures_that_are_refused(given: Any, got: str) -> None:
    """Other types, types of pixels and axes are refused with what is taken."""
    with pytest.raises(RunError, match=rf"(?s)`predict` takes images.*expected: paths, bytes.*got: +.*{got}.*fix: "):
        list(pictures_of(given))


def test_an_array_of_two_meanings_is_refused() -> None:
    """Numpy's array with three rows in front is one picture or three, and both lines to write are shown."""
    with pytest.raises(RunError, match=r"(?s)may be one picture.*transpose\(1, 2, 0\).*list\(pictures\)"):
        list(pictures_of(PIXELS.transpose(2, 0, 1)))
    assert len(list(pictures_of(list(PIXELS.transpose(2, 0, 1))))) == 3


def test_a_masked_picture_is_refused() -> None:
    """Masked values are not meant."""
    with pytest.raises(RunError, match="masked"):
        list(pictures_of(masked(PIXELS)))
