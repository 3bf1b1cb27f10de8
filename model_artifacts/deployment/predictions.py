"""Logits → the most likely classes, with their names and scores; the answer of any task."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import RunError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_AXES = 2
"""The number of axes of logits: images, classes."""


@dataclass(frozen=True)
class ClassScore:
    """A class and its score."""

    name: str
    """The name of the class; its number, if names are unknown."""
    score: float
    """The softmax of the logits, from 0 to 1: the sum over all classes is 1. Of several labels the sigmoid of the
    class's own logit; of a mask its share of the pixels."""
    index: int
    """The number of the class: its place among the logits, from 0 on."""


@dataclass(frozen=True)
class NamedValue:
    """A number of a regression."""

    name: str
    """Its name; its place, if names are unknown."""
    value: float
    """The number, as the network gives it."""


@dataclass(frozen=True)
class DetectedBox:
    """A box that a detector found."""

    name: str
    """The name of its class; its number, if names are unknown."""
    score: float
    """Its score, from 0 to 1."""
    index: int
    """The number of its class, from 0 on."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels of the picture that was given, upright if the preprocessing turns it."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: classes, and the mask, the numbers or the boxes of a task that has them."""

    top: tuple[ClassScore, ...]
    """The most likely classes, the likeliest first. Among equals the lower number goes first. Of several labels those
    that reach the threshold, of a mask those that it has, the largest first; none of a regression. Of a detector
    the classes of its boxes, each with its highest score."""
    mask: npt.NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """The class of each pixel of the network's output, uint8 (height, width); None for other tasks. The output shows
    what the resize and the crop leave of the image."""
    values: tuple[NamedValue, ...] = ()
    """The numbers of a regression; none for other tasks."""
    boxes: tuple[DetectedBox, ...] = ()
    """The boxes of a detector, the one with the highest score first; none for other tasks."""

    @property
    def name(self) -> str:
        """The name of the likeliest class; its number, if names are unknown."""
        return self._first.name

    @property
    def score(self) -> float:
        """The score of the likeliest class, from 0 to 1."""
        return self._first.score

    @property
    def index(self) -> int:
        """The number of the likeliest class."""
        return self._first.index

    @property
    def _first(self) -> ClassScore:
        if not self.top:
            raise UsageError(
                "the prediction has no class",
                expected="a class that reaches the threshold, or a task with classes",
                got=f"{len(self.values)} numbers" if self.values else "no class that does",
                fix="look at `top` or `boxes`, which may be empty, or at `values`",
            )
        return self.top[0]


def checked_top(top: object) -> int:
    """Return a number of classes to name for each image.

    Raises:
        UsageError: it is no whole number above 0.
    """
    try:
        number = 0 if isinstance(top, bool) else operator.index(top)  # type: ignore[arg-type]  # that is the check
    except TypeError:
        number = 0
    if number < 1:
        raise UsageError(
            "`top` is the number of classes to name for each image",
            expected="a whole number from 1 on",
            got=repr(top),
            fix="write `predict(images, top=5)`",
        )
    return number


def rank(logits: npt.NDArray[np.float32], names: Sequence[str] | None, top: int = 1) -> tuple[Prediction, ...]:
    """Return the most likely classes of each image. Pure.

    Args:
        logits: (images, classes).
        names: the names of the classes; None if they are unknown.
        top: the number of classes to name; all of them, if there are fewer.

    Raises:
        RunError: there is one logit only, they are not finite, or their number is not that of the names.
    """
    classes = logits.shape[1] if logits.ndim == _AXES else 0
    if classes <= 1 or (names and len(names) != classes):
        raise RunError(
            "the artifact's logits are not those of its classes",
            expected=f"{len(names)} logits for each image" if names else "two logits or more for each image",
            got=str(classes) if classes else f"an array {logits.shape}",
            fix="call the model itself for its outputs, or build it with a logit for each class",
        )
    require_finite(logits, "the logits are not finite, so that none is the largest")
    likely = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    scores = likely / likely.sum(axis=1, keepdims=True)
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :top]
    return tuple(
        Prediction(tuple(ClassScore(names[at] if names else str(at), float(row[at]), int(at)) for at in best))
        for row, best in zip(scores, order, strict=True)
    )


def require_finite(outputs: npt.NDArray[np.float32], refusal: str) -> None:
    """Raise an error with this refusal if an output (images, …) is not finite.

    Raises:
        RunError: one is not.
    """
    broken = np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))
    if len(broken):
        raise RunError(
            refusal,
            expected="finite logits",
            got=f"NaN or infinity for {len(broken)} of {len(outputs)} images, the first at {broken[0]}",
            fix="take an artifact of another precision: `Requirements(precision=...)`",
        )
