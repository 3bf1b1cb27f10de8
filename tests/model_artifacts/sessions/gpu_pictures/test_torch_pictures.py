"""Pictures that torch decodes and resizes, beside Pillow's; torch does it on the processor here."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_artifacts.errors import RunError, UnreadableError, UnsupportedError
from model_artifacts.records import (
    ChannelOrder,
    Fit,
    ImageInput,
    Interpolation,
    Orientation,
    Preprocessing,
)
from model_artifacts.sessions.gpu_pictures import TorchPictures, torch_pictures
from model_artifacts.sessions.preprocessing import read_pixels, to_feed

if TYPE_CHECKING:
    from pathlib import Path

SPEC = Preprocessing(
    resize=40, crop=32, interpolation=Interpolation.BILINEAR, mean=(0.5, 0.4, 0.6), std=(0.25, 0.3, 0.2)
)


def photograph(width: int = 60, height: int = 50, mode: str = "RGB") -> Image.Image:
    """Return a smooth picture with other colours at each corner."""
    corners = np.array([[[250, 20, 30], [10, 200, 40]], [[30, 60, 220], [240, 230, 20]]], dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def apart(picture: bytes | str | Image.Image, spec: Preprocessing) -> int:
    """Return the largest difference from Pillow's pixels, in levels."""
    pixels = TorchPictures(spec, "cpu").read([picture]).pixels
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.uint8, True)
    return int(np.abs(pixels.numpy()[0].astype(int) - read_pixels(picture, spec)).max())


@settings(deadline=None)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.sampled_from([Interpolation.BILINEAR, Interpolation.BICUBIC]),
    st.sampled_from(
        [
            {"resize": 40, "crop": 32},
            {"resize": (31, 40), "crop": (31, 40), "fit": Fit.SQUASH},
            {"resize": (33, 40), "crop": (30, 40), "fit": Fit.COVER},
            {"resize": (32, 45), "crop": (32, 45), "fit": Fit.BORDER},
        ]
    ),
)
def test_pixels_are_those_of_pillow_to_a_level(
    width: int, height: int, interpolation: Interpolation, sizes: dict[str, Any]
) -> None:
    """Whatever the size and the fit; bicubic overshoots at edges, where Pillow cuts off between its two passes."""
    spec = SPEC.model_copy(update={**sizes, "interpolation": interpolation})
    most = 4 if interpolation is Interpolation.BICUBIC else 1
    assert apart(saved(photograph(width, height)), spec) <= most


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """Each of EXIF's eight orientations, where the preprocessing follows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    spec = SPEC.model_copy(update={"orientation": Orientation.EXIF})
    assert apart(saved(photograph(), exif=exif), spec) <= 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "GIF")],
    ids=lambda value: value,
)
def test_other_pictures_are_decoded_by_pillow(mode: str, kind: str) -> None:
    """Files that nvJPEG does not take have Pillow's colours, and are resized by torch alike."""
    assert apart(saved(photograph(mode=mode), kind), SPEC) <= 1


def test_networks_of_blue_green_and_red_get_them_in_this_order() -> None:
    """A JPEG and a PNG alike."""
    spec = SPEC.model_copy(update={"order": ChannelOrder.BGR})
    assert apart(saved(photograph()), spec) <= 1
    assert apart(saved(photograph(), "PNG"), spec) <= 1


def test_path_an_open_image_and_a_long_strip_are_taken(tmp_path: Path) -> None:
    """Of a strip, whose resize would be huge, Pillow computes the crop alone."""
    file = tmp_path / "photo.jpg"
    file.write_bytes(saved(photograph()))
    assert apart(str(file), SPEC) <= 1
    assert apart(photograph(), SPEC) <= 1
    assert apart(saved(photograph(2, 30_000), "PNG"), SPEC) == 0


@pytest.mark.parametrize("kind", list(ImageInput))
def test_batch_has_the_values_of_the_processor_s(kind: ImageInput) -> None:
    """The arithmetic of the normalisation is the same, to the last bit."""
    reader = TorchPictures(SPEC, "cpu")
    pixels = reader.read([saved(photograph()), saved(photograph(90, 40))]).pixels
    wanted = to_feed(pixels.numpy(), SPEC, kind)
    found = reader.feed(pixels, kind).numpy()
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    assert np.array_equal(found, wanted)


def test_file_that_is_cut_off_is_refused() -> None:
    """As on the processor: a decoder that fills up with grey would give an answer."""
    file = saved(photograph(300, 300))
    with pytest.raises(UnreadableError, match="the image cannot be read"):
        TorchPictures(SPEC, "cpu").read([file[: len(file) // 2]])


def test_file_with_an_end_of_an_image_in_its_middle_is_left_to_pillow() -> None:
    """Such as a thumbnail's end in a file that is cut off: what the GPU's decoder would show there is unknown."""
    file = saved(photograph(300, 300))
    assert apart(file[: len(file) // 2] + b"\xff\xd9" + b"\x01", SPEC) <= 1


def test_large_pictures_are_decoded_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order stays, and a picture above the limit comes alone."""
    monkeypatch.setattr(torch_pictures, "_DECODED_AT_ONCE", 2 * 60 * 50)
    decode, groups = torchvision.io.decode_jpeg, []

    def counted(files: list[torch.Tensor], *options: Any) -> Any:
        groups.append(len(files))
        return decode(files, *options)

    monkeypatch.setattr("torchvision.io.decode_jpeg", counted)
    pictures = [saved(photograph(width)) for width in (60, 60, 60, 300, 60)]
    found = TorchPictures(SPEC, "cpu").read(pictures).pixels.numpy().astype(int)
    wanted = np.stack([read_pixels(picture, SPEC) for picture in pictures])
    assert np.abs(found - wanted).max() <= 1
    assert groups == [2, 1, 1, 1]


def test_lack_of_the_gpu_s_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of a file, which Pillow would decode next."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torchvision.io.decode_jpeg", full)
    with pytest.raises(RunError, match="no room for the pictures"):
        TorchPictures(SPEC, "cpu").read([saved(photograph())])


def test_file_that_the_decoder_refuses_is_decoded_by_pillow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The decoder gives no results of a list with one such file."""

    def refuse(*_: object) -> None:
        raise RuntimeError("nvJPEG: NVJPEG_STATUS_JPEG_NOT_SUPPORTED")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    with caplog.at_level(logging.WARNING, torch_pictures.__name__):
        assert apart(saved(photograph()), SPEC) <= 1
    assert "Pillow decodes 1 JPEG files: RuntimeError: nvJPEG" in caplog.text


@pytest.mark.parametrize(
    "name", [Interpolation.LANCZOS, Interpolation.NEAREST, Interpolation.BOX, Interpolation.HAMMING]
)
def test_filter_that_torch_lacks_is_refused(name: Interpolation) -> None:
    """Torch has no Lanczos on a GPU, and takes another pixel where two are equally near."""
    with pytest.raises(UnsupportedError, match=f"torch has no filter {name.value}"):
        TorchPictures(SPEC.model_copy(update={"interpolation": name}), "cpu")


def test_host_without_torchvision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run without it, and pictures do not."""
    monkeypatch.setattr(torch_pictures, "installed", lambda name: name != "torchvision")
    with pytest.raises(UnsupportedError, match="torchvision is not installed here"):
        TorchPictures(SPEC, "cpu")
