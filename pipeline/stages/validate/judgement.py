"""An artifact's logits → its checks against the reference, by the network's own rounding and the margin. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from model_artifacts.records import Task
from pipeline.stages.validate.gates import Bounds, at_most, bounds_of, judge_distance, judge_loss, judge_loss_of_part
from pipeline.stages.validate.loss import judge_drop
from pipeline.stages.validate.metrics import compare_answers, largest_sample, relative_l2
from pipeline.stages.validate.neighbours import compare_neighbours

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from model_artifacts.records import Accuracy, GateCheck
    from pipeline.config.settings import Gate, Gates
    from pipeline.records import Loss, Rounding

    Logits = npt.NDArray[np.float32]
    Labels = npt.NDArray[np.int64]


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

    @property
    def bounds(self) -> Bounds:
        """The bounds of faithfulness."""
        return bounds_of(self.gate, self.rounding, self.gates.rounding)


class Judgement(NamedTuple):
    """The checks of an artifact's logits, and its loss."""

    checks: tuple[GateCheck, ...]
    loss: Loss


def judge_logits(
    logits: Logits, reference: Logits, labels: Labels | None, accuracy: Accuracy, yardstick: Yardstick
) -> Judgement:
    """Judge an artifact's logits: are they faithful, and good enough?

    Args:
        logits: (samples, classes); of an embedding (samples, length).
        reference: the same of the FP32 network.
        labels: class indices (samples,); None without labels.
        accuracy: the metrics of these logits.
        yardstick: the bounds of the artifact's precision.
    """
    gates, gate, rounding, emulated, is_part, task = yardstick
    bounds = yardstick.bounds
    checks = judge_distance(accuracy, largest_sample(logits, reference), bounds, gate)
    if bounds.emulation_l2 is not None and emulated is not None:
        distance = relative_l2(logits[: len(emulated)], emulated[: len(logits)])
        checks += (at_most("relative L2 to the emulated graph", distance, bounds.emulation_l2),)
    if task is Task.EMBEDDING:
        answers = compare_neighbours(logits, reference)
    else:
        answers = compare_answers(logits, reference, labels, gates.rounding * (rounding.margin_noise or 0.0))
    margin = gates.margin if gate.top1_drop is None else gate.top1_drop
    loss = judge_drop(answers, margin, is_part=is_part)
    if is_part:
        checks += judge_loss_of_part(accuracy, loss, gate, margin)
    else:
        checks += judge_loss(accuracy, loss, gate, margin, require_proof=gates.require_proof)
    return Judgement(checks, loss)
