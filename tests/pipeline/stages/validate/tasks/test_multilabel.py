"""Sets of labels, judged by a table and without."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from pipeline.records import Verdict
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.multilabel import deserving, judge, mean_f1, mean_precision

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.random((600, 8)) < np.linspace(0.05, 0.5, 8)
WANT = (np.where(TRUTH, 4, -4) + RANDOM.normal(size=TRUTH.shape)).astype(np.float32)


def case_of(got: np.typing.NDArray[np.float32], *, table: bool = True) -> Case:
    """Return the case of logits beside those of the reference."""
    return Case(got, WANT, (8,), TRUTH.astype(np.uint8) if table else None, tie=0.1)


def test_the_measures_are_those_of_scikit_learn() -> None:
    """Ties and the means over labels included; a label that no image has is left out."""
    logits = RANDOM.integers(-5, 5, TRUTH.shape).astype(np.float32)
    assert mean_precision(logits, TRUTH) == pytest.approx(average_precision_score(TRUTH, logits, average="macro"))
    assert mean_f1(logits > 0, TRUTH) == pytest.approx(f1_score(TRUTH, logits > 0, average="macro"))
    more = np.hstack([TRUTH, np.zeros((600, 1), bool)])
    assert mean_precision(np.hstack([logits, logits[:, :1]]), more) == pytest.approx(mean_precision(logits, TRUTH))


@pytest.mark.parametrize("table", [True, False], ids=["table", "without"])
def test_logits_within_the_rounding_pass(*, table: bool) -> None:
    """Nothing is lost."""
    verdict = judge(case_of(WANT + np.float32(0.02), table=table))
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.PASSES
    assert all(check.passed for check in verdict.checks)


@pytest.mark.parametrize("table", [True, False], ids=["table", "without"])
def test_a_label_that_is_lost_fails(*, table: bool) -> None:
    """A label of 5 % of the images, never given any more: nine of ten labels of all images still agree."""
    got = WANT.copy()
    got[:, 0] = -9
    verdict = judge(case_of(got, table=table))
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.FAILS
    assert verdict.scores[-1].value > 0.99
    if table:
        assert [check.passed for check in verdict.checks] == [False, False, False]


def test_a_threshold_decides() -> None:
    """Logits of 0 are 0.5: an answer at this threshold, and none at 0.6."""
    zeros = case_of(np.zeros_like(WANT))
    assert judge(zeros).scores[-1].value == pytest.approx(TRUTH.mean(), abs=0.01)
    assert judge(zeros._replace(threshold=0.6)).scores[-1].value == pytest.approx(1 - TRUTH.mean(), abs=0.01)


def test_near_ties_are_not_judged_without_a_table() -> None:
    """If every label is one, all of them count."""
    case = case_of(-WANT, table=False)
    none, some = judge(case._replace(tie=100.0)).loss, judge(case).loss
    assert none is not None
    assert some is not None
    assert none.lost == some.lost > 500


@pytest.mark.parametrize("table", [True, False], ids=["table", "without"])
def test_a_row_that_is_not_finite_is_lost(*, table: bool) -> None:
    """It gives no label, and an image without any true label loses, too."""
    got = WANT.copy()
    got[:60, 3] = np.inf
    loss = judge(case_of(got, table=table)).loss
    assert loss is not None
    assert loss.lost == pytest.approx(60 if not table else TRUTH[:60].any(axis=1).sum(), abs=2)


def test_a_reference_must_answer() -> None:
    """The same labels for all images, or labels of other images, are not worth a comparison."""
    right = case_of(WANT)
    same = right._replace(reference=np.repeat(WANT[:1], 600, axis=0))
    other = right._replace(truth=np.roll(TRUTH, 1, axis=0))
    found = [[check.passed for check in deserving(case)] for case in (right, same, other)]
    assert found == [[True, True], [False, False], [True, False]]
