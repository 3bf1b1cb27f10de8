"""The reference's logits and the labels → checks of the reference itself. Pure.

An artifact that agrees with a reference which answers nothing is no better than its reference. So nothing is deployable
while one of these checks fails.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.records import GateCheck, Question, Task
from pipeline.stages.validate.metrics import wilson

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

_LEAST_SPREAD = 5e-3
"""The least share of the logits' size that must depend on the image.

Trained networks show more than 0.1, and an untrained one of 40 layers showed 0.04. Preprocessing in units of 0 to 255
leaves 1/255 of an image's contrast, and rounding to FP16 or INT8 moves the logits by 5e-4 to 1e-2 of their size.
"""
_COLUMNS = 4096
_FEW = 20
"""Fewer images may well be of one class."""


def judge_reference(
    reference: Logits, labels: Labels | None, *, repeatable: bool = True, task: Task = Task.CLASSIFICATION
) -> tuple[GateCheck, ...]:
    """Check that the reference's answers depend on the image, differ, and are better than chance.

    Args:
        reference: logits (samples, classes); of an embedding vectors (samples, length).
        labels: class indices (samples,); None without labels.
        repeatable: False if the network gave other logits for the same batch.
        task: the task of the model. The answers of a classification are judged here, those of others by their task.
    """
    words = {
        Task.EMBEDDING: "vectors",
        Task.TENSORS: "values",
        Task.REGRESSION: "values",
        Task.DETECTION: "values",
    }.get(task, "logits")
    broken = int((~np.isfinite(reference)).any(axis=1).sum())
    if broken:
        return (_check(f"finite {words}", "all", f"{broken} of {len(reference)} samples are not", passed=False),)
    checks = [
        _check(f"{words} of the same batch twice", "equal", "equal" if repeatable else "different", passed=repeatable)
    ]
    if len(reference) > 1 and task is not Task.DETECTION:  # raw boxes lie around their anchors
        checks.append(_depends_on_the_image(reference, task, words))
    classes = reference.shape[1]
    if classes > 1 and task is Task.CLASSIFICATION:
        answers = reference.argmax(axis=1)
        if labels is not None:
            checks.append(_better_than_chance(answers, labels, classes))
        if len(answers) >= _FEW and (labels is None or len(np.unique(labels)) > 1):
            given = len(np.unique(answers))
            value = f"{given} different classes" if given > 1 else f"the same class for all {len(answers)} images"
            checks.append(_check("answers", "at least 2 different classes", value, passed=given > 1))
    return tuple(checks)


def _depends_on_the_image(reference: Logits, task: Task, words: str) -> GateCheck:
    """Compare the outputs' deviation from their means over the images with their size.

    A number that is added to all logits of an image changes no answer, so it does not count.
    """
    if reference.shape[1] > 1 and task is Task.CLASSIFICATION:
        reference = reference - reference.mean(axis=1, keepdims=True, dtype=np.float64)
    sizes = spreads = 0.0
    for start in range(0, reference.shape[1], _COLUMNS):  # in float64 all values of maps would take gigabytes
        wide = reference[:, start : start + _COLUMNS].astype(np.float64)
        sizes += float(np.square(wide).sum())
        spreads += float(np.square(wide - wide.mean(axis=0)).sum())
    size, spread = math.sqrt(sizes / reference.size), math.sqrt(spreads / reference.size)
    share = spread / size if size > 0 else 0.0
    metric, passed = f"share of the {words} that depends on the image", share >= _LEAST_SPREAD
    return _check(metric, f"≥ {_LEAST_SPREAD:g}", f"{share:.2g}", passed=passed)


def _better_than_chance(answers: npt.NDArray[np.int64], labels: Labels, classes: int) -> GateCheck:
    """Compare the lower end of the top-1's Wilson interval with the share of one who guesses."""
    right = int((answers == labels).sum())
    low, _ = wilson(right, len(labels))
    value = f"{right / len(labels):.1%} of {len(labels)}, at least {low:.1%}"
    return _check("top-1", f"> {1 / classes:.2%}, by chance", value, passed=low > 1 / classes)


def _check(metric: str, bound: str, value: str, *, passed: bool) -> GateCheck:
    return GateCheck(
        metric=f"reference: {metric}", bound=bound, value=value, passed=passed, question=Question.REFERENCE
    )
