"""The results of running an artifact, and the checks of each of its outputs apart. Pure.

No norm holds two outputs: boxes in pixels would hide scores from 0 to 1. So each output has its own bounds, and each
must pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from model_artifacts.records import Precision, Task
from pipeline.records import Verdict
from pipeline.stages.validate.gates import (
    IN_GRAPH,
    at_most,
    executed_precision,
    judge_finite,
    judge_layers,
    judge_loss_of_parts,
    judge_loss_of_rows,
    judge_rows,
)
from pipeline.stages.validate.judgement import judge_logits
from pipeline.stages.validate.metrics import distance, largest_part, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    import numpy.typing as npt

    from model_artifacts.records import Accuracy, GateCheck, LayerShare, RowCheck, Score
    from pipeline.records import Loss, SizedSamples
    from pipeline.stages.common.rows import Span
    from pipeline.stages.validate.judgement import Yardstick
    from pipeline.stages.validate.tasks.case import TaskVerdict

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[Any]  # class indices, masks, zeros and ones, or numbers, as the task has them


_TOP5 = 5


class SizedRun(NamedTuple):
    """The rows of images of another size than the network's own."""

    samples: SizedSamples
    """The images."""
    batch: int
    """The batch size that they were run in."""
    rows: Logits
    """(samples, values of all outputs)."""
    reference: Logits
    """The same of the FP32 network."""
    spans: tuple[Span, ...]
    """The columns of each output, which may follow the size of the images."""

    def span_of(self, name: str) -> Span:
        """Return the columns of an output at this size."""
        return next(span for span in self.spans if span.name == name)


class Ran(NamedTuple):
    """The results of running an artifact. Arrays have a row for each sample, with the values of all outputs."""

    logits: Logits
    """The logits of all samples, or of the first ones."""
    rows: tuple[RowCheck, ...] = ()
    extremes: Logits | None = None
    """The logits of images that no validation set has: see `extreme_images`."""
    channels_last: Logits | None = None
    """The logits for images in channels_last, which only torch modules on a GPU take."""
    layers: tuple[LayerShare, ...] = ()
    """The shares from an engine's inspector."""
    graph_layers: tuple[LayerShare, ...] = ()
    """The shares from an ONNX file, for a runtime without an inspector."""
    device: str = ""
    batch: int | None = None
    """The batch size of the run, for an engine with several optimization profiles."""
    others: tuple[Ran, ...] = ()
    """The runs of all samples by its other profiles, which have kernels of their own."""
    sized: tuple[SizedRun, ...] = ()
    """The rows of images of other sizes, of artifacts with dynamic axes beside the batch."""

    def of(self, span: Span) -> Ran:
        """Return the results of one output alone."""
        own = span.columns
        return self._replace(
            logits=self.logits[:, own],
            rows=tuple(row for row in self.rows if row.output == (span.name or None)),
            extremes=None if self.extremes is None else self.extremes[:, own],
            channels_last=None if self.channels_last is None else self.channels_last[:, own],
            others=(),
        )


class Compared(NamedTuple):
    """An output of an artifact beside the reference's."""

    span: Span
    ran: Ran
    """The results of this output alone."""
    reference: Logits
    """The reference's rows of this output, of the samples that were run."""
    accuracy: Accuracy

    def scored(self, scores: tuple[Score, ...]) -> Compared:
        """Return the same with the measures of the task."""
        return self._replace(accuracy=self.accuracy.model_copy(update={"scores": scores}))

    def with_classes(self, top: int | None) -> Compared:
        """Return the same without the top-5 if an artifact shows fewer classes; None shows all."""
        if top is None or top >= _TOP5:
            return self
        return self._replace(accuracy=self.accuracy.model_copy(update={"top5": None, "top5_drop": None}))


def compare(  # noqa: PLR0913 - two sides, their outputs, and what their classes are
    ran: Ran, reference: Logits, spans: Sequence[Span], labels: Labels | None, names: Sequence[str] | None, task: Task
) -> tuple[Compared, ...]:
    """Compare each output with the reference's, apart.

    Args:
        ran: the results of all outputs.
        reference: the reference's rows, of the samples that were run.
        spans: the columns of each output.
        labels: class indices (samples,), or the truth of another task; None without labels.
        names: the names of the classes; None if unknown.
        task: the task of the model.
    """
    found = []
    for span in spans:
        own, want = ran.of(span), reference[:, span.columns]
        classified = labels if task is Task.CLASSIFICATION else None
        accuracy = measure(own.logits, want, classified, names, task)
        found.append(Compared(span, own, want, accuracy.model_copy(update={"output": span.name or None})))
    return tuple(found)


def farthest(compared: Sequence[Compared]) -> Compared:
    """Return the output that is farthest from the reference, or not finite."""
    return max(compared, key=_distance)


def _distance(item: Compared) -> tuple[bool, float]:
    return not item.accuracy.finite, item.accuracy.relative_l2


def executed_of_all(
    asked: Precision, runs: Sequence[Ran], compared: Sequence[Sequence[Compared]], strict_l2: Sequence[float]
) -> Precision | None:
    """Return the precision that an artifact computed in: TF32 if one of its profiles shows it.

    Args:
        asked: the requested precision.
        runs: the runs of all samples, one of each profile.
        compared: the outputs of each.
        strict_l2: the largest distance of strict FP32 of each output.
    """
    found = [executed_of(asked, ran.layers, own, strict_l2) for ran, own in zip(runs, compared, strict=True)]
    return Precision.TF32 if Precision.TF32 in found else found[0]


def executed_of(
    asked: Precision, layers: tuple[LayerShare, ...], compared: Sequence[Compared], strict_l2: Sequence[float]
) -> Precision | None:
    """Return the precision that an artifact computed in: TF32 if one of its outputs shows it.

    Args:
        asked: the requested precision.
        layers: the shares from an engine's inspector.
        compared: the outputs.
        strict_l2: the largest distance of strict FP32 of each.
    """
    found = [
        executed_precision(asked, layers, item.accuracy.relative_l2, strict)
        for item, strict in zip(compared, strict_l2, strict=True)
    ]
    return Precision.TF32 if Precision.TF32 in found else found[0]


class Verdicts(NamedTuple):
    """The checks of one output."""

    all_samples: tuple[GateCheck, ...]
    """Those of the run of all samples."""
    other_runs: tuple[GateCheck, ...]
    """Those of other batches, extreme images and other layouts."""
    loss: Loss | None
    scores: tuple[Score, ...] = ()
    """The measures of the task."""

    @property
    def passed(self) -> bool:
        """True if the output passes every check."""
        return all(check.passed for check in (*self.all_samples, *self.other_runs))


def judge_output(item: Compared, labels: Labels | None, yardstick: Yardstick) -> Verdicts:
    """Judge an output by its own bounds.

    Args:
        item: the output.
        labels: class indices (samples,), or the truth of another task; None without labels.
        yardstick: the bounds of this output in the artifact's precision.
    """
    judged = judge_logits(item.ran.logits, item.reference, labels, item.accuracy, yardstick)
    others = _judge_other_runs(item.ran, item.reference, yardstick)
    return Verdicts(labelled(judged.checks, item.span), labelled(others, item.span), judged.loss, judged.scores)


class Judged(NamedTuple):
    """A run of all samples with its checks."""

    compared: tuple[Compared, ...]
    verdicts: tuple[Verdicts, ...]
    checks: tuple[GateCheck, ...]
    losses: tuple[Loss | None, ...]

    @property
    def loss(self) -> Loss | None:
        """The loss of the answers; None if the task counts none, or if each of several outputs has its own."""
        return self.losses[0] if len(self.losses) == 1 else None

    @property
    def is_proven(self) -> bool:
        """True if the samples prove that the loss lies within the margin."""
        return self.loss is not None and self.loss.verdict is Verdict.PASSES


def judge_run(  # noqa: PLR0913 - a run, and what it is judged by
    ran: Ran,
    compared: Sequence[Compared],
    labels: Labels | None,
    yardsticks: Sequence[Yardstick],
    *,
    claimed: Precision,
    left_out: int = 0,
    answers: Callable[[Logits], TaskVerdict] | None = None,
) -> Judged:
    """Judge a run of all samples: each output by its own bounds, the answers of them all, and the layers.

    Args:
        ran: the run.
        compared: its outputs beside the reference's.
        labels: class indices (samples,), or the truth of another task; None without labels.
        yardsticks: the bounds of each output.
        claimed: the precision that most layers must multiply in.
        left_out: the number of layers that the configuration leaves unquantised.
        answers: the judgement of a detector's outputs together; None for other tasks.

    Returns:
        the verdict. Of an engine with several profiles, the names of its checks tell the batch size.
    """
    verdicts = [judge_output(item, labels, yardstick) for item, yardstick in zip(compared, yardsticks, strict=True)]
    scores, losses = [verdict.scores for verdict in verdicts], [verdict.loss for verdict in verdicts]
    checks = [check for verdict in verdicts for check in verdict.all_samples]
    if answers is not None:
        judged = answers(ran.logits)
        scores, losses = [judged.scores] * len(verdicts), [judged.loss]
        checks += judged.checks
    outputs = len(verdicts)
    checks += judge_layers(claimed, ran.layers, left_out=left_out, outputs=outputs)
    checks += judge_layers(claimed, ran.graph_layers, IN_GRAPH, left_out, outputs)
    checks += [check for verdict in verdicts for check in verdict.other_runs]
    if ran.batch is not None:
        checks = [check.model_copy(update={"metric": f"batch {ran.batch}: {check.metric}"}) for check in checks]
    scored = tuple(item.scored(own) for item, own in zip(compared, scores, strict=True))
    return Judged(scored, tuple(verdicts), tuple(checks), tuple(losses))


def worst_of(runs: Sequence[Judged]) -> Judged:
    """Return the run that is farthest from the reference, or not finite."""
    return max(runs, key=lambda run: _distance(farthest(run.compared)))


def largest_loss(runs: Sequence[Judged]) -> Loss | None:
    """Return the largest loss of all runs, which is not always that of the farthest one; None if none has a loss."""
    losses = [run.loss for run in runs if run.loss is not None]
    return max(losses, key=lambda loss: (loss.drop, loss.drop_high), default=None)


def _judge_other_runs(ran: Ran, reference: Logits, yardstick: Yardstick) -> tuple[GateCheck, ...]:
    """Judge the runs of an output beside the one of all samples: other batches, extreme images, other layouts.

    Args:
        ran: the results of this output.
        reference: the reference's rows of this output.
        yardstick: its bounds.
    """
    bounds, margin = yardstick.bounds, yardstick.gates.margin
    checks = judge_rows(ran.rows, bounds)
    if yardstick.by_distance:
        checks += judge_loss_of_rows(ran.rows, margin)
    checks += judge_finite("finite outputs of extreme images", ran.extremes)
    if ran.channels_last is not None and bounds.relative_l2 is not None:
        apart = distance(ran.channels_last, reference, yardstick.parts)
        checks += (at_most("relative L2 of images in channels_last", apart, bounds.relative_l2),)
        if yardstick.by_distance and yardstick.sample_shape is not None:
            worst = largest_part(ran.channels_last, reference, yardstick.sample_shape, yardstick.slack)
            checks += (judge_loss_of_parts(worst, margin, " in channels_last"),)
    return checks


def labelled(checks: Iterable[GateCheck], span: Span) -> tuple[GateCheck, ...]:
    """Return checks whose metrics name their output, of a model with several."""
    return tuple(check.model_copy(update={"metric": span.label(check.metric)}) for check in checks)
