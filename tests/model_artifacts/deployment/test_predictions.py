"""Logits become names with scores, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_artifacts.deployment.predictions import checked_top, named_classes, rank, rank_probabilities
from model_artifacts.errors import RunError, UsageError

NAMES = ("cat", "dog", "fox")
LOGITS = np.array([[0.0, np.log(6), np.log(3)], [np.log(2), 0.0, 0.0]], np.float32)


def test_the_likeliest_classes() -> None:
    """The largest logit is the answer, and the scores are shares of one."""
    first, second = rank(LOGITS, NAMES, 2)
    assert [(item.name, item.index, round(item.score, 6)) for item in first.top] == [("dog", 1, 0.6), ("fox", 2, 0.3)]
    assert (second.name, second.index, round(second.score, 6)) == ("cat", 0, 0.5)
    assert [item.name for item in second.top] == ["cat", "dog"]


def test_classes_without_names_have_numbers() -> None:
    """The number stands in place of the name."""
    assert [item.name for item in rank(LOGITS, None, 9)[0].top] == ["1", "2", "0"]


@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5), min_size=1, max_size=4))
def test_scores_are_torchs_softmax(rows: list[list[float]]) -> None:
    """Softmax and order are those of torch in double precision, whatever the logits."""
    logits = np.array(rows, np.float32)
    expected = torch.from_numpy(logits).double().softmax(1).sort(descending=True).values
    found = rank(logits, None, 5)
    np.testing.assert_allclose([[item.score for item in row.top] for row in found], expected.numpy(), atol=1e-12)
    assert [row.index for row in found] == logits.argmax(1).tolist()


@pytest.mark.parametrize(
    ("logits", "names", "message"),
    [
        ([[0.3]], None, r"two logits or more.*got: +1"),
        ([0.3, 0.2], None, r"two logits or more.*got: +an array \(2,\)"),
        ([[0.3, 0.2]], ("a", "b", "c"), r"3 logits for each image.*got: +2"),
        ([[0.0, 1.0], [np.nan, 1.0]], None, "NaN or infinity for 1 of 2 images, the first at 1"),
        ([[np.inf, 1.0]], ("a", "b"), "NaN or infinity for 1 of 1 images"),
        ([[-np.inf, 1.0]], ("a", "b"), "NaN or infinity for 1 of 1 images"),
    ],
)
def test_logits_without_an_answer(logits: Any, names: tuple[str, ...] | None, message: str) -> None:
    """One logit, another number than that of the names, and NaN have no likeliest class."""
    with pytest.raises(RunError, match=rf"(?s){message}.*fix: "):
        rank(np.array(logits, np.float32), names)


@pytest.mark.parametrize("top", [0, -1, 1.5, "5", None, True])
def test_numbers_of_classes_that_are_refused(top: object) -> None:
    """The number of classes is a whole number above 0."""
    with pytest.raises(UsageError, match=r"(?s)`top`.*expected: a whole number from 1 on.*fix: "):
        checked_top(top)


def test_numbers_of_classes_may_be_numpys() -> None:
    """A number of numpy is a number."""
    assert checked_top(np.int64(3)) == 3


def test_probabilities_are_ranked_as_their_logits() -> None:
    """The softmax in the graph gives the same answers."""
    scores = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    for got, want in zip(rank_probabilities(scores, NAMES, 9), rank(LOGITS, NAMES, 9), strict=True):
        assert [item.name for item in got.top] == [item.name for item in want.top]
        np.testing.assert_allclose([item.score for item in got.top], [item.score for item in want.top], rtol=1e-6)


def test_ranked_classes_get_their_names() -> None:
    """The artifact's order is taken; one class is named unless more are asked for."""
    scores, indices = np.array([[0.6, 0.3]], np.float32), np.array([[1, 2]], np.int32)
    (one,), (two,) = named_classes(scores, indices, NAMES), named_classes(scores, indices, None, 2)
    assert (one.name, one.index, len(one.top)) == ("dog", 1, 1)
    assert [item.name for item in two.top] == ["1", "2"]


@pytest.mark.parametrize(
    ("scores", "indices", "top", "error", "message"),
    [
        pytest.param([[0.6, 0.3]], [[1, 2]], 3, UsageError, "ranks fewer classes", id="more than there are"),
        pytest.param([[0.6, 0.3]], [[1, 3]], 1, RunError, "names classes that there are not", id="no class"),
        pytest.param([[0.6, 0.3]], [[-1, 1]], 1, RunError, "names classes that there are not", id="below zero"),
        pytest.param([[0.6, np.nan]], [[1, 2]], 1, RunError, "not finite", id="nan"),
    ],
)
def test_other_rankings_are_refused(scores: Any, indices: Any, top: int, error: type[Exception], message: str) -> None:
    """Nobody gets the name of another class."""
    with pytest.raises(error, match=message):
        named_classes(np.array(scores, np.float32), np.array(indices, np.int32), NAMES, top)
