"""The import of the user's own metric."""

from __future__ import annotations

import pytest

from model_artifacts.errors import RunError
from pipeline.stages.validate.yardsticks import function_of, tolerance_of
from tests.support.tensors import found_boxes


def test_a_metric_is_imported_by_its_name() -> None:
    """The function itself is returned."""
    assert function_of("tests.support.tensors:found_boxes") is found_boxes


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
        function_of(name)


@pytest.mark.parametrize(
    ("tolerance", "outputs", "name", "expected"),
    [
        pytest.param((0.1,), (), "", (0.1,), id="one-output"),
        pytest.param((0.1,), ("boxes", "scores"), "scores", (0.1,), id="one-for-all"),
        pytest.param((2.0, 0.1), ("boxes", "scores"), "scores", (0.1,), id="one-for-each"),
    ],
)
def test_an_output_has_its_tolerance(
    tolerance: tuple[float, ...], outputs: tuple[str, ...], name: str, expected: tuple[float, ...]
) -> None:
    """The order is the network's."""
    assert tolerance_of(tolerance, outputs, name) == expected


def test_tolerances_of_other_outputs_are_one_message() -> None:
    """There must be one, or one for each."""
    with pytest.raises(RunError, match=r"(?s)the network's outputs.*one number for all, or 3.*got: +2"):
        tolerance_of((1.0, 2.0), ("a", "b", "c"), "a")
