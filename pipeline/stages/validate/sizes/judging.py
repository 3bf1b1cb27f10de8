"""Rows of images of other sizes → checks, by the rounding that the precision makes at each size. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.records import Question, Task
from pipeline.config.axes import PICTURE_AXES, shown_sizes
from pipeline.stages.common.rows import nearest
from pipeline.stages.validate.gates import ORDER
from pipeline.stages.validate.judgement import judge_logits
from pipeline.stages.validate.metrics import measure
from pipeline.stages.validate.outputs import labelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from model_artifacts.records import GateCheck
    from pipeline.config.settings import Gates
    from pipeline.records import Rounding
    from pipeline.stages.common.rows import Span
    from pipeline.stages.validate.detections import Detector
    from pipeline.stages.validate.judgement import Yardstick
    from pipeline.stages.validate.outputs import SizedRun

_SHOWN = "relative L2"
"""The check that stands for a size that passes all of them, beside those of answers that follow the image."""


def judge_sizes(  # noqa: PLR0913 - the runs, their truth, and two measures
    runs: Sequence[SizedRun],
    span: Span,
    labels: npt.NDArray[Any] | None,
    yardstick: Yardstick,
    rounding: Rounding,
    axes: Sequence[str | None] = (),
) -> tuple[GateCheck, ...]:
    """Judge an output at each other size as at the network's own: is it faithful, and do these images disprove it?

    Args:
        runs: the rows of all outputs at each size.
        span: the output.
        labels: the truth of the first validation images; None without labels.
        yardstick: the bounds of this output at the network's own size.
        rounding: the rounding of all outputs, at every size.
        axes: the names of the labels' axes behind the sample, if they follow the inputs'.

    Returns:
        the relative L2 at each size, the check of answers that follow the image, and every other check that fails.
    """
    checks: list[GateCheck] = []
    follows = any(run.samples.shapes for run in runs)
    for run in runs:
        here = run.span_of(span.name)
        own = yardstick._replace(
            rounding=rounding.at(run.samples.axes).of(span.name), emulated=None, is_part=True, sample_shape=here.shape
        )
        got, want = run.rows[:, here.columns], run.reference[:, here.columns]
        truth = None if labels is None else _truth_at(_cut(labels[: len(run.rows)], axes, run), here, own.task)
        accuracy = measure(got, want, truth if own.task is Task.CLASSIFICATION else None, own.names, own.task)
        where = _where(run)
        judged = judge_logits(got, want, truth, accuracy, own)
        checks += [
            check.model_copy(update={"metric": check.metric + where})
            for check in judged.checks
            if check.metric == _SHOWN or not check.passed or (follows and check.question is Question.GOOD_ENOUGH)
        ]
    return labelled(checks, span)


def judge_boxes(
    runs: Sequence[SizedRun], detector: Detector, labels: npt.NDArray[Any] | None, gates: Gates
) -> tuple[GateCheck, ...]:
    """Judge the detections at each other size: do these images disprove them?

    Args:
        runs: the rows of all outputs at each size.
        detector: the step to detections at the network's own size.
        labels: the true boxes of the first validation images there; None without labels.
        gates: the margin.

    Returns:
        the checks of the detections at each size.
    """
    checks: list[GateCheck] = []
    for run in runs:
        height, width = (
            dict(run.samples.sizes).get(axis, own) for axis, own in zip(PICTURE_AXES, detector.size, strict=True)
        )
        truth = None if labels is None else labels[: len(run.rows)].astype(np.float64)
        if truth is not None:
            truth[..., :4] *= np.array([width / detector.size[1], height / detector.size[0]] * 2)
        judged = detector.at(run.spans, (height, width)).judge(run.rows, run.reference, truth, gates, is_part=True)
        where = _where(run)
        checks += [check.model_copy(update={"metric": check.metric + where}) for check in judged.checks]
    return tuple(checks)


def told_of_sizes(checks: Sequence[GateCheck], runs: Sequence[SizedRun]) -> tuple[tuple[GateCheck, ...], str]:
    """Return the failed checks to tell where several runs at other sizes fail: the worst's alone, the others counted.

    The worst is farthest from FP32 by its relative L2; where none tells that, it is the first.

    Args:
        checks: all checks.
        runs: the runs at other sizes.

    Returns:
        the failed checks of the question that failed first, and the number of runs left out as a phrase, or nothing.
    """
    failed = [check for check in checks if not check.passed]
    first = next((question for question in ORDER if any(check.question is question for check in failed)), None)
    failed = [check for check in failed if check.question is first]
    places = dict.fromkeys(_where(run) for run in runs)
    of_place = {place: [check for check in failed if check.metric.endswith(place)] for place in places}
    failing = [place for place, found in of_place.items() if found]
    if len(failing) <= 1:
        return tuple(failed), ""
    worst = max(failing, key=lambda place: max(map(_distance, of_place[place])))
    left = {id(check) for place in failing if place != worst for check in of_place[place]}
    told = "worst" if any(_SHOWN in check.metric for check in of_place[worst]) else "first"
    more = f"; so do {len(failing) - 1} more of the {len(places)} runs at other sizes, of which this is the {told}"
    return tuple(check for check in failed if id(check) not in left), more


def _where(run: SizedRun) -> str:
    """Return the end of the names of a run's checks."""
    return f" at {shown_sizes(run.samples.sizes)} in batches of {run.batch}"


def _distance(check: GateCheck) -> float:
    """Return the distance of a check of it; below all of them for another check, above for one that is no number."""
    if _SHOWN not in check.metric:
        return -1.0
    try:
        value = float(check.value)
    except ValueError:
        return math.inf
    return math.inf if math.isnan(value) else value


def _cut(labels: npt.NDArray[Any], axes: Sequence[str | None], run: SizedRun) -> npt.NDArray[Any]:
    """Return the beginnings of labels along the axes that they share with the inputs, as the samples' are taken."""
    sizes = dict(run.samples.sizes)
    parts = (slice(None), *(slice(sizes.get(str(name))) for name in axes))
    return labels[parts]


def _truth_at(labels: npt.NDArray[Any], span: Span, task: Task) -> npt.NDArray[Any]:
    """Return the truth of images in another size: masks take the nearest pixel, and all else stays as it is."""
    if task is not Task.SEGMENTATION or span.shape is None:
        return labels
    rows, columns = (nearest(*pair) for pair in zip(labels.shape[1:], span.shape[1:], strict=True))
    return labels[:, rows][:, :, columns]
