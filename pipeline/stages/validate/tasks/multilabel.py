"""Logits of several labels → the sets of labels, F1 and mAP that an artifact keeps. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.records import Question, Score
from pipeline.stages.validate.gates import at_most
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.tasks.case import TaskVerdict, beats_shuffles, judge_answers, reference_check

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Case, Rows, Truth

    Sets = npt.NDArray[np.bool_]


def judge(case: Case) -> TaskVerdict:
    """Judge sets of labels: by the labels' table if there is one, else by the labels unlike the reference's.

    An image loses the drop of its set's Jaccard index with the true set. Without a table it loses one minus the index
    with the reference's set, of labels that are no near-ties. So many labels that no image has weigh nothing. F1 and
    mAP over all images, as means of the labels that some image has, must not drop by more than the margin either.
    """
    got, want = _sets(case.rows, case), _sets(case.reference, case)
    scores = [Score(metric="label agreement", value=float((got == want).mean()))]
    if case.truth is None or not case.truth.any():
        check, loss = judge_answers(case, _other_labels(case), "other labels of an image, without near-ties")
        return TaskVerdict(tuple(scores), (check,), loss)
    truth = case.truth.astype(bool)
    drops = _jaccard(want, truth) - _jaccard(got, truth)
    answers = Answers(len(drops), float(drops.clip(0).sum()), float((-drops).clip(0).sum()))
    check, loss = judge_answers(case, answers, "drop of the Jaccard index of an image's labels")
    checks = [check]
    for metric, after, before in (
        ("F1", mean_f1(got, truth), mean_f1(want, truth)),
        ("mAP", mean_precision(case.rows, truth), mean_precision(case.reference, truth)),
    ):
        scores.insert(0, Score(metric=metric, value=after, reference=before))
        if not case.is_part:  # too few images for rare labels
            whole = f"{metric} drop over all images"
            checks.append(at_most(whole, before - after, case.margin, question=Question.GOOD_ENOUGH))
    return TaskVerdict(tuple(scores), tuple(checks), loss)


def deserving(case: Case) -> tuple[GateCheck, ...]:
    """Check that the reference's labels differ between images, and are those of their images if there is a table.

    Args:
        case: the reference's own output, as artifact and as reference.
    """
    sets = _sets(case.reference, case)
    checks = []
    if len(sets) > 1:
        differ = bool((sets != sets[0]).any())
        value = "different" if differ else f"the same {int(sets[0].sum())} labels for all {len(sets)} images"
        checks.append(reference_check("labels", "different for different images", value, passed=differ))
    if case.truth is not None and case.truth.any():

        def score(truth: Truth, count: int) -> float:
            return mean_precision(case.reference[:count], truth.astype(bool))

        checks += beats_shuffles("mAP", score, case.truth)
    return tuple(checks)


def mean_f1(sets: Sets, truth: Sets) -> float:
    """Return the mean of the labels' F1, over the labels that some image has.

    Args:
        sets: the labels of each image (images, labels).
        truth: the true ones; at least one image has one.
    """
    there = truth.any(axis=0)
    both = (sets & truth)[:, there].sum(axis=0)
    return float((2 * both / (sets[:, there].sum(axis=0) + truth[:, there].sum(axis=0))).mean())


def mean_precision(logits: Rows, truth: Sets) -> float:
    """Return the mean of the labels' average precision, over the labels that some image has; equal logits tie.

    Args:
        logits: (images, labels); one that is not finite counts as the smallest.
        truth: the true labels; at least one image has one.
    """
    clean = np.where(np.isfinite(logits), logits, -np.inf)
    there = np.flatnonzero(truth.any(axis=0))
    return float(np.mean([_average_precision(clean[:, label], truth[:, label]) for label in there]))


def _average_precision(logits: npt.NDArray[np.floating], truth: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(-logits, kind="stable")
    ends = np.append(np.flatnonzero(logits[order][1:] != logits[order][:-1]), len(order) - 1)  # of each tie
    hits = np.cumsum(truth[order])[ends]
    return float((np.diff(hits, prepend=0) * hits / (ends + 1)).sum() / truth.sum())


def _cut(case: Case) -> float:
    """Return the logit whose sigmoid is the threshold."""
    return math.log(case.threshold / (1 - case.threshold))


def _sets(logits: Rows, case: Case) -> Sets:
    sets: Sets = (logits >= _cut(case)) & np.isfinite(logits).all(axis=1, keepdims=True)
    return sets


def _jaccard(sets: Sets, truth: Sets) -> npt.NDArray[np.float64]:
    """Return the Jaccard index of each image's labels with the true ones; 1 if neither has any."""
    union = (sets | truth).sum(axis=1)
    indices: npt.NDArray[np.float64] = np.where(union > 0, (sets & truth).sum(axis=1) / np.maximum(union, 1), 1.0)
    return indices


def _other_labels(case: Case) -> Answers:
    """Count one minus each image's Jaccard index with the reference; a row that is not finite is lost as a whole."""
    clear = np.abs(case.reference - _cut(case)) > case.tie
    judged = clear.any(axis=1)
    if not judged.any():  # every label is a near-tie: then all of them count
        return _other_labels(case._replace(tie=-1.0))
    got, want = (_sets(rows, case) & clear for rows in (case.rows, case.reference))
    lost = np.where(np.isfinite(case.rows).all(axis=1), 1 - _jaccard(got, want), 1.0)[judged]
    return Answers(len(lost), float(lost.sum()), 0, int((~judged).sum()))
