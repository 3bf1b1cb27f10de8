"""A detector's raw outputs → boxes with scores and classes of each image. Pure, with NumPy alone.

The build judges by this code, and a deployment answers by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import RunError, listed
from model_artifacts.records import Activation, BoxFormat, BoxUnits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from model_artifacts.records import Decoding, TensorSpec

    Values = npt.NDArray[np.float32]
    Numbers = npt.NDArray[np.int64]

_BOX = 4
"""The numbers of a box."""
_AXES = 3
"""The axes of an output of boxes or scores: images, boxes, numbers."""
_CANDIDATES = 8192
"""The most candidates of an image before the suppression, the best ones: their overlaps take memory and time."""


class Detections(NamedTuple):
    """The detections of one image, the one with the highest score first."""

    boxes: Values
    """(detections, 4): left, top, right and bottom, in pixels of the network's input."""
    scores: Values
    """(detections,), from 0 to 1."""
    labels: Numbers
    """(detections,): the number of each one's class, from 0 on."""

    def above(self, score: float) -> Detections:
        """Return those with a score above this one."""
        return self.at(np.flatnonzero(self.scores > score))

    def at(self, places: Numbers) -> Detections:
        """Return those at these places, in this order."""
        return Detections(self.boxes[places], self.scores[places], self.labels[places])


def nms(boxes: Values, scores: Values, iou_threshold: float) -> Numbers:
    """Return the places of the boxes that no better one suppresses, the best first.

    Greedy, as `torchvision.ops.nms` and ONNX's NonMaxSuppression do it: a box goes if its intersection over union with
    a better one that stays lies above the threshold. Of equal scores the first box is the better one.

    Args:
        boxes: float32 (boxes, 4): left, top, right, bottom, each of an area above 0.
        scores: float32 (boxes,).
        iou_threshold: that share.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        corners = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        both = np.prod(np.maximum(corners[1] - corners[0], 0), axis=1)
        union = areas[best] + areas[left] - both
        left = left[~(both / union > iou_threshold)]
    return np.array(kept, dtype=np.int64)


def classes_of(decoding: Decoding, outputs: Sequence[TensorSpec]) -> int:
    """Return the number of a detector's classes, without the background.

    Args:
        decoding: the settings.
        outputs: the network's outputs.

    Raises:
        RunError: the network has no such outputs, or they have other shapes.
    """
    shapes = {spec.name: spec.shape[1:] for spec in outputs}
    shown = listed([f"{name} (batch, {', '.join(map(str, shape))})" for name, shape in shapes.items()])
    fix = "name the outputs in `model.decoding`, reshape them in the network, or decode them by `model.postprocess`"
    last, named = decoding.boxes_last, "objectness + classes" if decoding.objectness else "classes"
    if decoding.boxes is None or decoding.scores is None:
        (shape, *others) = shapes.values()
        numbers = int(shape[0 if last else 1]) if len(shape) == _AXES - 1 else 0
        if others or numbers <= _BOX:
            expected = f"one output {_axes(f'4 + {named}', last=last)}; or `boxes` and `scores`, the names of two"
            raise RunError(
                "`model.decoding` does not suit the network's outputs", expected=expected, got=shown, fix=fix
            )
        count = numbers - _BOX
    else:
        pair = shapes.get(decoding.boxes, ()), shapes.get(decoding.scores, ())
        boxes, scores = (shape[::-1] if last else shape for shape in pair)
        right = len(boxes) == len(scores) == _AXES - 1 and boxes[1] == _BOX and boxes[0] == scores[0]
        if not right:
            expected = f"{decoding.boxes} {_axes('4', last=last)} and {decoding.scores} {_axes(named, last=last)}"
            raise RunError(
                "`model.decoding` does not suit the network's outputs", expected=expected, got=shown, fix=fix
            )
        count = int(scores[1])
    other = {Activation.SOFTMAX: "the background"}.get(decoding.activation, "any object" if decoding.objectness else "")
    if count <= bool(other):
        raise RunError(
            "`model.decoding` leaves the detector no class",
            expected=f"a score of {other} and of one class or more" if other else "one class or more",
            got=shown,
            fix=fix,
        )
    return count - bool(other)


def _axes(numbers: str, *, last: bool) -> str:
    """Return the axes of an output as messages show them."""
    return f"(batch, {numbers}, boxes)" if last else f"(batch, boxes, {numbers})"


def decode(outputs: Mapping[str, Values], decoding: Decoding, size: tuple[int, int]) -> tuple[Detections, ...]:
    """Return the detections of each image. An image whose outputs are not finite has none.

    Args:
        outputs: float32 (images, …) by the name of each output, of the shapes that `classes_of` asks for.
        decoding: the settings.
        size: the height and the width of the network's input, in pixels.
    """
    if decoding.boxes is None or decoding.scores is None:
        (whole,) = outputs.values()
        rows = whole.swapaxes(1, 2) if decoding.boxes_last else whole
        boxes, scores = rows[..., :_BOX], rows[..., _BOX:]
    else:
        boxes, scores = outputs[decoding.boxes], outputs[decoding.scores]
        if decoding.boxes_last:
            boxes, scores = boxes.swapaxes(1, 2), scores.swapaxes(1, 2)
    return tuple(_decoded(*pair, decoding, size) for pair in zip(boxes, scores, strict=True))


NONE = Detections(np.empty((0, _BOX), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
"""No detections."""


def _decoded(boxes: Values, numbers: Values, decoding: Decoding, size: tuple[int, int]) -> Detections:
    if not (np.isfinite(boxes).all() and np.isfinite(numbers).all()):
        return NONE
    scores = _scores(numbers, decoding.activation)
    if decoding.objectness:
        scores = scores[:, 1:] * scores[:, :1]
    places, labels = np.nonzero(scores > np.float32(decoding.score_threshold))
    best = np.argsort(-scores[places, labels], kind="stable")[:_CANDIDATES]
    places, labels = places[best], labels[best]
    found = Detections(_corners(boxes[places], decoding, size), scores[places, labels], labels.astype(np.int64))
    found = found.at(np.flatnonzero((found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1)))
    kept = [
        own[nms(found.boxes[own], found.scores[own], decoding.iou_threshold)]
        for own in (np.flatnonzero(found.labels == label) for label in np.unique(found.labels))
    ]
    if not kept:
        return NONE
    stay = np.sort(np.concatenate(kept))  # candidates lie in the order of their scores
    return found.at(stay[: decoding.most])


def _scores(numbers: Values, activation: Activation) -> Values:
    if activation is Activation.SIGMOID:
        found = np.exp(-np.logaddexp(0, -numbers.astype(np.float64)))  # without an overflow
    elif activation is Activation.SOFTMAX:
        likely = np.exp(numbers.astype(np.float64) - numbers.max(axis=1, keepdims=True))
        found = (likely / likely.sum(axis=1, keepdims=True))[:, 1:]
    else:
        return numbers
    wide: Values = found.astype(np.float32)
    return wide


def _corners(boxes: Values, decoding: Decoding, size: tuple[int, int]) -> Values:
    """Return boxes as left, top, right and bottom in pixels, cut to the image."""
    found = boxes.astype(np.float32)
    if decoding.format is BoxFormat.CXCYWH:
        half = found[:, 2:] / 2
        found = np.concatenate([found[:, :2] - half, found[:, :2] + half], axis=1)
    height, width = size
    limits = np.array([width, height, width, height], dtype=np.float32)
    if decoding.units is BoxUnits.NORMALISED:
        found = found * limits
    cut: Values = np.clip(found, 0, limits)
    return cut
