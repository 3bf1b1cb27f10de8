"""Logits and the reference's logits → metrics. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import RunError
from model_artifacts.records import Accuracy, ClassDrop, Task
from pipeline.stages.common.rows import margins, part_largest, part_squares, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pipeline.stages.common.rows import Parts

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

_Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""
_TOP = 5
_CLASS_SAMPLES = 5
"""The smallest number of samples for a judgement of a class."""
_PART_SAMPLES, _PART_VALUES = 1024, 2**24
"""The most samples and values compared at once. In float64 all 50,000 would take gigabytes."""


def measure(
    logits: Logits,
    reference: Logits,
    labels: Labels | None,
    class_names: Sequence[str] | None = None,
    task: Task = Task.CLASSIFICATION,
) -> Accuracy:
    """Compare logits or vectors with the reference's, in float64.

    Args:
        logits: (samples, classes); of an embedding (samples, length), of tensors flattened (samples, values).
        reference: the same of the FP32 network.
        labels: class indices (samples,); None without labels.
        class_names: the names of the classes; None for their numbers.
        task: the task of the model; an embedding predicts no class.

    Raises:
        RunError: the shapes differ.
    """
    if logits.shape != reference.shape:
        raise RunError(
            "the artifact's outputs have another shape", expected=str(reference.shape), got=str(logits.shape)
        )
    cosines, errors, sizes, largest, agree, finite = _distances(logits, reference)
    low, high = wilson(int(agree.sum()), len(agree))
    predicts = task is Task.CLASSIFICATION
    top1, top1_drop = _top(1, logits, reference, labels)
    top5, top5_drop = _top(_TOP, logits, reference, labels) if logits.shape[1] > _TOP else (None, None)
    return Accuracy(
        samples=len(logits),
        finite=bool(finite.all()),
        cosine=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        relative_l2=_share_of(errors, sizes),
        max_abs=float(largest.max()),
        top1_agreement=float(agree.mean()) if predicts else None,
        top1_agreement_low=low if predicts else None,
        top1_agreement_high=high if predicts else None,
        top1=top1,
        top1_drop=top1_drop,
        top5=top5,
        top5_drop=top5_drop,
        worst_class=None if labels is None else worst_class(logits, reference, labels, class_names),
        worst_sample=int(np.where(finite, errors, np.inf).argmax()),
    )


class _Distances(NamedTuple):
    """Distances between samples and the reference, as one array per measure."""

    cosines: npt.NDArray[np.float64]
    errors: npt.NDArray[np.float64]
    """‖logits - reference‖."""
    sizes: npt.NDArray[np.float64]
    """‖reference‖."""
    largest: npt.NDArray[np.float64]
    agree: npt.NDArray[np.bool_]
    finite: npt.NDArray[np.bool_]


def _parts(rows: Logits) -> list[slice]:
    step = max(1, min(_PART_SAMPLES, _PART_VALUES // max(1, rows.shape[1])))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def _distances(logits: Logits, reference: Logits) -> _Distances:
    parts = [_distances_of_part(logits[part], reference[part]) for part in _parts(logits)]
    return _Distances(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _distances_of_part(logits: Logits, reference: Logits) -> _Distances:
    got, want = _finite(logits), reference.astype(np.float64)
    sizes, difference = np.linalg.norm(want, axis=1), got - want
    norms = np.linalg.norm(got, axis=1) * sizes
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    return _Distances(
        cosines=np.divide((got * want).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0),
        errors=np.linalg.norm(difference, axis=1),
        sizes=sizes,
        largest=np.abs(difference).max(axis=1),
        agree=(got.argmax(axis=1) == want.argmax(axis=1)) & finite,
        finite=finite,
    )


def _share_of(errors: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(errors) / max(float(np.linalg.norm(sizes)), np.finfo(float).tiny))


def relative_l2(logits: Logits, reference: Logits) -> float:
    """Return ‖logits - reference‖ / ‖reference‖ in float64 (Frobenius norm); a row that is not finite counts as 0."""
    found = _distances(logits, reference)
    return _share_of(found.errors, found.sizes)


def _finite(logits: Logits) -> npt.NDArray[np.float64]:
    """Return the logits in float64, with 0 for a sample that has a NaN or an infinity: JSON has no number for those."""
    return np.where(np.isfinite(logits).all(axis=1, keepdims=True), logits, 0.0).astype(np.float64)


def _top(count: int, got: Logits, want: Logits, labels: Labels | None) -> tuple[float | None, float | None]:
    """Return the share of samples with their label among the `count` largest logits, and its drop."""
    if labels is None:
        return None, None
    right, before = (_hits(count, logits, labels) for logits in (got, want))
    return float(right.mean()), _drop(before, right)


def _drop(before: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """Return the drop in the share of hits, exactly: a difference of two shares may miss a bound by 1e-17."""
    return (int(before.sum()) - int(right.sum())) / len(before)


def _hits(count: int, logits: Logits, labels: Labels) -> npt.NDArray[np.bool_]:
    """Return for each sample true if its label's logit is among the `count` largest. The first of equal logits counts.

    A sample with a logit that is not finite is no hit.
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    ahead = (logits > own) | ((logits == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    hits: npt.NDArray[np.bool_] = (ahead.sum(axis=1) < count) & np.isfinite(logits).all(axis=1)
    return hits


def worst_class(
    got: Logits, want: Logits, labels: Labels, class_names: Sequence[str] | None = None
) -> ClassDrop | None:
    """Return the class whose share of right answers drops most from the reference's; None if all have few samples.

    Args:
        got: logits (samples, classes).
        want: the reference's logits.
        labels: class indices (samples,).
        class_names: the names of the classes.
    """
    drops = []
    right, before = _hits(1, got, labels), _hits(1, want, labels)
    for number in np.unique(labels):
        own = labels == number
        if own.sum() >= _CLASS_SAMPLES:
            drops.append((_drop(before[own], right[own]), int(number), int(own.sum())))
    if not drops:
        return None
    drop, number, samples = max(drops, key=lambda item: (item[0], -item[1]))
    return ClassDrop(name=class_names[number] if class_names else str(number), samples=samples, drop=drop)


def largest_sample(logits: Logits, reference: Logits) -> float:
    """Return the largest distance of a sample to the reference, in root mean squares of the reference's norms."""
    found = _distances(logits, reference)
    return float(found.errors.max() / max(float(np.sqrt(np.square(found.sizes).mean())), np.finfo(float).tiny))


def part_l2(
    logits: Logits,
    reference: Logits,
    shape: Sequence[int],
    tolerance: float = 0.0,
    usual: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """Return the relative L2 of each part of a tensor over all samples; a sample that is not finite counts as 0.

    Args:
        logits: flattened tensors (samples, values).
        reference: those of the FP32 network.
        shape: the shape of one sample.
        tolerance: a part without a value that is farther off than this, of any sample, has a distance of 0.
        usual: the least root mean square of each part's norm to divide by; None for that of these samples.
    """
    wrong = sizes = np.zeros(len(parts_of(shape)))
    apart: npt.NDArray[np.float64] = np.zeros(len(wrong))
    for part in _parts(reference):
        want = reference[part].astype(np.float64)
        wrong = wrong + part_squares(_finite(logits[part]) - want, shape).sum(axis=0)
        sizes = sizes + part_squares(want, shape).sum(axis=0)
        if tolerance:  # a NaN stays one, and is within no tolerance
            apart = np.maximum(apart, part_largest(logits[part] - want, shape))
    if usual is not None:
        sizes = np.maximum(sizes, len(reference) * np.square(usual))
    found: npt.NDArray[np.float64] = np.sqrt(wrong / np.maximum(sizes, np.finfo(float).tiny))
    return np.where(apart <= tolerance, 0.0, found) if tolerance else found


def largest_part(logits: Logits, reference: Logits, shape: Sequence[int], tolerance: float = 0.0) -> float:
    """Return the relative L2 of the whole, or of one of its parts, whichever is larger.

    Args:
        logits: flattened tensors (samples, values).
        reference: those of the FP32 network.
        shape: the shape of one sample.
        tolerance: as that of `part_l2`; a whole without a larger error has a distance of 0, too.
    """
    parts = float(part_l2(logits, reference, shape, tolerance).max(initial=0.0))
    errors = (np.abs(logits[part].astype(np.float64) - reference[part]).max() for part in _parts(reference))
    within = tolerance > 0 and all(error <= tolerance for error in errors)
    return parts if within else max(relative_l2(logits, reference), parts)


def distance(logits: Logits, reference: Logits, parts: Parts | None) -> float:
    """Return the relative L2 of the whole, or of a part by its weight, whichever is larger."""
    whole = relative_l2(logits, reference)
    if parts is None or not len(parts.weights):
        return whole
    found = part_l2(logits, reference, parts.shape, parts.tolerance, parts.sizes)
    return max(whole, float((found * parts.weights).max()))


class Answers(NamedTuple):
    """Counts of answers that differ between an artifact and the reference; a sample of many answers counts shares."""

    samples: int
    lost: float
    won: float
    near_ties: int = 0


def compare_answers(logits: Logits, reference: Logits, labels: Labels | None, tie: float) -> Answers:
    """Count the answers that an artifact lost and won.

    Args:
        logits: (samples, classes).
        reference: (samples, classes).
        labels: class indices (samples,). Without labels, every answer unlike the reference's is lost.
        tie: without labels, a sample whose two first logits are nearer than this is a near-tie, and not judged.
    """
    if labels is not None:
        right, before = _hits(1, logits, labels), _hits(1, reference, labels)
        return Answers(len(labels), int((before & ~right).sum()), int((right & ~before).sum()))
    found = _distances(logits, reference)
    wide = (reference[part].astype(np.float64) for part in _parts(reference))
    clear = np.concatenate([margins(part, part) > tie for part in wide])
    if not clear.any():  # nothing is left to judge, so every answer counts
        clear[:] = True
    return Answers(int(clear.sum()), int((clear & ~found.agree).sum()), 0, int((~clear).sum()))


def row_dependence(alone: Logits, among_others: Logits, parts: Parts | None = None) -> float:
    """Return the largest relative change of a row, ‖a - b‖ / ‖a‖; a row that is not finite counts as zeros.

    A part of a row may be nearly zero, as scores are of what the image does not show. So its change is divided by the
    root mean square of that part over all rows, or by its usual one where that is larger.

    Args:
        alone: logits (rows, classes), or flattened tensors (rows, values).
        among_others: the same rows' logits, computed beside other rows.
        parts: the parts of a tensor, whose changes count by their weights.
    """
    want, got = _finite(alone), _finite(among_others)
    tiny = np.finfo(float).tiny
    moved = float((np.linalg.norm(got - want, axis=1) / np.maximum(np.linalg.norm(want, axis=1), tiny)).max())
    if parts is None or not len(parts.weights):
        return moved
    changes, sizes = part_squares(got - want, parts.shape), part_squares(want, parts.shape).mean(axis=0)
    if parts.sizes is not None:
        sizes = np.maximum(sizes, np.square(parts.sizes))
    weights = np.where(part_largest(got - want, parts.shape) > parts.tolerance, parts.weights, 0.0)
    return max(moved, float((np.sqrt(changes / np.maximum(sizes, tiny)) * weights).max()))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson score interval at 95 % of a share (E. B. Wilson, JASA 22, 1927).

    Args:
        successes: a count from 0 to `trials`.
        trials: a count of at least 1.
    """
    share = successes / trials
    spread = _Z95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
