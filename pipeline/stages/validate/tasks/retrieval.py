"""Vectors of embeddings → the images whose nearest neighbour is of their class; without classes, those that kept it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_artifacts.records import Score
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.neighbours import GALLERY, compare_neighbours, nearest
from pipeline.stages.validate.tasks.case import TaskVerdict, beats_shuffles, judge_answers

if TYPE_CHECKING:
    import numpy.typing as npt

    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Case, Rows, Truth


def judge(case: Case) -> TaskVerdict:
    """Judge vectors: by recall@1 if there are classes, else by their own neighbours in FP32.

    An image is a hit if the nearest other one, by the cosine, is of its class. The artifact's vectors must find as many
    in a gallery of its own, and in one that FP32 has indexed. Images that are alone in their class are not judged.
    """
    if case.truth is None or not _judged(case.truth).any():
        answers = compare_neighbours(case.rows, case.reference)
        check, loss = judge_answers(case, answers, "vectors that moved half way to their nearest neighbour")
        return TaskVerdict((), (check,), loss)
    judged = _judged(case.truth)
    before = _hits(nearest(case.reference, case.reference), case.truth)[judged]
    finite = np.isfinite(case.rows).all(axis=1)
    verdicts, scores = [], []
    for metric, gallery in (("recall@1", case.rows), ("recall@1 in FP32's gallery", case.reference)):
        right = (_hits(nearest(case.rows, gallery), case.truth) & finite)[judged]
        answers = Answers(len(right), int((before & ~right).sum()), int((right & ~before).sum()))
        verdicts.append(judge_answers(case, answers, f"drop of {metric}"))
        scores.append(Score(metric=metric, value=float(right.mean()), reference=float(before.mean())))
    _, loss = max(verdicts, key=lambda verdict: verdict[1].drop)
    return TaskVerdict(tuple(scores), tuple(check for check, _ in verdicts), loss)


def deserving(case: Case) -> tuple[GateCheck, ...]:
    """Check that the reference's nearest neighbours are of the images' classes, if these are known.

    Args:
        case: the reference's own output, as artifact and as reference.
    """
    if case.truth is None or not _judged(case.truth).any():
        return ()

    def score(truth: Truth, count: int) -> float:
        rows: Rows = case.reference[:count]
        return float(_hits(nearest(rows, rows), truth).mean())

    return beats_shuffles("recall@1", score, case.truth)


def _judged(truth: Truth) -> npt.NDArray[np.bool_]:
    """Return true for images that have another one of their class in the gallery."""
    classes, numbers = np.unique(truth, return_inverse=True)
    counts = np.bincount(numbers[:GALLERY], minlength=len(classes))
    inside = np.arange(len(truth)) < GALLERY
    return np.asarray(counts[numbers] > inside)


def _hits(neighbours: npt.NDArray[np.int64], truth: Truth) -> npt.NDArray[np.bool_]:
    return np.asarray(truth[neighbours] == truth)
