"""Images, labels and logits → the reasons why the data say nothing about the network. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.deployment.choices import is_better_than_chance
from model_artifacts.errors import DataError, listed

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]
    Labels = npt.NDArray[np.int64]
    Logits = npt.NDArray[np.float32]

_BATCH = 64
_FAINT = 16
"""Steps of 255. Images that differ by less are as good as alike to a network that was trained on ordinary ones."""
_CHANCE_OF_ACCIDENT = 1e-4
"""Probability of so many better answers by accident, below which the other order of channels counts as better."""


_FEWEST_LABELS = 4
_SURE = 2.2
"""The logit whose sigmoid is 0.9."""
_SOFTMAX = 0.9
_SEVERAL = 0.1
"""The share of images with several labels from which a network is suspected of them."""


def require_different(pixels: Pixels) -> str:
    """Return a warning if images hardly differ; empty otherwise.

    Args:
        pixels: uint8 (samples, height, width, channels), possibly mapped from disk.

    Raises:
        DataError: all images are the same, and there are several.
    """
    low, high = np.array(pixels[0]), np.array(pixels[0])
    for start in range(0, len(pixels), _BATCH):
        part = pixels[start : start + _BATCH]
        np.minimum(low, part.min(axis=0), out=low)
        np.maximum(high, part.max(axis=0), out=high)
        if int((high - low).max()) >= _FAINT:
            return ""
    apart = int((high - low).max())
    if apart == 0 and len(pixels) > 1:
        raise DataError(
            f"all {len(pixels)} images are the same to the network, so nothing can be validated",
            expected="images that differ after the preprocessing",
            got=f"pixels from {low.min()} to {high.max()} of 255 in every one of them",
            fix="check the images, and `levels`, `resize` and `crop` of `preprocessing` in pipeline.yaml",
        )
    return f"no pixel differs by more than {apart} of 255 among {len(pixels)} images" if len(pixels) > 1 else ""


def require_different_rows(rows: npt.NDArray[Any]) -> str:
    """Return a warning if an input is the same in all samples; empty otherwise.

    Args:
        rows: an array with a field for each input, possibly mapped from disk.

    Raises:
        DataError: all inputs are, and there are several samples.
    """
    names = rows.dtype.names or ()
    same = [name for name in names if len(rows) > 1 and bool((rows[name] == rows[name][:1]).all())]
    if same and len(same) == len(names):
        raise DataError(
            f"all {len(rows)} samples are the same, so nothing can be validated",
            expected="samples that differ",
            fix="check the arrays of `data.tensors` in pipeline.yaml",
        )
    return f"the input {listed(same)} is the same in all {len(rows)} samples" if same else ""


def chance_warning(top1: float, samples: int, classes: int) -> str:
    """Return a warning if the reference's top-1 may be luck; empty otherwise.

    Args:
        top1: the share of right answers.
        samples: the number of images.
        classes: the number of classes.
    """
    if is_better_than_chance(top1, samples, classes):
        return ""
    return (
        f"the reference's top-1 of {top1:.1%} is no better than chance ({1 / classes:.1%}). Are the folders' classes "
        "in the order of the logits (`data.classes`), and is `preprocessing` that of the training?"
    )


def several_labels_warning(logits: Logits) -> str:
    """Return a warning if a classification's logits look like those of several labels; empty otherwise.

    A network of one label decides between its classes: where two of them are likely, no softmax is near 1. One of
    several labels holds most classes far below 0, and two or more far above it.

    Args:
        logits: the reference's (samples, classes).
    """
    sure = np.sort(logits, axis=1)[:, ::-1]
    if sure.shape[1] < _FEWEST_LABELS:
        return ""
    top = 1 / np.exp(sure - sure[:, :1]).sum(axis=1)
    several = (sure[:, 1] > _SURE) & (sure[:, sure.shape[1] // 2] < -_SURE) & (top < _SOFTMAX)
    share = float(several.mean())
    if share < _SEVERAL:
        return ""
    return (
        f"{share:.0%} of the images have several classes with a sigmoid above 0.9, and most others are below 0.1, as "
        "in a network of several labels. A classification is judged by its largest logit alone: is it "
        "`model.task: multilabel`?"
    )


def require_order(logits: Logits, exchanged: Logits, labels: Labels) -> str:
    """Compare the answers with those for the same images with red and blue exchanged (exact sign test).

    A network whose answers are no better than chance, such as an untrained one, proves nothing by either order. It gets
    a warning, and the validation rejects it.

    Args:
        logits: logits (samples, classes) of the images.
        exchanged: logits of the images with their channels in reverse.
        labels: class indices (samples,).

    Returns:
        a warning; empty if the order is as good as the other one.

    Raises:
        DataError: the network is better than chance, and recognises the exchanged images better, beyond accident.
    """
    ours, theirs = logits.argmax(axis=1) == labels, exchanged.argmax(axis=1) == labels
    lost, won = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    differing = lost + won
    by_accident = sum(math.comb(differing, count) for count in range(won, differing + 1)) / 2**differing
    if won <= lost or by_accident >= _CHANCE_OF_ACCIDENT:
        return ""
    found = "the network recognises the images better with red and blue exchanged"
    advice = (
        "write `order: bgr` in `preprocessing` of pipeline.yaml, with mean and std in that order, or `order: rgb` to "
        "keep it as it is"
    )
    if chance_warning(float(ours.mean()), len(labels), logits.shape[1]):
        return f"{found}: top-1 of {theirs.mean():.1%} against {ours.mean():.1%}. If it takes blue first, {advice}"
    raise DataError(
        f"{found}, so it takes the other order of channels",
        expected=f"top-1 of at least {theirs.mean():.1%}, as with the channels in reverse",
        got=f"{ours.mean():.1%} of {len(labels)} images",
        fix=advice,
    )
