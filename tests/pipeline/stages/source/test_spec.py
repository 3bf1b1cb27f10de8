"""The key of the source: arguments of the factory, and the files that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.planning.keys import key_of
from pipeline.planning.project import Project
from pipeline.planning.steps import Step
from pipeline.stages import STAGES
from tests.support import factories

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def fields(write_config: Callable[[str], Path]) -> Callable[[str], dict[str, str]]:
    """A function from the YAML of arguments to the key's fields."""

    def fields_of(arguments: str) -> dict[str, str]:
        text = factories.configuration().replace('weights: "factory"', f'weights: "factory", arguments: {arguments}')
        project = Project.load(write_config(text), STAGES)
        return {field.name: field.value for field in key_of(project, Step("source", "tiny")).fields}

    return fields_of


def test_arguments_are_in_the_key(fields: Callable[[str], dict[str, str]]) -> None:
    """Another value, and another type of it, is another key; their order is none."""
    assert fields("{a: 1, b: [2]}") == fields("{b: [2], a: 1}")
    assert fields("{a: 1}")["arguments"] == '{"a":1}'
    assert len({fields(f"{{a: {value}}}")["arguments"] for value in ("1", "1.0", "true", "'1'", "null")}) == 5


def test_keys_without_arguments_are_as_before(fields: Callable[[str], dict[str, str]]) -> None:
    """A factory without arguments has no field for them."""
    assert not {"arguments", "argument_files"} & fields("{}").keys()


def test_named_files_are_in_the_key(fields: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    """A file or a folder that an argument names, at any depth, counts by its contents."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (tmp_path / "w.bin").write_text("1")
    arguments = f"{{a: {{b: ['{folder}']}}, c: '{tmp_path / 'w.bin'}', d: resnet18, e: '{'x' * 5000}'}}"
    before = fields(arguments)

    (folder / "config.json").write_text("{1}")
    after = fields(arguments)

    assert '"w.bin"' in before["argument_files"]
    assert {name for name in before if before[name] != after[name]} == {"argument_files"}


def test_a_folder_around_the_artifacts_is_left_out(fields: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    """Each step would change its digest, and no step would ever be current."""
    assert "argument_files" not in fields(f"{{a: '{tmp_path}'}}")
