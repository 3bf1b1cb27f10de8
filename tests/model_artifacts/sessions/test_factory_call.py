"""A factory's code neither ends nor configures our process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import SourceError
from model_artifacts.sessions.arithmetic import settings
from model_artifacts.sessions.torch_model import import_factory, make_model

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import argparse
from torch import nn
parser = argparse.ArgumentParser()
parser.add_argument({argument})
width = parser.parse_args().width
def make():
    return nn.Linear(int(width), 2)
"""


def script(folder: Path, name: str, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a training script that parses the command line when it is imported."""
    (folder / f"{name}.py").write_text(SCRIPT.format(argument=argument))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(sys, "argv", ["pipeline", "source", "--width", "7"])


def test_a_script_takes_its_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is ours, not the script's."""
    script(tmp_path, "trained_by_default", '"--width", default=3', monkeypatch)

    assert make_model("trained_by_default:make").in_features == 3
    assert sys.argv[-1] == "7"


def test_a_script_that_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that requires an argument is refused with the remedy, and the process goes on."""
    script(tmp_path, "trained_by_argument", '"--width", required=True', monkeypatch)

    with pytest.raises(SourceError, match=r"(?s)cannot be imported.*exit status 2.*__main__"):
        import_factory("trained_by_argument:make")


def test_a_factory_that_ends_the_process() -> None:
    """The same holds for the factory itself."""
    with pytest.raises(SourceError, match=r"(?s)odd_networks:ends_the_process' failed.*exit status 2"):
        make_model("tests.support.odd_networks:ends_the_process")


def test_a_factory_that_allows_tf32() -> None:
    """Settings of torch's arithmetic are as they were before the factory ran."""
    before = settings()

    make_model("tests.support.odd_networks:allows_tf32")

    assert settings() == before
