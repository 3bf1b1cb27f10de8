"""Outputs → what the model's task means by them: classes with scores, masks, or numbers with names. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.deployment.detections import classes_of, decode
from model_artifacts.deployment.predictions import (
    ClassScore,
    DetectedBox,
    NamedValue,
    Prediction,
    named_classes,
    rank,
    rank_probabilities,
    require_finite,
)
from model_artifacts.errors import RunError, UsageError, listed
from model_artifacts.records import PLAIN, OutputForm, Task, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from model_artifacts.deployment.detections import Detections
    from model_artifacts.records import Io, ManifestModel
    from model_artifacts.sessions.onnx import Outputs as AnyOutputs
    from model_artifacts.sessions.preprocessing import Placement

    Outputs = npt.NDArray[np.float32]

_ROW_AXES = 2
"""The number of axes of rows: images, labels or numbers."""
_MAP_AXES = 4
"""The number of axes of maps: images, classes, height, width."""


def segment(maps: Outputs, names: Sequence[str] | None, top: int | None = None) -> tuple[Prediction, ...]:
    """Return the mask of each image, and the classes in it by their share of the pixels.

    Args:
        maps: logits (images, classes, height, width).
        names: the names of the classes; None if they are unknown.
        top: the most classes to name; None for all that the mask has.

    Raises:
        RunError: the maps are not those of the classes, or not finite.
    """
    classes = maps.shape[1] if maps.ndim == _MAP_AXES else 0
    if classes <= 1 or (names and len(names) != classes):
        raise RunError(
            "the artifact's maps are not those of its classes",
            expected=f"{len(names)} maps for each image" if names else "two maps or more for each image",
            got=f"an array {maps.shape}",
            fix="call the model itself for its outputs, or build it with a map for each class",
        )
    require_finite(maps, "the maps are not finite, so that no class is the largest")
    found = []
    for mask in maps.argmax(axis=1).astype(np.uint8):
        counts = np.bincount(mask.ravel(), minlength=classes)
        order = [int(at) for at in np.argsort(-counts, kind="stable") if counts[at]][:top]
        scores = (ClassScore(names[at] if names else str(at), float(counts[at] / mask.size), at) for at in order)
        found.append(Prediction(tuple(scores), mask=mask))
    return tuple(found)


def label(
    logits: Outputs, names: Sequence[str] | None, threshold: float, top: int | None = None
) -> tuple[Prediction, ...]:
    """Return the labels of each image that reach the threshold, the likeliest first.

    Args:
        logits: (images, labels).
        names: the names of the labels; None if they are unknown.
        threshold: the least sigmoid of a label.
        top: the most labels to name; None for all.

    Raises:
        RunError: the logits are not those of the labels, or not finite.
    """
    _require_row(logits, names, "labels")
    require_finite(logits, "the logits are not finite, so that no label can be told")
    found = []
    for row in logits.astype(np.float64):
        scores = np.exp(-np.logaddexp(0, -row))  # the sigmoid, without an overflow
        order = [int(at) for at in np.argsort(-row, kind="stable") if scores[at] >= threshold][:top]
        found.append(
            Prediction(tuple(ClassScore(names[at] if names else str(at), float(scores[at]), at) for at in order))
        )
    return tuple(found)


def name_values(numbers: Outputs, names: Sequence[str] | None) -> tuple[Prediction, ...]:
    """Return the numbers of each image with their names.

    Args:
        numbers: (images, numbers).
        names: their names; None if they are unknown.

    Raises:
        RunError: there are others than these names, or they are not finite.
    """
    _require_row(numbers, names, "numbers")
    require_finite(numbers, "the numbers are not finite")
    known = names or [str(place) for place in range(numbers.shape[1])]
    return tuple(
        Prediction((), values=tuple(NamedValue(*pair) for pair in zip(known, map(float, row), strict=True)))
        for row in numbers
    )


def detect(outputs: AnyOutputs, facts: ManifestModel, top: int | None = None) -> tuple[Prediction, ...]:
    """Return the boxes of each image, in pixels of the network's input.

    Args:
        outputs: the detector's raw outputs (images, …): an array, or several by their names.
        facts: the decoding, the size of the input, and the names of the classes.
        top: the most boxes of an image; None for all.

    Raises:
        RunError: the outputs are not those of the decoding, or not finite.
    """
    decoding, names, spec = facts.decoding, facts.class_names, facts.preprocessing
    if decoding is None or spec is None:
        raise RunError("the manifest does not say how to decode the detector's outputs", expected="`model.decoding`")
    arrays = outputs if isinstance(outputs, dict) else {"": outputs}
    for values in arrays.values():
        require_finite(values, "the outputs are not finite, so that nothing can be detected")
    specs = [
        TensorSpec(name=name, shape=("batch", *array.shape[1:]), dtype="", layout="") for name, array in arrays.items()
    ]
    count = classes_of(decoding, specs)
    if names and len(names) != count:
        expected, got = f"{len(names)} classes", str(count)
        raise RunError("the artifact's scores are not those of its classes", expected=expected, got=got)
    known = names or [str(place) for place in range(count)]
    size = spec.height, spec.width
    return tuple(_boxes(found, known, top) for found in decode(arrays, decoding, size))


def _boxes(found: Detections, names: Sequence[str], top: int | None) -> Prediction:
    boxes = tuple(
        DetectedBox(names[label], float(score), int(label), (float(left), float(upper), float(right), float(lower)))
        for (left, upper, right, lower), score, label in zip(*(column[:top] for column in found), strict=True)
    )
    best = {box.index: ClassScore(box.name, box.score, box.index) for box in reversed(boxes)}
    return Prediction(tuple(sorted(best.values(), key=lambda item: -item.score)), boxes=boxes)


def placed_back(found: Sequence[Prediction], places: Sequence[Placement]) -> tuple[Prediction, ...]:
    """Return predictions whose boxes are in pixels of their pictures."""
    return tuple(
        replace(prediction, boxes=tuple(_placed_back(box, place) for box in prediction.boxes))
        for prediction, place in zip(found, places, strict=True)
    )


def _placed_back(box: DetectedBox, place: Placement) -> DetectedBox:
    left, top, right, bottom = map(float, place.back(np.array(box.box, dtype=np.float64)))
    return replace(box, box=(left, top, right, bottom))


def _require_row(outputs: Outputs, names: Sequence[str] | None, what: str) -> None:
    found = outputs.shape[1] if outputs.ndim == _ROW_AXES else 0
    if not found or (names and len(names) != found):
        raise RunError(
            f"the artifact's outputs are not its {what}",
            expected=f"{len(names)} numbers for each image" if names else "a row of numbers for each image",
            got=f"an array {outputs.shape}",
            fix="call the model itself for its outputs",
        )


def answers_of(outputs: AnyOutputs, facts: ManifestModel, top: int | None, io: Io = PLAIN) -> tuple[Prediction, ...]:
    """Return the answers of images.

    Args:
        outputs: the network's outputs (images, …), of a task with answers; of several an array by the name of each.
        facts: the model's task, class names and threshold.
        top: the most classes to name for each image; None for one of a classification, and for all of other tasks.
        io: the artifact's output.

    Raises:
        RunError: the outputs are not those of the task, or not finite.
        UsageError: more classes are asked for than the artifact gives.
    """
    if io.output is OutputForm.TOP:
        return named_classes(outputs["probabilities"], outputs["indices"], facts.class_names, top or 1)
    if facts.task is Task.DETECTION:
        return detect(outputs, facts, top)
    if isinstance(outputs, dict):
        raise RunError(
            f"a model of the task {facts.task.value} has one output",
            expected="one output",
            got=listed([*outputs]),
            fix="pull the artifact again, or build it again",
        )
    if io.output is OutputForm.PROBABILITIES:
        return rank_probabilities(outputs, facts.class_names, top or 1)
    return _ANSWERS[facts.task](outputs, facts, top)


_ANSWERS: dict[Task, Callable[[Outputs, ManifestModel, int | None], tuple[Prediction, ...]]] = {
    Task.CLASSIFICATION: lambda outputs, facts, top: rank(outputs, facts.class_names, top or 1),
    Task.SEGMENTATION: lambda outputs, facts, top: segment(outputs, facts.class_names, top),
    Task.MULTILABEL: lambda outputs, facts, top: label(outputs, facts.class_names, facts.threshold, top),
    Task.REGRESSION: lambda outputs, facts, _top: name_values(outputs, facts.class_names),
}


def require_answers(task: Task, postprocess: str | None = None) -> None:
    """Refuse a task whose outputs have no meaning that this library knows.

    Args:
        task: the task.
        postprocess: the user's own function that decodes a detector's outputs; None without one.

    Raises:
        UsageError: it is such a task, or has such a function.
    """
    if postprocess is not None:
        raise UsageError(
            "`predict` has no code of yours, and a function of yours decodes this detector's outputs",
            expected="a detector that `model.decoding` decodes, whose settings travel in the manifest",
            got=f"`model.postprocess: {postprocess}`",
            fix="call `outputs(images)`, and that function with what it returns",
        )
    if not task.has_answers:
        raise UsageError(
            "`predict` names classes, and this model has none",
            expected=f"a model whose task is {listed([known.value for known in (*_ANSWERS, Task.DETECTION)])}",
            got=task.value,
            fix="call `outputs(images)`, which returns what the network gives for each image",
        )
