"""Logits and the reference's logits → metrics, compared with the bounds of a precision's gate. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import RunError
from model_artifacts.records import Accuracy, ClassDrop, GateCheck, LayerShare, Precision, RowCheck

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from pipeline.config.settings import Gate

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]

_TYPED_LAYERS = 0.95
_QUANTIZED_LAYERS = 0.8
"""The quantiser leaves the last product in floating point, and in fp8 the first convolution. A network may be short."""
_Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""
_TOP = 5
_CLASS_SAMPLES = 5
"""The smallest number of samples for a judgement of a class."""
_PART_SAMPLES = 1024
"""The number of samples compared at once. In float64 all 50,000 would take gigabytes."""
_PART = 1.1
"""The factor by which a part of the samples may exceed the bound on the distance of all."""


def executed_precision(
    asked: Precision, layers: tuple[LayerShare, ...], relative_l2: float, strict_l2: float
) -> Precision | None:
    """Return the precision that an engine computed in: the type of most of its convolutions and matrix products.

    TF32 is hard to tell from FP32: both have FP32 tensors, and some libraries do not name their kernels. Then the
    numbers decide: TF32 keeps 10 bits of a mantissa, so that its error is a hundred times strict FP32's bound.

    Args:
        asked: the requested precision.
        layers: the shares from the engine's inspector; empty without convolutions.
        relative_l2: the distance to the strict FP32 reference.
        strict_l2: the largest distance of strict FP32.
    """
    if not layers:
        return None
    found = layers[0].precision
    if asked is Precision.FP32 and any(share.precision is Precision.TF32 for share in layers):
        return Precision.TF32
    return Precision.TF32 if found is Precision.FP32 and relative_l2 > strict_l2 else found


def judge_layers(
    claimed: Precision, layers: tuple[LayerShare, ...], metric: str = "executed precision", left_out: int = 0
) -> tuple[GateCheck, ...]:
    """Compare the share of convolutions and matrix products in the claimed type with its bound.

    A quantised network may have one other layer, however short it is, because the quantiser leaves the last one.

    Args:
        claimed: the precision that most of them must multiply in.
        layers: the shares from an inspector or an ONNX file.
        metric: the name of the check.
        left_out: the number of layers that the configuration leaves unquantised. The bound does not count them.
    """
    total = sum(share.layers for share in layers)
    if total == 0:
        return ()
    alike = {claimed, Precision.FP32} if claimed is Precision.TF32 else {claimed}
    found = sum(item.layers for item in layers if item.precision in alike)
    quantized = claimed in {Precision.INT8, Precision.FP8}
    bound = _QUANTIZED_LAYERS if quantized else _TYPED_LAYERS
    others = f" of all but {left_out}" if left_out else ""
    spared = left_out + int(quantized)  # whatever the network's length
    return (
        GateCheck(
            metric=metric,
            bound=f"≥ {bound:.0%} {claimed.value}{others}",
            value=f"{found / total:.1%}",
            passed=found > 0 and (found >= bound * (total - left_out) or total - found <= spared),
        ),
    )


def measure(
    logits: Logits, reference: Logits, labels: Labels | None, class_names: Sequence[str] | None = None
) -> Accuracy:
    """Compare logits with the reference's, in float64.

    Args:
        logits: (samples, classes).
        reference: (samples, classes).
        labels: class indices (samples,); None without labels.
        class_names: the names of the classes; None for their numbers.

    Raises:
        RunError: the shapes differ.
    """
    if logits.shape != reference.shape:
        raise RunError("the artifact's logits have another shape", expected=str(reference.shape), got=str(logits.shape))
    parts = [
        _distances(logits[start : start + _PART_SAMPLES], reference[start : start + _PART_SAMPLES])
        for start in range(0, len(logits), _PART_SAMPLES)
    ]
    cosines, errors, sizes, largest, agree, finite = (np.concatenate(column) for column in zip(*parts, strict=True))
    low, high = wilson(int(agree.sum()), len(agree))
    top1, top1_drop = _top(1, logits, reference, labels)
    top5, top5_drop = _top(_TOP, logits, reference, labels) if logits.shape[1] > _TOP else (None, None)
    return Accuracy(
        samples=len(logits),
        finite=bool(finite.all()),
        cosine=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        relative_l2=_share_of(errors, sizes),
        max_abs=float(largest.max()),
        top1_agreement=float(agree.mean()),
        top1_agreement_low=low,
        top1_agreement_high=high,
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


def _distances(logits: Logits, reference: Logits) -> _Distances:
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


def row_dependence(alone: Logits, among_others: Logits) -> float:
    """Return the largest relative change of a row, ‖a - b‖ / ‖a‖; a row that is not finite counts as zeros.

    Args:
        alone: logits (rows, classes).
        among_others: the same rows' logits, computed beside other rows.
    """
    want, got = _finite(alone), _finite(among_others)
    distances = np.linalg.norm(got - want, axis=1)
    return float((distances / np.maximum(np.linalg.norm(want, axis=1), np.finfo(float).tiny)).max())


def judge_rows(rows: tuple[RowCheck, ...], gate: Gate) -> tuple[GateCheck, ...]:
    """Compare the worst batch size with the gate: the distance to the reference, and the effect of other rows."""
    if not rows:
        return ()
    far = max(rows, key=lambda row: row.reference_l2)
    moved = max(rows, key=lambda row: row.relative_l2)
    found = (
        ("relative L2 at every batch size", far.reference_l2, far.batch, gate.relative_l2 * _PART),
        ("row beside other rows, relative L2", moved.relative_l2, moved.batch, gate.relative_l2),
    )
    return tuple(
        GateCheck(metric=metric, bound=f"≤ {bound:g}", value=f"{value:.6g} at batch {batch}", passed=value <= bound)
        for metric, value, batch, bound in found
    )


def judge_finite(metric: str, logits: Logits | None) -> tuple[GateCheck, ...]:
    """Check that logits are finite; no check without logits."""
    if logits is None:
        return ()
    finite = bool(np.isfinite(logits).all())
    return (GateCheck(metric=metric, bound="all", value="all" if finite else "not all", passed=finite),)


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


def judge(accuracy: Accuracy, gate: Gate, *, require_proof: bool) -> tuple[GateCheck, ...]:
    """Compare every metric with its bound; the drop in labelled top-1 only with labels."""
    checks = [
        GateCheck(
            metric="finite outputs", bound="all", value="all" if accuracy.finite else "not all", passed=accuracy.finite
        ),
        _at_least("cosine", accuracy.cosine, gate.cosine),
        _at_most("relative L2", accuracy.relative_l2, gate.relative_l2),
        _at_least("top-1 agreement", accuracy.top1_agreement, gate.top1_agreement),
    ]
    if accuracy.top1_drop is not None:
        checks.append(_at_most("labelled top-1 drop", accuracy.top1_drop, gate.top1_drop))
    if accuracy.worst_class is not None and gate.class_drop is not None:
        checks.append(
            _at_most(f"top-1 drop of class {accuracy.worst_class.name}", accuracy.worst_class.drop, gate.class_drop)
        )
    if require_proof:
        checks.append(_at_least("top-1 agreement, proven", accuracy.top1_agreement_low, gate.top1_agreement))
    return tuple(checks)


def _at_least(metric: str, value: float, bound: float) -> GateCheck:
    return GateCheck(metric=metric, bound=f"≥ {bound:g}", value=f"{value:.6g}", passed=value >= bound)


def _at_most(metric: str, value: float, bound: float) -> GateCheck:
    return GateCheck(metric=metric, bound=f"≤ {bound:g}", value=f"{value:.6g}", passed=value <= bound)
