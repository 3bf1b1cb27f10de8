"""Sources of images: scikit-learn's digits and photographs, or a folder with one subfolder of images per class."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from model_artifacts.errors import DataError, UnreadableError
from model_artifacts.records import Preprocessing
from model_artifacts.sessions.preprocessing import read_pixels, to_pixels
from pipeline.stages.common.classes import Numbering, number_folders
from pipeline.system.processes import live_with

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from typing_extensions import Self

    from pipeline.stages.common.classes import Classes

log = logging.getLogger(__name__)

DIGITS_TO_FIT = 800
"""The number of the 1,797 digits that the sample model's head is fitted on. It never sees the others."""
DIGIT_CLASSES = 10
UNREADABLE_LIMIT = 0.01
"""The share of unreadable images above which a folder counts as damaged."""

_DIGIT_SIZE = 224
_PATCHES_SEED = 0
_FORMATS = "jpg jpeg jpe jfif png bmp dib webp tif tiff ppm pgm pbm pnm gif jp2 avif tga"
SUFFIXES = frozenset(f".{name}" for name in _FORMATS.split())
"""Suffixes of the files that count as images: torchvision's, and others that Pillow reads."""
_COMPANIONS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


@dataclass(frozen=True)
class Images:
    """Preprocessed images.

    Attributes:
        pixels: uint8 (samples, height, width, channels); of a model of tensors an array with a field for each input.
        labels: int64 (samples,) class indices; None without labels. Of a model of tensors as its task has them.
        unreadable: the files that could not be read.
        names: the samples' paths in their folder; empty for other sources.
    """

    pixels: npt.NDArray[Any]
    labels: npt.NDArray[Any] | None
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
    from sklearn.datasets import load_digits  # noqa: PLC0415 - it takes half a second, and few stages need it

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
    """Return unlabelled random crops of scikit-learn's two photographs, the same each time.

    Each is a square of half to all of a photograph's height. Half of them are mirrored.
    """
    from sklearn.datasets import load_sample_images  # noqa: PLC0415 - it takes half a second, and few stages need it

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
    """The images of a folder in a fixed shuffled order, with the classes of their subfolders if these are classes."""

    folder: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None

    def read(  # noqa: PLR0913 - the images, their file, and the state of the other spans
        self,
        spec: Preprocessing,
        span: range,
        file: Path,
        *,
        before: Sequence[str] = (),
        total: int | None = None,
        workers: int = 1,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> Images:
        """Read the images of these numbers, except those that cannot be read.

        They are decoded in parts and written straight to disk, so that memory does not grow with their number.

        Args:
            spec: the preprocessing.
            span: the images' numbers; a folder may have fewer.
            file: the .npy file for their pixels.
            before: unreadable files of other spans.
            total: the number of images in all spans, of which 1 % may be unreadable; None for this span's.
            workers: the number of processes that decode.
            on_progress: called with the number of images read, and their total.

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
                on_progress(start + len(part), len(files))
        if not kept:
            self._check(unreadable, 0)
        labels = None
        if self.labels is not None:
            labels = np.array([self.labels[span.start + index] for index in kept], dtype=np.int64)
        names = tuple(files[index].relative_to(self.folder).as_posix() for index in kept)
        return Images(np.load(file, mmap_mode="r"), labels, tuple(unreadable), names)

    def _check(self, unreadable: list[str], total: int) -> None:
        """Raise an error as soon as too many images are certain to be unreadable."""
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
    """A .npy file of images that grows one by one. The context manager's end writes their number into the header."""

    def __init__(self, file: Path, spec: Preprocessing, expected: int) -> None:
        """Start without any of the `expected` images."""
        self._path = file
        self._shape = (spec.height, spec.width, spec.channels)
        self._expected = expected
        self._count = 0

    def __enter__(self) -> Self:
        """Open the file."""
        self._file = self._path.open("wb")
        self._header = self._write_header(self._expected)
        return self

    def __exit__(self, *_: object) -> None:
        """Write the number of images; numpy leaves room in a header for the first axis to change."""
        if self._count != self._expected:
            self._file.seek(0)
            if self._write_header(self._count) != self._header:
                raise DataError(f"{self._path} has no room in its header for {self._count} images")
        self._file.close()

    def append(self, pixels: npt.NDArray[np.uint8]) -> None:
        """Write an image: uint8 (height, width, channels)."""
        self._file.write(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())
        self._count += 1

    def _write_header(self, count: int) -> int:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]
        return self._file.tell()


_FEW = 64
"""Fewer images are decoded faster than processes start."""
_AT_ONCE = 64
"""The number of images per worker in flight at once, which bounds memory."""

_Decode = Callable[["Sequence[Path]", Preprocessing], "Iterable[npt.NDArray[np.uint8] | None]"]


@contextmanager
def _decoding(workers: int) -> Iterator[_Decode]:
    """Yield a function that decodes files in their order, in this process or in others."""
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
                    got="no message from it, as when memory is short or a decoder crashes",
                    fix="free memory, or lower `data.validation` to find a damaged image",
                ) from exc

        yield decode


def _pixels(file: Path, spec: Preprocessing) -> npt.NDArray[np.uint8] | None:
    """Return an image's pixels; None if it cannot be read. The caller counts and names those."""
    try:
        return read_pixels(file, spec)
    except UnreadableError:
        return None


def open_folder(folder: Path, count: int, classes: Classes) -> ImageFolder:
    """List a folder's images, and number their classes.

    Hidden files and folders are left out, and so are the companions that a Mac's archives leave (`__MACOSX`, `._*`).

    Args:
        folder: the folder with one folder for each class.
        count: the number of the network's classes.
        classes: their names.

    Raises:
        DataError: the folder is missing, has no images, or its classes are not the model's.
    """
    expected = "a folder with one folder of images a class"
    if not folder.is_dir():
        raise DataError("the image folder does not exist", where=str(folder), expected=expected)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name))
    numbering = number_folders(folder, names, classes, count) if names else Numbering({})
    found: list[tuple[Path, int]] = []
    others: Counter[str] = Counter()
    for name, number in numbering.numbers.items():
        files = [file for file in sorted((folder / name).rglob("*")) if not _is_hidden_below(file, folder)]
        pictures = [(file, number) for file in files if file.suffix.lower() in SUFFIXES]
        others.update(
            file.suffix or "no suffix" for file in files if file.suffix.lower() not in SUFFIXES and file.is_file()
        )
        if not pictures:
            log.warning("WARNING: the image folder %s has no images", folder / name)
        found += pictures
    if not found:
        suffixes = ", ".join(f"{number} with {suffix}" for suffix, number in others.most_common(3))
        loose = sum(file.suffix.lower() in SUFFIXES for file in folder.iterdir() if not _is_hidden(file.name))
        raise DataError(
            "the image folder has no images",
            where=str(folder),
            expected=f"{expected}, with files such as {', '.join(sorted(SUFFIXES))}",
            got=f"files of other kinds: {suffixes}" if suffixes else "no image files in its folders",
            fix=f"move its {loose} images into a folder for each class" if loose else "",
        )
    if numbering.remark:
        log.info("%s: %s", folder, numbering.remark)
    if numbering.doubt:
        log.warning("WARNING: %s: %s", folder, numbering.doubt)
    order = np.random.default_rng(0).permutation(len(found))
    shuffled = [found[index] for index in order]
    return ImageFolder(folder, tuple(file for file, _ in shuffled), tuple(label for _, label in shuffled))


def open_pictures(folder: Path) -> ImageFolder:
    """List the images of a folder and of all folders in it, without classes.

    Args:
        folder: the folder. Hidden files and folders are left out.

    Raises:
        DataError: the folder is missing, or has no images.
    """
    expected = "a folder of images, in folders of any names or in none"
    if not folder.is_dir():
        raise DataError("the image folder does not exist", where=str(folder), expected=expected)
    files = [file for file in sorted(folder.rglob("*")) if not _is_hidden_below(file, folder) and file.is_file()]
    found = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not found:
        got = f"{len(files)} files with other suffixes" if files else "no files"
        raise DataError("the image folder has no images", where=str(folder), expected=expected, got=got)
    order = np.random.default_rng(0).permutation(len(found))
    return ImageFolder(folder, tuple(found[index] for index in order), None)


def _is_hidden(name: str) -> bool:
    """Return True for files and folders that programs keep beside images."""
    return name[0] == "." or name in _COMPANIONS


def _is_hidden_below(file: Path, folder: Path) -> bool:
    return any(map(_is_hidden, file.relative_to(folder).parts))
