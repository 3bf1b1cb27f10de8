"""Labels beside the images → arrays: masks that move with their images, and tables of numbers."""

from __future__ import annotations

import csv
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from model_artifacts.errors import DataError, listed, one_line
from model_artifacts.records import Orientation
from model_artifacts.sessions.preprocessing import to_mask
from pipeline.stages.common.rows import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Preprocessing

IGNORED = 255
"""The value of a mask's pixel that is not judged."""
_IMAGE = "image"
"""The heading of a table's first column."""


class Table(NamedTuple):
    """A table of labels: the names of its columns, and the numbers of each image."""

    columns: tuple[str, ...]
    values: npt.NDArray[np.float64]
    """(images, columns)."""


def read_masks(
    folder: Path, images: Path, names: Sequence[str], spec: Preprocessing, shape: Sequence[int]
) -> npt.NDArray[np.uint8]:
    """Return the masks of images, moved as their images are: resized to the nearest pixel, and cropped.

    Args:
        folder: the folder of masks. Each has its image's path, with the suffix .png.
        images: the folder of images.
        names: the images' paths in their folder.
        spec: the images' preprocessing. A border around an image is not judged.
        shape: (classes, height, width) of the network's output. If it is smaller than the input, each of its places
            takes the nearest pixel.

    Returns:
        uint8 (images, height, width) of the output: classes, and 255 where nothing is judged.

    Raises:
        DataError: a mask is missing, damaged, of another size than its image, or has values that are no classes.
    """
    if not folder.is_dir():
        raise DataError("the folder of masks does not exist", where=str(folder), expected="a PNG file for each image")
    if images.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise DataError(
            "the masks lie in the folder of images, and would be taken for images",
            where=str(folder),
            fix="move them beside it, or set `data.images` to the folder of images alone",
        )
    files = [(folder / name).with_suffix(".png") for name in names]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise DataError(
            f"{len(missing)} of {len(files)} images have no mask",
            where=str(folder),
            expected="a PNG file with each image's path",
            got=f"no {listed(missing, most=3)}",
            fix="add them, or move their images elsewhere",
        )
    classes, height, width = shape
    rows, columns = (nearest(*pair) for pair in ((spec.height, height), (spec.width, width)))
    masks = np.empty((len(files), height, width), dtype=np.uint8)
    for index, (file, name) in enumerate(zip(files, names, strict=True)):
        mask = to_mask(_mask(file, _size(images / name, spec)), spec, IGNORED)[rows][:, columns]
        wrong = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
        if len(wrong):
            raise DataError(
                "a mask has values that are no classes of the network",
                where=str(file),
                expected=f"0 to {classes - 1}, and {IGNORED} where nothing is judged",
                got=", ".join(map(str, wrong[:5])),
            )
        masks[index] = mask
    return masks


def _size(file: Path, spec: Preprocessing) -> tuple[int, int]:
    """Return an image's width and height, turned upright if the preprocessing does it."""
    with Image.open(file) as image:  # it was read before
        return (ImageOps.exif_transpose(image) if spec.orientation is Orientation.EXIF else image).size


def _mask(file: Path, size: tuple[int, int]) -> Image.Image:
    """Return a mask's values in mode L."""
    try:
        with Image.open(file) as mask:
            mask.load()
            mode, values = mask.mode, np.asarray(mask)  # of a palette its numbers, whatever their colours
    except Exception as exc:  # Pillow's decoders raise almost anything
        raise DataError("a mask cannot be read", where=str(file), expected="a PNG file", got=one_line(exc)) from exc
    if mode not in {"L", "P", "1"}:
        raise DataError(
            "a mask has colours, and no class for each pixel",
            where=str(file),
            expected="8 bits a pixel, greyscale or with a palette: the number of its class",
            got=f"Pillow's mode {mode}",
        )
    if values.shape != size[::-1]:
        shown = f"{values.shape[1]}×{values.shape[0]}"
        raise DataError(
            "a mask has another size than its image",
            where=str(file),
            expected=f"{size[0]}×{size[1]} pixels",
            got=f"{shown} pixels",
        )
    return Image.fromarray(values.astype(np.uint8))


def folder_classes(folder: str, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the number of each image's class: of its first folder, in the order of the folders' names.

    Args:
        folder: the folder of images, for messages.
        names: the images' paths in it.

    Raises:
        DataError: an image lies in no folder of a class, or all lie in the same one.
    """
    loose = [name for name in names if "/" not in name]
    classes = sorted({name.split("/")[0] for name in names})
    if loose or len(classes) == 1:
        raise DataError(
            "the images have no classes",
            where=folder,
            expected="a folder for each class, of two classes or more",
            got=f"{len(loose)} images in no folder, such as {loose[0]}" if loose else f"{classes[0]} alone",
            fix="sort them into folders, or remove `data.labels`",
        )
    return np.array([classes.index(name.split("/")[0]) for name in names], dtype=np.int64)


def read_table(file: Path, names: Sequence[str]) -> Table:
    """Return the rows of images in a CSV table. Its first line has the headings: `image`, and a name for each column.

    Args:
        file: the table, in UTF-8. A row begins with an image's path in its folder.
        names: the paths of the images that need a row. The table may have others, such as those for calibration.

    Raises:
        DataError: the file cannot be read, its headings are wrong, a row is missing or there twice, or a field is no
            finite number. The message has the line.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            headings = _headings(file, next(reader, []))
            found: dict[str, list[float]] = {}
            for row in reader:
                if row:
                    _add(found, row, headings, f"{file}:{reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataError(
            "the table of labels cannot be read",
            where=str(file),
            expected="a CSV file in UTF-8 with a row for each image",
            got=one_line(exc),
        ) from exc
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{len(missing)} of {len(names)} images have no row in the table of labels",
            where=str(file),
            expected="each image's path in its folder, with / between folders",
            got=f"no {listed(missing, most=3)}",
        )
    return Table(headings, np.array([found[name] for name in names], dtype=np.float64))


def arranged(
    table: Table, file: Path, names: Sequence[str] | None, count: int, *, zeros_and_ones: bool = False
) -> Table:
    """Return a table with its columns in the order of the network's output.

    Args:
        table: the rows of the images.
        file: its file, for messages.
        names: the names of the outputs' numbers, in their order; None takes the columns as they stand.
        count: the number of these.
        zeros_and_ones: True if a field can be 0 or 1 alone: an image has a label, or it has not.

    Raises:
        DataError: the columns are others, or a field is neither 0 nor 1.
    """
    if len(table.columns) != count or (names and set(names) != set(table.columns)):
        raise DataError(
            "the table of labels has other columns than the network has outputs",
            where=f"{file}:1",
            expected=listed(list(names), most=10) if names else f"{count} columns behind `{_IMAGE}`",
            got=listed(list(table.columns), most=10),
        )
    if zeros_and_ones and not np.isin(table.values, (0, 1)).all():
        wrong = table.values[~np.isin(table.values, (0, 1))][0]
        raise DataError(
            "the table of labels has a field that is neither 0 nor 1",
            where=str(file),
            expected="1 for a label that the image has, 0 for others",
            got=f"{wrong:g}",
        )
    order = [table.columns.index(name) for name in names or table.columns]
    return Table(tuple(names or table.columns), table.values[:, order])


def _headings(file: Path, first: list[str]) -> tuple[str, ...]:
    headings = [text.strip() for text in first]
    if headings[:1] != [_IMAGE] or len(headings) < 2 or "" in headings or len(set(headings)) < len(headings):  # noqa: PLR2004 - the image and one column
        raise DataError(
            "the table of labels has other headings",
            where=f"{file}:1",
            expected=f"{_IMAGE}, and a name of its own for each column: {_IMAGE},cat,dog",
            got=",".join(first) or "an empty line",
        )
    return tuple(headings[1:])


def _add(found: dict[str, list[float]], row: list[str], headings: tuple[str, ...], where: str) -> None:
    """Add a row's numbers under its image's path."""
    name, *fields = row
    if len(fields) != len(headings):
        expected, got = f"{len(headings) + 1} fields", f"{len(row)}: {','.join(row)}"
        raise DataError("a row of the table of labels is of another length", where=where, expected=expected, got=got)
    if name in found:
        raise DataError("the table of labels has an image twice", where=where, got=name, fix="remove one of both rows")
    numbers = []
    for heading, field in zip(headings, fields, strict=True):
        try:
            numbers.append(float(field))
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            expected = f"a finite number in the column {heading}"
            raise DataError(
                "the table of labels has a field that is no number", where=where, expected=expected, got=repr(field)
            )
    found[name] = numbers
