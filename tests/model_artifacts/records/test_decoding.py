"""Settings of a detector's decoding."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from model_artifacts.records import Decoding


@pytest.mark.parametrize("outputs", [{"boxes": "a"}, {"scores": "a"}, {"boxes": "a", "scores": "a"}], ids=str)
def test_outputs_are_named_both_or_neither(outputs: dict[str, str]) -> None:
    """One of them alone says nothing."""
    with pytest.raises(ValidationError, match="expected"):
        Decoding(**outputs)
    assert Decoding(boxes="a", scores="b").boxes == "a"


@pytest.mark.parametrize("wrong", [{"score_threshold": 1}, {"iou_threshold": 0}, {"most": 0}, {"most": 1.0}], ids=str)
def test_bounds_hold(wrong: dict[str, float]) -> None:
    """A threshold that nothing passes, or that suppresses everything, is refused."""
    with pytest.raises(ValidationError):
        Decoding.model_validate(wrong)
