"""Preprocessing equals torchvision's transforms."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from model_artifacts.errors import DataError, UnreadableError
from model_artifacts.records import Fit, Interpolation, Offset, Preprocessing
from model_artifacts.sessions.preprocessing import placement, read_pixels, to_input, to_pixels

if TYPE_CHECKING:
    from pathlib import Path

MODES = {mode: transforms.InterpolationMode(mode.value) for mode in Interpolation}


def spec_of(resize: int, crop: int, interpolation: Interpolation = Interpolation.BILINEAR) -> Preprocessing:
    """Return a preprocessing with ImageNet's statistics."""
    return Preprocessing(
        resize=resize, crop=crop, interpolation=interpolation, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """Return an image of noise, the same one every time."""
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 48),
    margin=st.integers(0, 20),
    interpolation=st.sampled_from(Interpolation),
)
def test_pixels_equal_torchvisions(
    width: int, height: int, resize: int, margin: int, interpolation: Interpolation
) -> None:
    """Resizing and cropping equal torchvision's, pixel by pixel, whatever the sizes."""
    crop = max(1, resize - margin)
    reference = transforms.Compose(
        [transforms.Resize(resize, interpolation=MODES[interpolation]), transforms.CenterCrop(crop)]
    )
    image = noise(width, height)

    pixels = to_pixels(image, spec_of(resize, crop, interpolation))

    np.testing.assert_array_equal(pixels, np.asarray(reference(image)))


@settings(deadline=None, max_examples=50)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    sizes=st.tuples(st.integers(1, 48), st.integers(1, 48), st.integers(1, 48), st.integers(1, 48)),
    short=st.booleans(),
)
def test_offsets_are_rounded_as_the_preprocessing_says(
    width: int, height: int, sizes: tuple[int, int, int, int], *, short: bool
) -> None:
    """A crop by `offset: down` starts where transformers' `center_crop` does: at half of what is left, rounded down.

    The boxes of labels go the same way: a pixel's place in the crop is its own less the offset.
    """
    resize, crop = (
        (max(sizes[0], sizes[2]), max(sizes[1], sizes[3])),
        (min(sizes[0], sizes[2]), min(sizes[1], sizes[3])),
    )
    side = max(crop) + sizes[0]
    spec = spec_of(1, 1).model_copy(update={"resize": side if short else resize, "crop": crop, "offset": Offset.DOWN})
    image, least = noise(width, height), min(width, height)
    whole = (int(side * width / least), int(side * height / least)) if short else resize[::-1]
    pixels = np.asarray(image.resize(whole, Image.Resampling.BILINEAR))
    top, left = (whole[1] - crop[0]) // 2, (whole[0] - crop[1]) // 2

    np.testing.assert_array_equal(to_pixels(image, spec), pixels[top : top + crop[0], left : left + crop[1]])
    assert placement(width, height, spec)[2:4] == (-left, -top)


def test_offset_is_left_out_where_it_is_usual() -> None:
    """Keys and digests of older records hold; the other one is read back."""
    assert "offset" not in spec_of(16, 16).model_dump_json()
    down = spec_of(19, 16).model_copy(update={"offset": Offset.DOWN})
    assert Preprocessing.model_validate_json(down.model_dump_json()) == down
    apart = [pixels for pixels in range(9) if Offset.EVEN.of(pixels) != Offset.DOWN.of(pixels)]
    assert apart == [3, 7]


def test_greyscale_pixels_equal_torchvisions() -> None:
    """One mean makes the image greyscale first, as torchvision's transforms do with an `L` image."""
    spec = Preprocessing(resize=21, crop=17, interpolation=Interpolation.BILINEAR, mean=(0.4,), std=(0.2,))
    reference = transforms.Compose([transforms.Resize(21), transforms.CenterCrop(17)])
    image = noise(61, 43)

    pixels = to_pixels(image, spec)

    assert pixels.shape == (17, 17, 1)
    np.testing.assert_array_equal(pixels[:, :, 0], np.asarray(reference(image.convert("L"))))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    """An image of any mode gives the pixels that its RGB conversion gives."""
    image = noise(40, 30).convert(mode)

    pixels = to_pixels(image, spec_of(16, 16))

    np.testing.assert_array_equal(pixels, to_pixels(image.convert("RGB"), spec_of(16, 16)))


def test_input_equals_torchvisions() -> None:
    """Scaling and normalising equal torchvision's ToTensor and Normalize, bit for bit, for every pixel value."""
    spec = spec_of(16, 16)
    pixels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=2)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])

    batch = to_input(pixels[np.newaxis], spec)

    np.testing.assert_array_equal(batch[0], reference(pixels).numpy())


def test_whole_chain_equals_torchvisions() -> None:
    """The network's input of an odd-sized photograph equals torchvision's preset, bit for bit."""
    spec = spec_of(63, 57)
    reference = transforms.Compose(
        [
            transforms.Resize(63),
            transforms.CenterCrop(57),
            transforms.ToTensor(),
            transforms.Normalize(spec.mean, spec.std),
        ]
    )
    image = noise(131, 97)

    batch = to_input(to_pixels(image, spec)[np.newaxis], spec)

    assert torch.equal(torch.from_numpy(batch[0]), reference(image))


def test_input_is_contiguous_nchw_float32() -> None:
    """A batch comes as contiguous float32 with its channels first, which engines take without a copy."""
    batch = to_input(np.zeros((2, 5, 5, 3), dtype=np.uint8), spec_of(5, 5))

    assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == ((2, 3, 5, 5), np.dtype(np.float32), True)


# Heights and widths.


def fitted(resize: tuple[int, int], crop: tuple[int, int], fit: Fit = Fit.SQUASH) -> Preprocessing:
    """Return a preprocessing to a height and a width."""
    return spec_of(64, 64).model_copy(update={"resize": resize, "crop": crop, "fit": fit})


@settings(deadline=None, max_examples=40)
@given(width=st.integers(1, 90), height=st.integers(1, 90), tall=st.integers(4, 40), wide=st.integers(4, 40))
def test_squashed_pixels_equal_torchvisions(width: int, height: int, tall: int, wide: int) -> None:
    """A resize to height and width, and a crop of other proportions, equal torchvision's."""
    reference = transforms.Compose([transforms.Resize((tall, wide)), transforms.CenterCrop((tall - 3, wide - 1))])
    image = noise(width, height)

    pixels = to_pixels(image, fitted((tall, wide), (tall - 3, wide - 1)))

    np.testing.assert_array_equal(pixels, np.asarray(reference(image)))


def test_rectangle_from_the_short_side() -> None:
    """A crop that is not square has its height first."""
    reference = transforms.Compose([transforms.Resize(40), transforms.CenterCrop((24, 32))])
    image = noise(71, 53)

    pixels = to_pixels(image, spec_of(40, 40).model_copy(update={"crop": (24, 32)}))

    assert pixels.shape == (24, 32, 3)
    np.testing.assert_array_equal(pixels, np.asarray(reference(image)))


@pytest.mark.parametrize(("width", "height", "whole"), [(100, 40, (80, 32)), (30, 90, (64, 192)), (64, 32, (64, 32))])
def test_cover_keeps_the_proportions(width: int, height: int, whole: tuple[int, int]) -> None:
    """The whole image is as small as covers height and width, and its centre is taken (timm: `center`)."""
    reference = transforms.Compose([transforms.Resize(whole[::-1]), transforms.CenterCrop((32, 64))])
    image = noise(width, height)

    pixels = to_pixels(image, fitted((32, 64), (32, 64), Fit.COVER))

    np.testing.assert_array_equal(pixels, np.asarray(reference(image)))


def test_border_shows_the_whole_image_on_the_mean() -> None:
    """A wide image lies in the middle, with the mean's colour above and below (timm: `border`)."""
    image = noise(80, 20)

    pixels = to_pixels(image, fitted((40, 40), (40, 40), Fit.BORDER))

    np.testing.assert_array_equal(pixels[15:25], np.asarray(transforms.Resize((10, 40))(image)))
    assert np.unique(np.concatenate([pixels[:15], pixels[25:]]).reshape(-1, 3), axis=0).tolist() == [[124, 116, 104]]


def test_border_of_greyscale() -> None:
    """The border of a greyscale network is its one mean."""
    spec = Preprocessing(
        resize=(8, 8), crop=(8, 8), interpolation=Interpolation.NEAREST, mean=(0.4,), std=(0.2,), fit=Fit.BORDER
    )
    pixels = to_pixels(Image.new("L", (4, 8), 7), spec)
    assert pixels[0, :, 0].tolist() == [102, 102, 7, 7, 7, 7, 102, 102]


# Elongated images.


@pytest.mark.parametrize("interpolation", Interpolation)
@pytest.mark.parametrize(("width", "height"), [(1600, 3), (2, 900), (1601, 31), (30, 1000)])
def test_elongated_image_has_the_pixels_of_the_whole_resize(
    width: int, height: int, interpolation: Interpolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The crop alone gives the pixels of the whole image resized, to one step of 255."""
    monkeypatch.setattr("model_artifacts.sessions.preprocessing.MOST_PIXELS", 10_000)
    reference = transforms.Compose(
        [transforms.Resize(32, interpolation=MODES[interpolation]), transforms.CenterCrop(24)]
    )
    image = noise(width, height)

    pixels = to_pixels(image, spec_of(32, 24, interpolation)).astype(int)

    assert np.abs(pixels - np.asarray(reference(image))).max() <= 1


PEAK = """
import resource
from PIL import Image
from model_artifacts.records import Preprocessing
from model_artifacts.sessions.preprocessing import to_pixels

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
to_pixels(Image.new("RGB", (300, 300)), Preprocessing.model_validate_json({spec!r}))
before = peak()
for width, height, mode in [(1, 30_000, "RGB"), (30_000, 1, "RGB"), (1, 1_000_000, "RGB"), (2_000, 2_000, "F")]:
    to_pixels(Image.new(mode, (width, height)), Preprocessing.model_validate_json({spec!r}))
print(peak() - before)
"""
"""Prints the MiB that a process takes beyond those of an ordinary picture."""


def test_elongated_image_takes_little_memory() -> None:
    """A line of 30,000 or of a million pixels, and one of 32 bits, take less than 128 MiB; they took up to 6.1 GB."""
    spec = spec_of(224, 224, Interpolation.LANCZOS).model_copy(update={"levels": (0, 1)}).model_dump_json()
    done = subprocess.run(  # noqa: S603 - our own
        [sys.executable, "-c", PEAK.format(spec=spec)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 128


# Files.


def test_file_gives_the_pixels_of_its_image(tmp_path: Path) -> None:
    """A path gives the same pixels as the opened image."""
    noise(40, 30).save(tmp_path / "a.png")
    expected = to_pixels(noise(40, 30), spec_of(16, 16))
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png", spec_of(16, 16)), expected)
    np.testing.assert_array_equal(read_pixels(str(tmp_path / "a.png"), spec_of(16, 16)), expected)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "FileNotFoundError.*fix: +name a file that is there"),
        (b"no image", "UnidentifiedImageError.*fix: +open it in a viewer"),
    ],
    ids=["missing", "no image"],
)
def test_unreadable_file(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """A file that is missing or no image is named, with Pillow's reason."""
    file = tmp_path / "a.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UnreadableError, match=rf"(?s)cannot be read.*a\.png.*{reason}"):
        read_pixels(file, spec_of(16, 16))


def test_refused_file_is_not_unreadable(tmp_path: Path) -> None:
    """A readable file of a mode that the preprocessing refuses is another error, so it is never left out."""
    Image.fromarray(np.array([[600]], dtype=np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="levels") as caught:
        read_pixels(tmp_path / "a.png", spec_of(16, 16))
    assert not isinstance(caught.value, UnreadableError)
