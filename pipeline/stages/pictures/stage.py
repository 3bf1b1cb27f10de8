"""Artifact × pictures that its GPU decodes → `PicturesReport`: may a deployment decode them there?

Another decoder is another input, and moves the outputs farther than rounding does. So the answers decide, by the
margin of the gate. The distances stand in the record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.errors import RunError, UnsupportedError
from model_artifacts.host.environment import now, tools
from model_artifacts.host.progress import Bars
from model_artifacts.records import GpuPictures, Question, Task
from model_artifacts.sessions.gpu_pictures import TorchPictures, decoder
from pipeline.planning.keys import key_of
from pipeline.planning.plan import arithmetic_of
from pipeline.planning.steps import Step
from pipeline.records import PicturesReport, PixelDistance
from pipeline.stages.common.console import say_outcome
from pipeline.stages.common.opening import gpu_of, open_runner
from pipeline.stages.common.outcomes import attempt
from pipeline.stages.common.rows import load_rows, spans_of
from pipeline.stages.validate.batches import batch_sizes_of, run_batches, showing
from pipeline.stages.validate.detections import detector_of
from pipeline.stages.validate.outputs import Ran, compare, farthest, judge_output
from pipeline.stages.validate.yardsticks import yardstick_for
from pipeline.system.isolation import run_isolated
from pipeline.system.locks import shared

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import Accuracy, GateCheck, Variant
    from model_artifacts.sessions.feeds.batches import Batch
    from pipeline.planning.project import Project
    from pipeline.planning.spec import Console
    from pipeline.records import Artifact

    Logits = npt.NDArray[np.float32]


class Shown(NamedTuple):
    """The outputs of pictures that were decoded on a device, and their pixels' distance from the processor's."""

    logits: Logits
    pixels: PixelDistance


class Judged(NamedTuple):
    """The comparison of these outputs with the reference's."""

    shown: Shown
    accuracy: Accuracy
    checks: tuple[GateCheck, ...]


def judge_pictures(project: Project, variant: Variant) -> PicturesReport:
    """Decode the validation pictures on a variant's GPU, run it on them, and judge the loss of answers.

    Raises:
        RecordError: the artifact, its validation or the data are missing.
        StorageError: the record cannot be written.
    """
    key = key_of(project, Step("pictures", variant.id))
    judging = attempt(lambda: _judge(project, project.artifact(variant)), RunError, on_worker=project.on_worker)
    found, ending = judging.result, judging.ending
    report = PicturesReport(
        key=key,
        built_at=now(),
        toolchain=tools("torch", "torchvision"),
        variant_id=variant.id,
        outcome=ending.outcome,
        reason=reason_of_answers(found.checks) if found else ending.reason,
        retryable=ending.retryable,
        verdict=_verdict(project, variant, found.checks) if found else None,
        pixels=found.shown.pixels if found else None,
        accuracy=found.accuracy if found else None,
        checks=found.checks if found else (),
    )
    return project.write(project.paths.pictures(variant), report)


def _judge(project: Project, artifact: Artifact) -> Judged:
    """Run an artifact in a process of its own, and judge it.

    Raises:
        UnsupportedError: nothing here can be decoded on a GPU, or nothing could be proven by it; of a farm's workers
            nothing is.
        UnreadableError: a picture has gone, or is damaged.
        RunError: the artifact cannot run, or its outputs are not finite.
    """
    variant, data = artifact.variant, project.data()
    if workers := project.plan.workers_of(variant.target):
        raise UnsupportedError(
            f"the GPU of {workers.worker_kind} decodes on no other machine, and this step runs on no farm: run "
            f"`{project.doit} pictures` with `executor: local` on such a GPU"
        )
    accuracy = project.accuracy(variant)
    if not accuracy.passed:
        raise UnsupportedError(f"not deployable: {(accuracy.reason or 'its validation did not run').splitlines()[0]}")
    if data.names is None:
        raise UnsupportedError("the images are no files, so that there is nothing to decode")
    gpu = gpu_of(project, artifact)
    with shared(gpu):
        shown = run_isolated(
            show_pictures,
            project,
            artifact,
            json.loads(project.file(data.names).read_text()),
            f"cuda:{gpu.index}",
            timeout_seconds=project.config.validation.timeout_seconds,
            rerun=project.command(Step("pictures", variant.id)),
        )
    return compare_answers(project, variant, shown)


def show_pictures(project: Project, artifact: Artifact, names: list[str], device: str) -> Shown:
    """Run an artifact on the validation pictures, decoded and resized on a device.

    Args:
        project: the place of the data, whose folder of images must still be there.
        artifact: the record of a finished build.
        names: the pictures' paths in that folder.
        device: torch's name of the device.

    Raises:
        UnsupportedError: torch cannot do this preprocessing.
        UnreadableError: a picture has gone, or is damaged.
        RunError: the artifact cannot run.
    """
    variant, reader = artifact.variant, TorchPictures(project.source().pictures, device)
    folder, stored = Path(project.config.data.images), project.pixels(project.data().validation)
    sums, largest = [0.0], [0]

    def load(start: int, stop: int) -> Batch:
        progress(start, len(names))
        pixels = reader.read([folder / name for name in names[start:stop]]).pixels
        apart = np.abs(pixels.cpu().numpy().astype(np.int16) - stored[start:stop])
        sums.append(float(apart.sum()))
        largest.append(int(apart.max()))
        found: Batch = reader.feed(pixels, variant.io.input).cpu().numpy()
        return found

    sizes = batch_sizes_of(project, variant, variant.profile)
    with open_runner(project, artifact) as run, Bars() as bars:
        shown, progress = showing(project, variant, run), bars.reporting("decoding on the GPU")
        rows = run_batches(shown.run, load, len(names), batch=sizes.most, smallest=sizes.smallest, spans=shown.spans)
    pixels = PixelDistance(mean=sum(sums) / stored.size, largest=max(largest))
    return Shown(shown.lift(rows, shown.reference), pixels)


def compare_answers(project: Project, variant: Variant, shown: Shown) -> Judged:
    """Compare outputs with the reference's, which come from the processor's pixels.

    Raises:
        UnsupportedError: the task has no measure of lost answers.
        RunError: an output is not finite.
    """
    data, task, gates = project.data(), project.config.model.task, project.config.gates
    spans = spans_of(project.source())
    reference = load_rows(project.file(data.reference), spans)
    labels = np.load(project.file(data.labels)) if data.labels else None
    compared = compare(Ran(shown.logits), reference, spans, labels, data.class_names, task)
    arithmetic = arithmetic_of(variant, project.accuracy(variant).executed)
    yardsticks = [yardstick_for(project, arithmetic, item.span, variant.io) for item in compared]
    verdicts = [judge_output(item, labels, own) for item, own in zip(compared, yardsticks, strict=True)]
    checks = tuple(check for verdict in verdicts for check in verdict.all_samples)
    if task is Task.DETECTION:
        checks += detector_of(project).judge(shown.logits, reference, labels, gates, is_part=False).checks
    if not all(item.accuracy.finite for item in compared):
        raise RunError("the outputs of the GPU's pictures are not finite")
    if not any(_decides(check) for check in checks):
        raise UnsupportedError(f"the task {task.value} has no measure of lost answers, by which pictures are judged")
    return Judged(shown, farthest(compared).accuracy, checks)


def _decides(check: GateCheck) -> bool:
    """Return true for a check of the answers: the distance of another input says nothing of rounding."""
    return check.question is Question.GOOD_ENOUGH


def reason_of_answers(checks: tuple[GateCheck, ...]) -> str:
    """Return the reason against the GPU's pictures; empty if there is none."""
    failed = [check for check in checks if not check.passed and _decides(check)]
    return "; ".join(f"{check.metric} {check.value}, gate {check.bound}" for check in failed)


def _verdict(project: Project, variant: Variant, checks: tuple[GateCheck, ...]) -> GpuPictures:
    reason = reason_of_answers(checks)
    gpu = project.plan.gpu(variant.target)
    return GpuPictures(
        passed=not reason,
        reason=reason,
        gpu=gpu.name if gpu else "",
        decoder=decoder(),
        samples=project.data().validation_samples,
    )


def run(project: Project, variant: Variant, console: Console) -> int:
    """Judge a variant's answers to pictures that its GPU decodes, and print the verdict."""
    report = judge_pictures(project, variant)
    if report.pixels is None or report.accuracy is None:
        return say_outcome(console, report.outcome, report.reason, "")
    words = f"REJECTED: {report.reason}" if report.reason else "the GPU's pictures give its answers"
    pixels, apart = report.pixels, report.accuracy.relative_l2
    console.say(f"{words} (pixels {pixels.mean:.2f} of 255 apart, at most {pixels.largest}; relative L2 {apart:.1e})")
    return 0
