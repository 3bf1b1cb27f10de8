"""Artifact × validation batches → `AccuracyReport`, judged by the precision's gate."""

from __future__ import annotations

import math
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.atomic import write_record
from pipeline.environment import driver_version, now, tools, version
from pipeline.errors import CrashedError, RunError, UnsupportedError
from pipeline.gpu_lock import exclusive, shared
from pipeline.isolation import run_isolated
from pipeline.plan import CPU_TARGET, Stage, Step
from pipeline.preprocessing import to_input
from pipeline.records import (
    AHEAD_OF_TIME,
    Accuracy,
    AccuracyReport,
    Artifact,
    Backend,
    GateCheck,
    LayerShare,
    Layout,
    Outcome,
    Precision,
    Variant,
)
from pipeline.runners import gpu_of, open_module, open_runner, open_serialized
from pipeline.staleness import current, key_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from pipeline.config import Gate
    from pipeline.project import Project
    from pipeline.records import Key

    Logits = npt.NDArray[np.float32]

_BATCH = 32
_TOOLS = ("onnxruntime-gpu", "onnx", "torch")
_LARGEST_BATCH = 64
"""A larger one shows nothing more, and takes memory."""
_TYPED_LAYERS = 0.95
_QUANTIZED_LAYERS = 0.8
"""The quantiser leaves the last product in floating point, in fp8 the first convolution; a network may be short."""
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
        report = _of_same_engine(project, variant, key) or _validate(project, variant, key)
    except UnsupportedError as exc:
        report = _unjudged(variant, key, Outcome.SKIPPED, exc.what)
    except (RunError, CrashedError) as exc:
        report = _unjudged(variant, key, Outcome.FAILED, str(exc))
    write_record(project.paths.accuracy(variant), report)
    return report


def _of_same_engine(project: Project, variant: Variant, key: Key) -> AccuracyReport | None:
    """Return the report of the variant whose engine this one shares: the same file gives the same logits."""
    same = project.artifact(variant).same_as
    other = next((item for item in project.plan.variants if item.id == same), None)
    if other is None:
        return None
    report = current(project, Step(Stage.VALIDATE, other.id), lambda: project.accuracy(other))
    if report is None or report.outcome is not Outcome.DONE:
        return None
    return report.model_copy(update={"key": key, "built_at": now(), "variant_id": variant.id})


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
    seen = _run(project, artifact, reference)
    samples = len(seen.logits)
    accuracy = measure(seen.logits, reference[:samples], None if labels is None else labels[:samples])
    gates = project.config.gates
    executed = executed_precision(variant.precision, seen.layers, accuracy.relative_l2, gates.fp32.relative_l2)
    as_tf32 = variant.precision is Precision.FP32 and executed is Precision.TF32
    claimed = Precision.TF32 if as_tf32 else variant.precision
    gate = gates.of(claimed)
    checks = judge(accuracy, gate, require_proof=gates.require_proof)
    checks += judge_layers(claimed, seen.layers)
    if seen.channels_last is not None:
        other = measure(seen.channels_last, reference[:samples], None)
        checks += (_at_most("relative L2 of images in channels_last", other.relative_l2, gate.relative_l2),)
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
        evaluator=_evaluator(artifact, samples, data.validation_samples),
        accuracy=accuracy,
        checks=checks,
        proven=accuracy.top1_agreement_low >= gate.top1_agreement,
        executed=executed,
        layers=seen.layers,
        device=seen.device,
    )


class _Seen(NamedTuple):
    """What a run over the validation samples, or the first of them, gave."""

    logits: Logits
    channels_last: Logits | None = None
    """The logits where the images lay in channels_last, which only torch's modules on a GPU take."""
    layers: tuple[LayerShare, ...] = ()
    device: str = ""


def _run(project: Project, artifact: Artifact, reference: Logits) -> _Seen:
    backend, data = artifact.variant.backend, project.data()
    on_gpu = artifact.variant.target != CPU_TARGET
    if backend is Backend.EAGER and not on_gpu:
        return _Seen(reference)  # the data stage has run this very model
    if backend is Backend.TENSORRT or (backend.is_module and on_gpu):
        gpu = gpu_of(project, artifact)
        hold = exclusive if backend is Backend.INDUCTOR else shared  # it times kernels when it first runs
        with hold(gpu), tempfile.TemporaryDirectory() as folder:
            return run_isolated(
                _run_engine if backend is Backend.TENSORRT else _run_module,
                project,
                artifact,
                timeout_seconds=project.config.validation.timeout_seconds,
                log=Path(folder) / "validate.log",
                rerun=Step(Stage.VALIDATE, artifact.variant.id).command,
            )
    samples = data.validation_samples
    if backend is Backend.ONNX_REFERENCE:
        samples = min(samples, project.config.validation.reference_evaluator_samples)
    with open_runner(project, artifact) as run:
        return _Seen(run_batches(run, _loader(project), samples))


def _run_engine(project: Project, artifact: Artifact) -> _Seen:
    """Run an engine on its GPU, in a process that may die of it."""
    from pipeline import cuda  # noqa: PLC0415 - only where there is a GPU

    gpu = gpu_of(project, artifact)
    cuda.use(gpu)
    with open_serialized(project, artifact) as engine:
        specialization = project.config.tensorrt.kernel_specialization
        with engine.session(specialization=specialization) as session:
            size = max(engine.batches.min, min(engine.batches.max, _LARGEST_BATCH))
            samples = project.data().validation_samples
            logits = run_batches(session, _loader(project), samples, batch=size, smallest=engine.batches.min)
            layers = session.shares()
        return _Seen(logits, layers=layers, device=f"{gpu.name}, driver {driver_version()}")


def _run_module(project: Project, artifact: Artifact) -> _Seen:
    """Run a torch module on its GPU with images in both layouts, in a process that may die of it."""
    from pipeline import cuda  # noqa: PLC0415 - only where there is a GPU

    gpu, profile = gpu_of(project, artifact), artifact.variant.profile
    cuda.use(gpu)
    with open_module(project, artifact) as session:
        # What tunes itself for every size runs one that is timed, too.
        timed = [size for size in project.config.timed_batches if size <= _LARGEST_BATCH]
        size = max(profile.min, min(profile.max, _LARGEST_BATCH)) if profile else max(timed, default=_BATCH)
        samples = project.data().validation_samples
        # What is compiled for each size that it sees gets one size only.
        smallest = profile.min if profile and artifact.variant.backend in AHEAD_OF_TIME else size
        logits = {
            layout: run_batches(
                partial(session, layout=layout), _loader(project), samples, batch=size, smallest=smallest
            )
            for layout in artifact.variant.backend.layouts
        }
    return _Seen(
        logits[Layout.CONTIGUOUS],
        logits.get(Layout.CHANNELS_LAST),
        artifact.module.layers if artifact.module else (),
        f"{gpu.name}, driver {driver_version()}",
    )


def _loader(project: Project) -> Callable[[int, int], Logits]:
    data = project.data()
    pixels = project.pixels(data.validation)
    return lambda start, stop: to_input(pixels[start:stop], data.preprocessing)


def _evaluator(artifact: Artifact, samples: int, total: int) -> str:
    backend = artifact.variant.backend
    if artifact.built_for is not None:
        return f"{artifact.built_for.flavour.value} {artifact.built_for.version}"
    if backend is Backend.EAGER and artifact.variant.target == CPU_TARGET:
        return "the FP32 reference itself"
    if artifact.module is not None:
        return ", ".join(f"{tool.name} {tool.version}" for tool in artifact.module.libraries)
    if backend.is_module:
        return f"torch {version('torch')}"
    if backend is Backend.ONNX_REFERENCE:
        return f"onnx.reference {version('onnx')} on {samples} of {total} samples"
    return f"ONNX Runtime {version('onnxruntime-gpu')}, {'CPU' if artifact.variant.target == CPU_TARGET else 'CUDA'}"


def run_batches(
    run: Callable[[Logits], Logits],
    load: Callable[[int, int], Logits],
    samples: int,
    *,
    batch: int = _BATCH,
    smallest: int = 1,
) -> Logits:
    """Run all samples in batches.

    Args:
        run: float32 (batch, channels, height, width) → float32 (batch, classes).
        load: (start, stop) → those samples.
        samples: how many there are.
        batch: how many at once.
        smallest: how many at least; the last batch is filled up by repeating its samples, and cut again.

    Returns:
        float32 (samples, classes).
    """
    results = []
    for start in range(0, samples, batch):
        images = load(start, min(start + batch, samples))
        filled = np.resize(images, (max(len(images), smallest), *images.shape[1:]))
        results.append(run(filled)[: len(images)])
    return np.concatenate(results)


def executed_precision(
    asked: Precision, layers: tuple[LayerShare, ...], relative_l2: float, strict_l2: float
) -> Precision | None:
    """Return what an engine computed in: the type of most of its convolutions and matrix products.

    TF32 hides among FP32: tensors of both are FP32, and a library that does not name its kernels does not tell. Then
    the numbers do: TF32 keeps 10 bits of a mantissa, so that its error is a hundred times strict FP32's bound.

    Args:
        asked: what was asked for.
        layers: what the engine's inspector tells; nothing where it has no convolutions.
        relative_l2: the distance to the strict FP32 reference.
        strict_l2: the largest that strict FP32 keeps.
    """
    if not layers:
        return None
    found = layers[0].precision
    if asked is Precision.FP32 and any(share.precision is Precision.TF32 for share in layers):
        return Precision.TF32
    return Precision.TF32 if found is Precision.FP32 and relative_l2 > strict_l2 else found


def judge_layers(claimed: Precision, layers: tuple[LayerShare, ...]) -> tuple[GateCheck, ...]:
    """Hold the share of convolutions and matrix products that multiply in the claimed type against its bound."""
    total = sum(share.layers for share in layers)
    if total == 0:
        return ()
    alike = {claimed, Precision.FP32} if claimed is Precision.TF32 else {claimed}
    share = sum(item.layers for item in layers if item.precision in alike) / total
    bound = _QUANTIZED_LAYERS if claimed in {Precision.INT8, Precision.FP8} else _TYPED_LAYERS
    return (
        GateCheck(
            metric="executed precision",
            bound=f"≥ {bound:.0%} {claimed.value}",
            value=f"{share:.1%}",
            passed=share >= bound,
        ),
    )


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
