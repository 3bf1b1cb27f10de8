"""Detections beside true boxes → average precision, by COCO's own code (pycocotools). Pure.

pycocotools is the evaluation that papers report. It takes NumPy alone; torchmetrics needs torch, and calls it.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.records import BoxKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from model_artifacts.deployment.detections import Detections

    Rows = npt.NDArray[np.floating]

_LARGEST = 1e10
"""COCO's largest area of a box, in square pixels."""
_AT_ONCE = 256
"""The images whose own scores are computed at once: each class of each is a category, with a curve in memory."""
_HALF = 0
"""The place of an intersection over union of 0.5 among COCO's thresholds, 0.5 to 0.95."""


class Precision(NamedTuple):
    """The average precision of the detections of images."""

    mean: float
    """COCO's mAP: the mean over the thresholds 0.5 to 0.95, over the classes with a box to find."""
    half: float
    """The same at the threshold 0.5 alone."""
    images: npt.NDArray[np.float64]
    """(images,): each image's own score, from 0 to 1."""


def average_precision(found: Sequence[Detections], truth: Sequence[Rows], most: int) -> Precision:
    """Return the average precision of detections.

    The score of one image is the mean average precision of its own classes, on this image alone. A class that it has
    not is one more in that mean, with a precision of 0, and with the weight of its highest score. An image with no box
    to find counts as one class that is found.

    Args:
        found: the detections of each image.
        truth: the true boxes of each image (boxes, 6): left, top, right, bottom, class, `BoxKind`.
        most: the largest number of detections of an image and a class.
    """
    with redirect_stdout(io.StringIO()):  # it prints its progress
        return _evaluated(found, truth, most)


def _evaluated(found: Sequence[Detections], truth: Sequence[Rows], most: int) -> Precision:
    boxes = [*_truths(truth), *_found(found)]
    evaluation = _run([box._replace(category=box.category[1:]) for box in boxes], most)
    images = [
        _of_each(found[start : start + _AT_ONCE], truth[start : start + _AT_ONCE], most)
        for start in range(0, len(truth), _AT_ONCE)
    ]
    if evaluation is None:
        return Precision(0.0, 0.0, np.concatenate(images))
    precision = evaluation.eval["precision"][..., 0, 0]  # (thresholds, recalls, classes); -1 without a box to find
    known = precision > -1
    mean, half = (
        float(part[own].mean()) if own.any() else 0.0
        for part, own in ((precision, known), (precision[_HALF], known[_HALF]))
    )
    return Precision(mean, half, np.concatenate(images))


def _of_each(found: Sequence[Detections], truth: Sequence[Rows], most: int) -> npt.NDArray[np.float64]:
    """Return the score of each image.

    COCO's code knows no score of one image. So each class of each image is a category of its own here, of one image.
    """
    boxes = [box._replace(image=0) for box in (*_truths(truth), *_found(found))]
    totals, counts, wrong = (np.zeros(len(truth)) for _ in range(3))
    evaluation = _run(boxes, most)
    if evaluation is not None:
        precision = evaluation.eval["precision"][..., 0, 0].mean(axis=(0, 1))
        for (image, _), own, result in zip(_categories(boxes), precision, evaluation.evalImgs, strict=True):
            if own > -1:
                totals[image] += own
                counts[image] += 1
            else:
                judged = np.flatnonzero(~result["dtIgnore"][_HALF])
                wrong[image] += max((result["dtScores"][at] for at in judged), default=0.0)
    empty = counts == 0
    scores: npt.NDArray[np.float64] = (totals + empty) / (counts + empty + wrong)
    return scores


class _Box(NamedTuple):
    """A true box, or a detection."""

    image: int
    category: tuple[int, ...]
    corners: npt.NDArray[np.floating]
    kind: int = 0
    score: float | None = None


def _truths(truth: Sequence[Rows]) -> Iterator[_Box]:
    for image, rows in enumerate(truth):
        for row in rows:
            yield _Box(image, (image, int(row[4])), row[:4], int(row[5]))


def _found(found: Sequence[Detections]) -> Iterator[_Box]:
    for image, detections in enumerate(found):
        for box, score, label in zip(*detections, strict=True):
            yield _Box(image, (image, int(label)), box, score=float(score))


def _categories(boxes: Iterable[_Box]) -> list[tuple[int, ...]]:
    return sorted({box.category for box in boxes})


def _run(boxes: Sequence[_Box], most: int) -> COCOeval | None:
    """Return COCO's evaluation of boxes; None without any."""
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415 - only detectors need it

    if not boxes:
        return None
    categories = {category: number for number, category in enumerate(_categories(boxes), start=1)}
    true, detected = ([box for box in boxes if (box.score is None) is is_true] for is_true in (True, False))
    evaluation = COCOeval(_dataset(true, categories), None, "bbox")
    evaluation.cocoDt = _dataset(detected, categories)
    settings = evaluation.params
    settings.imgIds, settings.catIds = sorted({box.image for box in boxes}), [*categories.values()]
    settings.maxDets, settings.areaRng, settings.areaRngLbl = [most], [[0, _LARGEST]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _dataset(boxes: Sequence[_Box], categories: Mapping[tuple[int, ...], int]) -> COCO:
    from pycocotools.coco import COCO  # noqa: PLC0415 - only detectors need it

    annotations = []
    for number, (image, category, corners, kind, score) in enumerate(boxes, start=1):
        left, top, right, bottom = map(float, corners)
        width, height = right - left, bottom - top
        annotation: dict[str, object] = {
            "id": number,  # 0 would mean that nothing matches
            "image_id": image,
            "category_id": categories[category],
            "bbox": [left, top, width, height],
            # COCO's code ignores a true box whose area is out of its range, as it ignores a small one among large ones.
            "area": -1.0 if kind == BoxKind.IGNORED else width * height,
            "iscrowd": int(kind == BoxKind.CROWD),
        }
        annotations.append(annotation | ({} if score is None else {"score": score}))
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": image} for image in sorted({box.image for box in boxes})],
        "categories": [{"id": number} for number in categories.values()],
        "annotations": annotations,
    }
    dataset.createIndex()
    return dataset
