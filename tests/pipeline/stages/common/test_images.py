"""Images: scikit-learn's digits and photographs, and folders of images."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from model_artifacts.errors import DataError
from model_artifacts.records import Interpolation, Preprocessing
from pipeline.stages.common.classes import classes_of
from pipeline.stages.common.images import DIGITS_TO_FIT, ImageFolder, _decoding, digits, open_folder, photographs

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Preprocessing(resize=8, crop=8, interpolation=Interpolation.NEAREST, mean=(0.5,) * 3, std=(0.5,) * 3)
FULL = Preprocessing(resize=224, crop=224, interpolation=Interpolation.NEAREST, mean=(0.5,) * 3, std=(0.5,) * 3)
UNNAMED = classes_of(None, None, 1)
COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "emu": (0, 0, 255)}


def save(file: Path, colour: tuple[int, int, int] = (9, 9, 9), size: tuple[int, int] = (10, 12)) -> None:
    """Write an image of one colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file)


def fill(folder: Path, count: int) -> None:
    """Write images into the one class `cat`."""
    for index in range(count):
        save(folder / "cat" / f"{index:04}.png")


def damage_second_chunk(file: Path) -> None:
    """Write a PNG whose pixels come in two chunks, the second of which has a name that no chunk can have."""
    noise = np.random.default_rng(0).integers(0, 256, (160, 171, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    data = file.read_bytes()
    second = data.index(b"IDAT", data.index(b"IDAT") + 4)
    file.write_bytes(data[:second] + b"\xff\x00\xff\x00" + data[second + 4 :])


def test_digits_carry_their_own_labels() -> None:
    """Every enlarged digit is one of scikit-learn's originals, and has that one's label."""
    bunch = load_digits()
    found = digits(FULL, 790, 20)
    assert found.labels is not None

    for pixels, label in zip(found.pixels, found.labels, strict=True):
        original = pixels[14::28, 14::28, 0].astype(float) / (255 / 16)
        matches = np.flatnonzero(np.abs(bunch.images - original).max(axis=(1, 2)) < 0.5)
        assert label in bunch.target[matches]


def test_digits_have_a_fixed_order() -> None:
    """The same digits come every time, wherever one begins."""
    later, all_of_them = digits(SMALL, 3, 4), digits(SMALL, 0, 7)

    np.testing.assert_array_equal(later.pixels, all_of_them.pixels[3:])


def test_held_out_digits_were_not_fitted_on() -> None:
    """The digits to fit and those held out are, together, every digit once."""
    bunch = load_digits()
    fitted, held_out = digits(SMALL, 0, DIGITS_TO_FIT), digits(SMALL, DIGITS_TO_FIT, 1797 - DIGITS_TO_FIT)
    assert fitted.labels is not None
    assert held_out.labels is not None

    labels = np.concatenate([fitted.labels, held_out.labels])

    np.testing.assert_array_equal(np.bincount(labels), np.bincount(bunch.target))


def test_digits_have_every_class() -> None:
    """The shuffled order holds all ten classes among the first hundred."""
    labels = digits(SMALL, 0, 100).labels

    assert labels is not None
    assert set(labels.tolist()) == set(range(10))


def test_all_held_out_digits_can_be_had() -> None:
    """The last digit is not one too many."""
    assert len(digits(SMALL, DIGITS_TO_FIT, 997)) == 997


def test_too_many_digits() -> None:
    """Asking for more digits than there are says how many there are to have."""
    with pytest.raises(DataError, match=r"`data\.validation` in pipeline\.yaml to 997 or less"):
        digits(SMALL, DIGITS_TO_FIT, 998)


def test_photographs_are_the_same_every_time() -> None:
    """A photograph's crop depends on its number alone."""
    np.testing.assert_array_equal(photographs(SMALL, 2, 3).pixels, photographs(SMALL, 0, 5).pixels[2:])


def test_photographs_differ() -> None:
    """No two crops are the same picture."""
    pixels = photographs(SMALL, 0, 40).pixels.reshape(40, -1)

    assert len(np.unique(pixels, axis=0)) == 40


def test_photographs_have_no_labels() -> None:
    """Photographs are unlabelled."""
    assert photographs(SMALL, 0, 1).labels is None


def test_missing_folder(tmp_path: Path) -> None:
    """A missing folder is named, with its expected contents."""
    with pytest.raises(DataError, match=r"(?s)does not exist.*gone.*one folder of images a class"):
        open_folder(tmp_path / "gone", 3, UNNAMED)


def test_empty_folder(tmp_path: Path) -> None:
    """A folder with nothing in it has no images."""
    with pytest.raises(DataError, match="has no images"):
        open_folder(tmp_path, 3, UNNAMED)


def test_folder_without_image_files(tmp_path: Path) -> None:
    """Files that are no images by their name are passed over."""
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")

    with pytest.raises(DataError, match="has no images"):
        open_folder(tmp_path, 1, UNNAMED)


def test_classes_are_numbered_by_name(tmp_path: Path) -> None:
    """Folders that are named like the model's classes take those classes' numbers, in whatever order they lie."""
    for name in ("emu", "cat"):
        save(tmp_path / name / "a.png", COLOURS[name])
    names = ("dog", "emu", "cat")

    found = open_folder(tmp_path, 3, classes_of(None, names, 3)).read(SMALL, range(2), tmp_path / "pixels.npy")

    assert found.labels is not None
    colours = [tuple(pixels[0, 0].tolist()) for pixels in found.pixels]
    assert [COLOURS[names[label]] for label in found.labels] == colours


def test_classes_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    """Folders with other names are numbered in their sorted order, where there are as many as the model has classes."""
    for name in ("emu", "dog", "cat"):
        save(tmp_path / name / "a.png", COLOURS[name])

    found = open_folder(tmp_path, 3, classes_of(None, ("0", "1", "2"), 3)).read(
        SMALL, range(3), tmp_path / "pixels.npy"
    )

    assert found.labels is not None
    colours = [tuple(pixels[0, 0].tolist()) for pixels in found.pixels]
    assert [list(COLOURS.values())[label] for label in found.labels] == colours


def test_wrong_number_of_classes(tmp_path: Path) -> None:
    """Folders that can be no classes of the model are counted and named."""
    for name in ("a", "b", "c", "d", "e", "f"):
        save(tmp_path / name / "x.png")

    with pytest.raises(DataError, match=r"(?s)expected: 3 folders.*got: +6 folders: a, b, c, d, e …"):
        open_folder(tmp_path, 3, classes_of(None, tuple(COLOURS), 3))


def test_images_lie_in_subfolders_and_have_any_suffix(tmp_path: Path) -> None:
    """Images are found below their class's folder, in every format, whatever the case of their suffix."""
    for name in ("cat/a.jpg", "cat/more/b.JPEG", "cat/c.bmp", "cat/d.webp", "cat/e.tif"):
        save(tmp_path / name)

    assert len(open_folder(tmp_path, 1, UNNAMED).files) == 5


def test_companions_of_images_are_no_images(tmp_path: Path) -> None:
    """The folders and files that a Mac's archive leaves are neither classes nor damaged images."""
    fill(tmp_path, 3)
    for name in ("__MACOSX/cat/._a.png", "cat/._b.png", "cat/.thumbs/c.png", ".git/d.png", "cat/__MACOSX/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"Mac OS X")

    assert sorted(file.name for file in open_folder(tmp_path, 1, UNNAMED).files) == ["0000.png", "0001.png", "0002.png"]


@pytest.mark.parametrize("suffix", ["ppm", "pgm", "gif", "jfif", "tga", "jp2"])
def test_less_usual_formats_are_images(tmp_path: Path, suffix: str) -> None:
    """Portable pixmaps, as of the German traffic signs, and other formats of Pillow count."""
    (tmp_path / "00000").mkdir()
    Image.new("L" if suffix == "pgm" else "RGB", (9, 9)).save(
        tmp_path / "00000" / f"a.{suffix}", "JPEG" if suffix == "jfif" else None
    )

    assert len(open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(1), tmp_path / "pixels.npy")) == 1


def test_files_of_other_kinds_are_named(tmp_path: Path) -> None:
    """A folder without images says which files it has."""
    (tmp_path / "cat").mkdir()
    for index in range(3):
        (tmp_path / "cat" / f"{index}.dcm").write_bytes(b"DICM")

    with pytest.raises(DataError, match=r"(?s)has no images.*\.ppm.*files of other kinds: 3 with \.dcm"):
        open_folder(tmp_path, 1, UNNAMED)


def test_images_without_a_class(tmp_path: Path) -> None:
    """Images beside no folder are counted, with the advice to make folders."""
    save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"(?s)has no images.*move its 1 images into a folder for each class"):
        open_folder(tmp_path, 1, UNNAMED)


def test_class_without_images_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A class whose folder has no images keeps its number, and is said."""
    save(tmp_path / "dog" / "a.png")
    (tmp_path / "cat").mkdir()
    assert open_folder(tmp_path, 2, UNNAMED).labels == (1,)
    assert "cat has no images" in caplog.text


def test_folder_is_shuffled_the_same_way_every_time(tmp_path: Path) -> None:
    """The order is not that of the classes, and it is the same every time."""
    fill(tmp_path, 20)

    files = open_folder(tmp_path, 1, UNNAMED).files

    assert files == open_folder(tmp_path, 1, UNNAMED).files
    assert list(files) != sorted(files)


def test_few_unreadable_images_are_left_out(tmp_path: Path) -> None:
    """Up to one image in a hundred may be unreadable; it is named, and the labels stay beside their images."""
    fill(tmp_path, 99)
    save(tmp_path / "dog" / "a.png", COLOURS["dog"])
    (tmp_path / "cat" / "0007.png").write_bytes(b"no image")

    found = open_folder(tmp_path, 2, UNNAMED).read(SMALL, range(100), tmp_path / "pixels.npy")

    assert found.unreadable == (str(tmp_path / "cat" / "0007.png"),)
    assert found.labels is not None
    assert len(found) == len(found.labels) == 99
    assert found.pixels[found.labels == 1][0, 0, 0].tolist() == list(COLOURS["dog"])
    assert [name.partition("/")[0] == "dog" for name in found.names] == found.labels.tolist()


def test_one_in_a_hundred_is_of_all_spans(tmp_path: Path) -> None:
    """Two damaged images among few are no damaged folder; a third one in the other span makes it one."""
    folder = many(tmp_path / "images", 250)
    for file in folder.files[:2]:
        file.write_bytes(b"")
    few = folder.read(SMALL, range(50), tmp_path / "few.npy", total=250)
    assert (len(few), len(few.unreadable)) == (48, 2)
    folder.files[100].write_bytes(b"")
    with pytest.raises(DataError, match="3 of 250 images cannot be read"):
        folder.read(SMALL, range(50, 250), tmp_path / "rest.npy", before=few.unreadable, total=250)


def test_many_unreadable_images(tmp_path: Path) -> None:
    """More than one unreadable image in a hundred is an error that names the first of them."""
    fill(tmp_path, 99)
    for index in range(6):
        (tmp_path / "cat" / f"{index:04}.png").write_bytes(b"")

    with pytest.raises(DataError, match=r"(?s)6 of 99 images cannot be read.*at most 1%.*000\d\.png.* …"):
        open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(99), tmp_path / "pixels.npy")


def test_only_unreadable_images(tmp_path: Path) -> None:
    """A batch with no readable image at all is an error, never an empty result."""
    fill(tmp_path, 1)
    (tmp_path / "cat" / "0000.png").write_bytes(b"")

    with pytest.raises(DataError, match="1 of 1 images cannot be read"):
        open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(1), tmp_path / "pixels.npy")


@pytest.mark.parametrize("kept", [20, 200, 40_000])
def test_truncated_image_is_unreadable(tmp_path: Path, kept: int) -> None:
    """An image that ends early is unreadable, wherever it ends."""
    fill(tmp_path, 100)
    file = tmp_path / "cat" / "0003.png"
    damage_second_chunk(file)
    file.write_bytes(file.read_bytes()[:kept])

    assert open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(100), tmp_path / "pixels.npy").unreadable == (str(file),)


def test_damaged_image_is_unreadable(tmp_path: Path) -> None:
    """An image with a damaged chunk in its middle is unreadable: Pillow raises a SyntaxError for it."""
    fill(tmp_path, 100)
    file = tmp_path / "cat" / "0003.png"
    damage_second_chunk(file)

    assert open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(100), tmp_path / "pixels.npy").unreadable == (str(file),)


def test_decompression_bomb_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that unpacks to more pixels than Pillow allows is left out instead of filling the memory."""
    fill(tmp_path, 100)
    save(tmp_path / "cat" / "0003.png", size=(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    found = open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(100), tmp_path / "pixels.npy")

    assert found.unreadable == (str(tmp_path / "cat" / "0003.png"),)


@pytest.mark.parametrize("workers", [1, 2])
def test_16_bit_image_is_refused_and_not_left_out(tmp_path: Path, workers: int) -> None:
    """One 16-bit image among a hundred readable ones is an error with the line to write, in every process."""
    fill(tmp_path, 100)
    Image.fromarray(np.full((9, 9), 600, dtype=np.uint16)).save(tmp_path / "cat" / "0003.png")

    with pytest.raises(DataError, match=r"(?s)more than 8 bits.*0003\.png.*levels: \[0, 65535\]"):
        open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(100), tmp_path / "pixels.npy", workers=workers)


def test_nothing_left_to_validate_on(tmp_path: Path) -> None:
    """One image is too few: calibration takes it, and the message asks for two."""
    fill(tmp_path, 1)

    with pytest.raises(DataError, match=r"(?s)none is left for validation.*at least two images"):
        open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(1, 6), tmp_path / "pixels.npy")


def test_fewer_images_than_asked_for(tmp_path: Path) -> None:
    """A folder with fewer images than asked for gives those that it has."""
    fill(tmp_path, 3)

    assert len(open_folder(tmp_path, 1, UNNAMED).read(SMALL, range(1, 501), tmp_path / "pixels.npy")) == 2


# Many images.


def many(folder: Path, count: int, size: int = 12) -> ImageFolder:
    """Write images that differ, and list them."""
    (folder / "cat").mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (size, size), (index % 256, index // 256, 7)).save(folder / "cat" / f"{index:05}.png")
    return open_folder(folder, 1, UNNAMED)


def test_workers_write_the_same_bytes_in_the_same_order(tmp_path: Path) -> None:
    """The file and the names of unreadable images do not depend on the number of decoding processes."""
    folder = many(tmp_path / "images", 300)
    (tmp_path / "images" / "cat" / "00123.png").write_bytes(b"no image")
    alone = folder.read(SMALL, range(300), tmp_path / "alone.npy", workers=1)
    together = folder.read(SMALL, range(300), tmp_path / "together.npy", workers=2)
    assert (tmp_path / "alone.npy").read_bytes() == (tmp_path / "together.npy").read_bytes()
    assert alone.unreadable == together.unreadable == (str(tmp_path / "images" / "cat" / "00123.png"),)
    assert len(alone) == len(together) == 299


def test_what_was_left_out_leaves_no_gap(tmp_path: Path) -> None:
    """The file says how many images there are, and numpy reads it as it reads its own."""
    folder = many(tmp_path / "images", 101)
    (tmp_path / "images" / "cat" / "00000.png").write_bytes(b"")
    found = folder.read(SMALL, range(101), tmp_path / "pixels.npy")
    again = np.load(tmp_path / "pixels.npy")
    assert again.shape == (100, *found.pixels.shape[1:])
    assert np.array_equal(again, found.pixels)
    assert (tmp_path / "pixels.npy").stat().st_size == again.nbytes + 128


def test_progress_is_told_up_to_the_end(tmp_path: Path) -> None:
    """Whoever wants to know hears how many of how many have been read."""
    told: list[tuple[int, int]] = []
    many(tmp_path / "images", 70).read(
        SMALL, range(70), tmp_path / "pixels.npy", on_progress=lambda *counts: told.append(counts)
    )
    assert told == [(64, 70), (70, 70)]


def test_too_many_unreadable_images_fail_early(tmp_path: Path) -> None:
    """Once it is certain that more than one in a hundred cannot be read, the rest is not tried."""
    folder = many(tmp_path / "images", 200)
    for file in folder.files[:5]:
        file.write_bytes(b"")
    told: list[int] = []
    with pytest.raises(DataError, match="5 of 200 images cannot be read"):
        folder.read(SMALL, range(200), tmp_path / "pixels.npy", on_progress=lambda done, _: told.append(done))
    assert told == []


def test_a_worker_that_dies_is_one_message() -> None:
    """A decoder that takes its process down fails the stage, and says so."""
    with (
        pytest.raises(DataError, match="a process that reads images died"),
        _decoding(2) as decode,
    ):
        list(decode([Kills() for _ in range(8)], SMALL))  # type: ignore[misc]  # as good as a path


class Kills(os.PathLike[str]):
    """A path that ends the process that opens it."""

    def __fspath__(self) -> str:
        """End it."""
        os._exit(9)


MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.stages.common.classes import classes_of
from pipeline.stages.common.images import open_folder
from model_artifacts.records import Interpolation, Preprocessing
spec = Preprocessing(resize=256, crop=256, interpolation=Interpolation.NEAREST, mean=(0.5,) * 3, std=(0.5,) * 3)
folder = open_folder(Path(sys.argv[1]), 1, classes_of(None, None, 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder.read(spec, range(len(folder.files)), Path(sys.argv[2]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    """1,000 images of 197 kB go through a process that takes less than a fifth of their 197 MB for it."""
    many(tmp_path / "images", 1000, size=8)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "images"), str(tmp_path / "pixels.npy")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - fixed arguments
    assert (tmp_path / "pixels.npy").stat().st_size > 190e6
    assert int(done.stdout) < 40e6
