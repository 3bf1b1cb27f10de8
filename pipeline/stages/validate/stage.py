"""Artifact × validation batches → `AccuracyReport`, judged by the precision's gate."""

from __future__ import annotations

import json
import math
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.errors import RunError, UnsupportedError, one_line
from model_artifacts.host.environment import device_name, now, tools
from model_artifacts.host.progress import Bars
from model_artifacts.records import CPU_TARGET, Backend, Layout, Question, Task
from model_artifacts.sessions.preprocessing import to_feed
from pipeline.config.axes import label_axes
from pipeline.config.settings import Gate
from pipeline.planning.freshness import current
from pipeline.planning.keys import key_of
from pipeline.planning.plan import STRICT_FP32, arithmetic_of
from pipeline.planning.steps import Step
from pipeline.records import AccuracyReport, Outcome
from pipeline.stages.common.console import say_outcome
from pipeline.stages.common.opening import gpu_of, open_module, open_runner, open_serialized
from pipeline.stages.common.outcomes import attempt, unbuilt
from pipeline.stages.common.rows import load_rows, spans_of
from pipeline.stages.common.samples import layouts_of, loader_of
from pipeline.stages.validate.batches import (
    Measured,
    batch_sizes_of,
    check_rows,
    evaluator,
    extreme_images,
    require_profiles,
    run_batches,
    samples_of,
    showing,
)
from pipeline.stages.validate.detections import detector_of
from pipeline.stages.validate.gates import reason_of
from pipeline.stages.validate.outputs import (
    Ran,
    compare,
    executed_of_all,
    farthest,
    judge_run,
    largest_loss,
    worst_of,
)
from pipeline.stages.validate.sizes.judging import judge_boxes, judge_sizes, told_of_sizes
from pipeline.stages.validate.sizes.runs import run_sizes
from pipeline.stages.validate.yardsticks import is_spared_by_proposal, reference_checks, yardstick_for
from pipeline.system.isolation import run_isolated
from pipeline.system.locks import exclusive, shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from model_artifacts.records import GateCheck, Key, LayerShare, Variant
    from model_artifacts.sessions.engine import Session
    from model_artifacts.sessions.feeds.batches import Batch
    from model_artifacts.sessions.onnx import Outputs
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import Artifact
    from pipeline.stages.common.outcomes import Ending
    from pipeline.stages.common.samples import Load
    from pipeline.stages.validate.batches import BatchSizes
    from pipeline.stages.validate.judgement import Yardstick
    from pipeline.stages.validate.outputs import Judged, SizedRun

    Logits = npt.NDArray[np.float32]

    Run = Callable[[Batch], Outputs]


_TOOLS = ("onnxruntime-gpu", "onnx", "torch")


def validate_variant(project: Project, variant: Variant) -> AccuracyReport:
    """Run a variant on the validation set, compare it with the reference, and judge it.

    Raises:
        RecordError: the artifact or the data are missing.
        KilledError: on a worker of a farm, something outside has ended the process that ran it.
        StorageError: the report cannot be written.
    """
    key = key_of(project, Step("validate", variant.id))
    validation = attempt(
        lambda: _of_same_engine(project, variant, key) or _validate(project, variant, key),
        RunError,
        on_worker=project.on_worker,
    )
    report = validation.result or _unjudged(variant, key, validation.ending)
    return project.write(project.paths.accuracy(variant), report)


def _of_same_engine(project: Project, variant: Variant, key: Key) -> AccuracyReport | None:
    """Return the report of the variant that has the same engine: the same file gives the same logits."""
    same = project.artifact(variant).same_as
    other = next((item for item in project.plan.variants if item.id == same), None)
    if other is None:
        return None
    report = current(project, Step("validate", other.id), lambda: project.accuracy(other))
    if report is None or report.outcome is not Outcome.DONE:
        return None
    return report.model_copy(update={"key": key, "built_at": now(), "variant_id": variant.id})


def _unjudged(variant: Variant, key: Key, ending: Ending) -> AccuracyReport:
    return AccuracyReport(
        key=key,
        built_at=now(),
        toolchain=tools(*_TOOLS),
        variant_id=variant.id,
        outcome=ending.outcome,
        reason=ending.reason,
        retryable=ending.retryable,
    )


def _validate(project: Project, variant: Variant, key: Key) -> AccuracyReport:
    artifact = project.artifact(variant)
    if reason := unbuilt(artifact):
        raise UnsupportedError(reason)
    data = project.data()
    reference = load_rows(project.file(data.reference), spans := spans_of(project.source()))
    labels = np.load(project.file(data.labels)) if data.labels else None
    ran = _run(project, artifact)
    samples = samples_of(project, variant)
    gates, task = project.config.gates, project.config.model.task
    detector = detector_of(project) if task is Task.DETECTION else None
    checks = reference_checks(project, reference, labels, detector) if gates.require_reference else ()
    reference, labels = reference[:samples], None if labels is None else labels[:samples]
    runs = [ran, *ran.others]
    compared = [compare(one, reference, spans, labels, data.class_names, task) for one in runs]
    compared = [tuple(item.with_classes(variant.io.top) for item in own) for own in compared]
    strict_l2 = [_strict_l2(yardstick_for(project, STRICT_FP32, span, variant.io)) for span in spans]
    executed = executed_of_all(variant.precision, runs, compared, strict_l2)
    claimed = arithmetic_of(variant, executed)
    is_part = samples < data.validation_samples
    yardsticks = [yardstick_for(project, claimed, span, variant.io)._replace(is_part=is_part) for span in spans]
    judge = partial(
        judge_run,
        labels=labels,
        yardsticks=yardsticks,
        claimed=claimed.precision,
        left_out=project.onnx(variant.graph).left_layers if variant.graph else 0,
        answers=partial(detector.judge, reference=reference, truth=labels, gates=gates, is_part=is_part)
        if detector
        else None,
    )
    judged = [judge(one, own) for one, own in zip(runs, compared, strict=True)]
    checks += tuple(check for run in judged for check in run.checks)
    for span in spans if ran.sized else ():
        own, rounding = yardstick_for(project, claimed, span), project.rounding(claimed)
        checks += judge_sizes(ran.sized, span, labels, own, rounding, label_axes(project.config.data))
    checks += judge_boxes(ran.sized, detector, labels, gates) if detector else ()
    worst = worst_of(judged)
    return AccuracyReport(
        key=key,
        built_at=now(),
        toolchain=tools(*_TOOLS),
        variant_id=variant.id,
        outcome=Outcome.DONE,
        reason=_reason(project, variant, checks, ran.sized, judged),
        evaluator=evaluator(artifact, samples, data.validation_samples),
        accuracy=farthest(worst.compared).accuracy,
        accuracies=tuple(item.accuracy for item in worst.compared) if len(spans) > 1 else (),
        checks=checks,
        proven=all(run.is_proven for run in judged),
        loss=largest_loss(judged),
        executed=executed,
        layers=ran.layers,
        rows=ran.rows,
        device=ran.device,
    )


def _reason(
    project: Project, variant: Variant, checks: tuple[GateCheck, ...], sized: Sequence[SizedRun], judged: list[Judged]
) -> str:
    """Return the reason for a rejection, with the worst sample of the first output that fails; empty if all passed."""
    told, more = told_of_sizes(checks, sized)
    rejected = any(not check.passed for check in told)  # the proposal takes the graph to be read
    reason = reason_of(told, proposed=rejected and is_spared_by_proposal(project, variant)) + more
    if not any(not check.passed and check.question is not Question.REFERENCE for check in checks):
        return reason
    pairs = [pair for run in judged for pair in zip(run.compared, run.verdicts, strict=True)]
    failed = [item for item, verdict in pairs if not verdict.passed]
    item = failed[0] if failed else farthest(worst_of(judged).compared)
    return f"{reason}; {item.span.label('worst sample')}: {_sample(project, item.accuracy.worst_sample)}"


def _strict_l2(strict: Yardstick) -> float:
    """Return the largest distance of strict FP32 in this network, by which TF32 is told from it."""
    return strict._replace(gate=Gate()).bounds.relative_l2 or 0.0


def _sample(project: Project, number: int) -> str:
    """Return the name of a validation sample: its number, and its file if the images come from a folder."""
    names = project.data().names
    if names is None:
        return str(number)
    return f"{number} ({json.loads(project.file(names).read_text())[number]})"


def _run(project: Project, artifact: Artifact) -> Ran:
    """Run an artifact in a process of its own, which may crash."""
    variant = artifact.variant
    backend, on_gpu = variant.backend, variant.target != CPU_TARGET
    run: Callable[[Project, Artifact], Ran] = _run_onnx_or_on_cpu
    if backend in _WITH_A_BUILDER:
        run = _WITH_A_BUILDER[backend]
    elif backend.is_module and on_gpu:
        run = _run_module
    # A processor does not hang as a driver does, and may take hours for 50,000 images.
    limit = project.config.validation.timeout_seconds if on_gpu else math.inf
    hold = exclusive if _times_kernels(backend) and on_gpu else shared
    with hold(gpu_of(project, artifact) if on_gpu else None):
        return run_isolated(
            run,
            project,
            artifact,
            timeout_seconds=min(limit, project.run_seconds),
            rerun=project.command(Step("validate", variant.id)),
        )


def _run_onnx_or_on_cpu(project: Project, artifact: Artifact) -> Ran:
    """Run an ONNX file on any device, or a torch module on the CPU."""
    variant = artifact.variant
    with open_runner(project, artifact) as run:
        layers = _graph_layers(project, artifact)
        if variant.backend is Backend.ONNX_REFERENCE or variant.stands_in:  # slow, for its numerics, never deployed
            samples = samples_of(project, variant)
            shown = showing(project, variant, run)
            images = loader_of(project, project.data().validation, variant.io.input)
            with _with_progress(images, "validating", samples) as load:
                rows = run_batches(shown.run, load, samples, spans=shown.spans)
            sized = run_sizes(shown.run, project, variant, samples)
            return Ran(shown.lift(rows, shown.reference[:samples]), graph_layers=layers, sized=sized)
        return _run_all(run, project, variant, batch_sizes_of(project, variant, None))._replace(graph_layers=layers)


def _times_kernels(backend: Backend) -> bool:
    """Return true if an artifact times kernels when it is opened or first runs, so that it needs the GPU to itself."""
    if backend is not Backend.TORCH_COMPILE:
        return backend in {Backend.INDUCTOR, Backend.ONNXRUNTIME_TENSORRT}
    from pipeline.adapters.torch_tensorrt_builder import (  # noqa: PLC0415 - hosts that run engines have no torch
        times_tactics,
    )

    return times_tactics()


def _graph_layers(project: Project, artifact: Artifact) -> tuple[LayerShare, ...]:
    """Return the precisions of the convolutions and matrix products in an ONNX file; empty without one."""
    if artifact.variant.graph is None or artifact.file is None:
        return ()
    import onnx  # noqa: PLC0415 - hosts that run engines may have none

    from pipeline.adapters.onnx_graph import layer_shares  # noqa: PLC0415 - the same

    path = project.file(artifact.file)
    try:
        return layer_shares(onnx.load(path))
    except Exception as exc:  # protobuf's DecodeError, OSError, and the errors of shape inference
        raise RunError(f"onnx cannot read {path}", got=one_line(exc)) from exc


def _run_all(run: Run, project: Project, variant: Variant, sizes: BatchSizes) -> Ran:
    """Run all samples, then the first of them at every batch size, then extreme images."""
    data = project.data()
    load, samples = loader_of(project, data.validation, variant.io.input), data.validation_samples
    run, spans, reference, lift = showing(project, variant, run)
    measured = [Measured(span, yardstick_for(project, arithmetic_of(variant), span).parts) for span in spans]
    spec = data.preprocessing  # of a model of tensors nobody knows which other values it may get
    edge = None if spec is None else to_feed(extreme_images(spec), spec, variant.io.input)
    known: dict[int, Logits] = {}

    def of_size(size: int) -> Ran:
        least = size if sizes.others else sizes.smallest  # a smaller batch would be another profile's
        with _with_progress(load, "validating", samples) as loading:
            known[size] = run_batches(run, loading, samples, batch=size, smallest=least, spans=spans)
        ran = Ran(lift(known[size], reference), batch=size if sizes.others else None)
        if edge is None:
            return ran
        extremes = run_batches(run, lambda at, to: edge[at:to], len(edge), batch=size, smallest=least, spans=spans)
        return ran._replace(extremes=lift(extremes, np.zeros_like(extremes)))

    first, *others = map(of_size, (sizes.most, *sizes.others))
    rows = [check_rows(run, load, reference, size, known.get(size), measured, lift=lift) for size in sizes.checked]
    sized = run_sizes(run, project, variant, sizes)
    return first._replace(rows=tuple(row for found in rows for row in found), others=tuple(others), sized=sized)


def _run_engine(project: Project, artifact: Artifact) -> Ran:
    """Run an engine on its GPU."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    gpu = gpu_of(project, artifact)
    cuda.use(gpu)
    specialization = project.config.tensorrt.kernel_specialization
    with (
        open_serialized(project, artifact) as engine,
        engine.session(specialization=specialization) as session,
    ):
        require_profiles(engine.batches, artifact.variant)
        outputs = _run_all(
            session, project, artifact.variant, batch_sizes_of(project, artifact.variant, engine.batches)
        )
        others = tuple(_with_layers(other, session) for other in outputs.others)
        device = device_name(gpu)
        return _with_layers(outputs, session)._replace(others=others, device=device)


def _with_layers(ran: Ran, session: Session) -> Ran:
    """Return a run with the shares from the inspector, of its own profile if there are several."""
    if ran.batch is not None:
        session.prepare(ran.batch)
    return ran._replace(layers=session.shares())


def _run_provider(project: Project, artifact: Artifact) -> Ran:
    """Run an ONNX file by ONNX Runtime's TensorRT provider, which builds its engine first."""
    gpu = gpu_of(project, artifact)
    with open_runner(project, artifact) as run:
        outputs = _run_all(
            run, project, artifact.variant, batch_sizes_of(project, artifact.variant, artifact.variant.profile)
        )
    return outputs._replace(graph_layers=_graph_layers(project, artifact), device=device_name(gpu))


_WITH_A_BUILDER = {Backend.TENSORRT: _run_engine, Backend.ONNXRUNTIME_TENSORRT: _run_provider}
"""Functions that run the artifacts of TensorRT."""


def _run_module(project: Project, artifact: Artifact) -> Ran:
    """Run a torch module on its GPU with images in both layouts."""
    from model_artifacts.host import cuda  # noqa: PLC0415 - only where there is a GPU

    gpu = gpu_of(project, artifact)
    cuda.use(gpu)
    sizes = batch_sizes_of(project, artifact.variant, artifact.variant.profile)
    channels_last = None
    with open_module(project, artifact) as session:
        outputs = _run_all(session, project, artifact.variant, sizes)
        if Layout.CHANNELS_LAST in layouts_of(project, artifact.variant):
            run = partial(session, layout=Layout.CHANNELS_LAST)
            samples = project.data().validation_samples
            images, spans = loader_of(project, project.data().validation), spans_of(project.source())
            with _with_progress(images, "validating in channels_last", samples) as load:
                most, least = sizes.most, sizes.smallest
                channels_last = run_batches(run, load, samples, batch=most, smallest=least, spans=spans)
        loaded = session.contents()
    if loaded is not None and loaded.segments == 0:
        left = ", ".join(loaded.torch_operators)
        raise RunError(f"{artifact.variant.id} has no TensorRT engine once it is loaded", got=f"in PyTorch: {left}")
    # A module compiled from its recipe shows no layers: only a build asks for engines that do.
    known = [contents.layers for contents in (loaded, artifact.module) if contents and contents.layers]
    return outputs._replace(
        channels_last=channels_last,
        layers=known[0] if known else (),
        device=device_name(gpu),
    )


@contextmanager
def _with_progress(load: Load, phase: str, samples: int) -> Iterator[Load]:
    """Yield a loader of samples that shows its progress."""
    with Bars() as bars:
        progress = bars.reporting(phase)

        def loading(start: int, stop: int) -> Batch:
            progress(start, samples)
            return load(start, stop)

        yield loading


def run(project: Project, variant: Variant, console: Console) -> int:
    """Validate a variant, and print the verdict of its gate."""
    report = validate_variant(project, variant)
    if report.accuracy is None:
        return say_outcome(console, report.outcome, report.reason, "")
    words = "passes its gate" if report.passed else f"REJECTED: {report.reason}"
    accuracy = report.accuracy
    agreement = accuracy.top1_agreement
    alike = f"cosine {accuracy.cosine:.6f}" if agreement is None else f"agreement {agreement:.2%}"
    if accuracy.scores:
        alike = f"{accuracy.scores[0].metric} {accuracy.scores[0].text}"
    console.say(f"{words} ({alike}, relative L2 {accuracy.relative_l2:.1e})")
    return 0
