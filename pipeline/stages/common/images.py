"""Where images come from: scikit-learn's digits and photographs, or a folder with one folder of images a class."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from model_artifacts.errors import DataError
from model_artifacts.records import Preprocessing
from model_artifacts.sessions.preprocessing import to_pixels
from pipeline.system.processes import live_with

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from typing_extensions import Self

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
        names: of the samples, as paths in their folder; nothing where they are not of one.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None
    unreadable: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

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

    def read(  # noqa: PLR0913 - what is read, where to, and what its neighbours need of it
        self,
        spec: Preprocessing,
        span: range,
        file: Path,
        *,
        before: Sequence[str] = (),
        total: int | None = None,
        workers: int = 1,
        seen: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Images:
        """Read the images of these numbers, leaving out those that cannot be read.

        They are decoded some at a time and go straight to disk, so that memory does not grow with their number.

        Args:
            spec: how they are made into pixels.
            span: their numbers; a folder may have fewer.
            file: where their pixels are written, as .npy.
            before: what could not be read of other spans.
            total: how many images all spans have, of which 1 % may be unreadable; left out, those of this one.
            workers: how many processes decode.
            seen: is told how many of how many have been read.

        Returns:
            the images, their pixels mapped from `file`.

        Raises:
            DataError: none is left, more than 1 % cannot be read, or a worker died.
        """
        files = self.files[span.start : span.stop]
        if not files:
            raise DataError(
                f"the image folder has {len(self.files)} images: none is left for validation",
                where=str(self.folder),
                expected="at least two images, for calibration and for validation",
            )
        unreadable: list[str] = []
        kept: list[int] = []
        with _decoding(workers if len(files) > _FEW else 1) as decode, PixelFile(file, spec, len(files)) as pixels:
            step = _AT_ONCE * workers
            for start in range(0, len(files), step):
                part = files[start : start + step]
                for index, found in enumerate(decode(part, spec), start):
                    if found is None:
                        unreadable.append(str(files[index]))
                    else:
                        pixels.append(found)
                        kept.append(index)
                self._check([*before, *unreadable], total or len(files))
                seen(start + len(part), len(files))
        if not kept:
            self._check(unreadable, 0)
        labels = np.array([self.labels[span.start + index] for index in kept], dtype=np.int64)
        names = tuple(files[index].relative_to(self.folder).as_posix() for index in kept)
        return Images(np.load(file, mmap_mode="r"), labels, tuple(unreadable), names)

    def _check(self, unreadable: list[str], total: int) -> None:
        """Fail as soon as it is certain that too many cannot be read."""
        if len(unreadable) <= UNREADABLE_LIMIT * total:
            return
        shown = ", ".join(unreadable[:5]) + (" …" if len(unreadable) > 5 else "")  # noqa: PLR2004 - enough to act on
        raise DataError(
            f"{len(unreadable)} of {total or len(unreadable)} images cannot be read",
            where=str(self.folder),
            expected=f"at most {UNREADABLE_LIMIT:.0%}",
            got=shown,
            fix="repair or remove them, or lower `data.calibration` and `data.validation`",
        )


class PixelFile:
    """A .npy file of images that grows one by one. A context manager, at whose end the file says how many there are."""

    def __init__(self, file: Path, spec: Preprocessing, expected: int) -> None:
        """Begin with none of the `expected` images."""
        self._path = file
        self._shape = (spec.crop, spec.crop, spec.channels)
        self._expected = expected
        self._count = 0

    def __enter__(self) -> Self:
        """Open the file."""
        self._file = self._path.open("wb")
        self._header = self._write_header(self._expected)
        return self

    def __exit__(self, *_: object) -> None:
        """Write how many there are; numpy leaves room in a header for the first axis to change."""
        if self._count != self._expected:
            self._file.seek(0)
            if self._write_header(self._count) != self._header:
                raise DataError(f"{self._path} has no room in its header for {self._count} images")
        self._file.close()

    def append(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Write an image: uint8 (crop, crop, channels)."""
        self._file.write(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())
        self._count += 1

    def _write_header(self, count: int) -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]
        return self._file.tell()


_FEW = 64
"""Fewer images are decoded faster than processes start."""
_AT_ONCE = 64
"""How many images of each worker are on their way at once; memory is bounded by it."""

_Decode = Callable[["Sequence[Path]", Preprocessing], "Iterable[npt.NDArray[np.uint8] | None]"]


@contextmanager
def _decoding(workers: int) -> Iterator[_Decode]:
    """Yield what decodes files, in their order: here, or in processes."""
    if workers == 1:
        yield lambda files, spec: (_pixels(file, spec) for file in files)
        return
    context = multiprocessing.get_context("spawn")  # nothing is inherited, least of all torch's threads
    with ProcessPoolExecutor(workers, context, initializer=live_with, initargs=(os.getpid(),)) as pool:

        def decode(files: Sequence[Path], spec: Preprocessing) -> Iterator[npt.NDArray[np.uint8] | None]:
            try:
                yield from pool.map(partial(_pixels, spec=spec), files, chunksize=_AT_ONCE // 4)
            except BrokenProcessPool as exc:
                raise DataError(
                    "a process that reads images died",
                    got="no word of it, as when memory is short or a decoder crashes",
                    fix="free memory, or look for a damaged image with fewer of them: `data.validation`",
                ) from exc

        yield decode


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
