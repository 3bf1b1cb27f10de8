"""Outputs of any meaning → the user's own measure of each image. Pure, but for that function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from model_artifacts.errors import RunError, one_line
from model_artifacts.records import Score
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.tasks.case import TaskVerdict, judge_answers, reference_check

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Case, Rows


def judge(case: Case) -> TaskVerdict:
    """Judge outputs by the drop of each image's score: the user's function says what is good enough.

    Without labels the truth is the reference's own output. An image whose output is not finite scores 0.
    """
    after, before = scores_of(case, case.rows), scores_of(case, case.reference)
    drops = before - after
    answers = Answers(len(drops), float(drops.clip(0).sum()), float((-drops).clip(0).sum()))
    check, loss = judge_answers(case, answers, f"drop of {case.metric_name}")
    score = Score(metric=case.metric_name, value=float(after.mean()), reference=float(before.mean()))
    return TaskVerdict((score,), (check,), loss)


def deserving(case: Case) -> tuple[GateCheck, ...]:
    """Check that the reference scores at least what the configuration asks for.

    Args:
        case: the reference's own output, as artifact and as reference.
    """
    mean = float(scores_of(case, case.reference).mean())
    bound = f"≥ {case.least:g}" if case.least else "> 0"
    passed = mean >= case.least and mean > 0
    return (reference_check(case.metric_name, bound, f"{mean:.4g}", passed=passed),)


def scores_of(case: Case, rows: Rows) -> npt.NDArray[np.float64]:
    """Return the user's score of each image.

    Args:
        case: the truth, or else the reference, and the function.
        rows: outputs (images, values), flattened; the function gets them in their own shape.

    Raises:
        RunError: the function fails, or returns something else than a number from 0 to 1 for each image.
    """
    if case.metric is None:
        raise RunError("a metric without a function cannot judge")
    reference = case.reference.reshape(-1, *case.shape)
    truth = reference if case.truth is None else case.truth
    given, labels = rows.reshape(-1, *case.shape).copy(), truth.copy()  # its own, whatever it does with them
    finite = np.isfinite(rows).all(axis=1)
    given[~finite] = 0
    try:
        found: Any = case.metric(given, labels)
    except Exception as exc:  # the user's code raises any type
        raise RunError(f"the metric {case.metric_name} fails", got=one_line(exc)) from exc
    array = found if isinstance(found, np.ndarray) else np.empty(0, dtype=object)
    right = array.shape == (len(rows),) and array.dtype.kind in "fiub"
    scores = array.astype(np.float64) if right else np.full(len(rows), np.nan)
    if not ((scores >= 0) & (scores <= 1)).all():
        kind = f"{array.dtype} {array.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        span = f", from {scores.min():g} to {scores.max():g}" if right and len(scores) else ""
        raise RunError(
            f"the metric {case.metric_name} returns no score of each image",
            expected=f"an array of numpy with {len(rows)} numbers from 0 to 1, of which more is better",
            got=f"{kind}{span}",
        )
    return np.where(finite, scores, 0.0)
