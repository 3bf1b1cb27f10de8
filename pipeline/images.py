"""Where images come from: scikit-learn's digits and photographs, or a folder with one folder of images a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.errors import DataError
from pipeline.preprocessing import to_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from pipeline.records import Preprocessing

DIGITS_TO_FIT = 800
"""How many of the 1,797 digits the sample model's head is fitted on; it never sees the rest."""
DIGIT_CLASSES = 10
UNREADABLE_LIMIT = 0.01
"""The share of images that may be unreadable before the folder counts as damaged."""

_DIGIT_SIZE = 224
_PATCHES_SEED = 0
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Images:
    """Preprocessed images.

    Attributes:
        pixels: uint8 (samples, crop, crop, channels).
        labels: int64 (samples,) class indices; None where nothing is labelled.
        unreadable: the files that could not be read.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


def digits(spec: Preprocessing, start: int, count: int) -> Images:
    """Return `count` of scikit-learn's handwritten digits from `start` on, in a fixed shuffled order.

    The 8×8 originals are enlarged to 224×224 without smoothing, which keeps the edges that a network looks for.

    Raises:
        DataError: there are not that many.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 - half a second that few stages need

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.images))[start : start + count]
    if len(order) < count:
        raise DataError(
            f"scikit-learn's digits end at {len(bunch.images)}: too few for {count} from number {start} on",
            fix=f"lower `data.validation` in pipeline.yaml to {len(bunch.images) - start} or less",
        )
    pictures = (bunch.images[order] * (255 / 16)).round().astype(np.uint8)
    size = (_DIGIT_SIZE, _DIGIT_SIZE)
    big = (Image.fromarray(picture).resize(size, Image.Resampling.NEAREST) for picture in pictures)
    return Images(np.stack([to_pixels(image, spec) for image in big]), bunch.target[order].astype(np.int64))


def photographs(spec: Preprocessing, start: int, count: int) -> Images:
    """Return unlabelled random crops of scikit-learn's two photographs, the same ones every time.

    Each is a square of half to all of a photograph's height, mirrored half of the time.
    """
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - half a second that few stages need

    originals = [Image.fromarray(picture) for picture in load_sample_images().images]

    def crop(index: int) -> npt.NDArray[np.uint8]:
        random = np.random.default_rng((_PATCHES_SEED, index))
        original = originals[index % len(originals)]
        side = int(random.integers(original.height // 2, original.height + 1))
        left = int(random.integers(0, original.width - side + 1))
        top = int(random.integers(0, original.height - side + 1))
        patch = original.crop((left, top, left + side, top + side))
        mirrored = patch.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else patch  # noqa: PLR2004
        return to_pixels(mirrored, spec)

    return Images(np.stack([crop(index) for index in range(start, start + count)]), None)


@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder that has one folder a class, in a fixed shuffled order."""

    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]

    def read(self, spec: Preprocessing, start: int, count: int) -> Images:
        """Read up to `count` images from number `start` on, leaving out those that cannot be read.

        Raises:
            DataError: none is left, or more than 1 % cannot be read.
        """
        files = self.files[start : start + count]
        if not files:
            raise DataError(
                f"the image folder has {len(self.files)} images: none is left for validation",
                where=str(self.folder),
                expected="at least two images, for calibration and for validation",
            )
        found = [_pixels(file, spec) for file in files]
        unreadable = tuple(str(file) for file, pixels in zip(files, found, strict=True) if pixels is None)
        if len(unreadable) > UNREADABLE_LIMIT * len(files) or len(unreadable) == len(files):
            shown = ", ".join(unreadable[:5]) + (" …" if len(unreadable) > 5 else "")  # noqa: PLR2004 - enough to act on
            raise DataError(
                f"{len(unreadable)} of {len(files)} images cannot be read",
                where=str(self.folder),
                expected=f"at most {UNREADABLE_LIMIT:.0%}",
                got=shown,
                fix="repair or remove them, or lower `data.calibration` and `data.validation`",
            )
        kept = [index for index, pixels in enumerate(found) if pixels is not None]
        labels = np.array([self.labels[start + index] for index in kept], dtype=np.int64)
        return Images(np.stack([pixels for pixels in found if pixels is not None]), labels, unreadable)


def _pixels(file: Path, spec: Preprocessing) -> npt.NDArray[np.uint8] | None:
    """Return an image's pixels, None where it cannot be read: the caller counts and names those."""
    try:
        with Image.open(file) as image:
            return to_pixels(image, spec)
    except Exception:  # noqa: BLE001 - Pillow's decoders raise almost anything, SyntaxError included
        return None


def open_folder(folder: Path, classes: int, class_names: Sequence[str] | None) -> ImageFolder:
    """List a folder's images and number their classes.

    Folders that are named like the model's classes are numbered by name, otherwise in sorted order.

    Raises:
        DataError: no such folder, no images, or classes that are not the model's.
    """
    expected = "a folder with one folder of images a class"
    if not folder.is_dir():
        raise DataError("the image folder does not exist", where=str(folder), expected=expected)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if class_names is not None and set(names) <= set(class_names):
        numbers = {name: class_names.index(name) for name in names}
    elif len(names) == classes or not names:
        numbers = {name: index for index, name in enumerate(names)}
    else:
        raise DataError(
            "the image folder's classes are not the model's",
            where=str(folder),
            expected=f"{classes} folders, or folders named like the model's classes",
            got=f"{len(names)} folders: {', '.join(names[:5])}{' …' if len(names) > 5 else ''}",  # noqa: PLR2004
        )
    found = [
        (file, number)
        for name, number in numbers.items()
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    if not found:
        raise DataError("the image folder has no images", where=str(folder), expected=expected, got="no image files")
    order = np.random.default_rng(0).permutation(len(found))
    shuffled = [found[index] for index in order]
    return ImageFolder(folder, tuple(file for file, _ in shuffled), tuple(label for _, label in shuffled))
