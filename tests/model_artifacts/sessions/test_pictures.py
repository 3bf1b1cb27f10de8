"""Images of every mode become the colours that the network was trained on, or are refused by name."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from model_artifacts.errors import DataError
from model_artifacts.records import ChannelOrder, Interpolation, Orientation, Preprocessing, Transparency
from model_artifacts.sessions.pictures import to_colours
from model_artifacts.sessions.preprocessing import to_input, to_pixels

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

COLOUR = Preprocessing(resize=4, crop=4, interpolation=Interpolation.NEAREST, mean=(0.5,) * 3, std=(0.5,) * 3)
GREY = Preprocessing(resize=4, crop=4, interpolation=Interpolation.NEAREST, mean=(0.5,), std=(0.5,))
RED = (255, 0, 0)


def levels(low: float, high: float, spec: Preprocessing = GREY) -> Preprocessing:
    """Return a preprocessing with levels."""
    return spec.model_copy(update={"levels": (low, high)})


def reopened(image: Image.Image, kind: str) -> Image.Image:
    """Return an image as it is after a file of this kind."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Pillow will stop writing such files, not reading them
        image.save(file, kind)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(
    ("values", "kind", "name", "extent"),
    [
        (np.array([[600, 1499]], dtype=np.uint16), "PNG", "I;16", "600 to 1499"),
        (np.array([[600, 1499]], dtype=np.uint16), "TIFF", "I;16", "600 to 1499"),
        (np.array([[-5, 70_000]], dtype=np.int32), "TIFF", "I", "-5 to 70000"),
        (np.array([[0.25, 0.5]], dtype=np.float32), "TIFF", "F", "0.25 to 0.5"),
    ],
)
def test_more_than_8_bits_need_levels(values: npt.NDArray[np.generic], kind: str, name: str, extent: str) -> None:
    """Without levels, images of more than 8 bits are refused with their mode, their values and the line to write."""
    image = reopened(Image.fromarray(values), kind)
    for spec in (COLOUR, GREY):
        with pytest.raises(DataError, match=rf"(?s)mode {name}\).*{extent}.*levels: \[0, 65535\]"):
            to_colours(image, spec)


def test_levels_give_a_16_bit_image_its_values() -> None:
    """12-bit values between their levels keep their proportions, and values outside are black and white."""
    image = reopened(Image.fromarray(np.array([[0, 819, 2048, 4095, 65535]], dtype=np.uint16)), "PNG")
    expected = [0, 51, 128, 255, 255]
    assert np.asarray(to_colours(image, levels(0, 4095))).tolist() == [expected]
    colours = np.asarray(to_colours(image, levels(0, 4095, COLOUR)))
    assert colours.tolist() == [[[value] * 3 for value in expected]]


def test_levels_of_float_images() -> None:
    """Float values have levels of their own, negative ones too."""
    image = Image.fromarray(np.array([[-1000, -300, 400]], dtype=np.float32))
    assert np.asarray(to_colours(image, levels(-1000, 400))).tolist() == [[0, 128, 255]]


def test_big_endian_16_bits() -> None:
    """A TIFF in the other byte order has the same values."""
    big = Image.frombytes("I;16B", (2, 1), np.array([257, 65535], dtype=">u2").tobytes())
    assert np.asarray(to_colours(big, levels(0, 65535))).tolist() == [[1, 255]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused(value: float) -> None:
    """NaN and infinity have no place between the levels."""
    image = Image.fromarray(np.array([[0.5, value]], dtype=np.float32))
    with pytest.raises(DataError, match=r"(?s)no numbers.*1 of 2 pixels"):
        to_colours(image, levels(0, 1))


def test_levels_of_a_large_image_are_applied_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of rows give the values of the whole image, its extent, and the count of all broken pixels."""
    values = np.arange(35, dtype=np.float32).reshape(7, 5)
    expected = np.rint(values / 34 * 255).astype(np.uint8)
    monkeypatch.setattr("model_artifacts.sessions.pictures._STRIP", 11)
    assert np.array_equal(np.asarray(to_colours(Image.fromarray(values), levels(0, 34))), expected)
    with pytest.raises(DataError, match="values from 0 to 34"):
        to_colours(Image.fromarray(values), GREY)
    values[0, 0] = values[6, 4] = np.nan
    with pytest.raises(DataError, match="2 of 35 pixels"):
        to_colours(Image.fromarray(values), levels(0, 34))


def test_levels_leave_8_bit_images_alone() -> None:
    """Images of 8 bits among those of 16 keep their values."""
    image = Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8))
    assert np.asarray(to_colours(image, levels(0, 4095))).tolist() == [[0, 51, 255]]


def test_16_bit_colours_keep_their_upper_byte(tmp_path: Path) -> None:
    """A 16-bit colour file (portable pixmap) gives the upper 8 bits of each colour."""
    file = tmp_path / "a.ppm"
    file.write_bytes(b"P6 1 1 65535\n" + np.array([65535, 32896, 0], dtype=">u2").tobytes())
    with Image.open(file) as image:
        assert np.asarray(to_colours(image, COLOUR)).tolist() == [[[255, 128, 0]]]


def test_palette_is_looked_up() -> None:
    """A palette image gives its colours, not their numbers."""
    image = Image.new("P", (1, 1), 1)
    image.putpalette([0, 0, 0, *RED])
    assert np.asarray(to_colours(image, COLOUR)).tolist() == [[[*RED]]]
    assert np.asarray(to_colours(image, GREY)).tolist() == [[76]]


def test_cmyk_of_a_jpeg_is_computed() -> None:
    """Ink of no cyan and full magenta and yellow is red, through a JPEG file too."""
    image = reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    pixel = np.asarray(to_colours(image, COLOUR))[4, 4].astype(int)
    assert image.mode == "CMYK"
    assert np.abs(pixel - RED).max() <= 4


def test_lab_is_converted() -> None:
    """Grey of the Lab colours is grey, for networks of one and of three channels."""
    image = Image.merge("LAB", [Image.new("L", (1, 1), value) for value in (137, 128, 128)])
    colour, grey = np.asarray(to_colours(image, COLOUR)), np.asarray(to_colours(image, GREY))
    assert np.ptp(colour.astype(int)) <= 4
    assert abs(int(grey[0, 0]) - int(colour[0, 0, 1])) <= 3


def test_mode_that_pillow_cannot_convert() -> None:
    """A mode without a conversion is refused by name."""
    with pytest.raises(DataError, match=r"(?s)mode La to L.*save the image in RGB"):
        to_colours(Image.new("LA", (2, 2)).convert("La"), GREY)


def test_message_names_the_file(tmp_path: Path) -> None:
    """The refusal of an image from a file says which file it is."""
    file = tmp_path / "xray.png"
    Image.fromarray(np.array([[600]], dtype=np.uint16)).save(file)
    with Image.open(file) as image, pytest.raises(DataError, match=r"xray\.png"):
        to_colours(image, GREY)


# Transparency.


def logo(mode: str) -> Image.Image:
    """Return one transparent black pixel beside an opaque red one, or grey one, and one of half each."""
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    image.putpixel((2, 0), (*RED, 128))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("transparency", "expected"),
    [
        (Transparency.DROPPED, [[0, 0, 0], [255, 0, 0], [255, 0, 0]]),
        (Transparency.WHITE, [[255, 255, 255], [255, 0, 0], [255, 127, 127]]),
        (Transparency.BLACK, [[0, 0, 0], [255, 0, 0], [128, 0, 0]]),
    ],
)
def test_transparent_pixels_are_as_configured(transparency: Transparency, expected: list[list[int]]) -> None:
    """Transparent pixels show the colour beneath, or a background."""
    spec = COLOUR.model_copy(update={"transparency": transparency})
    assert np.asarray(to_colours(logo("RGBA"), spec)).tolist() == [expected]


def test_transparency_of_greyscale_and_of_palettes() -> None:
    """Grey with alpha, and palette or RGB images with one transparent colour, get the background too."""
    white = COLOUR.model_copy(update={"transparency": Transparency.WHITE})
    grey = Image.new("LA", (1, 1), (0, 0))
    assert np.asarray(to_colours(grey, white)).tolist() == [[[255] * 3]]
    assert np.asarray(to_colours(grey, COLOUR)).tolist() == [[[0] * 3]]
    for mode in ("P", "RGB", "L"):
        image = Image.new("RGB", (2, 1)).convert(mode)
        image.info["transparency"] = (0, 0, 0) if mode == "RGB" else int(image.getpixel((0, 0)))  # type: ignore[arg-type]  # a number
        assert np.asarray(to_colours(image, white)).tolist() == [[[255] * 3] * 2], mode


# Orientation.


def test_orientation_is_as_configured() -> None:
    """A phone's portrait photo is turned upright if so configured, and left as it lies by default."""
    upright = Image.new("RGB", (2, 4), "blue")
    upright.paste("yellow", (0, 0, 2, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    upright.rotate(90, expand=True).save(file, "PNG", exif=exif)
    photo = Image.open(file)
    turned = to_colours(photo, COLOUR.model_copy(update={"orientation": Orientation.EXIF}))
    assert np.array_equal(np.asarray(turned), np.asarray(upright))
    assert np.array_equal(np.asarray(to_colours(photo, COLOUR)), np.asarray(upright.rotate(90, expand=True)))


# The order of the channels.


def test_channels_are_in_the_networks_order() -> None:
    """A network that takes blue first gets blue first."""
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    spec = COLOUR.model_copy(update={"order": ChannelOrder.BGR})
    assert np.asarray(to_colours(image, spec)).tolist() == [[[3, 2, 1]]]


@pytest.mark.parametrize("order", [*ChannelOrder])
def test_transparency_is_a_channel_of_four(order: ChannelOrder) -> None:
    """Colours and transparency are those of the picture; one without transparency is opaque."""
    spec = Preprocessing(
        resize=2, crop=2, interpolation=Interpolation.NEAREST, mean=(0.0,) * 4, std=(1.0,) * 4, order=order
    )
    colours = (10, 20, 30) if order is ChannelOrder.RGB else (30, 20, 10)
    transparent, opaque = Image.new("RGBA", (2, 2), (10, 20, 30, 40)), Image.new("RGB", (2, 2), (10, 20, 30))
    for image, alpha in ((transparent, 40), (opaque, 255)):
        pixels = to_pixels(image, spec)
        assert pixels.shape == (2, 2, 4)
        assert {tuple(map(int, pixel)) for pixel in pixels.reshape(-1, 4)} == {(*colours, alpha)}
    assert to_input(to_pixels(Image.new("L", (2, 2), 7), spec)[None], spec).shape == (1, 4, 2, 2)


def test_transparency_has_no_other_treatment_beside_its_channel() -> None:
    """A background would leave it without a meaning; two channels are no picture's."""
    with pytest.raises(ValidationError, match="expected no `transparency` with four means"):
        Preprocessing(
            resize=2,
            crop=2,
            interpolation=Interpolation.NEAREST,
            mean=(0.0,) * 4,
            std=(1.0,) * 4,
            transparency=Transparency.WHITE,
        )
    with pytest.raises(ValidationError, match=r"arrays of .data"):
        Preprocessing(resize=2, crop=2, interpolation=Interpolation.NEAREST, mean=(0.0,) * 2, std=(1.0,) * 2)
