"""The user's own measure, taken at its word and no further."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from model_artifacts.errors import RunError
from pipeline.records import Verdict
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.custom import deserving, judge

WANT = np.random.default_rng(0).random((400, 6)).astype(np.float32)
Array = np.typing.NDArray[Any]


def near(outputs: Array, truth: Array) -> Array:
    """Return the share of values near the true ones, and spoil what it was given."""
    found: Array = (np.abs(outputs - truth) < 0.1).mean(axis=(1, 2))
    outputs[:], truth[:] = 0, 0
    return found


CASE = Case(WANT, WANT, (2, 3), metric=near, metric_name="mine:near", least=0.5)


def test_a_drop_of_the_measure_is_judged() -> None:
    """Without labels the truth is the reference; the function gets copies in the output's own shape."""
    verdict = judge(CASE._replace(rows=WANT + np.float32(0.01)))
    assert verdict.loss is not None
    assert (verdict.loss.verdict, verdict.loss.drop) == (Verdict.PASSES, 0)
    assert verdict.scores[0].metric == "mine:near"
    worse = WANT.copy()
    worse[:, 0] += 1
    (check,) = judge(CASE._replace(rows=worse)).checks
    assert not check.passed
    assert check.metric == "drop of mine:near"


def test_labels_are_the_truth() -> None:
    """A table's rows reach the function as they are."""
    truth = np.arange(400.0)[:, None]
    case = CASE._replace(truth=truth, metric=lambda _outputs, labels: (labels[:, 0] < 100).astype(float))
    assert judge(case).scores[0].value == pytest.approx(0.25)


def test_an_output_that_is_not_finite_scores_nothing() -> None:
    """Whatever the function says of it."""
    got = WANT.copy()
    got[:40] = np.nan
    verdict = judge(CASE._replace(rows=got, metric=lambda outputs, _truth: np.ones(len(outputs))))
    assert verdict.loss is not None
    assert verdict.loss.lost == 40


def test_a_reference_must_score() -> None:
    """At least what is asked for, and something at all."""
    found = []
    for mean, least in ((0.6, 0.5), (0.4, 0.5), (0.0, 0.0)):

        def score(outputs: Array, _truth: Array, one: float = mean) -> Array:
            return np.full(len(outputs), one)

        found += [check.passed for check in deserving(CASE._replace(metric=score, least=least))]
    assert found == [True, False, False]


def fails(_outputs: Array, _truth: Array) -> Array:
    """Raise an error."""
    raise KeyError("boxes")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (fails, r"(?s)metric mine:near fails.*KeyError"),
        (lambda outputs, _truth: list(np.ones(len(outputs))), r"(?s)no score of each image.*400 numbers.*got: +list"),
        (lambda outputs, _truth: np.ones((len(outputs), 1)), r"float64 \(400, 1\)"),
        (lambda outputs, _truth: np.full(len(outputs), 1.5), r"float64 \(400,\), from 1.5 to 1.5"),
        (lambda outputs, _truth: np.full(len(outputs), np.nan), "no score of each image"),
        (lambda outputs, _truth: np.full(len(outputs), "1"), "no score of each image"),
        (lambda _outputs, _truth: None, "got: +NoneType"),
    ],
    ids=["raises", "list", "axes", "range", "nan", "text", "nothing"],
)
def test_a_function_that_is_no_metric_is_one_message(metric: Any, message: str) -> None:
    """It says what the function must return, and what it did."""
    with pytest.raises(RunError, match=message):
        judge(CASE._replace(metric=metric))
