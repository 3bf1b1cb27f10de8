"""COCO's JSON file of boxes → an array of the true boxes of each image, moved as their images are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_artifacts.errors import DataError, listed, one_line
from model_artifacts.sessions.preprocessing import placement, upright_size
from pipeline.records import BoxKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from model_artifacts.records import Preprocessing

_BEYOND = 1.0
"""Pixels by which a box may leave its image: annotators round."""
_SHOWN_SHARE = 0.5
"""The share of a box's area that the crop must leave, for a detector to be asked for it."""
_COLUMNS = 6
"""The numbers of a true box."""
_MOST = 10
"""Names that a message lists."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Image(_Part):
    id: int
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(_Part):
    image_id: int
    category_id: int
    bbox: tuple[float, float, Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    iscrowd: bool = False


class _Category(_Part):
    id: int
    name: str


class _File(_Part):
    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...]
    categories: Annotated[tuple[_Category, ...], Field(min_length=1)]


class Truth(NamedTuple):
    """The true boxes of the images, and the names of the classes."""

    boxes: npt.NDArray[np.float32]
    """(images, boxes, 6): left, top, right, bottom, class and `BoxKind`."""
    names: tuple[str, ...]


def read_annotations(  # noqa: PLR0913 - the file, its images, and the network's classes
    file: Path,
    images: Path,
    names: Sequence[str],
    spec: Preprocessing,
    classes: Sequence[str] | None,
    count: int | None,
) -> Truth:
    """Return the true boxes of images, in pixels of the network's input.

    A box of which the crop leaves less than half is not judged, and one of which it leaves nothing is gone.

    Args:
        file: the annotations, as COCO's `instances_val2017.json` has them.
        images: the folder of images.
        names: the images' paths in their folder: the `file_name` of each. An image without boxes is an empty one.
        spec: the images' preprocessing.
        classes: the names of the network's classes in their order; None takes the categories in the order of their ids.
        count: the number of the network's classes; None if unknown.

    Raises:
        DataError: the file cannot be read, or is no such file; it lacks an image, or names an unknown image or class;
            or a box lies outside of its image.
    """
    read = _read(file)
    by_name = _by_name(file, read.images, names)
    numbers, known = _numbers(file, read, classes, count)
    of_image: dict[int, list[tuple[int, _Annotation]]] = {image.id: [] for image in read.images}
    for place, annotation in enumerate(read.annotations):
        if annotation.image_id not in of_image:
            raise _fault(file, place, "is of an unknown image", "an `id` of `images`", str(annotation.image_id))
        if annotation.category_id not in numbers:
            got = str(annotation.category_id)
            raise _fault(file, place, "is of an unknown class", "an `id` of `categories`", got)
        of_image[annotation.image_id].append((place, annotation))
    rows = [_rows(file, images, by_name[name], of_image[by_name[name].id], numbers, spec) for name in names]
    return Truth(_padded(rows), known)


def _read(file: Path) -> _File:
    try:
        return _File.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
        raise DataError(
            "the file of labels is not in COCO's format",
            where=f"{file}, {place or 'the file'}",
            expected="images (id, file_name), categories (id, name), and annotations (image_id, category_id, bbox: "
            "left, top, width and height above 0)",
            got=f"{first['msg']}: {str(first['input'])[:80]}",
        ) from exc
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        raise DataError(
            "the file of labels cannot be read",
            where=str(file),
            expected="a JSON file in COCO's format",
            got=one_line(exc),
        ) from exc


def _by_name(file: Path, images: Sequence[_Image], names: Sequence[str]) -> Mapping[str, _Image]:
    """Return the images by their names; the file may have others, such as those for calibration."""
    found: dict[str, _Image] = {}
    ids: set[int] = set()
    for place, image in enumerate(images):
        if image.file_name in found or image.id in ids:
            got = f"{image.file_name!r}, id {image.id}"
            raise DataError("the file of labels has an image twice", where=f"{file}, images[{place}]", got=got)
        found[image.file_name] = image
        ids.add(image.id)
    if missing := [name for name in names if name not in found]:
        raise DataError(
            f"{len(missing)} of {len(names)} images are not in the file of labels",
            where=str(file),
            expected="each image's path in its folder as a `file_name`, with / between folders",
            got=f"no {listed(missing, most=3)}",
            fix="name images without any box, too, or move them elsewhere",
        )
    return found


def _numbers(
    file: Path, read: _File, classes: Sequence[str] | None, count: int | None
) -> tuple[Mapping[int, int], tuple[str, ...]]:
    """Return the number of each category's class by its id, and the names of the classes."""
    categories = sorted(read.categories, key=lambda category: category.id)
    names = [category.name for category in categories]
    if len({*names}) < len(names) or len({category.id for category in categories}) < len(names):
        raise DataError("the file of labels has a category twice", where=str(file), got=listed(names, most=_MOST))
    if classes is None:
        if count not in {None, len(names)}:
            raise DataError(
                "the file of labels has other classes than the network",
                where=f"{file}, categories",
                expected=f"{count} categories, whose ids are in the order of the network's classes",
                got=f"{len(names)}: {listed(names, most=_MOST)}",
                fix="name the network's classes in `data.classes`, in their order",
            )
        return {category.id: number for number, category in enumerate(categories)}, tuple(names)
    if unknown := [name for name in names if name not in classes]:
        raise DataError(
            "the file of labels has classes that the network has not",
            where=f"{file}, categories",
            expected=listed([*classes], most=_MOST),
            got=listed(unknown, most=_MOST),
            fix="remove them with their annotations, or give `data.classes` the categories' names",
        )
    return {category.id: list(classes).index(category.name) for category in categories}, tuple(classes)


def _rows(  # noqa: PLR0913 - an image, its annotations, and the way to the network's input
    file: Path,
    folder: Path,
    image: _Image,
    found: Sequence[tuple[int, _Annotation]],
    numbers: Mapping[int, int],
    spec: Preprocessing,
) -> npt.NDArray[np.float64]:
    """Return the rows of an image's boxes."""
    with Image.open(folder / image.file_name) as opened:  # it was read before
        width, height = upright_size(opened, spec)
    if (image.width or width, image.height or height) != (width, height):
        raise DataError(
            "the file of labels has another size of an image",
            where=f"{file}, {image.file_name}",
            expected=f"{width}×{height}, as the network sees it",
            got=f"{image.width}×{image.height}",
            fix="set `preprocessing.orientation` to that of the annotations, or correct the file",
        )
    place, rows = placement(width, height, spec), []
    limits = np.array([spec.width, spec.height] * 2, dtype=np.float64)
    for number, annotation in found:
        left, top, wide, high = annotation.bbox
        box = np.array([left, top, left + wide, top + high])
        if box.min() < -_BEYOND or box[2] > width + _BEYOND or box[3] > height + _BEYOND:
            expected = f"left, top, width and height in an image of {width}×{height} pixels"
            raise _fault(file, number, "lies outside of its image", expected, str(list(annotation.bbox)))
        moved = place.forward(box)
        cut = np.clip(moved, 0, limits)
        shown = np.prod(cut[2:] - cut[:2]) / np.prod(moved[2:] - moved[:2])
        if shown <= 0:
            continue
        whole = BoxKind.JUDGED if shown >= _SHOWN_SHARE else BoxKind.IGNORED
        kind = BoxKind.CROWD if annotation.iscrowd else whole
        rows.append([*cut, numbers[annotation.category_id], kind])
    return np.array(rows, dtype=np.float64).reshape(-1, _COLUMNS)


def _padded(rows: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float32]:
    """Return the rows of all images as one array (images, boxes, 6)."""
    most = max((len(found) for found in rows), default=0)
    array = np.full((len(rows), most, _COLUMNS), BoxKind.NONE, dtype=np.float32)
    for own, found in zip(array, rows, strict=True):
        own[: len(found)] = found
    return array


def _fault(file: Path, place: int, what: str, expected: str, got: str) -> DataError:
    return DataError(f"a label {what}", where=f"{file}, annotations[{place}]", expected=expected, got=got)
