"""Detections beside true boxes → average precision, by COCO's own code (pycocotools). Pure.

pycocotools is the evaluation that papers report. It takes NumPy alone; torchmetrics needs torch, and calls it.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.records import BoxKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from model_artifacts.deployment.detections import Detections

    Rows = npt.NDArray[np.floating]

_LARGEST = 1e10
"""COCO's largest area of a box, in square pixels."""
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
    boxes = [*_truths(truth), *_found(found)]
    if not boxes:
        return Precision(0.0, 0.0, np.ones(len(truth)))
    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = _run(boxes, most)
        return Precision(*_means(evaluation), _of_each(evaluation, len(truth)))


def mean_precision(found: Sequence[Detections], truth: Sequence[Rows], most: int) -> float:
    """Return COCO's mAP alone, which takes less time than the scores of each image.

    Args:
        found: the detections of each image.
        truth: the true boxes of each image, as `average_precision` takes them.
        most: the largest number of detections of an image and a class.
    """
    boxes = [*_truths(truth), *_found(found)]
    if not boxes:
        return 0.0
    with redirect_stdout(io.StringIO()):  # it prints its progress
        return _means(_run(boxes, most))[0]


def _means(evaluation: COCOeval) -> tuple[float, float]:
    """Return the mean over all thresholds and that at the first one; 0 without a box to find."""
    precision = evaluation.eval["precision"][..., 0, 0]  # (thresholds, recalls, classes); -1 without a box to find
    mean, half = (float(part[part > -1].mean()) if (part > -1).any() else 0.0 for part in (precision, precision[_HALF]))
    return mean, half


def _of_each(evaluation: COCOeval, images: int) -> npt.NDArray[np.float64]:
    """Return the score of each image, from COCO's matches of each class of each image."""
    totals, counts, wrong = (np.zeros(images) for _ in range(3))
    for result in evaluation.evalImgs:
        if result is None:
            continue
        image, asked = result["image_id"], int((np.asarray(result["gtIgnore"]) == 0).sum())
        if asked:
            totals[image] += _area(result, asked, evaluation.params.recThrs)
            counts[image] += 1
        else:
            judged = np.flatnonzero(~result["dtIgnore"][_HALF])
            wrong[image] += max((result["dtScores"][at] for at in judged), default=0.0)
    empty = counts == 0
    scores: npt.NDArray[np.float64] = (totals + empty) / (counts + empty + wrong)
    return scores


def _area(result: Mapping[str, Any], asked: int, recalls: npt.NDArray[np.float64]) -> float:
    """Return the average precision of one class of one image, as COCO's code has it of all images together.

    Args:
        result: COCO's matches of detections in the order of their scores.
        asked: the number of boxes to find.
        recalls: COCO's 101 shares of these, at each of which the precision is taken.
    """
    judged, matched = ~result["dtIgnore"].astype(bool), result["dtMatches"] > 0  # (thresholds, detections)
    right, found = np.cumsum(matched & judged, axis=1), np.cumsum(judged, axis=1)
    precision = right / np.maximum(found, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)  # beyond the last recall it is 0
    places = [np.searchsorted(row / asked, recalls) for row in right]
    return float(np.take_along_axis(padded, np.stack(places), axis=1).mean())


class _Box(NamedTuple):
    """A true box, or a detection."""

    image: int
    label: int
    corners: npt.NDArray[np.floating]
    kind: int = 0
    score: float | None = None


def _truths(truth: Sequence[Rows]) -> Iterator[_Box]:
    for image, rows in enumerate(truth):
        for row in rows:
            yield _Box(image, int(row[4]), row[:4], int(row[5]))


def _found(found: Sequence[Detections]) -> Iterator[_Box]:
    for image, detections in enumerate(found):
        for box, score, label in zip(*detections, strict=True):
            yield _Box(image, int(label), box, score=float(score))


def _run(boxes: Sequence[_Box], most: int) -> COCOeval:
    """Return COCO's evaluation of boxes, of all sizes at once."""
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415 - only detectors need it

    true, detected = ([box for box in boxes if (box.score is None) is is_true] for is_true in (True, False))
    evaluation = COCOeval(_dataset(true), None, "bbox")
    evaluation.cocoDt = _dataset(detected)
    settings = evaluation.params
    settings.imgIds, settings.catIds = sorted({box.image for box in boxes}), sorted({box.label for box in boxes})
    settings.maxDets, settings.areaRng, settings.areaRngLbl = [most], [[0, _LARGEST]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _dataset(boxes: Sequence[_Box]) -> COCO:
    from pycocotools.coco import COCO  # noqa: PLC0415 - only detectors need it

    annotations = []
    for number, (image, label, corners, kind, score) in enumerate(boxes, start=1):
        left, top, right, bottom = map(float, corners)
        width, height = right - left, bottom - top
        annotation: dict[str, object] = {
            "id": number,  # 0 would mean that nothing matches
            "image_id": image,
            "category_id": label,
            "bbox": [left, top, width, height],
            # COCO's code ignores a true box whose area is out of its range, as it ignores a small one among large ones.
            "area": -1.0 if kind == BoxKind.IGNORED else width * height,
            "iscrowd": int(kind == BoxKind.CROWD),
        }
        annotations.append(annotation | ({} if score is None else {"score": score}))
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": image} for image in sorted({box.image for box in boxes})],
        "categories": [{"id": label} for label in sorted({box.label for box in boxes})],
        "annotations": annotations,
    }
    dataset.createIndex()
    return dataset
