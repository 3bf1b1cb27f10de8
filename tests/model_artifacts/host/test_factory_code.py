"""The digest or version of a factory's code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_artifacts.host.environment import version
from model_artifacts.host.factory_code import code_of
from model_artifacts.host.hashes import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    Change = Callable[[str], str]


def test_code_is_the_factorys_wherever_it_is_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment's current folder is not the one of the build: its recipes' code is found on Python's path, too."""
    (tmp_path / "a_model_of_ours.py").write_text("def make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert code_of("a_model_of_ours:make") == sha256_of(tmp_path / "a_model_of_ours.py")
    assert code_of("torchvision.models:resnet18") == version("torchvision")
    assert code_of("nowhere_at_all:make") == "absent"
