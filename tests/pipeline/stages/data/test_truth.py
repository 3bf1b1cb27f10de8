"""Masks and tables beside the images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from model_artifacts.errors import DataError
from model_artifacts.records import Fit, Interpolation, Orientation, Preprocessing
from model_artifacts.sessions.preprocessing import to_pixels
from pipeline.stages.data.truth import IGNORED, folder_classes, read_masks, read_table

if TYPE_CHECKING:
    from pathlib import Path

SPEC = Preprocessing(resize=16, crop=16, interpolation=Interpolation.NEAREST, mean=(0.5,) * 3, std=(0.5,) * 3)
SHAPE = (4, 16, 16)


def write(folder: Path, name: str, mask: Image.Image, size: tuple[int, int] | None = None) -> None:
    """Write a mask, and an image of its values below it."""
    for part in ("images", "masks"):
        (folder / part / name).parent.mkdir(parents=True, exist_ok=True)
    mask.save((folder / "masks" / name).with_suffix(".png"))
    Image.fromarray(np.asarray(mask.convert("L")) * 40).convert("RGB").resize(size or mask.size).save(
        folder / "images" / name
    )


def read(
    folder: Path, *names: str, spec: Preprocessing = SPEC, shape: tuple[int, ...] = SHAPE
) -> np.typing.NDArray[np.uint8]:
    """Return the masks of images."""
    return read_masks(folder / "masks", folder / "images", names, spec, shape)


def noise(height: int = 20, width: int = 28) -> Image.Image:
    """Return a mask of four classes."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 4, (height, width), dtype=np.uint8))


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"resize": 24},
        {"resize": (16, 16)},
        {"resize": (32, 18), "fit": Fit.COVER},
        {"resize": (12, 16), "crop": (12, 16)},
    ],
    ids=["square", "crop", "squash", "cover", "rectangle"],
)
def test_a_mask_moves_with_its_image(tmp_path: Path, update: dict[str, object]) -> None:
    """With the nearest pixel for both, the moved image is the moved mask."""
    spec = Preprocessing(**{**SPEC.model_dump(), **update})
    write(tmp_path, "a/1.png", noise())
    (mask,) = read(tmp_path, "a/1.png", spec=spec, shape=(4, spec.height, spec.width))
    with Image.open(tmp_path / "images" / "a" / "1.png") as image:
        np.testing.assert_array_equal(mask * 40, to_pixels(image, spec)[..., 0])


def test_a_border_is_not_judged(tmp_path: Path) -> None:
    """A letterbox has no class."""
    spec = Preprocessing(**{**SPEC.model_dump(), "resize": (16, 16), "fit": Fit.BORDER})
    write(tmp_path, "1.png", noise())
    (mask,) = read(tmp_path, "1.png", spec=spec)
    assert (mask[:2] == IGNORED).all()
    assert (mask[3:13] < 4).all()


def test_a_smaller_output_takes_the_nearest_pixels(tmp_path: Path) -> None:
    """An output of a quarter of the input's side has every fourth pixel."""
    write(tmp_path, "1.png", noise(16, 16))
    (whole,), (small,) = read(tmp_path, "1.png"), read(tmp_path, "1.png", shape=(4, 4, 4))
    np.testing.assert_array_equal(small, whole[2::4, 2::4])


def test_a_palette_and_a_camera_turned_aside_are_read(tmp_path: Path) -> None:
    """A palette's numbers are the classes. An upright mask fits an image that EXIF turns upright."""
    mask = noise(20, 20)
    coloured = Image.fromarray(np.asarray(mask)).convert("P")
    coloured.putdata(list(np.asarray(mask).ravel()))
    coloured.putpalette([7, 7, 7, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    write(tmp_path, "1.png", mask)
    coloured.save(tmp_path / "masks" / "1.png")
    (found,) = read(tmp_path, "1.png")
    write(tmp_path, "2.png", mask)
    np.testing.assert_array_equal(found, read(tmp_path, "2.png")[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (28, 20)).save(tmp_path / "images" / "3.png", exif=exif)
    noise(28, 20).save(tmp_path / "masks" / "3.png")
    read(tmp_path, "3.png", spec=SPEC.model_copy(update={"orientation": Orientation.EXIF}))
    with pytest.raises(DataError, match="another size"):
        read(tmp_path, "3.png")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("RGB", (28, 20)), "a mask has colours"),
        (noise(21, 28), r"(?s)another size than its image.*28×20.*28×21"),
        (Image.new("L", (28, 20), 4), r"(?s)no classes.*1.png.*0 to 3, and 255.*4"),
    ],
    ids=["colours", "size", "value"],
)
def test_a_wrong_mask_is_one_message(tmp_path: Path, mask: Image.Image, message: str) -> None:
    """It names the file, what was expected and what was found."""
    write(tmp_path, "1.png", noise())
    mask.save(tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match=message):
        read(tmp_path, "1.png")


def test_masks_that_are_missing_damaged_or_among_the_images_are_refused(tmp_path: Path) -> None:
    """Each is an error of its own."""
    write(tmp_path, "1.png", noise())
    with pytest.raises(DataError, match=r"(?s)1 of 2 images have no mask.*2\.png"):
        read(tmp_path, "1.png", "2.jpg")
    (tmp_path / "masks" / "1.png").write_bytes(b"no PNG")
    with pytest.raises(DataError, match="a mask cannot be read"):
        read(tmp_path, "1.png")
    with pytest.raises(DataError, match="would be taken for images"):
        read_masks(tmp_path / "masks", tmp_path, ["1.png"], SPEC, SHAPE)
    with pytest.raises(DataError, match="does not exist"):
        read_masks(tmp_path / "none", tmp_path, ["1.png"], SPEC, SHAPE)


def test_a_table_gives_the_rows_of_images(tmp_path: Path) -> None:
    """Rows come in the order of the images; others, and empty lines, are left."""
    file = tmp_path / "labels.csv"
    file.write_text("image,cat,dog\na/1.png,1,0\n\na/2.png, 0.5 ,-2e1\nb.png,3,4\n", encoding="utf-8-sig")
    columns, values = read_table(file, ["b.png", "a/2.png"])
    assert columns == ("cat", "dog")
    np.testing.assert_array_equal(values, [[3, 4], [0.5, -20]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"(?s)other headings.*labels.csv:1.*an empty line"),
        ("file,cat\n1.png,1\n", r"(?s)other headings.*got: +file,cat"),
        ("image,cat,cat\n1.png,1,1\n", "other headings"),
        ("image,cat\n1.png,1,2\n", r"(?s)another length.*labels.csv:2.*2 fields.*3: 1.png,1,2"),
        ("image,cat\n1.png,1\n1.png,1\n", r"(?s)twice.*labels.csv:3.*1.png"),
        ("image,cat\n1.png,yes\n", r"(?s)no number.*labels.csv:2.*column cat.*'yes'"),
        ("image,cat\n1.png,nan\n", "no number"),
        ("image,cat\n2.png,1\n", r"(?s)1 of 1 images have no row.*no 1.png"),
        ('image,cat\n"1.png,1\n', "cannot be read"),
    ],
    ids=["empty", "first", "twice-named", "length", "twice", "text", "nan", "missing", "quote"],
)
def test_a_wrong_table_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    """It has the line, what was expected and what was found."""
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(file, ["1.png"])


def test_first_folders_are_the_classes() -> None:
    """Numbered in the order of their names, whatever lies below them."""
    assert folder_classes("images", ["b/1.png", "a/x/2.png", "b/3.png"]).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("names", "got"), [(["a/1.png", "2.png"], "in no folder, such as 2.png"), (["a/1.png"], "a alone")], ids=str
)
def test_images_without_classes_are_refused(names: list[str], got: str) -> None:
    """A hit means nothing among images of one class."""
    with pytest.raises(DataError, match=got):
        folder_classes("images", names)
