"""Maps, judged by their pixels and by their masks."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.records import Verdict
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.segmentation import IGNORED, deserving, judge

SHAPE = (3, 8, 8)
RANDOM = np.random.default_rng(0)
MASKS = RANDOM.integers(0, 3, (400, 4, 4)).repeat(2, axis=1).repeat(2, axis=2).astype(np.uint8)
WANT = (np.eye(3)[MASKS].transpose(0, 3, 1, 2) * 4 + RANDOM.normal(size=(400, *SHAPE)) * 0.3).astype(np.float32)


def case_of(got: np.typing.NDArray[np.float32], *, masks: bool = True) -> Case:
    """Return the case of maps beside those of the reference."""
    rows, reference = got.reshape(len(got), -1), WANT.reshape(len(WANT), -1)
    return Case(rows, reference, SHAPE, MASKS if masks else None, tie=0.1)


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "without"])
def test_maps_within_the_rounding_pass(*, masks: bool) -> None:
    """Small changes move no pixel that is no near-tie."""
    verdict = judge(case_of(WANT + np.float32(0.01), masks=masks))
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.PASSES
    assert all(check.passed for check in verdict.checks)
    assert verdict.scores[0].metric == ("mIoU" if masks else "pixel agreement")
    assert verdict.scores[0].value > 0.99


def test_the_miou_is_that_of_scikit_learn() -> None:
    """The mIoU over all images is the Jaccard index of scikit-learn, pixel by pixel, without the ignored ones."""
    from sklearn.metrics import jaccard_score  # noqa: PLC0415 - slow to import

    got = WANT + RANDOM.normal(size=WANT.shape).astype(np.float32) * 3
    masks = MASKS.copy()
    masks[:, :2] = IGNORED
    verdict = judge(case_of(got)._replace(truth=masks))
    judged = masks != IGNORED
    want = jaccard_score(masks[judged], got.argmax(axis=1)[judged], average="macro")
    assert verdict.scores[0].value == pytest.approx(want)
    assert verdict.loss is not None
    assert verdict.loss.drop > 0.3


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "without"])
def test_a_lost_class_fails(*, masks: bool) -> None:
    """Pixels of a class that answer with another one are a loss."""
    got = WANT.copy()
    got[:, 2] -= 10
    verdict = judge(case_of(got, masks=masks))
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.FAILS
    assert [check.passed for check in verdict.checks] == [False] * (2 if masks else 1)
    assert verdict.loss.drop == pytest.approx(0.56 if masks else 1 / 3, abs=0.1)


def test_an_artifact_may_win() -> None:
    """A gain of mIoU counts against a loss."""
    case = case_of(WANT)
    worse = case._replace(rows=case.reference, reference=np.roll(WANT, 1, axis=1).reshape(400, -1))
    verdict = judge(worse)
    assert verdict.loss is not None
    assert verdict.loss.won > 300
    assert verdict.loss.drop < -0.9


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "without"])
def test_a_map_that_is_not_finite_is_lost(*, masks: bool) -> None:
    """It is no answer, whatever its largest number is."""
    got = WANT.copy()
    got[:40, 0, 0, 0] = np.nan
    loss = judge(case_of(got, masks=masks)).loss
    assert loss is not None
    assert loss.lost == pytest.approx(40, rel=0.02)


def test_near_ties_are_not_judged_without_masks() -> None:
    """Where the reference itself is undecided, rounding decides; if that is everywhere, all pixels count."""
    undecided = WANT.copy()
    undecided[:, :, :4] = 0.01 * RANDOM.normal(size=undecided[:, :, :4].shape)
    case = case_of(WANT, masks=False)._replace(reference=undecided.reshape(400, -1))
    loss = judge(case).loss
    assert loss is not None
    assert loss.lost == 0
    everywhere = judge(case._replace(tie=100.0)).loss
    assert everywhere is not None
    assert everywhere.lost > 100


def test_ignored_masks_leave_the_pixels() -> None:
    """Masks without a judged pixel say nothing, so that the reference's answers count."""
    verdict = judge(case_of(WANT)._replace(truth=np.full_like(MASKS, IGNORED)))
    assert [check.metric for check in verdict.checks] == ["other pixels of an image, without near-ties"]


def test_a_reference_must_answer() -> None:
    """One class, the same mask for each image, or masks of other images are not worth a comparison."""
    right = case_of(WANT)
    one = case_of(np.zeros_like(WANT))._replace(reference=np.zeros_like(WANT).reshape(400, -1))
    same = case_of(WANT)._replace(reference=np.repeat(WANT[:1], 400, axis=0).reshape(400, -1))
    other = right._replace(truth=np.roll(MASKS, 1, axis=0))
    found = [[check.passed for check in deserving(case)] for case in (right, one, same, other)]
    assert found == [[True, True, True], [False, False, False], [True, False, False], [True, True, False]]
