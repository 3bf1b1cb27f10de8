"""Metrics → checks against the bounds of a precision's gate. Pure.

Two questions have bounds of their own: an artifact is *faithful* if it is as near to the reference as its precision
allows in this network, and *good enough* if the loss of right answers is acceptable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import GateCheck, LayerShare, Precision, Question, RowCheck
from pipeline.config.values import QUANTIZED_PRECISIONS
from pipeline.records import Loss, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from model_artifacts.records import Accuracy
    from pipeline.config.settings import Gate
    from pipeline.records import Rounding

    Logits = npt.NDArray[np.float32]

_EXECUTED, IN_GRAPH = "executed precision", "precision in the graph"
"""Checks of the layers' types: of an engine, and of an ONNX file."""
_TYPED_LAYERS = 0.95
_QUANTIZED_LAYERS = 0.8
"""The quantiser leaves the last product in floating point, and in fp8 the first convolution. A network may be short."""
FLOOR = 1e-5
"""The least bound on a distance. FP32's own rounding is 1e-6 to 2e-6; transforms such as Winograd's make several times
as much (Lavin and Gray 2016). TF32's is a hundred times larger."""
_SAMPLE = 2.0
"""The factor for a single sample, on top of the multiple for all: the emulation sees few samples of a long tail."""
_COARSE = {Precision.BF16, Precision.INT8, Precision.FP8}
_COARSE_SAMPLE = 4.0
"""The same of these. Quantised graphs cut off a sample with larger activations than the calibration's: its distance was
up to 5.0 times the largest of the 64 emulated samples (`benchmarks/quantized_gates.py`, 18 networks). In bf16 two of
320 digits lay 4.4 times as far in a ViT, whatever the draw of their rounding; in fp16 they lay 2.6 times as far."""
_QUANTIZED_PART = 2.0
"""The factor for a part of a quantised graph, which one such sample can fill: a column of maps lay up to 1.5 times its
bound without it (`benchmarks/task_gates.py`, one of six segmenters)."""
LOST = 0.9
"""The bound that this wider factor must not pass, nor what few samples leave open: a sample without any output lies 1
away, if its norm is the mean."""
_OTHER_KERNELS = 1.4
"""The most that honest builds lie beyond the expected rounding (docs/accuracy.md), on top of another draw of it."""
_LEAST = 0.1
"""The least share of the expected rounding that an artifact must show. One that computes in a wider type has a
thousandth of fp16's. ONNX Runtime, which computes fp16's sums in FP32, has a third."""
_LEAST_OF_LOW = 0.25
"""The same of the lower quantile, which is less where one sample makes the distance: honest builds have 0.25 or more of
the expected rounding (docs/accuracy.md). It decides where fewer than about a dozen samples make the distance."""
_PART = 1.1
"""The factor by which a part of the samples may exceed the bound on the distance of all."""
_ROUNDS_VISIBLY = {Precision.FP16, Precision.BF16, Precision.INT8, Precision.FP8}
"""TF32 is left out: a library may use it for some layers alone, or for none."""


class Bounds(NamedTuple):
    """The bounds of faithfulness for one precision of a network."""

    relative_l2: float | None
    """The largest relative L2; None if the precision could not be emulated, or does not hold the network's values: they
    are too large or too small."""
    source: str
    """The origin of that bound, as a phrase in brackets; without a bound, the reason. Empty if pipeline.yaml has it."""
    sample_l2: float | None = None
    """The largest distance of a sample, in root mean squares of the reference's norms. None without emulation."""
    least_l2: float | None = None
    """The least relative L2 of an artifact that computes in its type."""
    emulation_l2: float | None = None
    """The largest relative L2 to the emulated logits, for quantised graphs."""
    part_l2: tuple[float, ...] = ()
    """The largest relative L2 of each part of a tensor; empty for logits and vectors, and for one bound for all."""


def bounds_of(gate: Gate, rounding: Rounding, multiple: float, share: float = 1.0) -> Bounds:
    """Return the bounds of a precision: from its gate, else from its own rounding.

    Args:
        gate: the precision's bounds in pipeline.yaml.
        rounding: the distance that its rounding makes in this network.
        multiple: the largest acceptable distance, in multiples of that one.
        share: the share of the logits' norm that the artifact shows; bounds that come from elsewhere are for all.
    """
    floor = FLOOR * share
    high, sample = rounding.relative_l2_high, rounding.sample_l2_high
    if gate.relative_l2 is not None:
        return Bounds(gate.relative_l2 * share, "")
    if high is None or sample is None:
        return Bounds(None, rounding.trouble.replace("\n", ";") or _BEYOND)
    if high >= LOST:  # a multiple of it would let an output of zeros pass, which lies 1 away
        return Bounds(None, _VANISHED)
    visible = rounding.precision in _ROUNDS_VISIBLY
    worst = _SAMPLE * multiple * sample
    parts = [multiple * part for part in rounding.part_l2_high]
    if rounding.precision in _COARSE:
        worst = max(worst, min(_COARSE_SAMPLE * multiple * sample, LOST))
    if rounding.precision in QUANTIZED_PRECISIONS:
        parts = [max(part, min(_QUANTIZED_PART * part, LOST)) for part in parts]
    # Where few samples make a part's distance, another draw of the same rounding needs more than the multiple.
    draws = rounding.part_l2_redrawn or (0.0,) * len(parts)
    parts = [max(part, min(_OTHER_KERNELS * drawn, LOST)) for part, drawn in zip(parts, draws, strict=True)]
    return Bounds(
        relative_l2=max(multiple * high, floor),
        source=f" ({multiple:g} × its own rounding, {high:.2g})" if multiple * high > floor else " (the floor)",
        sample_l2=max(worst, floor),
        least_l2=_least_of(rounding) if visible else None,
        emulation_l2=max(high, floor) if rounding.logits else None,
        part_l2=tuple(max(part, floor) for part in parts),
    )


def _least_of(rounding: Rounding) -> float:
    """Return the distance that an artifact's type must show, of a rounding that is known."""
    least = _LEAST * (rounding.relative_l2_high or 0.0)
    return least if rounding.relative_l2_low is None else min(least, _LEAST_OF_LOW * rounding.relative_l2_low)


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
    claimed: Precision,
    layers: tuple[LayerShare, ...],
    metric: str = _EXECUTED,
    left_out: int = 0,
    outputs: int = 1,
) -> tuple[GateCheck, ...]:
    """Compare the share of convolutions and matrix products in the claimed type with its bound.

    A quantised network may have one other layer for each output, however short it is, because the quantiser leaves the
    last ones.

    Args:
        claimed: the precision that most of them must multiply in.
        layers: the shares from an inspector or an ONNX file.
        metric: the name of the check.
        left_out: the number of layers that the configuration leaves unquantised. The bound does not count them.
        outputs: the number of the network's outputs.
    """
    total = sum(share.layers for share in layers)
    if total == 0:
        return ()
    alike: set[Precision] = {claimed, Precision.FP32} if claimed is Precision.TF32 else {claimed}
    found = sum(item.layers for item in layers if item.precision in alike)
    quantized = claimed in {Precision.INT8, Precision.FP8}
    bound = _QUANTIZED_LAYERS if quantized else _TYPED_LAYERS
    others = f" of all but {left_out}" if left_out else ""
    spared = left_out + outputs * int(quantized)  # whatever the network's length
    passed = found > 0 and (found >= bound * (total - left_out) or total - found <= spared)
    value = f"{found / total:.1%}" if passed else f"{found / total:.1%}, beside {_others(layers, alike)}"
    return (GateCheck(metric=metric, bound=f"≥ {bound:.0%} {claimed.value}{others}", value=value, passed=passed),)


def _others(layers: tuple[LayerShare, ...], alike: set[Precision]) -> str:
    """Return the layers in other types than those of `alike`, by number and type: `16 layers in fp16`."""
    others = [share for share in layers if share.precision not in alike]
    named = ((share.layers, share.precision.value if share.precision else "an unknown type") for share in others)
    return ", ".join(f"{count} {'layer' if count == 1 else 'layers'} in {kind}" for count, kind in named)


def judge_rows(rows: tuple[RowCheck, ...], bounds: Bounds) -> tuple[GateCheck, ...]:
    """Compare the worst batch size with the bounds: the distance to the reference, and the effect of other rows."""
    if not rows or bounds.relative_l2 is None:
        return ()
    far = max(rows, key=lambda row: row.reference_l2)
    moved = max(rows, key=lambda row: row.relative_l2)
    found = (
        ("relative L2 at every batch size", far.reference_l2, far.batch, bounds.relative_l2 * _PART),
        ("row beside other rows, relative L2", moved.relative_l2, moved.batch, bounds.relative_l2),
    )
    return tuple(
        GateCheck(metric=metric, bound=f"≤ {bound:.3g}", value=f"{value:.6g} at batch {batch}", passed=value <= bound)
        for metric, value, batch, bound in found
    )


def judge_finite(metric: str, logits: Logits | None) -> tuple[GateCheck, ...]:
    """Check that logits are finite; no check without logits."""
    if logits is None:
        return ()
    finite = bool(np.isfinite(logits).all())
    return (GateCheck(metric=metric, bound="all", value="all" if finite else "not all", passed=finite),)


def judge_distance(accuracy: Accuracy, sample_l2: float, bounds: Bounds, gate: Gate) -> tuple[GateCheck, ...]:
    """Compare an artifact's distance from the reference with the bounds of its precision: is it faithful?

    Args:
        accuracy: the metrics.
        sample_l2: the largest distance of a sample, in root mean squares of the reference's norms.
        bounds: the bounds of the precision in this network.
        gate: the bounds in pipeline.yaml.
    """
    checks = [
        GateCheck(
            metric="finite outputs", bound="all", value="all" if accuracy.finite else "not all", passed=accuracy.finite
        )
    ]
    if bounds.relative_l2 is None:
        checks.append(GateCheck(metric=_OWN_ROUNDING, bound="known and finite", value=bounds.source, passed=False))
    else:
        checks.append(at_most("relative L2", accuracy.relative_l2, bounds.relative_l2, bounds.source))
    if bounds.sample_l2 is not None:
        checks.append(at_most("distance of the worst sample", sample_l2, bounds.sample_l2))
    if bounds.least_l2 is not None:
        checks.append(_at_least("relative L2 that its type must show", accuracy.relative_l2, bounds.least_l2))
    if gate.cosine is not None:
        checks.append(_at_least("cosine", accuracy.cosine, gate.cosine))
    return tuple(checks)


def judge_parts(found: npt.NDArray[np.float64], names: Sequence[str], bounds: Bounds) -> tuple[GateCheck, ...]:
    """Compare each part of a tensor with the bounds of its precision: is it faithful?

    A part without a bound of its own is held to that of the whole. A missing bound of the whole is a check that fails.

    Args:
        found: the relative L2 of each part.
        names: their names.
        bounds: the bounds of the precision in this network.
    """
    checks = []
    if len(found) and bounds.relative_l2 is not None:
        allowed = np.array(bounds.part_l2 or [bounds.relative_l2] * len(found))
        worst = int((found / allowed).argmax())
        checks.append(at_most(f"relative L2 of {names[worst]}", float(found[worst]), float(allowed[worst])))
    return tuple(checks)


def judge_loss_of_parts(found: float, margin: float, where: str = "") -> GateCheck:
    """Compare the largest relative L2, of the whole tensor or a part of it, with the margin: is it good enough?

    Args:
        found: that distance.
        margin: the largest acceptable one.
        where: the runs that it is the largest of, as a phrase after the metric's name.
    """
    return at_most(f"largest relative L2 of a part{where}", found, margin, question=Question.GOOD_ENOUGH)


def judge_loss_of_rows(rows: tuple[RowCheck, ...], margin: float) -> tuple[GateCheck, ...]:
    """Compare the parts' largest relative L2 at any batch size with the margin; no check without parts."""
    found = [row.part_l2 for row in rows if row.part_l2 is not None]
    return (judge_loss_of_parts(max(found), margin, " at every batch size"),) if found else ()


def judge_loss(
    accuracy: Accuracy, loss: Loss, gate: Gate, margin: float, *, require_proof: bool
) -> tuple[GateCheck, ...]:
    """Compare the loss of right answers with the margin: is the artifact good enough?

    Args:
        accuracy: the metrics.
        loss: the answers lost and won, judged at the margin.
        gate: the bounds in pipeline.yaml.
        margin: the largest acceptable drop.
        require_proof: True fails a loss that is not proven.
    """
    unproven = loss.verdict is Verdict.NOT_PROVEN and not require_proof
    checks = [_loss_check(accuracy, loss, margin, passed=loss.verdict is Verdict.PASSES or unproven)]
    enough = Question.GOOD_ENOUGH
    if gate.top1_agreement is not None and accuracy.top1_agreement is not None:
        checks.append(_at_least("top-1 agreement", accuracy.top1_agreement, gate.top1_agreement, enough))
    if accuracy.worst_class is not None and gate.class_drop is not None:
        name = f"top-1 drop of class {accuracy.worst_class.name}"
        checks.append(at_most(name, accuracy.worst_class.drop, gate.class_drop, question=enough))
    return tuple(checks)


def judge_loss_of_part(accuracy: Accuracy, loss: Loss, gate: Gate, margin: float) -> tuple[GateCheck, ...]:
    """Return the same checks for an artifact that is never deployed, on a part of the samples.

    It needs no proof, and fails only what these samples disprove. They are too few for a single class.
    """
    checks = [_loss_check(accuracy, loss, margin, passed=loss.verdict is not Verdict.FAILS)]
    if gate.top1_agreement is not None and accuracy.top1_agreement_high is not None:
        name = "top-1 agreement, upper end of its interval"
        checks.append(_at_least(name, accuracy.top1_agreement_high, gate.top1_agreement, Question.GOOD_ENOUGH))
    return tuple(checks)


def _loss_check(accuracy: Accuracy, loss: Loss, margin: float, *, passed: bool) -> GateCheck:
    value = f"{loss.drop:.2%} of {loss.samples:,}, at most {loss.drop_high:.2%}: {loss.verdict.value}"
    if loss.more:
        value += f", {loss.more:,} more samples would do"
    metric = "labelled top-1 drop" if accuracy.top1 is not None else "other answers, without near-ties"
    return GateCheck(
        metric=metric,
        bound=f"≤ {margin:.2%}",
        value=value,
        passed=passed,
        question=Question.GOOD_ENOUGH,
    )


def _at_least(metric: str, value: float, bound: float, question: Question = Question.FAITHFUL) -> GateCheck:
    return GateCheck(
        metric=metric, bound=f"≥ {bound:.3g}", value=f"{value:.6g}", passed=value >= bound, question=question
    )


def at_most(
    metric: str, value: float, bound: float, source: str = "", question: Question = Question.FAITHFUL
) -> GateCheck:
    """Return the check that a value is not larger than its bound.

    Args:
        metric: the name of the value.
        value: the measured value.
        bound: its largest.
        source: the origin of the bound, as a phrase in brackets.
        question: the question that the check answers.
    """
    text = f"≤ {bound:.3g}{source}"
    return GateCheck(metric=metric, bound=text, value=f"{value:.6g}", passed=value <= bound, question=question)


_OWN_ROUNDING = "rounding of the precision"
"""The check that fails where the emulation gives no bound."""
_BEYOND = "a value beyond its range, when emulated"
_VANISHED = "no value of the outputs is left, when emulated"
_BEYOND_ADVICE = "the network's own values do not fit this precision"
_TYPE_ADVICE = "near enough to the network, but the library computes layers in other types (choose another precision)"
_PROPOSAL_ADVICE = (
    "near enough to the network, but the places that Model Optimizer proposed leave too many layers in floating point "
    "(`quantization.placement: auto` has this project's places)"
)
_UNKNOWN_ADVICE = "no bound is known for this precision (look at the output of the step `rounding`)"
_ADVICE = {
    Question.REFERENCE: "the reference is not worth a comparison (look at the weights, `preprocessing` and the images)",
    Question.FAITHFUL: "not faithful to the network in this precision: a fault of the library, the build or this host",
    Question.GOOD_ENOUGH: "faithful, but this network loses too much in this precision",
}
ORDER = tuple(_ADVICE)
"""The questions in the order in which reasons tell of them."""


def reason_of(checks: tuple[GateCheck, ...], *, proposed: bool = False) -> str:
    """Return the reason for a rejection: the question that failed first, and each check of it; empty if all passed.

    Args:
        checks: the checks.
        proposed: true if proposed places of Q/DQ pairs leave too many layers in floating point.
    """
    failed = [check for check in checks if not check.passed]
    for question, advice in _ADVICE.items():
        found = [check for check in failed if check.question is question]
        if found:
            checked = "; ".join(f"{check.metric} {check.value}, gate {check.bound}" for check in found)
            return f"{_without_bound(found) or _of_other_types(found, proposed=proposed) or advice}: {checked}"
    return ""


def _of_other_types(failed: list[GateCheck], *, proposed: bool) -> str:
    """Return the advice where the types of the layers are all that fails; empty where the numbers fail too."""
    if proposed and all(check.metric.endswith((_EXECUTED, IN_GRAPH)) for check in failed):
        return _PROPOSAL_ADVICE
    return _TYPE_ADVICE if all(check.metric.endswith(_EXECUTED) for check in failed) else ""


def _without_bound(failed: list[GateCheck]) -> str:
    """Return the advice where the network's own rounding gives no bound; empty where it does."""
    for check in failed:
        if check.metric.endswith(_OWN_ROUNDING):  # behind the name of one of several outputs
            return _BEYOND_ADVICE if check.value in {_BEYOND, _VANISHED} else _UNKNOWN_ADVICE
    return ""
