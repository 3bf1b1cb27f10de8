"""The reference, which must be worth a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from model_artifacts.records import Question
from pipeline.stages.validate.reference import judge_reference

if TYPE_CHECKING:
    import numpy.typing as npt

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(10, size=100)
GOOD = (np.eye(10, dtype=np.float32)[LABELS] + RANDOM.normal(scale=0.1, size=(100, 10))).astype(np.float32)


def failed(reference: npt.NDArray[np.float32], labels: npt.NDArray[np.int64] | None) -> list[str]:
    """Return what fails, without its first word."""
    checks = judge_reference(reference, labels)
    assert {check.question for check in checks} <= {Question.REFERENCE}
    return [check.metric.removeprefix("reference: ") for check in checks if not check.passed]


@pytest.mark.parametrize("labels", [LABELS, None])
def test_a_reference_that_answers_is_worth_it(labels: npt.NDArray[np.int64] | None) -> None:
    """Different, right answers pass, with labels and without."""
    assert failed(GOOD, labels) == []


@pytest.mark.parametrize("value", [0.0, 1.5])
def test_constant_logits_are_named(value: float) -> None:
    """Logits that do not depend on the image: all zero, or a bias alone."""
    constant = np.full((100, 10), value, dtype=np.float32)
    constant[:, 3] += 1
    assert failed(constant, None) == ["share of the logits that depends on the image", "answers"]
    assert failed(np.zeros_like(constant), None)[0] == "share of the logits that depends on the image"


@pytest.mark.parametrize(("contrast", "passes"), [(1.0, True), (0.02, True), (1 / 255, False), (1e-6, False)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_logits_that_hardly_depend_on_the_image(contrast: float, passes: bool, offset: float) -> None:  # noqa: FBT001 - a parameter
    """Images with 1/255 of their contrast are named; a number that is added to all logits does not count."""
    blinded = (GOOD * contrast + np.eye(10, dtype=np.float32)[4] + offset).astype(np.float32)

    assert ("share of the logits that depends on the image" not in failed(blinded, None)) is passes


def test_chance_is_named() -> None:
    """Answers that have nothing to do with the labels."""
    assert failed(GOOD, RANDOM.permutation(LABELS)) == ["top-1"]


def test_one_class_for_all_is_named() -> None:
    """However the logits vary."""
    same = GOOD.copy()
    same[:, 4] += 9
    assert "answers" in failed(same, LABELS)


def test_images_of_one_class_may_have_one_answer() -> None:
    """The labels say so."""
    ones = np.full(100, 4)
    same = GOOD.copy()
    same[:, 4] += 9
    assert failed(same, ones) == []


def test_few_images_may_have_one_answer() -> None:
    """Five images of a folder are often of one class."""
    assert failed(GOOD[LABELS[0] == LABELS][:5], None) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_named_with_their_number(bad: float) -> None:
    """Nothing else can be judged then."""
    broken = GOOD.copy()
    broken[3, 2] = broken[5, 1] = bad
    (check,) = judge_reference(broken, LABELS)
    assert (check.metric, check.value, check.passed) == ("reference: finite logits", "2 of 100 samples are not", False)


def test_a_network_that_changes_its_mind_is_named() -> None:
    """Dropout that is always on gives other logits for the same batch."""
    found = [check for check in judge_reference(GOOD, LABELS, repeatable=False) if not check.passed]
    assert [(check.metric, check.value) for check in found] == [
        ("reference: logits of the same batch twice", "different")
    ]


def test_one_logit_is_no_class() -> None:
    """A network with one output has no answer to compare with a chance."""
    assert failed(GOOD[:, :1], None) == []
