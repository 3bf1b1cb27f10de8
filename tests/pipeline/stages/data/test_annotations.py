"""COCO's labels as boxes of the network's input."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from model_artifacts.errors import DataError
from model_artifacts.records import Fit, Interpolation, Orientation, Preprocessing
from model_artifacts.sessions.preprocessing import to_pixels
from pipeline.records import BoxKind
from pipeline.stages.data.annotations import read_annotations

if TYPE_CHECKING:
    from pathlib import Path

    from pipeline.stages.data.annotations import Truth

SPEC = Preprocessing(resize=32, crop=32, interpolation=Interpolation.NEAREST, mean=(0.5,) * 3, std=(0.5,) * 3)
NAMES = ("a.png", "b.png")


def coco(**changes: Any) -> dict[str, Any]:
    """Return a file of two images of 40×32 pixels, the second one empty."""
    whole: dict[str, Any] = {
        "info": {"version": "1"},
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 32}, {"id": 8, "file_name": "b.png"}],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 4, 12, 8], "iscrowd": 0}],
    }
    return whole | changes


def read(
    folder: Path,
    content: object = None,
    *,
    spec: Preprocessing = SPEC,
    classes: tuple[str, ...] | None = None,
    count: int | None = 2,
) -> Truth:
    """Return the truth of both images."""
    for name in NAMES:
        if not (folder / name).exists():
            Image.new("RGB", (40, 32)).save(folder / name)
    file = folder / "labels.json"
    file.write_text(content if isinstance(content, str) else json.dumps(coco() if content is None else content))
    return read_annotations(file, folder, NAMES, spec, classes, count)


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"resize": 64, "crop": 48},
        {"resize": (40, 40), "crop": (40, 40)},
        {"resize": (48, 64), "crop": (48, 64)},
        {"resize": (64, 48), "crop": (64, 48), "fit": Fit.COVER},
        {"resize": (48, 48), "crop": (48, 48), "fit": Fit.BORDER},
    ],
    ids=["square", "crop", "squash", "rectangle", "cover", "border"],
)
def test_boxes_move_with_their_images(tmp_path: Path, update: dict[str, object]) -> None:
    """The moved box holds the pixels of the moved rectangle."""
    spec = Preprocessing(**{**SPEC.model_dump(), **update})
    picture = Image.new("RGB", (40, 32))
    picture.paste((255, 255, 255), (10, 4, 22, 12))
    picture.save(tmp_path / "a.png")
    truth = read(tmp_path, spec=spec)
    assert truth.boxes.shape == (2, 1, 6)
    rows, columns = np.nonzero(to_pixels(picture, spec)[..., 0] > 200)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(truth.boxes[0, 0, :4], seen, atol=1)
    assert truth.boxes[0, 0, 4:].tolist() == [1, BoxKind.JUDGED]
    assert truth.boxes[1, 0, 5] == BoxKind.NONE


def test_classes_are_named_by_the_categories(tmp_path: Path) -> None:
    """In the order of their ids, or in that of the network's names."""
    assert read(tmp_path).names == ("cat", "dog")
    named = read(tmp_path, classes=("bird", "dog", "cat"), count=3)
    assert named.names == ("bird", "dog", "cat")
    assert named.boxes[0, 0, 4] == 1


def test_crowds_and_boxes_at_the_edge(tmp_path: Path) -> None:
    """A box that the crop leaves less than half is not judged; of a box outside nothing is left."""
    boxes = [[0, 0, 6, 8], [0, 0, 12, 8], [0, 0, 4, 8], [10, 4, 12, 8]]  # the crop begins at 4
    content = coco(
        annotations=[
            {"image_id": 7, "category_id": 2, "bbox": box, "iscrowd": int(place == 3)}
            for place, box in enumerate(boxes)
        ]
    )
    found = read(tmp_path, content).boxes[0]
    assert found[:, 5].tolist() == [BoxKind.IGNORED, BoxKind.JUDGED, BoxKind.CROWD]
    assert found[0, :4].tolist() == [0, 0, 2, 8]


def test_an_image_is_turned_as_the_network_sees_it(tmp_path: Path) -> None:
    """The sizes of the labels tell whether they were made so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 40)).save(tmp_path / "a.png", exif=exif)
    upright = Preprocessing(**{**SPEC.model_dump(), "orientation": Orientation.EXIF})
    assert read(tmp_path, spec=upright).boxes[0, 0, 5] == BoxKind.JUDGED
    with pytest.raises(DataError, match=r"(?s)another size.*a.png.*32×40.*got: +40×32.*orientation"):
        read(tmp_path)


def annotated(**changes: Any) -> dict[str, Any]:
    """Return the file with a change of its annotation."""
    return coco(annotations=[coco()["annotations"][0] | changes])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"cannot be read.*JSON"),
        ("[" * 200_000, r"cannot be read.*recursion"),
        ("[]", r"not in COCO's format.*the file"),
        (coco(annotations=[{"image_id": 7}]), r"not in COCO's format.*annotations\[0\].category_id"),
        (annotated(bbox=[1, 2, 0, 4]), r"not in COCO's format.*annotations\[0\].bbox\[2\].*greater than 0"),
        (annotated(bbox=[1, 2, 3]), r"annotations\[0\].bbox"),
        (annotated(bbox=[30, 2, 12, 4]), r"outside of its image.*annotations\[0\].*40×32.*\[30.0, 2.0, 12.0, 4.0\]"),
        (annotated(bbox=[-3, 2, 12, 4]), r"outside of its image"),
        (annotated(image_id=9), r"unknown image.*annotations\[0\].*got: +9"),
        (annotated(category_id=9), r"unknown class.*annotations\[0\].*got: +9"),
        (coco(images=coco()["images"][:1]), r"1 of 2 images are not in the file.*no b.png"),
        (coco(images=coco()["images"] * 2), r"an image twice.*images\[2\]"),
        (coco(categories=coco()["categories"] * 2), r"a category twice"),
        (coco(categories=[]), r"not in COCO's format.*categories"),
        (coco(categories=[{"id": 5, "name": "dog"}]), r"other classes.*2 categories.*1: dog"),
    ],
    ids=[
        "no json",
        "deep",
        "no mapping",
        "no category",
        "no width",
        "three numbers",
        "right",
        "left",
        "image",
        "class",
        "missing",
        "image twice",
        "category twice",
        "no categories",
        "categories",
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    """The error has the place in the file."""
    with pytest.raises(DataError, match=f"(?s){message}"):
        read(tmp_path, content)


def test_a_class_that_the_network_has_not_is_refused(tmp_path: Path) -> None:
    """The message has its name."""
    with pytest.raises(DataError, match=r"(?s)classes that the network has not.*cat, bird.*got: +dog"):
        read(tmp_path, classes=("cat", "bird"))
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(tmp_path / "none.json", tmp_path, NAMES, SPEC, None, 2)
