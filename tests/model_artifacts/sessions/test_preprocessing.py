"""Preprocessing equals torchvision's transforms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from model_artifacts.records import Interpolation, Preprocessing
from model_artifacts.sessions.preprocessing import to_input, to_pixels

MODES = {
    Interpolation.NEAREST: transforms.InterpolationMode.NEAREST,
    Interpolation.BILINEAR: transforms.InterpolationMode.BILINEAR,
    Interpolation.BICUBIC: transforms.InterpolationMode.BICUBIC,
}


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
