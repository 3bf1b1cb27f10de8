"""Numbers, judged by their tolerances."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.records import Verdict
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.regression import deserving, judge

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.normal(size=(500, 2)) * [30, 0.2]
WANT = (TRUTH + RANDOM.normal(size=TRUTH.shape) * [1, 0.01]).astype(np.float32)
NOISE = RANDOM.normal(size=TRUTH.shape) * [1, 0.01]


def case_of(got: np.typing.NDArray[np.float64], *, table: bool = True) -> Case:
    """Return the case of numbers beside those of the reference."""
    truth = TRUTH if table else None
    return Case(got.astype(np.float32), WANT, (2,), truth, names=("age", "share"), tolerance=(2.0, 0.02))


@pytest.mark.parametrize("table", [True, False], ids=["table", "without"])
def test_numbers_within_their_tolerance_pass(*, table: bool) -> None:
    """Noise of a hundredth of the tolerance loses nothing."""
    verdict = judge(case_of(WANT + 0.02 * NOISE, table=table))
    assert verdict.loss is not None
    assert verdict.loss.verdict is not Verdict.FAILS
    assert all(check.passed for check in verdict.checks)


def test_a_small_number_is_judged_apart() -> None:
    """A share that is off by more than its tolerance is lost, though the years beside it are right."""
    verdict = judge(case_of(WANT + np.array([0, 0.03])))
    assert [check.passed for check in verdict.checks] == [False, False, False]
    assert verdict.checks[2].metric == "rise of the MAE of share, in tolerances"
    assert verdict.scores[1].metric == "MAE of share"


def test_a_shift_within_the_tolerance_raises_the_mae() -> None:
    """No number is beyond its tolerance of FP32, but all of them are worse."""
    verdict = judge(case_of(WANT + np.array([1.5, 0])))
    first, _, third = verdict.checks
    assert (first.passed, third.passed) == (True, False)
    score = verdict.scores[1]
    assert score.reference == pytest.approx(np.abs(WANT - TRUTH)[:, 0].mean())
    assert score.value == pytest.approx(np.abs(WANT + np.array([1.5, 0]) - TRUTH)[:, 0].mean(), rel=1e-5)


@pytest.mark.parametrize("table", [True, False], ids=["table", "without"])
def test_a_row_that_is_not_finite_is_lost(*, table: bool) -> None:
    """Its error has a number that JSON can hold."""
    got = WANT.astype(np.float64)
    got[:20, 1] = np.nan
    verdict = judge(case_of(got, table=table))
    assert not verdict.checks[0].passed
    assert verdict.scores[1].value > 1e38
    assert verdict.loss is not None
    assert verdict.loss.lost > 15


def test_one_tolerance_is_for_all() -> None:
    """A number of its own unit is the user's to scale."""
    loss = judge(case_of(WANT + np.array([0, 0.03]), table=False)._replace(tolerance=(2.0,))).loss
    assert loss is not None
    assert loss.lost == 0


def test_a_reference_must_know_its_images() -> None:
    """Labels of other images are not worth a comparison; without labels there is nothing to compare with."""
    right = case_of(WANT.astype(np.float64))
    other = right._replace(truth=np.roll(TRUTH, 1, axis=0))
    found = [[check.passed for check in deserving(case)] for case in (right, other, right._replace(truth=None))]
    assert found == [[True], [False], []]
