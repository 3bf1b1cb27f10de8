"""Artifact × validation batches → `AccuracyReport`, judged by the precision's gate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pipeline.atomic import write_record
from pipeline.environment import now, tools, version
from pipeline.errors import RunError, UnsupportedError
from pipeline.plan import Stage, Step
from pipeline.preprocessing import to_input
from pipeline.records import Accuracy, AccuracyReport, Backend, GateCheck, Outcome, Variant
from pipeline.runners import open_runner
from pipeline.staleness import key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from pipeline.config import Gate
    from pipeline.project import Project
    from pipeline.records import Key

    Logits = npt.NDArray[np.float32]

_BATCH = 32
_TOOLS = ("onnxruntime-gpu", "onnx", "torch")
_Z95 = 1.959963984540054
"""The standard normal's 97.5 % quantile."""


def validate_variant(project: Project, variant: Variant) -> AccuracyReport:
    """Run a variant on the validation set, compare with the reference, and judge it.

    Raises:
        RecordError: the artifact or the data are missing.
        StorageError: the report cannot be written.
    """
    key = key_of(project, Step(Stage.VALIDATE, variant.id))
    try:
        report = _validate(project, variant, key)
    except UnsupportedError as exc:
        report = _unjudged(variant, key, Outcome.SKIPPED, exc.what)
    except RunError as exc:
        report = _unjudged(variant, key, Outcome.FAILED, str(exc))
    write_record(project.paths.accuracy(variant), report)
    return report


def _unjudged(variant: Variant, key: Key, outcome: Outcome, reason: str) -> AccuracyReport:
    return AccuracyReport(
        key=key, built_at=now(), toolchain=tools(*_TOOLS), variant_id=variant.id, outcome=outcome, reason=reason
    )


def _validate(project: Project, variant: Variant, key: Key) -> AccuracyReport:
    artifact = project.artifact(variant)
    if artifact.outcome is not Outcome.DONE:
        raise UnsupportedError(f"not built: {artifact.reason.splitlines()[0]}")
    data = project.data()
    reference = np.load(project.file(data.reference))
    labels = np.load(project.file(data.labels)) if data.labels else None
    samples = data.validation_samples
    if variant.backend is Backend.ONNX_REFERENCE:
        samples = min(samples, project.config.validation.reference_evaluator_samples)
    if variant.backend is Backend.EAGER:
        logits = reference  # the data stage has run this very model
    else:
        pixels = project.pixels(data.validation)[:samples]
        with open_runner(project, artifact) as run:
            logits = run_batches(run, lambda start, stop: to_input(pixels[start:stop], data.preprocessing), samples)
    accuracy = measure(logits, reference[:samples], None if labels is None else labels[:samples])
    gate = project.config.gates.of(variant.precision)
    checks = judge(accuracy, gate, require_proof=project.config.gates.require_proof)
    reason = "; ".join(f"{check.metric} {check.value}, gate {check.bound}" for check in checks if not check.passed)
    if reason:
        reason += f"; worst sample: {accuracy.worst_sample}"
    return AccuracyReport(
        key=key,
        built_at=now(),
        toolchain=tools(*_TOOLS),
        variant_id=variant.id,
        outcome=Outcome.DONE,
        reason=reason,
        evaluator=_evaluator(variant.backend, samples, data.validation_samples),
        accuracy=accuracy,
        checks=checks,
        proven=accuracy.top1_agreement_low >= gate.top1_agreement,
    )


def _evaluator(backend: Backend, samples: int, total: int) -> str:
    if backend is Backend.EAGER:
        return "the FP32 reference itself"
    if backend is Backend.ONNX_REFERENCE:
        return f"onnx.reference {version('onnx')} on {samples} of {total} samples"
    return f"ONNX Runtime {version('onnxruntime-gpu')}, CPU"


def run_batches(run: Callable[[Logits], Logits], load: Callable[[int, int], Logits], samples: int) -> Logits:
    """Run all samples in batches.

    Returns:
        float32 (samples, classes).
    """
    starts = range(0, samples, _BATCH)
    return np.concatenate([run(load(start, min(start + _BATCH, samples))) for start in starts])


def measure(logits: Logits, reference: Logits, labels: npt.NDArray[np.int64] | None) -> Accuracy:
    """Compare logits with the reference's, in float64.

    Args:
        logits: (samples, classes).
        reference: (samples, classes).
        labels: class indices (samples,), where there are any.

    Raises:
        RunError: the shapes differ.
    """
    if logits.shape != reference.shape:
        raise RunError("the artifact's logits have another shape", expected=str(reference.shape), got=str(logits.shape))
    finite = bool(np.isfinite(logits).all())
    # Where a logit is NaN or infinite the sample counts as wholly wrong; JSON has no number for it.
    got = np.nan_to_num(logits.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    want = reference.astype(np.float64)
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    cosines = np.divide((got * want).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)
    errors = np.linalg.norm(got - want, axis=1)
    agree = (got.argmax(axis=1) == want.argmax(axis=1)) & np.isfinite(logits).all(axis=1)
    agreement = float(agree.mean())
    low, high = wilson(int(agree.sum()), len(agree))
    top1 = None if labels is None else float((got.argmax(axis=1) == labels).mean())
    reference_top1 = None if labels is None else float((want.argmax(axis=1) == labels).mean())
    return Accuracy(
        samples=len(got),
        finite=finite,
        cosine=float(cosines.mean()),
        cosine_min=float(cosines.min()),
        relative_l2=float(np.linalg.norm(got - want) / max(float(np.linalg.norm(want)), np.finfo(float).tiny)),
        max_abs=float(np.abs(got - want).max()),
        top1_agreement=agreement,
        top1_agreement_low=low,
        top1_agreement_high=high,
        top1=top1,
        top1_drop=None if top1 is None or reference_top1 is None else reference_top1 - top1,
        worst_sample=int(errors.argmax()),
    )


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson score interval at 95 % of a share (E. B. Wilson, JASA 22, 1927).

    Args:
        successes: from 0 to `trials`.
        trials: at least 1.
    """
    share = successes / trials
    spread = _Z95**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def judge(accuracy: Accuracy, gate: Gate, *, require_proof: bool) -> tuple[GateCheck, ...]:
    """Hold every metric against its bound; the drop in labelled top-1 only where there are labels."""
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
    if require_proof:
        checks.append(_at_least("top-1 agreement, proven", accuracy.top1_agreement_low, gate.top1_agreement))
    return tuple(checks)


def _at_least(metric: str, value: float, bound: float) -> GateCheck:
    return GateCheck(metric=metric, bound=f"≥ {bound:g}", value=f"{value:.6g}", passed=value >= bound)


def _at_most(metric: str, value: float, bound: float) -> GateCheck:
    return GateCheck(metric=metric, bound=f"≤ {bound:g}", value=f"{value:.6g}", passed=value <= bound)
