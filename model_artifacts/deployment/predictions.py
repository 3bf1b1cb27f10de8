"""Logits → the most likely classes, with their names and scores."""

from __future__ import annotations

import operator
from dataclasses import dataclass
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
    """The softmax of the logits, from 0 to 1: the sum over all classes is 1."""
    index: int
    """The number of the class: its place among the logits, from 0 on."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image."""

    top: tuple[ClassScore, ...]
    """The most likely classes, the likeliest first. Among equals the lower number goes first."""

    @property
    def name(self) -> str:
        """The name of the likeliest class; its number, if names are unknown."""
        return self.top[0].name

    @property
    def score(self) -> float:
        """The score of the likeliest class, from 0 to 1."""
        return self.top[0].score

    @property
    def index(self) -> int:
        """The number of the likeliest class."""
        return self.top[0].index


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
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise RunError(
            "the logits are not finite, so that none is the largest",
            expected="finite logits",
            got=f"NaN or infinity for {len(broken)} of {len(logits)} images, the first at {broken[0]}",
            fix="take an artifact of another precision: `Requirements(precision=...)`",
        )
    likely = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf))
    scores = likely / likely.sum(axis=1, keepdims=True)
    order = np.argsort(-logits.astype(np.float64), axis=1, kind="stable")[:, :top]
    return tuple(
        Prediction(tuple(ClassScore(names[at] if names else str(at), float(row[at]), int(at)) for at in best))
        for row, best in zip(scores, order, strict=True)
    )
