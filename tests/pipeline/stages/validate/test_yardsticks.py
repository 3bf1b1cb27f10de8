"""The import of the user's own metric."""

from __future__ import annotations

import pytest

from model_artifacts.errors import RunError
from pipeline.stages.validate.yardsticks import metric_of
from tests.support.tensors import found_boxes


def test_a_metric_is_imported_by_its_name() -> None:
    """The function itself is returned."""
    assert metric_of("tests.support.tensors:found_boxes") is found_boxes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.support.nothing:score", r"(?s)cannot be imported.*package.module:function.*nothing"),
        ("tests.support.tensors:nothing", r"(?s)cannot be imported.*nothing"),
        ("tests.support.tensors:SHAPE", r"(?s)is no function.*tuple"),
    ],
    ids=["module", "function", "value"],
)
def test_other_names_are_one_message(name: str, message: str) -> None:
    """It says what was expected."""
    with pytest.raises(RunError, match=message):
        metric_of(name)
