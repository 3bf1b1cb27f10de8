"""Settings of a model that many threads call: what makes no sense is refused at once."""

from __future__ import annotations

from typing import Any

import pytest

import model_artifacts as pipeline
from model_artifacts.errors import UsageError


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        pytest.param({"contexts": 0}, r"(?s)number of contexts.*got: +0", id="no context"),
        pytest.param({"contexts": True}, r"(?s)number of contexts.*got: +True", id="a flag"),
        pytest.param({"contexts": 2.0}, r"(?s)number of contexts.*got: +2\.0", id="a fraction"),
        pytest.param({"wait_seconds": -1}, r"(?s)time to wait.*got: +-1", id="a wait below zero"),
        pytest.param({"wait_seconds": float("nan")}, r"(?s)time to wait.*got: +nan", id="no number"),
        pytest.param({"wait_seconds": "5"}, r"(?s)time to wait.*got: +'5'", id="a text"),
        pytest.param({"pictures": ["gpu"]}, r"(?s)place to decode.*got: +\['gpu'\]", id="a list"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(wrong: dict[str, Any], told: str) -> None:
    """The message has the expected and the actual value, before anything is opened."""
    with pytest.raises(UsageError, match=told):
        pipeline.load("nowhere", **wrong)
