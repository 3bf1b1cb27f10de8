"""The margin of an answer."""

from __future__ import annotations

import numpy as np

from pipeline.stages.common.margins import margins


def test_the_margin_is_between_the_references_two_first_classes() -> None:
    """An artifact that turned them round has a negative one."""
    want = np.array([[1.0, 5.0, 3.0]])
    assert margins(want, want).tolist() == [2.0]
    assert margins(np.array([[9.0, 3.0, 4.0]]), want).tolist() == [-1.0]


def test_one_class_has_no_other() -> None:
    """Its margin is infinite."""
    assert margins(np.ones((2, 1)), np.ones((2, 1))).tolist() == [np.inf, np.inf]
