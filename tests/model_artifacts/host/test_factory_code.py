"""The digest or version of a factory's code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from model_artifacts.host.environment import version
from model_artifacts.host.factory_code import code_of, imported_code_of
from model_artifacts.host.hashes import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[str], str]


def test_code_is_the_factorys_wherever_it_is_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment's current folder is not the one of the build: its recipes' code is found on Python's path, too."""
    (tmp_path / "a_model_of_ours.py").write_text("def make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert code_of("a_model_of_ours:make") == sha256_of(tmp_path / "a_model_of_ours.py")
    assert code_of("torchvision.models:resnet18") == version("torchvision")
    assert code_of("nowhere_at_all:make") == "absent"


NETWORK = {
    "model.py": "import os, json, blocks.conv as conv\ndef make():\n    from blocks import heads\n",
    "blocks/__init__.py": "",
    "blocks/conv.py": "from . import norms\nfrom .deep.inner import x\nfrom model_artifacts import errors",
    "blocks/norms.py": "from sizes import WIDTH",
    "blocks/heads.py": "import model  # which imports this module",
    "blocks/deep/inner.py": "from ..other import y",
    "blocks/other.py": "a broken file",
    "sizes.py": "WIDTH = 8",
    "unrelated.py": "",
}


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a factory and the modules that it imports."""
    for name, text in NETWORK.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [name for name in NETWORK if name not in {"model.py", "unrelated.py"}])
def test_imported_modules_are_part_of_the_code(network: Path, name: str) -> None:
    """A change of any module that the factory's file imports, at any depth, is seen."""
    before = imported_code_of("model:make")

    (network / name).write_text(NETWORK[name] + "\n# changed")

    assert before
    assert imported_code_of("model:make") not in {before, None}


@pytest.mark.parametrize("name", ["model.py", "unrelated.py"])
def test_other_modules_are_not(network: Path, name: str) -> None:
    """The factory's own file has a digest of its own, and what it does not import has none."""
    before = imported_code_of("model:make")

    (network / name).write_text(NETWORK[name] + "\n# changed")

    assert imported_code_of("model:make") == before


@pytest.mark.parametrize("factory", ["sizes:make", "torchvision.models:resnet18", "nowhere_at_all:make"])
@pytest.mark.usefixtures("network")
def test_factory_without_imports_from_here(factory: str) -> None:
    """A factory that imports nothing from the current folder, or lies elsewhere, has no imported code."""
    assert imported_code_of(factory) is None
