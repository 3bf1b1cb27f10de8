"""A factory's code neither ends nor configures our process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from model_artifacts.errors import SourceError
from model_artifacts.records import Argument
from model_artifacts.sessions.arithmetic import settings
from model_artifacts.sessions.factory_call import without_weights
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


def test_a_factory_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is neither cached nor reachable is refused with the call and the folders of the caches."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    places = rf"{tmp_path}/hub .*{tmp_path}/torch/hub/checkpoints"

    with pytest.raises(SourceError, match=rf"(?s)not in this machine's cache.*{places}.*Name or service not known"):
        make_model("tests.support.hub_networks:Offline.create")


def test_errors_of_a_factory_name_the_call() -> None:
    """An error of the factory's own is shown with the arguments that led to it."""
    arguments = (Argument(name="model_name", value="a"), Argument(name="drop_rat", value=0.1))

    with pytest.raises(SourceError, match=r"(?s)create_model' failed.*\(model_name='a', drop_rat=0\.1\).*drop_rat"):
        make_model("tests.support.hub_networks:create_model", arguments=arguments)


@pytest.mark.parametrize(
    "factory",
    [
        "os:mkdir",
        "subprocess:check_output",
        "builtins:exec",
        "urllib.request:urlopen",
        "torch:load",
        "torch.hub:load",
        "numpy:load",
        "torchvision.models._api:partial",  # a function of Python's that another package has imported
        "torchvision._internally_replaced_utils:load_state_dict_from_url",
    ],
)
def test_python_and_torch_make_no_networks(factory: str) -> None:
    """A function of these packages is never called, wherever it is imported: with arguments it could do anything."""
    with pytest.raises(SourceError, match=r"belongs to (Python itself|torch|numpy), which makes no networks"):
        import_factory(factory)


def test_a_factory_leads_through_no_other_module() -> None:
    """What a package has imported is no way to another package's functions."""
    with pytest.raises(SourceError, match="the module torch behind the colon"):
        import_factory("torchvision.models.resnet:torch.load")


def test_networks_are_made_again_without_downloads() -> None:
    """Timm's `pretrained` is off where the weights follow; other factories keep their arguments."""
    arguments = (Argument(name="model_name", value="a"), Argument(name="pretrained", value=True))

    assert without_weights("timm.models:create_model", arguments)[1].value is False
    assert without_weights("timmy:create_model", arguments) == arguments
