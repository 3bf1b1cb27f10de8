"""Maps of logits → the pixels and the mIoU that an artifact keeps. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_artifacts.records import Question, Score
from pipeline.stages.common.rows import pixel_margins
from pipeline.stages.validate.gates import at_most
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.tasks.case import TaskVerdict, beats_shuffles, judge_answers, reference_check

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from model_artifacts.records import GateCheck
    from pipeline.stages.validate.tasks.case import Case, Truth

    Rows = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.intp]

IGNORED = 255
"""The value of a mask's pixel that is not judged, as of PASCAL VOC and Cityscapes."""


class _Count(NamedTuple):
    """An image's pixels of each class: of both mask and answer, of the mask, and of the answer."""

    both: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """The intersection over union of the classes that the mask has."""
        there = self.mask > 0
        union = (self.mask + self.answer - self.both)[there]
        shares: npt.NDArray[np.float64] = self.both[there] / union
        return shares


def judge(case: Case) -> TaskVerdict:
    """Judge maps of logits: by the mIoU if there are masks, else by the pixels that answer unlike the reference.

    An image counts as one sample, because its pixels depend on each other. With masks it loses the drop of its own mean
    IoU over the classes that its mask has. Without masks it loses the share of its pixels with another answer, of those
    that are no near-ties. The mIoU of all images together must not drop by more than the margin either.
    """
    agreement = _agreement(case)
    score = Score(metric="pixel agreement", value=agreement)
    if case.truth is None:
        check, loss = judge_answers(case, _other_pixels(case), "other pixels of an image, without near-ties")
        return TaskVerdict((score,), (check,), loss)
    got, want = _counts(case.rows, case, case.truth), _counts(case.reference, case, case.truth)
    judged = [(a.iou.mean(), b.iou.mean()) for a, b in zip(got, want, strict=True) if b.mask.any()]
    drops = np.array([before - after for after, before in judged])
    if not len(drops):  # nothing is left to judge by: the masks are ignored as a whole
        check, loss = judge_answers(case, _other_pixels(case), "other pixels of an image, without near-ties")
        return TaskVerdict((score,), (check,), loss)
    answers = Answers(len(drops), float(drops.clip(0).sum()), float((-drops).clip(0).sum()))
    check, loss = judge_answers(case, answers, "drop of an image's mIoU")
    after, before = _mean_iou(got), _mean_iou(want)
    checks = [check]
    if not case.is_part:  # too few images for rare classes
        whole = "mIoU drop over all images"
        checks.append(at_most(whole, before - after, case.margin, question=Question.GOOD_ENOUGH))
    return TaskVerdict((Score(metric="mIoU", value=after, reference=before), score), tuple(checks), loss)


def deserving(case: Case) -> tuple[GateCheck, ...]:
    """Check that the reference's masks have several classes, differ, and are those of their images if there are masks.

    Args:
        case: the reference's own output, as artifact and as reference.
    """
    masks = [answer.astype(np.uint16) for answer in _answers(case.reference, case)]
    found = len(np.unique(np.concatenate([np.unique(mask) for mask in masks])))
    checks = [reference_check("answers", "at least 2 different classes", f"{found} different", passed=found > 1)]
    if len(masks) > 1:
        alike = all(np.array_equal(mask, masks[0]) for mask in masks)
        value = "the same for all images" if alike else "different"
        checks.append(reference_check("masks", "different for different images", value, passed=not alike))
    if case.truth is not None and (case.truth != IGNORED).any():

        def score(truth: Truth, count: int) -> float:
            part = zip(masks[:count], truth, strict=True)
            return _mean_iou([_count(answer, mask, case.shape[0]) for answer, mask in part])

        checks += beats_shuffles("mIoU", score, case.truth)
    return tuple(checks)


def _maps(rows: Rows, case: Case) -> Iterator[Rows]:
    """Yield each image's logits: (classes, pixels)."""
    for row in rows:
        yield row.reshape(case.shape[0], -1)


def _answers(rows: Rows, case: Case) -> Iterator[Mask]:
    for logits in _maps(rows, case):
        yield logits.argmax(axis=0)


def _agreement(case: Case) -> float:
    pairs = zip(case.rows, _answers(case.rows, case), _answers(case.reference, case), strict=True)
    return float(np.mean([(got == want).mean() * bool(np.isfinite(row).all()) for row, got, want in pairs]))


def _other_pixels(case: Case) -> Answers:
    """Count the share of each image's pixels that answer otherwise; a map that is not finite is lost as a whole."""
    shares: list[float] = []
    near_ties = 0
    for row, got, want in zip(case.rows, _maps(case.rows, case), _maps(case.reference, case), strict=True):
        clear = pixel_margins(want, want) > case.tie
        if not clear.any():
            near_ties += 1
        elif np.isfinite(row).all():
            shares.append(float((got.argmax(axis=0) != want.argmax(axis=0))[clear].mean()))
        else:
            shares.append(1.0)
    if not shares:  # every pixel of every image is a near-tie: then all of them count
        return _other_pixels(case._replace(tie=-1.0))
    return Answers(len(shares), sum(shares), 0, near_ties)


def _counts(rows: Rows, case: Case, truth: Truth) -> list[_Count]:
    found = []
    for row, answer, mask in zip(rows, _answers(rows, case), truth, strict=True):
        count = _count(answer, mask, case.shape[0])
        found.append(count if np.isfinite(row).all() else count._replace(both=np.zeros_like(count.both)))
    return found


def _count(answer: npt.NDArray[np.integer], mask: npt.NDArray[np.generic], classes: int) -> _Count:
    judged = np.asarray(mask).ravel() != IGNORED
    want, got = np.asarray(mask).ravel()[judged].astype(np.int64), answer.ravel()[judged].astype(np.int64)
    both = np.bincount(want[want == got], minlength=classes)
    return _Count(both, np.bincount(want, minlength=classes), np.bincount(got, minlength=classes))


def _mean_iou(counts: list[_Count]) -> float:
    """Return the mIoU of all images together, over the classes that a mask has."""
    total = _Count(*(np.sum(column, axis=0) for column in zip(*counts, strict=True)))
    return float(total.iou.mean())
