"""Rows of numbers → those that an artifact keeps within their tolerance, and its MAE. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.records import Question, Score
from pipeline.stages.validate.gates import at_most
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.tasks.case import TaskVerdict, beats_shuffles, judge_answers

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Case, Truth

    Errors = npt.NDArray[np.float64]

_RISE = 0.1
"""The largest rise of a number's MAE, in its tolerances: a choice. A tenth of an acceptable error for all images."""


def judge(case: Case) -> TaskVerdict:
    """Judge numbers: those beyond their tolerance are lost answers.

    An image is lost if one of its numbers lies farther from the reference's than its tolerance. With labels there are
    two more checks. Images whose numbers are all within the tolerance of the labels must not become fewer, as a paired
    test. The mean absolute error of each number must not rise by more than a tenth of its tolerance.
    """
    tolerance = np.asarray(case.tolerance)
    apart = _errors(case.rows, case.reference)
    lost = int((~_within(apart, tolerance)).sum())
    check, loss = judge_answers(case, Answers(len(apart), lost, 0), "images with a number beyond its tolerance")
    checks = [check]
    if case.truth is None:
        within = Score(metric="within tolerance of FP32", value=1 - loss.drop)
        largest = int((apart.max(axis=0, initial=0) / tolerance).argmax())
        error = Score(
            metric=f"largest error of {_name(case, largest)}", value=_number(apart[:, largest].max()), is_share=False
        )
        return TaskVerdict((within, error), (check,), loss)
    got, want = (_errors(rows, case.truth.astype(np.float64)) for rows in (case.rows, case.reference))
    right, before = _within(got, tolerance), _within(want, tolerance)
    answers = Answers(len(right), int((before & ~right).sum()), int((right & ~before).sum()))
    check, loss = judge_answers(case, answers, "drop of images within tolerance of their labels")
    checks.append(check)
    rises = (got.mean(axis=0) - want.mean(axis=0)) / tolerance
    worst = int(np.where(np.isfinite(rises), rises, np.inf).argmax())
    name, rise = _name(case, worst), _number(rises[worst])
    if not case.is_part:
        metric = f"rise of the MAE of {name}, in tolerances"
        checks.append(at_most(metric, rise, _RISE, question=Question.GOOD_ENOUGH))
    scores = (
        Score(metric="within tolerance", value=float(right.mean()), reference=float(before.mean())),
        Score(
            metric=f"MAE of {name}",
            value=_number(got[:, worst].mean()),
            reference=float(want[:, worst].mean()),
            is_share=False,
        ),
    )
    return TaskVerdict(scores, tuple(checks), loss)


def deserving(case: Case) -> tuple[GateCheck, ...]:
    """Check that the reference's numbers are those of their images, if there are labels.

    Args:
        case: the reference's own output, as artifact and as reference.
    """
    if case.truth is None:
        return ()

    def score(truth: Truth, count: int) -> float:
        errors = _errors(case.reference[:count], truth.astype(np.float64))
        return -float((errors.mean(axis=0) / np.asarray(case.tolerance)).mean())

    return beats_shuffles("mean absolute error in tolerances, negated", score, case.truth)


_LARGE = float(np.finfo(np.float32).max)
"""The error of a number that is not finite: JSON has no infinity."""


def _errors(rows: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> Errors:
    """Return the absolute differences of numbers (images, numbers); infinity for those that are not finite."""
    apart = np.abs(rows.astype(np.float64) - others)
    errors: Errors = np.where(np.isfinite(apart), apart, np.inf)
    return errors


def _within(errors: Errors, tolerance: Errors) -> npt.NDArray[np.bool_]:
    return np.asarray((errors <= tolerance).all(axis=1))


def _number(value: float) -> float:
    return float(min(value, _LARGE))


def _name(case: Case, place: int) -> str:
    return case.names[place] if case.names else f"number {place}"
