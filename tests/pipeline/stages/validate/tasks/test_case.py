"""Verdicts of a task, and the reference beside shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest

from model_artifacts.records import Question
from pipeline.records import Verdict
from pipeline.stages.validate.metrics import Answers
from pipeline.stages.validate.tasks.case import Case, beats_shuffles, judge_answers

NOTHING = np.zeros((1, 1), np.float32)
CASE = Case(NOTHING, NOTHING, (1,))


@pytest.mark.parametrize(
    ("lost", "verdict", "passed"),
    [(0.0, Verdict.PASSES, True), (3.5, Verdict.NOT_PROVEN, True), (5.5, Verdict.FAILS, False)],
    ids=["none", "some", "many"],
)
def test_shares_of_a_sample_count_as_shares_of_an_answer(lost: float, verdict: Verdict, *, passed: bool) -> None:
    """A margin of a point is five of 500 images, whole or in parts."""
    check, loss = judge_answers(CASE, Answers(500, lost, 0), "pixels")
    assert (loss.verdict, check.passed, check.question) == (verdict, passed, Question.GOOD_ENOUGH)
    assert loss.drop == pytest.approx(lost / 500)


def test_a_proof_may_be_required_but_of_a_part() -> None:
    """What is never deployed needs none."""
    answers = Answers(64, 0.3, 0)
    passed = [
        judge_answers(case, answers, "pixels")[0].passed
        for case in (CASE, CASE._replace(require_proof=True), CASE._replace(require_proof=True, is_part=True))
    ]
    assert passed == [True, False, True]


def test_few_samples_prove_nothing() -> None:
    """Three images without a loss are no proof of a margin of a point."""
    assert judge_answers(CASE, Answers(3, 0, 0), "pixels")[1].verdict is Verdict.NOT_PROVEN


def test_a_reference_beats_shuffled_labels() -> None:
    """A network that knows its images does; one that always gives the same answer does not."""
    truth = np.random.default_rng(0).integers(0, 2, 100)
    for answers, passed in ((truth, True), (np.ones(100), False), (np.roll(truth, 1), False)):

        def score(labels: np.typing.NDArray[np.generic], count: int, got: object = answers) -> float:
            return float((labels == np.asarray(got)[:count]).mean())

        (check,) = beats_shuffles("hits", score, truth)
        assert (check.passed, check.question) == (passed, Question.REFERENCE)
    assert beats_shuffles("hits", lambda _labels, _count: 0.0, truth[:5]) == ()
