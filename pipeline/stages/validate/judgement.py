"""An artifact's logits → its checks against the reference, by the network's own rounding and the margin. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from model_artifacts.records import Task
from pipeline.stages.common.rows import Parts, parts_of
from pipeline.stages.validate.gates import (
    LOST,
    Bounds,
    at_most,
    bounds_of,
    judge_distance,
    judge_loss,
    judge_loss_of_part,
    judge_loss_of_parts,
    judge_parts,
)
from pipeline.stages.validate.loss import judge_drop
from pipeline.stages.validate.metrics import compare_answers, distance, largest_part, largest_sample, part_l2
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.registry import judge_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from model_artifacts.records import Accuracy, GateCheck, Score
    from pipeline.config.settings import Gate, Gates
    from pipeline.records import Loss, Rounding

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[Any]  # class indices, masks, zeros and ones, or numbers, as the task has them
    Truth = npt.NDArray[np.generic]


_DRAWN_ANEW = 1.2
"""The factor on a detector's distance from the emulated graph: a choice. FP16 around int8 draws some of its rounding
anew, and boxes lay up to 1.03 × as far as they lie from FP32 (`benchmarks/task_gates.py`). Independent errors lie √2 ×
as far."""


class Yardstick(NamedTuple):
    """Everything that an artifact of one precision is held against, beside the reference."""

    gates: Gates
    gate: Gate
    """The bounds of the precision in pipeline.yaml."""
    rounding: Rounding
    """The distance that its own rounding makes in this network."""
    emulated: Logits | None = None
    """The emulated logits of the first samples, for quantised graphs."""
    is_part: bool = False
    """True for an artifact that is never deployed, and saw a part of the validation set."""
    task: Task = Task.CLASSIFICATION
    """The task of the model, which decides what a lost answer is."""
    sample_shape: tuple[int, ...] | None = None
    """The shape of one sample of a task with parts, such as `tensors`."""
    names: tuple[str, ...] | None = None
    """Names of the classes, or of a regression's numbers; None if unknown."""
    threshold: float = 0.5
    """The least sigmoid of a class that is an answer, of several labels."""
    tolerance: tuple[float, ...] = ()
    """The largest acceptable error of a regression's numbers; of a tensor's values, if it has one."""
    metric: Callable[[Logits, npt.NDArray[Any]], object] | None = None
    """The user's measure of tensors; None without one."""
    metric_name: str = ""
    """The name of that function."""
    least: float = 0.0
    """The least mean score of the reference by that function."""
    share: float = 1.0
    """The share of the logits' norm that the artifact shows: 1 unless it gives probabilities of some classes alone."""

    @property
    def by_distance(self) -> bool:
        """True if the margin bounds the parts' distances: of tensors without a metric of the user's own."""
        return self.task is Task.TENSORS and self.metric is None

    @property
    def slack(self) -> float:
        """The error of a tensor's value that the user takes for none, in its own unit; 0 without."""
        return self.tolerance[0] if self.task.takes_several and self.tolerance else 0.0

    @property
    def bounds(self) -> Bounds:
        """The bounds of faithfulness."""
        return bounds_of(self.gate, self.rounding, self.gates.rounding, self.share)

    @property
    def parts(self) -> Parts | None:
        """The parts of the task `tensors`, each weighed by its bound of faithfulness; None for logits and vectors.

        A part that is zero in the emulated samples has a bound beyond all others, and is held to `LOST`. The margin
        takes no part: it has checks of its own, which answer the other question.
        """
        if self.sample_shape is None:
            return None
        bounds, count = self.bounds, len(parts_of(self.sample_shape))
        usual = np.array(self.rounding.part_sizes) if len(self.rounding.part_sizes) == count else None
        if bounds.relative_l2 is None:
            return Parts(self.sample_shape, np.ones(count), self.slack, usual)
        own = bounds.part_l2 if len(bounds.part_l2) == count else (bounds.relative_l2,) * count
        return Parts(self.sample_shape, bounds.relative_l2 / np.minimum(own, LOST), self.slack, usual)


class Judgement(NamedTuple):
    """The checks of an artifact's logits, and its loss."""

    checks: tuple[GateCheck, ...]
    loss: Loss | None
    """None for tensors, which give no answers to count, and for one output of a detector."""
    scores: tuple[Score, ...] = ()
    """The measures of the task, the one that people judge by first; none of a task without any."""


def case_of(logits: Logits, reference: Logits, truth: Truth | None, yardstick: Yardstick) -> Case:
    """Return an output as its task judges it.

    Args:
        logits: (samples, values).
        reference: the same of the FP32 network.
        truth: the labels of the samples; None without.
        yardstick: the bounds and settings.
    """
    gates, shape = yardstick.gates, yardstick.sample_shape
    return Case(
        rows=logits,
        reference=reference,
        shape=shape or reference.shape[1:],
        truth=truth,
        names=yardstick.names,
        tie=gates.rounding * (yardstick.rounding.margin_noise or 0.0),
        margin=gates.margin,
        is_part=yardstick.is_part,
        require_proof=gates.require_proof,
        threshold=yardstick.threshold,
        tolerance=yardstick.tolerance,
        metric=yardstick.metric,
        metric_name=yardstick.metric_name,
        least=yardstick.least,
    )


def judge_logits(
    logits: Logits, reference: Logits, labels: Labels | None, accuracy: Accuracy, yardstick: Yardstick
) -> Judgement:
    """Judge an artifact's logits: are they faithful, and good enough?

    Args:
        logits: (samples, classes); of an embedding (samples, length).
        reference: the same of the FP32 network.
        labels: class indices (samples,), or the truth of another task; None without labels.
        accuracy: the metrics of these logits.
        yardstick: the bounds of the artifact's precision.
    """
    gates, gate, rounding, emulated, is_part, task, shape, *_ = yardstick
    bounds = yardstick.bounds
    checks = judge_distance(accuracy, largest_sample(logits, reference), bounds, gate)
    if bounds.emulation_l2 is not None and emulated is not None:
        got, want = logits[: len(emulated)], emulated[: len(logits)]
        most = bounds.emulation_l2 * (_DRAWN_ANEW if task is Task.DETECTION else 1)
        checks += (at_most("relative L2 to the emulated graph", distance(got, want, None), most),)
        if yardstick.parts is not None and bounds.relative_l2 is not None:
            # The worst of many parts lies farther off than the whole: of several labels up to 1.43 × its quantile.
            worst = distance(got, want, yardstick.parts)
            checks += (at_most("relative L2 of a part to the emulated graph", worst, bounds.relative_l2),)
    if yardstick.parts is not None:
        parts = part_l2(logits, reference, yardstick.parts.shape, yardstick.slack, yardstick.parts.sizes)
        checks += judge_parts(parts, parts_of(yardstick.parts.shape), bounds)
    if task is Task.DETECTION:  # all outputs together are good enough, or not
        return Judgement(checks, None)
    case = case_of(logits, reference, labels, yardstick)
    if judge := judge_of(case, task):
        verdict = judge(case)
        return Judgement((*checks, *verdict.checks), verdict.loss, verdict.scores)
    if shape is not None:
        worst = largest_part(logits, reference, shape, yardstick.slack)
        where = f" with an error beyond {yardstick.slack:g}" if yardstick.slack else ""
        return Judgement((*checks, judge_loss_of_parts(worst, gates.margin, where)), None)
    answers = compare_answers(logits, reference, labels, gates.rounding * (rounding.margin_noise or 0.0))
    margin = gates.margin if gate.top1_drop is None else gate.top1_drop
    loss = judge_drop(answers, margin, is_part=is_part)
    if is_part:
        checks += judge_loss_of_part(accuracy, loss, gate, margin)
    else:
        checks += judge_loss(accuracy, loss, gate, margin, require_proof=gates.require_proof)
    return Judgement(checks, loss)
