"""Vectors, judged by the classes of their nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.records import Verdict
from pipeline.stages.validate.tasks.case import Case
from pipeline.stages.validate.tasks.retrieval import deserving, judge

RANDOM = np.random.default_rng(0)
CLASSES = RANDOM.integers(10, size=500)
CENTRES = RANDOM.normal(size=(10, 16))
WANT = (CENTRES[CLASSES] + 0.3 * RANDOM.normal(size=(500, 16))).astype(np.float32)


def case_of(got: np.typing.NDArray[np.float32], truth: np.typing.NDArray[np.int64] | None = CLASSES) -> Case:
    """Return the case of vectors beside those of the reference."""
    return Case(got, WANT, (16,), truth)


def test_vectors_within_the_rounding_pass() -> None:
    """The same neighbours are found in both galleries."""
    verdict = judge(case_of(WANT * 3 + np.float32(1e-3)))
    assert [check.passed for check in verdict.checks] == [True, True]
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.PASSES
    assert [score.metric for score in verdict.scores] == ["recall@1", "recall@1 in FP32's gallery"]
    assert verdict.scores[0].value > 0.95


def test_another_basis_is_caught_by_the_gallery_of_fp32() -> None:
    """Turned vectors find each other, but nothing in the index that FP32 made."""
    turn, _ = np.linalg.qr(RANDOM.normal(size=(16, 16)))
    verdict = judge(case_of((WANT @ turn).astype(np.float32)))
    assert [check.passed for check in verdict.checks] == [True, False]
    assert verdict.loss is not None
    assert verdict.loss.verdict is Verdict.FAILS


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=["nan", "infinity"])
def test_a_vector_that_is_not_finite_finds_nothing(bad: float) -> None:
    """It is a lost answer."""
    got = WANT.copy()
    got[:50, 0] = bad
    verdict = judge(case_of(got))
    assert verdict.scores[0].value == pytest.approx(0.9, abs=0.02)
    assert not verdict.checks[0].passed


def test_images_alone_in_their_class_are_not_judged() -> None:
    """They cannot be found; if that is true of all, the neighbours themselves are compared."""
    some = np.where(np.arange(500) < 100, np.arange(500) + 100, CLASSES)
    loss = judge(case_of(WANT, some)).loss
    assert loss is not None
    assert loss.samples == 400
    for truth in (None, np.arange(500)):
        (check,) = judge(case_of(WANT, truth)).checks
        assert check.metric == "vectors that moved half way to their nearest neighbour"


def test_a_reference_must_find_its_classes() -> None:
    """Classes of other images are not worth a comparison; without classes there is nothing to compare with."""
    found = [
        [check.passed for check in deserving(case_of(WANT, truth))] for truth in (CLASSES, np.roll(CLASSES, 1), None)
    ]
    assert found == [[True], [False], []]
