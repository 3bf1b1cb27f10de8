"""The reference's logits and the labels → checks of the reference itself. Pure.

An artifact that agrees with a reference which answers nothing is no better than its reference. So nothing is deployable
while one of these checks fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.records import GateCheck, Question
from pipeline.stages.validate.metrics import wilson

if TYPE_CHECKING:
    import numpy.typing as npt

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

_LEAST_SPREAD = 1e-6
"""The least share of the logits' size that must depend on the image: ten times FP32's rounding."""
_FEW = 20
"""Fewer images may well be of one class."""


def judge_reference(reference: Logits, labels: Labels | None, *, repeatable: bool = True) -> tuple[GateCheck, ...]:
    """Check that the reference's answers depend on the image, differ, and are better than chance.

    Args:
        reference: logits (samples, classes).
        labels: class indices (samples,); None without labels.
        repeatable: False if the network gave other logits for the same batch.
    """
    broken = int((~np.isfinite(reference)).any(axis=1).sum())
    if broken:
        return (_check("finite logits", "all", f"{broken} of {len(reference)} samples are not", passed=False),)
    checks = [_check("a batch twice", "the same logits", "the same" if repeatable else "others", passed=repeatable)]
    if len(reference) > 1:
        checks.append(_depends_on_the_image(reference))
    classes = reference.shape[1]
    if classes > 1:
        answers = reference.argmax(axis=1)
        if labels is not None:
            checks.append(_better_than_chance(answers, labels, classes))
        if len(answers) >= _FEW and (labels is None or len(np.unique(labels)) > 1):
            given = len(np.unique(answers))
            checks.append(_check("classes among its answers", "≥ 2", str(given), passed=given > 1))
    return tuple(checks)


def _depends_on_the_image(reference: Logits) -> GateCheck:
    wide = reference.astype(np.float64)
    size = float(np.sqrt(np.square(wide).mean()))
    spread = float(np.sqrt(np.square(wide - wide.mean(axis=0)).mean()))
    share = spread / size if size > 0 else 0.0
    metric, passed = "share of the logits that depends on the image", share >= _LEAST_SPREAD
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
