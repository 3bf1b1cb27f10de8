"""Durations and drops on the command line."""

from __future__ import annotations

import argparse

import pytest

from pipeline.cli.main import main
from pipeline.cli.options import drop_of, seconds_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90.0), ("10min", 600.0), ("1.5h", 5400.0), ("2 min", 120.0)],
    ids=["seconds", "minutes", "hours", "with a space"],
)
def test_a_duration_has_its_unit(text: str, expected: float) -> None:
    """In seconds."""
    assert seconds_of(text) == expected


@pytest.mark.parametrize("text", ["10", "0min", "-1h", "1 day", ""], ids=["bare", "none", "negative", "day", "empty"])
def test_other_durations_are_refused(text: str) -> None:
    """With examples."""
    with pytest.raises(argparse.ArgumentTypeError, match="expected a duration, such as 90s, 10min or"):
        seconds_of(text)


def test_a_drop_is_in_percentage_points() -> None:
    """As in pipeline.yaml's `release`."""
    assert drop_of("0.5pt") == pytest.approx(0.005)
    with pytest.raises(argparse.ArgumentTypeError, match="a number with its unit"):
        drop_of("0.5%")


def test_a_wrong_budget_is_an_error_of_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing runs."""
    with pytest.raises(SystemExit, match="2"):
        main(["tune", "--budget", "soon"])
    assert "expected a duration" in capsys.readouterr().err
